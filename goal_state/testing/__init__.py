"""For the tests of those who use this library (extra `testing`), and of those who write a backend for it.

    pytest_plugins = ["goal_state.testing.fixtures"]  # in the topmost conftest.py

    def test_my_agent_stops_at_its_budget(goal_store):
        begin_goal(goal_store, "thread-1", token_budget=1_000, tokens_used=990)
        run_my_agent(goal_store, "thread-1")
        assert goal_store.get("thread-1").status == "budget_limited"

What every backend must pass is in `goal_state.testing.contract`.
"""

from __future__ import annotations

import pytest

from goal_state import AccountingMode, Goal, GoalStatus, GoalStore
from goal_state.testing.clock import Clock

__all__ = ["Clock", "begin_goal"]

# The contract's assertions say what they compared, too.
pytest.register_assert_rewrite("goal_state.testing.contract")


def begin_goal(
    store: GoalStore,
    thread_id: str = "thread-1",
    *,
    objective: str = "Ship the parser",
    token_budget: int | None = None,
    tokens_used: int = 0,
    seconds_used: float = 0,
    status: GoalStatus | str = GoalStatus.ACTIVE,
) -> Goal:
    """Begins a goal that has used something already, through the store's own calls.

    Args:
        store: where.
        thread_id: the conversation. A goal that it has is replaced.
        objective: what it is working towards.
        token_budget: how many tokens it may use; None for any number.
        tokens_used: how many it has used.
        seconds_used: how long it was active.
        status: what it is in the end. A goal that is to be active and has used up its budget is
            `budget_limited`.

    Raises:
        InvalidValueError: a value is out of its bounds.
    """
    goal = store.replace(thread_id, objective, token_budget=token_budget)
    charged = store.charge(
        thread_id,
        tokens=tokens_used,
        seconds=seconds_used,
        mode=AccountingMode.ACTIVE_ONLY,
        expected_goal_id=goal.goal_id,
    )
    goal = charged.goal or goal
    return goal if goal.status == status else store.set(thread_id, status=status)
