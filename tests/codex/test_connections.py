"""Clients that fail or are slow, and many at once: the others get everything, in order."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from goal_state import GoalStore
from goal_state.codex import Message, ThreadHub
from goal_state.codex.outbox import Outbox
from tests.codex.clients import (
    PATIENCE_SECONDS,
    Client,
    FailingClient,
    StuckClient,
    kinds,
    usage,
    used,
)
from tests.interrupts import interrupts

BOUND = 1000
"""Messages that wait for a client before it is dropped."""


def test_a_client_that_fails_is_dropped_and_the_others_hear_everything(
    hub: ThreadHub, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    failing = FailingClient(takes=2)
    hub.start("thread", client, request_id=1)
    hub.resume("thread", failing, request_id=2)
    for tokens in range(1, 6):
        hub.usage_updated("thread", "turn-1", used(tokens))
        assert hub.flush(PATIENCE_SECONDS)
    assert client.told[1:] == [usage("thread", "turn-1", used(tokens)) for tokens in range(1, 6)]
    assert kinds(failing.told) == [2, "thread/tokenUsage/updated"]
    assert failing.calls == 3  # the one that failed was the last
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "ConnectionResetError" in record.getMessage()


@pytest.mark.parametrize(
    "failure", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit]
)
def test_a_client_is_dropped_whatever_it_raises(
    hub: ThreadHub,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    failure: type[BaseException],
) -> None:
    class Failing(Client):
        def send(self, message: Message, /) -> None:
            super().send(message)
            raise failure

    failing = Failing()
    hub.start("thread", client, request_id=1)
    hub.resume("thread", failing, request_id=2)
    assert hub.flush(PATIENCE_SECONDS)
    hub.usage_updated("thread", "turn-1", used(1))
    assert hub.flush(PATIENCE_SECONDS)
    assert kinds(failing.told) == [2]
    assert client.told[1:] == [usage("thread", "turn-1", used(1))]
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert failure.__name__ in record.getMessage()


@pytest.mark.slow
def test_an_interrupted_caller_leaves_an_outbox_as_it_was() -> None:
    client = Client()
    outbox = Outbox(client)
    queued = 0

    def work() -> None:
        nonlocal queued
        outbox.put({"method": str(queued)})
        queued += 1
        outbox.flush(0.001)

    interrupts(work, times=300)
    finished = threading.Event()

    def go_on() -> None:
        assert outbox.put({"method": "last"})
        assert outbox.flush(PATIENCE_SECONDS)
        finished.set()

    threading.Thread(target=go_on, daemon=True).start()
    assert finished.wait(PATIENCE_SECONDS)
    sent = [int(kind) for kind in kinds(client.told)[:-1]]
    assert sent == sorted(sent)
    assert set(sent) >= set(range(queued))
    assert kinds(client.told)[-1] == "last"


@pytest.mark.slow
def test_an_interrupted_call_leaves_no_thread_locked(hub: ThreadHub, store: GoalStore) -> None:
    store.create("one", "Ship")
    store.create("other", "Ship")
    client = Client()
    hub.resume("one", client, request_id=1)

    def work() -> None:
        hub.turn_started("one", "turn-1")
        hub.usage_updated("one", "turn-1", used(1))
        hub.resume("other", client, request_id=2)
        hub.detach(client, "other")
        hub.turn_finished("one", "turn-1")

    interrupts(work, times=300)
    finished = threading.Event()

    def go_on() -> None:
        for thread_id in ("one", "other"):
            hub.turn_started(thread_id, "turn-2")
            hub.turn_finished(thread_id, "turn-2")
            hub.resume(thread_id, Client(), request_id=3)
        finished.set()

    threading.Thread(target=go_on, daemon=True).start()
    assert finished.wait(PATIENCE_SECONDS)


def test_a_sender_that_cannot_be_started_is_started_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    client = Client()
    outbox = Outbox(client)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            outbox.put({"method": "one"})
    assert outbox.put({"method": "two"})
    assert outbox.flush(PATIENCE_SECONDS)
    assert kinds(client.told) == ["one", "two"]


def test_a_client_that_fails_at_its_response_does_not_hurt_who_called(hub: ThreadHub) -> None:
    failing = FailingClient(takes=0)
    hub.start("thread", failing, request_id=1)
    assert hub.flush(PATIENCE_SECONDS)
    assert failing.calls == 1
    hub.usage_updated("thread", "turn-1", used(1))
    assert hub.flush(PATIENCE_SECONDS)
    assert failing.calls == 1


def test_a_client_that_failed_is_dropped_from_every_thread(hub: ThreadHub, client: Client) -> None:
    failing = FailingClient(takes=2)
    for number, thread_id in enumerate(["a", "b"]):
        hub.start(thread_id, failing, request_id=number)
        hub.resume(thread_id, client, request_id=number)
    hub.usage_updated("a", "turn-1", used(1))
    assert hub.flush(PATIENCE_SECONDS)
    hub.usage_updated("b", "turn-1", used(2))
    assert hub.flush(PATIENCE_SECONDS)
    assert failing.calls == 3
    assert client.told[-2:] == [usage("a", "turn-1", used(1)), usage("b", "turn-1", used(2))]


def test_a_thread_whose_only_client_failed_ends_with_its_turn(hub: ThreadHub) -> None:
    failing = FailingClient(takes=0)
    hub.start("thread", failing, request_id=1)
    hub.turn_started("thread", "turn-1")
    assert hub.flush(PATIENCE_SECONDS)
    hub.turn_finished("thread", "turn-1")
    assert hub.live_threads() == []


def test_a_client_that_failed_can_attach_again(hub: ThreadHub, client: Client) -> None:
    failing = FailingClient(takes=0)
    hub.start("thread", client, request_id=1)
    hub.resume("thread", failing, request_id=2)
    assert hub.flush(PATIENCE_SECONDS)
    hub.usage_updated("thread", "turn-1", used(1))
    failing._takes = 10
    hub.resume("thread", failing, request_id=3)
    hub.usage_updated("thread", "turn-1", used(2))
    assert hub.flush(PATIENCE_SECONDS)
    assert failing.told[1:] == [
        usage("thread", "", used(1)),
        usage("thread", "turn-1", used(2)),
    ]
    assert kinds(failing.told)[0] == 3


def test_a_client_that_is_stuck_is_dropped_at_the_bound_and_the_others_hear_everything(
    hub: ThreadHub, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = StuckClient()
    hub.start("thread", client, request_id=1)
    try:
        hub.resume("thread", stuck, request_id=2)
        assert stuck.is_stuck.wait(PATIENCE_SECONDS)  # in its response, and 1000 may wait behind it
        for tokens in range(1, BOUND + 1):
            hub.usage_updated("thread", "turn-1", used(tokens))
            if tokens % 100 == 0:
                assert _flushed(hub, client, tokens + 1)
        assert not caplog.records[-1].getMessage().endswith("was dropped")
        hub.usage_updated("thread", "turn-1", used(BOUND + 1))
        assert any(
            record.levelno == logging.WARNING
            and record.getMessage() == "a connection is 1000 messages behind and was dropped"
            for record in caplog.records
        )
        hub.usage_updated("thread", "turn-1", used(BOUND + 2))
        assert hub.flush(PATIENCE_SECONDS)  # nobody waits for who was dropped
        assert client.told[1:] == [
            usage("thread", "turn-1", used(tokens)) for tokens in range(1, BOUND + 3)
        ]
    finally:
        stuck.may_go_on.set()
    _join_senders()
    assert kinds(stuck.told) == [2]


def test_a_stuck_client_does_not_hold_up_those_who_come_and_go(hub: ThreadHub) -> None:
    stuck, late = StuckClient(), Client()
    try:
        hub.start("thread", stuck, request_id=1)
        assert stuck.is_stuck.wait(PATIENCE_SECONDS)
        hub.turn_started("thread", "turn-1")
        hub.usage_updated("thread", "turn-1", used(1))
        hub.resume("thread", late, request_id=2)
        hub.fork("thread", "fork", late, request_id=3)
        hub.turn_finished("thread", "turn-1")
        assert _flushed(hub, late, 4)
        hub.detach(stuck)
        hub.detach(late)
        assert hub.live_threads() == []
    finally:
        stuck.may_go_on.set()
    _join_senders()
    assert kinds(stuck.told) == [1]  # what was still to be sent when it left is not


def _flushed(hub: ThreadHub, client: Client, messages: int) -> bool:
    """Waits for one client while another one is stuck."""
    outbox = hub._outboxes[id(client)][1]
    return outbox.flush(PATIENCE_SECONDS) and len(client.told) == messages


def _join_senders() -> None:
    for thread in threading.enumerate():
        if thread.name == "goal-state outbox":
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()


# -- many at once ------------------------------------------------------------------------------------


def together(*works: Callable[[], object]) -> None:
    """Runs all of it at the same time, each on a thread of its own; an error of one is raised."""
    ready = threading.Barrier(len(works))
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        ready.wait(PATIENCE_SECONDS)
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@contextmanager
def switching_often() -> Iterator[None]:
    """Threads take turns at every opportunity."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


UPDATES = 400
ROUNDS = 40


def totals(messages: list[Message]) -> list[int]:
    return [message["params"]["tokenUsage"]["total"]["inputTokens"] for message in messages]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_replays_and_updates_that_race_keep_their_order(
    hub: ThreadHub, store: GoalStore, seed: int
) -> None:
    """Every attachment is response, usage, goal, with nothing between; after it comes every later update
    and no earlier one.
    """
    clients = [Client() for _ in range(4)]
    hub.start("thread", Client(), request_id=-1)
    store.create("thread", "Ship it")
    hub.turn_started("thread", "turn-1")
    hub.usage_updated("thread", "turn-1", used(1))
    counter = iter(range(2, UPDATES + 2))
    counting = threading.Lock()

    def update() -> None:
        while True:
            with counting:  # so that the numbers rise as they are told
                tokens = next(counter, None)
                if tokens is None:
                    return
                hub.usage_updated("thread", "turn-1", used(tokens))

    def come_and_go(client: Client, number: int) -> Callable[[], None]:
        dice = random.Random(seed * 100 + number)

        def work() -> None:
            for request_id in range(ROUNDS):
                hub.resume("thread", client, request_id=request_id)
                if request_id < ROUNDS - 1 and dice.random() < 0.5:
                    hub.detach(client, "thread")

        return work

    with switching_often():
        together(update, update, *(come_and_go(client, n) for n, client in enumerate(clients)))
    assert hub.flush(PATIENCE_SECONDS)
    for client in clients:
        told = client.told
        responses = [number for number, message in enumerate(told) if "id" in message]
        assert [told[number]["id"] for number in responses] == list(range(ROUNDS))
        for number in responses:
            assert kinds(told[number + 1 : number + 3]) == [
                "thread/tokenUsage/updated",
                "thread/goal/updated",
            ]
        goals = [m for m in told if m.get("method") == "thread/goal/updated"]
        assert len(goals) == ROUNDS
        replays = {number + 1 for number in responses}
        seen = 0
        for number, message in enumerate(told):
            if message.get("method") != "thread/tokenUsage/updated":
                continue
            [tokens] = totals([message])
            if number in replays:
                assert tokens >= seen  # never an older snapshot behind a newer one
            elif number - 1 not in responses:
                assert tokens > seen  # each update once
            seen = tokens
        # Behind the last attachment, which nobody left, nothing is missing.
        last = told[responses[-1] :]
        assert totals([m for m in last if m.get("method") == "thread/tokenUsage/updated"]) == [
            tokens * 10 for tokens in range(UPDATES + 2 - _count(last), UPDATES + 2)
        ]


def _count(messages: list[Message]) -> int:
    return kinds(messages).count("thread/tokenUsage/updated")


def test_updates_that_race_never_put_an_older_total_behind_a_newer_one(
    hub: ThreadHub, client: Client
) -> None:
    hub.start("thread", client, request_id=1)
    hub.turn_started("thread", "turn-1")

    def update(first: int) -> Callable[[], None]:
        def work() -> None:
            for tokens in range(first, 600, 4):
                hub.usage_updated("thread", "turn-1", used(tokens))

        return work

    with switching_often():
        together(*(update(first) for first in range(1, 5)))
    restored = hub.resume("thread", client, request_id=2)
    assert restored is not None
    assert restored.usage == used(599, "turn-1")
    assert hub.flush(PATIENCE_SECONDS)
    told = totals([m for m in client.told if "method" in m])
    assert told == sorted(told)
    assert told[-1] == 5990


def test_another_threads_updates_do_not_come_between_a_response_and_its_replay(
    hub: ThreadHub, client: Client
) -> None:
    for number, thread_id in enumerate(["busy", "asked"]):
        hub.start(thread_id, client, request_id=number)
        hub.usage_updated(thread_id, "turn-1", used(1))
    assert hub.flush(PATIENCE_SECONDS)
    client.take()

    def update() -> None:
        for tokens in range(2, UPDATES):
            hub.usage_updated("busy", "turn-1", used(tokens))

    def ask() -> None:
        for request_id in range(UPDATES // 2):
            hub.resume("asked", client, request_id=request_id)

    with switching_often():
        together(update, ask)
    assert hub.flush(PATIENCE_SECONDS)
    responses = [number for number, message in enumerate(client.told) if "id" in message]
    assert len(responses) == UPDATES // 2
    for number in responses:
        assert client.told[number + 1] == usage("asked", "", used(1))


def test_an_update_that_waits_while_its_thread_is_forgotten_reaches_who_comes_next(
    hub: ThreadHub, store: GoalStore, client: Client
) -> None:
    store.set_baseline("thread", used(1), turn_id="turn-0")
    first = Client()
    hub.resume("thread", first, request_id=1)
    old = hub._threads["thread"]
    updating = threading.Thread(target=hub.usage_updated, args=("thread", "turn-1", used(2)))
    with old.lock:
        updating.start()
        time.sleep(0.05)  # it has found the thread by now, and waits for its lock
        hub.detach(first)
        hub.resume("thread", client, request_id=2)
    updating.join(PATIENCE_SECONDS)
    assert hub.flush(PATIENCE_SECONDS)
    assert hub._threads["thread"] is not old
    assert client.told[1:] == [
        usage("thread", "turn-0", used(1)),
        usage("thread", "turn-1", used(2)),
    ]


def test_clients_that_come_to_a_cold_thread_at_once_all_get_the_same_replay(
    store: GoalStore,
) -> None:
    store.set_baseline("thread", used(4), turn_id="turn-1")
    goal = store.create("thread", "Ship it")
    hub, clients = ThreadHub(store), [Client() for _ in range(8)]

    def attach(client: Client) -> Callable[[], object]:
        return lambda: hub.resume("thread", client, request_id=1)

    together(*map(attach, clients))
    assert hub.flush(PATIENCE_SECONDS)
    assert hub.live_threads() == ["thread"]
    for client in clients:
        assert kinds(client.told) == [1, "thread/tokenUsage/updated", "thread/goal/updated"]
        assert client.told[1] == usage("thread", "turn-1", used(4))
    assert store.get("thread") == goal


def test_turns_and_detachments_that_race_leave_nothing_behind(
    hub: ThreadHub, store: GoalStore
) -> None:
    store.set_baseline("thread", used(1), turn_id="turn-0")
    told: list[Any] = []

    def attach(client: Client) -> Callable[[], None]:
        def work() -> None:
            for number in range(60):
                hub.resume("thread", client, request_id=number)
                hub.detach(client)
                told.append(number)

        return work

    def turns(name: str) -> Callable[[], None]:
        def work() -> None:
            for number in range(60):
                hub.turn_started("thread", f"{name}-{number}")
                hub.turn_finished("thread", f"{name}-{number}")

        return work

    together(*(attach(Client()) for _ in range(3)), turns("a"), turns("b"))
    assert len(told) == 180
    assert hub.live_threads() == []
    assert hub.flush(PATIENCE_SECONDS)
