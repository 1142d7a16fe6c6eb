"""Running SQL on the driver's cursor: statements compiled once, transactions, and SQLite's error codes.

What differs between databases (how a transaction begins, error codes) is kept here and in `database`;
the layers above neither know nor care.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final, cast

from sqlalchemy import Connection, Dialect, Engine, exc

from goal_state.errors import (
    DatabaseBusyError,
    DatabaseCorruptError,
    DatabaseError,
    DatabaseFullError,
    DatabaseIOError,
    DatabaseReadOnlyError,
    TransactionError,
    UnsupportedDatabaseError,
    UsageOverflowError,
)
from goal_state.storage.identifiers import new_id
from goal_state.storage.statements import Statement

__all__ = [
    "HOSTS_TRANSACTION",
    "Executor",
    "driver_connection",
    "primary_code",
    "require_sqlite3",
    "translated",
    "translating",
]

HOSTS_TRANSACTION: Final = (
    "a transaction of yours is open on the one connection that the database in memory has; use a"
    " GoalRepository on your connection, or the store once your transaction has ended"
)

_CONSTRAINT_DATATYPE: Final = sqlite3.SQLITE_CONSTRAINT | 12 << 8
"""A STRICT table refused a value: a sum that no longer is an integer. `sqlite3` has no name for it."""

_BY_CODE: Final[dict[int, tuple[type[DatabaseError], str]]] = {
    sqlite3.SQLITE_BUSY: (
        DatabaseBusyError,
        "another process kept the write lock for longer than the busy timeout; try again",
    ),
    sqlite3.SQLITE_LOCKED: (DatabaseBusyError, "another connection holds a table; try again"),
    sqlite3.SQLITE_CORRUPT: (
        DatabaseCorruptError,
        "the database file is damaged, or the disk that it lies on; restore a backup",
    ),
    sqlite3.SQLITE_NOTADB: (
        DatabaseCorruptError,
        "the file is no longer a SQLite database; restore a backup",
    ),
    sqlite3.SQLITE_FULL: (DatabaseFullError, "the disk is full; make room and try again"),
    sqlite3.SQLITE_READONLY: (
        DatabaseReadOnlyError,
        "the database cannot be written to; allow writing to the file and its folder",
    ),
    sqlite3.SQLITE_IOERR: (
        DatabaseIOError,
        "the operating system could not read or write the database file; see its disk",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        DatabaseIOError,
        "the database file cannot be opened; see that it is there and that files can be opened",
    ),
}


def primary_code(error: sqlite3.Error) -> int | None:
    """The result code without its extension; None for an error that SQLite did not raise."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def translated(error: sqlite3.Error) -> Exception:
    """The library's error for one of SQLite's, chosen by the result code.

    An error that speaks of a fault in our own SQL comes back as it is: no caller can act on it.
    """
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return error
    if code == _CONSTRAINT_DATATYPE:
        return _too_large()
    kind, sentence = _BY_CODE.get(code & 0xFF, (None, ""))
    if kind is None:
        return error
    return kind(f"{sentence} ({error.sqlite_errorname})", sqlite_errorcode=code)


@contextmanager
def translating() -> Generator[None]:
    """Turns SQLite's errors, also those wrapped by SQLAlchemy, into the library's."""
    try:
        yield
    except sqlite3.Error as error:
        raise translated(error) from error
    except exc.DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            raise translated(error.orig) from error
        raise


_COMMIT: Final = ("COMMIT",)
_IDENTITY: Final = "SELECT identity FROM goal_state_database"
_GIVE_IDENTITY: Final = (
    "INSERT INTO goal_state_database (identity)"
    " SELECT ? WHERE NOT EXISTS (SELECT 1 FROM goal_state_database)"
)

# AUTOINCREMENT keeps the last one here.
_LAST_EVER: Final = "SELECT seq FROM sqlite_sequence WHERE name = 'goal_state_events'"
_FORGET_LAST_EVER: Final = "DELETE FROM sqlite_sequence WHERE name = 'goal_state_events'"
_SET_LAST_EVER: Final = "INSERT INTO sqlite_sequence (name, seq) VALUES ('goal_state_events', ?)"


class Executor:
    """Runs statements on the driver's cursor of one SQLAlchemy connection, and ends its transactions.

    The cursor is kept: a statement costs what it costs in `sqlite3` by hand.
    """

    def __init__(self, connection: Connection) -> None:
        self._use(connection)

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        self._dialect = connection.dialect
        self._dialect_name = self._dialect.name
        # In memory: a host may have it too.
        self._is_shared = connection.engine.url.database in (None, "", ":memory:")
        self.driver: sqlite3.Connection = driver_connection(connection)
        """The driver's connection. As a context manager it undoes what an exception left unfinished; being
        C, at whatever instruction that strikes."""
        self._cursor = self.driver.cursor()
        self._has_begun = False  # a transaction; one that is open otherwise is a host's
        self.failure: DatabaseError | None = None
        """What the database failed at on this connection. It may have undone the transaction, and may
        keep what it should not (pages that were damaged, a file that could only be read)."""
        self._closed = False
        self.usable: bool = True
        """Whether the connection is open and the database has not failed on it."""

    def reconnect(self, connect: Callable[[], Connection]) -> None:
        """Goes on with a new connection to the same database."""
        # The old one is closed last: without any connection, the new one would read the log from its
        # beginning and find what was written of a transaction whose commit failed.
        connection = connect()
        self.close()
        self._use(connection)

    def failed(self, error: sqlite3.Error) -> Exception:
        """The library's error for one of the driver's. Unless it was busy, `failure` is that from now on."""
        known = translated(error)
        if isinstance(known, DatabaseError) and not isinstance(known, DatabaseBusyError):
            self.failure = known
            self.usable = False
        return known

    def run(self, statement: Statement, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Runs a statement. The cursor that comes back is the same one each time: fetch at once."""
        text = statement.texts.get(self._dialect_name) or statement.compile(self._dialect)
        try:
            return self._cursor.execute(text, values)
        except sqlite3.Error as error:
            raise self.failed(error) from error
        except OverflowError as error:
            raise _too_large() from error

    def run_many(self, statement: Statement, rows: Sequence[Sequence[Any]]) -> None:
        """Runs a statement once for each row of values."""
        text = statement.texts.get(self._dialect_name) or statement.compile(self._dialect)
        try:
            self._cursor.executemany(text, rows)
        except sqlite3.Error as error:
            raise self.failed(error) from error
        except OverflowError as error:
            raise _too_large() from error

    def stream(self, statement: Statement, values: Sequence[Any] = ()) -> Iterator[Any]:
        """The rows of a long result, one by one, on a cursor of their own."""
        text = statement.texts.get(self._dialect_name) or statement.compile(self._dialect)
        cursor = self.driver.cursor()
        try:
            yield from cursor.execute(text, values)
        except sqlite3.Error as error:
            raise self.failed(error) from error
        finally:
            cursor.close()

    @property
    def engine(self) -> Engine:
        """Where the connection is from."""
        return self._connection.engine

    @property
    def in_transaction(self) -> bool:
        """Whether the database is inside a transaction."""
        return self.driver.in_transaction

    def join_transaction(self) -> None:
        """Makes sure that a transaction is open that its owner will end.

        Raises:
            TransactionError: there is none.
        """
        if not self.driver.in_transaction:
            raise TransactionError(
                "the transaction that this repository was handed out for is over; ask for a new one"
            )

    def clear(self) -> None:
        """Undoes what a caller that was struck left open.

        Raises:
            TransactionError: the connection is a host's too, and has a transaction of that host's open.
        """
        self.rollback()
        if self.driver.in_transaction:
            raise TransactionError(HOSTS_TRANSACTION)

    def clear_statement(self) -> None:
        """Ends the statement that a caller who was struck left half read; the next one here does so, too."""
        self._cursor.execute("SELECT 1").fetchall()

    def begin(self) -> None:
        """Begins a transaction of our own with the write lock in hand.

        Raises:
            DatabaseBusyError: another connection has it, and had it for the busy timeout.
        """
        self._has_begun = True
        try:
            self._cursor.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise self.failed(error) from error

    def commit(self, commits: list[object]) -> None:
        """Ends the transaction; on an error it was rolled back.

        Args:
            commits: has an element more if, and only if, the transaction was committed. Commit and note are
                one call into C, so that no exception can strike between them.
        """
        try:
            commits.extend(map(self._cursor.execute, _COMMIT))
        except sqlite3.Error as error:
            self.rollback()
            raise self.failed(error) from error
        self._has_begun = False

    def rollback(self) -> None:
        """Undoes the transaction, if there still is one: SQLite itself ends it after some errors."""
        if self._has_begun and not self._closed and self.driver.in_transaction:
            try:
                self._cursor.execute("ROLLBACK")
            except sqlite3.Error as error:
                self.failed(error)  # the transaction ends with the connection
        self._has_begun = False

    def snapshot(self) -> AbstractContextManager[object]:
        """Everything read inside sees the database as it was at the first read. Takes no write lock."""
        if self._is_shared or self.driver.in_transaction:
            return nullcontext()
        self._cursor.execute("BEGIN DEFERRED")
        return self.driver  # which ends the transaction, whatever strikes

    def copy_to(self, path: Path, progress: Callable[[int, int], None] | None) -> None:
        """Copies the database to a file, as of one snapshot, while others go on writing.

        Args:
            path: an empty file.
            progress: called with the pages left and the pages in all.
        """

        def report(_status: int, left: int, total: int) -> None:
            if progress is not None:
                progress(left, total)

        with translating():
            # Absolute: SQLite may take a name that begins with "file:" for a URI.
            target = sqlite3.connect(path.absolute())
            try:
                # With a transaction of its own open, the copy does not begin anew at each commit.
                with self.snapshot():
                    self._cursor.execute("SELECT 1 FROM sqlite_master").fetchall()
                    self.driver.backup(target, pages=1000, progress=report)
            finally:
                target.close()

    def identity(self) -> str | None:
        """What tells the database from its copies; None where nothing was noted yet."""
        row = self._cursor.execute(_IDENTITY).fetchone()
        return None if row is None else row[0]

    def give_identity(self) -> str:
        """Notes one, unless another was quicker, inside a transaction that may write."""
        self._cursor.execute(_GIVE_IDENTITY, (new_id(),))
        return self._cursor.execute(_IDENTITY).fetchone()[0]

    def page_size(self) -> int:
        """The size of the database's pages in bytes."""
        return self._cursor.execute("PRAGMA page_size").fetchone()[0]

    def last_ever_position(self) -> int:
        """The last position that was given to an event, also where that was pruned; 0 where none was."""
        row = self._cursor.execute(_LAST_EVER).fetchone()
        return 0 if row is None else row[0]

    def set_last_ever_position(self, position: int) -> None:
        """Has the next event get a position above this one, inside a transaction that may write."""
        self._cursor.execute(_FORGET_LAST_EVER)
        self._cursor.execute(_SET_LAST_EVER, (position,))

    def insert_while_unique(self, statement: Statement, rows: Sequence[Sequence[Any]]) -> int:
        """Inserts rows in order, up to one that repeats what only one row may have; returns how many."""
        before = self.driver.total_changes
        with suppress(sqlite3.IntegrityError):
            self.run_many(statement, rows)
        return self.driver.total_changes - before

    def wait_for_lock(self, milliseconds: int) -> None:
        """How long `begin` waits for another connection to end its transaction."""
        self._cursor.execute(f"PRAGMA busy_timeout = {milliseconds:d}")

    def close(self) -> None:
        """Closes the cursor and the connection. Closing twice is fine."""
        self.usable = False
        if not self._closed:
            with suppress(sqlite3.ProgrammingError):  # closed by a call that was struck in here
                self._cursor.close()
            if self._is_shared:
                self._connection.close()
            else:  # SQLAlchemy would swallow an exception that strikes in here
                self.driver.close()
            self._closed = True


def _too_large() -> UsageOverflowError:
    return UsageOverflowError("usage", "the sum would be 2^63 or more")


def driver_connection(connection: Connection) -> sqlite3.Connection:
    """The driver's connection under one of SQLAlchemy's."""
    return cast(sqlite3.Connection, connection.connection.dbapi_connection)


def require_sqlite3(dialect: Dialect) -> None:
    """Refuses what does not run on Python's own `sqlite3`.

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
