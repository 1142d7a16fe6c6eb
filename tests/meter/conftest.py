"""A thread with a meter on it, and a clock that only the test moves."""

from __future__ import annotations

import pytest

from goal_state import GoalStore
from goal_state.meter import GoalMeter
from goal_state.testing.clock import Clock
from tests.meter.figures import THREAD, MakeMeter


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_meter(store: GoalStore, clock: Clock) -> MakeMeter:
    """Makes meters of the one thread, on the one clock."""

    def make(*, count_idle_time: bool = False) -> GoalMeter:
        return GoalMeter(store, THREAD, count_idle_time=count_idle_time, clock_ns=clock)

    return make


@pytest.fixture
def meter(make_meter: MakeMeter) -> GoalMeter:
    return make_meter()


@pytest.fixture
def running_meter(store: GoalStore, meter: GoalMeter) -> GoalMeter:
    """In "turn-1", for which a goal without a budget pays."""
    store.create(THREAD, "work")
    meter.start_turn("turn-1")
    return meter
