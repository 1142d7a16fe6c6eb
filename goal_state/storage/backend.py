"""What a store needs of a database.

All that differs between databases is behind `Backend` and `Executor`, and nowhere else: how connections are
made, how a transaction begins and takes its locks, how the position of a new event is learned, up to which
position the log is settled, how callers share a commit, and what an error of the driver means.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import Engine

from goal_state.storage.options import Progress
from goal_state.storage.repository import GoalRepository

__all__ = ["Backend", "Migrations", "Outcome"]

Result = TypeVar("Result")


class Outcome(NamedTuple):
    """What became of a request: it raised the error, or returned the result."""

    result: Any
    error: BaseException | None


class Migrations(Protocol):
    """Maintains the schema. `goal_state.migrate` implements it, and is above this layer."""

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
    """The database of one store. Its methods raise the errors of the store's methods."""

    @property
    def location(self) -> str:
        """Where the database is, for people to read."""
        ...

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is inside a transaction of the store, or is about to join one."""
        ...

    @property
    def writes_with(self) -> GoalRepository:
        """The repository that every change is made with."""
        ...

    def check_open(self) -> None:
        """Refuses a call on a store that is closed or belongs to the parent process.

        Raises:
            StoreClosedError, ForkedStoreError: it is, or does.
        """
        ...

    def check(self) -> None:
        """Like `check_open`, and refuses a call inside a transaction of its own thread, a deadlock otherwise.

        Raises:
            StoreClosedError, ForkedStoreError: the store is closed, or belongs to the parent process.
            NestedCallError: this thread is inside a transaction of the store.
        """
        ...

    def read(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Runs work with a repository that no other thread uses meanwhile, outside of any transaction."""
        ...

    def stream(
        self, work: Callable[[GoalRepository], Iterator[Result]]
    ) -> AbstractContextManager[Iterator[Result]]:
        """Yields an iterator over what work yields; valid inside the block."""
        ...

    def write(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Carries out a request of the library's own and returns once it is durable. It may share a
        transaction with other callers' requests, run on another caller's thread, and run again after a
        rollback.
        """
        ...

    def write_together(self, works: Sequence[Callable[[GoalRepository], Any]]) -> list[Outcome]:
        """As `write` for each of several requests, in their order and in as few transactions as it takes."""
        ...

    def transact(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Carries out a host's work: once, on this thread, in a transaction of its own."""
        ...

    def block(self) -> Generator[GoalRepository, bool, None]:
        """As `transact`, for work that is done while the generator is suspended at its one `yield`: it hands
        out the repository, and is told whether the work failed. Only `Block` runs it; closed where it
        stands, it undoes the work.
        """
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
