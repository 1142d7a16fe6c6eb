"""How usage becomes figures: which tokens of it count, and what it costs. Pure: no I/O, no SQL."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from goal_state.domain.counting import CountedTokens
from goal_state.domain.usage import TokenUsage

__all__ = ["Pricing", "Tariff"]


class Pricing(Protocol):
    """What usage costs, in 10^-9 of one currency."""

    @property
    def currency(self) -> str | None:
        """The name of the currency; None where the prices do not say."""
        ...

    def cost_nanos(self, usage: TokenUsage, model: str | None) -> int | None:
        """What one response costs; None where the price is not known."""
        ...

    def most_cost_nanos(self, tokens: int, model: str | None) -> int | None:
        """The most that so many tokens can cost; None where the price is not known."""
        ...


class Tariff(NamedTuple):
    """What a host states once and every charge goes by."""

    counted_tokens: CountedTokens
    pricing: Pricing | None = None

    @property
    def currency(self) -> str | None:
        """The name of the currency of the prices; None where there are none, or they do not say."""
        return None if self.pricing is None else self.pricing.currency

    def cost_nanos(self, usage: TokenUsage, model: str | None) -> int | None:
        """What one response costs; None where the price is not known."""
        return None if self.pricing is None else self.pricing.cost_nanos(usage, model)

    def most_cost_nanos(self, tokens: int, model: str | None) -> int | None:
        """The most that so many tokens can cost; None where the price is not known."""
        return None if self.pricing is None else self.pricing.most_cost_nanos(tokens, model)
