"""Translates SQLite's errors into the library's, by their codes."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import exc

from goal_state.errors import (
    DatabaseBusyError,
    DatabaseCorruptError,
    DatabaseError,
    DatabaseFullError,
    DatabaseIOError,
    DatabaseReadOnlyError,
    UsageOverflowError,
)

__all__ = ["primary_code", "too_large", "translated", "translating"]


_CONSTRAINT_DATATYPE: Final = sqlite3.SQLITE_CONSTRAINT | 12 << 8
"""A STRICT table refused a value: a sum that overflowed its integers. `sqlite3` has no name for it."""


_BY_CODE: Final[dict[int, tuple[type[DatabaseError], str]]] = {
    sqlite3.SQLITE_BUSY: (
        DatabaseBusyError,
        "another process kept the write lock for longer than the busy timeout; try again",
    ),
    sqlite3.SQLITE_LOCKED: (DatabaseBusyError, "another connection holds a table; try again"),
    sqlite3.SQLITE_CORRUPT: (
        DatabaseCorruptError,
        "the database file is damaged, or its disk is; restore a backup",
    ),
    sqlite3.SQLITE_NOTADB: (
        DatabaseCorruptError,
        "the file is no longer a SQLite database; restore a backup",
    ),
    sqlite3.SQLITE_FULL: (DatabaseFullError, "the disk is full; free some space and try again"),
    sqlite3.SQLITE_READONLY: (
        DatabaseReadOnlyError,
        "the database cannot be written to; allow writing to the file and its folder",
    ),
    sqlite3.SQLITE_IOERR: (
        DatabaseIOError,
        "the operating system could not read or write the database file; check its disk",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        DatabaseIOError,
        "the database file cannot be opened; check that it exists and that this process can open files",
    ),
}


def primary_code(error: sqlite3.Error) -> int | None:
    """The result code without its extension; None for an error that SQLite did not raise."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def translated(error: sqlite3.Error) -> Exception:
    """The library's error for one of SQLite's, chosen by the result code.

    An error that shows a fault in our own SQL is returned as it is: no caller can act on it.
    """
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return error
    if code == _CONSTRAINT_DATATYPE:
        return too_large()
    kind, sentence = _BY_CODE.get(code & 0xFF, (None, ""))
    if kind is None:
        return error
    return kind(f"{sentence} ({error.sqlite_errorname})", code=code)


@contextmanager
def translating() -> Generator[None]:
    """Raises SQLite's errors, also those wrapped by SQLAlchemy, as the library's."""
    try:
        yield
    except sqlite3.Error as error:
        raise translated(error) from error
    except exc.DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            raise translated(error.orig) from error
        raise


def too_large() -> UsageOverflowError:
    """The error of a sum that overflows SQLite's integers."""
    return UsageOverflowError("usage", "the sum would be 2^63 or more")
