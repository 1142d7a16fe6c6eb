"""Fair queueing for the write lock between processes that write to one file.

SQLite's busy handler backs off longer and longer, so that a busy process starves the others for seconds.
Here a process that finds contention queues up instead. The head of the queue holds the queue lock, waits for
the end of the current turn, takes SQLite's write lock, and releases the queue lock to the next process. A
turn is a time slice in which its owner may begin transaction after transaction, as long as each follows the
one before at once: a hand-over costs more than a commit, and SQLite rereads its pages after another process
wrote.

The state is one small file beside the database, made at the first contention. The queue lock is a lock on
that file, which the system releases when its holder dies. The file holds two times that expire by
themselves: when the current turn ends, and when the head of the queue was last awake. So a process that is
stopped, killed or interrupted anywhere delays the others by one slice at most, and once only. SQLite's own
lock alone guards the data. "Interrupted" means that an exception was raised in a thread at an arbitrary
instruction: by a signal handler or by `PyThreadState_SetAsyncExc`.
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
except ImportError:  # no such locks on this system: only SQLite's busy handler is left
    fcntl = None

__all__ = ["Gate", "OpenGate", "Turnstile", "gate"]

_logger = logging.getLogger(__name__)

_MS: Final = 1_000_000

_CONTENTION_NS: Final = 1000 * _MS
"""How long after contention a process still queues up, rather than try SQLite's lock at once."""

_SLICE_NS: Final = 3 * _MS
"""The length of a turn: how long its owner may begin transactions."""

_IDLE_NS: Final = 1 * _MS
"""A turn ends early if the next transaction does not begin within this time."""

_LONGEST_TURN_WAIT_NS: Final = _SLICE_NS * 3 // 2
"""How long the head of the queue waits for turns to end, whatever the file says."""

_HEAD_TIMEOUT_NS: Final = 100 * _MS
"""A head of the queue that was not awake for so long is passed over. On an overloaded machine a head that
wakes every `_HEAD_PAUSE_NS` can be tens of milliseconds late, which must not cost it its place."""

_HEAD_PAUSE_NS: Final = 200_000
_QUEUE_PAUSES_NS: Final = (1 * _MS, 300_000)
"""The pause between two tries to take the queue lock: of a newcomer, and after a wait of one slice. So the
process that waits longest nearly always gets the lock first."""

_SLOW_WAIT_NS: Final = 1000 * _MS


class Gate(Protocol):
    """Begins write transactions in turn with other processes.

    Used by one thread at a time. A call may be interrupted anywhere: the next call repairs the state.
    """

    waits: bool
    """Whether `enter` itself waits for the write lock, so that `begin` must not."""

    def enter(self, begin: Callable[[], None]) -> None:
        """Calls `begin`, which takes the write lock or raises `DatabaseBusyError`."""
        ...

    def leave(self) -> None:
        """Called when the transaction has ended, or failed to begin."""
        ...

    def let_go(self) -> None:
        """Ends its turn and closes its file descriptors, as before a fork; the next `enter` reopens them."""
        ...

    def forget(self) -> None:
        """In a forked child: drops all state, since the turn and the queue lock are the parent's."""
        ...

    def close(self) -> None:
        """Releases everything, for good."""
        ...


class OpenGate:
    """No queueing: for a database in memory, and for systems without file locks."""

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
        self._contended_at = -_CONTENTION_NS
        self._left_at = 0
        self._follows_at_once = False
        self._slice_ends_at = 0  # of our turn, current or past
        self._kept_until = 0  # the end of our turn as we wrote it to the file

    def enter(self, begin: Callable[[], None]) -> None:
        """Takes the write lock: at once if there was no recent contention, or in our turn; else by queueing.

        Raises:
            DatabaseBusyError: other processes held it for longer than the time-out.
        """
        now = time.monotonic_ns()
        if now - self._contended_at > _CONTENTION_NS:
            if _succeeds(begin):
                return
            self._contended_at = now
        self._follows_at_once = now - self._left_at < _IDLE_NS
        if now < self._kept_until and _succeeds(begin):
            return
        self._queue_up(begin, now)

    def leave(self) -> None:
        """Keeps the turn for the next transaction, or ends it."""
        queue = self._queue
        if not queue.is_open:  # there never was contention
            return
        queue.unlock()  # an exception may have kept `enter` from doing so
        self._left_at = now = time.monotonic_ns()
        if now < self._slice_ends_at and self._follows_at_once:
            self._keep_until(min(self._slice_ends_at, now + _IDLE_NS))
        elif self._kept_until:
            self._end_turn()

    def let_go(self) -> None:
        """Ends its turn and closes the file."""
        if self._kept_until:
            self._end_turn()
        self._queue.close()

    def forget(self) -> None:
        """Closes the child's file descriptor: it shares the parent's queue lock, and would keep it held."""
        self._kept_until = 0
        self._queue.close()

    def close(self) -> None:
        """Ends its turn and closes the file."""
        self.let_go()

    def _queue_up(self, begin: Callable[[], None], began_at: int) -> None:
        queue = self._queue
        deadline = began_at + int(self._timeout_seconds * 1e9)
        now = began_at
        try:
            while not (is_head := queue.try_lock()):
                if now - queue.head_seen_at() > _HEAD_TIMEOUT_NS:
                    break
                old = now - began_at > _SLICE_NS
                now = self._pause(_QUEUE_PAUSES_NS[old], deadline)
            turn_wait_ends_at = now + _LONGEST_TURN_WAIT_NS
            while True:
                if is_head:
                    queue.note_head(now)
                left = queue.turn_ends_at() - now
                # An end that is further off was written before this machine started.
                if not 0 < left <= _SLICE_NS or now > turn_wait_ends_at:
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
        """Sleeps, notes the contention, and returns the time."""
        time.sleep(pause_ns / 1e9)
        self._contended_at = now = time.monotonic_ns()
        if now >= deadline:
            raise DatabaseBusyError(
                f"other processes kept the write lock for {self._timeout_seconds:g} s; try again"
            )
        return now

    def _keep_until(self, end: int) -> None:
        self._kept_until = end
        self._queue.note_turn(end)

    def _end_turn(self) -> None:
        self._slice_ends_at = 0
        self._queue.note_turn(0)
        self._kept_until = 0


class _Queue:
    """The queue lock: a lock on a file of its own, made on first use, which also holds two shared times."""

    _SIZE: Final = 16

    def __init__(self, path: Path) -> None:
        self._path = path
        # Empty, or the one file descriptor. It is put in and taken out within one call into C, which cannot
        # be interrupted: else an exception could lose an open descriptor.
        self._descriptors: list[int] = []
        self._is_ours = False

    def __del__(self) -> None:
        # The store may have been dropped without being closed.
        with suppress(AttributeError, OSError):
            self.close()

    @property
    def is_open(self) -> bool:
        return bool(self._descriptors)

    def try_lock(self) -> bool:
        """Whether the queue lock was taken. True, too, where no lock can be had: then nobody queues."""
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
            except OSError:  # a read-only folder
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
        except OSError:  # a full disk: the others then contend for SQLite's lock alone
            return


def _succeeds(begin: Callable[[], None]) -> bool:
    try:
        begin()
    except DatabaseBusyError:
        return False
    return True


def gate(path: Path | None, timeout_seconds: float) -> Gate:
    """The gate of a database file, or of a database in memory (None)."""
    if path is None or fcntl is None:
        return OpenGate()
    return Turnstile(path.resolve(), timeout_seconds)
