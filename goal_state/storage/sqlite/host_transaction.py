"""Joins a host's transaction: on its connection, or on the connection of its session.

The host begins and ends the transaction, and what is written here must be committed or rolled back with it.
So a call outside the host's own open transaction is refused before anything is written.
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
    """An executor inside the transactions of a host's connection or session.

    Raises:
        InvalidValueError: it is neither.
        UnsupportedDatabaseError: it does not use Python's own `sqlite3`, or is async.
        TransactionError: it can carry no transaction.
    """
    if isinstance(owner, Connection):
        return _ConnectionExecutor(owner)
    orm = sys.modules.get("sqlalchemy.orm.session")  # imported if there is a session
    if orm is not None and isinstance(owner, orm.Session):
        return _SessionExecutor(owner)
    raise InvalidValueError(
        "connection",
        f"must be a SQLAlchemy Connection or Session, not {type(owner).__name__}; {_advice(owner)}",
    )


def _advice(owner: object) -> str:
    """What to pass instead."""
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
    """Runs statements on a host's connection. Each call checks that the connection is still open: the pool
    soon gives the driver's connection of a closed one to somebody else.
    """

    _joined: object = _NONE_YET
    """The transaction that was joined last. While the connection has it, nothing needs to be looked up."""

    _taken: Connection | None = None

    def _transaction_now(self) -> RootTransaction | None:
        """The transaction of the connection. `_take` replaces this by the connection's own method."""
        return None

    def run(self, statement: Statement, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        if self._transaction_now() is not self._joined:
            self._find()
        try:
            # Not super(), whose cost shows in a charge, which runs three statements.
            return Executor.run(self, statement, values)
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
        """The current connection, ready to be used.

        Raises:
            TransactionError: there is none.
        """
        raise NotImplementedError

    def _take(self, connection: Connection) -> Connection:
        """Uses a connection from now on; its driver's connection may have changed since the last call."""
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
        """Makes sure that a transaction of the host is open that may write; begins one if there is none."""
        driver = self.driver
        found = connection.get_transaction()
        if found is self._joined:
            raise TransactionError(
                "the transaction is over: the database has ended it after an error, or by a statement of"
                " yours; roll it back and run it again"
            )
        _refuse_autocommit(connection, driver)
        if found is None and driver.in_transaction and not _is_always_in_transaction(driver):
            raise TransactionError(
                "another user's transaction is open on the driver's connection; end it first (a StaticPool"
                " shares one connection between all)"
            )
        if connection.in_nested_transaction() and _begins_late(driver):
            # If nothing was written before it, the savepoint is the transaction: releasing it commits.
            raise TransactionError(
                "there may be no transaction around the savepoint, since the driver begins one late:"
                " call the repository once before begin_nested(), or let your engine begin with BEGIN"
                " (SQLAlchemy's page on SQLite tells how, in its part on transactions)"
            )
        with translating():
            try:
                transaction = connection.begin() if found is None else found
            except exc.InvalidRequestError as error:
                raise TransactionError(f"cannot begin a transaction: {error}") from error
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
        # A deferred transaction waits for the write lock only if that is its first statement; one that has
        # read before fails at once. It must fail here, not after the first of our writes.
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
    """Inside the successive transactions of one session."""

    _at: tuple[SessionTransaction | None, SessionTransaction | None] = (None, None)
    """The session's transaction and innermost savepoint when its connection was last asked for. Only then
    does the session create the savepoint in the database, not at `begin_nested()`."""

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
                "the session does not tell which of its databases holds the goals: pass one of its"
                " connections, session.connection(bind_arguments={'mapper': …})"
            ) from error
        except exc.InvalidRequestError as error:
            raise TransactionError(f"the session cannot carry a transaction: {error}") from error
        self._at = self._session.get_transaction(), self._session.get_nested_transaction()
        return self._take(connection)


_AUTOCOMMIT: Final = (
    "the connection is in autocommit mode, in which a change has no transaction of yours: use one"
    " without isolation_level=AUTOCOMMIT (or None) and without autocommit=True"
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
