"""A database as a store uses it.

What differs between databases is behind this and `Executor`, and nowhere else: how connections are made, how
a transaction begins and takes its locks, how the position of a new event is learned, up to where the log is
settled, how transactions of many callers share a commit, and what an error of the driver means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import Engine

from goal_state.storage.options import Progress
from goal_state.storage.repository import GoalRepository

__all__ = ["Backend", "Migrations"]

Result = TypeVar("Result")


class Migrations(Protocol):
    """Who keeps the schema: `goal_state.migrate`, which is above this layer."""

    def current(self, engine: Engine) -> str | None:
        """The revision of the database's schema; None where there is no schema of ours."""
        ...

    def ensure_current(
        self, engine: Callable[[], Engine], revision: str | None, *, migrate: bool
    ) -> None:
        """Brings a database of that revision up to date, or only checks it where `migrate` is False."""
        ...

    def upgrade(self, engine: Engine) -> None:
        """Brings the schema up to the library's."""
        ...


class Backend(Protocol):
    """The database under one store. Its calls raise the errors that the store's raise."""

    @property
    def location(self) -> str:
        """Where the database is, to be shown to people."""
        ...

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is in the midst of a transaction of the store, or about to be."""
        ...

    @property
    def writes_with(self) -> GoalRepository:
        """The repository that every change is made with."""
        ...

    def check_open(self) -> None:
        """Refuses a call of a store that is closed, or its parent's.

        Raises:
            StoreClosedError, ForkedStoreError: it is.
        """
        ...

    def check(self) -> None:
        """Refuses, too, a call that a transaction of its own thread would have to wait for.

        Raises:
            StoreClosedError, ForkedStoreError: the store is closed, or its parent's.
            NestedCallError: this thread is in the midst of a transaction of the store.
        """
        ...

    def read(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Runs work with a repository that is the caller's alone meanwhile, in no transaction."""
        ...

    def stream(
        self, work: Callable[[GoalRepository], Iterator[Result]]
    ) -> AbstractContextManager[Iterator[Result]]:
        """What work yields, as long as the block lasts."""
        ...

    def write(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Carries out work of the library's own, maybe together with that of other callers, on one of their
        threads, and more than once if what it did before was undone; returns once it is durable.
        """
        ...

    def transact(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Carries out a host's work: once, on this thread, in a transaction of its own."""
        ...

    def between_transactions(self, work: Callable[[], Result]) -> Result:
        """Runs work while no transaction is open."""
        ...

    def back_up(self, path: Path, progress: Progress | None) -> None:
        """Copies the database to a new file; see `GoalStore.backup`."""
        ...

    def restore(self, path: Path, progress: Progress | None) -> None:
        """Writes a backup over the database; see `GoalStore.restore`."""
        ...

    def close(self) -> None:
        """Closes all connections; every call after it raises `StoreClosedError`."""
        ...
