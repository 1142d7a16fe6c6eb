"""Charges of goals that have goals above them: one caller, and many threads under one parent."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean

from benchmarks.budgets_by_hand import BudgetLimit
from benchmarks.by_hand import BUDGET, BY_HAND, OBJECTIVE, new_file
from benchmarks.measure import (
    Figure,
    Scale,
    compared,
    dear_calls,
    interleaved,
    ratios,
    rotated,
)
from benchmarks.threads import THREADS as WORKERS
from benchmarks.threads import Load, load
from goal_state import GoalRepository, GoalStore
from goal_state.storage.sqlite.connections import Durability

__all__ = ["run"]

GROUP = "trees"
LEAVES = [f"leaf-{number:04d}" for number in range(100)]
CHILDREN = 1000
MANY = 64

_FLAT_BY_HAND = "a charge without ancestors by hand"
_FLAT = "a charge without ancestors"


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    for durability in ("normal", "full"):
        yield from _two_ancestors(directory, scale, durability)
    yield from _many_children(directory, scale)


def _two_ancestors(directory: Path, scale: Scale, durability: Durability) -> Iterator[Figure]:
    where = durability.upper()
    with ExitStack() as stack:

        def opened(name: str) -> tuple[GoalStore, Iterator[str]]:
            path = _deep(directory / f"{name}-{durability}.db")
            store = stack.enter_context(GoalStore.open(path, durability=durability))
            return store, itertools.cycle(LEAVES)

        def limit(name: str) -> tuple[BudgetLimit, Iterator[str]]:
            by_hand = BudgetLimit(
                _deep(directory / f"{name}-{durability}.db"), durability=durability
            )
            stack.callback(by_hand.close)
            return by_hand, itertools.cycle(LEAVES)

        deep, first = opened("deep")
        flat, second = opened("flat")
        deep_limit, third = limit("deep-by-hand")
        flat_limit, fourth = limit("flat-by-hand")
        candidates: dict[str, Callable[[], object]] = {
            "ours": lambda: deep.charge(next(first), tokens=100, seconds=0.25, turn_id="turn-1"),
            BY_HAND: lambda: deep_limit.charge_up(next(third), 100, 250, "turn-1"),
            _FLAT: lambda: flat.charge(
                f"flat-{next(second)}", tokens=100, seconds=0.25, turn_id="turn-1"
            ),
            _FLAT_BY_HAND: lambda: flat_limit.charge(f"flat-{next(fourth)}", 100, 250, "turn-1"),
        }
        taken = interleaved(
            candidates,
            rounds=scale.rounds,
            turns=scale.turns,
            calls=dear_calls(scale, durability),
        )
        yield compared(
            GROUP,
            f"charge with two ancestors, {where}",
            taken,
            ("ours", BY_HAND),
            target=1.4,
            work=candidates["ours"],
        )
        yield compared(
            GROUP, f"charge with two ancestors by hand, {where}", taken, (BY_HAND, _FLAT_BY_HAND)
        )
        yield compared(
            GROUP, f"charge with two ancestors, {where}, over flat", taken, ("ours", _FLAT)
        )
        # What the machine makes of a plain charge just now, to read the others by.
        yield compared(GROUP, f"charge without ancestors, {where}", taken, (_FLAT, _FLAT_BY_HAND))


def _deep(path: Path) -> Path:
    """A database with goals two below a root, and as many without a parent."""
    return new_file(path, [f"flat-{leaf}" for leaf in LEAVES], _two_below)


def _two_below(repository: GoalRepository) -> None:
    repository.create("root", OBJECTIVE, token_budget=BUDGET)
    for number in range(10):
        repository.create(f"middle-{number}", OBJECTIVE, token_budget=BUDGET, parent="root")
    for number, leaf in enumerate(LEAVES):
        parent = f"middle-{number % 10}"
        repository.create(leaf, OBJECTIVE, token_budget=BUDGET, parent=parent)


def _many_below(repository: GoalRepository) -> None:
    repository.create("root", OBJECTIVE, token_budget=BUDGET)
    for number in range(CHILDREN):
        repository.create(f"child-{number}", OBJECTIVE, token_budget=BUDGET, parent="root")


def _many_children(directory: Path, scale: Scale) -> Iterator[Figure]:
    count = min(MANY, max(scale.threads))
    children = _children_of_workers(count)
    limit = BudgetLimit(new_file(directory / "wide-by-hand.db", [], _many_below), durability="full")
    lock = threading.Lock()

    def locked(worker: str) -> None:
        child = next(children[worker])
        with lock:
            limit.charge_up(child, 100, 250, "turn-1")

    try:
        with GoalStore.open(new_file(directory / "wide.db", [], _many_below)) as store:

            def grouped(worker: str) -> None:
                store.charge(next(children[worker]), tokens=100, seconds=0.25, turn_id="turn-1")

            sides = {"ours": grouped, "lock": locked}
            loads: dict[str, list[Load]] = {name: [] for name in sides}
            for number in range(max(scale.rounds // 2, 2)):
                for name in rotated(list(sides), number):
                    loads[name].append(load(sides[name], count, scale.seconds))
    finally:
        limit.close()
    rates = [[each.charges_per_second for each in loads[name]] for name in ("ours", "lock")]
    waits = [[each.p99_seconds for each in loads[name]] for name in ("ours", "lock")]
    where = f"{CHILDREN:,} children of one goal, {count} threads, FULL"
    reference = "a lock and one commit per charge, by hand"
    yield Figure(
        GROUP,
        f"throughput, {where}",
        ratios(*rates),
        reference=reference,
        target=2.0 if count == MANY else None,
        sense="at least",
        behind=f"{fmean(rates[0]):.0f} / {fmean(rates[1]):.0f} charges a second",
    )
    yield Figure(
        GROUP,
        f"p99 wait, {where}",
        ratios(*waits),
        reference=reference,
        behind=f"{fmean(waits[0]) * 1e3:.2f} / {fmean(waits[1]) * 1e3:.2f} ms",
    )


def _children_of_workers(count: int) -> dict[str, Iterator[str]]:
    """The children that each worker charges in turn: all of them, each by one worker."""
    return {
        worker: itertools.cycle([f"child-{child}" for child in range(number, CHILDREN, count)])
        for number, worker in enumerate(WORKERS[:count])
    }
