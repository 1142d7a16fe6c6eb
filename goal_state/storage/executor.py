"""One connection's transactions, as the statements of `storage` use them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from goal_state.storage.statements import Statement

__all__ = ["Executor", "Rows"]


class Rows(Protocol):
    """What a statement found, on the executor's one cursor: to be fetched before the next statement."""

    @property
    def rowcount(self) -> int:
        """How many rows were changed."""
        ...

    def fetchone(self) -> Any:
        """The next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        ...


class Executor(Protocol):
    """Runs statements in the transactions of one connection.

    Every error of the driver comes out as the library's, chosen by its code (`DatabaseBusyError` …); one
    that speaks of a fault in our own SQL comes out as it is.
    """

    violation: type[Exception]
    """What the driver raises where a row breaks a rule of the schema, as one that repeats a key does."""

    @property
    def origin(self) -> object:
        """What this executor has in common with others that work on the same database."""
        ...

    @property
    def in_transaction(self) -> bool:
        """Whether the database is inside a transaction."""
        ...

    def run(self, statement: Statement, values: Sequence[Any] = ()) -> Rows:
        """Runs a statement."""
        ...

    def run_many(self, statement: Statement, rows: Sequence[Sequence[Any]]) -> None:
        """Runs a statement once for each row of values."""
        ...

    def stream(self, statement: Statement, values: Sequence[Any] = ()) -> Iterator[Any]:
        """The rows of a long result, one by one, on a cursor of their own."""
        ...

    def insert(self, statement: Statement, rows: Sequence[Sequence[Any]]) -> int:
        """Inserts rows whose key the database counts up, and learns the last row's; the others' are the
        numbers before it, since nobody else inserts meanwhile or the database counts them together.
        """
        ...

    def join_transaction(self) -> None:
        """Makes sure that a transaction is open that its owner will end, and that may write.

        Raises:
            TransactionError: there is none, and none can be begun.
            DatabaseBusyError: another connection kept the write lock.
        """
        ...

    def lock_absent_goal(self, thread_id: str) -> bool:
        """Keeps others from making the goal of a thread that was found to have none, until this transaction
        ends. True if somebody may have made it before that: the caller looks again.
        """
        ...

    def snapshot(self) -> AbstractContextManager[object]:
        """Everything read inside sees the database as it was at the first read. Takes no write lock."""
        ...

    def settled_through(self, last_position: int) -> int:
        """Up to where the log is settled, given the last position that a page of it had: behind it, events
        may still appear between those that are there already, since their transactions are open.
        """
        ...

    def last_position_ever(self) -> int:
        """The last position that the log gave out, also if that event is gone."""
        ...

    def set_last_position_ever(self, position: int) -> None:
        """Makes the log of an empty database go on behind a position."""
        ...
