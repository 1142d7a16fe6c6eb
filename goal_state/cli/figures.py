"""Figures, budgets and what is left of them, in the words in which people read them."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from goal_state.domain.budgets import BudgetKind
from goal_state.domain.goals import Goal, utc_from_ms
from goal_state.domain.holds import Headroom, Limit
from goal_state.domain.prices import decimal_cost

__all__ = [
    "amount",
    "budget_change",
    "budget_lines",
    "cost",
    "duration",
    "held",
    "left",
    "moment",
    "number",
    "printable",
    "used",
    "used_of",
]


def printable(text: str, *, keep: str = "") -> str:
    """The text with every unprintable character as its escape sequence."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode()
        for character in text
    )


def moment(moment: datetime) -> str:
    """A time, to the millisecond."""
    return moment.strftime("%Y-%m-%d %H:%M:%S") + f".{moment.microsecond // 1000:03d}"


def duration(time_ms: int) -> str:
    """Milliseconds, as seconds."""
    return f"{time_ms / 1000:,.1f} s"


def cost(nanos: int) -> str:
    """A cost, exactly, in the currency of the prices."""
    return f"{decimal_cost(nanos):,f}"


def number(count: int, what: str) -> str:
    """How many there are of something."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def amount(kind: BudgetKind, stored: int) -> str:
    """An amount of a kind of budget, from how it is stored."""
    if kind is BudgetKind.COST:
        return cost(stored)
    if kind is BudgetKind.TIME:
        return duration(stored)
    return f"{stored:,}"


def used(kind: BudgetKind, used: int, budget: int | None) -> str:
    """What is used of a budget, in a sentence."""
    if budget is None:
        return f"{amount(kind, used)} used, no budget"
    remaining = amount(kind, max(budget - used, 0))
    return f"{amount(kind, used)} of {amount(kind, budget)} used, {remaining} remaining"


def used_of(kind: BudgetKind, used: int, budget: int | None) -> str:
    """What is used of a budget, in a cell of a table; nothing where there is nothing to say."""
    if budget is None:
        return amount(kind, used) if used else ""
    return f"{amount(kind, used)} of {amount(kind, budget)}"


_KINDS: Final = {
    "token_budget": BudgetKind.TOKENS,
    "cost_budget_nanos": BudgetKind.COST,
    "call_budget": BudgetKind.CALLS,
    "time_budget_ms": BudgetKind.TIME,
}


def budget_change(field: str, was: object, now: object) -> str:
    """What became of a bound of a goal, by its name in the log."""

    def shown(bound: object) -> str:
        if bound is None:
            return "none"
        if not isinstance(bound, int):
            return str(bound)
        return amount(_KINDS[field], bound) if field in _KINDS else moment(utc_from_ms(bound))

    name = _KINDS.get(field, "deadline" if field == "deadline_ms" else "warns at")
    return f"{name}: {shown(was)} to {shown(now)}"


def budget_lines(goal: Goal) -> list[tuple[str, str]]:
    """What there is to say of a goal's budgets besides that of tokens, each with its name."""
    lines: list[tuple[str, str]] = []
    if goal.cost_used_nanos or goal.cost_budget_nanos is not None:
        said = used(BudgetKind.COST, goal.cost_used_nanos, goal.cost_budget_nanos)
        if goal.unpriced_tokens:
            said += f", without {number(goal.unpriced_tokens, 'token')} of unknown price"
        lines.append(("cost", said))
    if goal.calls_used or goal.call_budget is not None:
        lines.append(("calls", used(BudgetKind.CALLS, goal.calls_used, goal.call_budget)))
    time = (
        duration(goal.time_used_ms)
        if goal.time_budget_ms is None
        else used(BudgetKind.TIME, goal.time_used_ms, goal.time_budget_ms)
    )
    lines.append(("time", time))
    if goal.deadline is not None:
        lines.append(("deadline", f"{moment(goal.deadline)} UTC"))
    if goal.warn_at:
        lines.append(("warns at", ", ".join(f"{fraction * 100:g} %" for fraction in goal.warn_at)))
    if goal.exhausted:
        lines.append(("exhausted", ", ".join(goal.exhausted)))
    if goal.estimated_tokens:
        lines.append(("estimated", f"{goal.estimated_tokens:,} of the tokens used"))
    if goal.live_holds:
        lines.append(("held", f"{held(goal)}, by {number(goal.live_holds, 'hold')}"))
    if goal.claim_owner is not None and goal.claim_expires_at_ms is not None:
        until = moment(utc_from_ms(goal.claim_expires_at_ms))
        lines.append(
            (
                "claimed",
                f"by {printable(goal.claim_owner)} until {until} UTC, number {goal.claim_number}",
            )
        )
    return lines


def held(goal: Goal) -> str:
    """What holds set aside of a goal's budgets; nothing where there is none."""
    parts = [number(goal.held_tokens, "token")] if goal.held_tokens else []
    if goal.held_cost_nanos:
        parts.append(f"cost {cost(goal.held_cost_nanos)}")
    if goal.held_calls:
        parts.append(number(goal.held_calls, "call"))
    return ", ".join(parts)


def left(headroom: Headroom, goal: Goal) -> str:
    """What a goal may still use, and whose budget says so where it is not the goal's own."""
    if headroom.stopped_by == goal.thread_id:
        return f"none: it is {goal.status}"
    if headroom.stopped_by is not None:
        return f"none: thread {printable(headroom.stopped_by)} is not active"
    if not headroom.limits:
        return "no bound"
    return ", ".join(_left_of(limit, goal) for limit in headroom.limits)


_UNITS: Final = {BudgetKind.TOKENS: "token", BudgetKind.CALLS: "call"}


def _left_of(limit: Limit, goal: Goal) -> str:
    if limit.kind in _UNITS:
        said = number(limit.left, _UNITS[limit.kind])
    elif limit.kind is BudgetKind.COST:
        said = f"cost {cost(limit.left)}"
    else:
        said = duration(limit.left)
    return (
        said if limit.goal_id == goal.goal_id else f"{said} of thread {printable(limit.thread_id)}"
    )
