"""Copies a SQLite database and its logs as files, so that reading it leaves nothing beside the original."""

from __future__ import annotations

import io
import os
import stat
import time
from pathlib import Path
from typing import Final

from goal_state.errors import CodexSchemaError, DatabaseBusyError, NotADatabaseError

__all__ = ["copy_database"]

_MAX_FILE_BYTES: Final = 256 * 2**20
"""A database larger than this, its logs included, is not copied: a goal takes a kilobyte, and a person does
not have a quarter of a million."""

_COPY_ATTEMPTS: Final = 20
_COPY_PAUSE_SECONDS: Final = 0.05

_HEADER: Final = b"SQLite format 3\0"
_SUPER_JOURNAL_END: Final = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
_BLOCK_BYTES: Final = 2**20
_BINARY: Final[int] = getattr(os, "O_BINARY", 0)


def copy_database(database: Path, folder: Path) -> Path:
    """A copy of a database and its logs as they were at one moment, also while others write to it.

    Even a connection that only reads leaves files beside a database with a write-ahead log; and where the
    folder cannot be written to, it cannot read.

    Raises:
        DatabaseBusyError: no moment was found at which nobody wrote.
        NotADatabaseError: it is no SQLite database.
        CodexSchemaError: it is too large, or its journal belongs to several databases.
    """
    names = [f"{database.name}{suffix}" for suffix in ("", "-wal", "-journal")]
    with _opened(database) as file:
        head = file.read(len(_HEADER))
    if head != _HEADER:
        raise NotADatabaseError(f"{str(database)!r} is not a SQLite database")
    for _ in range(_COPY_ATTEMPTS):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        try:
            present = [name for name in names if (database.parent / name).exists()]
            bytes_left = _MAX_FILE_BYTES
            for name in present:
                bytes_left -= _copy_file(database.parent / name, folder / name, bytes_left)
            # Files that still equal their copies after the last one was copied were all so at that moment.
            if present == [name for name in names if (database.parent / name).exists()] and all(
                _is_same(database.parent / name, folder / name) for name in present
            ):
                _check_journal(database, folder)
                return folder / database.name
        except FileNotFoundError:  # a log that was done with meanwhile
            pass
        time.sleep(_COPY_PAUSE_SECONDS)
    raise DatabaseBusyError(f"{str(database)!r} is being written to all the time; try again")


def _opened(path: Path) -> io.FileIO:
    """A regular file, open for reading: opening a pipe might wait for ever, opening a device change it."""
    is_regular = stat.S_ISREG(path.stat().st_mode)
    if is_regular:
        file = io.FileIO(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY), "rb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    raise NotADatabaseError(f"{str(path)!r} is no regular file")


def _copy_file(source: Path, target: Path, bytes_left: int) -> int:
    """Copies a file of at most `bytes_left` bytes, also if it grows meanwhile; returns how many it has."""
    copied = 0
    with _opened(source) as file, target.open("xb") as copy:
        while block := file.read(_BLOCK_BYTES):
            copied += len(block)
            if copied > bytes_left or os.fstat(file.fileno()).st_size > bytes_left:
                raise CodexSchemaError(
                    f"{str(source)!r}: with its logs the database has more than {_MAX_FILE_BYTES} bytes;"
                    " copy its table of goals into a new one and import that"
                )
            copy.write(block)
    return copied


def _is_same(source: Path, copy: Path) -> bool:
    with _opened(source) as file, copy.open("rb") as other:
        while block := other.read(_BLOCK_BYTES):
            if file.read(len(block)) != block:
                return False
        return not file.read(1)


def _check_journal(database: Path, folder: Path) -> None:
    """Makes sure that a journal names no other file: SQLite would delete that once it has rolled back."""
    journal = folder / f"{database.name}-journal"
    if not journal.exists():
        return
    with journal.open("rb") as file:
        file.seek(max(0, journal.stat().st_size - len(_SUPER_JOURNAL_END)))
        if file.read() == _SUPER_JOURNAL_END:
            raise CodexSchemaError(
                f"{str(database)!r}: its journal is of a change to several databases; open it once with"
                " the program that it is of"
            )
