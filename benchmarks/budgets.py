"""A budget of a hundred calls to a fake provider of 2 ms: what we and others keep of it when threads and
processes share it, a process dies, a response comes twice and a stream is cut; and what a call costs.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.budget_keepers import KEEPERS, OURS, Budget, Keeper
from benchmarks.measure import Figure, Scale, Spread, interleaved, ratios

__all__ = ["run"]

GROUP = "budgets"
CALLS: Final = 100
SECONDS: Final = 0.002
THREADS: Final = 8
PROCESSES: Final = 4
BEFORE_KILL: Final = 10
CUTS: Final = 40
MANY: Final = 100_000
WIDE: Final = 10**7
"""Calls in a budget that is not to end."""


class Kept(NamedTuple):
    """What was seen of one library."""

    sent_in_turn: int
    sent_by_threads: int
    sent_by_processes: int
    left_after_kill: int
    counted_of_repeat: int
    counted_of_cuts: int


class Times(NamedTuple):
    """Seconds per call, round by round."""

    ours: list[float]
    few: list[float]
    many: list[float]
    filled: int
    """How many calls the budget had seen when `many` was measured."""
    seconds: float
    """How long that took to fill."""


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    # A process for each: some change what the whole process uses.
    context = multiprocessing.get_context("spawn")
    for number, keeper in enumerate(KEEPERS):
        place = directory / str(number)
        place.mkdir()
        try:
            name = f"{keeper.name} {version(keeper.package)}"
            with ProcessPoolExecutor(1, mp_context=context) as process:
                kept = process.submit(_kept, number, place).result()
                times = process.submit(_times, number, place, scale).result()
        except PackageNotFoundError:
            yield Figure(GROUP, keeper.name, [], note="not installed")
        except Exception as error:  # one that breaks is a line of the report, not its end
            yield Figure(GROUP, keeper.name, [], note=f"failed: {type(error).__name__}: {error}")
        else:
            yield from _promises(keeper, name, kept)
            yield from _speeds(keeper, name, times, scale)


# -- what is kept ------------------------------------------------------------------------------------


def _kept(number: int, place: Path) -> Kept:
    warnings.simplefilter("ignore")
    names = (f"kept-{each}" for each in itertools.count())

    def new() -> Path:
        folder = place / next(names)
        folder.mkdir()
        return folder

    keeper = KEEPERS[number]
    with closing(keeper.open(new(), CALLS)) as budget:
        in_turn = _drained(budget)
    with closing(keeper.open(new(), CALLS)) as budget:
        by_threads = _by_threads(budget)
    by_processes = _by_processes(number, new())
    after_kill = _after_kill(number, new())
    with closing(keeper.open(new(), CALLS)) as budget:
        budget.repeat()
        after_repeat = _drained(budget)
    with closing(keeper.open(new(), CALLS)) as budget:
        for _ in range(CUTS):
            budget.cut()
        after_cuts = _drained(budget)
    return Kept(
        in_turn,
        by_threads,
        by_processes,
        after_kill,
        in_turn - after_repeat,
        in_turn - after_cuts,
    )


def _drained(budget: Budget, seconds: float = 0.0) -> int:
    """How many calls a caller gets through before it is refused."""
    count = 0

    def send() -> None:
        nonlocal count
        count += 1
        time.sleep(seconds)

    while count < 3 * CALLS and budget.call(send):
        pass
    return count


def _by_threads(budget: Budget) -> int:
    barrier = threading.Barrier(THREADS)

    def work(_: int) -> int:
        barrier.wait()
        return _drained(budget, SECONDS)

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS)))


def _by_processes(number: int, place: Path) -> int:
    KEEPERS[number].open(place, CALLS).close()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    workers = [
        context.Process(target=_drain, args=(number, place, barrier, results))
        for _ in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    sent = sum(results.get(timeout=300) for _ in workers)
    for worker in workers:
        worker.join()
    return sent


def _drain(number: int, place: Path, barrier: Any, results: Any) -> None:
    warnings.simplefilter("ignore")
    with closing(KEEPERS[number].open(place, CALLS)) as budget:
        barrier.wait()
        results.put(_drained(budget, SECONDS))


def _after_kill(number: int, place: Path) -> int:
    """How many calls a process gets through after another was killed while its eleventh was under way."""
    victim = multiprocessing.get_context("spawn").Process(target=_die, args=(number, place))
    victim.start()
    victim.join()
    if victim.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the process was to be killed, and ended with {victim.exitcode}")
    with closing(KEEPERS[number].open(place, CALLS)) as budget:
        return _drained(budget)


def _die(number: int, place: Path) -> None:
    warnings.simplefilter("ignore")
    budget = KEEPERS[number].open(place, CALLS)
    for _ in range(BEFORE_KILL):
        budget.call(lambda: None)
    budget.call(lambda: os.kill(os.getpid(), signal.SIGKILL))


def _promises(keeper: Keeper, name: str, kept: Kept) -> Iterator[Figure]:
    left = CALLS - BEFORE_KILL - 1
    is_durable = kept.left_after_kill <= CALLS - BEFORE_KILL

    def figure(what: str, value: float, right: float, behind: str) -> Figure:
        return Figure(
            GROUP,
            f"{what}: {name}",
            [abs(value - right)],
            unit="calls",
            target=0 if keeper is OURS else None,
            behind=behind,
            note=keeper.note,
        )

    def sent(count: int) -> str:
        return f"{count} of {CALLS} sent"

    in_turn, threads, processes = kept[:3]
    yield figure("over or short, one caller", in_turn, CALLS, sent(in_turn))
    yield figure(f"over or short, {THREADS} threads", threads, CALLS, sent(threads))
    yield figure(f"over or short, {PROCESSES} processes", processes, CALLS, sent(processes))
    yield figure(
        "off after a SIGKILL with a call in flight",
        kept.left_after_kill,
        left,
        f"{kept.left_after_kill} go through, {left} are left;"
        f" what was settled before is {'known' if is_durable else 'forgotten'}",
    )
    yield figure(
        "off when a response is recorded twice",
        kept.counted_of_repeat,
        1,
        f"counted as {kept.counted_of_repeat}",
    )
    share = kept.counted_of_cuts / CUTS
    yield figure(
        "off for a stream cut at a quarter", share, 0.25, f"counted as {share:.3g} of a call"
    )


# -- what it costs -----------------------------------------------------------------------------------


def _times(number: int, place: Path, scale: Scale) -> Times:
    warnings.simplefilter("ignore")
    keeper = KEEPERS[number]
    goal = MANY if scale.rounds >= 5 else 2 * CALLS
    folders = {name: place / name for name in ("ours", "few", "many")}
    for folder in folders.values():
        folder.mkdir()
    budgets = {"ours": OURS.open(folders["ours"], WIDE), "few": keeper.open(folders["few"], WIDE)}
    with _unsynced():
        many = keeper.open(folders["many"], WIDE)
        filled, seconds = _filled(many, goal, scale.seconds * 100)
    if not keeper.is_in_memory:
        many.close()
        many = keeper.open(folders["many"], WIDE)
    budgets["many"] = many
    for name in ("ours", "few"):
        budgets[name].fill(CALLS)
    taken = interleaved(
        {name: _calling(budget) for name, budget in budgets.items()},
        rounds=scale.rounds,
        turns=1,
        calls=max(scale.calls // 12, 1),
    )
    for budget in budgets.values():
        budget.close()
    return Times(taken["ours"], taken["few"], taken["many"], filled, seconds)


def _calling(budget: Budget) -> Callable[[], object]:
    return lambda: budget.call(lambda: None)


def _filled(budget: Budget, goal: int, seconds: float) -> tuple[int, float]:
    """Makes calls until there are so many or the time is over; returns how many, and the seconds."""
    began = time.monotonic()
    count = 0
    while count < goal and time.monotonic() - began < seconds:
        budget.fill(CALLS)
        count += CALLS
    return count, time.monotonic() - began


@contextmanager
def _unsynced() -> Iterator[None]:
    """Nobody waits for the disk meanwhile: what fills a file is not what is measured."""
    connect, fsync = sqlite3.connect, os.fsync

    def unsynced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)
        connection.execute("PRAGMA synchronous = OFF").close()
        return connection

    sqlite3.connect = sqlite3.dbapi2.connect = unsynced
    os.fsync = lambda _: None
    try:
        yield
    finally:
        sqlite3.connect = sqlite3.dbapi2.connect = connect
        os.fsync = fsync


def _speeds(keeper: Keeper, name: str, times: Times, scale: Scale) -> Iterator[Figure]:
    ours, few, many = (Spread.of(each).median * 1e6 for each in times[:3])
    if keeper is not OURS:
        yield Figure(
            GROUP,
            f"reserve and settle at {CALLS} calls, ours over {name}",
            ratios(times.ours, times.few),
            reference=keeper.name,
            target=0.35 if keeper.package == "floe-guard" else None,
            behind=f"{ours:.0f} / {few:.0f} µs",
        )
    goal = MANY if scale.rounds >= 5 else 2 * CALLS
    what = f"reserve and settle at {goal:,} calls over {CALLS}: {name}"
    if times.filled < goal:
        note = f"not finished: {times.filled:,} calls in {times.seconds:.0f} s; {many:.0f} µs each by then"
        yield Figure(GROUP, what, [], reference=f"{few:.0f} µs at {CALLS}", note=note)
    else:
        yield Figure(
            GROUP,
            what,
            ratios(times.many, times.few),
            reference=f"at {CALLS} calls",
            target=1.2 if keeper is OURS else None,
            behind=f"{many:.0f} / {few:.0f} µs",
        )
