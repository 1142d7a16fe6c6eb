"""Taking turns between processes that write to one file.

SQLite's busy handler sleeps longer and longer, so that a busy neighbour wins for seconds. Here whoever
meets another process queues up instead. The head of the queue waits until the turn before its own is over,
takes SQLite's write lock, and leaves the queue to the next one. A turn lasts a slice of time in which one
may begin transaction after transaction, as long as each comes at once after the one before: handing on
costs more than a commit, and SQLite reads its pages anew after another process wrote.

All of it is kept in one small file beside the database, made when two processes meet for the first time.
The queue is a lock on it, which the system releases when its process dies. What is written in it are times
that pass by themselves: until when a turn lasts, and when the head of the queue was last awake. So whoever
is stopped, killed or interrupted anywhere delays the others by a slice at the most, and not again. SQLite's
own lock remains the one that counts.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from goal_state.errors import DatabaseBusyError

try:
    import fcntl
except ImportError:  # no such locks on this system: SQLite's busy handler has to do
    fcntl = None

__all__ = ["Gate", "OpenGate", "Turnstile", "gate"]

_logger = logging.getLogger(__name__)

_MS: Final = 1_000_000

_MEMORY_NS: Final = 1000 * _MS
"""So long after it met another process one keeps queueing up, rather than push in."""

_SLICE_NS: Final = 3 * _MS
"""In its turn one may begin transactions for so long."""

_IDLE_NS: Final = 1 * _MS
"""A turn ends early where the next transaction does not come within this time."""

_PATIENCE_NS: Final = _SLICE_NS * 3 // 2
"""The head of the queue waits so long for turns to end, whatever is written."""

_HEAD_ASLEEP_NS: Final = 100 * _MS
"""A head of the queue that was not awake for so long is passed by. On a machine that is overloaded one that
wakes every `_HEAD_PAUSE_NS` can be late by tens of milliseconds, and nobody should push in for that."""

_HEAD_PAUSE_NS: Final = 200_000
_QUEUE_PAUSES_NS: Final = (1 * _MS, 300_000)
"""Between two looks at the queue: of who just came, of who has waited for a slice. So the older one is
nearly always the first to see that there is room."""

_SLOW_WAIT_NS: Final = 1000 * _MS


class Gate(Protocol):
    """How a transaction that writes begins and, once it has ended, lets the next one in.

    Used by one thread at a time. An exception may strike anywhere in it: the next call puts right what was
    left undone.
    """

    waits: bool
    """Whether `enter` itself waits for the write lock, so that `begin` must not."""

    def enter(self, begin: Callable[[], None]) -> None:
        """Calls `begin`, which takes the write lock or raises `DatabaseBusyError`."""
        ...

    def leave(self) -> None:
        """The transaction is over, or never began."""
        ...

    def let_go(self) -> None:
        """Gives up its turn and closes its descriptors, as before a fork; the next `enter` opens anew."""
        ...

    def forget(self) -> None:
        """In a forked child: what is held is the parent's, and stays so."""
        ...

    def close(self) -> None:
        """Gives back what it holds, for good."""
        ...


class OpenGate:
    """For a database that no other process writes to, and where there are no locks on files."""

    waits = False

    def enter(self, begin: Callable[[], None]) -> None:
        """Calls `begin`."""
        begin()

    def leave(self) -> None:
        """Nothing to do."""

    def let_go(self) -> None:
        """Nothing to do."""

    def forget(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class Turnstile:
    """The gate of one store."""

    waits = True

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        """
        Args:
            path: the database file.
            timeout_seconds: how long to wait before `DatabaseBusyError`.
        """
        self._queue: Final = _Queue(path.with_name(f"{path.name}-queue"))
        self._timeout_seconds = timeout_seconds
        self._met_at = -_MEMORY_NS
        self._left_at = 0
        self._comes_at_once = False
        self._slice_ends_at = 0  # of the turn that is ours, or was
        self._kept_until = 0  # what we told the others about it

    def enter(self, begin: Callable[[], None]) -> None:
        """Takes the write lock: at once if no other process was met lately, or in our turn; else in line.

        Raises:
            DatabaseBusyError: others had it for longer than the time-out.
        """
        now = time.monotonic_ns()
        if now - self._met_at > _MEMORY_NS:
            if _succeeds(begin):
                return
            self._met_at = now
        self._comes_at_once = now - self._left_at < _IDLE_NS
        if now < self._kept_until and _succeeds(begin):
            return
        self._queue_up(begin, now)

    def leave(self) -> None:
        """Keeps the turn for the next transaction, or gives it up."""
        queue = self._queue
        if not queue.is_open:  # no other process was ever met
            return
        queue.unlock()  # an exception may have kept `enter` from it
        self._left_at = now = time.monotonic_ns()
        if now < self._slice_ends_at and self._comes_at_once:
            self._keep_until(min(self._slice_ends_at, now + _IDLE_NS))
        elif self._kept_until:
            self._give_up()

    def let_go(self) -> None:
        """Gives up its turn and closes the file."""
        if self._kept_until:
            self._give_up()
        self._queue.close()

    def forget(self) -> None:
        """Closes the child's descriptor, with which it would hold its parent's place in the queue."""
        self._kept_until = 0
        self._queue.close()

    def close(self) -> None:
        """Gives up its turn and closes the file."""
        self.let_go()

    def _queue_up(self, begin: Callable[[], None], began_at: int) -> None:
        queue = self._queue
        deadline = began_at + int(self._timeout_seconds * 1e9)
        now = began_at
        try:
            while not (is_head := queue.try_lock()):
                if now - queue.head_seen_at() > _HEAD_ASLEEP_NS:
                    break
                old = now - began_at > _SLICE_NS
                now = self._pause(_QUEUE_PAUSES_NS[old], deadline)
            patience_ends_at = now + _PATIENCE_NS
            while True:
                if is_head:
                    queue.note_head(now)
                left = queue.turn_ends_at() - now
                # What is further off was written before this machine started.
                if not 0 < left <= _SLICE_NS or now > patience_ends_at:
                    if _succeeds(begin):
                        break
                    left = _HEAD_PAUSE_NS
                now = self._pause(min(left, _HEAD_PAUSE_NS), deadline)
            now = time.monotonic_ns()
            self._slice_ends_at = now + _SLICE_NS
            self._keep_until(now + _IDLE_NS)
        finally:
            queue.unlock()
        if now - began_at > _SLOW_WAIT_NS:
            _logger.warning("waited %.1f s for the write lock", (now - began_at) / 1e9)

    def _pause(self, pause_ns: int, deadline: int) -> int:
        """Waits for others and returns the time."""
        time.sleep(pause_ns / 1e9)
        self._met_at = now = time.monotonic_ns()
        if now >= deadline:
            raise DatabaseBusyError(
                f"other processes kept the write lock for {self._timeout_seconds:g} s; try again"
            )
        return now

    def _keep_until(self, end: int) -> None:
        self._kept_until = end
        self._queue.note_turn(end)

    def _give_up(self) -> None:
        self._slice_ends_at = 0
        self._queue.note_turn(0)
        self._kept_until = 0


class _Queue:
    """A lock on a file of its own, made when it is first wanted, and two times that all can read in it."""

    _SIZE: Final = 16

    def __init__(self, path: Path) -> None:
        self._path = path
        # None or one. It is put in and taken out within one call of a C function, between whose parts no
        # exception can strike: else a descriptor could be open and known to nobody.
        self._descriptors: list[int] = []
        self._is_ours = False

    def __del__(self) -> None:
        # Of a store that was dropped without having been closed.
        with suppress(AttributeError, OSError):
            self.close()

    @property
    def is_open(self) -> bool:
        return bool(self._descriptors)

    def try_lock(self) -> bool:
        """Whether the lock was got; also where there can be none: then nobody queues up."""
        assert fcntl is not None  # noqa: S101
        if not self._open():
            return True
        try:
            fcntl.flock(self._descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without such locks
            return True
        return True

    def unlock(self) -> None:
        if self._descriptors and fcntl is not None:
            try:
                fcntl.flock(self._descriptors[0], fcntl.LOCK_UN)
            except OSError:
                return

    def head_seen_at(self) -> int:
        return self._read(0)

    def note_head(self, now: int) -> None:
        self._write(0, now)

    def turn_ends_at(self) -> int:
        return self._read(8)

    def note_turn(self, end: int) -> None:
        self._write(8, end)

    def close(self) -> None:
        self._is_ours = False
        list(map(os.close, map(self._descriptors.pop, [0] * len(self._descriptors))))

    def _open(self) -> bool:
        if not self._descriptors:
            flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                self._descriptors.extend(map(os.open, [self._path], [flags], [0o600]))
            except OSError:  # a folder that may not be written to
                return False
        if not self._is_ours:
            found = os.fstat(self._descriptors[0])
            if not stat.S_ISREG(found.st_mode) or found.st_size > self._SIZE:
                self.close()
                return False
            self._is_ours = True
        return True

    def _read(self, place: int) -> int:
        if not self._is_ours:
            return 0
        return int.from_bytes(os.pread(self._descriptors[0], 8, place), "little")

    def _write(self, place: int, value: int) -> None:
        if not self._is_ours:
            return
        try:
            os.pwrite(self._descriptors[0], value.to_bytes(8, "little"), place)
        except OSError:  # a full disk: the others wait for SQLite's lock alone
            return


def _succeeds(begin: Callable[[], None]) -> bool:
    try:
        begin()
    except DatabaseBusyError:
        return False
    return True


def gate(path: Path | None, timeout_seconds: float) -> Gate:
    """The gate for a database file, or (None) for one in memory."""
    if path is None or fcntl is None:
        return OpenGate()
    return Turnstile(path.resolve(), timeout_seconds)
