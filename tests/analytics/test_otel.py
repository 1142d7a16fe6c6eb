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
from goal_state.analytics import AnalyticsEvent, send_events
from goal_state.analytics.otel import OpenTelemetrySink
from tests.processes import PATIENCE_SECONDS


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
    with send_events(store, telemetry.sink) as consumer:
        assert consumer.drain(PATIENCE_SECONDS)
    assert telemetry.counters == {
        "goal_state.token.usage": ("{token}", {"active": 45, "budget_limited": 70}),
        "goal_state.goals": ("{goal}", {"active": 3, "budget_limited": 1, "complete": 1}),
    }


def test_what_an_ancestor_pays_is_not_counted_twice(store: GoalStore, telemetry: Telemetry) -> None:
    store.create("parent", "Ship it", token_budget=100, warn_at=(0.1,))
    store.create("child", "Write it", parent="parent")
    store.charge("child", tokens=40)
    telemetry.sink([AnalyticsEvent(event) for event in store.events()])
    assert telemetry.counters == {
        "goal_state.token.usage": ("{token}", {"active": 40}),
        "goal_state.goals": ("{goal}", {"active": 2}),
    }
    assert len(telemetry.records) == 5


def test_every_event_is_a_log_record(store: GoalStore, telemetry: Telemetry) -> None:
    live(store)
    with send_events(store, telemetry.sink) as consumer:
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


def test_a_record_says_what_a_goal_event_says(store: GoalStore, telemetry: Telemetry) -> None:
    live(store)
    events = [*store.events()]
    telemetry.sink([AnalyticsEvent(events[1])])
    [charge] = telemetry.records
    assert dict(charge.attributes) == {
        "gen_ai.conversation.id": "thread-1",
        "goal_state.event.id": events[1].event_id,
        "goal_state.event.position": 2,
        "goal_state.turn.id": "turn-1",
        "goal_state.goal.id": events[1].goal_id,
        "goal_state.goal.status": "active",
        "goal_state.goal.previous_status": "active",
        "goal_state.goal.token_budget": 100,
        "goal_state.goal.cumulative_tokens": 40,
        "goal_state.goal.cumulative_time_seconds": 2.5,
        "goal_state.goal.tokens_delta": 40,
        "goal_state.goal.time_delta_seconds": 2.5,
    }


def test_what_an_event_does_not_have_is_left_out(store: GoalStore, telemetry: Telemetry) -> None:
    store.create("thread-1", "Ship it")
    first = store.get("thread-1")
    assert first is not None
    store.replace("thread-1", "Ship another")
    telemetry.sink([AnalyticsEvent([*store.events()][-1])])
    [record] = telemetry.records
    assert set(record.attributes) == {
        "gen_ai.conversation.id",
        "goal_state.event.id",
        "goal_state.event.position",
        "goal_state.goal.id",
        "goal_state.goal.status",
        "goal_state.goal.replaced_id",
    }
    assert record.attributes["goal_state.goal.replaced_id"] == first.goal_id


def test_a_records_form_is_its_own_whatever_payload_was_asked_for(
    store: GoalStore, telemetry: Telemetry
) -> None:
    store.create("thread-1", "Ship it")
    [created] = store.events()
    telemetry.sink([AnalyticsEvent(created, lambda event: {"mine": 1})])
    [record] = telemetry.records
    assert record.attributes["goal_state.event.id"] == created.event_id
    assert "mine" not in str(record.attributes)


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
    OpenTelemetrySink()([AnalyticsEvent(event) for event in store.events()])
    assert len(telemetry.records) == 1
    assert telemetry.counters["goal_state.goals"] == ("{goal}", {"active": 1})
