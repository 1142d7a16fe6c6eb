"""Kills a process that writes, again and again, and checks the database that it leaves behind.

    python -m tests.proof.crash FOLDER SEED POINT_KILLS RANDOM_KILLS

Prints its figures as one JSON object; fails with a traceback at the first violated check.
"""

from __future__ import annotations

import functools
import json
import os
import random
import select
import signal
import sqlite3
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from goal_state import GoalStore
from goal_state.delivery import consumers
from tests.proof import workload
from tests.proof.points import Points
from tests.proof.workload import CONSUMER, Acks, Due, read_state

LANES: Final = (0, 1, 2)
CALLS: Final = 30
"""Of each lane, in a process that is not killed before their end."""
LEASE_SECONDS: Final = 0.1
KILLS_OF_A_DATABASE: Final = 12


class Kill(NamedTuple):
    """When a process dies: at the n-th time that it passes a point, or after a while."""

    point: str | None = None
    hit: int = 1
    after_seconds: float | None = None


class Life:
    """A database and the processes that write to it, one after the other, each of which dies."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.path = folder / "goals.db"
        self.seed = seed
        self.due = Due(seed)
        self.done = dict.fromkeys(LANES, 0)
        self.cursor = 0
        self.log: list[tuple[int, str]] = []

    def close(self) -> None:
        self.due.close()

    def run(self, kill: Kill) -> bool:
        """Runs a process until it is killed, and checks what is left; False if it came to its end."""
        said, status = _in_child(functools.partial(self._write, kill), kill.after_seconds)
        acks = Acks()
        acks.add(said)
        was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert was_killed or status == 0, f"the process ended by itself with status {status}"
        self.check(acks)
        return was_killed

    def passed(self) -> Counter[str]:
        """Which points a process passes that is not killed, and how often."""

        def write(acks: int) -> None:
            points = self._write(Kill(), acks)
            os.write(acks, b"\n" + json.dumps(points.passed).encode())

        said, status = _in_child(write, None)
        assert status == 0
        lines, _, counts = said.rpartition(b"\n\n")
        acks = Acks()
        acks.add(lines + b"\n")
        self.check(acks)
        return Counter(json.loads(counts))

    def _write(self, kill: Kill, acks: int) -> Points:
        points = Points(kill.point, kill.hit)
        points.install()
        workload.shorten_leases(LEASE_SECONDS)
        workload.run(
            self.path,
            acks,
            seed=self.seed,
            done=self.done,
            calls=CALLS if kill.after_seconds is None else 1_000_000,
            around_sink=points.reach,
        )
        return points

    def check(self, acks: Acks) -> None:
        """What a dead process left behind is whole, and all that it had acknowledged is there."""
        with GoalStore.open(self.path) as store, closing(sqlite3.connect(self.path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert store.verify() == []
            self.done = {
                lane: _calls_kept(raw, self.due, lane, acks.done.get(lane, made))
                for lane, made in self.done.items()
            }
            log = raw.execute(
                "SELECT position, event_id FROM goal_state_events ORDER BY 1"
            ).fetchall()
            row = raw.execute(
                "SELECT position FROM goal_state_cursors WHERE name = ?", (CONSUMER,)
            ).fetchone()
        assert log[: len(self.log)] == self.log, "the log has changed where it was written before"
        known = set(log)
        assert set(acks.heard) <= known, "a listener heard of what never happened"
        assert acks.heard == sorted(acks.heard), "a listener heard out of order"
        behind = [event for event in log if event[0] > self.cursor]
        assert acks.took == behind[: len(acks.took)], "a delivery is missing or out of order"
        taken = acks.took[-1][0] if acks.took else self.cursor
        cursor = row[0] if row is not None else 0
        assert self.cursor <= cursor <= taken, f"the cursor is at {cursor}, delivered was {taken}"
        self.log, self.cursor = log, cursor

    def finish(self) -> None:
        """Lets a consumer come to the end of the log: each event was delivered by then."""
        took: list[tuple[int, str]] = []
        with (
            GoalStore.open(self.path) as store,
            consumers.Consumer(
                store,
                CONSUMER,
                lambda events: took.extend((event.position, event.event_id) for event in events),
                batch_size=100,
                on_close=lambda _: None,
                lease_seconds=LEASE_SECONDS,
            ) as consumer,
        ):
            assert consumer.drain(60)
        assert took == [event for event in self.log if event[0] > self.cursor]


def _calls_kept(raw: sqlite3.Connection, due: Due, lane: int, acknowledged: int) -> int:
    """How many calls of a lane are in the database: all that were acknowledged, and at most one more."""
    found = read_state(raw, lane)
    for number in (acknowledged, acknowledged + 1):
        if found == due.state(lane, number):
            return number
    raise AssertionError(
        f"lane {lane}: after {acknowledged} calls were acknowledged there is\n  {found}\nand not\n"
        f"  {due.state(lane, acknowledged)}\nnor\n  {due.state(lane, acknowledged + 1)}"
    )


def _in_child(program: Callable[[int], object], after_seconds: float | None) -> tuple[bytes, int]:
    """Runs a program in a fork, killing it after a while, and returns what it wrote and how it ended."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(readable)
            program(writable)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writable)
    said = bytearray()
    deadline = time.monotonic() + (60 if after_seconds is None else after_seconds)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            os.kill(child, signal.SIGKILL)
            assert after_seconds is not None, "the process hangs"
            deadline += 60
            continue
        if select.select([readable], [], [], left)[0]:
            piece = os.read(readable, 1 << 16)
            if not piece:
                break
            said += piece
    os.close(readable)
    return bytes(said), os.waitpid(child, 0)[1]


def crash(folder: Path, seed: int, point_kills: int, random_kills: int) -> Counter[str]:
    """Kills processes at points (at each of them, and in all at least so often) and at random moments.

    Returns what was done, by kind.
    """
    draw = random.Random(seed)
    folder.mkdir()
    scout = Life(folder, seed)
    counts = scout.passed()
    only_once = counts.keys() - scout.passed().keys()  # in the life of a database
    scout.close()
    points = sorted(counts)
    migrating = [point for point in points if point.startswith("after migrating by")]
    # Each of these takes a new database, and all lie in one transaction: a few stand for it.
    left_out = set(migrating) - set(migrating[::4]) if not point_kills else set()
    plan = [Kill(point) for point in points if point not in left_out]
    plan += [
        Kill(point, draw.randint(1, counts[point]))
        for point in draw.choices(points, k=max(point_kills - len(plan), 0))
    ]
    plan += [Kill(after_seconds=draw.uniform(0, 0.2)) for _ in range(random_kills)]
    draw.shuffle(plan)

    figures: Counter[str] = Counter()
    life: Life | None = None
    for number, kill in enumerate(plan):
        if life is None or number % KILLS_OF_A_DATABASE == 0 or kill.point in only_once:
            if life is not None:
                _finish(life, figures)
            new = folder / str(number)
            new.mkdir()
            life = Life(new, seed + number)
        for attempt in range(40):
            if life.run(kill._replace(hit=max(kill.hit >> attempt, 1))):
                break
            # The process came to its end before it had passed the point so often.
            figures["processes that came to their end"] += 1
        else:
            raise AssertionError(f"no process passes the point any more: {kill.point}")
        what = "at random moments" if kill.point is None else "at named points"
        figures[f"kills {what}"] += 1
        if kill.point is not None:
            figures[f"point: {kill.point}"] += 1
    if life is not None:
        _finish(life, figures)
    return figures


def _finish(life: Life, figures: Counter[str]) -> None:
    life.finish()
    life.close()
    figures["databases"] += 1
    figures["calls kept"] += sum(life.done.values())
    figures["events delivered"] += len(life.log)


if __name__ == "__main__":
    warnings.simplefilter("error")
    place, *numbers = sys.argv[1:]
    print(json.dumps(crash(Path(place), *map(int, numbers))))
