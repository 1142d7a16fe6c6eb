"""Engines and connections: how they are made and configured, and checks on a single connection."""

from __future__ import annotations

import os
import sqlite3
import time
from typing import Any, Final, cast

from sqlalchemy import (
    Connection,
    Dialect,
    Engine,
    NullPool,
    SingletonThreadPool,
    StaticPool,
    event,
)
from sqlalchemy import create_engine as sqlalchemy_create_engine
from sqlalchemy.engine import URL

from goal_state.errors import TransactionError, UnsupportedDatabaseError
from goal_state.storage.forks import check_not_barred
from goal_state.storage.options import Durability, check_busy_timeout, check_durability
from goal_state.storage.schema import VERSION_TABLE
from goal_state.storage.sqlite.errors import primary_code, translating
from goal_state.storage.sqlite.file_guard import OpenedFile
from goal_state.storage.sqlite.location import database_path, is_memory, is_memory_name, sqlite_url

__all__ = [
    "HOSTS_TRANSACTION",
    "check_writable",
    "connect_to_file",
    "create_engine",
    "detached_connection",
    "driver_connection",
    "enable_wal",
    "opened_file",
    "require_sqlite3",
    "set_pragmas",
    "vacuum",
]


HOSTS_TRANSACTION: Final = (
    "a transaction of yours is open on the one connection that the database in memory has; use a"
    " GoalRepository on your connection, or the store once your transaction has ended"
)


def create_engine(
    target: str | os.PathLike[str] | URL,
    *,
    durability: Durability = "full",
    busy_timeout_seconds: float = 10.0,
) -> Engine:
    """An engine configured for goals: foreign keys, busy timeout, `synchronous`, and transactions that
    begin with BEGIN IMMEDIATE, so that none fails half-way for want of the write lock.

    Args:
        target: a path, `":memory:"`, or a SQLAlchemy URL without parameters.
        durability: see `Durability`.
        busy_timeout_seconds: how long to wait for the write lock before `DatabaseBusyError`.

    Raises:
        DatabaseLocationError: the URL has parameters.
        UnsupportedDatabaseError: the URL is not SQLite's, or SQLite is older than 3.37.
        InvalidValueError: the durability or the time-out is not one.
    """
    check_durability(durability)
    timeout_ms = check_busy_timeout(busy_timeout_seconds)
    url = sqlite_url(target)
    memory = is_memory_name(url.database)
    engine = sqlalchemy_create_engine(
        url,
        # The store keeps its own connections; an in-memory database lives in exactly one.
        poolclass=StaticPool if memory else NullPool,
        pool_reset_on_return=None,
        connect_args={"check_same_thread": False, "timeout": timeout_ms / 1000},
    )

    @event.listens_for(engine, "connect")
    def _on_connect(dbapi_connection: sqlite3.Connection, _record: object) -> None:
        dbapi_connection.isolation_level = None
        set_pragmas(dbapi_connection, durability, timeout_ms)

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # The driver's own BEGIN is off: it comes late, is deferred, and excludes DDL. This one takes the
        # write lock at the start and makes migrations transactional.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def connect_to_file(path: str, durability: Durability, timeout_ms: int) -> sqlite3.Connection:
    """A connection to a database file of our own (an absolute path), made by the driver alone.

    Making an engine at each open costs time and takes a lock of Python's `logging`, which before Python 3.13
    an asynchronous exception could leave held.

    Raises:
        DatabaseError: the file could not be opened.
    """
    check_not_barred(path)
    with translating():
        driver = sqlite3.connect(
            path,
            timeout=timeout_ms / 1000,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            set_pragmas(driver, durability, timeout_ms)
            enable_wal(driver, busy_timeout_seconds=timeout_ms / 1000)
        except BaseException:
            driver.close()
            raise
    return driver


def set_pragmas(
    dbapi_connection: sqlite3.Connection, durability: Durability, timeout_ms: int
) -> None:
    """Sets the pragmas that apply to one connection only and do not change the file."""
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {timeout_ms:d}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute(f"PRAGMA synchronous = {durability.upper()}")
    # Four times the default: a checkpoint syncs the database file, and a tenth of the charges' time
    # went into that.
    cursor.execute("PRAGMA wal_autocheckpoint = 4000")
    cursor.close()


def driver_connection(connection: Connection) -> sqlite3.Connection:
    """The driver's connection under one of SQLAlchemy's."""
    return cast(sqlite3.Connection, connection.connection.dbapi_connection)


def require_sqlite3(dialect: Dialect) -> None:
    """Refuses a dialect that does not use Python's own `sqlite3`.

    Raises:
        UnsupportedDatabaseError: it is another database, or another driver.
    """
    if dialect.name != "sqlite":
        raise UnsupportedDatabaseError(f"goals are kept in SQLite, not in {dialect.name}")
    if dialect.driver != "pysqlite":
        raise UnsupportedDatabaseError(
            f"goals are kept through Python's own sqlite3, not through {dialect.driver}; open a GoalStore"
            " on the same database" + (", and call it in a thread" if dialect.is_async else "")
        )


def detached_connection(engine: Engine) -> Connection:
    """A connection that nobody else uses, is detached from the engine's pool, and on which the driver
    begins no transactions by itself. In memory it is the only connection there is.

    Raises:
        UnsupportedDatabaseError: the engine's pool shares its connections between users.
        TransactionError: a host's transaction is open on the only connection.
    """
    require_sqlite3(engine.dialect)
    if (path := database_path(engine)) is not None:
        check_not_barred(str(path))
    with translating():
        if is_memory(engine):
            return _shared_connection(engine)
        if isinstance(engine.pool, StaticPool | SingletonThreadPool):
            raise UnsupportedDatabaseError(
                f"the engine has a {type(engine.pool).__name__}, which would hand out a connection that"
                " others use; leave poolclass to SQLAlchemy, or pass the path"
            )
        connection = engine.connect()
        connection.detach()
        driver = driver_connection(connection)
        # From Python 3.12 on; where it is set, `isolation_level` has no effect.
        if hasattr(driver, "autocommit"):
            cast(Any, driver).autocommit = cast(Any, sqlite3).LEGACY_TRANSACTION_CONTROL
            driver.rollback()
        driver.isolation_level = None
        return connection


def _shared_connection(engine: Engine) -> Connection:
    """The only connection of a database in memory. Closing it leaves the host's transaction open."""
    pool = engine.pool
    if not isinstance(pool, StaticPool):
        connection = engine.connect()
        if driver_connection(connection).in_transaction:
            connection.close()  # ends no transaction, since the host holds the connection too
            raise TransactionError(HOSTS_TRANSACTION)
        return connection
    driver = cast(sqlite3.Connection, pool.connection.dbapi_connection)
    if driver.in_transaction:
        raise TransactionError(HOSTS_TRANSACTION)
    # With another `pool_reset_on_return`, closing it would roll back the host's transaction.
    return sqlalchemy_create_engine(
        "sqlite://", creator=lambda: driver, poolclass=StaticPool, pool_reset_on_return=None
    ).connect()


def check_writable(driver: sqlite3.Connection) -> None:
    """Makes sure that the database can be written to. SQLite silently opens a file that it may not write to
    for reading, and BEGIN IMMEDIATE reports no error either.

    Raises:
        DatabaseReadOnlyError: it cannot.
    """
    with translating():
        try:
            driver.execute(f"DELETE FROM {VERSION_TABLE} WHERE 0")  # noqa: S608
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY:  # busy: so another connection can write
                raise
        finally:
            if driver.in_transaction:  # on a host's engine, whose driver begins one by itself
                driver.execute("ROLLBACK")


def opened_file(driver: sqlite3.Connection) -> OpenedFile:
    """The file that a connection has open."""
    with translating():
        # As bytes: a file's name need not be UTF-8.
        query = "SELECT CAST(file AS BLOB) FROM pragma_database_list WHERE name = 'main'"
        row = driver.execute(query).fetchone()
    return OpenedFile(os.fsdecode(row[0] or b""))


def enable_wal(driver: sqlite3.Connection, *, busy_timeout_seconds: float = 10.0) -> None:
    """Turns on write-ahead logging, for good. Polls, since SQLite does not wait for the lock here."""
    deadline = time.monotonic() + busy_timeout_seconds
    cursor = driver.cursor()
    with translating():
        while cursor.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", "memory"):
            try:
                cursor.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
    cursor.close()


def vacuum(engine: Engine) -> None:
    """Returns the space of deleted rows to the file system. Nobody can write meanwhile.

    Raises:
        DatabaseBusyError: others kept the write lock for the busy timeout.
        DatabaseFullError: there is no space for the copy that this needs.
    """
    with translating(), detached_connection(engine) as connection:
        driver = driver_connection(connection)
        driver.execute("VACUUM")
        driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
