"""Taking turns between processes that write to one file.

SQLite's busy handler sleeps longer and longer, so that a busy neighbour wins for seconds. Here whoever
meets another process queues up instead: at a door, through which one goes at a time into a room, from
where the write lock is taken. Who leaves the room has to pass the door again, behind those who wait.

Both are locks on small files beside the database, which the system releases when their process dies. They
are made when two processes meet for the first time. SQLite's own lock remains the one that counts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from goal_state.errors import DatabaseBusyError

try:
    import fcntl
except ImportError:  # no such locks on this system: SQLite's busy handler has to do
    fcntl = None

__all__ = ["Gate", "OpenGate", "Turnstile", "gate"]

_logger = logging.getLogger(__name__)

_MEMORY_SECONDS: Final = 1.0
"""So long after it met another process one keeps queueing up, rather than push in."""

_AT_THE_DOOR_SECONDS: Final = 0.0003
_IN_THE_ROOM_SECONDS: Final = 0.0
_AT_THE_LOCK_SECONDS: Final = 0.0002
_SLOW_WAIT_SECONDS: Final = 1.0


class Gate(Protocol):
    """How a transaction that writes begins and, once it has ended, lets the next one in."""

    def enter(self, begin: Callable[[], None]) -> None:
        """Calls `begin`, which takes the write lock or raises `DatabaseBusyError`."""
        ...

    def leave(self) -> None:
        """The transaction is over, or never began."""
        ...

    def let_go(self) -> None:
        """Closes its files before a fork; the next `enter` opens them again."""
        ...

    def close(self) -> None:
        """Gives back what it holds."""
        ...


class OpenGate:
    """For a database that no other process writes to, and where there are no locks on files."""

    def enter(self, begin: Callable[[], None]) -> None:
        """Calls `begin`."""
        begin()

    def leave(self) -> None:
        """Nothing to do."""

    def let_go(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class Turnstile:
    """The gate of one store. Used by one thread at a time; it expects that `begin` does not wait."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        """
        Args:
            path: the database file.
            timeout_seconds: how long to wait before `DatabaseBusyError`.
        """
        self._door: Final = _FileLock(path.with_name(f"{path.name}-door"))
        self._room: Final = _FileLock(path.with_name(f"{path.name}-room"))
        self._timeout_seconds = timeout_seconds
        self._met_at = float("-inf")

    def enter(self, begin: Callable[[], None]) -> None:
        """Takes the write lock: at once if no other process was met lately, else in turn.

        Raises:
            DatabaseBusyError: others had it for longer than the time-out.
        """
        now = time.monotonic()
        if now - self._met_at > _MEMORY_SECONDS:
            try:
                begin()
                return
            except DatabaseBusyError:
                self._met_at = now
        deadline = now + self._timeout_seconds
        self._wait_for(self._door.try_lock, _AT_THE_DOOR_SECONDS, deadline)
        try:
            self._wait_for(self._room.try_lock, _IN_THE_ROOM_SECONDS, deadline)
        finally:
            self._door.unlock()
        # Who is outside (a host's own transaction, a newcomer) can still hold the lock itself.
        self._wait_for(lambda: _succeeds(begin), _AT_THE_LOCK_SECONDS, deadline)
        if (waited := time.monotonic() - now) > _SLOW_WAIT_SECONDS:
            _logger.warning("waited %.1f s for the write lock", waited)

    def leave(self) -> None:
        """Leaves the room, if this one was in it."""
        self._room.unlock()

    def let_go(self) -> None:
        """Closes the files until they are wanted again."""
        self.close()

    def close(self) -> None:
        """Closes the files."""
        self._door.close()
        self._room.close()

    def _wait_for(self, attempt: Callable[[], bool], pause: float, deadline: float) -> None:
        while not attempt():
            now = time.monotonic()
            self._met_at = now
            if now >= deadline:
                raise DatabaseBusyError(
                    f"other processes kept the write lock for {self._timeout_seconds:g} s; try again"
                )
            time.sleep(pause)


class _FileLock:
    """A lock on a file of its own, made when it is first wanted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._held = False

    def try_lock(self) -> bool:
        assert fcntl is not None  # noqa: S101
        if self._descriptor is None:
            flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
            try:
                self._descriptor = os.open(self._path, flags, 0o600)
            except OSError:  # a folder that may no longer be written to: then nobody queues up
                return True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._held = True
        return True

    def unlock(self) -> None:
        if self._held and self._descriptor is not None and fcntl is not None:
            self._held = False
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._held = False


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
