"""Pruning the log keeps every sum, every goal and every event that somebody still needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete

from goal_state import EventKind, GoalStore, InvalidValueError, migrate
from goal_state.storage.schema import HEAD_REVISION, goals
from goal_state.storage.sqlite.connections import create_engine
from goal_state.storage.statements import Statement

FUTURE = datetime.now(UTC) + timedelta(days=1)
PAST = datetime(2020, 1, 1, tzinfo=UTC)


def fill(store: GoalStore) -> None:
    for number in range(5):
        thread = f"thread-{number}"
        store.create(thread, "work", token_budget=1000)
        for _ in range(10):
            store.charge(thread, tokens=99 + number, seconds=0.5)
    store.set("thread-1", status="paused")
    store.clear("thread-3")
    store.replace("thread-4", "other work")


def test_sums_and_statuses_survive(store: GoalStore) -> None:
    fill(store)
    before = list(store.goals())
    assert store.prune_events(before=FUTURE) > 50
    assert list(store.goals()) == before
    assert store.verify() == []
    assert [store.verify(goal.thread_id) for goal in before] == [[]] * 4
    kinds = {event.kind for event in store.events()}
    assert kinds == {EventKind.CREATED}
    assert {e.goal_id for e in store.events()} == {goal.goal_id for goal in before}


def test_charging_goes_on_and_is_pruned_again(store: GoalStore) -> None:
    fill(store)
    store.prune_events(before=FUTURE)
    store.charge("thread-0", tokens=7, seconds=0.25)
    store.resume("thread-1", token_budget=None)
    store.charge("thread-1", tokens=5)
    assert store.verify() == []
    store.prune_events(before=FUTURE)
    assert store.verify() == []
    assert store.prune_events(before=FUTURE) == 0


def test_verify_still_finds_what_is_wrong(store: GoalStore) -> None:
    fill(store)
    store.prune_events(before=FUTURE)

    def tamper(repository: object) -> None:
        driver = store._backend._executor.driver  # type: ignore[attr-defined]
        driver.cursor().execute(
            "UPDATE goal_state_goals SET calls_used = 1 WHERE thread_id = 'thread-0'"
        )

    store.transact(tamper)
    assert [(d.thread_id, d.column, d.stored) for d in store.verify()] == [
        ("thread-0", "calls_used", 1)
    ]


def test_young_events_stay(store: GoalStore) -> None:
    fill(store)
    events = list(store.events())
    assert store.prune_events(before=PAST) == 0
    assert list(store.events()) == events


def test_no_consumer_is_passed(store: GoalStore) -> None:
    fill(store)
    taken: list[int] = []
    with store.consume("slow", lambda events: taken.extend(e.position for e in events)) as consumer:
        assert consumer.drain(10)
    position = max(taken)
    fill_more = store.charge("thread-0", tokens=1)
    assert fill_more.applied
    store.prune_events(before=FUTURE)
    left = [e.position for e in store.events() if e.kind is not EventKind.CREATED]
    assert left == [position + 1]
    with store.consume("slow", lambda events: taken.extend(e.position for e in events)) as consumer:
        assert consumer.drain(10)
    assert taken == list(range(1, position + 2))


def test_events_of_a_thread_are_found_after_pruning(store: GoalStore) -> None:
    fill(store)
    store.prune_events(before=FUTURE)
    charge = store.charge("thread-4", tokens=3)
    assert charge.applied
    events = list(store.events(thread_id="thread-4"))
    assert [e.kind for e in events] == [EventKind.CREATED, EventKind.USAGE_ACCOUNTED]


def test_a_naive_time_is_refused(store: GoalStore) -> None:
    with pytest.raises(InvalidValueError, match="before: must be aware"):
        store.prune_events(before=datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.usefixtures("next_revision")
def test_a_pruned_store_survives_the_way_down_and_up(tmp_path: Path) -> None:
    path = tmp_path / "goals.db"
    with GoalStore.open(path) as store:
        fill(store)
        store.clear("thread-2")
        store.prune_events(before=FUTURE)
        store.charge("thread-0", tokens=1)
        before = list(store.goals())
    engine = create_engine(path)
    migrate.downgrade(engine, HEAD_REVISION)
    migrate.upgrade(engine)
    with GoalStore.open(path) as store:
        assert store.verify() == []
        assert list(store.goals()) == before


def test_a_row_that_vanished_is_a_difference(store: GoalStore) -> None:
    goal = store.create("t", "work")
    store.replace("u", "work")
    store.replace("u", "more work")
    assert store.verify() == []
    vanish = Statement(lambda thread_id: delete(goals).where(goals.c.thread_id == thread_id))
    store.transact(lambda repository: repository.executor.run(vanish, ("t",)))
    assert [(d.goal_id, d.column, d.stored) for d in store.verify()] == [
        (goal.goal_id, "goal_id", None)
    ]
