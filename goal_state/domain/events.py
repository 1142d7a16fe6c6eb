"""What happened to a goal, as immutable records in the past tense. Pure: no I/O, no SQL."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple

from goal_state.domain.goals import GoalStatus, utc_from_ms
from goal_state.domain.plain import iso
from goal_state.domain.prices import decimal_cost
from goal_state.domain.records import blank
from goal_state.errors import InvalidValueError

__all__ = [
    "FIGURES",
    "Estimate",
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
    BUDGET_CHANGED = "budget_changed"
    """Its budgets, or what it warns at, are others now; `details` has what they were and what they are."""
    THRESHOLD_CROSSED = "threshold_crossed"
    """The use of a budget has passed a fraction of `warn_at`; `details` says of which budget and which."""


class Estimate(StrEnum):
    """What a charge has to do with an estimate. The text is what is stored."""

    MADE = "made"
    """It stands for usage that nobody knows: a call was sent, and what it used never became known."""
    RESOLVED = "resolved"
    """It adds what an estimate lacked, now that the usage is known."""


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
        token_budget: the token budget after the change.
        tokens_delta, time_delta_ms: what was charged, on `usage_accounted`; else 0.
        cumulative_tokens, cumulative_time_ms: the goal's usage after the charge, on `usage_accounted`;
            else None.
        idempotency_key: the caller's key of the charge, if it gave one.
        replaced_goal_id: on `created`, the goal whose place it took.
        occurred_at_ms: Unix time in milliseconds.
        cost_delta_nanos, calls_delta: what was charged besides, on `usage_accounted`; costs in 10^-9 of the
            currency of the prices.
        unpriced_tokens_delta: of `tokens_delta`, those whose cost nobody knows.
        estimated_tokens_delta: of `tokens_delta`, those that are estimated; below 0 where an estimate is
            resolved.
        cumulative_cost_nanos, cumulative_calls: the goal's usage after the charge, on `usage_accounted`;
            else None.
        model: the model that used it, where the caller named it.
        estimate: whether the charge is an estimate, or resolves one; None for what is neither.
        origin_goal_id: on what an ancestor pays for a goal below it, that goal. Who adds up several goals
            takes only events without one.
        via_goal_id: on such a charge, the ancestor's own child on the way down.
        hold_id: the hold that the charge ended, if it ended one.
        tags_json: the caller's tags as JSON; see `tags`.
        details_json: what else there is to say of it as JSON; see `details`.
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
    cost_delta_nanos: int = 0
    calls_delta: int = 0
    unpriced_tokens_delta: int = 0
    estimated_tokens_delta: int = 0
    cumulative_cost_nanos: int | None = None
    cumulative_calls: int | None = None
    model: str | None = None
    estimate: Estimate | None = None
    origin_goal_id: str | None = None
    via_goal_id: str | None = None
    hold_id: str | None = None
    tags_json: str | None = None
    details_json: str | None = None

    @property
    def cost_delta(self) -> Decimal:
        """What was charged, in the currency of the prices."""
        return decimal_cost(self.cost_delta_nanos)

    @property
    def cumulative_cost(self) -> Decimal | None:
        """The goal's cost after the charge, on `usage_accounted`; else None."""
        nanos = self.cumulative_cost_nanos
        return None if nanos is None else decimal_cost(nanos)

    @property
    def is_estimate(self) -> bool:
        """Whether it charged for usage that nobody knows."""
        return self.estimate is Estimate.MADE

    @property
    def tags(self) -> dict[str, str]:
        """The caller's tags of the charge."""
        return {} if self.tags_json is None else json.loads(self.tags_json)

    @property
    def details(self) -> dict[str, Any]:
        """On `budget_changed`, of the budgets that differ, what they were (`was`) and what they are (`now`);
        on `threshold_crossed` the `budget`, the `fraction`, and what was `used` of which `limit`. Amounts are
        as they are stored: costs in 10^-9 of the currency, times in milliseconds.
        """
        return {} if self.details_json is None else json.loads(self.details_json)

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

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: every figure, id and time.

        Counts are integers, costs are decimal numbers as text, times are seconds exact to the millisecond,
        `occurred_at` is ISO 8601 in UTC; what an event does not have is None.
        """
        cumulative_ms = self.cumulative_time_ms
        return {
            "event_type": "goal_event",
            "event_id": self.event_id,
            "position": self.position,
            "occurred_at": iso(self.occurred_at),
            "kind": self.kind.value,
            "thread_id": self.thread_id,
            "goal_id": self.goal_id,
            "turn_id": self.turn_id,
            "goal_status": self.goal_status.value,
            "previous_status": None if self.previous_status is None else self.previous_status.value,
            "token_budget": self.token_budget,
            "tokens_delta": self.tokens_delta,
            "time_delta_seconds": self.time_delta_ms / 1000,
            "cumulative_tokens": self.cumulative_tokens,
            "cumulative_time_seconds": None if cumulative_ms is None else cumulative_ms / 1000,
            "cost_delta": f"{self.cost_delta:f}",
            "cumulative_cost": None
            if self.cumulative_cost is None
            else f"{self.cumulative_cost:f}",
            "calls_delta": self.calls_delta,
            "cumulative_calls": self.cumulative_calls,
            "unpriced_tokens_delta": self.unpriced_tokens_delta,
            "estimated_tokens_delta": self.estimated_tokens_delta,
            "model": self.model,
            "estimate": None if self.estimate is None else self.estimate.value,
            "origin_goal_id": self.origin_goal_id,
            "via_goal_id": self.via_goal_id,
            "hold_id": self.hold_id,
            "tags": self.tags,
            "details": self.details,
            "replaced_goal_id": self.replaced_goal_id,
            "idempotency_key": self.idempotency_key,
        }


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
    cumulative: str | None
    """Of an event: what it came to; None where events do not say."""
    balance: str
    """Of a balance: what the events came to that were pruned."""


FIGURES: Final = (
    Figure("tokens_used", "tokens_delta", "cumulative_tokens", "tokens"),
    Figure("time_used_ms", "time_delta_ms", "cumulative_time_ms", "time_ms"),
    Figure("cost_used_nanos", "cost_delta_nanos", "cumulative_cost_nanos", "cost_nanos"),
    Figure("calls_used", "calls_delta", "cumulative_calls", "calls"),
    Figure("unpriced_tokens", "unpriced_tokens_delta", None, "unpriced_tokens"),
    Figure("estimated_tokens", "estimated_tokens_delta", None, "estimated_tokens"),
)
"""All that is charged: what a goal has used is the sum of its events' deltas. The last one alone may fall."""
