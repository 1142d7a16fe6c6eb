"""The thread of these tests, and what its goal has paid."""

from __future__ import annotations

from collections.abc import Callable

from goal_state import Goal, GoalMeter, GoalStore

__all__ = ["THREAD", "MakeMeter", "paid", "time_used_ms", "tokens_used"]

THREAD = "thread-1"

MakeMeter = Callable[..., GoalMeter]


def paid(goal: Goal | None) -> tuple[int, int]:
    """The tokens and the milliseconds that a goal, which there must be, has been charged."""
    assert goal is not None
    return goal.tokens_used, goal.time_used_ms


def tokens_used(store: GoalStore) -> int:
    return paid(store.get(THREAD))[0]


def time_used_ms(store: GoalStore) -> int:
    return paid(store.get(THREAD))[1]
