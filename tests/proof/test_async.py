"""What an async store acknowledged survives the kill of its process, and sums are exact whoever writes."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from goal_state import EventKind, GoalStore
from tests.processes import CHECKOUT
from tests.proof.async_tasks import HOLDERS, LOOPS
from tests.proof.effort import IS_LONG, PATIENCE_SECONDS

pytestmark = pytest.mark.timeout(PATIENCE_SECONDS)

KILLS, PROCESSES, CHARGES = (40, 3, 400) if IS_LONG else (3, 2, 5)
TASKS = 500
"""On each loop."""


def started(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.proof.async_tasks", *map(str, arguments)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )


def made(database: Path) -> Path:
    with GoalStore.open(database, durability="normal") as store:
        store.create("t", "Ship")
        store.create("held", "Ship")
    return database


def charged(store: GoalStore) -> dict[str | None, int]:
    return {
        event.idempotency_key: event.tokens_delta
        for event in store.events(thread_id="t")
        if event.kind is EventKind.USAGE_ACCOUNTED
    }


def test_a_kill_with_a_thousand_tasks_in_flight_loses_nothing_that_was_acknowledged(
    path: Path,
) -> None:
    database = made(path)
    acknowledged: dict[str, int] = {}
    chance = random.Random(7)
    for number in range(KILLS):
        with started(database, number, TASKS, 0) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 3_000)):
                key, tokens = process.stdout.readline().split()
                acknowledged[key] = int(tokens)
            process.kill()
            for line in process.stdout.read().splitlines(keepends=True):
                if line.endswith("\n"):
                    key, tokens = line.split()
                    acknowledged[key] = int(tokens)
        with GoalStore.open(database, durability="normal") as store:
            stored = charged(store)
            assert acknowledged.items() <= stored.items()
            goal = store.get("t")
            assert goal is not None
            assert goal.tokens_used == sum(stored.values())
            assert store.verify() == []
            assert len(store.holds("held")) <= (number + 1) * LOOPS * HOLDERS


def test_two_loops_in_each_of_several_processes_make_exact_sums_on_one_file(path: Path) -> None:
    database = made(path)
    processes = [started(database, number, TASKS // 10, CHARGES) for number in range(PROCESSES)]
    acknowledged: dict[str, int] = {}
    for process in processes:
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0
        acknowledged |= {key: int(tokens) for key, tokens in map(str.split, out.splitlines())}
    with GoalStore.open(database, durability="normal") as store:
        assert charged(store) == acknowledged
        assert len(acknowledged) == PROCESSES * LOOPS * (TASKS // 10) * CHARGES
        goal, held = store.get("t"), store.get("held")
        assert goal is not None
        assert held is not None
        assert goal.tokens_used == sum(acknowledged.values())
        assert held.tokens_used == PROCESSES * LOOPS * HOLDERS * CHARGES * 7
        assert held.live_holds == 0
        assert store.verify() == []
