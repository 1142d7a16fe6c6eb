"""What a store does around its transactions: prices before them, what time has made true after a refusal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from goal_state import (
    BudgetExhaustedError,
    Charge,
    EventKind,
    GoalExistsError,
    GoalNotFoundError,
    GoalRepository,
    GoalStatus,
    GoalStore,
    RequestError,
    StaleGoalError,
    TokenUsage,
)
from goal_state.testing.contract.subjects import NO_GOAL, set_clock

DUE = datetime(2100, 1, 1, tzinfo=UTC)
DUE_MS = 4_102_444_800_000


@pytest.mark.parametrize(
    "charge",
    [
        lambda store: store.charge("t", TokenUsage(5)),
        lambda store: store.charge_many([Charge("t", TokenUsage(5))]),
    ],
    ids=["charge", "charge_many"],
)
def test_prices_are_asked_before_the_transaction_on_the_callers_thread(
    path: Path, charge: Callable[[GoalStore], object]
) -> None:
    asked: list[int] = []

    def prices(_usage: TokenUsage, _model: str | None) -> Decimal:
        asked.append(threading.get_ident())
        store.create(f"made while {len(asked)} was priced", "Ship")  # refused in a transaction
        return Decimal(2)

    with GoalStore.open(path, durability="normal", prices=prices) as store:
        store.create("t", "Ship")
        charge(store)
        assert asked == [threading.get_ident()]
        goal = store.get("t")
        assert goal is not None
        assert (goal.cost_used, goal.unpriced_tokens, store.count()) == (2, 0, 2)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda store: store.create("t", "Another"), GoalExistsError),
        (lambda store: store.set("t", objective="x", expected_goal_id=NO_GOAL), StaleGoalError),
        (lambda store: store.resume("t"), BudgetExhaustedError),
        (lambda store: store.replace("t", "Another", parent="nobody"), GoalNotFoundError),
    ],
    ids=["create", "set", "resume", "replace"],
)
def test_a_refused_call_commits_the_deadline_that_it_noticed_and_nothing_else(
    store: GoalStore,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[GoalStore], Any],
    error: type[RequestError],
) -> None:
    goal = store.create("t", "Ship", deadline=DUE)
    set_clock(monkeypatch, DUE_MS)
    with pytest.raises(error):
        call(store)
    limited = store.get("t")
    assert limited is not None
    assert (limited.status, limited.exhausted) == (GoalStatus.BUDGET_LIMITED, ("deadline",))
    assert (limited.goal_id, limited.objective, limited.deadline) == (goal.goal_id, "Ship", DUE)
    assert [event.kind for event in store.events()] == [
        EventKind.CREATED,
        EventKind.STATUS_CHANGED,
    ]
    assert store.verify() == []


def test_a_refused_call_in_a_transaction_leaves_the_deadline_to_its_end(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("t", "Ship", deadline=DUE)
    set_clock(monkeypatch, DUE_MS)

    def work(repository: GoalRepository) -> None:
        with pytest.raises(GoalExistsError):
            repository.create("t", "Another")

    store.transact(work)
    limited = store.get("t")
    assert limited is not None
    assert limited.status is GoalStatus.BUDGET_LIMITED
    assert store.verify() == []
