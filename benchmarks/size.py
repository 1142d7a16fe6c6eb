"""Growth: a charge and a read among ever more goals and events."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.by_hand import Limit
from benchmarks.large import EVENTS_PER_GOAL, copied, large_file, thread_name
from benchmarks.measure import Figure, Scale, Spread, interleaved, profiled, ratios
from goal_state import GoalStore

__all__ = ["run"]

GROUP = "size"
HOT = 100
"""Threads that are charged again and again: those whose goals are the newest."""


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    with ExitStack() as stack:
        charges: dict[str, Callable[[], object]] = {}
        anywhere: dict[str, Callable[[], object]] = {}
        reads: dict[str, Callable[[], object]] = {}
        for goals in scale.goals:
            path = large_file(directory, goals)
            limit = Limit(copied(path, directory / f"{goals}-by-hand.db"))
            stack.callback(limit.close)
            store = stack.enter_context(
                GoalStore.open(copied(path, directory / f"{goals}-ours.db"), durability="normal")
            )
            sample = random.Random(goals).sample(range(goals), min(goals, 50))
            differences = [store.verify(thread_name(number)) for number in sample[:5]]
            assert not any(differences), differences
            hot = [thread_name(number) for number in range(max(goals - HOT, 0), goals)]
            charges |= _sides(goals, _charging(store, hot), _charging_by_hand(limit, hot))
            anywhere |= _sides(
                goals, _charging(store, _any(goals)), _charging_by_hand(limit, _any(goals))
            )
            reads |= _sides(goals, _reading(store, goals), _reading_by_hand(limit, goals))
        for name, candidates, target, calls in (
            ("charge, a hot set of 100 threads", charges, 1.35, scale.calls),
            ("charge, any thread", anywhere, 1.35, scale.calls),
            ("get, any thread", reads, 1.6, scale.calls * 4),
        ):
            taken = interleaved(candidates, rounds=scale.rounds, turns=scale.turns, calls=calls)
            yield from _over_limit(name, taken, candidates, scale.goals, target)
            if candidates is charges:
                yield from _growth(name, taken, scale.goals)


def _sides(
    goals: int, ours: Callable[[], object], by_hand: Callable[[], object]
) -> dict[str, Callable[[], object]]:
    return {f"{goals} ours": ours, f"{goals} by hand": by_hand}


def _any(goals: int) -> Iterator[str]:
    """Threads in no order, the same ones each time."""
    choose = random.Random(1)
    while True:
        yield thread_name(choose.randrange(goals))


def _charging(store: GoalStore, threads: list[str] | Iterator[str]) -> Callable[[], object]:
    names = itertools.cycle(threads) if isinstance(threads, list) else threads
    return lambda: store.charge(next(names), tokens=100, seconds=0.25, turn_id="turn-1")


def _charging_by_hand(limit: Limit, threads: list[str] | Iterator[str]) -> Callable[[], object]:
    names = itertools.cycle(threads) if isinstance(threads, list) else threads
    return lambda: limit.charge(next(names), 100, 250, "turn-1")


def _reading(store: GoalStore, goals: int) -> Callable[[], object]:
    names = _any(goals)
    return lambda: store.get(next(names))


def _reading_by_hand(limit: Limit, goals: int) -> Callable[[], object]:
    names = _any(goals)
    return lambda: limit.get(next(names))


def _over_limit(
    name: str,
    taken: dict[str, list[float]],
    candidates: dict[str, Callable[[], object]],
    sizes: Sequence[int],
    target: float,
) -> Iterator[Figure]:
    for goals in sizes:
        ours, by_hand = f"{goals} ours", f"{goals} by hand"
        values = ratios(taken[ours], taken[by_hand])
        medians = [Spread.of(taken[side]).median * 1e6 for side in (ours, by_hand)]
        is_missed = Spread.of(values).mean > target and len(values) >= 5
        yield Figure(
            GROUP,
            f"{name}, {goals:,} goals and {goals * EVENTS_PER_GOAL:,} events, NORMAL",
            values,
            reference="sqlite3 by hand at that size",
            target=target,
            behind=f"{medians[0]:.1f} / {medians[1]:.1f} µs",
            profile=profiled(candidates[ours]) if is_missed else (),
        )


def _growth(name: str, taken: dict[str, list[float]], sizes: Sequence[int]) -> Iterator[Figure]:
    for goals in sizes[1:]:
        for side in ("ours", "by hand"):
            large, small = taken[f"{goals} {side}"], taken[f"{sizes[0]} {side}"]
            yield Figure(
                GROUP,
                f"{name}, {side}: growth to {goals:,} goals",
                ratios(large, small),
                reference=f"the same at {sizes[0]:,} goals",
                target=1.2 if side == "ours" else None,
                behind=f"{Spread.of(large).median * 1e6:.1f} / {Spread.of(small).median * 1e6:.1f} µs",
            )
