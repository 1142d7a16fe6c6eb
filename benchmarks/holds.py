"""Holds: reserve and settle against the same by hand, and a reservation beside many that are live."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.budgets_by_hand import BudgetLimit
from benchmarks.by_hand import BY_HAND, new_file
from benchmarks.measure import (
    Figure,
    Scale,
    compared,
    dear_calls,
    interleaved,
    rotated,
)
from goal_state import GoalRepository, GoalStore
from goal_state.storage.sqlite.connections import Durability

__all__ = ["run"]

GROUP = "holds"
THREADS = [f"thread-{number:04d}" for number in range(100)]
LIVE = 1000

_FLAT = "one charge"
_FLAT_BY_HAND = "one charge by hand"
_UNSENT = "with dispatched=False"
_UNSENT_BY_HAND = "sqlite3 by hand, three commits"

Work = Callable[[], object]


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    for durability in ("normal", "full"):
        yield from _reserve_and_settle(directory, scale, durability)
    for durability in ("normal", "full"):
        yield _beside_live(directory, scale, durability)


def _reserve_and_settle(directory: Path, scale: Scale, durability: Durability) -> Iterator[Figure]:
    with ExitStack() as stack:

        def new(name: str) -> tuple[Path, Iterator[str]]:
            return new_file(directory / f"{name}-{durability}.db", THREADS), itertools.cycle(
                THREADS
            )

        def ours(name: str, *, dispatched: bool) -> Work:
            path, threads = new(name)
            store = stack.enter_context(GoalStore.open(path, durability=durability))

            def work() -> None:
                hold = store.reserve(
                    next(threads), tokens=120, turn_id="turn-1", dispatched=dispatched
                )
                if not dispatched:
                    hold.dispatched()
                hold.settle(tokens=100)

            return work

        def by_hand(name: str) -> tuple[BudgetLimit, Iterator[str]]:
            path, threads = new(name)
            limit = BudgetLimit(path, durability=durability)
            stack.callback(limit.close)
            return limit, threads

        path, threads = new("flat")
        store = stack.enter_context(GoalStore.open(path, durability=durability))
        sent, first = by_hand("sent-by-hand")
        unsent, second = by_hand("unsent-by-hand")
        flat, third = by_hand("flat-by-hand")

        def settled() -> None:
            sent.settle(sent.reserve(next(first), 120, "turn-1"), 100)

        def dispatched_and_settled() -> None:
            hold = unsent.reserve(next(second), 120, "turn-1", is_dispatched=0)
            unsent.dispatch(hold)
            unsent.settle(hold, 100)

        candidates: dict[str, Work] = {
            "ours": ours("sent", dispatched=True),
            BY_HAND: settled,
            _UNSENT: ours("unsent", dispatched=False),
            _UNSENT_BY_HAND: dispatched_and_settled,
            _FLAT: lambda: store.charge(next(threads), tokens=100, seconds=0.25, turn_id="turn-1"),
            _FLAT_BY_HAND: lambda: flat.charge(next(third), 100, 250, "turn-1"),
        }
        taken = interleaved(
            candidates,
            rounds=scale.rounds,
            turns=scale.turns,
            calls=dear_calls(scale, durability),
        )
    for name, sides, target in (
        ("reserve and settle", ("ours", BY_HAND), 1.4),
        ("reserve, dispatched, settle", (_UNSENT, _UNSENT_BY_HAND), None),
        ("reserve and settle by hand", (BY_HAND, _FLAT_BY_HAND), None),
        ("reserve, dispatched, settle by hand", (_UNSENT_BY_HAND, _FLAT_BY_HAND), None),
        # What the machine makes of a plain charge just now, to read the others by.
        ("a plain charge", (_FLAT, _FLAT_BY_HAND), None),
    ):
        yield compared(GROUP, f"{name}, {durability.upper()}", taken, sides, target=target)


def _beside_live(directory: Path, scale: Scale, durability: Durability) -> Figure:
    """What `reserve` alone costs where a goal has many live holds, over one that has none."""
    path = new_file(directory / f"live-{durability}.db", ["crowded"])
    with (
        GoalStore.open(path, durability=durability) as crowded,
        GoalStore.open(
            new_file(directory / f"alone-{durability}.db", ["alone"]), durability=durability
        ) as alone,
    ):
        live = LIVE if scale.rounds >= 5 else 10

        def fill(repository: GoalRepository) -> None:
            for _ in range(live):
                repository.reserve("crowded", tokens=10)

        crowded.transact(fill)
        sides = {f"{live:,} live": (crowded, "crowded"), "none": (alone, "alone")}
        taken: dict[str, list[float]] = {name: [] for name in sides}
        calls = dear_calls(scale, durability)
        for number in range(scale.rounds + 1):
            spent = dict.fromkeys(sides, 0.0)
            for turn in range(scale.turns):
                for name in rotated(list(sides), number + turn):
                    spent[name] += _reserving(*sides[name], calls)
            if number:
                for name, seconds in spent.items():
                    taken[name].append(seconds / scale.turns)

        def work() -> None:
            crowded.reserve("crowded", tokens=120).release()

        return compared(
            GROUP,
            f"reserve with {live:,} live holds on the goal, {durability.upper()}",
            taken,
            (f"{live:,} live", "none"),
            target=1.3,
            work=work,
        )


def _reserving(store: GoalStore, thread: str, calls: int) -> float:
    """Seconds per reservation; each is released again, outside of the time."""
    clock = time.perf_counter
    spent = 0.0
    for _ in range(calls):
        began = clock()
        hold = store.reserve(thread, tokens=120)
        spent += clock() - began
        hold.release()
    return spent / calls
