"""Pages: what the next goals or events cost, by how many were passed before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.large import EVENTS_PER_GOAL, large_file
from benchmarks.measure import Figure, Scale, Spread, interleaved, ratios
from goal_state import GoalRepository, GoalStore
from goal_state.storage.sqlite.connections import create_engine

__all__ = ["run"]

GROUP = "pages"
DEPTHS = {"a half": 0.5, "the end": 1.0}
PAGE = 500
BATCH = 100


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    goals = scale.goals[-1]
    path = large_file(directory, goals)
    with GoalStore.open(path) as store:
        last = store.last_position()
        assert last == goals * EVENTS_PER_GOAL
        events = {
            name: _batch(store, round((last - BATCH) * depth))
            for name, depth in {"the beginning": 0.0, **DEPTHS}.items()
        }
        engine = create_engine(path)
        with engine.connect() as connection:
            reader = GoalRepository(connection)
            size = min(PAGE, goals // 4)
            marks = [""] + [goal.goal_id for goal in store.goals()]
            pages = {
                name: _page(reader, marks[round((goals - size) * depth)], size)
                for name, depth in {"the beginning": 0.0, **DEPTHS}.items()
            }
            for what, candidates in (
                (f"a page of {size} of {goals:,} goals", pages),
                (f"a batch of {BATCH} of {last:,} events, as consume reads it", events),
            ):
                yield from _flat(what, candidates, scale)
        engine.dispose()


def _batch(store: GoalStore, after: int) -> Callable[[], object]:
    return lambda: store.read_events(after, BATCH)


def _page(reader: GoalRepository, after: str, size: int) -> Callable[[], object]:
    return lambda: reader.goals_page(after=after, limit=size)


def _flat(what: str, candidates: dict[str, Callable[[], object]], scale: Scale) -> Iterator[Figure]:
    taken = interleaved(
        candidates, rounds=scale.rounds, turns=scale.turns, calls=max(scale.calls // 10, 1)
    )
    first = taken["the beginning"]
    for name in DEPTHS:
        medians = [Spread.of(values).median * 1e6 for values in (taken[name], first)]
        yield Figure(
            GROUP,
            f"{what}, at {name}",
            ratios(taken[name], first),
            reference="the same at the beginning",
            target=1.2,
            behind=f"{medians[0]:.0f} / {medians[1]:.0f} µs",
        )
