"""What is known from elsewhere of a thread's usage, and what is remembered of a charge."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from goal_state import (
    Charge,
    Goal,
    GoalStatus,
    GoalStore,
    IdempotencyConflictError,
    InvalidValueError,
    ThreadUsage,
    TokenUsage,
    UsageBaseline,
)
from goal_state.domain.requests import ChargeMany

WINDOW = 258_400


def goal_of(store: GoalStore, thread_id: str = "t") -> Goal:
    goal = store.get(thread_id)
    assert goal is not None
    return goal


def total_of(store: GoalStore) -> int:
    usage = store.usage("t")
    assert usage is not None
    return usage.total.input_tokens


def charges(store: GoalStore) -> list[tuple[str, int, str | None]]:
    return [(e.goal_id, e.tokens_delta, e.turn_id) for e in store.events() if e.cumulative_tokens]


def test_the_first_total_of_a_thread_becomes_its_baseline(store: GoalStore) -> None:
    goal = store.create("t", "work")
    accounting = store.reconcile("t", TokenUsage(100), turn_id="turn-1")
    assert (accounting.goal, accounting.applied) == (goal, False)
    usage = store.usage("t")
    assert usage is not None
    assert (usage.total, usage.turn_id) == (TokenUsage(100), "turn-1")
    assert charges(store) == []


def test_the_difference_is_charged_once_to_the_goal_of_that_time(store: GoalStore) -> None:
    goal = store.create("t", "work")
    store.set_baseline("t", TokenUsage(100), turn_id="turn-1")
    accounting = store.reconcile("t", TokenUsage(130, 10))
    assert accounting.applied
    assert accounting.goal == goal_of(store)
    assert not store.reconcile("t", TokenUsage(130, 10)).applied
    store.reconcile("t", TokenUsage(135, 10), turn_id="turn-2")
    assert charges(store) == [(goal.goal_id, 20, "turn-1"), (goal.goal_id, 5, "turn-2")]
    usage = store.usage("t")
    assert usage is not None
    assert usage.turn_id == "turn-2"
    assert store.verify() == []


def test_a_lower_total_changes_nothing(store: GoalStore) -> None:
    goal = store.create("t", "work")
    store.set_baseline("t", TokenUsage(100), turn_id="turn-1")
    before = store.usage("t")
    accounting = store.reconcile("t", TokenUsage(99), turn_id="turn-2")
    assert (accounting.goal, accounting.applied) == (goal, False)
    assert store.usage("t") == before
    assert charges(store) == []


def test_an_equal_total_with_a_window_is_kept(store: GoalStore) -> None:
    store.set_baseline("t", TokenUsage(100), turn_id="turn-1")
    store.reconcile("t", ThreadUsage(TokenUsage(100), TokenUsage(7), WINDOW))
    usage = store.usage("t")
    assert usage is not None
    assert (usage.last, usage.model_context_window, usage.turn_id) == (
        TokenUsage(7),
        WINDOW,
        "turn-1",
    )


@pytest.mark.parametrize("end", ["replace", "clear"])
def test_a_goal_of_a_later_time_does_not_pay(store: GoalStore, end: str) -> None:
    store.create("t", "work")
    store.set_baseline("t", TokenUsage(100))
    if end == "replace":
        store.replace("t", "other work")
    else:
        store.clear("t")
    accounting = store.reconcile("t", TokenUsage(150))
    assert (accounting.goal, accounting.applied) == (store.get("t"), False)
    assert total_of(store) == 150
    assert charges(store) == []
    if end == "replace":  # what comes on top of it now is used in its time
        assert store.reconcile("t", TokenUsage(151)).applied
        assert goal_of(store).tokens_used == 1


def test_without_a_goal_nobody_pays(store: GoalStore) -> None:
    store.set_baseline("t", TokenUsage(100))
    store.create("t", "work")
    assert not store.reconcile("t", TokenUsage(150)).applied
    assert goal_of(store).tokens_used == 0


def test_a_paused_goal_does_not_pay(store: GoalStore) -> None:
    store.create("t", "work", status="paused")
    store.set_baseline("t", TokenUsage(100))
    assert not store.reconcile("t", TokenUsage(150)).applied
    assert total_of(store) == 150


@pytest.mark.parametrize("how", ["set_baseline", "record_total"])
def test_a_repeated_total_is_of_the_time_in_which_it_is_repeated(
    store: GoalStore, how: str
) -> None:
    store.set_baseline("t", TokenUsage(100), turn_id="turn-1")
    store.create("t", "work")
    getattr(store, how)("t", TokenUsage(100))
    assert store.reconcile("t", TokenUsage(150)).applied
    assert charges(store) == [(goal_of(store).goal_id, 50, "turn-1")]


@pytest.mark.parametrize("how", ["set_baseline", "record_total"])
def test_a_repeated_total_takes_the_turn_that_is_named(store: GoalStore, how: str) -> None:
    usage = ThreadUsage(TokenUsage(100), TokenUsage(3), WINDOW, "turn-1")
    store.set_baseline("t", usage)
    getattr(store, how)("t", TokenUsage(100))
    assert store.usage("t") == usage
    getattr(store, how)("t", TokenUsage(100), turn_id="turn-2")
    assert store.usage("t") == replace(usage, turn_id="turn-2")


def test_the_last_part_is_found_where_it_is_not_given(store: GoalStore) -> None:
    store.set_baseline("t", ThreadUsage(TokenUsage(100), TokenUsage(3), WINDOW))
    store.set_baseline("t", TokenUsage(140, 5))
    assert store.usage("t") == ThreadUsage(TokenUsage(140, 5), TokenUsage(40, 5), WINDOW)


# -- a charge that is repeated -----------------------------------------------------------------------


def test_a_repeat_shows_the_goal_as_the_first_charge_left_it(store: GoalStore) -> None:
    store.create("t", "work", token_budget=100)
    first = store.charge("t", tokens=10, seconds=1, idempotency_key="k")
    store.charge("t", tokens=5, seconds=2)
    store.set("t", token_budget=90, status="usage_limited", resume_at=datetime.now(UTC))
    repeat = store.charge("t", tokens=10, seconds=1, idempotency_key="k")
    assert repeat.goal == first.goal
    assert (repeat.applied, repeat.duplicate) == (True, True)
    store.set("t", status="blocked", blocked_reason="waits")
    assert store.charge("t", tokens=10, seconds=1, idempotency_key="k").goal == first.goal


def test_a_repeat_is_one_whatever_seconds_were_measured_for_it(store: GoalStore) -> None:
    store.create("t", "work")
    first = store.charge("t", tokens=10, seconds=1.25, idempotency_key="k")
    for seconds in (1.25, 0, 3.5):
        repeat = store.charge("t", tokens=10, seconds=seconds, idempotency_key="k")
        assert (repeat.goal, repeat.applied, repeat.duplicate) == (first.goal, True, True)
        [repeat] = store.charge_many([Charge("t", tokens=10, seconds=seconds, idempotency_key="k")])
        assert (repeat.goal, repeat.duplicate) == (first.goal, True)
    new = [Charge("t", tokens=7, seconds=s, idempotency_key="m") for s in (1, 2)]
    assert [a.duplicate for a in store.charge_many(new)] == [False, True]
    goal = goal_of(store)
    assert (goal.tokens_used, goal.time_used_ms) == (17, 2_250)


@pytest.mark.parametrize("many", [False, True])
def test_other_tokens_under_a_key_are_refused_in_words_that_make_nobody_pay_twice(
    store: GoalStore, *, many: bool
) -> None:
    store.create("t", "work")
    store.charge("t", tokens=10, idempotency_key="k")
    charge = Charge("t", tokens=11, idempotency_key="k")
    with pytest.raises(IdempotencyConflictError) as caught:
        store.apply(ChargeMany([charge]) if many else charge)
    words = str(caught.value)
    assert "has charged 10 tokens in thread 't', and that stands" in words
    assert "the 11 of this call were not charged" in words
    assert not re.search(r"new|another|other|different", words)
    assert goal_of(store).tokens_used == 10


def test_a_repeat_in_the_same_status_shows_why_the_goal_waits(store: GoalStore) -> None:
    store.create("t", "work")
    store.set("t", status="blocked", blocked_reason="waits")
    mode = "active_or_stopped"
    first = store.charge("t", tokens=1, mode=mode, idempotency_key="k")
    repeat = store.charge("t", tokens=1, mode=mode, idempotency_key="k")
    assert repeat.goal == first.goal
    assert repeat.goal is not None
    assert (repeat.goal.status, repeat.goal.blocked_reason) == (GoalStatus.BLOCKED, "waits")


def test_a_repeat_in_a_batch_is_one_too(store: GoalStore) -> None:
    store.create("t", "work")
    first = store.charge("t", tokens=10, idempotency_key="k")
    store.charge("t", tokens=1)
    assert store.charge("t", tokens=10, idempotency_key="k").goal == first.goal
    store.replace("t", "other work")
    gone = store.charge("t", tokens=10, idempotency_key="k")
    assert (gone.goal, gone.applied, gone.duplicate) == (None, True, True)


# -- errors name their field -------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["get", "usage", "verify"])
def test_reading_names_the_field(store: GoalStore, call: str) -> None:
    with pytest.raises(InvalidValueError) as error:
        getattr(store, call)("")
    assert error.value.field == "thread_id"


def test_a_naive_time_names_the_field(store: GoalStore) -> None:
    with pytest.raises(InvalidValueError, match="resume_at: must be aware"):
        store.set("t", status="usage_limited", resume_at=datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(InvalidValueError, match="resume_at: must be a datetime, not str"):
        store.set("t", status="usage_limited", resume_at="2030-01-01")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="resume_at: goes with status usage_limited only"):
        store.set("t", status="paused", resume_at=datetime.now(UTC))


def test_an_unknown_kind_lists_the_known_ones(store: GoalStore) -> None:
    with pytest.raises(
        InvalidValueError,
        match=r"^kinds: must be among created, usage_accounted, status_changed, cleared,"
        r" budget_changed, threshold_crossed, is 'made'$",
    ):
        store.subscribe(print, kinds=["made"])
    with pytest.raises(InvalidValueError, match=r"is int$"):
        store.subscribe(print, kinds=[5])  # type: ignore[list-item]
    with pytest.raises(
        InvalidValueError,
        match=r"^status: must be one of active, paused, blocked, usage_limited, budget_limited,"
        r" complete, is 'done'$",
    ):
        store.count("done")
    with pytest.raises(InvalidValueError, match=r"^mode: must be one of .*, is 'all'$"):
        store.charge("t", mode="all")
    with pytest.raises(InvalidValueError, match=r"^status: must be one of .*, is int$"):
        store.count(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match=r"^tokens: must be an int, not str$"):
        store.charge("t", tokens="5")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match=r"^tokens: must be 0 or more, is -5$"):
        store.charge("t", tokens=-5)
    with pytest.raises(InvalidValueError, match=r"^total: must be a TokenUsage$"):
        ThreadUsage(5, TokenUsage())  # type: ignore[arg-type]


# -- why a goal waits --------------------------------------------------------------------------------


def test_a_goal_can_be_made_waiting(store: GoalStore) -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    limited = store.set("t", objective="work", status="usage_limited", resume_at=moment)
    assert store.get("t") == limited
    assert limited.resume_at == moment
    blocked = store.set("u", objective="work", status="blocked", blocked_reason="waits")
    assert store.get("u") == blocked
    assert blocked.blocked_reason == "waits"


def test_a_budget_limited_goal_that_is_not_blocked_has_no_reason(store: GoalStore) -> None:
    store.create("t", "work", status="budget_limited")
    goal = store.set("t", status="blocked", blocked_reason="waits")
    assert (goal.status, goal.blocked_reason) == (GoalStatus.BUDGET_LIMITED, None)


def test_a_repeat_shows_when_a_limit_ends(store: GoalStore) -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    store.set("t", objective="work", status="usage_limited", resume_at=moment)
    mode = "active_or_stopped"
    first = store.charge("t", tokens=1, mode=mode, idempotency_key="k")
    repeat = store.charge("t", tokens=1, mode=mode, idempotency_key="k")
    assert repeat.goal == first.goal
    assert repeat.goal is not None
    assert repeat.goal.resume_at == moment


def test_a_change_moves_the_time_of_the_last_one(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = store.create("t", "work")
    monkeypatch.setattr("goal_state.storage.wall_clock.now_ms", lambda: created.created_at_ms + 5)
    assert store.set("t", objective="more").updated_at_ms == created.created_at_ms + 5
    monkeypatch.setattr("goal_state.storage.wall_clock.now_ms", lambda: created.created_at_ms - 5)
    assert store.set("t", objective="less").updated_at_ms == created.created_at_ms + 5


# -- totals ------------------------------------------------------------------------------------------


def baseline_of(store: GoalStore, thread_id: str = "t") -> UsageBaseline | None:
    return store.transact(lambda repository: repository.baseline(thread_id))


@pytest.mark.parametrize("how", ["set_baseline", "record_total"])
def test_each_fall_of_a_total_begins_a_count_of_the_next_number(store: GoalStore, how: str) -> None:
    store.create("t", "work")
    assert baseline_of(store) is None
    for total, number in ((100, 0), (130, 0), (20, 1), (20, 1), (120, 1), (119, 2), (0, 3)):
        getattr(store, how)("t", TokenUsage(total), turn_id=f"turn-{number}")
        baseline = baseline_of(store)
        assert baseline is not None
        assert (baseline.total, baseline.epoch) == (TokenUsage(total), number)
    store.reconcile("t", TokenUsage(50))
    before = baseline_of(store)
    store.reconcile("t", TokenUsage(40))
    assert baseline_of(store) == before
    assert before is not None
    assert (before.total, before.epoch) == (TokenUsage(50), 3)


def test_a_baseline_knows_whose_it_is(store: GoalStore) -> None:
    store.set_baseline("t", ThreadUsage(TokenUsage(100), TokenUsage(7), WINDOW))
    assert baseline_of(store) == UsageBaseline(TokenUsage(100), WINDOW, None, None, 0)
    goal = store.create("t", "work")
    store.record_total("t", TokenUsage(100), turn_id="turn-1")
    assert baseline_of(store) == UsageBaseline(TokenUsage(100), WINDOW, "turn-1", goal.goal_id, 0)
    other = store.replace("t", "other work")
    store.record_total("t", TokenUsage(100))
    assert baseline_of(store) == UsageBaseline(TokenUsage(100), WINDOW, "turn-1", other.goal_id, 0)
    assert baseline_of(store, "u") is None
    with pytest.raises(InvalidValueError, match=r"^thread_id: must have 1 to 256 characters"):
        baseline_of(store, "")


def test_a_total_is_lower_by_what_goes_in_and_out_together(store: GoalStore) -> None:
    store.create("t", "work")
    store.set_baseline("t", TokenUsage(100, output_tokens=50), turn_id="turn-1")
    # Less in all, though more came out: a new count, which charges nothing.
    assert not store.record_total("t", TokenUsage(10, output_tokens=60), turn_id="turn-2").applied
    assert charges(store) == []
    assert store.record_total("t", TokenUsage(12, output_tokens=60)).applied
    usage = store.usage("t")
    assert usage is not None
    assert usage.turn_id == "turn-2"


def test_the_providers_own_total_is_kept() -> None:
    responses = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 9}
    assert TokenUsage.of(responses).total_tokens == 9
