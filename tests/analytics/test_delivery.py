"""From the log to a sink: in order, at least once, and never in the way of a goal operation."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from goal_state import DeliveryError, GoalEvent, GoalStore, InvalidValueError
from goal_state.analytics import AnalyticsEvent, JsonLinesSink, goal_event, send_events
from tests.processes import PATIENCE_SECONDS, python


class Collector:
    """A sink that keeps what it takes, and fails as often as it is told."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.batches: list[list[AnalyticsEvent]] = []
        self.calls = 0

    def __call__(self, events: Sequence[AnalyticsEvent]) -> None:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(list(events))

    @property
    def event_ids(self) -> list[str]:
        return [event.event_id for batch in self.batches for event in batch]


def charges(store: GoalStore, count: int) -> None:
    """So many charges in one transaction."""

    def work(repository: Any) -> None:
        for _ in range(count):
            repository.charge("thread-1", tokens=1)

    store.transact(work)


def logged(store: GoalStore) -> list[str]:
    return [event.event_id for event in store.events()]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once."""
    monkeypatch.setattr("goal_state.delivery.consumers._FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr("goal_state.delivery.consumers._LONGEST_RETRY_SECONDS", 0.01)


@pytest.mark.slow
def test_every_event_comes_once_in_order_and_at_most_a_hundred_at_a_time(store: GoalStore) -> None:
    store.create("thread-1", "Ship it")
    charges(store, 249)
    sink = Collector()
    with send_events(store, sink) as consumer:
        assert consumer.drain(PATIENCE_SECONDS)
        assert sink.event_ids == logged(store)
        store.clear("thread-1")
        assert consumer.drain(PATIENCE_SECONDS)
    assert sink.event_ids == logged(store)
    assert [len(batch) for batch in sink.batches] == [100, 100, 50, 1]


@pytest.mark.usefixtures("eager")
def test_what_a_sink_did_not_take_comes_again(store: GoalStore) -> None:
    store.create("thread-1", "Ship it")
    charges(store, 149)
    sink = Collector(OSError("full"), DeliveryError("busy"), ValueError("odd"))
    with send_events(store, sink) as consumer:
        assert consumer.drain(PATIENCE_SECONDS)
    assert sink.event_ids == logged(store)
    assert sink.calls == 5


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_a_sink_may_fail_for_days(store: GoalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goal_state.delivery.consumers._FIRST_RETRY_SECONDS", 0.0)
    store.create("thread-1", "Ship it")
    sink = Collector(*[OSError("down")] * 1_100)
    with send_events(store, sink) as consumer:
        assert consumer.drain(PATIENCE_SECONDS)
    assert sink.event_ids == logged(store)


def test_no_goal_operation_waits_for_a_sink(store: GoalStore) -> None:
    entered, leave = threading.Event(), threading.Event()
    took: list[str] = []

    def sink(events: Sequence[AnalyticsEvent]) -> None:
        entered.set()
        assert leave.wait(PATIENCE_SECONDS)
        took.extend(event.event_id for event in events)

    store.create("thread-1", "Ship it")
    with send_events(store, sink) as consumer:
        assert entered.wait(PATIENCE_SECONDS)
        # The sink is in the middle of its first batch, and stays there until all of this is done.
        store.charge("thread-1", tokens=5)
        store.set("thread-1", status="paused")
        assert store.get("thread-1") is not None
        store.clear("thread-1")
        assert took == []
        leave.set()
        assert consumer.drain(PATIENCE_SECONDS)
    assert took == logged(store)


def test_closing_the_store_delivers_what_is_left(path: Path) -> None:
    sink = Collector()
    with GoalStore.open(path, durability="normal") as store:
        send_events(store, sink)
        store.create("thread-1", "Ship it")
        charges(store, 300)
    with GoalStore.open(path) as store:
        assert sink.event_ids == logged(store)


@pytest.mark.slow
def test_closing_wakes_a_sink_that_waits_to_try_again(path: Path) -> None:
    refusing = Collector(DeliveryError("busy", retry_after_seconds=3600))
    taking = Collector()
    with GoalStore.open(path) as store:
        consumer = send_events(store, refusing)
        store.create("thread-1", "Ship it")
        assert consumer.close(timeout_seconds=0.5) is False
        # Without the wish to be left alone it would have been called again after a tenth of a second.
        assert refusing.calls == 1
        store.clear("thread-1")
    with GoalStore.open(path) as store:
        # Held by nobody: the one that was closed has given the name back.
        with send_events(store, taking) as consumer:
            assert consumer.drain(PATIENCE_SECONDS)
        assert taking.event_ids == logged(store)


@pytest.mark.slow
def test_closing_does_not_wait_for_a_sink_that_hangs(path: Path) -> None:
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    def hanging(_: Sequence[AnalyticsEvent]) -> None:
        entered.set()
        leave.wait(PATIENCE_SECONDS)
        left.set()

    with GoalStore.open(path) as store:
        consumer = send_events(store, hanging)
        store.create("thread-1", "Ship it")
        assert entered.wait(PATIENCE_SECONDS)
        assert consumer.close(timeout_seconds=0.1) is False
        assert not left.is_set()
        leave.set()
        assert left.wait(PATIENCE_SECONDS)


def test_sinks_with_names_of_their_own_each_get_everything(store: GoalStore) -> None:
    one, other = Collector(OSError("once")), Collector()
    with (
        send_events(store, one, name="one") as first,
        send_events(store, other, name="other") as second,
    ):
        store.create("thread-1", "Ship it")
        assert first.drain(PATIENCE_SECONDS)
        assert second.drain(PATIENCE_SECONDS)
    assert one.event_ids == other.event_ids == logged(store)


def test_a_payload_is_of_the_form_that_was_asked_for(store: GoalStore) -> None:
    store.create("thread-1", "Ship it")
    own, short = Collector(), Collector()
    with (
        send_events(store, own, name="own") as one,
        send_events(
            store, short, payload=lambda event: {"id": event.event_id}, name="short"
        ) as other,
    ):
        assert one.drain(PATIENCE_SECONDS)
        assert other.drain(PATIENCE_SECONDS)
    [created] = store.events()
    assert [sent.payload for sent in own.batches[0]] == [goal_event(created)]
    assert [sent.payload for sent in short.batches[0]] == [{"id": created.event_id}]


@pytest.mark.usefixtures("eager")
def test_nothing_is_lost_while_a_payload_cannot_be_made(store: GoalStore, tmp_path: Path) -> None:
    known: dict[str, str] = {}
    failed = threading.Event()

    def payload(event: GoalEvent) -> dict[str, Any]:
        if event.thread_id not in known:
            failed.set()
        return {"session_id": known[event.thread_id]}

    store.create("thread-1", "Ship it")
    target = tmp_path / "events.jsonl"
    with send_events(store, JsonLinesSink(target), payload=payload) as consumer:
        assert failed.wait(PATIENCE_SECONDS)
        known["thread-1"] = "session-1"
        assert consumer.drain(PATIENCE_SECONDS)
    assert target.read_text() == '{"session_id": "session-1"}\n'


@pytest.mark.usefixtures("eager")
def test_an_operator_reads_of_a_failing_sink(
    store: GoalStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.create("thread-1", "Ship it")
    sink = Collector(DeliveryError("the receiver answered 503", retry_after_seconds=0.25))
    with send_events(store, sink, name="billing") as consumer:
        assert consumer.drain(PATIENCE_SECONDS)
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.name.startswith("goal_state.")
    assert "billing" in record.getMessage()
    assert "the receiver answered 503" in record.getMessage()
    assert "it is tried again in 0.3 s" in record.getMessage()


async def asynchronous(_: Sequence[AnalyticsEvent]) -> None: ...


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("sink", {"sink": None}),
        ("sink", {"sink": asynchronous}),
        ("payload", {"payload": None}),
        ("payload", {"payload": {"event_type": "mine"}}),
        ("payload", {"payload": asynchronous}),
        ("name", {"name": ""}),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(
    store: GoalStore, field: str, arguments: dict[str, Any]
) -> None:
    given: dict[str, Any] = {"sink": print} | arguments
    with pytest.raises(InvalidValueError) as refusal:
        send_events(store, **given)
    assert refusal.value.field == field


@pytest.mark.slow
def test_the_extras_are_imported_only_by_the_sinks_that_need_them() -> None:
    loaded = python(
        "import sys, goal_state.analytics\n"
        "print([name for name in ('httpx', 'opentelemetry') if name in sys.modules])"
    )
    assert loaded == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [("http", "httpx", "goal-state[http]"), ("otel", "opentelemetry", "goal-state[otel]")],
)
def test_a_missing_extra_is_named(module: str, missing: str, extra: str) -> None:
    said = python(
        "import importlib, sys\n"
        "sys.modules[sys.argv[2]] = None\n"
        "try:\n"
        "    importlib.import_module('goal_state.analytics.' + sys.argv[1])\n"
        "except ImportError as error:\n"
        "    print(error)",
        module,
        missing,
    )
    assert extra in said


def test_a_sink_can_be_called_by_hand(store: GoalStore, tmp_path: Path) -> None:
    store.create("thread-1", "Ship it")
    sink = JsonLinesSink(tmp_path / "events.jsonl")
    sink([AnalyticsEvent(event) for event in store.events()])
    assert (tmp_path / "events.jsonl").read_text().count("\n") == 1
