"""No objective ever leaves, by no sink and in no log line; nor does a payload get into a log line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from goal_state import GoalStore
from goal_state.analytics import AnalyticsEvent, JsonLinesSink, PayloadForm, goal_event, send_events
from goal_state.analytics.http import HttpSink
from goal_state.codex import CodexPayload
from tests.analytics.receiver import receiving
from tests.analytics.test_otel import Telemetry
from tests.processes import PATIENCE_SECONDS

SECRETS = ("Grmblfx-first", "Grmblfx-second", "Grmblfx-third", "Grmblfx-reason", "Grmblfx-key")


def live(store: GoalStore) -> None:
    """Every way in which an objective, or why a goal waits, gets into a store."""
    first, second, third, reason, key = SECRETS
    store.create("thread-marker", first, token_budget=10, turn_id="turn-marker")
    store.set("thread-marker", objective=second)
    store.charge("thread-marker", tokens=50, idempotency_key=key)
    store.resume("thread-marker", token_budget=100)
    store.replace("thread-marker", third)
    store.set("thread-marker", status="blocked", blocked_reason=reason)
    store.set("thread-marker", status="complete")
    store.set("thread-marker", objective=first, status="active")
    store.clear("thread-marker")
    store.set("thread-marker", objective=second)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [goal_event, CodexPayload(client_name="client-marker", client_version="1")]
)
def test_no_objective_leaves_by_any_sink_or_log(
    form: PayloadForm,
    store: GoalStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("goal_state.delivery.consumers._FIRST_RETRY_SECONDS", 0.001)
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    def own(events: Sequence[AnalyticsEvent]) -> None:
        seen.append(repr(list(events)))

    telemetry = Telemetry()
    letters = tmp_path / "refused.jsonl"
    with (
        receiving("500", "reset", "400") as refusing,
        receiving() as taking,
        HttpSink(refusing.url, dead_letter_path=letters) as refused,
        HttpSink(taking.url, dead_letter_path=tmp_path / "none.jsonl") as taken,
    ):
        sinks = {
            "lines": JsonLinesSink(tmp_path / "events.jsonl"),
            "refused": refused,
            "taken": taken,
            "telemetry": telemetry.sink,
            "own": own,
        }
        live(store)
        consumers = [
            send_events(store, sink, payload=form, name=name) for name, sink in sinks.items()
        ]
        for consumer in consumers:
            assert consumer.drain(PATIENCE_SECONDS)
            consumer.close()
    telemetry.close()

    count = sum(1 for event in store.events() if form(event) is not None)
    left = {
        "lines": (tmp_path / "events.jsonl").read_text(),
        "letters": letters.read_text(),
        "taken": "".join(str(vars(request)) for request in taking.requests),
        "refused": "".join(str(vars(request)) for request in refusing.requests),
        "records": "".join(str(vars(record)) for record in telemetry.records),
        "own": "".join(seen),
    }
    # All of it has left, and by every way …
    assert {
        name: text.count("thread-marker") >= count for name, text in left.items()
    } == dict.fromkeys(left, True)
    for secret in SECRETS[:4]:
        assert [name for name, text in left.items() if secret in text] == []
    # … the caller's key is in the log, and so in what a callable of the host's gets, and in nothing else.
    assert [name for name, text in left.items() if SECRETS[4] in text] == ["own"]
    written = "".join(
        f"{record.getMessage()} {record.exc_text} {record.args}"
        for record in caplog.records
        if record.name.startswith("goal_state")
    )
    assert "tried again" in written
    assert "put aside" in written
    for word in (*SECRETS, "thread-marker", "turn-marker", "client-marker"):
        assert word not in written
