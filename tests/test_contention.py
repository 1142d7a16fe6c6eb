"""Processes of four threads each on one file: nobody is refused, nothing is lost, nobody starves.

`HYPOTHESIS_PROFILE=proof` makes it long.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import pytest

from goal_state import EventKind, GoalEvent, GoalStore
from goal_state.storage.schema import HEAD_REVISION, VERSION_TABLE
from tests.databases import contents
from tests.next_schema import NEXT_REVISION
from tests.processes import all_at_once
from tests.upgrade.make_fixtures import fixture

AT_LENGTH = os.environ.get("HYPOTHESIS_PROFILE") == "proof"
PROCESSES, THREADS = (8, 4) if AT_LENGTH else (4, 4)
STEPS = 400 if AT_LENGTH else 10
PATIENCE_SECONDS = 1500.0 if AT_LENGTH else 100.0

pytestmark = [pytest.mark.timeout(PATIENCE_SECONDS + 20), pytest.mark.once]


# -- mixed operations --------------------------------------------------------------------------------

_WORKING = """
import json, os, sys, threading, time
from pathlib import Path
from goal_state import Charge, GoalExistsError, GoalStore, IdempotencyConflictError, TokenUsage
from tests import next_schema

next_schema.use(Path(sys.argv.pop(1)))
path, consumed, steps, threads, processes, process = *sys.argv[1:3], *map(int, sys.argv[3:])
began, openings, reports = [], [], []
everybody = threading.Barrier(threads)
consumed = os.open(consumed, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def open_first(me):
    # Each thread its own store, on a file of an older schema.
    began = time.perf_counter()
    with GoalStore.open(path) as store:
        openings.append(time.perf_counter() - began)
        store.create(me, "Ship", token_budget=1_000_000)


def note(events):
    os.write(consumed, f"{[event.position for event in events]}\\n".encode())


def refused(error, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except error:
        return 1
    return 0


def work(number):
    me = f"{process}.{number}"
    open_first(me)
    if everybody.wait() == 0:
        stores.append(GoalStore.open(path))
        stores[0].consume("audit", note)
        # All processes begin to work at once: whoever has opened the file has a goal in it.
        for name in [f"{p}.{t}" for p in range(processes) for t in range(threads)]:
            while stores[0].get(name) is None:
                time.sleep(0.01)
        began.append(time.perf_counter())
    everybody.wait()
    work_on(stores[0], me)


def work_on(store, me):
    waits, unkeyed, first_uses, duplicates, refusals, cleared = [], 0, 0, 0, 0, []

    def timed(call, *arguments, **named):
        began = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            waits.append(time.perf_counter() - began)

    def charge_once(thread, tokens, key):
        made = timed(store.charge, thread, tokens=tokens, idempotency_key=key, turn_id=me)
        again = timed(store.charge, thread, tokens=tokens, idempotency_key=key, turn_id=me)
        assert made.applied and again.duplicate, (made, again)
        return int(not made.duplicate)

    timed(store.set_baseline, me, TokenUsage())
    for step in range(steps):
        pot = f"pot {step % 3}"
        first_uses += charge_once("unbounded", 1 + step % 7, f"key {step}")
        unkeyed += timed(store.charge, "unbounded", tokens=1, seconds=0.001, turn_id=me).applied
        assert charge_once(me, 5, f"key {step}")
        timed(store.record_total, me, TokenUsage(10 * (step + 1), 0, 0, step + 1), turn_id=me)
        timed(store.record_total, me, TokenUsage(10 * (step + 1), 0, 0, step + 1), turn_id=me)
        timed(store.charge_many, [Charge("unbounded", tokens=2), Charge(me, tokens=2), Charge("?")])
        refusals += timed(refused, GoalExistsError, store.create, me, "Another")
        refusals += timed(
            refused, IdempotencyConflictError, store.charge, me, tokens=6, idempotency_key="key 0"
        )
        timed(store.set, me, status="paused", turn_id=me)
        assert not timed(store.charge, me, tokens=1000).applied
        timed(store.resume, me, turn_id=me)
        timed(store.replace, pot, "Ship")
        timed(store.charge, pot, tokens=1, turn_id=me)
        if (goal := timed(store.clear, pot)) is not None:
            cleared.append(goal.goal_id)
        assert timed(store.get, me).tokens_used == (5 + 11 + 2) * (step + 1)
        assert timed(store.usage, me).total.input_tokens == 10 * (step + 1)
        timed(lambda: list(store.events(goal_id=timed(store.get, me).goal_id, limit=20)))
        assert timed(store.count) >= 1
    reports.append([me, waits, unkeyed, first_uses, refusals, cleared])


stores = []
workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
print("ready", flush=True)
sys.stdin.readline()
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
seconds = time.perf_counter() - began[0]
stores[0].close()
print(json.dumps({"seconds": seconds, "openings": openings, "reports": reports}))
"""


@dataclass(frozen=True)
class Worker:
    """What one thread of a process reported."""

    name: str
    waits: list[float]
    unkeyed: int
    first_uses: int
    refusals: int
    cleared: list[str]


def shown(waits: list[float]) -> str:
    cuts = quantiles(waits, n=100)
    return f"{1000 * cuts[49]:.2f} ms p50, {1000 * cuts[98]:.1f} ms p99, {1000 * max(waits):.0f} ms max"


@pytest.mark.slow
def test_many_threads_of_many_processes_on_one_file(
    tmp_path: Path, next_revision: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They race to upgrade an older file, then work on it, with one consumer among all of them."""
    path, consumed = tmp_path / "goals.db", tmp_path / "consumed"
    shutil.copy(fixture(HEAD_REVISION), path)
    with closing(sqlite3.connect(path)) as connection:
        had = connection.execute("SELECT max(position) FROM goal_state_events").fetchone()[0]

    def note(batch: Sequence[GoalEvent]) -> None:
        with consumed.open("a") as file:
            file.write(f"{[event.position for event in batch]}\n")

    printed = [
        json.loads(document)
        for document in all_at_once(
            _WORKING,
            *(next_revision, path, consumed, STEPS, THREADS, PROCESSES),
            processes=PROCESSES,
            patience_seconds=PATIENCE_SECONDS,
        )
    ]
    workers = [Worker(*report) for one in printed for report in one["reports"]]
    # A thread that raised reported nothing.
    assert len(workers) == PROCESSES * THREADS
    assert contents(path)[VERSION_TABLE] == [(NEXT_REVISION,)]
    with GoalStore.open(path, migrate=False) as store:
        assert store.verify() == []
        shared = store.get("unbounded")
        assert shared is not None
        # Each shared key was charged by one of the threads, each other charge by everyone.
        assert sum(worker.first_uses for worker in workers) == STEPS
        assert [worker.unkeyed for worker in workers] == [STEPS] * len(workers)
        keyed = sum(1 + step % 7 for step in range(STEPS))
        assert shared.tokens_used == keyed + len(workers) * STEPS * (1 + 2)
        assert shared.time_used_ms == len(workers) * STEPS
        for worker in workers:
            goal = store.get(worker.name)
            assert goal is not None
            assert goal.tokens_used == STEPS * (5 + 11 + 2)
            assert worker.refusals == 2 * STEPS
        events = list(store.events(after=had))
        cleared = [goal_id for worker in workers for goal_id in worker.cleared]
        assert len(cleared) == len(set(cleared))
        assert Counter(e.goal_id for e in events if e.kind is EventKind.CLEARED) == Counter(cleared)
        assert [event.position for event in events] == [had + 1 + n for n in range(len(events))]
        # Whoever closed last had five seconds to deliver the rest, and maybe not enough of them.
        with store.consume("audit", note) as consumer:
            assert consumer.drain(PATIENCE_SECONDS)
    batches = [json.loads(line) for line in consumed.read_text().splitlines()]
    taken = [position for batch in batches for position in batch]
    # Nobody crashed, so that nothing was delivered twice either.
    assert taken == sorted(set(taken))
    assert taken[-len(events) :] == [event.position for event in events]

    turns = [event.turn_id for event in events if event.turn_id is not None]
    shares = shares_at_first_end(turns)
    waits = [wait for worker in workers for wait in worker.waits]
    slowest = max(workers, key=lambda worker: sum(worker.waits))
    with capsys.disabled():
        print(
            f"\n{len(waits)} calls of {len(workers)} threads: {shown(waits)},"
            f" {len(waits) / max(one['seconds'] for one in printed):,.0f} calls/s;"
            f" the slowest thread: {shown(slowest.waits)};"
            f" opening: {shown([wait for one in printed for wait in one['openings']])};"
            f" when the first thread was done, the last one was by {min(shares.values()):.0%}"
        )
    # Nobody starves: whoever came first, all the others had come far by then.
    assert min(shares.values()) > 0.2


def shares_at_first_end(turns: list[str]) -> dict[str, float]:
    """How much of its own work each worker had done by the time that the first one was done."""
    first_to_end = min({turn: place for place, turn in enumerate(turns)}.values())
    done, all_of_it = Counter(turns[: first_to_end + 1]), Counter(turns)
    return {turn: done[turn] / all_of_it[turn] for turn in all_of_it}
