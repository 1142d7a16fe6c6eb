"""Stores, and a clock, for one test each: `pytest_plugins = ["goal_state.testing.fixtures"]`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from goal_state import GoalStore
from goal_state.testing.clock import Clock

__all__ = ["empty_goal_file", "goal_clock", "goal_file", "goal_store", "goal_store_in_memory"]


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
