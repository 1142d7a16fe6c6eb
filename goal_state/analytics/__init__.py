"""Sends what happened to goals to whoever counts: a file, an HTTP endpoint, OpenTelemetry, any callable.

    from goal_state.analytics import JsonLinesSink, send_events

    send_events(store, JsonLinesSink("goal-events.jsonl"))

What is sent of an event is its `goal_event`, with every figure, id and time; `payload=` names another form.

The two sinks that need an extra have a module each, and only importing that one needs it:
`goal_state.analytics.http.HttpSink` (`goal-state[http]`) and `goal_state.analytics.otel.OpenTelemetrySink`
(`goal-state[otel]`).

No objective is ever sent: it is not in the log that events are read from.
"""

from goal_state.analytics.delivery import AnalyticsSink, send_events
from goal_state.analytics.json_lines import JsonLinesSink
from goal_state.analytics.payload import AnalyticsEvent, PayloadForm, goal_event

__all__ = [
    "AnalyticsEvent",
    "AnalyticsSink",
    "JsonLinesSink",
    "PayloadForm",
    "goal_event",
    "send_events",
]
