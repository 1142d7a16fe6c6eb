"""Calls of a store as values that can be kept, compared and sent to another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from goal_state import (
    KEEP,
    Accounting,
    Difference,
    Goal,
    GoalEvent,
    GoalStore,
    RequestError,
    ThreadUsage,
    TokenUsage,
)
from goal_state.domain.requests import Charge
from goal_state.operations.goal_operations import GoalOperations
from tests.properties.model import KEPT, STATUSES, Baseline, Counts, Recorded, Row, Settlement

__all__ = ["Observation", "Operation", "Outcome", "Perform", "observe", "perform", "plain"]


@dataclass(frozen=True)
class Operation:
    """One call, in the words of the model. `verbatim` arguments are handed to the store as they are."""

    name: str
    arguments: dict[str, Any]
    verbatim: bool = False


@dataclass(frozen=True)
class Outcome:
    """What the store answered: a result, or the error that refused the call."""

    result: Any = None
    error: str | None = None
    field: str | None = None

    @property
    def goal_id(self) -> str | None:
        return self.result.goal_id if isinstance(self.result, Goal) else None


Perform = Callable[[Operation], Outcome]


def perform(target: GoalOperations, operation: Operation) -> Outcome:
    """Makes the call. Only an error of the caller is an outcome; any other one is a fault."""
    arguments = operation.arguments
    try:
        if not operation.verbatim:
            arguments = {name: _argument(value) for name, value in arguments.items()}
        return Outcome(getattr(target, operation.name)(**arguments))
    except RequestError as error:
        return Outcome(error=type(error).__name__, field=getattr(error, "field", None))


def _argument(value: object) -> object:
    if isinstance(value, Counts):
        return TokenUsage(*value)
    if isinstance(value, Baseline):
        return ThreadUsage(
            TokenUsage(*value.total), TokenUsage(*value.last), value.window, value.turn_id
        )
    if isinstance(value, list):
        return [
            Charge(**{name: _argument(its) for name, its in charge.items()}) for charge in value
        ]
    return KEEP if value == KEPT else value


def plain(value: object) -> object:
    """A value of the library in the words of the model."""
    match value:
        case Goal():
            return Row(
                value.thread_id,
                value.goal_id,
                value.objective,
                str(value.status),
                value.token_budget,
                value.tokens_used,
                value.time_used_ms,
                value.resume_at_ms,
                value.blocked_reason,
                value.cost_budget_nanos,
                value.cost_used_nanos,
                value.call_budget,
                value.calls_used,
                value.unpriced_tokens,
                tuple((value.ancestor_goal_ids or "").split()),
            )
        case Accounting():
            return Settlement(plain(value.goal), value.applied, value.duplicate)  # type: ignore[arg-type]
        case ThreadUsage():
            return Baseline(
                _counts(value.total),
                _counts(value.last),
                value.model_context_window,
                value.turn_id,
            )
        case GoalEvent():
            previous = value.previous_status
            return Recorded(
                str(value.kind),
                value.thread_id,
                value.goal_id,
                value.turn_id,
                str(value.goal_status),
                None if previous is None else str(previous),
                value.token_budget,
                value.tokens_delta,
                value.time_delta_ms,
                value.cumulative_tokens,
                value.cumulative_time_ms,
                value.idempotency_key,
                value.replaced_goal_id,
                value.cost_delta_nanos,
                value.calls_delta,
                value.unpriced_tokens_delta,
                value.cumulative_cost_nanos,
                value.cumulative_calls,
                value.origin_goal_id,
                value.via_goal_id,
            )
        case list():
            return [plain(one) for one in value]
        case _:
            return value


def _counts(usage: TokenUsage) -> Counts:
    return Counts(
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_input_tokens,
        usage.output_tokens,
        usage.reasoning_output_tokens,
        usage.total_tokens,
    )


@dataclass(frozen=True)
class Observation:
    """Everything that a store tells when it is asked."""

    goals: list[Goal]
    events: list[GoalEvent]
    differences: list[Difference]
    count: int
    of_status: dict[str, tuple[int, list[Goal]]] = field(default_factory=dict)
    goal_of_thread: dict[str, Goal | None] = field(default_factory=dict)
    usage_of_thread: dict[str, ThreadUsage | None] = field(default_factory=dict)
    events_of_thread: dict[str, list[GoalEvent]] = field(default_factory=dict)
    events_of_goal: dict[str, list[GoalEvent]] = field(default_factory=dict)
    middle: int = 0
    """A position within the log, with the next three events of each thread behind it."""
    after_middle: dict[str, list[GoalEvent]] = field(default_factory=dict)


def observe(store: GoalStore, threads: tuple[str, ...], goal_ids: tuple[str, ...]) -> Observation:
    """Asks a store everything about these threads, and about the events of these goals."""
    events = list(store.events())
    middle = events[len(events) // 3].position if events else 0
    return Observation(
        list(store.goals()),
        events,
        store.verify(),
        store.count(),
        {status: (store.count(status), list(store.goals(status))) for status in STATUSES},
        {thread: store.get(thread) for thread in threads},
        {thread: store.usage(thread) for thread in threads},
        {thread: list(store.events(thread_id=thread)) for thread in threads},
        {goal_id: list(store.events(goal_id=goal_id)) for goal_id in goal_ids},
        middle,
        {thread: list(store.events(after=middle, thread_id=thread, limit=3)) for thread in threads},
    )
