"""What a goal's usage is made up of. Pure: no I/O, no clock, no SQL."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any

from goal_state.domain.goals import utc_from_ms
from goal_state.domain.plain import iso
from goal_state.domain.prices import decimal_cost

__all__ = ["Breakdown", "Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a goal's usage.

    Attributes:
        name: whose: a thread, a model, a turn, or the value of a tag; None for what names none.
        tokens, time_ms, cost_nanos, calls: how much; costs in 10^-9 of the currency of the prices.
        unpriced_tokens, estimated_tokens: of these tokens, as `Goal` has them.
    """

    name: str | None
    tokens: int = 0
    time_ms: int = 0
    cost_nanos: int = 0
    calls: int = 0
    unpriced_tokens: int = 0
    estimated_tokens: int = 0

    @property
    def cost(self) -> Decimal:
        """What it cost, in the currency of the prices."""
        return decimal_cost(self.cost_nanos)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: every field, and the cost as a decimal number."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {"cost": f"{self.cost:f}"}


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A goal's usage by what was asked for; its parts add up to the goal's, as far as it is complete.

    Attributes:
        goal_id: the goal.
        by: `"child"`, `"model"`, `"turn"`, or the name of a tag.
        parts: the largest first.
        complete_since_ms: from when on it is complete (Unix ms), where older events were pruned and their
            turns and tags with them; None where it is complete.
    """

    goal_id: str
    by: str
    parts: tuple[Part, ...]
    complete_since_ms: int | None = None

    @property
    def complete_since(self) -> datetime | None:
        """From when on it is complete, in UTC; None where it is."""
        return None if self.complete_since_ms is None else utc_from_ms(self.complete_since_ms)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        since = self.complete_since
        return {
            "goal_id": self.goal_id,
            "by": self.by,
            "parts": [part.to_dict() for part in self.parts],
            "complete_since": None if since is None else iso(since),
        }
