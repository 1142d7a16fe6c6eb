"""What may befall a durable consumer: whatever a sink raises, stops, clocks, forks, interrupts, restored
logs. Nothing is lost, nothing hangs, and no event is handed out after another has taken over."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from goal_state import (
    Consumer,
    DatabaseBusyError,
    DeliveryError,
    GoalEvent,
    GoalStore,
    RequestError,
    StoreClosedError,
)
from goal_state.storage.wall_clock import now_ms
from tests.databases import execute
from tests.interrupts import interrupts
from tests.processes import PATIENCE_SECONDS, finish, python, running


def write(store: GoalStore, events: int) -> None:
    """So many events in so many transactions."""
    if store.get("t") is None:
        store.create("t", "Ship")
        events -= 1
    for _ in range(events):
        store.charge("t", tokens=1)


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(round(PATIENCE_SECONDS / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to that")


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again soon."""
    monkeypatch.setattr("goal_state.delivery.consumers._FIRST_RETRY_SECONDS", 0.005)
    monkeypatch.setattr("goal_state.delivery.consumers._LONGEST_RETRY_SECONDS", 0.05)


@pytest.fixture
def consume() -> Iterator[Callable[..., Consumer]]:
    """Consumers with a lease of their own, closed at the end."""
    consumers: list[Consumer] = []

    def make(
        store: GoalStore, sink: Any, *, lease_seconds: float = 1.0, batch_size: int = 10
    ) -> Consumer:
        consumers.append(
            Consumer(
                store,
                "audit",
                sink,
                batch_size=batch_size,
                on_close=lambda _: None,
                lease_seconds=lease_seconds,
            )
        )
        return consumers[-1]

    yield make
    for consumer in consumers:
        consumer.close(0.1)


# -- whatever a sink raises --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        asyncio.CancelledError(),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        MemoryError(),
        StoreClosedError("another store is closed"),
        RequestError("refused"),
        DatabaseBusyError("busy"),
        BaseException("odd"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_whatever_a_sink_raises_it_gets_the_same_events_again(
    store: GoalStore, failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [failure] * 2
    calls: list[list[int]] = []

    def sink(events: Sequence[GoalEvent]) -> None:
        calls.append([event.position for event in events])
        if failures:
            raise failures.pop()

    write(store, 3)
    consumer = store.consume("audit", sink)
    assert consumer.drain(PATIENCE_SECONDS)
    assert calls == [[1, 2, 3]] * 3
    write(store, 1)
    assert consumer.close(PATIENCE_SECONDS)
    assert calls[3:] == [[4]]
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 2
    assert f"failed at position 0 ({type(failure).__name__}" in warned[0]


async def asynchronous(_: Sequence[GoalEvent]) -> None: ...


def test_a_sink_that_nothing_awaits_has_taken_nothing(
    store: GoalStore, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 2)
    consumer = store.consume("audit", lambda events: asynchronous(events))
    wait_until(lambda: "must be a plain function" in caplog.text)
    assert consumer.position == 0
    assert not consumer.close(0.1)


@pytest.mark.parametrize("seconds", [float("nan"), -5.0, "soon", None])
def test_a_sink_that_asks_for_what_is_no_time_is_tried_again(
    store: GoalStore, seconds: Any
) -> None:
    failures = [DeliveryError("busy", retry_after_seconds=seconds)]
    taken: list[GoalEvent] = []

    def sink(events: Sequence[GoalEvent]) -> None:
        if failures:
            raise failures.pop()
        taken.extend(events)

    write(store, 2)
    with store.consume("audit", sink) as consumer:
        assert consumer.drain(PATIENCE_SECONDS)
    assert len(taken) == 2


def test_a_sink_that_asks_for_ever_can_be_closed(store: GoalStore) -> None:
    called = threading.Event()

    def sink(_: Sequence[GoalEvent]) -> None:
        called.set()
        raise DeliveryError("never again", retry_after_seconds=float("inf"))

    write(store, 1)
    consumer = store.consume("audit", sink)
    assert called.wait(PATIENCE_SECONDS)
    assert not consumer.drain(0.1)
    assert not consumer.close(0.1)
    assert not [one for one in threading.enumerate() if one.name.startswith("goal-state audit")]


def test_an_exception_that_is_sent_to_its_thread_does_not_end_a_consumer(
    store: GoalStore, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[int] = []
    write(store, 1)
    with store.consume("audit", lambda events: taken.extend(e.position for e in events)) as one:
        for number in range(5):
            assert one.drain(PATIENCE_SECONDS)
            # It is idle, or about to be: it is interrupted where it waits for events.
            for thread in (one._thread, one._lease_thread):
                assert thread.ident is not None
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
                )
            one.nudge()
            wait_until(lambda n=number: caplog.text.count("was interrupted (SystemExit") == n + 1)
            write(store, 1)
        assert one.drain(PATIENCE_SECONDS)
    assert sorted(set(taken)) == [1, 2, 3, 4, 5, 6]


def test_a_thread_that_dies_all_the_same_is_told_of(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entered, die = threading.Event(), threading.Event()

    def consume(self: Consumer) -> None:
        entered.set()
        assert die.wait(PATIENCE_SECONDS)
        raise SystemExit

    monkeypatch.setattr(Consumer, "_consume", consume)
    write(store, 1)
    consumer = store.consume("audit", print)
    assert entered.wait(PATIENCE_SECONDS)
    threading.Timer(0.05, die.set).start()
    assert not consumer.drain(), "without a time limit"
    assert not consumer.close()
    assert "consumer 'audit' has died" in caplog.text
    assert "consumer 'audit' had died before it was closed" in caplog.text


def test_a_sink_can_neither_drain_nor_wait_for_the_end_of_itself(database: Path) -> None:
    said: list[bool] = []
    done = threading.Event()
    with GoalStore.open(database) as store:

        def sink(_: Sequence[GoalEvent]) -> None:
            said.append(consumer.drain())
            said.append(consumer.close())
            done.set()

        ready = threading.Event()
        consumer = store.consume("audit", lambda events: (ready.wait(), sink(events)))
        write(store, 1)
        ready.set()
        assert done.wait(PATIENCE_SECONDS)
    assert said == [False, False]


# -- closing -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(40)
def test_consumers_that_hang_are_closed_side_by_side(database: Path) -> None:
    let_go = threading.Event()
    with GoalStore.open(database) as store:
        write(store, 1)
        for number in range(12):  # five seconds each would be a minute
            store.consume(f"hangs-{number}", lambda _: let_go.wait(PATIENCE_SECONDS))
    let_go.set()
    with pytest.raises(StoreClosedError):
        store.get("t")
    for thread in threading.enumerate():
        if thread.name.startswith("goal-state hangs"):
            thread.join(PATIENCE_SECONDS)


@pytest.mark.slow
def test_one_that_hangs_takes_no_time_from_the_others(database: Path) -> None:
    let_go, taken = threading.Event(), list[int]()
    with GoalStore.open(database) as store:
        write(store, 20)
        hanging = store.consume("hangs", lambda _: let_go.wait(PATIENCE_SECONDS))
        busy = store.consume("works", lambda e: taken.append(e[0].position), batch_size=1)
        assert not Consumer.close_all([hanging, busy], 2.0)
        assert taken == list(range(1, 21))
        assert busy.close()
        assert not hanging.close(), "closing again says the same"
        let_go.set()


@pytest.mark.slow
def test_a_signal_handler_may_close_while_another_call_waits(store: GoalStore) -> None:
    let_go = threading.Event()
    write(store, 1)
    consumer = store.consume("audit", lambda _: let_go.wait(PATIENCE_SECONDS))
    said: list[bool] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: said.append(consumer.close(0.1)))
    try:
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGUSR1)).start()
        assert not consumer.drain(), "without a time limit"
    finally:
        signal.signal(signal.SIGUSR1, before)
        let_go.set()
    assert said == [False]


@pytest.mark.slow
def test_an_interrupted_drain_leaves_nothing_locked(store: GoalStore) -> None:
    taken: list[int] = []
    with store.consume("audit", lambda events: taken.extend(e.position for e in events)) as one:
        write(store, 5)

        def work() -> None:
            one.nudge()
            one.drain(0.001)

        interrupts(work, times=300)
        write(store, 5)
        assert one.drain(PATIENCE_SECONDS)
        assert one._waiting == set()
    assert taken == list(range(1, 11))


# -- what wakes it -----------------------------------------------------------------------------------


def test_commits_of_the_same_process_wake_a_consumer(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goal_state.delivery.consumers._SHORTEST_PAUSE_SECONDS", 3600.0)
    monkeypatch.setattr("goal_state.delivery.consumers._LONGEST_PAUSE_SECONDS", 3600.0)
    taken: list[int] = []
    with store.consume("audit", lambda events: taken.extend(e.position for e in events)) as one:
        assert one.drain(PATIENCE_SECONDS)
        for number in range(1, 21):
            write(store, 1)
            wait_until(lambda n=number: len(taken) == n)


def test_a_name_that_is_given_back_wakes_who_waits_for_it(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goal_state.delivery.consumers._SHORTEST_PAUSE_SECONDS", 3600.0)
    monkeypatch.setattr("goal_state.delivery.consumers._LONGEST_PAUSE_SECONDS", 3600.0)
    first = store.consume("audit", print)
    assert first.drain(PATIENCE_SECONDS)
    wait_until(lambda: first.position is not None)
    second = store.consume("audit", print)
    wait_until(lambda: second._is_standby)
    assert first.close()
    wait_until(lambda: second.position is not None)


# -- the lease ---------------------------------------------------------------------------------------

_HOLDER = """
import os, signal, sys, threading
from goal_state import GoalStore
from goal_state.delivery.consumers import Consumer

stops_in_sink = sys.argv[2] == "in the sink"
# Stopped in a transaction that renews its lease, it would hold the write lock as well.
Consumer._keep_lease = lambda self: None

def sink(events):
    print(*(event.position for event in events), flush=True)
    if stops_in_sink and events[0].position == 2:
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread stops here

with GoalStore.open(sys.argv[1]) as store:
    consumer = Consumer(
        store, "audit", sink, batch_size=1, on_close=lambda _: None, lease_seconds=1.0
    )
    sys.stdin.readline()
    consumer.drain(1.0)
    sys.stdin.readline()
    print("position", consumer.position, flush=True)
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["idle", "in the sink"])
def test_a_holder_that_was_stopped_past_its_lease_hands_out_nothing_more(
    store: GoalStore, database: Path, consume: Callable[..., Consumer], where: str
) -> None:
    taken: list[int] = []
    write(store, 1)
    with running(_HOLDER, database, where) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "1\n"
        wait_until(lambda: _position(store) == 1)
        if where == "idle":
            holder.send_signal(signal.SIGSTOP)
        write(store, 1)
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
        write(store, 4)
        rival = consume(store, lambda events: taken.extend(e.position for e in events))
        assert rival.drain(PATIENCE_SECONDS)
        assert taken == [2, 3, 4, 5, 6]

        holder.send_signal(signal.SIGCONT)
        holder.stdin.write("drain\n")
        holder.stdin.flush()
        said = finish_with(holder, "\n")
    assert said == ("position None\n" if where == "idle" else "2\nposition None\n")


def finish_with(holder: Any, text: str) -> str:
    holder.stdin.write(text)
    holder.stdin.flush()
    return finish(holder)


def _position(store: GoalStore) -> int | None:
    cursor = store.read_cursor("audit")
    return None if cursor is None else cursor.position


def take_over(database: Path) -> None:
    """Another one holds the name, as if the lease had ended meanwhile."""
    ends_ms = now_ms() + 200_000
    execute(
        database,
        f"UPDATE goal_state_cursors SET holder = 'another', lease_expires_at_ms = {ends_ms}",
    )


def test_a_lost_name_is_noticed_while_the_sink_is_at_work(
    store: GoalStore,
    database: Path,
    consume: Callable[..., Consumer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    entered, let_go = threading.Event(), threading.Event()

    def sink(_: Sequence[GoalEvent]) -> None:
        entered.set()
        assert let_go.wait(PATIENCE_SECONDS)

    write(store, 1)
    consumer = consume(store, sink)
    assert entered.wait(PATIENCE_SECONDS)
    assert consumer.position == 0
    take_over(database)
    wait_until(lambda: consumer.position is None)
    assert "lost its lease" in caplog.text
    let_go.set()


def test_a_name_that_was_lost_between_reading_and_handing_out_is_noticed(
    store: GoalStore,
    database: Path,
    consume: Callable[..., Consumer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The heart does not beat, so that only the look before the sink can tell."""
    monkeypatch.setattr(Consumer, "_keep_lease", lambda _: None)
    taken: list[int] = []
    armed, has_read = threading.Event(), threading.Event()
    read_events = store.read_events

    def read_and_lose(after: int, limit: int) -> list[GoalEvent]:
        events = read_events(after, limit)
        if armed.is_set() and events and not has_read.is_set():
            take_over(database)
            has_read.set()
        return events

    monkeypatch.setattr(store, "read_events", read_and_lose)
    consumer = consume(store, lambda events: taken.extend(e.position for e in events))
    assert consumer.drain(PATIENCE_SECONDS)
    wait_until(lambda: consumer.position is not None)
    armed.set()
    write(store, 3)
    assert has_read.wait(PATIENCE_SECONDS)
    wait_until(lambda: consumer.position is None)
    assert taken == []
    execute(database, "UPDATE goal_state_cursors SET holder = NULL, lease_expires_at_ms = NULL")
    assert consumer.drain(PATIENCE_SECONDS)
    assert taken == [1, 2, 3]


def test_a_clock_that_jumps_loses_no_event(
    store: GoalStore,
    database: Path,
    consume: Callable[..., Consumer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jumped_ms = 0
    monkeypatch.setattr("goal_state.storage.wall_clock.now_ms", lambda: now_ms() + jumped_ms)
    taken: list[int] = []
    with GoalStore.open(database) as other:
        both = [
            consume(one, lambda events: taken.extend(e.position for e in events))
            for one in (store, other)
        ]
        for jump_ms in (0, 3_600_000, -3_600_000, 2_000, -2_000, 86_400_000, 0):
            jumped_ms = jump_ms
            write(store, 10)
            wait_until(lambda: max(taken, default=0) == store.last_position())
        for consumer in both:
            consumer.close(0.1)
    assert sorted(set(taken)) == list(range(1, 71))


@pytest.mark.parametrize("holder", ["nobody", "the same"])
@pytest.mark.parametrize("when", ["idle", "in the sink"])
def test_after_a_restored_backup_a_consumer_finds_its_place_again(
    store: GoalStore, database: Path, consume: Callable[..., Consumer], holder: str, when: str
) -> None:
    """The log is shorter, the cursor older, and other events come to stand where it has been."""
    taken: list[str] = []
    entered, let_go = threading.Event(), threading.Event()

    def sink(events: Sequence[GoalEvent]) -> None:
        if when == "in the sink" and events[-1].position == 6:
            entered.set()
            assert let_go.wait(PATIENCE_SECONDS)
        taken.extend(event.event_id for event in events)

    write(store, 4)
    consumer = consume(store, sink, lease_seconds=60.0)
    assert consumer.drain(PATIENCE_SECONDS)
    write(store, 2)
    if when == "in the sink":
        assert entered.wait(PATIENCE_SECONDS)
    else:
        assert consumer.drain(PATIENCE_SECONDS)
    execute(
        database,
        "DELETE FROM goal_state_events WHERE position > 4",
        "UPDATE sqlite_sequence SET seq = 4 WHERE name = 'goal_state_events'",
        "UPDATE goal_state_goals SET tokens_used = 3, unpriced_tokens = 3",
        "UPDATE goal_state_cursors SET position = 4"
        + (", holder = NULL, lease_expires_at_ms = NULL" if holder == "nobody" else ""),
    )
    write(store, 2)
    let_go.set()
    assert consumer.drain(PATIENCE_SECONDS)
    assert taken[-2:] == [event.event_id for event in store.events(after=4)]
    assert set(taken) >= {event.event_id for event in store.events()}


# -- forks -------------------------------------------------------------------------------------------

_FORK = """
import os, sys, threading, warnings
from goal_state import GoalStore

warnings.simplefilter("ignore", DeprecationWarning)
taken = []
with GoalStore.open(sys.argv[1]) as store:
    store.create("t", "Ship")
    consumer = store.consume("audit", taken.extend)
    assert consumer.drain(30)
    child = os.fork()
    if child == 0:
        assert consumer.drain() is False
        assert consumer.close() is False
        consumer.nudge()
        os._exit(7)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
    store.charge("t", tokens=1)
    assert consumer.drain(30)
print(len(taken))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_consumer_stays_with_the_parent_of_a_fork(database: Path) -> None:
    assert python(_FORK, database) == "7\n2\n"


_FORKING_SINK = """
import os, sys, threading, warnings
from goal_state import GoalStore

warnings.simplefilter("ignore", DeprecationWarning)
taken, children = [], []

def sink(events):
    if len(children) < 3:
        child = os.fork()
        if child == 0:
            return  # into the loop of the consumer, which is its parent's
        children.append(child)
    taken.extend(event.position for event in events)
    print(os.getpid() == parent, *(event.position for event in events), flush=True)

parent = os.getpid()
with GoalStore.open(sys.argv[1]) as store:
    store.create("t", "Ship")
    consumer = store.consume("audit", sink, batch_size=1)
    for _ in range(4):
        store.charge("t", tokens=1)
    assert consumer.drain(30)
    for child in children:
        os.waitpid(child, 0)
    assert taken == [1, 2, 3, 4, 5]
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_sink_that_forks_and_returns_in_the_child_consumes_once(database: Path) -> None:
    said = python(_FORKING_SINK, database).splitlines()
    assert said == [f"True {position}" for position in range(1, 6)]
