"""What a charge adds to a goal. Pure: no I/O, no SQL."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Amounts"]


class Amounts(NamedTuple):
    """What a charge adds to a goal, each figure as it is stored.

    Only `estimated_tokens` may be below 0: where an estimate is resolved.
    """

    tokens: int = 0
    time_ms: int = 0
    cost_nanos: int = 0
    calls: int = 0
    unpriced_tokens: int = 0
    estimated_tokens: int = 0

    @property
    def without_time(self) -> Amounts:
        """What an ancestor pays: active time is the goal's own."""
        return self._replace(time_ms=0)
