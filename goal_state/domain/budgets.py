"""The budgets of a goal: what bounds it, and when one is reached. Pure: no I/O, no clock, no SQL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from goal_state.domain.prices import check_cost_budget, decimal_cost
from goal_state.domain.values import (
    check_budget,
    check_milliseconds,
    check_time_ms,
)
from goal_state.errors import InvalidValueError

if TYPE_CHECKING:
    from goal_state.domain.goals import Goal, Keep

__all__ = [
    "MAX_WARN_FRACTIONS",
    "BudgetKind",
    "BudgetUse",
    "Budgets",
    "Crossing",
    "budget_uses",
    "changed_budgets",
    "check_budgets",
    "check_warn_at",
    "crossed_fractions",
    "exhausted_budgets",
    "is_exhausted",
    "shown_amount",
    "warn_millionths",
]


class BudgetKind(StrEnum):
    """The kinds of budget. The text is what is stored and shown."""

    TOKENS = "tokens"
    COST = "cost"
    CALLS = "calls"
    TIME = "time"
    DEADLINE = "deadline"

    @property
    def argument(self) -> str:
        """The argument that sets it: `"token_budget"`."""
        return _ARGUMENTS[self]


class Budgets(NamedTuple):
    """What bounds a goal, as it is stored; None for no bound."""

    token_budget: int | None = None
    cost_budget_nanos: int | None = None
    call_budget: int | None = None
    time_budget_ms: int | None = None
    deadline_ms: int | None = None
    warn_fractions: str | None = None


class BudgetUse(NamedTuple):
    """One budget of a goal, and what was used of it, both as they are stored."""

    kind: BudgetKind
    budget: int
    used: int


MAX_WARN_FRACTIONS: Final = 8

_MILLION: Final = 1_000_000


def check_warn_at(field: str, value: object) -> str | None:
    """Fractions of a budget, each above 0 and below 1 with six decimals at the most, as they are stored: in
    rising order, without repeats; None for none.
    """
    if value is None:
        return None
    if isinstance(value, int | float | Decimal | str) or not isinstance(value, Iterable):
        raise InvalidValueError(field, "must be several fractions, such as (0.5, 0.8), or None")
    fractions: set[str] = set()
    for each in cast("Iterable[object]", value):
        fractions.add(_fraction_text(field, each))
        if len(fractions) > MAX_WARN_FRACTIONS:
            raise InvalidValueError(field, f"must have {MAX_WARN_FRACTIONS} fractions at the most")
    return " ".join(sorted(fractions)) or None


def _fraction_text(field: str, value: object) -> str:
    if not isinstance(value, float | Decimal):
        raise InvalidValueError(
            field, f"must hold fractions such as 0.8, not {type(value).__name__}"
        )
    text = f"{float(value):.6f}".rstrip("0")
    if not 0 < value < 1 or float(text) != float(value):
        raise InvalidValueError(
            field, "must hold fractions above 0 and below 1, with six decimals at the most"
        )
    return text


@lru_cache(maxsize=64)
def warn_millionths(text: object) -> tuple[int, ...]:
    """The fractions of a stored `warn_fractions` in millionths.

    Raises:
        InvalidValueError: it is no such text.
    """
    if text is None:
        return ()
    parts = text.split(" ") if isinstance(text, str) else []
    try:
        is_ours = check_warn_at("warn_fractions", map(float, parts)) == text
    except ValueError:
        is_ours = False
    if not is_ours:
        raise InvalidValueError("warn_fractions", "must be rising fractions such as '0.5 0.8'")
    return tuple(int(part.removeprefix("0.").ljust(6, "0")) for part in parts)


def _check_time_budget(field: str, value: object) -> int | None:
    if value is None:
        return None
    milliseconds = check_milliseconds(field, value)
    if milliseconds == 0:
        raise InvalidValueError(field, "must be a millisecond or more")
    return milliseconds


def _check_deadline(field: str, value: object) -> int | None:
    return None if value is None else check_time_ms(field, value)


_ARGUMENTS: Final = {
    BudgetKind.TOKENS: "token_budget",
    BudgetKind.COST: "cost_budget",
    BudgetKind.CALLS: "call_budget",
    BudgetKind.TIME: "time_budget",
    BudgetKind.DEADLINE: "deadline",
}

_CHECKS: Final[Mapping[str, tuple[str, Callable[[str, object], int | str | None]]]] = {
    "token_budget": ("token_budget", check_budget),
    "cost_budget": ("cost_budget_nanos", check_cost_budget),
    "call_budget": ("call_budget", check_budget),
    "time_budget": ("time_budget_ms", _check_time_budget),
    "deadline": ("deadline_ms", _check_deadline),
    "warn_at": ("warn_fractions", check_warn_at),
}
"""By the name of the argument: the field of `Budgets`, and what checks the argument."""


def check_budgets(**budgets: object) -> Budgets:
    """The budgets as callers hand them in.

    Raises:
        InvalidValueError: one is out of its bounds.
    """
    return Budgets(**changed_budgets(None, **budgets))


def changed_budgets(keep: Keep | None, **budgets: object) -> dict[str, Any]:
    """Those of the budgets that shall change, by the fields of `Budgets`.

    Args:
        keep: stands for what shall stay as it is.
        budgets: by the names of the arguments.

    Raises:
        InvalidValueError: one is out of its bounds.
    """
    changes: dict[str, Any] = {}
    for name, value in budgets.items():
        if value is not keep or keep is None:
            field, check = _CHECKS[name]
            changes[field] = check(name, value)
    return changes


def budget_uses(goal: Goal) -> list[BudgetUse]:
    """The budgets that a goal has, in the order of `BudgetKind`; not the deadline: nothing is used of it."""
    uses: list[BudgetUse] = []
    if goal.token_budget is not None:
        uses.append(BudgetUse(BudgetKind.TOKENS, goal.token_budget, goal.tokens_used))
    if goal.cost_budget_nanos is not None:
        uses.append(BudgetUse(BudgetKind.COST, goal.cost_budget_nanos, goal.cost_used_nanos))
    if goal.call_budget is not None:
        uses.append(BudgetUse(BudgetKind.CALLS, goal.call_budget, goal.calls_used))
    if goal.time_budget_ms is not None:
        uses.append(BudgetUse(BudgetKind.TIME, goal.time_budget_ms, goal.time_used_ms))
    return uses


def exhausted_budgets(goal: Goal) -> tuple[BudgetKind, ...]:
    """Which budgets of a goal are reached; the deadline from the first change after it."""
    reached = [use.kind for use in budget_uses(goal) if use.used >= use.budget]
    if goal.deadline_ms is not None and goal.updated_at_ms >= goal.deadline_ms:
        reached.append(BudgetKind.DEADLINE)
    return tuple(reached)


def is_exhausted(goal: Goal) -> bool:
    """Whether any budget of a goal (or of a draft of one) is reached: `exhausted_budgets`, told fast."""
    return (
        (goal.token_budget is not None and goal.tokens_used >= goal.token_budget)
        or (goal.cost_budget_nanos is not None and goal.cost_used_nanos >= goal.cost_budget_nanos)
        or (goal.call_budget is not None and goal.calls_used >= goal.call_budget)
        or (goal.time_budget_ms is not None and goal.time_used_ms >= goal.time_budget_ms)
        or (goal.deadline_ms is not None and goal.updated_at_ms >= goal.deadline_ms)
    )


class Crossing(NamedTuple):
    """A fraction of a budget that was passed."""

    use: BudgetUse
    millionths: int


def crossed_fractions(before: Goal, after: Goal) -> list[Crossing]:
    """The fractions of `warn_at` that the use of a budget has passed from one state of a goal to another."""
    fractions = warn_millionths(after.warn_fractions)
    old = {use.kind: use for use in budget_uses(before)}
    return [
        Crossing(use, fraction)
        for use in budget_uses(after)
        for fraction in fractions
        if _is_past(use, fraction) and not _is_past(old.get(use.kind), fraction)
    ]


def _is_past(use: BudgetUse | None, millionths: int) -> bool:
    return use is not None and use.used * _MILLION >= use.budget * millionths


def shown_amount(kind: BudgetKind, amount: int) -> str:
    """An amount of a kind as people read it: tokens and calls as they are, cost and seconds exactly."""
    if kind is BudgetKind.COST:
        return f"{decimal_cost(amount):f}"
    if kind is BudgetKind.TIME:
        return f"{amount / 1000:g} s"
    return str(amount)
