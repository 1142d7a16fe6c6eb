"""The library's own `goal_event`: every figure, id and time of an event."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import UTC, datetime

from goal_state import GoalEvent, GoalStore
from goal_state.analytics import AnalyticsEvent, goal_event
from goal_state.domain.events import Estimate, EventKind
from goal_state.domain.goals import GoalStatus

CHARGE = GoalEvent(
    position=7,
    event_id="event-7",
    kind=EventKind.USAGE_ACCOUNTED,
    thread_id="thread-1",
    goal_id="goal-1",
    turn_id="turn-1",
    goal_status=GoalStatus.BUDGET_LIMITED,
    previous_status=GoalStatus.ACTIVE,
    token_budget=1000,
    tokens_delta=40,
    time_delta_ms=1250,
    cumulative_tokens=1040,
    cumulative_time_ms=3001,
    idempotency_key="the host's own",
    replaced_goal_id=None,
    occurred_at_ms=int(datetime(2026, 1, 31, 12, 30, tzinfo=UTC).timestamp() * 1000) + 5,
    cost_delta_nanos=1_500_000_001,
    calls_delta=1,
    unpriced_tokens_delta=10,
    estimated_tokens_delta=-3,
    cumulative_cost_nanos=12 * 10**9,
    cumulative_calls=9,
    model="model-1",
    estimate=Estimate.RESOLVED,
    origin_goal_id="goal-3",
    via_goal_id="goal-2",
    hold_id="hold-1",
    tags_json='{"tool":"search","user":"ada"}',
    details_json='{"limit": 5}',
)


def test_a_goal_event_has_every_figure_id_and_time() -> None:
    assert goal_event(CHARGE) == {
        "event_type": "goal_event",
        "event_id": "event-7",
        "position": 7,
        "occurred_at": "2026-01-31T12:30:00.005Z",
        "kind": "usage_accounted",
        "thread_id": "thread-1",
        "goal_id": "goal-1",
        "turn_id": "turn-1",
        "goal_status": "budget_limited",
        "previous_status": "active",
        "token_budget": 1000,
        "tokens_delta": 40,
        "time_delta_seconds": 1.25,
        "cumulative_tokens": 1040,
        "cumulative_time_seconds": 3.001,
        "cost_delta": "1.500000001",
        "cumulative_cost": "12",
        "calls_delta": 1,
        "cumulative_calls": 9,
        "unpriced_tokens_delta": 10,
        "estimated_tokens_delta": -3,
        "model": "model-1",
        "estimate": "resolved",
        "origin_goal_id": "goal-3",
        "via_goal_id": "goal-2",
        "hold_id": "hold-1",
        "tags": {"tool": "search", "user": "ada"},
        "details": {"limit": 5},
        "replaced_goal_id": None,
    }


def test_a_goal_event_leaves_out_no_field_but_the_callers_key() -> None:
    """A field that is new must be sent, or be left out for a reason."""
    named = {
        field.name.replace("_ms", "_seconds").removesuffix("_nanos").removesuffix("_json")
        for field in fields(GoalEvent)
    }
    sent = set(goal_event(CHARGE)) - {"event_type"}
    assert named - {"occurred_at_seconds", "idempotency_key"} | {"occurred_at"} == sent


def test_a_goal_event_of_each_kind_is_ready_for_json(store: GoalStore) -> None:
    first = store.create("thread-1", "Ship it", token_budget=10)
    store.charge("thread-1", tokens=10, seconds=0.5)
    store.replace("thread-1", "Ship another")
    store.clear("thread-1")
    sent = [json.loads(json.dumps(goal_event(event))) for event in store.events()]
    assert [one["kind"] for one in sent] == [
        "created",
        "usage_accounted",
        "status_changed",
        "created",
        "cleared",
    ]
    assert [one["replaced_goal_id"] for one in sent] == [None, None, None, first.goal_id, None]
    assert [one["cumulative_tokens"] for one in sent] == [None, 10, None, None, None]


def test_an_event_on_its_way_has_the_id_of_its_event_whatever_its_form() -> None:
    sent = AnalyticsEvent(CHARGE, lambda event: {"kind": event.kind.value})
    assert (sent.event_id, sent.payload) == ("event-7", {"kind": "usage_accounted"})
