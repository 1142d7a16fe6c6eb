"""Runs the statements of `storage` in the transactions of one connection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from goal_state.storage.statements import Statement

__all__ = ["Executor", "Rows"]


class Rows(Protocol):
    """A statement's result, on the executor's one cursor: fetch it before the next statement."""

    @property
    def rowcount(self) -> int:
        """How many rows the statement changed."""
        ...

    def fetchone(self) -> Any:
        """The next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        ...


class Executor(Protocol):
    """Runs statements in the transactions of one connection.

    Every error of the driver is raised as the library's, chosen by its code (`DatabaseBusyError` …); one that
    shows a fault in our own SQL is raised as it is.
    """

    violation: type[Exception]
    """What the driver raises where a row violates a constraint, such as a unique key."""

    @property
    def origin(self) -> object:
        """An object that all executors on the same database have in common."""
        ...

    def run(self, statement: Statement, values: Sequence[Any] = ()) -> Rows:
        """Runs a statement."""
        ...

    def run_many(self, statement: Statement, rows: Sequence[Sequence[Any]]) -> None:
        """Runs a statement once for each row of values."""
        ...

    def stream(self, statement: Statement, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Yields the rows of a long result one by one, on a cursor of its own."""
        ...

    def insert(self, statement: Statement, rows: Sequence[Sequence[Any]]) -> int:
        """Inserts rows with an auto-incremented key and returns the last row's. The others have the numbers
        before it: no other transaction inserts meanwhile, or the database numbers the rows together.
        """
        ...

    def join_transaction(self) -> None:
        """Makes sure that a transaction is open that may write, and that its owner will end.

        Raises:
            TransactionError: there is none, and none can be begun.
            DatabaseBusyError: another connection kept the write lock.
        """
        ...

    def lock_absent_goal(self, thread_id: str) -> bool:
        """Locks the goal of a thread that was found to have none: no other transaction can create it until
        this one ends. True if another may have created it before that; the caller then reads again.
        """
        ...

    def snapshot(self) -> AbstractContextManager[object]:
        """A snapshot: all reads inside see the database as of the first read. Takes no write lock."""
        ...

    def settled_through(self, last_position: int) -> int:
        """The position up to which the log is settled, at most the given last position of a page. After it,
        events may still appear between those already visible, from transactions that are still open.
        """
        ...

    def last_position_ever(self) -> int:
        """The last position that the log ever assigned, even if that event was deleted."""
        ...

    def set_last_position_ever(self, position: int) -> None:
        """Makes the log of an empty database continue after a position."""
        ...
