"""Runs compiled statements and transactions on a cursor of `sqlite3`.

"Interrupted" means that an exception was raised in a thread at an arbitrary instruction: by a signal handler
or by `PyThreadState_SetAsyncExc`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.dialects.sqlite import pysqlite

from goal_state.errors import DatabaseBusyError, DatabaseError, TransactionError
from goal_state.storage.sqlite.connections import HOSTS_TRANSACTION
from goal_state.storage.sqlite.errors import too_large, translated, translating
from goal_state.storage.statements import Statement

__all__ = ["Connected", "Executor"]

_DIALECT: Final = pysqlite.dialect()
_DIALECT_NAME: Final = _DIALECT.name

_COMMIT: Final = ("COMMIT",)
_LAST_POSITION_EVER: Final = "SELECT seq FROM sqlite_sequence WHERE name = 'goal_state_events'"
_FORGET_LAST_POSITION: Final = "DELETE FROM sqlite_sequence WHERE name = 'goal_state_events'"
_SET_LAST_POSITION: Final = (
    "INSERT INTO sqlite_sequence (name, seq) VALUES ('goal_state_events', ?)"
)


class Connected(NamedTuple):
    """A connection, and how to close it.

    Attributes:
        driver: the driver's connection.
        origin: an object that all executors on the same database have in common.
        connection: SQLAlchemy's connection around it, if any.
        is_shared: whether a host may use it too, as the one connection of a database in memory.
    """

    driver: sqlite3.Connection
    origin: object
    connection: Connection | None = None
    is_shared: bool = False

    def close(self) -> None:
        """Closes it, or leaves it open for the host that shares it."""
        if self.is_shared and self.connection is not None:
            self.connection.close()
        else:  # SQLAlchemy would swallow an exception that interrupts it here
            self.driver.close()


class Executor:
    """Runs statements on one cursor of one connection, and begins and ends its transactions.

    The cursor is kept, so that a statement costs what it costs with `sqlite3` by hand.
    """

    violation: type[Exception] = sqlite3.IntegrityError

    def __init__(self, connected: Connected) -> None:
        self._use(connected)

    def _use(self, connected: Connected) -> None:
        self._connected = connected
        self._is_shared = connected.is_shared
        self.driver: sqlite3.Connection = connected.driver
        """The driver's connection. As a context manager it rolls back after an exception; being written in
        C, it does so at whatever instruction the thread is interrupted."""
        self._cursor = self.driver.cursor()
        self._has_begun = False  # a transaction of ours; any other open one is a host's
        self.failure: DatabaseError | None = None
        """The error with which the database failed on this connection. SQLite may have rolled back the
        transaction, and may cache a bad state (damaged pages, a file opened as read-only)."""
        self._closed = False
        self.usable: bool = True
        """Whether the connection is open and the database has not failed on it."""

    def reconnect(self, connect: Callable[[], Connected]) -> None:
        """Replaces the connection by a new one to the same database."""
        # The old one is closed last: if no connection were left, the new one would recover the log from its
        # beginning, with the frames of a transaction whose commit failed.
        connected = connect()
        self.close()
        self._use(connected)

    def failed(self, error: sqlite3.Error) -> Exception:
        """The library's error for one of the driver's. Unless that is "busy", it is `failure` from now on."""
        known = translated(error)
        if isinstance(known, DatabaseError) and not isinstance(known, DatabaseBusyError):
            self.failure = known
            self.usable = False
        return known

    def run(self, statement: Statement, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Runs a statement. It returns the same cursor each time: fetch before the next statement."""
        text = statement.texts.get(_DIALECT_NAME) or statement.compile(_DIALECT)
        try:
            return self._cursor.execute(text, values)
        except sqlite3.Error as error:
            raise self.failed(error) from error
        except OverflowError as error:
            raise too_large() from error

    def run_many(self, statement: Statement, rows: Sequence[Sequence[Any]]) -> None:
        """Runs a statement once for each row of values."""
        text = statement.texts.get(_DIALECT_NAME) or statement.compile(_DIALECT)
        try:
            self._cursor.executemany(text, rows)
        except sqlite3.Error as error:
            raise self.failed(error) from error
        except OverflowError as error:
            raise too_large() from error

    def stream(self, statement: Statement, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Yields the rows of a long result one by one, on a cursor of its own."""
        text = statement.texts.get(_DIALECT_NAME) or statement.compile(_DIALECT)
        cursor = self.driver.cursor()
        try:
            yield from cursor.execute(text, values)
        except sqlite3.Error as error:
            raise self.failed(error) from error
        finally:
            cursor.close()

    def insert(self, statement: Statement, rows: Sequence[Sequence[Any]]) -> int:
        """Inserts rows and returns the last one's position; under the write lock nobody else inserts."""
        if len(rows) == 1:
            return self.run(statement, rows[0]).lastrowid or 0
        self.run_many(statement, rows)
        return self._cursor.execute("SELECT last_insert_rowid()").fetchone()[0]

    def lock_absent_goal(self, thread_id: str) -> bool:  # noqa: ARG002
        """Nothing to do: a write transaction locks the whole database."""
        return False

    def settled_through(self, last_position: int) -> int:
        """The given position: one transaction writes at a time, so that events appear in order."""
        return last_position

    def last_position_ever(self) -> int:
        """See `goal_state.storage.backend.Executor`."""
        row = self._cursor.execute(_LAST_POSITION_EVER).fetchone()
        return 0 if row is None else row[0]

    def set_last_position_ever(self, position: int) -> None:
        """See `goal_state.storage.backend.Executor`."""
        self._cursor.execute(_FORGET_LAST_POSITION)
        self._cursor.execute(_SET_LAST_POSITION, (position,))

    @property
    def origin(self) -> object:
        """An object that all executors on the same database have in common."""
        return self._connected.origin

    def join_transaction(self) -> None:
        """Makes sure that a transaction is open that its owner will end.

        Raises:
            TransactionError: there is none.
        """
        if not self.driver.in_transaction:
            raise TransactionError(
                "the transaction that this repository belongs to is over; ask for a new repository"
            )

    def clear(self) -> None:
        """Rolls back the transaction that an interrupted caller left open.

        Raises:
            TransactionError: a host shares the connection, and has a transaction open on it.
        """
        self.rollback()
        if self.driver.in_transaction:
            raise TransactionError(HOSTS_TRANSACTION)

    def clear_statement(self) -> None:
        """Ends a statement whose rows an interrupted caller left unread, by running another one."""
        self._cursor.execute("SELECT 1").fetchall()

    @property
    def changes(self) -> int:
        """How many rows were changed on this connection, those that were rolled back as well."""
        return self.driver.total_changes

    def version(self) -> object:
        """What is equal to what it was as long as no other connection has changed the database; None where a
        host may have changed it on this one. For the beginning of a transaction.
        """
        if self._is_shared:
            return None
        try:
            return self.driver, self._cursor.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as error:
            raise self.failed(error) from error

    def begin(self) -> None:
        """Begins a transaction of our own, taking the write lock.

        Raises:
            DatabaseBusyError: another connection kept it for the busy timeout.
        """
        self._has_begun = True
        try:
            self._cursor.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise self.failed(error) from error

    def commit(self, commits: list[object]) -> None:
        """Commits the transaction; on an error it is rolled back.

        Args:
            commits: gets an element if, and only if, the transaction was committed. Commit and append are
                one call into C, which cannot be interrupted in between.
        """
        try:
            commits.extend(map(self._cursor.execute, _COMMIT))
        except sqlite3.Error as error:
            self.rollback()
            raise self.failed(error) from error
        self._has_begun = False

    def rollback(self) -> None:
        """Rolls back the transaction, if there still is one: after some errors SQLite itself has done so."""
        if self._has_begun and not self._closed and self.driver.in_transaction:
            try:
                self._cursor.execute("ROLLBACK")
            except sqlite3.Error as error:
                self.failed(error)  # the transaction ends with the connection
        self._has_begun = False

    def snapshot(self) -> AbstractContextManager[object]:
        """A snapshot: all reads inside see the database as of the first read. Takes no write lock."""
        if self._is_shared or self.driver.in_transaction:
            return nullcontext()
        self._cursor.execute("BEGIN DEFERRED")
        return self.driver  # which ends the transaction, even if interrupted

    def copy_to(self, path: Path, progress: Callable[[int, int], None] | None) -> None:
        """Copies one snapshot of the database to a file, while others go on writing.

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
                # Without an open transaction, the copy would start again at each commit of another one.
                with self.snapshot():
                    self._cursor.execute("SELECT 1 FROM sqlite_master").fetchall()
                    self.driver.backup(target, pages=1000, progress=report)
            finally:
                target.close()

    def page_size(self) -> int:
        """The size of the database's pages in bytes."""
        return self._cursor.execute("PRAGMA page_size").fetchone()[0]

    def wait_for_lock(self, milliseconds: int) -> None:
        """Sets how long `begin` waits for the write lock."""
        self._cursor.execute(f"PRAGMA busy_timeout = {milliseconds:d}")

    def close(self) -> None:
        """Closes the cursor and the connection. Closing twice is fine."""
        self.usable = False
        if not self._closed:
            with suppress(sqlite3.ProgrammingError):  # already closed by a call interrupted here
                self._cursor.close()
            self._connected.close()
            self._closed = True
