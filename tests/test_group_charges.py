"""Charges of several callers that one transaction carries out together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from goal_state import GoalStore
from goal_state.domain.requests import Charge
from goal_state.errors import (
    ClaimOvertakenError,
    GoalNotFoundError,
    IdempotencyConflictError,
    RequestError,
    UsageOverflowError,
)
from goal_state.storage import wall_clock
from goal_state.storage.backend import Outcome
from goal_state.storage.repository import GoalRepository


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GoalStore]:
    with GoalStore.open(tmp_path / "goals.db", durability="normal") as store:
        yield store
        assert not store.verify()


def _together(store: GoalStore, *requests: Charge) -> list[Outcome]:
    return store.carry_out_together([store.work_of(request) for request in requests])


def _charged(store: GoalStore) -> list[tuple[str, int, int | None]]:
    return [
        (event.thread_id, event.tokens_delta, event.cumulative_tokens)
        for event in store.events()
        if event.kind == "usage_accounted"
    ]


def _errors(outcomes: Sequence[Outcome]) -> list[type[BaseException] | None]:
    return [None if error is None else type(error) for _, error in outcomes]


def test_charges_of_a_group_have_the_results_and_events_of_charges_one_by_one(
    store: GoalStore,
) -> None:
    store.create("a", "Ship", token_budget=10)
    store.create("b", "Ship")
    outcomes = _together(
        store,
        Charge("a", tokens=4),
        Charge("b", tokens=1),
        Charge("a", tokens=6),
        Charge("missing", tokens=1),
        Charge("a", tokens=1),
    )
    assert _errors(outcomes) == [None] * 5
    goals = [outcome.result.goal for outcome in outcomes]
    assert [goal and (goal.tokens_used, goal.status.value) for goal in goals] == [
        (4, "active"),
        (1, "active"),
        (10, "budget_limited"),
        None,
        (11, "budget_limited"),
    ]
    assert goals[4] == store.get("a")
    assert _charged(store) == [("a", 4, 4), ("b", 1, 1), ("a", 6, 10), ("a", 1, 11)]
    assert [e.kind.value for e in store.events(thread_id="a")][-3:] == [
        "usage_accounted",
        "status_changed",
        "usage_accounted",
    ]


def test_a_key_repeated_within_a_group_charges_once(store: GoalStore) -> None:
    store.create("a", "Ship")
    first, again, other = _together(
        store,
        Charge("a", tokens=4, idempotency_key="k"),
        Charge("a", tokens=4, idempotency_key="k"),
        Charge("a", tokens=5, idempotency_key="k"),
    )
    assert first.result.applied
    assert not first.result.duplicate
    assert again.result.duplicate
    assert again.result.goal == first.result.goal
    assert isinstance(other.error, IdempotencyConflictError)
    assert _charged(store) == [("a", 4, 4)]


def test_charges_that_are_refused_leave_the_others_of_their_group_alone(store: GoalStore) -> None:
    store.create("a", "Ship")
    store.create("b", "Ship")
    store.charge("b", tokens=2**63 - 10)
    outcomes = _together(
        store,
        Charge("a", tokens=1),
        Charge("b", tokens=20),
        Charge("a", tokens=2, claim=7),
        Charge("b", tokens=3),
        Charge("a", tokens=4),
    )
    assert _errors(outcomes) == [None, UsageOverflowError, ClaimOvertakenError, None, None]
    assert _charged(store)[1:] == [("a", 1, 1), ("b", 3, 2**63 - 7), ("a", 4, 5)]


def test_a_charge_that_an_ancestor_cannot_take_changes_nothing_of_its_group(
    store: GoalStore,
) -> None:
    store.create("top", "Ship")
    store.create("child", "Ship", parent="top")
    store.charge("top", tokens=2**63 - 10)
    outcomes = _together(
        store,
        Charge("child", tokens=20, idempotency_key="k"),
        Charge("child", tokens=1, idempotency_key="k"),
        Charge("top", tokens=1),
    )
    assert _errors(outcomes) == [UsageOverflowError, None, None]
    assert _charged(store)[1:] == [
        ("child", 1, 1),
        ("top", 1, 2**63 - 9),
        ("top", 1, 2**63 - 8),
    ]


def test_children_of_one_goal_charged_together_add_up_in_it(store: GoalStore) -> None:
    store.create("top", "Ship", token_budget=6)
    for name in ("a", "b", "c"):
        store.create(name, "Ship", parent="top")
    outcomes = _together(store, *(Charge(name, tokens=2) for name in ("a", "b", "c")))
    assert _errors(outcomes) == [None] * 3
    top = store.get("top")
    assert top is not None
    assert (top.tokens_used, top.status.value) == (6, "budget_limited")


def test_a_hold_that_is_due_is_charged_before_the_charges_of_its_tree(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("top", "Ship")
    store.create("a", "Ship", parent="top")
    store.create("b", "Ship", parent="top")
    store.reserve("b", tokens=100, expires_in=1)
    later = wall_clock.now_ms() + 10_000
    monkeypatch.setattr(wall_clock, "now_ms", lambda: later)
    outcomes = _together(
        store, Charge("top", tokens=1), Charge("a", tokens=2), Charge("b", tokens=4)
    )
    assert _errors(outcomes) == [None] * 3
    totals = {name: goal and goal.tokens_used for name in "ab" for goal in [store.get(name)]}
    assert totals == {"a": 2, "b": 104}
    top = store.get("top")
    assert top is not None
    assert (top.tokens_used, top.live_holds) == (107, 0)


def test_a_refusal_that_wrote_nothing_does_not_undo_its_group(store: GoalStore) -> None:
    store.create("a", "Ship")
    ran: list[int] = []

    def charge(repository: GoalRepository) -> None:
        ran.append(repository.charge("a", tokens=1).goal is not None)

    def refuse(repository: GoalRepository) -> None:
        ran.append(0)
        repository.set("missing", status="paused")

    outcomes = store.carry_out_together([charge, refuse, charge])
    assert _errors(outcomes) == [None, GoalNotFoundError, None]
    assert ran == [1, 0, 1]
    assert _charged(store) == [("a", 1, 1), ("a", 1, 2)]


def test_a_request_that_fails_after_it_wrote_is_undone_and_the_others_are_made(
    store: GoalStore,
) -> None:
    store.create("a", "Ship")

    def fail_late(repository: GoalRepository) -> None:
        repository.charge("a", tokens=1_000)
        raise RequestError("too late")

    outcomes = store.carry_out_together(
        [
            store.work_of(Charge("a", tokens=1)),
            store.work_of(Charge("a", tokens=2)),
            fail_late,
            store.work_of(Charge("a", tokens=4)),
            store.work_of(Charge("a", tokens=8)),
        ]
    )
    assert _errors(outcomes) == [None, None, RequestError, None, None]
    assert _charged(store) == [("a", 1, 1), ("a", 2, 3), ("a", 4, 7), ("a", 8, 15)]


def test_listeners_hear_the_charges_of_a_group_in_order(store: GoalStore) -> None:
    store.create("a", "Ship")
    store.create("b", "Ship")
    heard: list[tuple[str, int]] = []
    with store.subscribe(lambda event: heard.append((event.thread_id, event.position))):
        _together(store, *(Charge(name, tokens=1) for name in "abba"))
    assert [name for name, _ in heard] == list("abba")
    positions = [position for _, position in heard]
    assert positions == [event.position for event in store.events()][-4:]


# -- goals that are known from the transaction before ---------------------------------------------


def _used(store: GoalStore, thread_id: str) -> int | None:
    goal = store.charge(thread_id, tokens=1).goal
    return None if goal is None else goal.tokens_used


def test_a_charge_adds_to_what_another_store_has_charged_meanwhile(
    store: GoalStore, tmp_path: Path
) -> None:
    store.create("a", "Ship")
    with GoalStore.open(tmp_path / "goals.db", durability="normal") as other:
        for expected in range(1, 20, 2):
            assert _used(store, "a") == expected
            assert _used(other, "a") == expected + 1


def test_a_charge_finds_the_goal_that_another_store_has_put_in_its_place(
    store: GoalStore, tmp_path: Path
) -> None:
    store.create("a", "Ship")
    _used(store, "a")
    with GoalStore.open(tmp_path / "goals.db", durability="normal") as other:
        other.replace("a", "Ship again")
        assert _used(store, "a") == 1
        other.clear("a")
        assert _used(store, "a") is None


def test_a_charge_sees_what_the_hosts_own_transaction_has_changed(store: GoalStore) -> None:
    store.create("a", "Ship")
    _used(store, "a")
    store.transact(lambda repository: repository.charge("a", tokens=10))
    assert _used(store, "a") == 12
    with store.transaction() as repository:
        repository.replace("a", "Ship again")
    assert _used(store, "a") == 1


def test_a_charge_sees_nothing_of_a_change_that_was_rolled_back(store: GoalStore) -> None:
    store.create("a", "Ship")
    _used(store, "a")

    def fail_late(repository: GoalRepository) -> None:
        repository.charge("a", tokens=1_000)
        raise RequestError("too late")

    assert _errors(store.carry_out_together([fail_late])) == [RequestError]
    assert _used(store, "a") == 2
    with pytest.raises(RequestError, match="too late"):
        store.transact(fail_late)
    assert _used(store, "a") == 3


def test_a_charge_after_a_restore_adds_to_what_was_restored(
    store: GoalStore, tmp_path: Path
) -> None:
    store.create("a", "Ship")
    _used(store, "a")
    store.backup(tmp_path / "copy.db")
    _used(store, "a")
    store.restore(tmp_path / "copy.db")
    assert _used(store, "a") == 2


def test_a_charge_of_a_goal_among_more_than_are_kept_adds_to_what_is_stored(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goal_state.storage.known_goals._MOST", 3)
    names = [f"thread-{number}" for number in range(7)]
    for name in names:
        store.create(name, "Ship")
    for expected in (1, 2, 3):
        assert [_used(store, name) for name in names] == [expected] * len(names)
