"""What happened to a goal, as immutable records in the past tense. Pure: no I/O, no SQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from goal_state.domain.goals import GoalStatus, utc_from_ms
from goal_state.domain.records import blank
from goal_state.errors import InvalidValueError

__all__ = [
    "FIGURES",
    "EventKind",
    "Figure",
    "GoalEvent",
    "check_kind",
    "finished_event",
    "new_event_draft",
]


class EventKind(StrEnum):
    """The kinds of change. The text is what is stored and sent."""

    CREATED = "created"
    """A goal was made; where it took the place of another, `replaced_goal_id` names that one."""
    USAGE_ACCOUNTED = "usage_accounted"
    """Usage was charged to it."""
    STATUS_CHANGED = "status_changed"
    """Its stored status is another one now."""
    CLEARED = "cleared"
    """It was removed. No event of this goal follows."""


def check_kind(value: object) -> EventKind:
    """The kind of that name, or `InvalidValueError` with the names there are."""
    try:
        return EventKind(value)
    except ValueError:
        shown = ascii(value) if isinstance(value, str) else type(value).__name__
        raise InvalidValueError(
            "kinds", f"must be among {', '.join(EventKind)}, is {shown[:80]}"
        ) from None


@dataclass(frozen=True, slots=True)
class GoalEvent:
    """One change of one goal, as it stands in the log. It never carries the objective.

    Attributes:
        position: its place in the log; positions rise in the order of commits.
        event_id: a UUIDv7; the same on every delivery, so that a receiver can drop a repeat.
        kind: see `EventKind`.
        thread_id, goal_id: whose change it is.
        turn_id: the turn that caused it; None for what came from outside or while idle.
        goal_status: the status after the change.
        previous_status: the status before it; None on `created`.
        token_budget: the budget after the change.
        tokens_delta, time_delta_ms: what was charged, on `usage_accounted`; else 0.
        cumulative_tokens, cumulative_time_ms: the goal's usage after the charge, on `usage_accounted`;
            else None.
        idempotency_key: the caller's key of the charge, if it gave one.
        replaced_goal_id: on `created`, the goal whose place it took.
        occurred_at_ms: Unix time in milliseconds.
    """

    position: int
    event_id: str
    kind: EventKind
    thread_id: str
    goal_id: str
    turn_id: str | None
    goal_status: GoalStatus
    previous_status: GoalStatus | None
    token_budget: int | None
    tokens_delta: int
    time_delta_ms: int
    cumulative_tokens: int | None
    cumulative_time_ms: int | None
    idempotency_key: str | None
    replaced_goal_id: str | None
    occurred_at_ms: int

    @property
    def has_token_budget(self) -> bool:
        """Whether the goal had a budget after the change."""
        return self.token_budget is not None

    @property
    def cumulative_seconds(self) -> int | None:
        """The goal's active time after the charge in whole seconds, on `usage_accounted`; else None."""
        return None if self.cumulative_time_ms is None else self.cumulative_time_ms // 1000

    @property
    def occurred_at(self) -> datetime:
        """When it happened, in UTC."""
        return utc_from_ms(self.occurred_at_ms)


new_event_draft: Final = blank(GoalEvent)
"""Makes a draft of an event, to be filled in; its position is known once it is stored."""


def finished_event(draft: Any, position: int) -> GoalEvent:
    """The event that a draft has become, at its place in the log; the draft is that event from now on."""
    draft.position = position
    draft.__class__ = GoalEvent
    return draft


class Figure(NamedTuple):
    """A kind of usage, by the names under which it is kept."""

    used: str
    """Of a goal."""
    delta: str
    """Of an event: what it added."""
    cumulative: str
    """Of an event: what it came to."""
    balance: str
    """Of a balance: what the events came to that were pruned."""


FIGURES: Final = (
    Figure("tokens_used", "tokens_delta", "cumulative_tokens", "tokens"),
    Figure("time_used_ms", "time_delta_ms", "cumulative_time_ms", "time_ms"),
)
"""All that is charged: what a goal has used is the sum of its events' deltas."""
