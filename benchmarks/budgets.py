"""A budget of a hundred calls to a fake provider of 2 ms: what we and others keep of it when threads and
processes share it, a process dies, a response comes twice and a stream is cut; and what a call costs.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.budget_keepers import KEEPERS, OURS, Budget, Keeper
from benchmarks.measure import Figure, Scale, Spread, interleaved, ratios

__all__ = ["run"]

GROUP = "budgets"
SECONDS: Final = 0.002
THREADS: Final = 8
MOST_ERRORS: Final = 20
WIDE: Final = 10**7
"""Calls in a budget that is not to end."""


class Extent(NamedTuple):
    """How many of each."""

    calls: int
    processes: int
    before_kill: int
    cuts: int
    many: int
    """Calls that a budget has seen where its growth is looked at."""

    @classmethod
    def of(cls, scale: Scale) -> Extent:
        return cls(100, 4, 10, 40, 100_000) if scale.rounds >= 5 else cls(20, 2, 2, 8, 40)


class Sent(NamedTuple):
    """What callers got through before they were refused."""

    calls: int
    errors: int
    """How often a call failed otherwise than by being refused: with a lock's timeout, for example."""

    def __str__(self) -> str:
        return f"{self.calls} sent" + (f", {self.errors} errors" if self.errors else "")


class Kept(NamedTuple):
    """What was seen of one library."""

    in_turn: Sent
    by_threads: Sent
    by_processes: Sent
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
    extent = Extent.of(scale)
    for number, keeper in enumerate(KEEPERS):
        place = directory / str(number)
        place.mkdir()
        try:
            name = f"{keeper.name} {version(keeper.package)}"
            with ProcessPoolExecutor(1, mp_context=context) as process:
                kept = process.submit(_kept, number, place, extent).result()
                times = process.submit(_times, number, place, extent, scale).result()
        except PackageNotFoundError:
            yield Figure(GROUP, keeper.name, [], note="not installed")
        except Exception as error:  # one that breaks is a line of the report, not its end
            yield Figure(GROUP, keeper.name, [], note=f"failed: {type(error).__name__}: {error}")
        else:
            yield from _promises(keeper, name, kept, extent)
            yield from _speeds(keeper, name, times, extent)


# -- what is kept ------------------------------------------------------------------------------------


def _kept(number: int, place: Path, extent: Extent) -> Kept:
    warnings.simplefilter("ignore")
    names = (f"kept-{each}" for each in itertools.count())

    def new() -> Path:
        folder = place / next(names)
        folder.mkdir()
        return folder

    keeper = KEEPERS[number]
    with closing(keeper.open(new(), extent.calls)) as budget:
        in_turn = _drained(budget, extent)
    with closing(keeper.open(new(), extent.calls)) as budget:
        by_threads = _by_threads(budget, extent)
    by_processes = _by_processes(number, new(), extent)
    after_kill = _after_kill(number, new(), extent)
    with closing(keeper.open(new(), extent.calls)) as budget:
        budget.repeat()
        after_repeat = _drained(budget, extent).calls
    with closing(keeper.open(new(), extent.calls)) as budget:
        for _ in range(extent.cuts):
            budget.cut()
        after_cuts = _drained(budget, extent).calls
    return Kept(
        in_turn,
        by_threads,
        by_processes,
        after_kill,
        in_turn.calls - after_repeat,
        in_turn.calls - after_cuts,
    )


def _drained(budget: Budget, extent: Extent, seconds: float = 0.0) -> Sent:
    """Makes calls until one is refused."""
    count = errors = 0

    def send() -> None:
        nonlocal count
        count += 1
        time.sleep(seconds)

    while count < 3 * extent.calls:
        try:
            if not budget.call(send):
                break
        except Exception:
            errors += 1
            if errors == MOST_ERRORS:
                raise
    return Sent(count, errors)


def _together(sent: Iterable[Sent]) -> Sent:
    every = list(sent)
    return Sent(sum(each.calls for each in every), sum(each.errors for each in every))


def _by_threads(budget: Budget, extent: Extent) -> Sent:
    barrier = threading.Barrier(THREADS)

    def work(_: int) -> Sent:
        barrier.wait()
        return _drained(budget, extent, SECONDS)

    with ThreadPoolExecutor(THREADS) as pool:
        return _together(pool.map(work, range(THREADS)))


def _by_processes(number: int, place: Path, extent: Extent) -> Sent:
    KEEPERS[number].open(place, extent.calls).close()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(extent.processes, timeout=120), context.Queue()
    workers = [
        context.Process(target=_drain, args=(number, place, extent, barrier, results))
        for _ in range(extent.processes)
    ]
    for worker in workers:
        worker.start()
    sent = _together(results.get(timeout=300) for _ in workers)
    for worker in workers:
        worker.join()
    return sent


def _drain(number: int, place: Path, extent: Extent, barrier: Any, results: Any) -> None:
    warnings.simplefilter("ignore")
    with closing(KEEPERS[number].open(place, extent.calls)) as budget:
        barrier.wait()
        results.put(_drained(budget, extent, SECONDS))


def _after_kill(number: int, place: Path, extent: Extent) -> int:
    """How many calls a process gets through after another was killed in the middle of one."""
    victim = multiprocessing.get_context("spawn").Process(target=_die, args=(number, place, extent))
    victim.start()
    victim.join()
    if victim.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the process was to be killed, and ended with {victim.exitcode}")
    with closing(KEEPERS[number].open(place, extent.calls)) as budget:
        return _drained(budget, extent).calls


def _die(number: int, place: Path, extent: Extent) -> None:
    warnings.simplefilter("ignore")
    budget = KEEPERS[number].open(place, extent.calls)
    for _ in range(extent.before_kill):
        budget.call(lambda: None)
    budget.call(lambda: os.kill(os.getpid(), signal.SIGKILL))


def _promises(keeper: Keeper, name: str, kept: Kept, extent: Extent) -> Iterator[Figure]:
    left = extent.calls - extent.before_kill - 1
    is_durable = kept.left_after_kill <= extent.calls - extent.before_kill

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

    for where, sent in (
        ("one caller", kept.in_turn),
        (f"{THREADS} threads", kept.by_threads),
        (f"{extent.processes} processes", kept.by_processes),
    ):
        yield figure(f"over or short, {where}", sent.calls, extent.calls, str(sent))
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
    share = kept.counted_of_cuts / extent.cuts
    yield figure(
        "off for a stream cut at a quarter", share, 0.25, f"counted as {share:.3g} of a call"
    )


# -- what it costs -----------------------------------------------------------------------------------


def _times(number: int, place: Path, extent: Extent, scale: Scale) -> Times:
    warnings.simplefilter("ignore")
    keeper = KEEPERS[number]
    folders = {name: place / name for name in ("ours", "few", "many")}
    for folder in folders.values():
        folder.mkdir()
    budgets = {"ours": OURS.open(folders["ours"], WIDE), "few": keeper.open(folders["few"], WIDE)}
    with _unsynced():
        many = keeper.open(folders["many"], WIDE)
        # Ours is always filled, however slow the machine is.
        most_seconds = math.inf if keeper is OURS else scale.seconds * 100
        filled, seconds = _filled(many, extent, most_seconds)
    if not keeper.is_in_memory:
        many.close()
        many = keeper.open(folders["many"], WIDE)
    budgets["many"] = many
    for name in ("ours", "few"):
        budgets[name].fill(extent.calls)
    taken = interleaved(
        {name: _calling(budget) for name, budget in budgets.items()},
        rounds=scale.rounds,
        turns=min(scale.turns, 2),
        calls=max(scale.calls // 12, 1),
    )
    for budget in budgets.values():
        budget.close()
    return Times(taken["ours"], taken["few"], taken["many"], filled, seconds)


def _calling(budget: Budget) -> Callable[[], object]:
    return lambda: budget.call(lambda: None)


def _filled(budget: Budget, extent: Extent, seconds: float) -> tuple[int, float]:
    """Makes calls until there are so many or the time is over; returns how many, and the seconds."""
    began = time.monotonic()
    count = 0
    while count < extent.many and time.monotonic() - began < seconds:
        budget.fill(extent.calls)
        count += extent.calls
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


def _speeds(keeper: Keeper, name: str, times: Times, extent: Extent) -> Iterator[Figure]:
    ours, few, many = (Spread.of(each).median * 1e6 for each in times[:3])
    if keeper is not OURS:
        yield Figure(
            GROUP,
            f"reserve and settle at {extent.calls} calls, ours over {name}",
            ratios(times.ours, times.few),
            reference=keeper.name,
            target=0.35 if keeper.package == "floe-guard" else None,
            behind=f"{ours:.0f} / {few:.0f} µs",
        )
    what = f"reserve and settle at {extent.many:,} calls over {extent.calls}: {name}"
    if times.filled < extent.many:
        note = f"not finished: {times.filled:,} calls in {times.seconds:.0f} s; {many:.0f} µs each by then"
        yield Figure(GROUP, what, [], reference=f"{few:.0f} µs at {extent.calls}", note=note)
    else:
        yield Figure(
            GROUP,
            what,
            ratios(times.many, times.few),
            reference=f"at {extent.calls} calls",
            target=1.2 if keeper is OURS else None,
            behind=f"{many:.0f} / {few:.0f} µs",
        )
