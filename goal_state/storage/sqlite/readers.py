"""Connections for reading: a pool with as many as there are concurrent readers.

Reads never take the write lock and never wait for it. A database in memory has a single connection, which
its readers share with the writer.

"Interrupted" means that an exception was raised in a thread at an arbitrary instruction: by a signal handler
or by `PyThreadState_SetAsyncExc`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Protocol, TypeVar

from goal_state.errors import NestedCallError, StoreClosedError
from goal_state.storage.forks import until_held
from goal_state.storage.locks import ReentrantLock, is_mine
from goal_state.storage.repository import GoalRepository
from goal_state.storage.sqlite.executor import Executor

__all__ = ["PooledReaders", "Readers", "SharedReader"]

Result = TypeVar("Result")


class Readers(Protocol):
    """Gives a store repositories to read with."""

    def read(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Runs work with a repository that no other thread uses meanwhile."""
        ...

    def stream(
        self, work: Callable[[GoalRepository], Iterator[Result]]
    ) -> contextlib.AbstractContextManager[Iterator[Result]]:
        """Yields an iterator over what work yields; valid inside the block."""
        ...

    def let_go(self, deadline: float) -> bool:
        """Before a fork: closes all connections and blocks new reads until `go_on`; False if a connection is
        still in use at the deadline, or is used by this thread or by an open stream.
        """
        ...

    def go_on(self) -> None:
        """The fork is over."""
        ...

    def close(self) -> None:
        """Closes the idle connections; each of the others closes at the end of its read."""
        ...


class _Reader:
    """One connection for reading."""

    def __init__(self, repository: GoalRepository, executor: Executor) -> None:
        self.repository = repository
        self.executor = executor
        # Reentrant, so that a fork from inside a read can tell that the read is its own thread's.
        self.in_use = threading.RLock()

    def close(self) -> None:
        self.executor.close()

    def __del__(self) -> None:
        # An interrupted thread can lose a reader between the pool and its use.
        with contextlib.suppress(AttributeError, sqlite3.Error):
            self.close()


class PooledReaders:
    """A pool of connections; a new one is made when all others are in use."""

    def __init__(self, connect: Callable[[], tuple[GoalRepository, Executor]]) -> None:
        self._connect = connect
        self._idle: deque[_Reader] = deque()
        self._all: dict[int, weakref.ref[_Reader]] = {}
        self._streaming: dict[int, weakref.ref[_Reader]] = {}
        self._gate = threading.RLock()
        """Held during a fork, and while a connection is being made."""
        self._held: list[_Reader] = []
        self._is_held_for_fork = False
        self._closed = False

    def read(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Reads with the connection used last, or with a new one."""
        while True:
            try:
                reader = self._idle.pop()
            except IndexError:
                reader = self._new()
            executor = reader.executor
            with reader.in_use:
                if not executor.usable:  # closed by a fork in between
                    continue
                complete = False
                try:
                    result = work(reader.repository)
                    complete = executor.usable
                    return result
                except sqlite3.Error as error:  # raised by fetching rows, after `execute` succeeded
                    raise executor.failed(error) from error
                finally:
                    # Kept for the next read, unless the database has failed on it. An interrupted read would
                    # keep its snapshot open until the next use of this connection.
                    if complete:
                        self._idle.append(reader)
                    else:
                        reader.close()
                    if self._closed:
                        self.close()

    @contextlib.contextmanager
    def stream(
        self, work: Callable[[GoalRepository], Iterator[Result]]
    ) -> Generator[Iterator[Result]]:
        """Reads with a connection of its own, which no fork can close."""
        reader = self._new()
        self._streaming[id(reader)] = _tracked(reader, self._streaming)
        try:
            yield work(reader.repository)
        except sqlite3.Error as error:
            raise reader.executor.failed(error) from error
        finally:
            self._streaming.pop(id(reader), None)
            reader.close()

    def _new(self) -> _Reader:
        def connect() -> _Reader:
            reader = _Reader(*self._connect())
            self._all[id(reader)] = _tracked(reader, self._all)
            return reader

        with self._gate:
            return until_held(connect)

    def let_go(self, deadline: float) -> bool:
        """See `Readers`."""
        if is_mine(self._gate):  # the fork interrupts this thread while it connects
            return False
        self._is_held_for_fork = True
        if not self._gate.acquire(timeout=max(deadline - time.monotonic(), 0)):
            return False
        self._idle.clear()
        if self._streaming:
            return False
        for reference in list(self._all.values()):
            reader = reference()
            if reader is None:
                continue
            if is_mine(reader.in_use):
                return False
            self._held.append(reader)
            if not reader.in_use.acquire(timeout=max(deadline - time.monotonic(), 0)):
                return False
            reader.close()
        return True

    def go_on(self) -> None:
        """See `Readers`."""
        while self._held:
            reader = self._held[-1]
            while is_mine(reader.in_use):
                reader.in_use.release()
            self._held.pop()
        if self._is_held_for_fork:
            while is_mine(self._gate):
                self._gate.release()
            self._is_held_for_fork = False

    def close(self) -> None:
        """Closes the idle connections, and from now on each one that is returned to the pool."""
        self._closed = True
        while self._idle:
            try:
                reader = self._idle.pop()
            except IndexError:  # another thread took the last one
                return
            reader.close()


class SharedReader:
    """Reads on the writer's connection, between its transactions."""

    def __init__(self, repository: GoalRepository, executor: Executor, lock: ReentrantLock) -> None:
        self._repository = repository
        self._executor = executor
        self._lock = lock
        self._closed = False

    def read(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Waits until no transaction is open, then reads."""
        if is_mine(self._lock):
            raise NestedCallError(
                "this thread is inside a transaction or read of the same store; read with the repository"
                " that the transaction passed to you"
            )
        with self._lock:
            if self._closed:  # while this reader waited
                raise StoreClosedError("the store is closed; open it again")
            try:
                return work(self._repository)
            except sqlite3.Error as error:
                raise self._executor.failed(error) from error

    @contextlib.contextmanager
    def stream(
        self, work: Callable[[GoalRepository], Iterator[Result]]
    ) -> Generator[Iterator[Result]]:
        """Reads the whole result first: its consumer may need the only connection while it iterates."""
        yield iter(self.read(lambda repository: list(work(repository))))

    def let_go(self, deadline: float) -> bool:  # noqa: ARG002
        """Always False: closing the connection would delete the database."""
        return False

    def go_on(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Refuses later reads and waiting ones; the writer closes the connection."""
        self._closed = True


def _tracked(reader: _Reader, readers: dict[int, weakref.ref[_Reader]]) -> weakref.ref[_Reader]:
    key = id(reader)

    def forget(_: object) -> None:
        readers.pop(key, None)

    return weakref.ref(reader, forget)
