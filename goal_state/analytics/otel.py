"""A sink that tells OpenTelemetry. Needs `goal-state[otel]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

try:
    from opentelemetry._logs import LoggerProvider, LogRecord, SeverityNumber, get_logger_provider
    from opentelemetry.metrics import MeterProvider, get_meter_provider
except ImportError as _error:
    raise ImportError(
        "OpenTelemetrySink needs opentelemetry: pip install 'goal-state[otel]'"
    ) from _error

from goal_state.analytics.payload import AnalyticsEvent, goal_event
from goal_state.analytics.version import library_version
from goal_state.domain.events import EventKind, GoalEvent

__all__ = ["OpenTelemetrySink"]

_SCOPE: Final = "goal_state"


class OpenTelemetrySink:
    """Emits a log record per event and counts tokens and goals.

    | signal | name | what |
    |---|---|---|
    | log record | event name `goal_state.goal.created`, `….usage_accounted` … | one per event, at its time |
    | counter | `goal_state.token.usage`, `{token}` | tokens charged, by the goal's status after the charge |
    | counter | `goal_state.goals`, `{goal}` | goals that took on a status, by status |

    Both counters have the attribute `goal_state.goal.status`. A log record has it too, with the conventions'
    `gen_ai.conversation.id` (the thread), and the event's other figures and ids under `goal_state.*`, as
    `goal_event` has them; what is null is left out. That form is OpenTelemetry's, whatever `payload` was
    asked for; who sends, and what the process runs on, is the resource's to say. `goal_state.event.id`
    tells a repeat.

    Events count as delivered once the SDK has them; what it holds back for its next export is its own to
    flush. An event that comes again after a crash is counted again.

    Args:
        meter_provider, logger_provider: None for the global ones.
    """

    def __init__(
        self,
        *,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
    ) -> None:
        meter = (meter_provider or get_meter_provider()).get_meter(_SCOPE, library_version())
        self._logger = (logger_provider or get_logger_provider()).get_logger(
            _SCOPE, library_version()
        )
        self._tokens = meter.create_counter(
            "goal_state.token.usage", unit="{token}", description="Tokens charged to goals."
        )
        self._goals = meter.create_counter(
            "goal_state.goals", unit="{goal}", description="Goals that took on a status."
        )

    def __call__(self, events: Sequence[AnalyticsEvent]) -> None:
        """Hands a batch to the SDK."""
        # The records first: an exporter that raises gets the batch again, and only records can be told apart.
        for sent in events:
            self._emit(sent.event)
        for sent in events:
            self._count(sent.event)

    def _emit(self, event: GoalEvent) -> None:
        self._logger.emit(
            LogRecord(
                timestamp=event.occurred_at_ms * 1_000_000,
                severity_number=SeverityNumber.INFO,
                severity_text="INFO",
                event_name=f"goal_state.goal.{event.kind.value}",
                attributes=_attributes(event),
            )
        )

    def _count(self, event: GoalEvent) -> None:
        status = {"goal_state.goal.status": event.goal_status.value}
        if event.kind is EventKind.USAGE_ACCOUNTED:
            if event.origin_goal_id is None:  # else the goal below has it already
                self._tokens.add(event.tokens_delta, status)
        elif event.kind in (EventKind.CREATED, EventKind.STATUS_CHANGED):
            self._goals.add(1, status)


def _attributes(event: GoalEvent) -> Mapping[str, str | int | float]:
    said = goal_event(event)
    attributes: dict[str, str | int | float | None] = {
        "gen_ai.conversation.id": said["thread_id"],
        "goal_state.event.id": said["event_id"],
        "goal_state.event.position": said["position"],
        "goal_state.turn.id": said["turn_id"],
        "goal_state.goal.id": said["goal_id"],
        "goal_state.goal.status": said["goal_status"],
        "goal_state.goal.previous_status": said["previous_status"],
        "goal_state.goal.replaced_id": said["replaced_goal_id"],
        "goal_state.goal.token_budget": said["token_budget"],
        "goal_state.goal.cumulative_tokens": said["cumulative_tokens"],
        "goal_state.goal.cumulative_time_seconds": said["cumulative_time_seconds"],
    }
    if event.kind is EventKind.USAGE_ACCOUNTED:
        attributes["goal_state.goal.tokens_delta"] = said["tokens_delta"]
        attributes["goal_state.goal.time_delta_seconds"] = said["time_delta_seconds"]
    return {name: value for name, value in attributes.items() if value is not None}
