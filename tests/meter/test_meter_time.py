"""Active time: whose it is, and that not a nanosecond of it is lost or made up."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable

import pytest

from goal_state import GoalStatus, GoalStore, TokenUsage
from goal_state.meter import GoalMeter
from tests.meter.clock import NS_PER_MS, Clock

THREAD = "thread-1"

MakeMeter = Callable[..., GoalMeter]

TICK_NS = 400_000


def time_used_ms(store: GoalStore) -> int:
    goal = store.get(THREAD)
    assert goal is not None
    return goal.time_used_ms


def test_the_clock_is_a_monotonic_one() -> None:
    parameters = inspect.signature(GoalMeter).parameters
    assert parameters["clock_ns"].default is time.monotonic_ns


def test_ticks_below_a_millisecond_add_up_within_a_turn(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    store.create(THREAD, "work")
    meter.start_turn("turn-1")
    for number in range(1, 1_001):
        clock.tick(ns=TICK_NS)
        meter.flush()
        assert time_used_ms(store) == number * TICK_NS // NS_PER_MS
    assert time_used_ms(store) == 400


def test_a_total_that_brings_nothing_new_still_brings_its_time(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    store.create(THREAD, "work")
    meter.start_turn("turn-1", total=TokenUsage(50))
    other = GoalMeter(store, THREAD, clock_ns=Clock())
    other.start_turn("turn-1")
    for told, stored in ((50, 50), (60, 60), (60, 80), (70, 80)):
        other.observe(TokenUsage(stored))
        clock.tick(ns=NS_PER_MS)
        meter.observe(TokenUsage(told))
    assert time_used_ms(store) == 4


def test_ticks_below_a_millisecond_add_up_across_turns(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    store.create(THREAD, "work")
    for number in range(1_000):
        meter.start_turn(f"turn-{number}")
        clock.tick(ns=TICK_NS)
        meter.finish_turn()
        clock.tick(ns=777_777)  # nobody's
    assert time_used_ms(store) == 400


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
        meter.observe(TokenUsage(input_tokens=number))
        meter.abort_turn()
        assert time_used_ms(store) == (number + 1) * 2 * TICK_NS // NS_PER_MS


def test_what_is_left_over_is_not_another_goals(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    store.create(THREAD, "first")
    meter.start_turn("turn-1")
    clock.tick(ns=900_000)
    meter.complete_goal()
    meter.create_goal("second")
    clock.tick(ns=900_000)
    meter.finish_turn()
    assert time_used_ms(store) == 0
    meter.start_turn("turn-2")
    clock.tick(ns=100_000)
    meter.finish_turn()
    assert time_used_ms(store) == 1


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
    store.account(THREAD, tokens=10)
    meter = make_meter(count_idle_time=True)
    meter.set_goal(token_budget=5)
    clock.tick(seconds=5)
    meter.start_turn("turn-1")
    assert time_used_ms(store) == 0


def test_a_clock_that_jumps_back_takes_nothing_and_makes_nothing_up(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    store.create(THREAD, "work")
    meter.start_turn("turn-1")
    clock.tick(seconds=2)
    meter.flush()
    clock.tick(seconds=-3600)
    assert not meter.flush().charged
    clock.tick(seconds=1)
    meter.flush()
    assert time_used_ms(store) == 3_000
    clock.tick(seconds=-3600)
    meter.finish_turn()
    meter.start_turn("turn-2")
    clock.tick(seconds=1)
    meter.finish_turn()
    assert time_used_ms(store) == 4_000
