"""What `goal_state.testing` gives to the tests of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from goal_state import GoalMeter, GoalStatus, GoalStore
from goal_state.testing import Clock, begin_goal

pytest_plugins = ["goal_state.testing.fixtures"]


def test_goal_store_has_nothing_in_it_and_works(goal_store: GoalStore) -> None:
    assert goal_store.count() == 0
    goal_store.create("thread-1", "Ship")
    assert goal_store.charge("thread-1", tokens=5).applied


def test_goal_file_is_what_goal_store_has_open(goal_store: GoalStore, goal_file: Path) -> None:
    goal = goal_store.create("thread-1", "Ship")
    with GoalStore.open(goal_file) as other:
        assert other.get("thread-1") == goal


def test_goal_store_in_memory_makes_no_file(
    goal_store_in_memory: GoalStore, tmp_path: Path
) -> None:
    goal_store_in_memory.create("thread-1", "Ship")
    assert list(tmp_path.iterdir()) == []


def test_goal_clock_tells_a_meter_how_long_a_turn_took(
    goal_store: GoalStore, goal_clock: Clock
) -> None:
    begin_goal(goal_store)
    meter = GoalMeter(goal_store, "thread-1", clock_ns=goal_clock)
    meter.start_turn("turn-1")
    goal_clock.tick(seconds=7)
    meter.finish_turn()
    goal = goal_store.get("thread-1")
    assert goal is not None
    assert goal.time_used_seconds == 7


def test_begin_goal_charges_usage_that_the_log_explains(goal_store: GoalStore) -> None:
    goal = begin_goal(goal_store, token_budget=1_000, tokens_used=990, seconds_used=1.5)
    assert goal == goal_store.get("thread-1")
    assert (goal.tokens_used, goal.remaining_tokens, goal.time_used_ms) == (990, 10, 1_500)
    assert goal_store.verify() == []


@pytest.mark.parametrize("status", GoalStatus)
def test_begin_goal_with_a_status_gives_it_that_status(
    goal_store: GoalStore, status: GoalStatus
) -> None:
    goal = begin_goal(goal_store, token_budget=10, tokens_used=9, status=status)
    assert (goal.status, goal.tokens_used) == (status, 9)


def test_begin_goal_that_has_used_up_its_budget_is_budget_limited(goal_store: GoalStore) -> None:
    assert begin_goal(goal_store, token_budget=10, tokens_used=10).status == "budget_limited"


def test_begin_goal_on_a_thread_that_has_one_replaces_it(goal_store: GoalStore) -> None:
    first = begin_goal(goal_store, tokens_used=5)
    second = begin_goal(goal_store)
    assert second.goal_id != first.goal_id
    assert second.tokens_used == 0


FORGETFUL = """
import pytest

from goal_state import GoalStore
from goal_state.testing.contract import StoreContract, Subject


class Forgetful(Subject):
    def charge(self, thread_id, **usage):
        return super().charge(thread_id, **{**usage, "seconds": 0})


class TestForgetful(StoreContract):
    @pytest.fixture
    def make_subject(self):
        return lambda **options: Forgetful(GoalStore.open(":memory:", **options))


class TestSound(StoreContract):
    @pytest.fixture
    def open_store(self):
        return lambda **options: GoalStore.open(":memory:", **options)
"""


@pytest.mark.slow
def test_contract_on_a_store_that_forgets_time_fails_and_says_what_differs(tmp_path: Path) -> None:
    (tmp_path / "test_forgetful.py").write_text(FORGETFUL)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "adds_usage"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "FAILED test_forgetful.py::TestForgetful" in done.stdout
    assert "At index 1 diff: 0 != 3200" in done.stdout
