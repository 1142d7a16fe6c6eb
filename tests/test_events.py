"""Who is told of events, and when: live listeners."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goal_state import (
    EventKind,
    GoalEvent,
    GoalExistsError,
    GoalRepository,
    GoalStore,
    InvalidValueError,
    StoreClosedError,
)
from tests.in_memory import open_in_memory
from tests.processes import PATIENCE_SECONDS, python

CREATED, ACCOUNTED, STATUS_CHANGED, CLEARED, BUDGET_CHANGED, THRESHOLD_CROSSED = EventKind


@pytest.fixture(params=["file", "memory"])
def any_store(request: pytest.FixtureRequest, database: Path) -> Iterator[GoalStore]:
    with GoalStore.open(database) if request.param == "file" else open_in_memory() as store:
        yield store


def live_through(store: GoalStore, thread_id: str = "t") -> None:
    """A goal with all kinds of events: seven of them."""
    store.create(thread_id, "Ship", token_budget=5, warn_at=(0.8,))
    store.charge(thread_id, tokens=5)
    store.resume(thread_id, token_budget=9)
    store.clear(thread_id)


def test_a_listener_hears_what_is_in_the_log_in_order(any_store: GoalStore) -> None:
    heard: list[GoalEvent] = []
    any_store.subscribe(heard.append)
    live_through(any_store)
    assert heard == list(any_store.events())
    assert [event.kind for event in heard] == [
        CREATED,
        ACCOUNTED,
        STATUS_CHANGED,
        THRESHOLD_CROSSED,
        BUDGET_CHANGED,
        STATUS_CHANGED,
        CLEARED,
    ]


def test_a_listener_hears_after_the_commit_and_before_the_call_returns(
    store: GoalStore, database: Path
) -> None:
    seen: list[Any] = []
    with GoalStore.open(database) as other:
        store.subscribe(lambda event: seen.append((event.kind, other.get("t"))))
        goal = store.create("t", "Ship")
        assert seen == [(CREATED, goal)]
        store.clear("t")
        assert seen == [(CREATED, goal), (CLEARED, None)]


def test_nobody_hears_of_what_was_rolled_back(any_store: GoalStore) -> None:
    heard: list[GoalEvent] = []
    any_store.subscribe(heard.append)
    any_store.create("t", "Ship")

    def change_and_fail(repository: GoalRepository) -> None:
        repository.charge("t", tokens=5)
        repository.clear("t")
        raise GoalExistsError

    with pytest.raises(GoalExistsError):
        any_store.transact(change_and_fail)
    with pytest.raises(GoalExistsError):
        any_store.create("t", "Another")
    any_store.charge("t", tokens=1)
    assert heard == list(any_store.events())
    assert [(event.kind, event.tokens_delta) for event in heard] == [(CREATED, 0), (ACCOUNTED, 1)]


@pytest.mark.slow
def test_an_error_of_a_listener_is_logged_and_hurts_no_one(
    any_store: GoalStore, caplog: pytest.LogCaptureFixture
) -> None:
    class UnluckyError(Exception):
        pass

    def fail(event: GoalEvent) -> None:
        raise UnluckyError

    before: list[GoalEvent] = []
    after: list[GoalEvent] = []
    any_store.subscribe(before.append)
    any_store.subscribe(fail)
    any_store.subscribe(after.append)
    goal = any_store.create("t", "A secret objective")
    assert any_store.charge("t", tokens=5).applied
    assert before == after == list(any_store.events())
    assert any_store.get("t") != goal
    failures = [
        record for record in caplog.records if record.name == "goal_state.delivery.listeners"
    ]
    assert [(record.levelno, record.getMessage()) for record in failures] == [
        (logging.ERROR, "a listener failed on event 1 (created)"),
        (logging.ERROR, "a listener failed on event 2 (usage_accounted)"),
    ]
    assert all(record.exc_info and record.exc_info[0] is UnluckyError for record in failures)
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"kinds": ["created"]}, ["t created", "u created"]),
        (
            {"kinds": iter([EventKind.CREATED, "cleared"]), "thread_id": "u"},
            ["u created", "u cleared"],
        ),
        ({"kinds": []}, []),
        ({"thread_id": "t", "kinds": {"usage_accounted"}}, ["t usage_accounted"]),
        ({"thread_id": "nobody"}, []),
    ],
)
def test_a_listener_hears_only_what_it_asked_for(
    store: GoalStore, chosen: dict[str, Any], expected: list[str]
) -> None:
    heard: list[str] = []
    store.subscribe(lambda event: heard.append(f"{event.thread_id} {event.kind}"), **chosen)
    live_through(store, "t")
    live_through(store, "u")
    assert heard == expected


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"kinds": ["made"]}, "kinds"),
        ({"kinds": "created"}, "kinds"),
        ({"thread_id": ""}, "thread_id"),
        ({"listener": None}, "listener"),
    ],
)
def test_a_malformed_subscription_is_refused(
    store: GoalStore, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidValueError) as caught:
        store.subscribe(**{"listener": print} | arguments)
    assert caught.value.field == field


def test_a_closed_subscription_hears_nothing_more(any_store: GoalStore) -> None:
    heard: list[GoalEvent] = []
    with any_store.subscribe(heard.append) as subscription:
        any_store.create("t", "Ship")
    any_store.charge("t", tokens=1)
    subscription.close()
    assert [event.kind for event in heard] == [CREATED]


def test_closing_one_of_two_subscriptions_of_one_listener(store: GoalStore) -> None:
    heard: list[int] = []
    first = store.subscribe(lambda event: heard.append(event.position))
    store.subscribe(lambda event: heard.append(-event.position))
    store.create("t", "Ship")
    first.close()
    store.charge("t", tokens=1)
    assert heard == [1, -1, -2]


def test_a_listener_that_is_closed_by_another_hears_nothing_from_then_on(store: GoalStore) -> None:
    heard: list[int] = []
    store.subscribe(lambda event: later.close())
    later = store.subscribe(lambda event: heard.append(event.position))
    store.create("t", "Ship")
    store.charge("t", tokens=1)
    assert heard == []


def test_a_listener_may_close_itself(store: GoalStore) -> None:
    heard: list[EventKind] = []

    def once(event: GoalEvent) -> None:
        heard.append(event.kind)
        subscription.close()

    subscription = store.subscribe(once)
    live_through(store)
    assert heard == [CREATED]


def test_a_subscription_begins_with_what_is_committed_after_it(any_store: GoalStore) -> None:
    any_store.subscribe(lambda event: None).close()
    any_store.create("t", "Ship")
    any_store.charge("t", tokens=1)
    heard: list[int] = []
    any_store.subscribe(lambda event: heard.append(event.tokens_delta))
    any_store.charge("t", tokens=2)
    assert heard == [2]


def test_a_subscription_made_while_others_are_told_begins_behind_them(store: GoalStore) -> None:
    heard: list[GoalEvent] = []

    def bring_a_friend(event: GoalEvent) -> None:
        if event.kind is CREATED:
            store.subscribe(heard.append)

    store.subscribe(bring_a_friend)
    store.transact(lambda r: (r.create("t", "Ship"), r.charge("t", tokens=1)))
    assert heard == []
    store.clear("t")
    assert [event.kind for event in heard] == [CLEARED]


def test_a_subscription_made_in_the_midst_of_a_transaction_hears_all_of_it_or_nothing(
    store: GoalStore,
) -> None:
    half_way, go_on = threading.Event(), threading.Event()

    def work(repository: GoalRepository) -> None:
        repository.create("t", "Ship")
        half_way.set()
        assert go_on.wait(PATIENCE_SECONDS)
        repository.charge("t", tokens=1)

    heard: list[EventKind] = []
    writer = threading.Thread(target=store.transact, args=(work,))
    writer.start()
    assert half_way.wait(PATIENCE_SECONDS)
    listener = threading.Thread(
        target=store.subscribe, args=(lambda event: heard.append(event.kind),)
    )
    listener.start()
    listener.join(0.2)
    go_on.set()
    writer.join()
    listener.join()
    assert heard in ([], [CREATED, ACCOUNTED])
    store.clear("t")
    assert heard[-1] is CLEARED


def test_a_listener_that_calls_the_store_keeps_the_order(any_store: GoalStore) -> None:
    heard: list[GoalEvent] = []

    def pay_first(event: GoalEvent) -> None:
        if event.kind is CREATED:
            any_store.charge(event.thread_id, tokens=5)
            goal = any_store.get(event.thread_id)
            assert goal is not None
            assert goal.tokens_used == 5

    any_store.subscribe(pay_first)
    any_store.subscribe(heard.append)
    any_store.create("t", "Ship", token_budget=5)
    assert heard == list(any_store.events())
    assert [event.kind for event in heard] == [CREATED, ACCOUNTED, STATUS_CHANGED]


def test_a_listener_may_wait_for_a_thread_that_writes(any_store: GoalStore) -> None:
    ended: list[bool] = []

    def wait_for_another(event: GoalEvent) -> None:
        if event.thread_id == "t":
            writer = threading.Thread(target=any_store.create, args=("u", "Ship"), daemon=True)
            writer.start()
            writer.join(PATIENCE_SECONDS)
            ended.append(not writer.is_alive())

    any_store.subscribe(wait_for_another)
    heard: list[str] = []
    any_store.subscribe(lambda event: heard.append(event.thread_id))
    any_store.create("t", "Ship")
    assert ended == [True]
    assert heard == ["t", "u"]


def test_listeners_hear_of_many_threads_in_the_order_of_commits(any_store: GoalStore) -> None:
    heard: list[GoalEvent] = []
    overlap = threading.Lock()
    overlapped: list[GoalEvent] = []

    def listen(event: GoalEvent) -> None:
        if not overlap.acquire(blocking=False):
            overlapped.append(event)
            return
        heard.append(event)
        overlap.release()

    any_store.subscribe(listen)
    start = threading.Barrier(8)

    def write(thread_id: str) -> None:
        start.wait()
        for _ in range(8):
            live_through(any_store, thread_id)

    threads = [threading.Thread(target=write, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlapped == []
    assert heard == list(any_store.events())
    assert len(heard) == 8 * 8 * 7


@pytest.mark.slow
def test_other_stores_and_processes_are_not_heard_live(store: GoalStore, database: Path) -> None:
    heard: list[GoalEvent] = []
    store.subscribe(heard.append)
    with GoalStore.open(database) as other:
        other.create("t", "Ship")
    python(
        """
import sys
from goal_state import GoalStore
with GoalStore.open(sys.argv[1]) as store:
    store.create("u", "Ship")
""",
        database,
    )
    assert store.count() == 2
    assert heard == []


def test_a_closed_store_takes_no_listener(store: GoalStore) -> None:
    store.close()
    with pytest.raises(StoreClosedError):
        store.subscribe(print)
