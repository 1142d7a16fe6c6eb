"""A thread with a meter on it, and a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from goal_state import GoalStore
from goal_state.meter import GoalMeter
from goal_state.testing.clock import Clock

THREAD = "thread-1"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_meter(store: GoalStore, clock: Clock) -> Callable[..., GoalMeter]:
    """Makes meters of the one thread, on the one clock."""

    def make(*, count_idle_time: bool = False) -> GoalMeter:
        return GoalMeter(store, THREAD, count_idle_time=count_idle_time, clock_ns=clock)

    return make


@pytest.fixture
def meter(make_meter: Callable[..., GoalMeter]) -> GoalMeter:
    return make_meter()
