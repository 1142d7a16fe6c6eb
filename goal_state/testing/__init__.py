"""For the tests of those who use this library (extra `testing`), and of those who write a backend for it.

    pytest_plugins = ["goal_state.testing"]  # in conftest.py: fixtures goal_store, goal_clock …

    def test_my_agent_stops_at_its_budget(goal_store):
        begin_goal(goal_store, "thread-1", token_budget=1_000, tokens_used=990)
        run_my_agent(goal_store, "thread-1")
        assert goal_store.get("thread-1").status == "budget_limited"

What every backend must pass is in `goal_state.testing.contract`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from goal_state import AccountingMode, Goal, GoalStatus, GoalStore
from goal_state.testing.clock import Clock

__all__ = [
    "Clock",
    "begin_goal",
    "empty_goal_file",
    "goal_clock",
    "goal_file",
    "goal_store",
    "goal_store_in_memory",
]

# The contract's assertions say what they compared, too.
pytest.register_assert_rewrite("goal_state.testing.contract")


@pytest.fixture(scope="session")
def empty_goal_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without a row in it, not to be opened: it is made once and copied for each test."""
    path = tmp_path_factory.mktemp("goal_state") / "goals.db"
    GoalStore.open(path).close()
    return path


@pytest.fixture
def goal_file(empty_goal_file: Path, tmp_path: Path) -> Path:
    """A database without a row in it, for one test. `goal_store` has it open."""
    return Path(shutil.copy(empty_goal_file, tmp_path / "goals.db"))


@pytest.fixture
def goal_store(goal_file: Path) -> Iterator[GoalStore]:
    """A store on a file of its own, for one test; other stores and processes may open `goal_file` too."""
    with GoalStore.open(goal_file, durability="normal") as store:
        yield store


@pytest.fixture
def goal_store_in_memory() -> Iterator[GoalStore]:
    """A store in memory, for one test. It takes longer to open than `goal_store`."""
    with GoalStore.open(":memory:") as store:
        yield store


@pytest.fixture
def goal_clock() -> Clock:
    """A clock for a meter that only the test moves: `GoalMeter(store, thread_id, clock_ns=goal_clock)`."""
    return Clock()


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
