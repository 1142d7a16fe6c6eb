"""Holds: parts of budgets that are set aside before a call is made. Pure: no I/O, no clock, no SQL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple

from goal_state.domain.amounts import Amounts
from goal_state.domain.budgets import BudgetKind, budget_uses, shown_amount
from goal_state.domain.goals import Goal, GoalStatus, goal_ids_above, utc_from_ms
from goal_state.domain.plain import iso, plain_fields
from goal_state.domain.prices import decimal_cost
from goal_state.errors import BudgetExceededError

__all__ = [
    "Headroom",
    "HoldOutcome",
    "HoldRecord",
    "Limit",
    "OnUnknown",
    "admitted",
    "headroom_of",
    "limits_of",
]


class OnUnknown(StrEnum):
    """What becomes of a hold whose call was sent, and whose usage never became known."""

    CHARGE = "charge"
    """It is charged in full, as an estimate."""
    RELEASE = "release"
    """It charges nothing."""


class HoldOutcome(StrEnum):
    """How a hold has ended."""

    SETTLED = "settled"
    """Its usage was charged."""
    RELEASED = "released"
    """Nothing was used."""
    UNKNOWN = "unknown"
    """Its call was cut or lost: charged was what was known, or an estimate, or nothing."""


@dataclass(frozen=True, slots=True)
class HoldRecord:
    """A hold as it was at one moment.

    Attributes:
        hold_id: a UUIDv7.
        thread_id, goal_id: whose budget it is a part of.
        root_goal_id: the goal at the top of that goal's tree; the goal itself where it has no parent.
        ancestor_goal_ids: the goals above it, as `Goal` has them, of whose budgets it is a part as well.
        hold_key: the caller's key, by which the same live hold is found again.
        tokens, cost_nanos, calls: what is set aside; costs in 10^-9 of the currency, None where nobody knows.
        observed_tokens, observed_cost_nanos, observed_unpriced_tokens: what its call is known to have used so
            far; None where nothing is.
        model, turn_id, tags_json: what its charge will carry.
        on_unknown: see `OnUnknown`.
        is_dispatched: 1 once its call may have been sent; 0 before.
        created_at_ms, expires_at_ms: Unix times in milliseconds.
        ended_at_ms, outcome: when it ended and how; None while it is live.
        charged_tokens, charged_cost_nanos, charged_calls: what its end charged; None while it is live.
    """

    hold_id: str
    thread_id: str
    goal_id: str
    root_goal_id: str
    ancestor_goal_ids: str | None
    hold_key: str | None
    tokens: int
    cost_nanos: int | None
    calls: int
    observed_tokens: int | None
    observed_cost_nanos: int | None
    observed_unpriced_tokens: int | None
    model: str | None
    turn_id: str | None
    tags_json: str | None
    on_unknown: OnUnknown
    is_dispatched: int
    created_at_ms: int
    expires_at_ms: int
    ended_at_ms: int | None = None
    outcome: HoldOutcome | None = None
    charged_tokens: int | None = None
    charged_cost_nanos: int | None = None
    charged_calls: int | None = None

    @property
    def cost(self) -> Decimal | None:
        """What of a cost budget is set aside, in the currency of the prices; None where nobody knows."""
        return None if self.cost_nanos is None else decimal_cost(self.cost_nanos)

    @property
    def expires_at(self) -> datetime:
        """When it ends by itself, in UTC."""
        return utc_from_ms(self.expires_at_ms)

    @property
    def amounts(self) -> Amounts:
        """What is set aside."""
        return Amounts(self.tokens, 0, self.cost_nanos or 0, self.calls)

    @property
    def charged(self) -> Amounts:
        """What its end charged; nothing while it is live."""
        return Amounts(
            self.charged_tokens or 0, 0, self.charged_cost_nanos or 0, self.charged_calls or 0
        )

    @property
    def goal_ids(self) -> list[str]:
        """The goals of whose budgets it is a part: its own, then those above, the nearest first."""
        return [self.goal_id, *goal_ids_above(self.ancestor_goal_ids)]

    def unknown_usage(self) -> tuple[Amounts, bool]:
        """What is charged where the usage of its call never became known, and whether that is an estimate."""
        if not self.is_dispatched:
            return Amounts(), False
        if self.observed_tokens is not None:
            known = Amounts(
                self.observed_tokens,
                0,
                self.observed_cost_nanos or 0,
                self.calls,
                self.observed_unpriced_tokens or 0,
            )
            return known, False
        if self.on_unknown is OnUnknown.RELEASE:
            return Amounts(), False
        unpriced = self.tokens if self.cost_nanos is None else 0
        return self.amounts._replace(unpriced_tokens=unpriced, estimated_tokens=self.tokens), True

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: every field, the cost as a decimal number, and the times as ISO 8601."""
        return plain_fields(self) | {
            "cost": None if self.cost is None else f"{self.cost:f}",
            "created_at": iso(utc_from_ms(self.created_at_ms)),
            "expires_at": iso(self.expires_at),
        }


class Limit(NamedTuple):
    """One budget of a goal or of one above it, and what is left of it."""

    thread_id: str
    goal_id: str
    kind: BudgetKind
    budget: int
    used: int
    held: int

    @property
    def left(self) -> int:
        """What is neither used nor held, never below 0."""
        return max(self.budget - self.used - self.held, 0)


class Headroom(NamedTuple):
    """What a goal may still use: of each kind of budget the tightest, its own or one above it.

    Amounts are as they are stored: costs in 10^-9 of the currency, times in milliseconds.
    """

    limits: tuple[Limit, ...]
    """The tightest budget of each kind, in the order of `BudgetKind`; a kind without one is missing."""
    stopped_by: str | None
    """The thread whose goal is not active, so that nothing is admitted; None where all are."""

    def limit(self, kind: BudgetKind) -> Limit | None:
        """The tightest budget of a kind; None where nothing bounds it."""
        return next((limit for limit in self.limits if limit.kind is kind), None)

    @property
    def tokens(self) -> int | None:
        """The tokens that are left; None for no bound."""
        limit = self.limit(BudgetKind.TOKENS)
        return None if limit is None else limit.left

    @property
    def calls(self) -> int | None:
        """The calls that are left; None for no bound."""
        limit = self.limit(BudgetKind.CALLS)
        return None if limit is None else limit.left

    @property
    def cost(self) -> Decimal | None:
        """What it may still cost, in the currency of the prices; None for no bound."""
        limit = self.limit(BudgetKind.COST)
        return None if limit is None else decimal_cost(limit.left)

    @property
    def seconds(self) -> float | None:
        """The active time that is left; None for no bound."""
        limit = self.limit(BudgetKind.TIME)
        return None if limit is None else limit.left / 1000

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: what is left of each kind, and who limits it."""
        return {
            "tokens": self.tokens,
            "cost": None if self.cost is None else f"{self.cost:f}",
            "calls": self.calls,
            "seconds": self.seconds,
            "stopped_by": self.stopped_by,
            "limits": [limit._asdict() | {"left": limit.left} for limit in self.limits],
        }


_HELD: Final = {
    BudgetKind.TOKENS: "held_tokens",
    BudgetKind.COST: "held_cost_nanos",
    BudgetKind.CALLS: "held_calls",
}


def limits_of(goal: Goal, *, own: bool) -> list[Limit]:
    """The budgets of a goal with what is used and held of them; of one above, not its active time."""
    return [
        Limit(
            goal.thread_id,
            goal.goal_id,
            use.kind,
            use.budget,
            use.used,
            getattr(goal, _HELD[use.kind]) if use.kind in _HELD else 0,
        )
        for use in budget_uses(goal)
        if own or use.kind is not BudgetKind.TIME
    ]


def headroom_of(chain: Iterable[Goal]) -> Headroom:
    """What the first goal of a chain may still use; the others are those above it, the nearest first."""
    tightest: dict[BudgetKind, Limit] = {}
    stopped_by: str | None = None
    for number, goal in enumerate(chain):
        if stopped_by is None and goal.status is not GoalStatus.ACTIVE:
            stopped_by = goal.thread_id
        for limit in limits_of(goal, own=number == 0):
            known = tightest.get(limit.kind)
            if known is None or limit.left < known.left:
                tightest[limit.kind] = limit
    return Headroom(tuple(tightest[kind] for kind in BudgetKind if kind in tightest), stopped_by)


def admitted(chain: list[Goal], asked: Amounts, at_least: int | None) -> Amounts:
    """What of the tokens, cost and calls that were asked for is set aside, all of it unless `at_least` tokens
    will do.

    Args:
        chain: the goal, and those above it, the nearest first.
        asked: what was asked for.
        at_least: how many tokens will do; the cost shrinks with them.

    Raises:
        BudgetExceededError: a goal is not active, or has not so much left.
    """
    for goal in chain:
        if goal.status is not GoalStatus.ACTIVE:
            raise _stopped(goal)
    granted = asked
    for number, goal in enumerate(chain):
        for limit in limits_of(goal, own=number == 0):
            granted = _within(limit, granted, asked, at_least)
    return granted


def _within(limit: Limit, granted: Amounts, asked: Amounts, at_least: int | None) -> Amounts:
    kind, left = limit.kind, limit.left
    if kind is BudgetKind.TIME:
        return granted
    wanted = {
        BudgetKind.TOKENS: granted.tokens,
        BudgetKind.COST: granted.cost_nanos,
        BudgetKind.CALLS: granted.calls,
    }[kind]
    if wanted <= left:
        return granted
    if at_least is not None and kind is not BudgetKind.CALLS:
        tokens = left if kind is BudgetKind.TOKENS else granted.tokens * left // wanted
        if tokens >= at_least:
            # Rounded up, so that what is set aside is never less than its tokens may cost.
            cost_nanos = -(-asked.cost_nanos * tokens // asked.tokens)
            return granted._replace(
                tokens=tokens,
                cost_nanos=min(cost_nanos, left) if kind is BudgetKind.COST else cost_nanos,
            )
    least = wanted
    if at_least is not None:
        if kind is BudgetKind.TOKENS:
            least = at_least
        elif kind is BudgetKind.COST:
            least = -(-asked.cost_nanos * at_least // asked.tokens)
    raise _exceeded(limit, wanted, least)


def _exceeded(limit: Limit, asked: int, least: int) -> BudgetExceededError:
    kind = limit.kind
    budget, used, held, left, wanted, needed = (
        shown_amount(kind, amount)
        for amount in (limit.budget, limit.used, limit.held, limit.left, asked, least)
    )
    if least < asked:
        wanted = f"{needed} to {wanted}"
    helps = limit.held > 0 and limit.budget - limit.used >= least
    advice = (
        "the rest is held by calls under way: wait for them, or ask for less"
        if helps
        else "ask for less, or raise it with resume()"
    )
    return BudgetExceededError(
        f"of the {kind.argument} of thread {limit.thread_id!r}, {budget}, {used} are used and {held}"
        f" held: {left} left, {wanted} needed, so nothing was reserved; {advice}",
        thread_id=limit.thread_id,
        goal_id=limit.goal_id,
        kind=kind.value,
        budget=limit.budget,
        used=limit.used,
        held=limit.held,
        asked=asked,
        waiting_helps=helps,
    )


def _stopped(goal: Goal) -> BudgetExceededError:
    if goal.status is GoalStatus.BUDGET_LIMITED:
        reached = ", ".join(goal.exhausted)
        advice = (
            f"its budget of {reached} is used up: raise it with resume()"
            if reached
            else "its budgets were raised: resume it"
        )
    else:
        advice = "make it active with resume() first"
    return BudgetExceededError(
        f"the goal of thread {goal.thread_id!r} is {goal.status}, so nothing was reserved; {advice}",
        thread_id=goal.thread_id,
        goal_id=goal.goal_id,
    )
