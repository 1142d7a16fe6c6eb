"""Active time: whose it is, and that not a nanosecond of it is lost or made up."""

from __future__ import annotations

import inspect
import time

import pytest

from goal_state import EventKind, GoalStatus, GoalStore, TokenUsage
from goal_state.meter import GoalMeter
from goal_state.testing.clock import NS_PER_MS, NS_PER_S, Clock
from tests.meter.figures import THREAD, MakeMeter, time_used_ms

TICK_NS = 400_000


def test_the_clock_is_a_monotonic_one() -> None:
    parameters = inspect.signature(GoalMeter).parameters
    assert parameters["clock_ns"].default is time.monotonic_ns


def test_time_alone_waits_for_a_whole_second(
    store: GoalStore, running_meter: GoalMeter, clock: Clock
) -> None:
    for due_ns in (NS_PER_S - 1, 1, 2 * NS_PER_S + 345_678_901, NS_PER_S - NS_PER_MS):
        clock.tick(ns=due_ns)
        running_meter.flush()
    assert [e.time_delta_ms for e in store.events() if e.time_delta_ms] == [1_000, 2_345]
    clock.tick(ns=NS_PER_MS)
    assert running_meter.finish_turn().charged
    assert time_used_ms(store) == 4_345


def test_tokens_take_along_whatever_time_is_due(
    store: GoalStore, running_meter: GoalMeter, clock: Clock
) -> None:
    for _ in range(3):
        clock.tick(seconds=0.3)
        assert not running_meter.flush().charged
    running_meter.record_total(TokenUsage(10))
    assert time_used_ms(store) == 900
    clock.tick(seconds=0.25)
    # Nothing that costs:
    running_meter.record_total(TokenUsage(10, cached_input_tokens=5, output_tokens=0))
    assert time_used_ms(store) == 900
    running_meter.record_total(TokenUsage(20, 5))
    assert time_used_ms(store) == 1_150
    assert [e.tokens_delta > 0 for e in store.events() if e.time_delta_ms] == [True, True]


def test_no_event_is_of_less_than_a_second_alone_on_a_real_clock(store: GoalStore) -> None:
    store.create(THREAD, "work")
    meter = GoalMeter(store, THREAD)
    total = TokenUsage()
    for turn in range(8):
        meter.start_turn(f"turn-{turn}", total=total)
        for _ in range(6):
            total += TokenUsage(100, 20, 0, 10)
            meter.record_total(total)
            time.sleep(0.002)
            meter.flush()
        meter.finish_turn()
    charges = [e for e in store.events() if e.kind is EventKind.USAGE_ACCOUNTED]
    assert len([e for e in charges if e.tokens_delta]) == 48
    assert all(e.time_delta_ms >= 1_000 for e in charges if not e.tokens_delta)
    assert time_used_ms(store) > 48 * 2 - 30


@pytest.mark.slow
def test_ticks_below_a_millisecond_add_up_within_a_turn(
    store: GoalStore, running_meter: GoalMeter, clock: Clock
) -> None:
    for number in range(1, 5_001):
        clock.tick(ns=TICK_NS)
        running_meter.flush()
        if number % 500 == 0:
            assert time_used_ms(store) == number * TICK_NS // NS_PER_S * 1_000
    assert time_used_ms(store) == 2_000


@pytest.mark.parametrize("told", [50, 60, 40])
def test_a_total_that_brings_nothing_new_still_brings_its_time(
    store: GoalStore, meter: GoalMeter, clock: Clock, told: int
) -> None:
    """A repeated one, or a late one: what the meter's own clock says is another matter."""
    store.create(THREAD, "work")
    meter.start_turn("turn-1", total=TokenUsage(50))
    other = GoalMeter(store, THREAD, clock_ns=Clock())
    other.start_turn("turn-1")
    other.record_total(TokenUsage(60))
    for _ in range(4):
        clock.tick(seconds=0.6)
        meter.record_total(TokenUsage(told))
    assert [e.time_delta_ms for e in store.events() if e.time_delta_ms] == [1_200, 1_200]


@pytest.mark.slow
def test_what_is_less_than_a_second_is_carried_across_turns(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    store.create(THREAD, "work")
    for number in range(1_000):
        meter.start_turn(f"turn-{number}")
        clock.tick(ns=7_400_000)
        meter.finish_turn()
        clock.tick(ns=777_777)  # nobody's
    charges = [e.time_delta_ms for e in store.events() if e.time_delta_ms]
    assert all(1_000 <= time_ms <= 1_007 for time_ms in charges)
    assert sum(charges) == time_used_ms(store)
    assert 0 <= 7_400 - sum(charges) < 1_000


@pytest.mark.slow
def test_ticks_below_a_millisecond_add_up_around_everything_that_pays_nothing(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    store.create(THREAD, "work")
    for number in range(100):
        meter.start_turn(f"turn-{number}", charge_tokens=False)
        clock.tick(ns=333_333)
        meter.finish_turn()
        meter.start_turn(f"turn-{number}")
        clock.tick(ns=TICK_NS)
        meter.set_goal(status="paused")
        clock.tick(ns=333_333)
        meter.flush()
        clock.tick(ns=333_333)
        meter.set_goal(status="active")
        clock.tick(ns=TICK_NS)
        meter.record_total(TokenUsage(input_tokens=number))
        meter.abort_turn()
        assert time_used_ms(store) == (
            0 if number == 0 else (number + 1) * 2 * TICK_NS // NS_PER_MS
        )


def test_what_is_left_over_is_not_another_goals(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    store.create(THREAD, "first")
    meter.start_turn("turn-1")
    clock.tick(seconds=0.9)
    meter.complete_goal()
    meter.create_goal("second")
    clock.tick(seconds=0.9)
    meter.finish_turn()
    assert time_used_ms(store) == 0
    meter.start_turn("turn-2")
    clock.tick(seconds=0.1)
    meter.finish_turn()
    assert time_used_ms(store) == 1_000


def test_idle_time_is_nobodys(store: GoalStore, make_meter: MakeMeter, clock: Clock) -> None:
    store.create(THREAD, "work")
    meter = make_meter()
    clock.tick(seconds=5)
    meter.start_turn("turn-1")
    clock.tick(seconds=1)
    meter.finish_turn()
    clock.tick(seconds=5)
    meter.set_goal(objective="other work")
    clock.tick(seconds=5)
    meter.start_turn("turn-2")
    meter.finish_turn()
    assert time_used_ms(store) == 1_000


def test_idle_time_counts_where_the_host_says_so(
    store: GoalStore, make_meter: MakeMeter, clock: Clock
) -> None:
    store.create(THREAD, "work")
    meter = make_meter(count_idle_time=True)
    clock.tick(seconds=5)
    assert meter.start_turn("turn-1", total=TokenUsage()).charged
    clock.tick(seconds=1)
    meter.finish_turn()
    assert time_used_ms(store) == 6_000
    clock.tick(seconds=2)
    meter.set_goal(objective="other work")
    assert time_used_ms(store) == 8_000
    clock.tick(seconds=3)
    meter.set_goal(status="paused")
    assert time_used_ms(store) == 11_000
    turns = [event.turn_id for event in store.events() if event.time_delta_ms]
    assert turns == [None, "turn-1", None, None]


@pytest.mark.parametrize("status", [s for s in GoalStatus if s is not GoalStatus.ACTIVE])
def test_idle_time_is_nobodys_while_no_goal_is_active(
    store: GoalStore, make_meter: MakeMeter, clock: Clock, status: GoalStatus
) -> None:
    meter = make_meter(count_idle_time=True)
    clock.tick(seconds=5)
    meter.set_goal(objective="work", status=status)
    clock.tick(seconds=5)
    meter.start_turn("turn-1")
    meter.finish_turn()
    clock.tick(seconds=5)
    meter.set_goal(objective="other work")
    assert time_used_ms(store) == 0
    meter.set_goal(status="active")
    clock.tick(seconds=2)
    meter.start_turn("turn-2")
    assert time_used_ms(store) == 2_000


def test_a_goal_that_is_limited_while_idle_stops_paying_for_it(
    store: GoalStore, make_meter: MakeMeter, clock: Clock
) -> None:
    store.create(THREAD, "work")
    store.charge(THREAD, tokens=10)
    meter = make_meter(count_idle_time=True)
    meter.set_goal(token_budget=5)
    clock.tick(seconds=5)
    meter.start_turn("turn-1")
    assert time_used_ms(store) == 0


def test_a_clock_that_jumps_back_takes_nothing_and_makes_nothing_up(
    store: GoalStore, running_meter: GoalMeter, clock: Clock
) -> None:
    clock.tick(seconds=2)
    running_meter.flush()
    clock.tick(seconds=-3600)
    assert not running_meter.flush().charged
    clock.tick(seconds=1)
    running_meter.flush()
    assert time_used_ms(store) == 3_000
    clock.tick(seconds=-3600)
    running_meter.finish_turn()
    running_meter.start_turn("turn-2")
    clock.tick(seconds=1)
    running_meter.finish_turn()
    assert time_used_ms(store) == 4_000
