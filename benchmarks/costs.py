"""What a price adds to a charge: one that is given, a constant one, and one that genai-prices looks up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Final

from benchmarks.budgets_by_hand import BudgetLimit
from benchmarks.by_hand import new_file
from benchmarks.measure import Figure, Scale, compared, dear_calls, interleaved
from goal_state import GoalStore, MissingGenaiPricesError, TokenUsage
from goal_state.prices import GenaiPrices
from goal_state.storage.sqlite.connections import Durability

__all__ = ["run"]

GROUP = "costs"
THREADS = [f"thread-{number:04d}" for number in range(100)]
COST: Final = Decimal("0.000125")
MODEL: Final = "gpt-4o"

_FLAT = "a charge of tokens"
_GIVEN = "a charge with a cost that is given"
_FLAT_BY_HAND = "a charge of tokens by hand"
_GIVEN_BY_HAND = "a charge with a cost by hand"
_USAGE = "a charge of a usage that has no price"
_CONSTANT = "a charge of a usage at a constant price"
_GENAI = "a charge of a usage at GenaiPrices"

Work = Callable[[], object]


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    for durability in ("normal", "full"):
        yield from _charges(directory, scale, durability)


def _constant(_usage: TokenUsage, _model: str | None) -> Decimal:
    return COST


def _charges(directory: Path, scale: Scale, durability: Durability) -> Iterator[Figure]:
    with ExitStack() as stack:

        def new(name: str) -> tuple[Path, Iterator[str]]:
            """A file for each: what one grows does not slow the others."""
            return new_file(directory / f"{name}-{durability}.db", THREADS), itertools.cycle(
                THREADS
            )

        def opened(name: str, prices: object = None) -> tuple[GoalStore, Iterator[str]]:
            path, threads = new(name)
            store = GoalStore.open(path, durability=durability, prices=prices)  # type: ignore[arg-type]
            return stack.enter_context(store), threads

        def limit(name: str) -> tuple[BudgetLimit, Iterator[str]]:
            path, threads = new(name)
            by_hand = BudgetLimit(path, durability=durability)
            stack.callback(by_hand.close)
            return by_hand, threads

        def of_usage(name: str, prices: object = None) -> Work:
            store, threads = opened(name, prices)
            usage = TokenUsage(80, 0, 0, 20, 0, 100)
            return lambda: store.charge(next(threads), usage, model=MODEL, turn_id="turn-1")

        flat, first = opened("flat")
        given, second = opened("given")
        plain, third = limit("flat-by-hand")
        costly, fourth = limit("given-by-hand")
        candidates: dict[str, Work] = {
            _FLAT: lambda: flat.charge(next(first), tokens=100, seconds=0.25, turn_id="turn-1"),
            _GIVEN: lambda: given.charge(
                next(second), tokens=100, cost=COST, seconds=0.25, turn_id="turn-1"
            ),
            _FLAT_BY_HAND: lambda: plain.charge(next(third), 100, 250, "turn-1"),
            _GIVEN_BY_HAND: lambda: costly.charge_cost(next(fourth), 100, 250, 125_000, "turn-1"),
            _USAGE: of_usage("usage"),
            _CONSTANT: of_usage("constant", _constant),
        }
        try:
            candidates[_GENAI] = of_usage("genai", GenaiPrices())
        except MissingGenaiPricesError:
            yield Figure(GROUP, f"{_GENAI}, {durability.upper()}", [], note="not installed")
        taken = interleaved(
            candidates,
            rounds=scale.rounds,
            turns=scale.turns,
            calls=dear_calls(scale, durability),
        )
        for mine, base, target in (
            (_GIVEN, _FLAT, 1.1),
            (_GIVEN_BY_HAND, _FLAT_BY_HAND, None),
            (_CONSTANT, _USAGE, 1.1),
            (_GENAI, _USAGE, None),
        ):
            if mine in taken:
                yield compared(
                    GROUP,
                    f"{mine}, {durability.upper()}",
                    taken,
                    (mine, base),
                    target=target,
                    work=candidates[mine],
                )
