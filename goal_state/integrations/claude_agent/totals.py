"""What the program says that it has used, beside what was charged for the messages it has shown."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

from claude_agent_sdk import ResultMessage

from goal_state.domain.usage import TokenUsage
from goal_state.errors import InvalidValueError

__all__ = ["Excess", "Totals", "read"]

_NOTHING: Final = TokenUsage()


class Excess(NamedTuple):
    """What a turn has used beyond what was charged.

    Attributes:
        usage: its tokens.
        cost: its cost; None where the program does not say.
        is_known: whether the program says what the turn has used.
    """

    usage: TokenUsage
    cost: Decimal | None
    is_known: bool


class Totals:
    """What one run of the program has used since its conversation began: charged, and told.

    `model_usage` and `total_cost_usd` of a result are running totals, of all models and sub-agents.
    `usage` is that of the main agent alone: of the turn, or (some programs) a running total, too.
    """

    def __init__(self) -> None:
        self._charged = _NOTHING
        self._charged_cost = Decimal(0)
        self._charged_in_turn = _NOTHING
        self._told_before = _NOTHING

    def charged(self, usage: TokenUsage, cost: Decimal | None, *, of_main_agent: bool) -> None:
        """Notes a message that was charged, with its price where that is known."""
        self._charged += usage
        self._charged_cost += cost or 0
        if of_main_agent:
            self._charged_in_turn += usage

    def end_turn(self, result: ResultMessage) -> Excess:
        """What the end of a turn tells beyond what was charged; it counts as charged from now on."""
        if result.model_usage:
            told = _NOTHING
            for usage in result.model_usage.values():
                told += read(usage) or _NOTHING
            excess = _beyond(told, self._charged)
        else:
            told = read(result.usage) or _NOTHING
            excess = _beyond(self._of_turn(told), self._charged_in_turn)
            self._told_before = told
        self._charged += excess
        self._charged_in_turn = _NOTHING
        cost = None
        if result.total_cost_usd is not None:
            total = Decimal(str(result.total_cost_usd))
            cost = max(total - self._charged_cost, Decimal(0))
            self._charged_cost += cost
        return Excess(excess, cost, any(told.counts()) or bool(cost))

    def _of_turn(self, told: TokenUsage) -> TokenUsage:
        before, charged = self._told_before, self._charged_in_turn
        is_running_total = (
            any(before.counts())
            and told.input_tokens >= before.input_tokens + charged.input_tokens
            and told.output_tokens >= before.output_tokens
        )
        return _beyond(told, before) if is_running_total else told


def read(usage: Mapping[str, Any] | None) -> TokenUsage | None:
    """What a usage of the program says; None where it is none that we know, or says nothing."""
    if usage is None:
        return None
    try:
        known = TokenUsage.of(usage)
    except InvalidValueError:
        return None
    return known if any(known.counts()) else None


def _beyond(one: TokenUsage, other: TokenUsage) -> TokenUsage:
    return TokenUsage(*(max(a - b, 0) for a, b in zip(one.counts(), other.counts(), strict=True)))
