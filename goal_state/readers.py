"""Connections for reading: as many as there are readers at once, kept from one read to the next.

Reads never take the write lock and never wait for it. A database in memory has a single connection, which
its readers share with the writer.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

from goal_state.errors import StoreClosedError
from goal_state.repository import GoalRepository

__all__ = ["PooledReaders", "Readers", "SharedReader", "reading"]


class Readers(Protocol):
    """Where a store finds a repository to read with."""

    def acquire(self) -> GoalRepository:
        """A repository for the caller alone, until it is released."""
        ...

    def release(self, reader: GoalRepository) -> None:
        """Gives a repository back."""
        ...

    def close(self) -> None:
        """Closes what is not in use; the rest closes when it is given back."""
        ...


class PooledReaders:
    """Connections of their own, made when all others are in use."""

    def __init__(self, connect: Callable[[], GoalRepository]) -> None:
        self._connect = connect
        self._idle: deque[GoalRepository] = deque()
        self._closed = False

    def acquire(self) -> GoalRepository:
        """The connection used last, or a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def release(self, reader: GoalRepository) -> None:
        """Keeps the connection for the next reader, unless the database has failed on it."""
        if reader.executor.failure is not None:
            reader.executor.close()
            return
        self._idle.append(reader)
        if self._closed:
            self.close()

    def close(self) -> None:
        """Closes the idle connections, and from now on each one that is given back."""
        self._closed = True
        while self._idle:
            try:
                reader = self._idle.pop()
            except IndexError:  # another thread took the last one
                return
            reader.executor.close()


class SharedReader:
    """The writer's own connection, while no transaction is open on it."""

    def __init__(self, repository: GoalRepository, lock: threading.Lock) -> None:
        self._repository = repository
        self._lock = lock
        self._closed = False

    def acquire(self) -> GoalRepository:
        """The connection, once no transaction is open on it."""
        self._lock.acquire()
        if self._closed:  # while this reader waited
            self._lock.release()
            raise StoreClosedError("the store is closed; open it again")
        return self._repository

    def release(self, reader: GoalRepository) -> None:  # noqa: ARG002
        """Lets the next one have the connection."""
        self._lock.release()

    def close(self) -> None:
        """Refuses those who come after, or wait; the connection is the writer's to close."""
        self._closed = True


@contextmanager
def reading(readers: Readers) -> Generator[GoalRepository]:
    """A repository to read with, given back at the end."""
    reader = readers.acquire()
    try:
        yield reader
    except sqlite3.Error as error:  # from fetching the rows of a statement that began well
        raise reader.executor.failed(error) from error
    finally:
        readers.release(reader)
