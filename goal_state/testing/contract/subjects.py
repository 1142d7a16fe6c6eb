"""Where the calls of the contract run: in a store, or in transactions of a host's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, func, insert, select

from goal_state import (
    EventKind,
    Goal,
    GoalEvent,
    GoalRepository,
    GoalStatus,
    GoalStore,
    ThreadUsage,
)
from goal_state.domain.holds import Headroom, HoldRecord
from goal_state.domain.prices import Prices
from goal_state.domain.requests import Request
from goal_state.operations.goal_operations import GoalOperations
from goal_state.storage.schema import metadata
from goal_state.storage.statements import Statement

__all__ = [
    "ACCOUNTED",
    "ACTIVE",
    "BLOCKED",
    "BUDGET_CHANGED",
    "BUDGET_LIMITED",
    "CLEARED",
    "COMPLETE",
    "CREATED",
    "NO_GOAL",
    "PAUSED",
    "STATUS_CHANGED",
    "THRESHOLD_CROSSED",
    "USAGE_LIMITED",
    "CommittingHost",
    "HesitantHost",
    "Rows",
    "Subject",
    "kinds",
    "set_clock",
    "with_status",
]

Result = TypeVar("Result")
Rows = dict[str, list[tuple[Any, ...]]]

CREATED, ACCOUNTED, STATUS_CHANGED, CLEARED, BUDGET_CHANGED, THRESHOLD_CROSSED = EventKind
ACTIVE, PAUSED, BLOCKED, USAGE_LIMITED, BUDGET_LIMITED, COMPLETE = GoalStatus
NO_GOAL: Final = "01980000-0000-7000-8000-000000000000"

_WHOLE_TABLES: Final = {
    table.name: Statement(partial(select, table)) for table in metadata.sorted_tables
}
_HOST_NOTES: Final = Table("host_notes", MetaData(), Column("id", Integer, primary_key=True))


class Subject(GoalOperations):
    """A store, with what is in its tables to look at.

    Attributes:
        keeps_what_time_made_true: whether a refused call commits what time alone had changed; a host whose
            call raises undoes its transaction instead.
    """

    keeps_what_time_made_true = True

    attempts: ClassVar[int] = 1
    """How often a request is carried out for each time that it is made."""

    def __init__(self, store: GoalStore) -> None:
        self.store = store
        self.heard: list[GoalEvent] = []
        store.subscribe(self.heard.append)

    def apply(self, request: Request[Result]) -> Result:
        """Carries out a request, and returns what it returns."""
        return self.store.apply(request)

    def get(self, thread_id: str) -> Goal | None:
        """The thread's goal."""
        return self.store.get(thread_id)

    def usage(self, thread_id: str) -> ThreadUsage | None:
        """What the thread has used."""
        return self.store.usage(thread_id)

    def count(self, status: GoalStatus | str | None = None) -> int:
        """How many goals there are."""
        return self.store.count(status)

    def goals(self, status: GoalStatus | str | None = None) -> list[Goal]:
        """All goals."""
        return list(self.store.goals(status))

    def holds(self, thread_id: str | None = None) -> list[HoldRecord]:
        """The holds that have not ended."""
        return self.store.holds(thread_id)

    def headroom(self, thread_id: str) -> Headroom | None:
        """What the thread's goal may still use."""
        return self.store.headroom(thread_id)

    def events(self, **chosen: Any) -> list[GoalEvent]:
        """The log."""
        return list(self.store.events(**chosen))

    def tables(self) -> Rows:
        """Every row of every table of ours."""

        def read(repository: GoalRepository) -> Rows:
            return {
                name: repository.executor.run(statement).fetchall()
                for name, statement in _WHOLE_TABLES.items()
            }

        return self.store.transact(read)

    def check(self) -> None:
        """What holds at the end of every test."""
        assert self.heard == self.events()
        assert self.store.verify() == []

    def close(self) -> None:
        """Closes the store."""
        self.store.close()


class CommittingHost(Subject):
    """A host that runs each operation in a transaction in which it changes a table of its own as well."""

    keeps_what_time_made_true = False

    def __init__(self, engine: Engine, prices: Prices | None = None) -> None:
        super().__init__(GoalStore.open(engine, durability="normal", prices=prices))
        self.engine = engine
        self.prices = prices
        _HOST_NOTES.create(engine)

    def apply(self, request: Request[Result]) -> Result:
        """Carries out a request between two changes of the host's."""
        notes = self.notes()
        with self.engine.begin() as connection:
            result = self.in_transaction(connection, request)
        assert self.notes() == notes + 2
        return result

    def in_transaction(self, connection: Connection, request: Request[Result]) -> Result:
        """The same, in a transaction that is open."""
        connection.execute(insert(_HOST_NOTES))
        result = GoalRepository(connection, prices=self.prices).apply(request)
        connection.execute(insert(_HOST_NOTES))
        return result

    def notes(self) -> int:
        """How many changes the host has made."""
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(_HOST_NOTES)).scalar_one()

    def get(self, thread_id: str) -> Goal | None:
        """The thread's goal, as a host reads it."""
        return self._read(lambda repository: repository.get(thread_id))

    def usage(self, thread_id: str) -> ThreadUsage | None:
        """What the thread has used, as a host reads it."""
        return self._read(lambda repository: repository.usage(thread_id))

    def count(self, status: GoalStatus | str | None = None) -> int:
        """How many goals there are, as a host counts them."""
        return self._read(lambda repository: repository.count(status))

    def goals(self, status: GoalStatus | str | None = None) -> list[Goal]:
        """All goals, as a host reads them."""
        return self._read(lambda repository: repository.goals_page(status=status))

    def holds(self, thread_id: str | None = None) -> list[HoldRecord]:
        """The holds that have not ended, as a host reads them."""
        if thread_id is None:
            return self._read(lambda repository: list(repository.all_holds()))
        return self._read(lambda repository: repository.holds(thread_id))

    def headroom(self, thread_id: str) -> Headroom | None:
        """What the thread's goal may still use, as a host reads it."""
        return self._read(lambda repository: repository.headroom(thread_id))

    def _read(self, read: Callable[[GoalRepository], Result]) -> Result:
        with self.engine.connect() as connection:
            return read(GoalRepository(connection))

    def check(self) -> None:
        """What holds at the end of every test."""
        assert self.heard == [], "live listeners hear of the store's own writes alone"
        assert self.store.verify() == []

    def close(self) -> None:
        """Closes the store and the engine."""
        super().close()
        self.engine.dispose()


class HesitantHost(CommittingHost):
    """A host that rolls each operation back before it does it again and commits."""

    attempts: ClassVar[int] = 2

    def apply(self, request: Request[Result]) -> Result:
        """Carries out a request twice, and commits the second time alone."""
        tables, notes = self.tables(), self.notes()
        try:
            with self.engine.connect() as connection, connection.begin() as transaction:
                self.in_transaction(connection, request)
                transaction.rollback()
        finally:
            assert self.tables() == tables
            assert self.notes() == notes
        return super().apply(request)


def kinds(events: list[GoalEvent]) -> list[EventKind]:
    """What happened, in order."""
    return [event.kind for event in events]


def set_clock(monkeypatch: pytest.MonkeyPatch, now_ms: int) -> None:
    """Has changes take place at a Unix time in milliseconds."""
    monkeypatch.setattr("goal_state.storage.wall_clock.now_ms", lambda: now_ms)


def with_status(subject: Subject, status: GoalStatus, *, used: int = 100) -> Goal:
    """A goal in a status that has used tokens of a budget of 500."""
    subject.create("t", "Ship", token_budget=500)
    subject.charge("t", tokens=used, seconds=5)
    return subject.set("t", status=status)
