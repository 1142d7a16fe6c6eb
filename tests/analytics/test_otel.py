"""OpenTelemetrySink, read back from the SDK's exporters in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from goal_state import GoalStore
from goal_state.analytics import AnalyticsContext, AnalyticsEvent, send_events
from goal_state.analytics.otel import OpenTelemetrySink
from tests.processes import PATIENCE_SECONDS

CONTEXT = AnalyticsContext(
    client_name="agent", client_version="1.4", session_id="session-1", thread_source="user"
)


class Telemetry:
    """An SDK that keeps everything in memory."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._exporter = InMemoryLogRecordExporter()
        self.meter_provider = MeterProvider([self._reader], shutdown_on_exit=False)
        self.logger_provider = LoggerProvider(shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(SimpleLogRecordProcessor(self._exporter))

    @property
    def sink(self) -> OpenTelemetrySink:
        return OpenTelemetrySink(
            meter_provider=self.meter_provider, logger_provider=self.logger_provider
        )

    @property
    def records(self) -> list[Any]:
        return [log.log_record for log in self._exporter.get_finished_logs()]

    @property
    def counters(self) -> dict[str, tuple[str, dict[str, int]]]:
        """By name: the unit, and the sum by status."""
        data = self._reader.get_metrics_data()
        return {
            metric.name: (
                metric.unit,
                {
                    point.attributes["goal_state.goal.status"]: point.value
                    for point in metric.data.data_points
                },
            )
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def close(self) -> None:
        self.meter_provider.shutdown()
        self.logger_provider.shutdown()


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    yield telemetry
    telemetry.close()


def live(store: GoalStore) -> None:
    """A goal that crosses its budget, is raised, completed, replaced and cleared."""
    store.create("thread-1", "Ship it", token_budget=100, turn_id="turn-1")
    store.charge("thread-1", tokens=40, seconds=2.5, turn_id="turn-1")
    store.charge("thread-1", tokens=70, seconds=1.0, turn_id="turn-2")
    store.resume("thread-1", token_budget=1000)
    store.charge("thread-1", tokens=5)
    store.set("thread-1", status="complete")
    store.replace("thread-1", "Ship another")
    store.clear("thread-1")


def test_tokens_and_goals_are_counted_by_status(store: GoalStore, telemetry: Telemetry) -> None:
    live(store)
    with send_events(store, telemetry.sink, context=CONTEXT) as consumer:
        assert consumer.drain(PATIENCE_SECONDS)
    assert telemetry.counters == {
        "goal_state.token.usage": ("{token}", {"active": 45, "budget_limited": 70}),
        "goal_state.domain.goals": ("{goal}", {"active": 3, "budget_limited": 1, "complete": 1}),
    }


def test_every_event_is_a_log_record(store: GoalStore, telemetry: Telemetry) -> None:
    live(store)
    with send_events(store, telemetry.sink, context=CONTEXT) as consumer:
        assert consumer.drain(PATIENCE_SECONDS)
    events = [*store.events()]
    records = telemetry.records
    assert [record.event_name for record in records] == [
        f"goal_state.goal.{event.kind}" for event in events
    ]
    assert [record.attributes["goal_state.event.id"] for record in records] == [
        event.event_id for event in events
    ]
    assert [record.timestamp for record in records] == [
        event.occurred_at_ms * 1_000_000 for event in events
    ]
    assert {record.body for record in records} == {None}


def test_a_record_says_what_the_payload_says(store: GoalStore, telemetry: Telemetry) -> None:
    live(store)
    events = [*store.events()]
    telemetry.sink([AnalyticsEvent(events[1], CONTEXT)])
    [charge] = telemetry.records
    assert dict(charge.attributes) == {
        "gen_ai.conversation.id": "thread-1",
        "session.id": "session-1",
        "goal_state.event.id": events[1].event_id,
        "goal_state.goal.id": events[1].goal_id,
        "goal_state.goal.status": "active",
        "goal_state.goal.has_token_budget": True,
        "goal_state.goal.cumulative_tokens": 40,
        "goal_state.goal.cumulative_seconds": 2,
        "goal_state.turn.id": "turn-1",
        "goal_state.thread.source": "user",
        "goal_state.client.product_id": "agent",
        "goal_state.client.name": "agent",
        "goal_state.client.version": "1.4",
        "goal_state.client.rpc_transport": "in_process",
    }


def test_what_the_context_leaves_open_is_left_out_and_the_rest_is_not(
    store: GoalStore, telemetry: Telemetry
) -> None:
    store.create("thread-1", "Ship it")
    [created] = store.events()
    context = AnalyticsContext(
        client_name="agent",
        client_version="1",
        experimental_api_enabled=False,
        subagent_source="review",
        parent_thread_id="thread-0",
    )
    telemetry.sink([AnalyticsEvent(created, context)])
    [record] = telemetry.records
    assert record.attributes["session.id"] == "thread-1"
    assert record.attributes["goal_state.goal.has_token_budget"] is False
    assert record.attributes["goal_state.client.experimental_api_enabled"] is False
    assert record.attributes["goal_state.thread.subagent_source"] == "review"
    assert record.attributes["goal_state.thread.parent_id"] == "thread-0"
    assert "goal_state.turn.id" not in record.attributes
    assert "goal_state.goal.cumulative_tokens" not in record.attributes


def test_without_providers_the_global_ones_are_used(
    store: GoalStore, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "goal_state.analytics.otel.get_meter_provider", lambda: telemetry.meter_provider
    )
    monkeypatch.setattr(
        "goal_state.analytics.otel.get_logger_provider", lambda: telemetry.logger_provider
    )
    store.create("thread-1", "Ship it")
    OpenTelemetrySink()([AnalyticsEvent(event, CONTEXT) for event in store.events()])
    assert len(telemetry.records) == 1
    assert telemetry.counters["goal_state.domain.goals"] == ("{goal}", {"active": 1})
