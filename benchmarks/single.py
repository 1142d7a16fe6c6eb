"""One caller: what a call costs over the same work by hand, and what a listener or a consumer adds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.by_hand import BY_HAND, Limit, new_file
from benchmarks.measure import (
    Figure,
    Scale,
    Spread,
    compared,
    dear_calls,
    interleaved,
    ratios,
)
from goal_state import Charge, GoalStore, TokenUsage
from goal_state.storage.sqlite.connections import Durability

__all__ = ["run"]

GROUP = "single"
THREADS = [f"thread-{number:04d}" for number in range(100)]
MANY = 1000

_TARGETS: dict[str, dict[str, float]] = {
    "charge": {"normal": 1.35, "full": 1.10},
    "charge with an idempotency key": {"normal": 1.6, "full": 1.2},
    "record_total": {"normal": 1.6, "full": 1.2},
}


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    for durability in ("normal", "full"):
        yield from _charges(directory, scale, durability)
        yield from _company(directory, scale, durability)
    yield _get(directory, scale)
    yield _many(directory, scale)


def _charging(store: GoalStore) -> Callable[[], object]:
    threads = itertools.cycle(THREADS)
    return lambda: store.charge(next(threads), tokens=100, seconds=0.25, turn_id="turn-1")


def _counts(number: int) -> tuple[int, int, int, int, int, int]:
    return (10 * number, 5 * number, 0, 3 * number, number, 13 * number)


def _charges(directory: Path, scale: Scale, durability: Durability) -> Iterator[Figure]:
    with ExitStack() as stack:
        ours: dict[str, Callable[[], object]] = {}
        by_hand: dict[str, Callable[[], object]] = {}

        def pair(name: str) -> tuple[GoalStore, Limit, Iterator[str], Iterator[str]]:
            """A file for each side: what one grows does not slow the other."""
            stem = f"{name[:9]}-{len(ours)}-{durability}"
            store = stack.enter_context(
                GoalStore.open(
                    new_file(directory / f"{stem}-ours.db", THREADS), durability=durability
                )
            )
            limit = Limit(
                new_file(directory / f"{stem}-by-hand.db", THREADS), durability=durability
            )
            stack.callback(limit.close)
            return store, limit, itertools.cycle(THREADS), itertools.cycle(THREADS)

        store, limit, _, second = pair("charge")
        ours["charge"] = _charging(store)
        by_hand["charge"] = lambda: limit.charge(next(second), 100, 250, "turn-1")

        keyed_store, keyed_limit, third, fourth = pair("key")
        keys, other_keys = itertools.count(), itertools.count()
        ours["charge with an idempotency key"] = lambda: keyed_store.charge(
            next(third),
            tokens=100,
            seconds=0.25,
            turn_id="turn-1",
            idempotency_key=f"key-{next(keys)}",
        )
        by_hand["charge with an idempotency key"] = lambda: keyed_limit.charge_once(
            next(fourth), 100, 250, "turn-1", f"key-{next(other_keys)}"
        )

        usage_store, usage_limit, fifth, sixth = pair("usage")
        totals, other_totals = itertools.count(1), itertools.count(1)
        ours["record_total"] = lambda: usage_store.record_total(
            next(fifth), TokenUsage(*_counts(next(totals))), turn_id="turn-1"
        )
        by_hand["record_total"] = lambda: usage_limit.record_total(
            next(sixth), _counts(next(other_totals)), "turn-1"
        )

        for name, work in ours.items():
            taken = interleaved(
                {"ours": work, BY_HAND: by_hand[name]},
                rounds=scale.rounds,
                turns=scale.turns,
                calls=dear_calls(scale, durability),
            )
            yield compared(
                GROUP,
                f"{name}, {durability.upper()}",
                taken,
                ("ours", BY_HAND),
                target=_TARGETS[name][durability],
                work=work,
            )


def _get(directory: Path, scale: Scale) -> Figure:
    path = new_file(directory / "get.db", THREADS)
    first, second = itertools.cycle(THREADS), itertools.cycle(THREADS)
    limit = Limit(path)
    try:
        with GoalStore.open(path) as store:
            taken = interleaved(
                {
                    "ours": lambda: store.get(next(first)),
                    BY_HAND: lambda: limit.get(next(second)),
                },
                rounds=scale.rounds,
                turns=scale.turns,
                calls=scale.calls * 5,
            )
            return compared(
                GROUP,
                "get",
                taken,
                ("ours", BY_HAND),
                target=1.6,
                work=lambda: store.get(next(first)),
            )
    finally:
        limit.close()


def _many(directory: Path, scale: Scale) -> Figure:
    """Charges of a thousand turns at once, spread over the threads."""
    threads = [THREADS[number % len(THREADS)] for number in range(MANY)]
    limit = Limit(new_file(directory / "many-by-hand.db", THREADS))
    try:
        with GoalStore.open(
            new_file(directory / "many-ours.db", THREADS), durability="normal"
        ) as store:

            def ours() -> object:
                return store.charge_many(
                    [
                        Charge(thread, tokens=100, seconds=0.25, turn_id="turn-1")
                        for thread in threads
                    ]
                )

            taken = interleaved(
                {
                    "ours": ours,
                    BY_HAND: lambda: limit.charge_all(threads, 100, 250, "turn-1"),
                },
                rounds=scale.rounds,
                turns=1,
                calls=1 if scale.rounds < 5 else 3,
            )
            return compared(
                GROUP,
                "charge_many of 1,000 charges of 100 threads, per charge",
                taken,
                ("ours", BY_HAND),
                target=1.0,
                work=ours,
                per=MANY,
            )
    finally:
        limit.close()


def _company(directory: Path, scale: Scale, durability: Durability) -> Iterator[Figure]:
    """What a charge costs beside a listener, and beside a consumer, over one without."""
    with ExitStack() as stack:

        def opened(name: str) -> GoalStore:
            path = new_file(directory / f"{name}-{durability}.db", THREADS)
            return stack.enter_context(GoalStore.open(path, durability=durability))

        alone, heard, consumed = opened("alone"), opened("heard"), opened("consumed")
        heard.subscribe(_ignore)
        consumed.consume("benchmark", _ignore)
        candidates = {
            "alone": _charging(alone),
            "beside a live listener": _charging(heard),
            "beside a durable consumer": _charging(consumed),
        }
        calls = dear_calls(scale, durability)
        taken = interleaved(candidates, rounds=scale.rounds, turns=scale.turns, calls=calls)
        yield from _beside(taken, "beside a live listener", 1.10, durability)
        # The consumer catches up while the others have their turn; so it is measured also in one long
        # run of charges, which it has to keep up with.
        del candidates["beside a live listener"]
        long = interleaved(candidates, rounds=scale.rounds, turns=1, calls=calls * scale.turns * 2)
        yield from _beside(long, "beside a durable consumer", 1.25, durability)


def _beside(
    taken: dict[str, list[float]], name: str, target: float, durability: Durability
) -> Iterator[Figure]:
    medians = [Spread.of(taken[side]).median * 1e6 for side in (name, "alone")]
    yield Figure(
        GROUP,
        f"charge {name}, {durability.upper()}",
        ratios(taken[name], taken["alone"]),
        reference="charge alone",
        target=target,
        behind=f"{medians[0]:.1f} / {medians[1]:.1f} µs",
    )


def _ignore(_: object) -> None:
    pass
