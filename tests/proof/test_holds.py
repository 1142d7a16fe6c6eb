"""Holds are kept by budgets while processes race and die, and each is charged once."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from goal_state import GoalStatus, GoalStore
from tests.processes import all_at_once
from tests.proof.effort import IS_LONG, PATIENCE_SECONDS
from tests.proof.hold_storm import Storm
from tests.proof.programs import program

pytestmark = [pytest.mark.timeout(PATIENCE_SECONDS), pytest.mark.once]

CALLS, SEEDS = (6_000, 4) if IS_LONG else (400, 1)
"""A call reserves and mostly ends what it reserved: most make two or three changes."""


def test_a_process_that_dies_between_the_steps_of_a_hold_charges_it_once(
    tmp_path: Path, figures: Callable[[str, float], None]
) -> None:
    counts = Counter(json.loads(program("hold_kills", tmp_path / "kills", IS_LONG)))
    assert counts["kills"] >= (2 * counts["commits"] if not IS_LONG else 150)
    assert counts["commits"] >= 15
    for name, count in counts.items():
        figures(f"holds, step by step: {name}", count)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_processes_that_race_and_die_keep_every_budget(
    tmp_path: Path, seed: int, figures: Callable[[str, float], None]
) -> None:
    counts = Counter(json.loads(program("hold_storm", tmp_path / "storm", seed, CALLS)))
    assert counts["holds"] >= CALLS // 3
    assert counts["kills"] >= 1
    for what in ("settled", "release", "cut", "leave", "expire", "late", "refused"):
        assert counts[what] > 0, what
    for name, count in counts.items():
        figures(f"holds, all at once: {name}", count)


# -- that the check notices --------------------------------------------------------------------------


@pytest.fixture
def calm(tmp_path: Path) -> Storm:
    """Trees of goals in which one hold was settled."""
    storm = Storm(tmp_path / "calm", 0)
    with GoalStore.open(storm.path) as store:
        store.reserve("0ax", tokens=5, cost=1).settle(tokens=5, cost=1)
    storm.check()
    return storm


_OVER = """
UPDATE goal_state_goals SET held_tokens = token_budget - tokens_used + 1 WHERE thread_id = '0';
UPDATE goal_state_goals SET held_tokens = 0 WHERE thread_id = '0';
"""
_OTHER_FIGURE = "UPDATE goal_state_holds SET charged_tokens = 6;"
_TWICE = """
UPDATE goal_state_events SET calls_delta = 2 WHERE calls_delta = 1;
UPDATE goal_state_events SET cumulative_calls = 2 WHERE cumulative_calls = 1;
UPDATE goal_state_goals SET calls_used = 2 WHERE calls_used = 1;
"""


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_OVER, "above its budget by 1 tokens"),
        (_OTHER_FIGURE, "has paid 5 tokens"),
        (_TWICE, "has charged 2 calls"),
    ],
    ids=["over", "other figure", "twice"],
)
def test_what_is_wrong_is_noticed(calm: Storm, damage: str, told: str) -> None:
    with closing(sqlite3.connect(calm.path)) as raw:
        raw.executescript(damage)
    with pytest.raises(AssertionError, match=told):
        calm.check()


# -- of many who ask, one ----------------------------------------------------------------------------

PROCESSES, GOALS = (8, 400) if IS_LONG else (4, 40)

_RACING = """
import json, sys
from goal_state import GoalStore
from goal_state.errors import ClaimHeldError

path, goals, number = sys.argv[1], int(sys.argv[2]), sys.argv[3]
woken, claimed = [], []
with GoalStore.open(path, durability="normal") as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(3):
        woken += [goal.thread_id for goal in store.resume_due()]
    for n in range(goals):
        try:
            claimed.append([f"t{n}", store.claim(f"t{n}", f"owner {number}", 600).claim_number])
        except ClaimHeldError:
            pass
print(json.dumps([woken, claimed]))
"""


def test_of_many_processes_one_wakes_each_goal_and_one_claims_it(tmp_path: Path) -> None:
    path = tmp_path / "goals.db"
    threads = [f"t{number}" for number in range(GOALS)]
    with GoalStore.open(path, durability="normal") as store:
        for thread_id in threads:
            store.set(
                thread_id,
                objective="Ship",
                status=GoalStatus.USAGE_LIMITED,
                resume_at=datetime(2020, 1, 1, tzinfo=UTC),
            )
    told = [
        json.loads(document) for document in all_at_once(_RACING, path, GOALS, processes=PROCESSES)
    ]
    woken = [thread_id for one, _ in told for thread_id in one]
    claimed = [thread_id for _, one in told for thread_id, _ in one]
    assert sorted(woken) == sorted(claimed) == sorted(threads)
    with GoalStore.open(path) as store:
        assert store.count(GoalStatus.ACTIVE) == GOALS
        for number, (_, one) in enumerate(told):
            for thread_id, claim_number in one:
                goal = store.get(thread_id)
                assert goal is not None
                assert (goal.claim_owner, goal.claim_number) == (f"owner {number}", claim_number)
        assert store.verify() == []
