"""The `codex_goal_event`: one goal event as it is sent, field for field as it was recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from goal_state.analytics.context import AnalyticsContext
from goal_state.domain.events import GoalEvent

__all__ = ["AnalyticsEvent"]


@dataclass(frozen=True, slots=True)
class AnalyticsEvent:
    """One event on its way to a sink.

    Attributes:
        event: what happened.
        context: who sends it.
    """

    event: GoalEvent
    context: AnalyticsContext

    @property
    def event_id(self) -> str:
        """The same on every delivery, so that a receiver can drop a repeat. The payload does not hold it."""
        return self.event.event_id

    @property
    def payload(self) -> dict[str, Any]:
        """What is sent, ready for JSON: the recorded events' fields, in their order, with their nulls."""
        event, context = self.event, self.context
        return {
            "event_type": "codex_goal_event",
            "event_params": {
                "thread_id": event.thread_id,
                "session_id": event.thread_id if context.session_id is None else context.session_id,
                "turn_id": event.turn_id,
                "app_server_client": {
                    "product_client_id": context.client_name
                    if context.product_client_id is None
                    else context.product_client_id,
                    "client_name": context.client_name,
                    "client_version": context.client_version,
                    "rpc_transport": context.rpc_transport,
                    "experimental_api_enabled": context.experimental_api_enabled,
                },
                "runtime": {
                    "codex_rs_version": context.runtime_version,
                    "runtime_os": context.runtime_os,
                    "runtime_os_version": context.runtime_os_version,
                    "runtime_arch": context.runtime_arch,
                },
                "thread_source": context.thread_source,
                "subagent_source": context.subagent_source,
                "parent_thread_id": context.parent_thread_id,
                "goal_id": event.goal_id,
                "event_kind": event.kind.value,
                "goal_status": event.goal_status.value,
                "has_token_budget": event.has_token_budget,
                "cumulative_tokens_accounted": event.cumulative_tokens,
                "cumulative_time_accounted_seconds": event.cumulative_seconds,
            },
        }
