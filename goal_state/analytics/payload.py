"""What is sent of an event: the library's own `goal_event`, or a form of the host's choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from goal_state.domain.events import GoalEvent

__all__ = ["AnalyticsEvent", "PayloadForm", "goal_event"]

PayloadForm: TypeAlias = Callable[[GoalEvent], dict[str, Any]]
"""Makes of an event what is sent of it, ready for JSON."""


def goal_event(event: GoalEvent) -> dict[str, Any]:
    """Every figure, id and time of an event, ready for JSON.

    Token counts are integers, times are seconds exact to the millisecond, `occurred_at` is ISO 8601 in UTC;
    what an event does not have is null. `event_id` is the same on every delivery, so that a receiver can
    drop a repeat. The idempotency key is left out: it is the host's own text, which may hold what a
    receiver must not see. The objective is in no event.
    """
    return {
        "event_type": "goal_event",
        "event_id": event.event_id,
        "position": event.position,
        "occurred_at": event.occurred_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "kind": event.kind.value,
        "thread_id": event.thread_id,
        "goal_id": event.goal_id,
        "turn_id": event.turn_id,
        "goal_status": event.goal_status.value,
        "previous_status": None if event.previous_status is None else event.previous_status.value,
        "token_budget": event.token_budget,
        "tokens_delta": event.tokens_delta,
        "time_delta_seconds": event.time_delta_ms / 1000,
        "cumulative_tokens": event.cumulative_tokens,
        "cumulative_time_seconds": None
        if event.cumulative_time_ms is None
        else event.cumulative_time_ms / 1000,
        "replaced_goal_id": event.replaced_goal_id,
    }


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
    def payload(self) -> dict[str, Any]:
        """What is sent, ready for JSON."""
        return self.form(self.event)
