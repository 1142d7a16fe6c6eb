"""A writing process can be killed at any moment: what it acknowledged is kept, and the database is sound."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.proof.crash import Life
from tests.proof.effort import IS_LONG, PATIENCE_SECONDS
from tests.proof.programs import program
from tests.proof.workload import Ack, Acks, run

pytestmark = [pytest.mark.timeout(PATIENCE_SECONDS), pytest.mark.once]

# Every point comes once in any case, in the short form but a part of those inside the one transaction of a
# migration.
SHARDS, POINT_KILLS, RANDOM_KILLS = (8, 160, 100) if IS_LONG else (1, 0, 8)
LEAST_KILLS = 250 if IS_LONG else 50

NAMED = {
    "before BEGIN",
    "after BEGIN",
    "after goals._INSERT",
    "after goals._UPDATE",
    "after goals._CHARGE",
    "after ledger._APPEND",
    "before COMMIT",
    "after COMMIT",
    "before the listeners",
    "before one listener",
    "after one listener",
    "after the listeners",
    "before the sink",
    "after the sink",
    "before moving the cursor",
    "after moving the cursor",
}
"""Points that must be among those that were found: the most telling ones."""


@pytest.mark.parametrize("shard", range(SHARDS))
def test_killed_processes_lose_no_acknowledged_call(
    tmp_path: Path, shard: int, figures: Callable[[str, float], None]
) -> None:
    seed = 1_000 * shard + 7
    said = program("crash", tmp_path / "crash", seed, POINT_KILLS, RANDOM_KILLS)
    counts = Counter(json.loads(said))
    points = {name: count for name, count in counts.items() if name.startswith("point: ")}
    assert {f"point: {name}" for name in NAMED} <= points.keys()
    kills = counts["kills at named points"] + counts["kills at random moments"]
    assert kills >= LEAST_KILLS
    if shard == 0:
        figures("crash: named points", len(points))
    for name in counts.keys() - points.keys():
        figures(f"crash: {name}", counts[name])


# -- that the check notices --------------------------------------------------------------------------


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    """A database that was written to, and is as it must be."""
    life = Life(tmp_path, 5)
    said = tmp_path / "acks"
    with said.open("wb", buffering=0) as file:
        run(life.path, file.fileno(), seed=life.seed, done=life.done, calls=15)
    acks = Acks()
    acks.add(said.read_bytes())
    life.check(acks)
    assert len(life.log) > 10
    yield life
    life.close()


def lines(*acks: Ack) -> Acks:
    taken = Acks()
    taken.add(b"".join(ack.line() for ack in acks))
    return taken


def test_a_lost_call_is_noticed(life: Life) -> None:
    number = next(
        number
        for number in range(life.done[0] + 2, life.done[0] + 50)
        if life.due.state(0, number) != life.due.state(0, life.done[0])
    )
    with pytest.raises(AssertionError, match="lane 0: after"):
        life.check(lines(Ack("done", number, "0")))


def test_a_call_that_is_half_there_is_noticed(life: Life) -> None:
    with closing(sqlite3.connect(life.path)) as raw, raw:
        assert raw.execute("UPDATE goal_state_goals SET objective = 'Another'").rowcount
    with pytest.raises(AssertionError, match="lane"):
        life.check(Acks())


def test_an_event_that_a_listener_heard_and_that_never_happened_is_noticed(life: Life) -> None:
    with pytest.raises(AssertionError, match="never happened"):
        life.check(lines(Ack("heard", life.log[0][0], "another id")))


@pytest.mark.parametrize("seed", range(2))
def test_a_delivery_that_is_missing_or_out_of_order_is_noticed(life: Life, seed: int) -> None:
    life.cursor = 0  # as if nothing had been delivered yet
    due = [Ack("took", *event) for event in life.log]
    broken = due[1:] if seed else random.Random(seed).sample(due, len(due))
    assert broken != due
    with pytest.raises(AssertionError, match="missing or out of order"):
        life.check(lines(*broken))
