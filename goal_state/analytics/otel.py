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

from goal_state.analytics.payload import AnalyticsEvent
from goal_state.analytics.runtime import library_version
from goal_state.domain.events import EventKind

__all__ = ["OpenTelemetrySink"]

_SCOPE: Final = "goal_state"


class OpenTelemetrySink:
    """Emits a log record per event and counts tokens and goals.

    | signal | name | what |
    |---|---|---|
    | log record | event name `goal_state.goal.created`, `….usage_accounted` … | one per event, at its time |
    | counter | `goal_state.token.usage`, `{token}` | tokens charged, by the goal's status after the charge |
    | counter | `goal_state.domain.goals`, `{goal}` | goals that took on a status, by status |

    Both counters have the attribute `goal_state.goal.status`. A log record has it too, with the conventions'
    `gen_ai.conversation.id` (the thread) and `session.id`, and what else the payload says under
    `goal_state.*`; what is null is left out. What the process runs on is the resource's to say.
    `goal_state.event.id` tells a repeat.

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
            "goal_state.domain.goals", unit="{goal}", description="Goals that took on a status."
        )

    def __call__(self, events: Sequence[AnalyticsEvent]) -> None:
        """Hands a batch to the SDK."""
        # The records first: an exporter that raises gets the batch again, and only records can be told apart.
        for event in events:
            self._emit(event)
        for event in events:
            self._count(event)

    def _emit(self, sent: AnalyticsEvent) -> None:
        event = sent.event
        self._logger.emit(
            LogRecord(
                timestamp=event.occurred_at_ms * 1_000_000,
                severity_number=SeverityNumber.INFO,
                severity_text="INFO",
                event_name=f"goal_state.goal.{event.kind.value}",
                attributes=_attributes(sent),
            )
        )

    def _count(self, sent: AnalyticsEvent) -> None:
        event = sent.event
        status = {"goal_state.goal.status": event.goal_status.value}
        if event.kind is EventKind.USAGE_ACCOUNTED:
            self._tokens.add(event.tokens_delta, status)
        elif event.kind is not EventKind.CLEARED:
            self._goals.add(1, status)


def _attributes(sent: AnalyticsEvent) -> Mapping[str, str | int | bool]:
    said = sent.payload["event_params"]
    client = said["app_server_client"]
    attributes: dict[str, str | int | bool | None] = {
        "gen_ai.conversation.id": said["thread_id"],
        "session.id": said["session_id"],
        "goal_state.event.id": sent.event_id,
        "goal_state.goal.id": said["goal_id"],
        "goal_state.goal.status": said["goal_status"],
        "goal_state.goal.has_token_budget": said["has_token_budget"],
        "goal_state.goal.cumulative_tokens": said["cumulative_tokens_accounted"],
        "goal_state.goal.cumulative_seconds": said["cumulative_time_accounted_seconds"],
        "goal_state.turn.id": said["turn_id"],
        "goal_state.thread.source": said["thread_source"],
        "goal_state.thread.subagent_source": said["subagent_source"],
        "goal_state.thread.parent_id": said["parent_thread_id"],
        "goal_state.client.product_id": client["product_client_id"],
        "goal_state.client.name": client["client_name"],
        "goal_state.client.version": client["client_version"],
        "goal_state.client.rpc_transport": client["rpc_transport"],
        "goal_state.client.experimental_api_enabled": client["experimental_api_enabled"],
    }
    return {name: value for name, value in attributes.items() if value is not None}
