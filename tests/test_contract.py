"""What every operation means, wherever it runs: in a store on a file or in memory, or through a
`GoalRepository` in a transaction of its host's, which commits it or first rolls it back."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy
from sqlalchemy import Connection, Engine, select, text

from goal_state import (
    KEEP,
    Accounting,
    AccountingMode,
    BudgetExhaustedError,
    Charge,
    EventKind,
    Goal,
    GoalEvent,
    GoalExistsError,
    GoalNotFoundError,
    GoalRepository,
    GoalStatus,
    GoalStore,
    IdempotencyConflictError,
    InvalidValueError,
    RequestError,
    StaleGoalError,
    ThreadUsage,
    TokenUsage,
    TokenUsageInfo,
    UsageOverflowError,
)
from goal_state.domain.operations import GoalOperations
from goal_state.domain.requests import Request
from goal_state.storage.schema import metadata
from goal_state.storage.sqlite.connections import create_engine
from goal_state.storage.statements import Statement
from tests.databases import Rows

Result = TypeVar("Result")

CREATED, ACCOUNTED, STATUS_CHANGED, CLEARED = EventKind
ACTIVE, PAUSED, BLOCKED, USAGE_LIMITED, BUDGET_LIMITED, COMPLETE = GoalStatus
NO_GOAL = "01980000-0000-7000-8000-000000000000"

WHOLE_TABLES = {
    table.name: Statement(partial(select, table), ()) for table in metadata.sorted_tables
}


# -- where the operations run ------------------------------------------------------------------------


class Subject(GoalOperations):
    """A store, with what is in its tables to look at."""

    def __init__(self, store: GoalStore) -> None:
        self.store = store
        self.heard: list[GoalEvent] = []
        store.subscribe(self.heard.append)

    def apply(self, request: Request[Result]) -> Result:
        return self.store.apply(request)

    def get(self, thread_id: str) -> Goal | None:
        return self.store.get(thread_id)

    def usage(self, thread_id: str) -> ThreadUsage | None:
        return self.store.usage(thread_id)

    def count(self, status: GoalStatus | str | None = None) -> int:
        return self.store.count(status)

    def goals(self, status: GoalStatus | str | None = None) -> list[Goal]:
        return list(self.store.goals(status))

    def events(self, **chosen: Any) -> list[GoalEvent]:
        return list(self.store.events(**chosen))

    def tables(self) -> Rows:
        def read(repository: GoalRepository) -> Rows:
            return {
                name: repository.executor.run(statement).fetchall()
                for name, statement in WHOLE_TABLES.items()
            }

        return self.store.transact(read)

    def check(self) -> None:
        """What holds at the end of every test."""
        assert self.heard == self.events()
        assert self.store.verify() == []


class CommittingHost(Subject):
    """A host that runs each operation in a transaction in which it changes a table of its own as well."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(GoalStore.open(engine, durability="normal"))
        self.engine = engine
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE host_notes (id INTEGER PRIMARY KEY)"))

    def apply(self, request: Request[Result]) -> Result:
        notes = self.notes()
        with self.engine.begin() as connection:
            result = self.in_transaction(connection, request)
        assert self.notes() == notes + 2
        return result

    def in_transaction(self, connection: Connection, request: Request[Result]) -> Result:
        connection.execute(text("INSERT INTO host_notes DEFAULT VALUES"))
        result = GoalRepository(connection).apply(request)
        connection.execute(text("INSERT INTO host_notes DEFAULT VALUES"))
        return result

    def notes(self) -> int:
        with self.engine.connect() as connection:
            return connection.execute(text("SELECT count(*) FROM host_notes")).scalar_one()

    def get(self, thread_id: str) -> Goal | None:
        return self._read(lambda repository: repository.get(thread_id))

    def usage(self, thread_id: str) -> ThreadUsage | None:
        return self._read(lambda repository: repository.usage(thread_id))

    def count(self, status: GoalStatus | str | None = None) -> int:
        return self._read(lambda repository: repository.count(status))

    def goals(self, status: GoalStatus | str | None = None) -> list[Goal]:
        return self._read(lambda repository: repository.goals_page(status=status))

    def _read(self, read: Callable[[GoalRepository], Result]) -> Result:
        with self.engine.connect() as connection:
            return read(GoalRepository(connection))

    def check(self) -> None:
        assert self.heard == [], "live listeners hear of the store's own writes alone"
        assert self.store.verify() == []


class HesitantHost(CommittingHost):
    """A host that rolls each operation back before it does it again and commits."""

    def apply(self, request: Request[Result]) -> Result:
        tables, notes = self.tables(), self.notes()
        try:
            with self.engine.connect() as connection, connection.begin() as transaction:
                self.in_transaction(connection, request)
                transaction.rollback()
        finally:
            assert self.tables() == tables
            assert self.notes() == notes
        return super().apply(request)


def _plain_engine(path: Path) -> Engine:
    """As any host makes one: the driver begins transactions by itself, and late."""
    return sqlalchemy.create_engine(f"sqlite:///{path}")


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "file": lambda path: Subject(GoalStore.open(path, durability="normal")),
    "memory": lambda _: Subject(GoalStore.open(":memory:")),
    "host": lambda path: CommittingHost(create_engine(path)),
    "host-with-plain-engine": lambda path: CommittingHost(_plain_engine(path)),
    "host-rolls-back": lambda path: HesitantHost(create_engine(path)),
    "host-with-plain-engine-rolls-back": lambda path: HesitantHost(_plain_engine(path)),
}


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, database: Path) -> Iterator[Subject]:
    subject = SUBJECTS[request.param](database)
    yield subject
    subject.check()
    subject.store.close()
    if isinstance(subject, CommittingHost):
        subject.engine.dispose()


def kinds(events: list[GoalEvent]) -> list[EventKind]:
    return [event.kind for event in events]


def with_status(subject: Subject, status: GoalStatus, *, used: int = 100) -> Goal:
    """A goal in a status that has used tokens of a budget of 500."""
    subject.create("t", "Ship", token_budget=500)
    subject.charge("t", tokens=used, seconds=5)
    return subject.set("t", status=status)


# -- create ------------------------------------------------------------------------------------------


def test_create_makes_a_goal(subject: Subject) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    goal = subject.create("t", "  Ship the parser\n", token_budget=200, turn_id="turn-1")

    assert goal == subject.get("t")
    assert (goal.thread_id, goal.objective, goal.status) == ("t", "Ship the parser", ACTIVE)
    assert (goal.token_budget, goal.has_token_budget, goal.remaining_tokens) == (200, True, 200)
    assert (goal.tokens_used, goal.time_used_ms, goal.time_used_seconds) == (0, 0, 0)
    assert uuid.UUID(goal.goal_id).version == 7
    assert goal.created_at == goal.updated_at
    assert before <= goal.created_at <= datetime.now(UTC)

    [event] = subject.events()
    assert (event.kind, event.thread_id, event.goal_id) == (CREATED, "t", goal.goal_id)
    assert (event.turn_id, event.goal_status, event.previous_status) == ("turn-1", ACTIVE, None)
    assert (event.token_budget, event.has_token_budget) == (200, True)
    assert (event.tokens_delta, event.time_delta_ms) == (0, 0)
    assert (event.cumulative_tokens, event.cumulative_seconds) == (None, None)
    assert (event.idempotency_key, event.replaced_goal_id) == (None, None)
    assert event.occurred_at == goal.created_at


def test_create_without_a_budget(subject: Subject) -> None:
    goal = subject.create("t", "Ship")
    assert (goal.token_budget, goal.has_token_budget, goal.remaining_tokens) == (None, False, None)
    [event] = subject.events()
    assert (event.token_budget, event.has_token_budget, event.turn_id) == (None, False, None)


@pytest.mark.parametrize("status", GoalStatus)
def test_create_begins_with_the_status_asked_for(subject: Subject, status: GoalStatus) -> None:
    assert subject.create("t", "Ship", status=status.value, token_budget=1).status is status
    assert [event.goal_status for event in subject.events()] == [status]


@pytest.mark.parametrize("status", [s for s in GoalStatus if s is not COMPLETE])
def test_create_refuses_where_a_goal_is_unfinished(subject: Subject, status: GoalStatus) -> None:
    with_status(subject, status)
    tables = subject.tables()
    with pytest.raises(GoalExistsError, match=f"'t' has a goal that is {status}"):
        subject.create("t", "Another")
    assert subject.tables() == tables


def test_create_takes_the_place_of_a_complete_goal(subject: Subject) -> None:
    old = with_status(subject, COMPLETE)
    new = subject.create("t", "Another")
    assert new.goal_id > old.goal_id
    assert (new.tokens_used, new.time_used_ms, new.token_budget) == (0, 0, None)
    assert subject.goals() == [new]
    created = subject.events(goal_id=new.goal_id)
    assert [(e.kind, e.replaced_goal_id) for e in created] == [(CREATED, old.goal_id)]
    assert CLEARED not in kinds(subject.events())


def test_threads_have_goals_of_their_own(subject: Subject) -> None:
    one, two = subject.create("one", "Ship"), subject.create("two", "Ship")
    subject.charge("one", tokens=5)
    assert subject.get("two") == two
    assert one.goal_id != two.goal_id
    assert subject.get("three") is None


# -- replace -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", GoalStatus)
def test_replace_makes_a_new_goal_in_any_case(subject: Subject, status: GoalStatus) -> None:
    old = with_status(subject, status)
    new = subject.replace("t", "Another", token_budget=7, status=PAUSED, turn_id="turn-2")
    assert new == subject.get("t")
    assert new.goal_id > old.goal_id
    assert (new.objective, new.status, new.token_budget) == ("Another", PAUSED, 7)
    assert (new.tokens_used, new.time_used_ms) == (0, 0)
    [event] = subject.events(goal_id=new.goal_id)
    assert (event.kind, event.replaced_goal_id) == (CREATED, old.goal_id)
    assert (event.turn_id, event.goal_status) == ("turn-2", PAUSED)


def test_replace_where_there_is_none(subject: Subject) -> None:
    goal = subject.replace("t", "Ship")
    [event] = subject.events()
    assert (event.goal_id, event.replaced_goal_id) == (goal.goal_id, None)


# -- set ---------------------------------------------------------------------------------------------


def test_set_makes_a_goal_where_there_is_none(subject: Subject) -> None:
    goal = subject.set("t", objective=" Ship ", status="paused", token_budget=10, turn_id="turn-1")
    assert goal == subject.get("t")
    assert (goal.objective, goal.status, goal.token_budget) == ("Ship", PAUSED, 10)
    assert [(e.kind, e.goal_status, e.turn_id) for e in subject.events()] == [
        (CREATED, PAUSED, "turn-1")
    ]


def test_set_makes_an_active_goal_without_a_budget_if_not_told_otherwise(subject: Subject) -> None:
    goal = subject.set("t", objective="Ship")
    assert (goal.status, goal.token_budget) == (ACTIVE, None)


@pytest.mark.parametrize("change", [{}, {"status": "paused"}, {"token_budget": None}])
def test_set_needs_a_goal_or_an_objective(subject: Subject, change: dict[str, Any]) -> None:
    with pytest.raises(GoalNotFoundError, match="'t' has no goal"):
        subject.set("t", **change)
    assert subject.events() == []


def test_set_changes_in_place(subject: Subject) -> None:
    old = with_status(subject, ACTIVE)
    new = subject.set("t", objective="Ship it", status=PAUSED, token_budget=900, turn_id="turn-9")
    assert new == subject.get("t")
    assert (new.goal_id, new.created_at) == (old.goal_id, old.created_at)
    assert (new.tokens_used, new.time_used_ms) == (100, 5000)
    assert (new.objective, new.status, new.token_budget) == ("Ship it", PAUSED, 900)
    assert new.updated_at >= old.updated_at
    last = subject.events()[-1]
    assert (last.kind, last.goal_status, last.previous_status) == (STATUS_CHANGED, PAUSED, ACTIVE)
    assert (last.turn_id, last.token_budget, last.cumulative_tokens) == ("turn-9", 900, None)


@pytest.mark.parametrize(
    "change", [{"objective": "Ship it"}, {"token_budget": 101}, {"token_budget": None}]
)
def test_an_objective_or_a_budget_alone_appends_no_event(
    subject: Subject, change: dict[str, Any]
) -> None:
    goal = with_status(subject, ACTIVE)
    events = subject.events()
    new = subject.set("t", **change)
    [(field, value)] = change.items()
    assert getattr(new, field) == value != getattr(goal, field)
    assert new.status is ACTIVE
    assert subject.events() == events


@pytest.mark.parametrize("status", GoalStatus)
def test_set_of_what_is_there_changes_nothing(subject: Subject, status: GoalStatus) -> None:
    goal = with_status(subject, status)
    tables = subject.tables()
    assert subject.set("t") == goal
    assert subject.set("t", objective=KEEP, status=KEEP, token_budget=KEEP) == goal
    assert subject.set("t", objective=" Ship", status=status, token_budget=500) == goal
    assert subject.tables() == tables


@pytest.mark.parametrize("budget", [99, 100])
def test_a_budget_at_or_under_the_usage_limits_an_active_goal(
    subject: Subject, budget: int
) -> None:
    with_status(subject, ACTIVE)
    goal = subject.set("t", token_budget=budget)
    assert (goal.status, goal.token_budget, goal.remaining_tokens) == (BUDGET_LIMITED, budget, 0)
    last = subject.events()[-1]
    assert (last.kind, last.goal_status, last.previous_status) == (
        STATUS_CHANGED,
        BUDGET_LIMITED,
        ACTIVE,
    )


@pytest.mark.parametrize("budget", [601, None])
def test_more_budget_alone_does_not_lift_the_limit(subject: Subject, budget: int | None) -> None:
    subject.create("t", "Ship", token_budget=500)
    subject.charge("t", tokens=600)
    assert subject.set("t", token_budget=budget).status is BUDGET_LIMITED
    assert kinds(subject.events()) == [CREATED, ACCOUNTED, STATUS_CHANGED]
    assert subject.set("t", status=ACTIVE).status is ACTIVE


@pytest.mark.parametrize("status", [PAUSED, BLOCKED, USAGE_LIMITED, COMPLETE])
def test_a_spent_goal_asked_to_be_active_is_budget_limited(
    subject: Subject, status: GoalStatus
) -> None:
    with_status(subject, status)
    assert subject.set("t", token_budget=100).status is status
    assert subject.set("t", status=ACTIVE).status is BUDGET_LIMITED
    last = subject.events()[-1]
    assert (last.goal_status, last.previous_status) == (BUDGET_LIMITED, status)


def test_set_refuses_another_goal_than_expected(subject: Subject) -> None:
    goal = with_status(subject, ACTIVE)
    assert subject.set("t", status=PAUSED, expected_goal_id=goal.goal_id).status is PAUSED
    tables = subject.tables()
    with pytest.raises(StaleGoalError, match=f"has goal {goal.goal_id}, expected goal {NO_GOAL}"):
        subject.set("t", objective="Another", expected_goal_id=NO_GOAL)
    with pytest.raises(StaleGoalError, match="'other' has no goal, expected goal"):
        subject.set("other", objective="Another", expected_goal_id=NO_GOAL)
    assert subject.tables() == tables


LATER = datetime(2030, 1, 2, 3, 4, 5, 678_000, UTC)
WAITS: dict[GoalStatus, dict[str, Any]] = {
    USAGE_LIMITED: {"resume_at": LATER},
    BLOCKED: {"blocked_reason": "Which of the two?"},
}


@pytest.mark.parametrize("status", WAITS)
def test_why_a_goal_waits_is_kept_while_it_waits(subject: Subject, status: GoalStatus) -> None:
    with_status(subject, ACTIVE)
    [(field, value)] = WAITS[status].items()
    goal = subject.set("t", status=status, **WAITS[status])
    assert goal == subject.get("t")
    assert getattr(goal, field) == value
    assert subject.set("t", objective="Ship it", token_budget=900) == subject.get("t")
    charged = subject.charge("t", tokens=1, mode="active_or_stopped").goal
    assert charged is not None
    assert getattr(charged, field) == value
    assert getattr(subject.set("t", status=status), field) is None


@pytest.mark.parametrize("status", WAITS)
@pytest.mark.parametrize("leave", ["set", "resume", "charge", "complete", "other"])
def test_why_a_goal_waited_is_forgotten_when_it_no_longer_does(
    subject: Subject, status: GoalStatus, leave: str
) -> None:
    subject.set("t", objective="Ship", status=status, token_budget=5, **WAITS[status])
    if leave == "set":
        subject.set("t", status=ACTIVE)
    elif leave == "resume":
        subject.resume("t")
    elif leave == "charge":
        charged = subject.charge("t", tokens=5, mode="active_or_stopped")
        assert charged.goal == subject.get("t")
    elif leave == "complete":
        subject.set("t", status=COMPLETE)
    else:
        [other] = set(WAITS) - {status}
        subject.set("t", status=other)
    goal = subject.get("t")
    assert goal is not None
    assert goal.status is not status
    assert (goal.resume_at, goal.blocked_reason) == (None, None)


@pytest.mark.parametrize("status", [KEEP, *GoalStatus])
def test_why_a_goal_waits_goes_with_the_status_that_waits_for_it(
    subject: Subject, status: Any
) -> None:
    with_status(subject, PAUSED)
    tables = subject.tables()
    for waiting, arguments in WAITS.items():
        if waiting is not status:
            [field] = arguments
            with pytest.raises(InvalidValueError, match=f"{field}: goes with status {waiting}"):
                subject.set("t", status=status, **arguments)
    assert subject.tables() == tables


# -- resume ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [s for s in GoalStatus if s is not ACTIVE])
def test_resume_makes_a_goal_active(subject: Subject, status: GoalStatus) -> None:
    old = with_status(subject, status)
    new = subject.resume("t", turn_id="turn-3")
    assert new == subject.get("t")
    assert (new.goal_id, new.status, new.tokens_used) == (old.goal_id, ACTIVE, 100)
    assert (new.objective, new.token_budget) == ("Ship", 500)
    last = subject.events()[-1]
    assert (last.kind, last.goal_status, last.previous_status, last.turn_id) == (
        STATUS_CHANGED,
        ACTIVE,
        status,
        "turn-3",
    )


def test_resume_of_an_active_goal_changes_nothing(subject: Subject) -> None:
    goal = with_status(subject, ACTIVE)
    tables = subject.tables()
    assert subject.resume("t") == goal
    assert subject.tables() == tables


@pytest.mark.parametrize("budget", [601, None])
def test_resume_raises_the_budget_at_once(subject: Subject, budget: int | None) -> None:
    subject.create("t", "Ship", token_budget=500)
    subject.charge("t", tokens=600)
    goal = subject.resume("t", token_budget=budget)
    assert (goal.status, goal.token_budget, goal.tokens_used) == (ACTIVE, budget, 600)
    last = subject.events()[-1]
    assert (last.kind, last.token_budget) == (STATUS_CHANGED, budget)


@pytest.mark.parametrize("budget", [KEEP, 1, 600])
def test_resume_of_a_goal_that_stays_spent_changes_nothing(subject: Subject, budget: Any) -> None:
    subject.create("t", "Ship", token_budget=500)
    subject.charge("t", tokens=600)
    tables = subject.tables()
    with pytest.raises(BudgetExhaustedError, match=r"used 600 of .* give a token_budget above 600"):
        subject.resume("t", token_budget=budget)
    assert subject.tables() == tables


def test_resume_lowering_the_budget_of_an_active_goal_under_its_usage(subject: Subject) -> None:
    with_status(subject, ACTIVE)
    tables = subject.tables()
    with pytest.raises(BudgetExhaustedError):
        subject.resume("t", token_budget=100)
    assert subject.tables() == tables


def test_resume_needs_the_expected_goal(subject: Subject) -> None:
    with pytest.raises(GoalNotFoundError):
        subject.resume("t")
    with pytest.raises(StaleGoalError):
        subject.resume("t", expected_goal_id=NO_GOAL)
    goal = with_status(subject, PAUSED)
    tables = subject.tables()
    with pytest.raises(StaleGoalError):
        subject.resume("t", token_budget=9_000, expected_goal_id=NO_GOAL)
    assert subject.tables() == tables
    assert subject.resume("t", expected_goal_id=goal.goal_id).status is ACTIVE


# -- charge ------------------------------------------------------------------------------------------


def test_account_adds_usage(subject: Subject) -> None:
    created = subject.create("t", "Ship", token_budget=1000)
    first = subject.charge("t", tokens=250, seconds=3.2, turn_id="turn-1")
    second = subject.charge("t", tokens=50, seconds=0.9, turn_id="turn-2")

    assert first.goal is not None
    assert (first.applied, first.duplicate) == (second.applied, second.duplicate) == (True, False)
    assert second.goal == subject.get("t")
    assert second.goal is not None
    assert (first.goal.tokens_used, first.goal.time_used_ms) == (250, 3200)
    assert (second.goal.tokens_used, second.goal.time_used_ms) == (300, 4100)
    assert (second.goal.time_used_seconds, second.goal.remaining_tokens) == (4, 700)
    assert (second.goal.goal_id, second.goal.created_at) == (created.goal_id, created.created_at)

    charges = subject.events()[1:]
    assert kinds(charges) == [ACCOUNTED, ACCOUNTED]
    assert [(e.tokens_delta, e.time_delta_ms) for e in charges] == [(250, 3200), (50, 900)]
    assert [(e.cumulative_tokens, e.cumulative_time_ms) for e in charges] == [
        (250, 3200),
        (300, 4100),
    ]
    assert [e.cumulative_seconds for e in charges] == [3, 4]
    assert [e.turn_id for e in charges] == ["turn-1", "turn-2"]
    assert {(e.goal_status, e.previous_status, e.token_budget) for e in charges} == {
        (ACTIVE, ACTIVE, 1000)
    }


def test_a_charge_that_fills_the_budget_is_followed_by_the_change_of_status(
    subject: Subject,
) -> None:
    subject.create("t", "Ship", token_budget=100)
    result = subject.charge("t", tokens=150, turn_id="turn-1")
    assert result.goal is not None
    assert (result.goal.status, result.goal.tokens_used) == (BUDGET_LIMITED, 150)
    assert result.goal.remaining_tokens == 0
    charge, change = subject.events()[1:]
    assert (charge.kind, charge.goal_status, charge.cumulative_tokens) == (
        ACCOUNTED,
        BUDGET_LIMITED,
        150,
    )
    assert (change.kind, change.goal_status, change.previous_status) == (
        STATUS_CHANGED,
        BUDGET_LIMITED,
        ACTIVE,
    )
    assert charge.turn_id == change.turn_id == "turn-1"
    assert charge.position < change.position


def test_account_without_a_goal_changes_nothing(subject: Subject) -> None:
    tables = subject.tables()
    assert subject.charge("t", tokens=5, seconds=1) == Accounting(None, applied=False)
    assert subject.tables() == tables


def test_account_for_another_goal_than_expected_changes_nothing(subject: Subject) -> None:
    goal = subject.create("t", "Ship")
    tables = subject.tables()
    stale = subject.charge("t", tokens=5, expected_goal_id=NO_GOAL)
    assert stale == Accounting(goal, applied=False)
    assert subject.tables() == tables
    assert subject.charge("t", tokens=5, expected_goal_id=goal.goal_id).applied


def test_a_charge_that_no_status_accepts_changes_nothing(subject: Subject) -> None:
    goal = with_status(subject, PAUSED)
    tables = subject.tables()
    assert subject.charge("t", tokens=5, seconds=1) == Accounting(goal, applied=False)
    assert subject.tables() == tables


def test_a_repeated_key_charges_once(subject: Subject) -> None:
    subject.create("t", "Ship", token_budget=1000)
    first = subject.charge("t", tokens=10, seconds=1, idempotency_key="k")
    subject.charge("t", tokens=990)
    tables = subject.tables()
    again = subject.charge("t", tokens=10, seconds=1, idempotency_key="k")
    assert (again.applied, again.duplicate) == (True, True)
    assert again.goal is not None
    assert first.goal is not None
    assert (again.goal.tokens_used, again.goal.time_used_ms, again.goal.status) == (
        10,
        1000,
        ACTIVE,
    )
    assert again.goal.goal_id == first.goal.goal_id
    assert subject.tables() == tables
    assert [e.idempotency_key for e in subject.events()] == [None, "k", None, None]


# -- charge_many ------------------------------------------------------------------------------------


def _with_goals_to_charge(subject: Subject, group: str) -> None:
    subject.create(f"{group}-budget", "Ship", token_budget=100)
    subject.charge(f"{group}-budget", tokens=7, idempotency_key="before")
    subject.create(f"{group}-plain", "Ship")
    subject.create(f"{group}-paused", "Ship", status=PAUSED)
    subject.set(f"{group}-waits", objective="Ship", status=BLOCKED, blocked_reason="An answer")
    subject.set(f"{group}-waits", token_budget=50)


def _charges(group: str) -> list[Charge]:
    budget, plain = f"{group}-budget", f"{group}-plain"
    paused, waits = f"{group}-paused", f"{group}-waits"
    mode = AccountingMode.ACTIVE_OR_STOPPED
    return [
        Charge(budget, tokens=7, idempotency_key="before"),
        Charge(budget, tokens=60, seconds=1.5, turn_id="turn-1", idempotency_key="k"),
        Charge(plain, tokens=5, idempotency_key="k"),
        Charge(paused, tokens=5),
        Charge(f"{group}-nobody", tokens=5, idempotency_key="k"),
        Charge(plain, tokens=5, expected_goal_id=NO_GOAL),
        Charge(plain),
        Charge(plain, idempotency_key="of nothing"),
        Charge(plain, idempotency_key="of nothing"),
        Charge(waits, tokens=49, mode=mode, idempotency_key="k"),
        Charge(waits, tokens=1, mode=mode, turn_id="turn-2"),
        Charge(budget, tokens=60, seconds=1.5, idempotency_key="k"),
        Charge(budget, tokens=33, turn_id="turn-3"),
        Charge(budget, tokens=1),
        Charge(budget, tokens=60, seconds=1.5, idempotency_key="k"),
        Charge(paused, tokens=3, mode=mode),
        Charge(plain, seconds=2),
    ]


def _without_ids(record: Goal | GoalEvent) -> dict[str, Any]:
    """A goal or an event without what is another one in each group."""
    fields = asdict(record) | {"thread_id": record.thread_id.split("-")[1]}
    return {key: fields[key] for key in fields if key not in ("goal_id", "event_id", "position")}


def test_account_many_does_as_account_one_after_the_other(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goal_state.storage.repository.wall_clock_ms", lambda: 1_000)
    for group in ("one", "many"):
        _with_goals_to_charge(subject, group)
    begun = subject.events()[-1].position
    monkeypatch.setattr("goal_state.storage.repository.wall_clock_ms", lambda: 2_000)
    one = [subject.apply(charge) for charge in _charges("one")]
    between = subject.events()[-1].position
    many = subject.charge_many(_charges("many"))

    assert [(result.applied, result.duplicate) for result in many] == [
        (result.applied, result.duplicate) for result in one
    ]
    assert [result.goal and _without_ids(result.goal) for result in many] == [
        result.goal and _without_ids(result.goal) for result in one
    ]
    events = subject.events(after=begun)
    charged = [_without_ids(event) for event in events if event.position > between]
    assert charged == [_without_ids(event) for event in events if event.position <= between]
    goals = {goal.thread_id: goal for goal in subject.goals()}
    for thread in ("budget", "plain", "paused", "waits"):
        assert _without_ids(goals[f"many-{thread}"]) == _without_ids(goals[f"one-{thread}"])
    assert (many[-1].goal, many[-2].goal) == (goals["many-plain"], goals["many-paused"])


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (Charge("t", tokens=2**63 - 1), UsageOverflowError),
        (Charge("t", tokens=2, idempotency_key="k"), IdempotencyConflictError),
    ],
    ids=["overflow", "conflict"],
)
def test_account_many_makes_all_or_none(
    subject: Subject, last: Charge, error: type[RequestError]
) -> None:
    subject.create("t", "Ship")
    tables = subject.tables()
    with pytest.raises(error):
        subject.charge_many([Charge("t", tokens=1, idempotency_key="k"), last])
    assert subject.tables() == tables


def test_account_many_of_what_no_goal_takes_changes_nothing(subject: Subject) -> None:
    goal = subject.create("t", "Ship", status=PAUSED)
    tables = subject.tables()
    assert subject.charge_many([]) == []
    assert subject.charge_many([Charge("t", tokens=5), Charge("nobody", tokens=5)]) == [
        Accounting(goal, applied=False),
        Accounting(None, applied=False),
    ]
    assert subject.tables() == tables


def test_a_charge_that_names_no_amount_is_one_of_nothing(subject: Subject) -> None:
    goal = subject.create("t", "Ship")
    tables = subject.tables()
    assert subject.charge("t") == Accounting(goal, applied=False)
    assert subject.charge_many([Charge("t")]) == [Accounting(goal, applied=False)]
    assert subject.tables() == tables


@pytest.mark.parametrize(
    ("charges", "problem"),
    [
        (None, "must be many, not NoneType"),
        (Charge("t", tokens=1), "must be many, not Charge"),
        ("t", "must be of Charge, number 0 is str"),
        ([Charge("t", tokens=1), {"tokens": 1}], "must be of Charge, number 1 is dict"),
    ],
    ids=["none", "one alone", "text", "a mapping among them"],
)
def test_account_many_refuses_what_are_no_charges(
    subject: Subject, charges: Any, problem: str
) -> None:
    subject.create("t", "Ship")
    tables = subject.tables()
    with pytest.raises(InvalidValueError) as caught:
        subject.charge_many(charges)
    assert str(caught.value) == f"charges: {problem}"
    assert subject.tables() == tables


# -- record_total, set_baseline, usage ---------------------------------------------------------------


def test_record_usage_charges_what_is_new(subject: Subject) -> None:
    subject.create("t", "Ship")
    assert subject.usage("t") is None
    assert not subject.record_total("t", TokenUsage(1000, 0, 0, 100), turn_id="turn-1").applied
    assert subject.usage("t") == ThreadUsage(
        TokenUsageInfo(TokenUsage(1000, 0, 0, 100), TokenUsage()), "turn-1"
    )

    total = TokenUsage(1600, 400, 30, 150, 20)
    charge = subject.record_total("t", total, seconds=2, turn_id="turn-2")
    assert charge.applied
    assert charge.goal is not None
    assert (charge.goal.tokens_used, charge.goal.time_used_ms) == (600 - 400 + 50, 2000)
    assert subject.usage("t") == ThreadUsage(
        TokenUsageInfo(total, TokenUsage(600, 400, 30, 50, 20)), "turn-2"
    )

    tables = subject.tables()
    assert not subject.record_total("t", total, turn_id="turn-2").applied
    assert subject.tables() == tables
    assert [(e.kind, e.tokens_delta, e.turn_id) for e in subject.events()[1:]] == [
        (ACCOUNTED, 250, "turn-2")
    ]


def test_set_baseline_charges_nothing(subject: Subject) -> None:
    goal = subject.create("t", "Ship")
    info = TokenUsageInfo(TokenUsage(700, 0, 0, 50), TokenUsage(70, 0, 0, 5), 258_400)
    assert subject.set_baseline("t", info, turn_id="turn-1") is None
    assert subject.usage("t") == ThreadUsage(info, "turn-1")
    assert subject.usage("other") is None
    assert subject.get("t") == goal
    assert kinds(subject.events()) == [CREATED]
    charge = subject.record_total("t", TokenUsage(710, 0, 0, 52))
    assert charge.goal is not None
    assert charge.goal.tokens_used == 12


def test_set_baseline_replaces_the_one_before(subject: Subject) -> None:
    subject.set_baseline("t", TokenUsage(700, 0, 0, 50), turn_id="turn-1")
    subject.set_baseline("t", TokenUsage(20, 0, 0, 1), turn_id="turn-2")
    usage = subject.usage("t")
    assert usage is not None
    assert (usage.info.total, usage.turn_id) == (TokenUsage(20, 0, 0, 1), "turn-2")


# -- clear -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", GoalStatus)
def test_clear_returns_the_goal_as_it_was(subject: Subject, status: GoalStatus) -> None:
    goal = with_status(subject, status)
    assert subject.clear("t") == goal
    assert subject.get("t") is None
    assert subject.clear("t") is None
    last = subject.events(goal_id=goal.goal_id)[-1]
    assert (last.kind, last.goal_status, last.previous_status) == (CLEARED, status, status)
    assert (last.turn_id, last.token_budget, last.cumulative_tokens) == (None, 500, None)
    assert kinds(subject.events()).count(CLEARED) == 1


def test_clear_where_there_is_none(subject: Subject) -> None:
    tables = subject.tables()
    assert subject.clear("t") is None
    assert subject.tables() == tables


def test_clear_of_another_goal_than_expected_changes_nothing(subject: Subject) -> None:
    goal = subject.create("t", "Ship")
    tables = subject.tables()
    assert subject.clear("t", expected_goal_id=NO_GOAL) is None
    assert subject.tables() == tables
    assert subject.clear("t", expected_goal_id=goal.goal_id, turn_id="turn-1") == goal
    assert subject.events()[-1].turn_id == "turn-1"


def test_what_was_cleared_is_gone_but_for_its_events(subject: Subject) -> None:
    old = subject.create("t", "A secret objective")
    subject.set("t", objective="A secret objective too")
    subject.clear("t")
    new = subject.create("t", "Ship")
    assert new.goal_id > old.goal_id
    assert "secret" not in repr(subject.tables())
    assert [(e.kind, e.goal_id, e.replaced_goal_id) for e in subject.events()] == [
        (CREATED, old.goal_id, None),
        (CLEARED, old.goal_id, None),
        (CREATED, new.goal_id, None),
    ]


def test_usage_outlives_the_goal(subject: Subject) -> None:
    subject.create("t", "Ship")
    subject.record_total("t", TokenUsage(10, 0, 0, 1), turn_id="turn-1")
    usage = subject.usage("t")
    subject.clear("t")
    assert subject.usage("t") == usage


# -- reading -----------------------------------------------------------------------------------------


def test_goals_and_count(subject: Subject) -> None:
    assert (subject.goals(), subject.count()) == ([], 0)
    made = [
        subject.create(f"t{place}", "Ship", status=status)
        for place, status in enumerate([*GoalStatus, PAUSED])
    ]
    assert subject.goals() == made
    assert subject.count() == 7
    for status in GoalStatus:
        chosen = [goal for goal in made if goal.status is status]
        assert subject.goals(status) == subject.goals(status.value) == chosen
        assert subject.count(status) == subject.count(status.value) == len(chosen)
    with pytest.raises(InvalidValueError, match="status: must be one of active, paused"):
        subject.count("open")
    with pytest.raises(InvalidValueError, match="status: must be one of active, paused"):
        subject.goals("open")


def test_events_are_read_by_position_thread_and_goal(subject: Subject) -> None:
    first = subject.create("a", "Ship")
    subject.create("b", "Ship")
    subject.charge("a", tokens=1)
    subject.charge("b", tokens=1)
    second = subject.replace("a", "Ship more")
    subject.charge("a", tokens=1)

    everything = subject.events()
    positions = [event.position for event in everything]
    assert positions == sorted(set(positions))
    assert len({event.event_id for event in everything}) == len(everything) == 6
    for after, limit in itertools.product([0, *positions], [None, 0, 1, 4, 9]):
        behind = [event for event in everything if event.position > after]
        for chosen, matches in (
            ({}, lambda event: True),
            ({"thread_id": "a"}, lambda event: event.thread_id == "a"),
            ({"goal_id": first.goal_id}, lambda event: event.goal_id == first.goal_id),
            (
                {"thread_id": "a", "goal_id": second.goal_id},
                lambda event: event.goal_id == second.goal_id,
            ),
            ({"thread_id": "b", "goal_id": second.goal_id}, lambda event: False),
            ({"thread_id": "nobody"}, lambda event: False),
        ):
            expected = [event for event in behind if matches(event)][:limit]
            assert subject.events(after=after, limit=limit, **chosen) == expected


# -- malformed calls ---------------------------------------------------------------------------------

NAMES = {"": "1 to 256", "x" * 257: "1 to 256", "a\0b": "NUL", "\ud800": "surrogate", 5: "text"}
AMOUNTS = {-1: "0 or more", 2**63: "below 2^63", 10**5000: "below 2^63", 1.0: "int", "1": "int"}
BUDGETS = {0: "more than 0", -5: "more than 0", 2**63: "below 2^63", 1.5: "int", "1": "int"}
SECONDS = {
    -0.0001: "0 or more",
    -1: "0 or more",
    float("nan"): "finite",
    float("inf"): "finite",
    2**63 // 1000 + 1: "below 2^63 milliseconds",
    1e300: "below 2^63 milliseconds",
    "1": "number of seconds",
}
OBJECTIVES = {
    "": "1 to 4000",
    " \n\t": "1 to 4000",
    "x" * 4001: "1 to 4000",
    "a\0b": "NUL",
    "\udfff": "surrogate",
    None: "text",
}
STATUSES = {"Active": "one of active", "": "one of active", None: "one of active", 1: "one of"}

BOUNDS: dict[str, dict[Any, str]] = {
    "thread_id": NAMES | {None: "text"},
    "turn_id": NAMES,
    "expected_goal_id": NAMES,
    "idempotency_key": NAMES,
    "objective": OBJECTIVES,
    "status": STATUSES,
    "token_budget": BUDGETS,
    "tokens": AMOUNTS | {None: "int"},
    "seconds": SECONDS | {None: "number of seconds"},
    "resume_at": {5: "datetime", datetime(2030, 1, 1): "aware"},  # noqa: DTZ001
    "blocked_reason": OBJECTIVES | {5: "text"},
    "mode": {"ACTIVE_ONLY": "one of active_status_only", None: "one of"},
    "total": {1: "TokenUsageInfo, not int", None: "TokenUsageInfo, not NoneType"},
}
ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "create": ({"objective": "Ship"}, "objective token_budget status turn_id"),
    "replace": ({"objective": "Ship"}, "objective token_budget status turn_id"),
    "set": (
        {},
        "objective token_budget status resume_at blocked_reason expected_goal_id turn_id",
    ),
    "resume": ({}, "token_budget expected_goal_id turn_id"),
    "charge": ({}, "tokens seconds mode expected_goal_id turn_id idempotency_key"),
    "record_total": ({"total": TokenUsage()}, "total seconds mode expected_goal_id turn_id"),
    "set_baseline": ({"total": TokenUsage()}, "total turn_id"),
    "reconcile": ({"total": TokenUsage()}, "total turn_id"),
    "clear": ({}, "expected_goal_id turn_id"),
}


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        (operation, field)
        for operation, (_, fields) in ARGUMENTS.items()
        for field in ["thread_id", *fields.split()]
    ],
)
def test_a_malformed_value_is_refused_by_name_and_changes_nothing(
    subject: Subject, operation: str, field: str
) -> None:
    with_status(subject, ACTIVE)
    subject.set_baseline("t", TokenUsage(5, 0, 0, 5))
    tables = subject.tables()
    # True equals 1 as a key, so it stands here.
    refusals = [*BOUNDS[field].items(), (True, "must be")]
    for value, problem in refusals:
        if value is None and field == "blocked_reason":
            continue  # none is what it is if it is left out
        arguments = {"thread_id": "t"} | ARGUMENTS[operation][0] | {field: value}
        with pytest.raises(InvalidValueError) as caught:
            getattr(subject, operation)(**arguments)
        assert caught.value.field == field
        assert problem in caught.value.problem
        assert str(caught.value) == f"{field}: {caught.value.problem}"
    assert subject.tables() == tables


def test_a_refusal_is_a_value_error_and_a_request_error() -> None:
    assert issubclass(InvalidValueError, ValueError)
    assert issubclass(InvalidValueError, RequestError)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "x" * 4000,
        "🦜" * 4000,
        "a\nb\tc",
        "'; DROP TABLE goal_state_goals --",
        "\ufeffx",
        "\u2028x\u2028y",
    ],
    ids=["1", "4000", "4000 beyond the BMP", "lines", "quotes", "mark", "separators"],
)
def test_any_text_is_kept_as_it_is(subject: Subject, text: str) -> None:
    assert subject.create("t", text).objective == text.strip()
    goal = subject.get("t")
    assert goal is not None
    assert goal.objective == text.strip()


@pytest.mark.parametrize("name", ["x", "x" * 256, "🦜" * 256, " spaces ", "%_'\"", "\n"])
def test_any_name_is_kept_as_it_is(subject: Subject, name: str) -> None:
    goal = subject.create(name, "Ship", turn_id=name)
    subject.charge(name, tokens=1, turn_id=name, idempotency_key=name)
    subject.record_total(name, TokenUsage(), turn_id=name)
    assert goal.thread_id == name
    assert [e.thread_id for e in subject.events(thread_id=name)] == [name, name]
    assert {e.turn_id for e in subject.events()} == {name}
    assert subject.events()[1].idempotency_key == name
    usage = subject.usage(name)
    assert usage is not None
    assert usage.turn_id == name


# -- the host's transaction --------------------------------------------------------------------------


@pytest.fixture(params=["ours", "plain"])
def engine(request: pytest.FixtureRequest, database: Path) -> Iterator[Engine]:
    """A host's engine on a database with our tables."""
    engine = create_engine(database) if request.param == "ours" else _plain_engine(database)
    yield engine
    engine.dispose()


def _goals(engine: Engine) -> list[Goal]:
    with engine.connect() as connection:
        return GoalRepository(connection).goals_page()


def test_the_repository_begins_a_transaction_that_the_host_ends(engine: Engine) -> None:
    with engine.connect() as connection:
        GoalRepository(connection).create("t", "Ship")
        assert connection.in_transaction()
        assert _goals(engine) == []
        connection.rollback()
        assert _goals(engine) == []
        GoalRepository(connection).create("t", "Ship")
        connection.commit()
    assert [goal.thread_id for goal in _goals(engine)] == ["t"]


def test_what_the_host_leaves_open_is_rolled_back(engine: Engine) -> None:
    with engine.connect() as connection:
        GoalRepository(connection).create("t", "Ship")
    assert _goals(engine) == []


def test_several_operations_stand_or_fall_together(engine: Engine) -> None:
    class ChangedItsMindError(Exception):
        pass

    def work(*, then_fail: bool) -> None:
        with engine.begin() as connection:
            repository = GoalRepository(connection)
            repository.create("a", "Ship", token_budget=10)
            repository.charge("a", tokens=10)
            repository.create("b", "Ship")
            repository.clear("b")
            if then_fail:
                raise ChangedItsMindError

    with pytest.raises(ChangedItsMindError):
        work(then_fail=True)
    assert _goals(engine) == []
    work(then_fail=False)
    assert [(g.thread_id, g.status) for g in _goals(engine)] == [("a", BUDGET_LIMITED)]


def test_a_refused_call_leaves_what_the_host_did_before_it(engine: Engine) -> None:
    with engine.begin() as connection:
        repository = GoalRepository(connection)
        repository.create("a", "Ship")
        for refused in (
            lambda: repository.create("a", "Another"),
            lambda: repository.set("b", status="paused"),
            lambda: repository.charge("a", tokens=-1),
        ):
            with pytest.raises(RequestError):
                refused()
        repository.create("c", "Ship")
    assert [goal.thread_id for goal in _goals(engine)] == ["a", "c"]


def test_a_savepoint_of_the_host(engine: Engine) -> None:
    with engine.begin() as connection:
        repository = GoalRepository(connection)
        repository.create("kept", "Ship")
        with connection.begin_nested() as savepoint:
            repository.create("dropped", "Ship")
            repository.charge("kept", tokens=5)
            savepoint.rollback()
    assert [(g.thread_id, g.tokens_used) for g in _goals(engine)] == [("kept", 0)]


def test_a_page_of_goals(engine: Engine) -> None:
    with engine.begin() as connection:
        repository = GoalRepository(connection)
        made = [repository.create(f"t{number}", "Ship") for number in range(501)]
        assert repository.goals_page() == made[:500]
        assert repository.goals_page(after=made[499].goal_id) == made[500:]
        assert repository.goals_page(status=ACTIVE, after=made[0].goal_id, limit=2) == made[1:3]
        assert repository.goals_page(limit=0) == []
        for field, value in (("after", "x" * 257), ("limit", -1), ("status", "open")):
            with pytest.raises(InvalidValueError, match=f"^{field}: must"):
                repository.goals_page(**{field: value})


def test_what_is_no_request_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        refused: Any = "create"
        with pytest.raises(InvalidValueError, match=r"^request: must be a request, not str$"):
            GoalRepository(connection).apply(refused)


def test_the_repository_tells_of_each_event_as_it_is_written(engine: Engine) -> None:
    told: list[GoalEvent] = []
    with engine.begin() as connection:
        repository = GoalRepository(connection, on_event=told.append)
        repository.create("t", "Ship", token_budget=5)
        repository.charge("t", tokens=5, turn_id="turn-1")
        assert kinds(told) == [CREATED, ACCOUNTED, STATUS_CHANGED]
    with engine.connect() as connection:
        assert GoalRepository(connection).log.page(0, 100) == told


def test_a_plain_engine_in_memory_stays_its_hosts() -> None:
    """The one connection there is has the host's transactions on it, before and after."""
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE host_notes (id INTEGER PRIMARY KEY)"))
    with GoalStore.open(engine) as store:
        store.create("t", "Ship")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO host_notes DEFAULT VALUES"))
        GoalRepository(connection).charge("t", tokens=5)
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO host_notes DEFAULT VALUES"))
        connection.rollback()
        assert connection.execute(text("SELECT count(*) FROM host_notes")).scalar_one() == 1
        GoalRepository(connection).charge("t", tokens=5)
        connection.rollback()
        assert [goal.tokens_used for goal in GoalRepository(connection).goals_page()] == [5]
    engine.dispose()


def test_modes_are_taken_by_name(subject: Subject) -> None:
    with_status(subject, COMPLETE)
    for mode in (AccountingMode.ACTIVE_OR_COMPLETE, "active_or_complete"):
        assert subject.charge("t", tokens=1, mode=mode).applied
    subject.set_baseline("t", TokenUsage())
    assert subject.record_total("t", TokenUsage(1), seconds=1, mode="active_or_complete").applied


# -- a goal from another store -----------------------------------------------------------------------

TAKEN_OVER = Goal("t", NO_GOAL, "Ship", ACTIVE, 100, 60, 1_500, 1_000, 2_000)
BEGUN = (CREATED, None, ACTIVE, 0, 0, None, 1_000)


def _take_over(engine: Engine, goal: Goal) -> Goal:
    with engine.begin() as connection:
        return GoalRepository(connection).import_goal(goal)


@pytest.mark.parametrize(
    ("changes", "ledger"),
    [
        ({}, [(ACCOUNTED, ACTIVE, ACTIVE, 60, 1_500, 60, 2_000)]),
        ({"tokens_used": 0}, [(ACCOUNTED, ACTIVE, ACTIVE, 0, 1_500, 0, 2_000)]),
        ({"time_used_ms": 0}, [(ACCOUNTED, ACTIVE, ACTIVE, 60, 0, 60, 2_000)]),
        ({"tokens_used": 0, "time_used_ms": 0, "token_budget": None}, []),
        (
            {"tokens_used": 0, "time_used_ms": 0, "status": USAGE_LIMITED, "resume_at_ms": 9_000},
            [(STATUS_CHANGED, ACTIVE, USAGE_LIMITED, 0, 0, None, 2_000)],
        ),
        (
            {"status": BLOCKED, "blocked_reason": "An answer"},
            [
                (ACCOUNTED, ACTIVE, ACTIVE, 60, 1_500, 60, 2_000),
                (STATUS_CHANGED, ACTIVE, BLOCKED, 0, 0, None, 2_000),
            ],
        ),
        (
            {"tokens_used": 100, "status": BUDGET_LIMITED},
            [
                (ACCOUNTED, ACTIVE, BUDGET_LIMITED, 100, 1_500, 100, 2_000),
                (STATUS_CHANGED, ACTIVE, BUDGET_LIMITED, 0, 0, None, 2_000),
            ],
        ),
        (
            {"tokens_used": 150, "status": COMPLETE},
            [
                (ACCOUNTED, ACTIVE, BUDGET_LIMITED, 150, 1_500, 150, 2_000),
                (STATUS_CHANGED, ACTIVE, BUDGET_LIMITED, 0, 0, None, 2_000),
                (STATUS_CHANGED, BUDGET_LIMITED, COMPLETE, 0, 0, None, 2_000),
            ],
        ),
    ],
)
def test_a_goal_is_taken_over_with_the_shortest_ledger_that_leads_there(
    engine: Engine, changes: dict[str, Any], ledger: list[Any]
) -> None:
    goal = replace(TAKEN_OVER, **changes)
    assert _take_over(engine, replace(goal, objective=" Ship ")) == goal
    assert _goals(engine) == [goal]
    with GoalStore.open(engine) as store:
        events = list(store.events())
        assert store.verify() == []
    assert [
        (
            event.kind,
            event.previous_status,
            event.goal_status,
            event.tokens_delta,
            event.time_delta_ms,
            event.cumulative_tokens,
            event.occurred_at_ms,
        )
        for event in events
    ] == [BEGUN, *ledger]
    assert {(e.turn_id, e.idempotency_key, e.token_budget) for e in events} == {
        (None, None, goal.token_budget)
    }


def test_a_goal_is_not_taken_over_where_there_is_one_nor_twice(engine: Engine) -> None:
    _take_over(engine, replace(TAKEN_OVER, tokens_used=0, time_used_ms=0))
    with GoalStore.open(engine) as store:
        before = list(store.events())
        with pytest.raises(GoalExistsError, match=f"^thread 't' has goal {NO_GOAL} already"):
            _take_over(engine, replace(TAKEN_OVER, goal_id=NO_GOAL[:-1] + "1"))
        assert list(store.events()) == before
        store.replace("t", "Another")  # what is left of the first is one event, the first there is
        after = list(store.events())
        with pytest.raises(GoalExistsError, match=f"^there was a goal {NO_GOAL} before"):
            _take_over(engine, replace(TAKEN_OVER, thread_id="u"))
        assert list(store.events()) == after


def test_what_cannot_be_a_goal_is_not_taken_over(engine: Engine) -> None:
    with pytest.raises(InvalidValueError, match="tokens_used: must be 0 or more"):
        _take_over(engine, replace(TAKEN_OVER, tokens_used=-1))
    assert _goals(engine) == []
