"""Processes that saturate one file, against SQLite's busy timeout by hand."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.by_hand import Limit, new_file
from benchmarks.measure import Figure, Scale, ratios, rotated
from goal_state import GoalStateError, GoalStore

__all__ = ["run"]

GROUP = "processes"
PROCESSES = 4
THREADS = [f"thread-{number:04d}" for number in range(PROCESSES)]
REFERENCE = "sqlite3 by hand with its busy timeout"


class Load(NamedTuple):
    """What came of some seconds in which every process charged as fast as it could."""

    charges_per_second: float
    longest_wait_ms: float
    fairness: float
    errors: int


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    # On one file each, made once: the sides never write to the same one.
    files = {side: new_file(directory / f"{side}.db", THREADS) for side in ("ours", "by hand")}
    loads: dict[str, list[Load]] = {side: [] for side in files}
    for number in range(max(scale.rounds // 2, 1)):
        for side in rotated(list(files), number):
            loads[side].append(_load(side, files[side], scale.seconds * 2))
    mine, theirs = loads["ours"], loads["by hand"]
    where = f"{PROCESSES} processes on one file, FULL"
    rates = [[load.charges_per_second for load in side] for side in (mine, theirs)]
    yield Figure(
        GROUP,
        f"lock errors, {where}",
        [load.errors for load in mine],
        unit="",
        target=0,
        behind=f"by hand {fmean([load.errors for load in theirs]):.1f}",
    )
    yield Figure(
        GROUP,
        f"longest wait, {where}",
        [load.longest_wait_ms for load in mine],
        unit="ms",
        target=50,
        behind=f"by hand {fmean([load.longest_wait_ms for load in theirs]):.0f} ms",
        note="bounded by the disk as well: a sync that takes long is a wait",
    )
    yield Figure(
        GROUP,
        f"fairness (smallest share over largest), {where}",
        [load.fairness for load in mine],
        unit="",
        target=0.8,
        sense="at least",
        behind=f"by hand {fmean([load.fairness for load in theirs]):.2f}",
    )
    yield Figure(
        GROUP,
        f"throughput, {where}",
        ratios(*rates),
        reference=REFERENCE,
        target=0.55,
        sense="at least",
        behind=f"{fmean(rates[0]):.0f} / {fmean(rates[1]):.0f} charges a second",
    )


def _load(side: str, path: Path, seconds: float) -> Load:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    barrier = context.Barrier(PROCESSES)
    workers = [
        context.Process(target=_work, args=(side, path, thread, seconds, barrier, results))
        for thread in THREADS
    ]
    for worker in workers:
        worker.start()
    done = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    counts = [count for count, _, _ in done]
    return Load(
        sum(counts) / seconds,
        max(longest for _, longest, _ in done) * 1e3,
        min(counts) / max(counts) if max(counts) else 0.0,
        sum(errors for _, _, errors in done),
    )


def _work(side: str, path: Path, thread: str, seconds: float, barrier: Any, results: Any) -> None:
    if side == "ours":
        with GoalStore.open(path) as store:
            results.put(
                _saturate(
                    lambda: store.charge(thread, tokens=100, seconds=0.25, turn_id="turn-1"),
                    seconds,
                    barrier,
                )
            )
    else:
        limit = Limit(path, durability="full")
        results.put(_saturate(lambda: limit.charge(thread, 100, 250, "turn-1"), seconds, barrier))
        limit.close()


def _saturate(charge: Callable[[], object], seconds: float, barrier: Any) -> tuple[int, float, int]:
    count = errors = 0
    longest = 0.0
    clock = time.perf_counter
    barrier.wait()
    ends = clock() + seconds
    while (began := clock()) < ends:
        try:
            charge()
        except (GoalStateError, sqlite3.Error):
            errors += 1
        else:
            count += 1
        longest = max(longest, clock() - began)
    return count, longest, errors
