"""The charges that the chaos machine makes: each is determined by the seed and its number alone."""

from __future__ import annotations

import random
from typing import Final, Literal, NamedTuple

from goal_state import Accounting, GoalRepository, GoalStore
from goal_state.domain.requests import Charge
from goal_state.operations.goal_operations import GoalOperations

__all__ = ["BUDGETS", "THREADS", "ChargeMade", "charge_of", "make", "make_in", "number_of"]

BUDGETS: Final = {"thread-0": None, "thread-1": 20_000, "thread-2": None, "thread-3": 10**9}
"""The threads that are charged, and the budgets of their goals. One is soon spent."""

THREADS: Final = tuple(BUDGETS)

Way = Literal["call", "many", "work"]


class ChargeMade(NamedTuple):
    """One charge. Its number is kept as its turn, so that it is known again in the log."""

    number: int
    thread_id: str
    tokens: int
    milliseconds: int
    key: str | None
    way: Way

    @property
    def turn_id(self) -> str:
        return f"charge-{self.number}"


def charge_of(seed: int, number: int) -> ChargeMade:
    """The charge of that number."""
    draw = random.Random(seed << 32 | number)
    way = draw.random()
    return ChargeMade(
        number,
        THREADS[int(draw.random() * len(THREADS))],
        1 + int(draw.random() * 999),
        int(draw.random() * 3000),
        f"key-{number}" if draw.random() < 0.6 else None,
        "call" if way < 0.7 else "many" if way < 0.8 else "work",
    )


def number_of(turn_id: str | None) -> int | None:
    """The number of the charge of a turn; None where it is none of these charges."""
    if turn_id is None or not turn_id.startswith("charge-"):
        return None
    return int(turn_id.removeprefix("charge-"))


def make(store: GoalStore, charge: ChargeMade) -> Accounting:
    """Makes the charge, by one of the ways that there are."""
    if charge.way == "call":
        return make_in(store, charge)
    if charge.way == "work":
        return store.transact(lambda repository: make_work(repository, charge))
    (accounting,) = store.charge_many(
        [
            Charge(
                charge.thread_id,
                tokens=charge.tokens,
                seconds=charge.milliseconds / 1000,
                turn_id=charge.turn_id,
                idempotency_key=charge.key,
            )
        ]
    )
    return accounting


def make_work(repository: GoalRepository, charge: ChargeMade) -> Accounting:
    """The charge as a host's work in a transaction, which reads as well."""
    repository.get(charge.thread_id)
    return make_in(repository, charge)


def make_in(operations: GoalOperations, charge: ChargeMade) -> Accounting:
    """The charge by its own call, of a store or in a host's transaction."""
    return operations.charge(
        charge.thread_id,
        tokens=charge.tokens,
        seconds=charge.milliseconds / 1000,
        turn_id=charge.turn_id,
        idempotency_key=charge.key,
    )
