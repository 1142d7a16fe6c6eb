"""Which files a process opens by itself, beside SQLite: heard from the interpreter's own audit events.

On POSIX, closing any descriptor of a file drops every lock that the process has on it. So nothing but
SQLite may open a database, its log or the log's index, under whatever name.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Watch"]


class Watch:
    """Listens, for the rest of this process, to what is opened."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._busy = False
        self.reached: list[str] = []
        """Who opened what, where it was a file that is watched."""
        self.connected = 0
        """How often SQLite was told to open a watched database, or one was put into its place."""
        sys.addaudithook(self._hear)

    @contextmanager
    def on(self, *databases: Path) -> Iterator[None]:
        """Watches these databases, which may not be there yet."""
        self._names = {
            os.path.realpath(f"{database}{end}")
            for database in databases
            for end in ("", "-wal", "-shm", "-journal")
        }
        self.reached, self.connected = [], 0
        try:
            yield
        finally:
            self._names = set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is opened inside is the test's own doing, before the library knows of the file."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._names or self._busy:
            return
        self._busy = True  # what is done here to find out is heard as well
        try:
            match event:
                case "open":
                    if self._is_watched(arguments[0]):
                        self._note(f"open({arguments[0]!r})")
                case "os.link" | "os.rename":  # of `replace` as well
                    # What is about to become the database must be open nowhere in this process.
                    if _real(arguments[1]) in self._names:
                        self.connected += 1
                        if _is_open(arguments[0]):
                            self._note(f"{event}({arguments[0]!r}, …) of a file that is open")
                case "sqlite3.connect":
                    self.connected += self._is_database(arguments[0])
                case _:
                    pass
        finally:
            self._busy = False

    def _is_watched(self, opened: Any) -> bool:
        if _real(opened) in self._names:
            return True
        if not isinstance(opened, int):
            name = Path(os.fsdecode(opened))
            if not name.is_absolute() and name.name in {Path(one).name for one in self._names}:
                return True  # maybe relative to a folder that the event does not name
        identity = _identity(opened)
        return identity is not None and identity in {_identity(name) for name in self._names}

    def _is_database(self, name: Any) -> bool:
        plain = os.fsdecode(name).removeprefix("file://").removeprefix("file:").split("?")[0]
        return _real(plain) in self._names

    def _note(self, what: str) -> None:
        by = [
            f"{Path(frame.filename).name}:{frame.lineno}"
            for frame in traceback.extract_stack()
            if frame.filename != __file__
        ]
        self.reached.append(f"{what} by {' > '.join(by[-4:])}")


def _real(name: Any) -> str | None:
    return None if isinstance(name, int) else os.path.realpath(os.fsdecode(name))


def _identity(name: Any) -> tuple[int, int] | None:
    try:
        status = os.stat(name)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_open(name: Any) -> bool:
    wanted = _identity(name)
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():  # a system that does not tell
        return False
    return any(_identity(int(entry.name)) == wanted for entry in descriptors.iterdir())
