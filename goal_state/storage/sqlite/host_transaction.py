"""Joining a host's transaction: on its connection, or on the one that its session works with.

The host begins and ends it, and what is written here has to stand or fall with it. So whatever is no
transaction of that host's (any more) is refused before anything is written.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import Connection, Engine, RootTransaction, exc

from goal_state.errors import DatabaseBusyError, InvalidValueError, TransactionError
from goal_state.storage.schema import VERSION_TABLE, goals
from goal_state.storage.sqlite.connections import driver_connection, require_sqlite3
from goal_state.storage.sqlite.errors import primary_code, translating
from goal_state.storage.sqlite.executor import Connected, Executor
from goal_state.storage.sqlite.location import is_memory
from goal_state.storage.statements import Statement

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

__all__ = ["host_executor"]

_NONE_YET: Final = object()

_TAKE_WRITE_LOCK: Final = f"DELETE FROM {VERSION_TABLE} WHERE 0"  # noqa: S608


def host_executor(owner: Connection | Session) -> Executor:
    """What runs statements inside the transactions of a connection or a session.

    Raises:
        InvalidValueError: it is neither.
        UnsupportedDatabaseError: it is no connection of Python's own `sqlite3`, or an async one.
        TransactionError: it can carry no transaction.
    """
    if isinstance(owner, Connection):
        return _ConnectionExecutor(owner)
    orm = sys.modules.get("sqlalchemy.orm.session")  # whoever has a session has imported it
    if orm is not None and isinstance(owner, orm.Session):
        return _SessionExecutor(owner)
    raise InvalidValueError(
        "connection",
        f"must be a SQLAlchemy Connection or Session, not {type(owner).__name__}; {_advice(owner)}",
    )


def _advice(owner: object) -> str:
    """What to hand over instead."""
    if isinstance(owner, Engine):
        return "write: with engine.begin() as connection"
    if type(owner).__module__.startswith("sqlalchemy.ext.asyncio"):
        return (
            "async connections and sessions cannot carry goals: open a GoalStore on the same database,"
            " and call it outside of your transaction, in a thread (asyncio.to_thread)"
        )
    if type(owner).__name__ == "scoped_session":
        return "call it: session() is the one of this thread"
    if isinstance(owner, sqlite3.Connection):
        return "connect through SQLAlchemy"
    return "for one, what engine.begin() gives"


class _HostExecutor(Executor):
    """Runs statements on a connection of a host's, where each time it is seen to that it is still that
    host's: the driver's connection under a closed one is soon another's.
    """

    _joined: object = _NONE_YET
    """The transaction that was joined last. A connection that still has it is the one that it was."""

    _taken: Connection | None = None

    def _transaction_now(self) -> RootTransaction | None:
        """The transaction of the connection; there it is the connection's own method."""
        return None

    def run(self, statement: Statement, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        if self._transaction_now() is not self._joined:
            self._find()
        try:
            return Executor.run(
                self, statement, values
            )  # a charge runs three: super() would be felt
        except sqlite3.ProgrammingError:  # the driver's connection was closed under the host's
            self._find()
            raise

    def run_many(self, statement: Statement, rows: Sequence[Sequence[Any]]) -> None:
        self._find()
        super().run_many(statement, rows)

    def stream(self, statement: Statement, values: Sequence[Any] = ()) -> Iterator[Any]:
        self._find()
        return super().stream(statement, values)

    def join_transaction(self) -> None:
        try:
            if self._transaction_now() is self._joined and self.driver.in_transaction:
                return
        except sqlite3.ProgrammingError:  # as in `run`
            pass
        self._join(self._find())

    def _find(self) -> Connection:
        """The connection to work with, ready to be used.

        Raises:
            TransactionError: there is none.
        """
        raise NotImplementedError

    def _take(self, connection: Connection) -> Connection:
        """Goes on with a connection, whose driver's connection may be another one than before."""
        try:
            driver = driver_connection(connection)
        except exc.InvalidRequestError as error:
            raise TransactionError(
                "the connection was closed; make a new GoalRepository on one that is open"
                if connection.closed
                else f"the connection can carry no transaction now: {error}"
            ) from error
        if connection is not self._taken or driver is not self.driver:
            require_sqlite3(connection.dialect)
            _refuse_autocommit(connection, driver)
            engine = connection.engine
            self._use(Connected(driver, engine, connection, is_memory(engine)))
            self._taken = connection
            self._transaction_now = connection.get_transaction
        return connection

    def _join(self, connection: Connection) -> None:
        """Makes sure that a transaction is open that the host's commit or rollback ends, and may write."""
        driver = self.driver
        found = connection.get_transaction()
        if found is self._joined:
            raise TransactionError(
                "the transaction is over for the database, which undid it after an error or was told"
                " to end it; roll it back and run it again"
            )
        _refuse_autocommit(connection, driver)
        if found is None and driver.in_transaction and not _is_always_in_transaction(driver):
            raise TransactionError(
                "a transaction is open on the driver's connection that is not this connection's;"
                " end it first (a StaticPool has one connection for all)"
            )
        if connection.in_nested_transaction() and _begins_late(driver):
            # Where nothing was written before it, that savepoint is the transaction: releasing it commits.
            raise TransactionError(
                "the savepoint may have no transaction around it, since the driver begins one late:"
                " call the repository once before begin_nested(), or let your engine begin with BEGIN"
                " (SQLAlchemy's page on SQLite tells how, in its part on transactions)"
            )
        with translating():
            try:
                transaction = connection.begin() if found is None else found
            except exc.InvalidRequestError as error:
                raise TransactionError(f"no transaction can be begun: {error}") from error
            try:
                self._take_write_lock()
            except BaseException:
                if found is None:
                    transaction.rollback()
                raise
        self._joined = transaction

    def _take_write_lock(self) -> None:
        driver = self.driver
        if not driver.in_transaction:
            if not _begins_late(driver):
                raise TransactionError(_AUTOCOMMIT)
            self._cursor.execute("BEGIN IMMEDIATE")
            return
        # A deferred transaction waits for the lock with its first statement only; one that has read fails
        # at once. Better now than after the first of our own writes.
        try:
            self._cursor.execute(_TAKE_WRITE_LOCK)
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY:
                raise
            raise DatabaseBusyError(
                "the transaction did not get the write lock, since another process has written after"
                " this one began to read, or is still writing: roll it back and run it again; one that"
                f" begins with BEGIN IMMEDIATE waits instead ({error.sqlite_errorname})",
                code=error.sqlite_errorcode,
            ) from error


class _ConnectionExecutor(_HostExecutor):
    """Inside the transactions of one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._take(connection)

    def _find(self) -> Connection:
        return self._take(self._connection)


class _SessionExecutor(_HostExecutor):
    """Inside the transactions of a session, one after the other."""

    _at: tuple[SessionTransaction | None, SessionTransaction | None] = (None, None)
    """The session's transaction, and the innermost of its savepoints, when it was last asked for its
    connection. It makes a savepoint only then, not at `begin_nested()`."""

    def __init__(self, session: Session) -> None:
        # The session's transaction begins with the first call, as with any statement.
        self._session = session

    def join_transaction(self) -> None:
        session, (transaction, savepoint) = self._session, self._at
        if (
            transaction is None
            or session.get_transaction() is not transaction
            or session.get_nested_transaction() is not savepoint
            or not session.is_active
        ):
            self._find()
        super().join_transaction()

    def _find(self) -> Connection:
        try:
            require_sqlite3(self._session.get_bind(clause=goals).dialect)  # before it connects
            connection = self._session.connection(bind_arguments={"clause": goals})
        except exc.UnboundExecutionError as error:
            raise TransactionError(
                "the session does not say which of its databases has the goals: pass one of its"
                " connections, session.connection(bind_arguments={'mapper': …})"
            ) from error
        except exc.InvalidRequestError as error:
            raise TransactionError(f"the session can carry no transaction: {error}") from error
        self._at = self._session.get_transaction(), self._session.get_nested_transaction()
        return self._take(connection)


_AUTOCOMMIT: Final = (
    "the connection is in autocommit mode, where nobody would end the transaction of a change: take"
    " one without isolation_level=AUTOCOMMIT (or None) and without autocommit=True"
)


def _refuse_autocommit(connection: Connection, driver: sqlite3.Connection) -> None:
    level: object = connection.get_execution_options().get("isolation_level")
    is_autocommit = isinstance(level, str) and level.upper() == "AUTOCOMMIT"
    if is_autocommit or getattr(driver, "autocommit", None) is True:
        raise TransactionError(_AUTOCOMMIT)


def _is_always_in_transaction(driver: sqlite3.Connection) -> bool:
    """Whether the driver opens the next transaction as it ends one (from Python 3.12 on)."""
    return getattr(driver, "autocommit", None) is False


def _begins_late(driver: sqlite3.Connection) -> bool:
    """Whether the driver begins a transaction only before the first statement that changes rows."""
    is_legacy = cast(object, getattr(driver, "autocommit", None)) not in (True, False)
    return is_legacy and driver.isolation_level is not None
