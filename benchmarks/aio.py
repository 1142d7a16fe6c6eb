"""Many tasks of one event loop on one store: awaited, against what a host would write without it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import by_hand
from benchmarks.by_hand import new_file
from benchmarks.measure import Figure, Scale, Spread, ratios, rotated, timed
from benchmarks.threads import Load
from goal_state import AsyncGoalStore, GoalStore

__all__ = ["run"]

GROUP = "aio"
TASKS = 64
THREADS = [f"thread-{number:04d}" for number in range(TASKS)]
LOCKED_SECONDS = 2.0

Charge = Callable[[str], Awaitable[object]]

LOCKING = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    with asyncio.Runner() as runner:
        yield from runner.run(_many(directory, scale))
        yield runner.run(_alone(directory, scale))
        yield runner.run(_stall(directory, scale))


async def _many(directory: Path, scale: Scale) -> list[Figure]:
    """All tasks charge for some seconds; and one thread, by itself, with no loop."""
    loads: dict[str, list[Load]] = {"ours": [], "to_thread": [], "direct": [], "aiosqlite": []}
    async with (
        _by_hand(new_file(directory / "aiosqlite.db", THREADS)) as written_by_hand,
        AsyncGoalStore.open(new_file(directory / "ours.db", THREADS)) as store,
    ):
        with (
            GoalStore.open(new_file(directory / "to_thread.db", THREADS)) as threaded,
            GoalStore.open(new_file(directory / "direct.db", THREADS)) as direct,
        ):

            async def ours(thread: str) -> None:
                await store.charge(thread, tokens=100, seconds=0.25, turn_id="turn-1")

            def charge(store: GoalStore, thread: str) -> None:
                store.charge(thread, tokens=100, seconds=0.25, turn_id="turn-1")

            async def to_thread(thread: str) -> None:
                await asyncio.to_thread(charge, threaded, thread)

            sides: dict[str, Callable[[], Coroutine[Any, Any, Load]]] = {
                "ours": lambda: _load(ours, scale.seconds),
                "to_thread": lambda: _load(to_thread, scale.seconds),
                "direct": lambda: _direct(functools.partial(charge, direct), scale.seconds),
            }
            if written_by_hand is not None:
                sides["aiosqlite"] = functools.partial(_load, written_by_hand, scale.seconds)
            for number in range(max(scale.rounds // 2, 2) + 1):
                for name in rotated(list(sides), number):
                    load = await sides[name]()
                    if number:  # the first round fills caches and starts threads
                        loads[name].append(load)
    rate = {name: [load.charges_per_second for load in each] for name, each in loads.items()}
    p99 = {name: [load.p99_seconds for load in each] for name, each in loads.items()}

    def throughput(reference: str, words: str, target: float) -> Figure:
        name = f"throughput, {TASKS} tasks, FULL, against {reference}"
        if not rate[reference]:
            return Figure(GROUP, name, (), note="not installed")
        return Figure(
            GROUP,
            name,
            ratios(rate["ours"], rate[reference]),
            reference=words,
            target=target,
            sense="at least",
            behind=f"{fmean(rate['ours']):.0f} / {fmean(rate[reference]):.0f} charges a second",
        )

    return [
        throughput("direct", "direct calls of one thread", 7),
        throughput("to_thread", "the same calls by asyncio.to_thread", 5),
        throughput("aiosqlite", "aiosqlite by hand, one commit per charge", 15),
        Figure(
            GROUP,
            f"p99 wait, {TASKS} tasks, FULL",
            ratios(p99["ours"], p99["to_thread"]),
            reference="the same calls by asyncio.to_thread",
            target=0.2,
            behind=f"{fmean(p99['ours']) * 1e3:.2f} / {fmean(p99['to_thread']) * 1e3:.2f} ms",
        ),
    ]


async def _load(charge: Charge, seconds: float) -> Load:
    waits: list[float] = []
    clock = time.perf_counter
    began = clock()
    ends = began + seconds

    async def work(thread: str) -> None:
        while (called := clock()) < ends:
            await charge(thread)
            waits.append(clock() - called)

    await asyncio.gather(*map(work, THREADS))
    taken = clock() - began
    waits.sort()
    return Load(len(waits) / taken, waits[int(len(waits) * 0.99)])


async def _direct(charge: Callable[[str], None], seconds: float) -> Load:
    waits: list[float] = []
    clock = time.perf_counter
    began = clock()
    for thread in itertools.cycle(THREADS):
        called = clock()
        if called > began + seconds:
            break
        charge(thread)
        waits.append(clock() - called)
    waits.sort()
    return Load(len(waits) / (clock() - began), waits[int(len(waits) * 0.99)])


@contextlib.asynccontextmanager
async def _by_hand(path: Path) -> AsyncIterator[Charge | None]:
    """What a host writes with aiosqlite: one connection, a lock, and a commit for each charge."""
    try:
        import aiosqlite
    except ImportError:
        yield None
        return
    async with aiosqlite.connect(path, isolation_level=None) as connection:
        for pragma in ("journal_mode = WAL", "foreign_keys = ON", "synchronous = FULL"):
            await connection.execute(f"PRAGMA {pragma}")
        lock = asyncio.Lock()

        async def charge(thread: str) -> None:
            async with lock:
                await connection.execute("BEGIN IMMEDIATE")
                async with connection.execute(by_hand.GOAL, (thread,)) as cursor:
                    row = await cursor.fetchone()
                assert row is not None
                change, event = by_hand.charged(tuple(row), thread, 100, 250, "turn-1")
                await connection.execute(by_hand.CHARGE, change)
                await connection.execute(by_hand.EVENT, event)
                await connection.execute("COMMIT")

        yield charge


async def _alone(directory: Path, scale: Scale) -> Figure:
    """One task, whose every call goes to a thread and comes back, against the call itself."""
    first, second = itertools.cycle(THREADS), itertools.cycle(THREADS)
    calls = max(scale.calls // 4, 1)
    taken: dict[str, list[float]] = {"ours": [], "direct": []}
    async with AsyncGoalStore.open(new_file(directory / "alone.db", THREADS)) as store:
        with GoalStore.open(new_file(directory / "alone-direct.db", THREADS)) as other:

            def direct() -> None:
                other.charge(next(second), tokens=100, seconds=0.25, turn_id="turn-1")

            for number in range(scale.rounds + 1):
                spent = dict.fromkeys(taken, 0.0)
                for turn in range(scale.turns):
                    for name in rotated(list(taken), number + turn):
                        if name == "direct":
                            spent[name] += timed(direct, calls)
                            continue
                        began = time.perf_counter()
                        for _ in range(calls):
                            await store.charge(
                                next(first), tokens=100, seconds=0.25, turn_id="turn-1"
                            )
                        spent[name] += (time.perf_counter() - began) / calls
                if number:
                    for name, seconds in spent.items():
                        taken[name].append(seconds / scale.turns)
    medians = [Spread.of(taken[side]).median * 1e6 for side in ("ours", "direct")]
    return Figure(
        GROUP,
        "one task alone, FULL",
        ratios(taken["ours"], taken["direct"]),
        reference="the same call, direct",
        target=1.5,
        behind=f"{medians[0]:.1f} / {medians[1]:.1f} µs",
    )


async def _stall(directory: Path, scale: Scale) -> Figure:
    """How late a loop is at the most, in which nothing else runs, while tasks wait for another process."""
    path = new_file(directory / "stall.db", THREADS)
    seconds = min(LOCKED_SECONDS, scale.seconds * 4)
    stalls: list[float] = []
    idle: list[float] = []
    async with AsyncGoalStore.open(path) as store:
        for _ in range(max(scale.rounds // 3, 2)):
            command = [sys.executable, "-c", LOCKING, str(path), str(seconds)]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
                assert process.stdout is not None
                process.stdout.readline()
                charges = [
                    asyncio.create_task(store.charge(thread, tokens=1)) for thread in THREADS
                ]
                await asyncio.sleep(0.01)
                stalls.append(await _longest_stall(seconds * 0.9))
                await asyncio.gather(*charges)
                process.wait()
            idle.append(await _longest_stall(seconds * 0.9))
    return Figure(
        GROUP,
        "the loop's longest stall while another process holds the lock",
        [max(stall - without, 0) * 1e3 for stall, without in zip(stalls, idle, strict=True)],
        unit="ms",
        target=2.0,
        note="beyond the longest stall of the same loop with nothing to wait for",
        behind=f"{fmean(stalls) * 1e3:.2f} ms, idle {fmean(idle) * 1e3:.2f} ms;"
        f" {TASKS} tasks waiting for {seconds:g} s",
    )


async def _longest_stall(seconds: float) -> float:
    clock = time.perf_counter
    ends = clock() + seconds
    longest = 0.0
    while (began := clock()) < ends:
        await asyncio.sleep(0.001)
        longest = max(longest, clock() - began - 0.001)
    return longest
