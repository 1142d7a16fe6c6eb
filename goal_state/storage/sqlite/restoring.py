"""Restoring a backup into a database that other processes may have open.

The file itself is never replaced: SQLite would replay the old log onto the new file, and open connections
would go on using the old one. Instead the backup's pages are written into the database as one transaction,
which every connection of every process sees as one change.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Engine

from goal_state.domain.tariff import Tariff
from goal_state.errors import (
    DatabaseBusyError,
    DatabaseCorruptError,
    DatabaseLocationError,
    NotADatabaseError,
)
from goal_state.storage.options import Progress
from goal_state.storage.schema import HEAD_REVISION, cursors
from goal_state.storage.schema import database as settings
from goal_state.storage.settings import check_settings
from goal_state.storage.sqlite.connections import create_engine
from goal_state.storage.sqlite.errors import translating
from goal_state.storage.sqlite.location import change_identity, inspect_file, reading_uri

__all__ = ["check_backup", "check_copy", "counted_tokens_of", "prepared", "write_over"]


def check_backup(source: Path) -> str:
    """The revision of a backup's schema, which may be newer than the library's.

    Raises:
        DatabaseLocationError: there is no such backup.
        NotADatabaseError: it holds no tables of ours.
    """
    if not source.is_file():
        raise DatabaseLocationError(f"there is no backup {str(source)!r}")
    revision = inspect_file(source, to_read=True)
    if revision is None:
        raise NotADatabaseError(f"{str(source)!r} holds no goals; name a backup of goal-state")
    return revision


def counted_tokens_of(backup: Path) -> str:
    """The name of the `counted_tokens` that a backup stores; the default where it stores none."""
    with translating(), closing(sqlite3.connect(reading_uri(backup), uri=True)) as connection:
        return _counted_tokens(connection) or "uncached"


def _counted_tokens(connection: sqlite3.Connection) -> str | None:
    row = connection.execute(f"SELECT counted_tokens FROM {settings.name}").fetchone()  # noqa: S608
    return None if row is None else row[0]


@contextmanager
def prepared(
    source: Path,
    database: Path | None,
    identity: str | None,
    page_size: int,
    progress: Progress | None,
    upgrade: Callable[[Engine], None],
) -> Generator[sqlite3.Connection]:
    """A verified copy of a backup, upgraded to the library's schema; deleted at the end of the block.

    Args:
        source: the backup. It is not changed.
        database: the file to be written over; the copy is made beside it. None in memory.
        identity: of that database; the copy gets it.
        page_size: of that database, in bytes.
        progress: see `Progress`.
        upgrade: upgrades a database to the library's schema, or refuses it.

    Raises:
        DatabaseLocationError: there is no such backup, it is the database itself, or it holds no tables of
            ours.
        SchemaTooNewError: it was made by a newer version of the library.
        DatabaseCorruptError: it is damaged.
    """
    revision = check_backup(source)
    if database is not None and database.exists() and source.samefile(database):
        raise DatabaseLocationError(f"{str(source)!r} is the database itself; name a backup of it")
    folder = None if database is None else Path(os.path.realpath(database)).parent
    with tempfile.TemporaryDirectory(prefix=".goal-state-restore-", dir=folder) as place:
        copy = Path(place, "copy.db")
        with translating():
            _copy(source, copy, progress)
            if revision != HEAD_REVISION:
                engine = create_engine(copy)
                upgrade(engine)
                engine.dispose()
            change_identity(copy, identity)
            with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
                _check(connection, source)
                # Without a lease, each consumer reads its restored cursor before it goes on.
                connection.execute(
                    f"UPDATE {cursors.name} SET holder = NULL, lease_expires_at_ms = NULL"  # noqa: S608
                )
                # SQLite can only write it over the database if both have the same page size.
                connection.execute("PRAGMA journal_mode = DELETE")
                if connection.execute("PRAGMA page_size").fetchone()[0] != page_size:
                    connection.execute(f"PRAGMA page_size = {page_size:d}")
                    connection.execute("VACUUM")
                yield connection


def _copy(source: Path, copy: Path, progress: Progress | None) -> None:
    def report(_status: int, left: int, total: int) -> None:
        if progress is not None:
            progress(left, total)

    with (
        closing(sqlite3.connect(reading_uri(source), uri=True)) as backup,
        closing(sqlite3.connect(copy)) as target,
    ):
        backup.backup(target, pages=1000, progress=report)


def _check(connection: sqlite3.Connection, source: Path) -> None:
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise DatabaseCorruptError(
            f"{str(source)!r} is damaged ({found}); use another backup. The database was left as it was"
        )


def check_copy(copy: sqlite3.Connection, tariff: Tariff) -> None:
    """Makes sure that a prepared copy has the settings of the database to be written over.

    Raises:
        SettingsConflictError: it has others.
    """
    row = copy.execute(f"SELECT counted_tokens, currency FROM {settings.name}").fetchone()  # noqa: S608
    if row is not None:
        counted_tokens, currency = row
        check_settings(counted_tokens, currency, tariff)


def write_over(
    copy: sqlite3.Connection, database: sqlite3.Connection, busy_timeout_seconds: float
) -> None:
    """Writes a prepared copy over a database, as one transaction.

    Raises:
        DatabaseBusyError: others kept the write lock; nothing was changed.
        DatabaseError: the database failed; nothing was changed.
    """
    deadline = time.monotonic() + busy_timeout_seconds

    def give_up(status: int, _left: int, _total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > deadline:
            raise DatabaseBusyError(
                f"others kept the database locked for {busy_timeout_seconds:g} s; nothing was changed,"
                " try again"
            )

    with translating():
        copy.backup(database, pages=-1, progress=give_up, sleep=0.002)
