"""What a turn pays, and for which goal."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from goal_state import (
    DatabaseBusyError,
    EventKind,
    Goal,
    GoalEvent,
    GoalExistsError,
    GoalNotFoundError,
    GoalStatus,
    GoalStore,
    InvalidValueError,
    ThreadUsage,
    TokenUsage,
    UsageOverflowError,
)
from goal_state.domain.values import MAX_INTEGER
from goal_state.errors import TurnError
from goal_state.meter import GoalMeter
from goal_state.testing.clock import Clock
from tests.meter.figures import THREAD, MakeMeter, paid, tokens_used

STOPPED = [status for status in GoalStatus if status is not GoalStatus.ACTIVE]


def used(tokens: int) -> TokenUsage:
    """A total of so many tokens, none of them cached."""
    return TokenUsage(input_tokens=tokens)


def kinds(store: GoalStore, after: int) -> list[EventKind]:
    return [event.kind for event in store.events(after=after)]


# -- usage ---------------------------------------------------------------------------------------------


def test_a_turn_pays_for_what_is_new_in_the_total_and_not_for_cached_input(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    reading = running_meter.record_total(TokenUsage(100, 30, 0, 20, 5))
    assert reading.goal == store.get(THREAD)
    assert reading.charged
    assert tokens_used(store) == 90
    running_meter.record_total(TokenUsage(300, 130, 0, 50, 5))
    assert tokens_used(store) == 220


def test_a_total_that_is_repeated_charges_nothing(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    running_meter.record_total(used(100))
    reading = running_meter.record_total(used(100))
    assert not reading.charged
    assert tokens_used(store) == 100


def test_a_lower_total_of_the_running_turn_is_late_and_changes_nothing(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    running_meter.record_total(used(100))
    assert not running_meter.record_total(used(40)).charged
    assert not running_meter.record_total(used(50)).charged
    assert not running_meter.record_total(used(100)).charged
    running_meter.record_total(used(110))
    assert tokens_used(store) == 110


def test_a_lower_total_of_a_turn_that_is_new_is_a_new_beginning_that_refunds_nothing(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    running_meter.record_total(used(100))
    running_meter.finish_turn()
    running_meter.start_turn("turn-2")
    assert not running_meter.record_total(used(40)).charged
    assert tokens_used(store) == 100
    running_meter.record_total(used(50))
    assert not running_meter.record_total(used(45)).charged
    assert tokens_used(store) == 110


def test_what_a_thread_had_used_before_it_was_first_seen_is_nobodys(
    store: GoalStore, meter: GoalMeter
) -> None:
    store.create(THREAD, "work")
    meter.start_turn("turn-1", total=used(5_000))
    assert tokens_used(store) == 0
    meter.record_total(used(5_010))
    assert tokens_used(store) == 10


def test_a_thread_that_was_never_seen_begins_at_zero(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    running_meter.record_total(used(70))
    assert tokens_used(store) == 70


def test_a_turn_without_a_total_goes_on_from_what_was_stored(
    store: GoalStore, make_meter: MakeMeter
) -> None:
    store.create(THREAD, "work")
    first = make_meter()
    first.start_turn("turn-1")
    first.record_total(used(70))
    first.finish_turn()
    second = make_meter()
    second.start_turn("turn-2")
    second.record_total(used(75))
    assert tokens_used(store) == 75


def test_the_whole_usage_of_a_response_is_kept_with_its_turn(
    store: GoalStore, meter: GoalMeter
) -> None:
    store.create(THREAD, "work")
    meter.start_turn("turn-1", total=used(5))
    usage = ThreadUsage(TokenUsage(100, 30, 7, 20, 5), TokenUsage(60, 30, 7, 10, 5), 200_000)
    meter.record_total(usage)
    assert store.usage(THREAD) == replace(usage, turn_id="turn-1")
    assert tokens_used(store) == 85


def test_a_total_is_of_the_running_turn_whatever_turn_it_names(
    store: GoalStore, meter: GoalMeter
) -> None:
    store.create(THREAD, "work")
    meter.start_turn("turn-1", total=used(5))
    meter.record_total(ThreadUsage(used(25), turn_id="turn-0"))
    assert store.usage(THREAD) == ThreadUsage(used(25), turn_id="turn-1")
    assert [event.turn_id for event in store.events()][1:] == ["turn-1"]


@pytest.mark.parametrize(("named", "payer"), [("turn-2", "turn-2"), (None, "turn-1")])
def test_tokens_lost_in_a_crash_are_of_the_turn_that_the_total_names(
    store: GoalStore, meter: GoalMeter, named: str | None, payer: str
) -> None:
    store.create(THREAD, "work")
    store.set_baseline(THREAD, used(5), turn_id="turn-1")
    meter.start_turn("turn-3", total=ThreadUsage(used(25), turn_id=named))
    assert store.usage(THREAD) == ThreadUsage(used(25), turn_id=payer)
    assert [event.turn_id for event in store.events()][1:] == [payer]


def test_each_charge_names_its_turn(store: GoalStore, meter: GoalMeter) -> None:
    store.create(THREAD, "work")
    for number in (1, 2):
        meter.start_turn(f"turn-{number}")
        meter.record_total(used(number * 10))
        meter.finish_turn()
    charges = [e for e in store.events() if e.kind is EventKind.USAGE_ACCOUNTED]
    assert [(e.turn_id, e.tokens_delta) for e in charges] == [("turn-1", 10), ("turn-2", 10)]


def test_an_aborted_turn_pays_for_what_it_used(
    store: GoalStore, running_meter: GoalMeter, clock: Clock
) -> None:
    running_meter.record_total(used(25))
    clock.tick(seconds=3)
    assert running_meter.abort_turn().charged
    assert paid(store.get(THREAD)) == (25, 3_000)
    assert running_meter.turn_id is None


def test_what_an_aborted_turn_did_not_report_is_charged_when_the_next_one_starts(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    running_meter.record_total(used(25))
    running_meter.abort_turn()
    assert running_meter.start_turn("turn-2", total=used(40)).charged
    assert tokens_used(store) == 40
    assert [e.turn_id for e in store.events()][-1] == "turn-1"


def test_a_thread_without_a_goal_is_metered_all_the_same(
    store: GoalStore, meter: GoalMeter
) -> None:
    meter.start_turn("turn-1")
    reading = meter.record_total(used(25))
    assert (reading.goal, reading.charged, reading.budget_exhausted) == (None, False, False)
    assert not meter.finish_turn().charged
    usage = store.usage(THREAD)
    assert usage is not None
    assert usage.total == used(25)
    assert (meter.goal, meter.remaining_tokens) == (None, None)


# -- which goal pays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", STOPPED)
def test_a_goal_that_is_not_active_when_a_turn_starts_pays_nothing(
    store: GoalStore, meter: GoalMeter, clock: Clock, status: GoalStatus
) -> None:
    store.create(THREAD, "work", status=status)
    meter.start_turn("turn-1")
    meter.record_total(used(25))
    clock.tick(seconds=3)
    assert not meter.flush().charged
    clock.tick(seconds=3)
    assert not meter.finish_turn().charged
    assert paid(store.get(THREAD)) == (0, 0)


def test_a_goal_made_by_the_model_pays_from_then_on(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    meter.start_turn("turn-1")
    meter.record_total(used(1_000))
    clock.tick(seconds=10)
    meter.create_goal("work", token_budget=500)
    clock.tick(seconds=2)
    meter.record_total(used(1_030))
    meter.finish_turn()
    goal = store.get(THREAD)
    assert goal is not None
    assert (goal.tokens_used, goal.time_used_ms, goal.token_budget) == (30, 2_000, 500)
    assert next(store.events()).turn_id == "turn-1"


@pytest.mark.parametrize("status", [s for s in STOPPED if s is not GoalStatus.BUDGET_LIMITED])
def test_a_goal_that_is_activated_in_the_middle_of_a_turn_pays_from_then_on(
    store: GoalStore, meter: GoalMeter, clock: Clock, status: GoalStatus
) -> None:
    store.create(THREAD, "work", status=status)
    meter.start_turn("turn-1")
    meter.record_total(used(1_000))
    clock.tick(seconds=10)
    meter.set_goal(status="active")
    clock.tick(seconds=2)
    meter.record_total(used(1_030))
    assert paid(store.get(THREAD)) == (30, 2_000)


def test_a_goal_that_takes_the_place_of_a_complete_one_pays_from_then_on(
    store: GoalStore, meter: GoalMeter
) -> None:
    first = store.create(THREAD, "first")
    meter.start_turn("turn-1")
    meter.record_total(used(10))
    meter.complete_goal()
    meter.record_total(used(25))
    second = meter.create_goal("second")
    meter.record_total(used(32))
    ledgers = {e.goal_id: e.cumulative_tokens for e in store.events() if e.cumulative_tokens}
    assert ledgers == {first.goal_id: 10, second.goal_id: 7}


def test_an_edit_keeps_the_goal_paying(store: GoalStore, running_meter: GoalMeter) -> None:
    running_meter.set_goal(objective="other work", token_budget=50)
    running_meter.record_total(used(20))
    assert running_meter.remaining_tokens == 30
    assert running_meter.goal == store.get(THREAD)


def test_a_planning_turn_pays_nothing(store: GoalStore, meter: GoalMeter, clock: Clock) -> None:
    store.create(THREAD, "work")
    meter.start_turn("turn-1", charge_tokens=False)
    meter.record_total(used(500))
    clock.tick(seconds=5)
    assert not meter.flush().charged
    meter.finish_turn()
    meter.start_turn("turn-2", total=used(500))
    meter.record_total(used(501))
    assert paid(store.get(THREAD)) == (1, 0)


def test_a_goal_made_in_a_planning_turn_does_not_pay_for_it(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    meter.start_turn("turn-1", charge_tokens=False)
    meter.create_goal("work")
    clock.tick(seconds=5)
    meter.record_total(used(500))
    meter.set_goal(status="paused")
    meter.set_goal(status="active")
    clock.tick(seconds=5)
    meter.record_total(used(600))
    assert paid(meter.finish_turn().goal) == (0, 0)


# -- the budget ----------------------------------------------------------------------------------------


def test_a_turn_that_crosses_the_budget_pays_to_its_end_and_the_next_one_does_not(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    store.create(THREAD, "work", token_budget=100)
    meter.start_turn("turn-1")
    assert not meter.record_total(used(99)).budget_exhausted
    assert meter.record_total(used(100)).budget_exhausted
    reading = meter.record_total(used(130))
    assert reading.charged
    assert not reading.budget_exhausted
    clock.tick(seconds=1)
    meter.finish_turn()
    meter.start_turn("turn-2", total=used(130))
    clock.tick(seconds=1)
    meter.record_total(used(500))
    goal = meter.finish_turn().goal
    assert goal is not None
    assert goal.status is GoalStatus.BUDGET_LIMITED
    assert (goal.tokens_used, goal.time_used_ms, goal.remaining_tokens) == (130, 1_000, 0)


def test_the_notice_comes_once_for_each_time_that_a_budget_fills(
    store: GoalStore, make_meter: MakeMeter
) -> None:
    store.create(THREAD, "work", token_budget=100)
    first, second = make_meter(), make_meter()
    first.start_turn("turn-1")
    second.start_turn("turn-1")
    assert first.record_total(used(100)).budget_exhausted
    assert not second.record_total(used(100)).budget_exhausted
    assert not second.record_total(used(110)).budget_exhausted
    first.set_goal(token_budget=200, status="active")
    assert not first.record_total(used(150)).budget_exhausted
    assert first.record_total(used(210)).budget_exhausted
    assert not second.record_total(used(220)).budget_exhausted
    third = make_meter()
    third.set_goal(token_budget=300, status="active")
    third.start_turn("turn-2", total=used(220))
    reading = third.record_total(used(320))
    assert reading.goal is not None
    assert reading.goal.status is GoalStatus.BUDGET_LIMITED
    assert reading.budget_exhausted
    assert not third.record_total(used(330)).budget_exhausted


def test_a_goal_is_over_its_budget_for_as_long_as_it_is(store: GoalStore, meter: GoalMeter) -> None:
    store.create(THREAD, "work", token_budget=100)
    assert not meter.start_turn("turn-1").over_budget
    assert not meter.record_total(used(99)).over_budget
    for reading in (meter.record_total(used(100)), meter.flush(), meter.record_total(used(130))):
        assert reading.over_budget
    assert meter.finish_turn().over_budget
    assert meter.start_turn("turn-2").over_budget
    store.set(THREAD, token_budget=140)
    assert not meter.flush().over_budget  # though it is still budget_limited
    store.set(THREAD, token_budget=None)
    assert not meter.flush().over_budget
    store.clear(THREAD)
    assert not meter.flush().over_budget


def test_a_budget_that_is_lowered_again_to_what_it_was_fills_again(
    store: GoalStore, meter: GoalMeter
) -> None:
    store.create(THREAD, "work", token_budget=100)
    meter.start_turn("turn-1")
    assert meter.record_total(used(100)).budget_exhausted
    store.resume(THREAD, token_budget=200)
    store.set(THREAD, token_budget=100)
    assert meter.record_total(used(110)).budget_exhausted
    store.set(THREAD, token_budget=105)  # still full
    assert not meter.record_total(used(120)).budget_exhausted


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("count_id", [None, "another"])
def test_the_notice_is_not_forgotten(
    store: GoalStore, make_meter: MakeMeter, count_id: str | None, *, pruned: bool
) -> None:
    """By other meters, in other turns and counts, as long as the budget is full."""
    goal = store.create(THREAD, "work", token_budget=100)
    meter = make_meter()
    meter.start_turn("turn-1")
    assert meter.record_total(used(100)).budget_exhausted
    if pruned:
        store.prune_events(before=datetime.now(UTC) + timedelta(days=1))
        kinds = [event.kind for event in store.events(goal_id=goal.goal_id)]
        assert EventKind.USAGE_ACCOUNTED not in kinds
    again = make_meter()
    again.start_turn("turn-2", total=used(100), count_id=count_id)
    for reading in (again.record_total(used(150)), meter.record_total(used(170))):
        assert not reading.budget_exhausted
        assert reading.over_budget
    again.finish_turn()
    store.resume(THREAD, token_budget=300)
    again.start_turn("turn-3", total=used(170), count_id=count_id)
    assert again.record_total(used(400)).budget_exhausted


def test_a_budget_that_somebody_else_filled_is_told_to_the_turn_that_pays(
    store: GoalStore, meter: GoalMeter
) -> None:
    store.create(THREAD, "work", token_budget=100)
    meter.start_turn("turn-1")
    assert not meter.record_total(used(10)).budget_exhausted
    store.charge(THREAD, tokens=95)
    assert not meter.flush().budget_exhausted  # which charges nothing
    assert meter.record_total(used(20)).budget_exhausted
    assert not meter.record_total(used(30)).budget_exhausted
    assert tokens_used(store) == 125


def test_each_goal_has_a_notice_of_its_own(store: GoalStore, meter: GoalMeter) -> None:
    store.create(THREAD, "first", token_budget=100)
    meter.start_turn("turn-1")
    assert meter.record_total(used(100)).budget_exhausted
    meter.complete_goal()
    meter.create_goal("second", token_budget=10)
    assert meter.record_total(used(110)).budget_exhausted


def test_a_crossing_that_is_only_found_when_the_next_turn_starts_is_noticed_then(
    store: GoalStore, make_meter: MakeMeter
) -> None:
    store.create(THREAD, "work", token_budget=100)
    meter = make_meter()
    meter.start_turn("turn-1")
    meter.record_total(used(10))
    assert make_meter().start_turn("turn-2", total=used(150)).budget_exhausted
    assert tokens_used(store) == 150


def test_a_budget_lowered_under_the_usage_stops_the_next_turn(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    running_meter.record_total(used(100))
    assert running_meter.set_goal(token_budget=50).status is GoalStatus.BUDGET_LIMITED
    assert running_meter.record_total(used(110)).budget_exhausted
    running_meter.finish_turn()
    running_meter.start_turn("turn-2")
    assert not running_meter.record_total(used(500)).budget_exhausted
    assert tokens_used(store) == 110


def test_what_remains_is_told_without_a_turn(store: GoalStore, meter: GoalMeter) -> None:
    store.create(THREAD, "work")
    assert meter.remaining_tokens is None
    store.set(THREAD, token_budget=70)
    assert meter.remaining_tokens == 70


# -- changes charge first ------------------------------------------------------------------------------

CHANGES = {
    "pause": lambda meter: meter.set_goal(status="paused"),
    "block": lambda meter: meter.block_goal(),
    "usage limit": lambda meter: meter.usage_limited(),
    "complete": lambda meter: meter.complete_goal(),
    "complete from outside": lambda meter: meter.set_goal(status="complete"),
    "clear": lambda meter: meter.clear_goal(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_charges_what_is_due_first_and_nothing_after(
    store: GoalStore, meter: GoalMeter, clock: Clock, change: Callable[[GoalMeter], Goal | None]
) -> None:
    store.create(THREAD, "work", token_budget=1_000)
    meter.start_turn("turn-1")
    clock.tick(seconds=1)
    meter.record_total(used(10))
    position = store.last_position()
    clock.tick(seconds=1.7)
    changed = change(meter)
    assert changed is not None
    assert (changed.tokens_used, changed.time_used_ms) == (10, 2_700)
    charge, ending = store.events(after=position)
    assert (charge.kind, charge.turn_id, charge.time_delta_ms) == (
        EventKind.USAGE_ACCOUNTED,
        "turn-1",
        1_700,
    )
    assert ending.kind in (EventKind.STATUS_CHANGED, EventKind.CLEARED)
    clock.tick(seconds=5)
    assert not meter.record_total(used(500)).charged
    clock.tick(seconds=5)
    assert not meter.finish_turn().charged
    assert store.verify() == []
    assert store.last_position() == ending.position


def test_what_the_turn_changes_names_it_and_what_comes_from_outside_does_not(
    store: GoalStore, meter: GoalMeter
) -> None:
    meter.start_turn("turn-1")
    meter.create_goal("work")
    meter.block_goal()
    meter.set_goal(status="active")
    meter.usage_limited()
    meter.set_goal(status="active", turn_id="turn-x")
    meter.complete_goal()
    meter.clear_goal()
    meter.set_goal(objective="more work")
    meter.clear_goal(turn_id="turn-y")
    assert [(e.kind.value, e.goal_status.value, e.turn_id) for e in store.events()] == [
        ("created", "active", "turn-1"),
        ("status_changed", "blocked", "turn-1"),
        ("status_changed", "active", None),
        ("status_changed", "usage_limited", "turn-1"),
        ("status_changed", "active", "turn-x"),
        ("status_changed", "complete", "turn-1"),
        ("cleared", "complete", None),
        ("created", "active", None),
        ("cleared", "active", "turn-y"),
    ]


def test_changes_between_turns_name_no_turn_and_charge_nothing(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    meter.create_goal("work")
    clock.tick(seconds=5)
    assert meter.complete_goal().time_used_ms == 0
    assert {event.turn_id for event in store.events()} == {None}


def test_an_error_of_the_turn_says_on_the_goal_what_it_waits_for(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    resume_at = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
    limited = running_meter.usage_limited(resume_at)
    assert (limited.status, limited.resume_at) == (GoalStatus.USAGE_LIMITED, resume_at)
    assert store.get(THREAD) == limited
    blocked = running_meter.block_goal("the model is not there")
    assert blocked.status is GoalStatus.BLOCKED
    assert (blocked.resume_at, blocked.blocked_reason) == (None, "the model is not there")
    assert running_meter.set_goal(status="active").blocked_reason is None


def test_a_status_without_a_reason_says_none(running_meter: GoalMeter) -> None:
    assert running_meter.usage_limited().resume_at is None
    assert running_meter.block_goal().blocked_reason is None


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda meter: meter.create_goal("another"), GoalExistsError),
        (lambda meter: meter.create_goal(""), InvalidValueError),
        (lambda meter: meter.set_goal(status="busy"), InvalidValueError),
        (lambda meter: meter.set_goal(token_budget=0), InvalidValueError),
        (lambda meter: meter.block_goal(""), InvalidValueError),
        (lambda meter: meter.usage_limited(datetime(2031, 5, 4)), InvalidValueError),  # noqa: DTZ001
        (lambda meter: meter.clear_goal(turn_id=""), InvalidValueError),
    ],
)
def test_a_change_that_is_refused_charges_nothing_and_loses_nothing(
    store: GoalStore,
    running_meter: GoalMeter,
    clock: Clock,
    change: Callable[[GoalMeter], object],
    error: type[Exception],
) -> None:
    running_meter.record_total(used(10))
    clock.tick(seconds=2)
    position = store.last_position()
    with pytest.raises(error):
        change(running_meter)
    assert store.last_position() == position
    assert paid(running_meter.finish_turn().goal) == (10, 2_000)


@pytest.mark.parametrize(
    "change", [GoalMeter.complete_goal, GoalMeter.block_goal, GoalMeter.usage_limited]
)
def test_there_must_be_a_goal_to_change(
    meter: GoalMeter, change: Callable[[GoalMeter], Goal]
) -> None:
    meter.start_turn("turn-1")
    with pytest.raises(GoalNotFoundError):
        change(meter)
    assert meter.turn_id == "turn-1"


def test_clearing_nothing_returns_none(meter: GoalMeter) -> None:
    assert meter.clear_goal() is None


# -- changes without the meter -------------------------------------------------------------------------


def test_a_goal_made_by_somebody_else_pays_from_the_next_report_on(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    meter.start_turn("turn-1")
    meter.record_total(used(1_000))
    clock.tick(seconds=10)
    store.create(THREAD, "work")
    meter.flush()
    clock.tick(seconds=2)
    meter.record_total(used(1_030))
    assert paid(store.get(THREAD)) == (30, 2_000)


def test_a_turn_whose_goal_somebody_replaced_pays_nothing_more(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    first = store.create(THREAD, "first")
    meter.start_turn("turn-1")
    meter.record_total(used(10))
    second = store.replace(THREAD, "second")
    for total in (20, 30):
        clock.tick(seconds=1)
        assert not meter.record_total(used(total)).charged
    meter.set_goal(objective="still the second")
    assert not meter.record_total(used(35)).charged
    meter.finish_turn()
    meter.start_turn("turn-2", total=used(35))
    meter.record_total(used(36))
    ledgers = {e.goal_id: e.cumulative_tokens for e in store.events() if e.cumulative_tokens}
    assert ledgers == {first.goal_id: 10, second.goal_id: 1}


def test_a_goal_that_replaced_another_pays_once_it_is_activated_in_the_turn(
    store: GoalStore, meter: GoalMeter
) -> None:
    store.create(THREAD, "first")
    meter.start_turn("turn-1")
    meter.record_total(used(10))
    store.replace(THREAD, "second", status="paused")
    meter.record_total(used(20))
    meter.set_goal(status="active")
    meter.record_total(used(23))
    assert tokens_used(store) == 3


def test_a_goal_that_somebody_paused_pays_nothing(
    store: GoalStore, running_meter: GoalMeter, clock: Clock
) -> None:
    running_meter.record_total(used(10))
    store.set(THREAD, status="paused")
    clock.tick(seconds=1)
    assert not running_meter.record_total(used(20)).charged
    store.set(THREAD, status="active")
    running_meter.record_total(used(23))
    assert tokens_used(store) == 13


# -- when the process dies -----------------------------------------------------------------------------


def test_a_meter_that_died_and_starts_again_charges_what_was_lost_once(
    store: GoalStore, running_meter: GoalMeter, make_meter: MakeMeter
) -> None:
    running_meter.record_total(used(10))
    for number in (2, 3):
        reading = make_meter().start_turn(f"turn-{number}", total=used(45))
        assert reading.charged is (number == 2)
        assert reading.goal == store.get(THREAD)
    assert tokens_used(store) == 45
    assert [e.turn_id for e in store.events()] == [None, "turn-1", "turn-1"]


def test_what_was_used_for_a_goal_that_is_gone_is_nobodys(
    store: GoalStore, make_meter: MakeMeter
) -> None:
    store.create(THREAD, "first")
    meter = make_meter()
    meter.start_turn("turn-1")
    meter.record_total(used(10))
    store.replace(THREAD, "second")
    meter = make_meter()
    assert not meter.start_turn("turn-2", total=used(45)).charged
    meter.record_total(used(46))
    assert tokens_used(store) == 1


def test_what_a_turn_used_after_its_goal_was_replaced_is_nobodys_after_a_crash(
    store: GoalStore, make_meter: MakeMeter
) -> None:
    store.create(THREAD, "first")
    meter = make_meter()
    meter.start_turn("turn-1")
    store.replace(THREAD, "second")
    meter.record_total(used(10))
    make_meter().start_turn("turn-2", total=used(45))
    assert tokens_used(store) == 0


def test_what_was_used_before_a_goal_was_made_between_turns_is_nobodys(
    store: GoalStore, meter: GoalMeter
) -> None:
    store.create(THREAD, "first")
    meter.start_turn("turn-1")
    meter.record_total(used(10))
    meter.abort_turn()
    meter.complete_goal()
    meter.create_goal("second")
    meter.start_turn("turn-2", total=used(45))
    assert tokens_used(store) == 0


def test_what_a_planning_turn_lost_is_nobodys(store: GoalStore, make_meter: MakeMeter) -> None:
    store.create(THREAD, "work")
    meter = make_meter()
    meter.start_turn("turn-1", charge_tokens=False)
    meter.record_total(used(10))
    assert not make_meter().start_turn("turn-2", total=used(45)).charged
    assert tokens_used(store) == 0


def test_what_was_lost_while_the_goal_was_paused_is_nobodys(
    store: GoalStore, running_meter: GoalMeter, make_meter: MakeMeter
) -> None:
    running_meter.record_total(used(10))
    running_meter.set_goal(status="paused")
    store.set(THREAD, status="active")
    assert not make_meter().start_turn("turn-2", total=used(45)).charged
    assert tokens_used(store) == 10


def test_a_crash_does_not_let_a_turn_pay_that_began_over_the_budget(
    store: GoalStore, make_meter: MakeMeter
) -> None:
    store.create(THREAD, "work", token_budget=10)
    meter = make_meter()
    meter.start_turn("turn-1")
    meter.record_total(used(10))
    meter.record_total(used(12))
    meter = make_meter()
    assert meter.start_turn("turn-2", total=used(20)).charged  # turn-1 pays to its end
    meter.record_total(used(30))
    assert not make_meter().start_turn("turn-3", total=used(45)).charged
    assert tokens_used(store) == 20


def test_a_new_count_after_a_crash_is_a_new_beginning(
    store: GoalStore, make_meter: MakeMeter
) -> None:
    store.create(THREAD, "work")
    meter = make_meter()
    meter.start_turn("turn-1")
    meter.record_total(used(100))
    meter = make_meter()
    assert not meter.start_turn("turn-2", total=used(30)).charged
    meter.record_total(used(35))
    assert tokens_used(store) == 105


def test_a_report_that_the_database_refused_is_made_good_by_the_next_one(
    database: Path, clock: Clock
) -> None:
    with GoalStore.open(database, busy_timeout_seconds=0) as store:
        store.create(THREAD, "work", token_budget=20)
        meter = GoalMeter(store, THREAD, clock_ns=clock)
        meter.start_turn("turn-1")
        clock.tick(seconds=2)
        with closing(sqlite3.connect(database)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseBusyError):
                meter.record_total(used(25))
            with pytest.raises(DatabaseBusyError):
                meter.finish_turn()
        assert meter.turn_id == "turn-1"
        assert tokens_used(store) == 0
        assert meter.record_total(used(25)).budget_exhausted
        assert paid(meter.finish_turn().goal) == (25, 2_000)


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "total",
    [None, 17, "17", {"input_tokens": 17}, (17, 0, 0, 0, 0, 17), object()],
    ids=lambda total: type(total).__name__,
)
def test_a_total_that_is_no_usage_is_refused(
    store: GoalStore, meter: GoalMeter, clock: Clock, total: object
) -> None:
    store.create(THREAD, "work")
    meter.start_turn("turn-1", total=used(5))
    clock.tick(seconds=1)
    position = store.last_position()
    with pytest.raises(InvalidValueError, match=r"^total: must be a TokenUsage"):
        meter.record_total(total)  # type: ignore[arg-type]
    assert store.last_position() == position
    meter.record_total(used(12))
    assert paid(meter.finish_turn().goal) == (7, 1_000)


def test_a_turn_does_not_start_with_a_total_that_is_no_usage(
    store: GoalStore, meter: GoalMeter
) -> None:
    with pytest.raises(InvalidValueError, match=r"^total: must be a TokenUsage"):
        meter.start_turn("turn-1", total={"input_tokens": 17})  # type: ignore[arg-type]
    assert (meter.turn_id, store.usage(THREAD)) == (None, None)


@pytest.mark.parametrize("count", [-1, 2**63, 1.5, True, "3"])
def test_a_malformed_count_never_becomes_a_usage(count: object) -> None:
    with pytest.raises(InvalidValueError, match=r"^output_tokens: "):
        TokenUsage(10, 0, 0, count)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        lambda meter: meter.record_total(used(9)),
        lambda meter: meter.record_total(used(9), turn_id="turn-1"),
        GoalMeter.flush,
        GoalMeter.finish_turn,
        GoalMeter.abort_turn,
    ],
)
def test_a_report_needs_a_turn(
    store: GoalStore, meter: GoalMeter, call: Callable[[GoalMeter], object]
) -> None:
    store.create(THREAD, "work")
    with pytest.raises(TurnError, match="no turn is running"):
        call(meter)
    meter.start_turn("turn-1")
    meter.record_total(used(9))
    meter.finish_turn()
    position = store.last_position()
    with pytest.raises(TurnError, match="no turn is running"):
        call(meter)
    assert (store.last_position(), tokens_used(store)) == (position, 9)


def test_a_turn_does_not_start_while_one_runs(
    store: GoalStore, running_meter: GoalMeter, clock: Clock
) -> None:
    clock.tick(seconds=1)
    for turn_id in ("turn-1", "turn-2"):
        with pytest.raises(TurnError, match=f"{turn_id!r} cannot start while turn 'turn-1' runs"):
            running_meter.start_turn(turn_id, total=used(50))
    assert (running_meter.turn_id, store.last_position()) == ("turn-1", 1)
    running_meter.record_total(used(60))
    assert paid(running_meter.finish_turn().goal) == (60, 1_000)


def test_a_report_of_another_turn_is_refused(store: GoalStore, running_meter: GoalMeter) -> None:
    with pytest.raises(TurnError, match="turn 'turn-0' is not running; turn 'turn-1' is"):
        running_meter.record_total(used(50), turn_id="turn-0")
    assert tokens_used(store) == 0
    running_meter.record_total(used(60), turn_id="turn-1")
    assert tokens_used(store) == 60


@pytest.mark.parametrize("name", ["", "x" * 257, 3, None, "a\0b", "\ud800"])
def test_names_have_bounds(store: GoalStore, meter: GoalMeter, name: object) -> None:
    with pytest.raises(InvalidValueError, match=r"^thread_id: "):
        GoalMeter(store, name)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match=r"^turn_id: "):
        meter.start_turn(name)  # type: ignore[arg-type]
    assert meter.turn_id is None
    meter.start_turn("turn-1")
    if name is not None:
        with pytest.raises(InvalidValueError, match=r"^turn_id: "):
            meter.record_total(used(5), turn_id=name)  # type: ignore[arg-type]
    assert store.usage(THREAD) == ThreadUsage(TokenUsage())


def test_usage_that_no_counter_holds_is_refused_as_a_whole(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    store.create(THREAD, "work")
    store.charge(THREAD, tokens=MAX_INTEGER - 10)
    meter.start_turn("turn-1")
    clock.tick(seconds=1)
    with pytest.raises(UsageOverflowError):
        meter.record_total(used(11))
    meter.record_total(used(10))
    assert paid(meter.finish_turn().goal) == (MAX_INTEGER, 1_000)


def test_a_listener_that_reports_to_the_meter_is_told_so(store: GoalStore) -> None:
    meter = GoalMeter(store, "thread")
    refused: list[TurnError] = []

    def listener(_: GoalEvent) -> None:
        try:
            meter.flush()
        except TurnError as error:
            refused.append(error)

    store.create("thread", "work")
    meter.start_turn("turn", total=TokenUsage())
    with store.subscribe(listener):
        assert meter.record_total(TokenUsage(5)).charged
    assert len(refused) == 1
    assert "after the listener has returned" in str(refused[0])
    assert meter.record_total(TokenUsage(6)).charged
