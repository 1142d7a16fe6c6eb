"""Charging where it could go wrong: at the bounds, on repeats, in every status and mode."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from goal_state import (
    Accounting,
    AccountingMode,
    EventKind,
    Goal,
    GoalStatus,
    GoalStore,
    IdempotencyConflictError,
    InvalidValueError,
    ThreadUsage,
    TokenUsage,
    UsageOverflowError,
)
from tests.databases import Rows, rows

ACTIVE, PAUSED, BLOCKED, USAGE_LIMITED, BUDGET_LIMITED, COMPLETE = GoalStatus
LARGEST = 2**63 - 1


@pytest.fixture(autouse=True)
def _verified(store: GoalStore) -> Any:
    yield
    assert store.verify() == []


def tables(path: Path) -> Rows:
    with closing(sqlite3.connect(path)) as connection:
        return rows(connection)


def goal_of(store: GoalStore, thread_id: str = "t") -> Goal:
    goal = store.get(thread_id)
    assert goal is not None
    return goal


def used(store: GoalStore) -> int:
    return goal_of(store).tokens_used


def changes(store: GoalStore) -> list[tuple[str, str, int | None]]:
    """The events after the first: kind, status, cumulative tokens."""
    return [(e.kind, e.goal_status, e.cumulative_tokens) for e in store.events(after=1)]


# -- the budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "status", "remaining"),
    [(99, ACTIVE, 1), (100, BUDGET_LIMITED, 0), (101, BUDGET_LIMITED, 0)],
)
def test_one_below_the_budget_exactly_it_and_one_above(
    store: GoalStore, tokens: int, status: GoalStatus, remaining: int
) -> None:
    store.create("t", "Ship", token_budget=100)
    goal = store.charge("t", tokens=tokens).goal
    assert goal is not None
    assert (goal.status, goal.tokens_used, goal.remaining_tokens) == (status, tokens, remaining)
    flipped = [("status_changed", status, None)] * (status is BUDGET_LIMITED)
    assert changes(store) == [("usage_accounted", status, tokens), *flipped]


def test_the_budget_is_reached_in_steps(store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=3)
    for _ in range(5):
        store.charge("t", tokens=1)
    assert changes(store) == [
        ("usage_accounted", "active", 1),
        ("usage_accounted", "active", 2),
        ("usage_accounted", "budget_limited", 3),
        ("status_changed", "budget_limited", None),
        ("usage_accounted", "budget_limited", 4),
        ("usage_accounted", "budget_limited", 5),
    ]


def test_seconds_alone_do_not_touch_the_budget(store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=1)
    assert store.charge("t", seconds=1e6).goal == goal_of(store)
    assert goal_of(store).status is ACTIVE


# -- bounds of the amounts ---------------------------------------------------------------------------


def test_the_largest_charge_is_kept_exactly(store: GoalStore) -> None:
    store.create("t", "Ship")
    goal = store.charge("t", tokens=LARGEST).goal
    assert goal is not None
    assert goal.tokens_used == used(store) == LARGEST
    assert [e.cumulative_tokens for e in store.events(after=1)] == [LARGEST]


def test_the_largest_budget_is_reached_exactly(store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=LARGEST)
    store.charge("t", tokens=LARGEST - 1)
    assert (goal_of(store).status, goal_of(store).remaining_tokens) == (ACTIVE, 1)
    store.charge("t", tokens=1)
    assert (goal_of(store).status, goal_of(store).remaining_tokens) == (BUDGET_LIMITED, 0)


@pytest.mark.parametrize(
    ("charge", "problem"),
    [
        ({"tokens": 1}, f"tokens: {LARGEST} used and 1 more would be 2^63 or more"),
        ({"tokens": LARGEST}, f"tokens: {LARGEST} used and {LARGEST} more would be 2^63 or more"),
        ({"seconds": 0.001}, "seconds: the goal's time would be 2^63 milliseconds or more"),
    ],
)
def test_an_overflow_is_an_error_and_changes_nothing(
    store: GoalStore, database: Path, charge: dict[str, Any], problem: str
) -> None:
    store.create("t", "Ship")
    store.charge("t", tokens=LARGEST)
    for seconds in (2**62 // 1000, 2**62 // 1000, 1.807):  # floats are not that exact
        store.charge("t", seconds=seconds)
    assert goal_of(store).time_used_ms == LARGEST

    before = tables(database)
    with pytest.raises(UsageOverflowError) as caught:
        store.charge("t", **charge, idempotency_key="k")
    assert str(caught.value) == problem
    assert tables(database) == before
    assert issubclass(UsageOverflowError, InvalidValueError)


def test_an_overflow_by_cumulative_usage_moves_no_baseline(
    store: GoalStore, database: Path
) -> None:
    store.create("t", "Ship")
    store.charge("t", tokens=LARGEST)
    store.set_baseline("t", TokenUsage(), turn_id="turn-1")
    before = tables(database)
    with pytest.raises(UsageOverflowError):
        store.record_total("t", TokenUsage(1), turn_id="turn-2")
    assert tables(database) == before


def test_an_overflow_that_no_status_accepts_is_none(store: GoalStore) -> None:
    store.create("t", "Ship")
    store.charge("t", tokens=LARGEST)
    store.set("t", status=PAUSED)
    assert not store.charge("t", tokens=1).applied


def test_cumulative_usage_whose_sum_is_beyond_an_integer(store: GoalStore) -> None:
    """Each count fits; what a goal would pay for both does not."""
    store.create("t", "Ship")
    store.set_baseline("t", TokenUsage())
    with pytest.raises(UsageOverflowError):
        store.record_total("t", TokenUsage(LARGEST, 0, 0, LARGEST, 0, 0))
    assert used(store) == 0


def test_zero_tokens_and_zero_seconds_change_nothing(store: GoalStore, database: Path) -> None:
    goal = store.create("t", "Ship")
    before = tables(database)
    assert store.charge("t") == Accounting(goal, applied=False)
    assert store.charge("t", tokens=0, seconds=0.0, turn_id="turn-1").applied is False
    assert tables(database) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", True),
        ("tokens", False),
        ("tokens", 1.0),
        ("tokens", -1),
        ("tokens", LARGEST + 1),
        ("tokens", None),
        ("tokens", "1"),
        ("seconds", True),
        ("seconds", False),
        ("seconds", -0.0001),
        ("seconds", float("nan")),
        ("seconds", float("inf")),
        ("seconds", float("-inf")),
        ("seconds", "1"),
        ("seconds", 1e16),
        ("seconds", 1e19),
        ("seconds", 1e308),
        ("seconds", 10**400),
        ("seconds", 1 + 0j),
    ],
)
def test_what_is_no_amount_is_refused(
    store: GoalStore, database: Path, field: str, value: Any
) -> None:
    store.create("t", "Ship")
    before = tables(database)
    with pytest.raises(InvalidValueError, match=f"^{field}: must be"):
        store.charge("t", **{field: value})
    assert tables(database) == before


class Tokens(int):
    """As some libraries give counts: an int of their own."""

    def __str__(self) -> str:
        return "many"


class Seconds(float):
    """As some libraries give times: a float of their own."""

    def __mul__(self, other: object) -> float:
        return 0.0


def test_an_int_or_a_float_of_another_class_counts_as_what_it_is(store: GoalStore) -> None:
    store.create("t", "Ship")
    store.charge("t", tokens=Tokens(7), seconds=Seconds(1.5))
    assert (used(store), goal_of(store).time_used_ms) == (7, 1500)
    assert type(goal_of(store).tokens_used) is int
    store.charge("t", tokens=Tokens(0), seconds=Seconds(0.5))
    store.charge("t", tokens=Tokens(1), seconds=Seconds(0))
    assert (used(store), goal_of(store).time_used_ms) == (8, 2000)
    store.charge("t", tokens=Tokens(LARGEST - 8), seconds=Tokens(0))
    assert used(store) == LARGEST


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [
        (0.0004, 0),
        (0.0006, 1),
        (1e-9, 0),
        (5e-324, 0),
        (3.2, 3200),
        (1.0005, 1000),
        (0.0015, 2),
        (7, 7000),
        (1e12, 10**15),
        (LARGEST // 1000, LARGEST // 1000 * 1000),
        (-0.0, 0),
    ],
)
def test_seconds_are_kept_to_the_millisecond(
    store: GoalStore, seconds: float, milliseconds: int
) -> None:
    store.create("t", "Ship")
    result = store.charge("t", seconds=seconds)
    assert result.applied is (milliseconds > 0)
    assert goal_of(store).time_used_ms == milliseconds
    assert goal_of(store).time_used_seconds == milliseconds // 1000
    assert [e.time_delta_ms for e in store.events(after=1)] == [milliseconds] * result.applied


def test_a_thousand_small_times_lose_nothing(store: GoalStore) -> None:
    store.create("t", "Ship")
    store.transact(lambda r: [r.charge("t", seconds=0.001) for _ in range(1000)])
    assert goal_of(store).time_used_ms == 1000


# -- whose charge it is ------------------------------------------------------------------------------


@pytest.mark.parametrize("took_its_place", ["replace", "clear", "create"])
def test_an_old_turn_never_pays_into_a_new_goal(
    store: GoalStore, database: Path, took_its_place: str
) -> None:
    old = store.create("t", "Ship")
    if took_its_place == "replace":
        store.replace("t", "Ship more")
    elif took_its_place == "clear":
        store.clear("t")
        store.create("t", "Ship more")
    else:
        store.set("t", status=COMPLETE)
        store.create("t", "Ship more")
    before = tables(database)
    late = store.charge("t", tokens=5, expected_goal_id=old.goal_id, idempotency_key="k")
    assert late == Accounting(goal_of(store), applied=False)
    assert tables(database) == before


def test_what_nobody_pays_is_told_to_the_log(
    store: GoalStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.charge("t", tokens=5, turn_id="turn-1")
    goal = store.create("t", "Ship", status=PAUSED)
    store.charge("t", tokens=5)
    told = [one.getMessage() for one in caplog.records if one.name == "goal_state.storage.charges"]
    assert told == [
        "a charge of turn 'turn-1' found no goal to pay it",
        f"goal {goal.goal_id} is paused and takes no charge",
    ]


FLIPS, TAKEN, REFUSED = "flips", "taken", "refused"
MODES: dict[AccountingMode, dict[GoalStatus, str]] = {
    AccountingMode.ACTIVE_STATUS_ONLY: {
        ACTIVE: FLIPS,
        PAUSED: REFUSED,
        BLOCKED: REFUSED,
        USAGE_LIMITED: REFUSED,
        BUDGET_LIMITED: REFUSED,
        COMPLETE: REFUSED,
    },
    AccountingMode.ACTIVE_ONLY: {
        ACTIVE: FLIPS,
        PAUSED: REFUSED,
        BLOCKED: REFUSED,
        USAGE_LIMITED: REFUSED,
        BUDGET_LIMITED: TAKEN,
        COMPLETE: REFUSED,
    },
    AccountingMode.ACTIVE_OR_COMPLETE: {
        ACTIVE: FLIPS,
        PAUSED: REFUSED,
        BLOCKED: REFUSED,
        USAGE_LIMITED: REFUSED,
        BUDGET_LIMITED: TAKEN,
        COMPLETE: TAKEN,
    },
    AccountingMode.ACTIVE_OR_STOPPED: {
        ACTIVE: FLIPS,
        PAUSED: FLIPS,
        BLOCKED: FLIPS,
        USAGE_LIMITED: FLIPS,
        BUDGET_LIMITED: TAKEN,
        COMPLETE: REFUSED,
    },
}


@pytest.mark.parametrize("call", ["charge", "record_total"])
@pytest.mark.parametrize("status", GoalStatus)
@pytest.mark.parametrize("mode", AccountingMode)
def test_each_mode_in_each_status_charges_as_the_table_says(
    store: GoalStore, mode: AccountingMode, status: GoalStatus, call: str
) -> None:
    store.create("t", "Ship", status=status, token_budget=100)
    store.set_baseline("t", TokenUsage())

    def charge(total: int) -> Accounting:
        if call == "charge":
            return store.charge("t", tokens=total - used(store), mode=mode)
        return store.record_total("t", TokenUsage(total), mode=mode)

    under, full = charge(99), charge(100)
    what = MODES[mode][status]
    if what == REFUSED:
        assert (under, full) == (Accounting(goal_of(store), applied=False),) * 2
        assert changes(store) == []
        assert used(store) == 0
        return
    after = BUDGET_LIMITED if what == FLIPS else status
    assert under.applied
    assert full.applied
    assert goal_of(store).status is after
    flipped = [("status_changed", after, None)] * (after is not status)
    assert changes(store) == [
        ("usage_accounted", status, 99),
        ("usage_accounted", after, 100),
        *flipped,
    ]


# -- idempotency keys --------------------------------------------------------------------------------


def test_a_key_with_other_amounts_is_an_error_that_says_so(
    store: GoalStore, database: Path
) -> None:
    store.create("t", "Ship")
    store.charge("t", tokens=10, seconds=1, idempotency_key="k")
    before = tables(database)
    for amounts in ({"tokens": 11, "seconds": 1}, {"tokens": 9}, {"seconds": 1}):
        with pytest.raises(
            IdempotencyConflictError,
            match=r"'k' has charged 10 tokens in thread 't', and that stands; the \d+ of this call",
        ):
            store.charge("t", **amounts, idempotency_key="k")
    assert tables(database) == before


def test_a_key_is_one_within_its_thread_alone(store: GoalStore) -> None:
    for thread in ("t", "u"):
        store.create(thread, "Ship")
        assert not store.charge(thread, tokens=10, idempotency_key="k").duplicate
    assert store.charge("u", tokens=10, idempotency_key="k").duplicate
    assert used(store) == goal_of(store, "u").tokens_used == 10


@pytest.mark.parametrize("after", ["clear", "replace", "create"])
def test_a_key_outlives_the_goal_that_it_charged(store: GoalStore, after: str) -> None:
    store.create("t", "Ship")
    store.charge("t", tokens=10, idempotency_key="k")
    if after == "clear":
        store.clear("t")
    elif after == "replace":
        store.replace("t", "Ship more")
    else:
        store.set("t", status=COMPLETE)
        store.create("t", "Ship more")
    events = list(store.events())
    again = store.charge("t", tokens=10, idempotency_key="k")
    assert again == Accounting(None, applied=True, duplicate=True)
    with pytest.raises(IdempotencyConflictError):
        store.charge("t", tokens=11, idempotency_key="k")
    assert list(store.events()) == events


def test_a_charge_that_was_not_taken_leaves_its_key_unused(store: GoalStore) -> None:
    goal = store.create("t", "Ship", status=PAUSED)
    assert not store.charge("t", tokens=10, idempotency_key="k").applied
    assert not store.charge("none", tokens=10, idempotency_key="k").applied
    stale = store.charge("t", tokens=10, idempotency_key="k", expected_goal_id="other")
    assert not stale.applied
    store.set("t", status=ACTIVE)
    taken = store.charge("t", tokens=12, idempotency_key="k", expected_goal_id=goal.goal_id)
    assert (taken.applied, taken.duplicate, used(store)) == (True, False, 12)


def test_the_repeat_of_a_charge_that_crossed_the_budget_tells_of_the_crossing(
    store: GoalStore,
) -> None:
    store.create("t", "Ship", token_budget=10)
    first = store.charge("t", tokens=10, idempotency_key="k")
    store.resume("t", token_budget=100)
    again = store.charge("t", tokens=10, idempotency_key="k")
    assert again.goal is not None
    assert first.goal is not None
    assert (again.goal.status, again.goal.token_budget) == (BUDGET_LIMITED, 10)
    assert again.goal.tokens_used == first.goal.tokens_used == 10
    assert (goal_of(store).status, goal_of(store).token_budget) == (ACTIVE, 100)


def test_a_repeat_is_one_in_any_status_and_mode(store: GoalStore) -> None:
    store.create("t", "Ship")
    store.charge("t", tokens=10, idempotency_key="k")
    for status in GoalStatus:
        store.set("t", status=status)
        for mode in AccountingMode:
            again = store.charge("t", tokens=10, idempotency_key="k", mode=mode)
            assert (again.applied, again.duplicate) == (True, True)
    assert used(store) == 10


def test_seconds_that_round_to_the_same_are_the_same_amount(store: GoalStore) -> None:
    store.create("t", "Ship")
    store.charge("t", seconds=1.0001, idempotency_key="k")
    assert store.charge("t", seconds=0.9999, idempotency_key="k").duplicate


def test_a_key_of_nothing_is_used_all_the_same(store: GoalStore) -> None:
    """A later charge under it cannot be told from a repeat with other amounts."""
    store.create("t", "Ship")
    assert store.charge("t", idempotency_key="k").applied
    assert store.charge("t", idempotency_key="k").duplicate
    with pytest.raises(IdempotencyConflictError, match="has charged 0 tokens"):
        store.charge("t", tokens=1, idempotency_key="k")


# -- cumulative usage --------------------------------------------------------------------------------


def record(store: GoalStore, *totals: int) -> list[int]:
    """What the goal paid in all after each total."""
    paid = []
    for total in totals:
        store.record_total("t", TokenUsage(total))
        paid.append(used(store))
    return paid


def test_a_total_that_repeats_falls_and_rises_again(store: GoalStore) -> None:
    store.create("t", "Ship")
    assert record(store, 1000, 1000, 1300, 1300, 200, 200, 250, 1300, 1400) == [
        0,
        0,
        300,
        300,
        300,
        300,
        300,
        300,
        400,
    ]


def test_the_first_total_ever_seen_charges_nothing(store: GoalStore) -> None:
    store.create("t", "Ship")
    first = store.record_total("t", TokenUsage(10_000, 0, 0, 500))
    assert first == Accounting(goal_of(store), applied=False)
    assert used(store) == 0


def test_a_first_or_a_repeated_total_brings_no_time_either(store: GoalStore) -> None:
    store.create("t", "Ship")
    assert not store.record_total("t", TokenUsage(10_000), seconds=2).applied
    assert store.record_total("t", TokenUsage(10_001), seconds=3).applied
    assert not store.record_total("t", TokenUsage(10_001), seconds=3).applied
    assert (used(store), goal_of(store).time_used_ms) == (1, 3000)


def test_a_baseline_of_zero_charges_all_of_the_first_total(store: GoalStore) -> None:
    store.create("t", "Ship")
    store.set_baseline("t", TokenUsage())
    assert record(store, 70) == [70]


@pytest.mark.parametrize("nobody_pays", ["no goal", "paused", "stale", "complete"])
def test_what_nobody_paid_for_a_later_goal_does_not_pay(store: GoalStore, nobody_pays: str) -> None:
    store.set_baseline("t", TokenUsage())
    if nobody_pays != "no goal":
        store.create("t", "Ship", status=PAUSED if nobody_pays == "paused" else ACTIVE)
    if nobody_pays == "complete":
        store.set("t", status=COMPLETE)
    expected = "another" if nobody_pays == "stale" else None
    charge = store.record_total("t", TokenUsage(900), turn_id="turn-1", expected_goal_id=expected)
    assert not charge.applied
    usage = store.usage("t")
    assert usage is not None
    assert (usage.total, usage.turn_id) == (TokenUsage(900), "turn-1")

    store.replace("t", "Ship more")
    assert record(store, 1000) == [100]


def test_cached_input_is_free(store: GoalStore) -> None:
    store.create("t", "Ship")
    store.set_baseline("t", TokenUsage())
    store.record_total("t", TokenUsage(1000, 800, 0, 30, 20))
    assert used(store) == 230
    store.record_total("t", TokenUsage(2000, 1800, 100, 30, 20))
    assert used(store) == 230
    assert list(store.events(after=2)) == []


def test_reasoning_and_the_providers_own_total_are_not_charged_beside_the_rest(
    store: GoalStore,
) -> None:
    store.create("t", "Ship")
    store.set_baseline("t", TokenUsage())
    store.record_total("t", TokenUsage(10, 0, 0, 5, 5, 999))
    assert used(store) == 15


def test_no_count_that_fell_is_refunded(store: GoalStore) -> None:
    """In sum it rose, so it is no new beginning; what fell counts as nothing new."""
    store.create("t", "Ship")
    store.set_baseline("t", TokenUsage(100, 50, 0, 10))
    store.record_total("t", TokenUsage(90, 40, 0, 40))
    assert used(store) == 30


def test_the_last_response_and_the_window_come_with_the_total(store: GoalStore) -> None:
    store.create("t", "Ship")
    first = ThreadUsage(TokenUsage(100), TokenUsage(7), 258_400, "turn-1")
    store.record_total("t", first)
    assert store.usage("t") == first

    store.record_total("t", ThreadUsage(TokenUsage(130), TokenUsage(30), None), turn_id="turn-2")
    usage = store.usage("t")
    assert usage is not None
    assert (usage.last, usage.turn_id) == (TokenUsage(30), "turn-2")
    assert used(store) == 30

    store.set_baseline("t", first)
    store.record_total("t", TokenUsage(140))
    assert store.usage("t") == ThreadUsage(TokenUsage(140), TokenUsage(40), 258_400, "turn-1")


def test_record_usage_names_the_turn_of_its_events(store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=10)
    store.set_baseline("t", TokenUsage())
    store.record_total("t", TokenUsage(10), turn_id="turn-7")
    assert [(e.kind, e.turn_id) for e in store.events(after=1)] == [
        (EventKind.USAGE_ACCOUNTED, "turn-7"),
        (EventKind.STATUS_CHANGED, "turn-7"),
    ]


def test_threads_have_baselines_of_their_own(store: GoalStore) -> None:
    for thread in ("t", "u"):
        store.create(thread, "Ship")
        store.set_baseline(thread, TokenUsage())
    store.record_total("t", TokenUsage(5))
    store.record_total("u", TokenUsage(9))
    assert (used(store), goal_of(store, "u").tokens_used) == (5, 9)


def test_a_clock_that_jumps_back_does_not_break_a_charge(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = store.create("t", "Ship")
    monkeypatch.setattr(
        "goal_state.storage.wall_clock.now_ms", lambda: created.created_at_ms - 9999
    )
    goal = store.charge("t", tokens=1).goal
    assert goal is not None
    assert goal.updated_at_ms == created.updated_at_ms
    assert store.set("t", status=PAUSED).updated_at_ms == created.updated_at_ms
    other = store.create("u", "Ship")
    assert other.created_at_ms == other.updated_at_ms == created.created_at_ms - 9999
