"""What is sent of an event: the library's own `goal_event`, or a form of the host's choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from goal_state.domain.events import GoalEvent

__all__ = ["AnalyticsEvent", "PayloadForm", "goal_event"]

PayloadForm: TypeAlias = Callable[[GoalEvent], dict[str, Any] | None]
"""Makes of an event what is sent of it, ready for JSON; None where nothing is to be sent."""


def goal_event(event: GoalEvent) -> dict[str, Any]:
    """Every figure, id and time of an event, ready for JSON.

    Counts are integers, costs are decimal numbers as text, times are seconds exact to the millisecond,
    `occurred_at` is ISO 8601 in UTC; what an event does not have is null. `event_id` is the same on every
    delivery, so that a receiver can drop a repeat. The idempotency key is left out: it is the host's own
    text, which may hold what a receiver must not see. The objective is in no event.
    """
    payload = event.to_dict()
    del payload["idempotency_key"]
    return payload


@dataclass(frozen=True, slots=True)
class AnalyticsEvent:
    """One event on its way to a sink.

    Attributes:
        event: what happened.
        form: makes the payload of it.
    """

    event: GoalEvent
    form: PayloadForm = goal_event

    @property
    def event_id(self) -> str:
        """The same on every delivery, so that a receiver can drop a repeat, whatever the payload holds."""
        return self.event.event_id

    @property
    def payload(self) -> dict[str, Any] | None:
        """What is sent, ready for JSON. A sink is given no event of which nothing is."""
        return self.form(self.event)
