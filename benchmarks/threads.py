"""Many threads of one process on one store, against a lock and one commit per charge."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from benchmarks.by_hand import Limit, new_file
from benchmarks.measure import Figure, Scale, Spread, interleaved, profiled, ratios, rotated
from goal_state import AccountingMode, Charge, GoalStore

__all__ = ["THREADS", "Load", "load", "run"]

GROUP = "threads"
THREADS = [f"thread-{number:04d}" for number in range(128)]
MANY = 64


class Load(NamedTuple):
    """What came of some seconds at full load."""

    charges_per_second: float
    p99_seconds: float


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    limit = Limit(new_file(directory / "lock.db", THREADS), durability="full")
    lock = threading.Lock()

    def locked(thread: str) -> None:
        with lock:
            limit.charge(thread, 100, 250, "turn-1")

    try:
        with GoalStore.open(new_file(directory / "group.db", THREADS)) as store:

            def grouped(thread: str) -> None:
                store.charge(thread, tokens=100, seconds=0.25, turn_id="turn-1")

            for count in scale.threads:
                yield from _at(count, {"ours": grouped, "lock": locked}, scale)
    finally:
        limit.close()
    for durability in ("full", "normal"):
        yield _alone(directory, scale, durability)


def _at(count: int, sides: dict[str, Callable[[str], object]], scale: Scale) -> Iterator[Figure]:
    rounds = max(scale.rounds // 2, 2)
    loads: dict[str, list[Load]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in rotated(list(sides), number):
            loads[name].append(load(sides[name], count, scale.seconds))
    rate = {name: [load.charges_per_second for load in loads[name]] for name in sides}
    p99 = {name: [load.p99_seconds for load in loads[name]] for name in sides}
    at_many = count == MANY
    yield Figure(
        GROUP,
        f"throughput, {count} threads, FULL",
        ratios(rate["ours"], rate["lock"]),
        reference="a lock and one commit per charge, by hand",
        target=2.9 if at_many else None,
        sense="at least",
        behind=f"{fmean(rate['ours']):.0f} / {fmean(rate['lock']):.0f} charges a second",
    )
    yield Figure(
        GROUP,
        f"p99 wait, {count} threads, FULL",
        ratios(p99["ours"], p99["lock"]),
        reference="a lock and one commit per charge, by hand",
        target=0.25 if at_many else None,
        behind=f"{fmean(p99['ours']) * 1e3:.2f} / {fmean(p99['lock']) * 1e3:.2f} ms",
    )


def load(charge: Callable[[str], object], count: int, seconds: float) -> Load:
    waits: list[list[float]] = [[] for _ in range(count)]
    barrier = threading.Barrier(count + 1)

    def work(thread: str, mine: list[float]) -> None:
        clock = time.perf_counter
        barrier.wait()
        ends = clock() + seconds
        while (began := clock()) < ends:
            charge(thread)
            mine.append(clock() - began)

    workers = [
        threading.Thread(target=work, args=(thread, mine))
        for thread, mine in zip(THREADS, waits, strict=False)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    taken = time.perf_counter() - began
    every = sorted(wait for mine in waits for wait in mine)
    return Load(len(every) / taken, every[int(len(every) * 0.99)])


def _alone(directory: Path, scale: Scale, durability: str) -> Figure:
    """The price of the path through the group for a caller who is alone: against the same work under a
    plain lock, on the same kind of connection.
    """
    assert durability in ("full", "normal")
    with (
        GoalStore.open(
            new_file(directory / f"alone-{durability}.db", THREADS), durability=durability
        ) as store,
        GoalStore.open(
            new_file(directory / f"direct-{durability}.db", THREADS), durability=durability
        ) as other,
    ):
        lock = threading.Lock()
        first, second = itertools.cycle(THREADS), itertools.cycle(THREADS)
        # The repository that the other store writes with, used without going through its writer.
        repository = other._backend.writes_with
        executor = repository.executor

        def grouped() -> object:
            return store.charge(next(first), tokens=100, seconds=0.25, turn_id="turn-1")

        def direct() -> object:
            request = Charge(
                next(second),
                tokens=100,
                seconds=0.25,
                mode=AccountingMode.ACTIVE_ONLY,
                turn_id="turn-1",
            )
            with lock:
                executor.begin()
                try:
                    result = repository.apply(request)
                    executor.commit([])
                except BaseException:
                    executor.rollback()
                    raise
            return result

        taken = interleaved(
            {"ours": grouped, "direct": direct},
            rounds=scale.rounds,
            turns=scale.turns,
            calls=scale.calls if durability == "normal" else max(scale.calls // 4, 1),
        )
        values = ratios(taken["ours"], taken["direct"])
        medians = [Spread.of(taken[side]).median * 1e6 for side in ("ours", "direct")]
        is_missed = Spread.of(values).mean > 1.05 and len(values) >= 5
        return Figure(
            GROUP,
            f"one thread through the group's path, {durability.upper()}",
            values,
            reference="the same call under a plain lock",
            target=1.05,
            behind=f"{medians[0]:.1f} / {medians[1]:.1f} µs",
            profile=profiled(grouped) if is_missed else (),
        )
