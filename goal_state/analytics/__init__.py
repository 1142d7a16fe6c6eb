"""Sends what happened to goals to whoever counts: a file, an HTTP endpoint, OpenTelemetry, any callable.

    from goal_state.analytics import AnalyticsContext, JsonLinesSink, send_events

    context = AnalyticsContext(client_name="my-agent", client_version="1.4")
    send_events(store, JsonLinesSink("goal-events.jsonl"), context=context)

The two sinks that need an extra have a module each, and only importing that one needs it:
`goal_state.analytics.http.HttpSink` (`goal-state[http]`) and `goal_state.analytics.otel.OpenTelemetrySink`
(`goal-state[otel]`).

No objective is ever sent: it is not in the log that events are read from.
"""

from goal_state.analytics.context import AnalyticsContext
from goal_state.analytics.delivery import AnalyticsSink, ContextSource, send_events
from goal_state.analytics.json_lines import JsonLinesSink
from goal_state.analytics.payload import AnalyticsEvent

__all__ = [
    "AnalyticsContext",
    "AnalyticsEvent",
    "AnalyticsSink",
    "ContextSource",
    "JsonLinesSink",
    "send_events",
]
