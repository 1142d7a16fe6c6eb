"""Durable consumers: every event at least once and in order, across restarts, processes and failures."""

from __future__ import annotations

import logging
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
    GoalRepository,
    GoalStore,
    InvalidValueError,
    StoreClosedError,
)
from goal_state.storage.cursors import MAX_LEASE_MS, ConsumerCursor, ConsumerCursors
from tests.in_memory import open_in_memory
from tests.processes import PATIENCE_SECONDS, finish, python, running


class Sink:
    """Notes the positions that it was given, one batch after the other."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.called = threading.Condition()

    def __call__(self, events: Sequence[GoalEvent]) -> None:
        with self.called:
            self.batches.append([event.position for event in events])
            self.called.notify_all()

    @property
    def positions(self) -> list[int]:
        return [position for batch in self.batches for position in batch]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.called:
            assert self.called.wait_for(condition, PATIENCE_SECONDS)


class Gate(Sink):
    """A sink that takes its time: until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, events: Sequence[GoalEvent]) -> None:
        self.entered.set()
        assert self.open.wait(PATIENCE_SECONDS)
        super().__call__(events)


class Relay:
    """A store as a consumer sees it, that counts and can fail."""

    def __init__(self, store: GoalStore) -> None:
        self.read_events = store.read_events
        self.last_position = store.last_position
        self._store = store
        self.transactions = 0
        self.looks = 0
        self.counted = threading.Condition()
        self.fail_after_sink: list[Exception] = []

    def read_cursor(self, name: str) -> ConsumerCursor | None:
        with self.counted:
            self.looks += 1
            self.counted.notify_all()
        return self._store.read_cursor(name)

    def looks_again(self, times: int) -> None:
        """Waits until the consumer has looked so many times whether the name is free."""
        with self.counted:
            seen = self.looks
            assert self.counted.wait_for(lambda: self.looks >= seen + times, PATIENCE_SECONDS)

    def transact(self, work: Callable[[GoalRepository], bool]) -> bool:
        with self.counted:
            self.transactions += 1
        if self.transactions > 1 and self.fail_after_sink:
            raise self.fail_after_sink.pop()
        return self._store.transact(work)


@pytest.fixture
def consume() -> Iterator[Callable[..., Consumer]]:
    """Consumers with a short lease, closed at the end."""
    consumers: list[Consumer] = []

    def make(source: Any, name: str, sink: Any, *, lease_seconds: float = 1.0) -> Consumer:
        consumer = Consumer(
            source,
            name,
            sink,
            batch_size=10,
            on_close=lambda _: None,
            lease_seconds=lease_seconds,
        )
        consumers.append(consumer)
        return consumer

    yield make
    for consumer in consumers:
        consumer.close(PATIENCE_SECONDS)


def write(store: GoalStore, events: int, *, thread_id: str = "t") -> None:
    """Appends so many events in so many transactions."""
    if store.get(thread_id) is None:
        store.create(thread_id, "Ship")
        events -= 1
    for _ in range(events):
        store.charge(thread_id, tokens=1)


def cursor(store: GoalStore, name: str) -> ConsumerCursor | None:
    return store.transact(lambda repository: ConsumerCursors(repository.executor).get(name))


def claim(store: GoalStore, name: str, holder: str, now_ms: int) -> int | None:
    return store.transact(
        lambda repository: ConsumerCursors(repository.executor).claim(
            name, holder, lease_ms=10_000, now_ms=now_ms
        )
    )


# -- delivery ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["file", "memory"])
def test_a_consumer_is_given_the_whole_log_and_what_follows(target: str, database: Path) -> None:
    sink = Sink()
    with GoalStore.open(database) if target == "file" else open_in_memory() as store:
        write(store, 7)
        with store.consume("audit", sink, batch_size=3) as consumer:
            assert consumer.drain(PATIENCE_SECONDS)
            assert consumer.position == 7
            write(store, 2)
            assert consumer.drain(PATIENCE_SECONDS)
        assert sink.positions == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert max(map(len, sink.batches)) == 3


def test_a_consumer_is_given_whole_events(store: GoalStore) -> None:
    taken: list[GoalEvent] = []
    with store.consume("audit", taken.extend) as consumer:
        write(store, 3)
        assert consumer.drain(PATIENCE_SECONDS)
    assert taken == list(store.events())


def test_a_consumer_is_given_no_event_before_what_stands_in_front_of_it_is_settled(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, 5)
    settled = 3
    # As where several may write at once: an event before the fourth may be on its way still.
    monkeypatch.setattr(
        "goal_state.storage.sqlite.executor.Executor.settled_through",
        lambda _, last: min(last, settled),
    )
    sink = Sink()
    with store.consume("audit", sink) as consumer:
        assert not consumer.drain(0.2)
        assert sink.positions == [1, 2, 3]
        settled = 6
        write(store, 1)
        assert consumer.drain(PATIENCE_SECONDS)
    assert sink.positions == [1, 2, 3, 4, 5, 6]


def test_a_consumer_goes_on_where_it_stopped(database: Path) -> None:
    first, second = Sink(), Sink()
    with GoalStore.open(database) as store:
        store.consume("audit", first)
        write(store, 3)
    with GoalStore.open(database) as store:
        write(store, 2)
        assert cursor(store, "audit") == ConsumerCursor("audit", 3, None, None)
        store.consume("audit", second)
    assert first.positions == [1, 2, 3]
    assert second.positions == [4, 5]


def test_names_have_cursors_of_their_own(store: GoalStore) -> None:
    one, two = Sink(), Sink()
    write(store, 3)
    with store.consume("one", one) as consumer:
        assert consumer.drain(PATIENCE_SECONDS)
    write(store, 1)
    with store.consume("two", two) as consumer:
        assert consumer.drain(PATIENCE_SECONDS)
    assert (one.positions, two.positions) == ([1, 2, 3], [1, 2, 3, 4])


@pytest.mark.slow
def test_a_consumer_sees_what_hosts_and_other_processes_write(
    store: GoalStore, database: Path
) -> None:
    sink = Sink()
    with store.consume("audit", sink):
        python(
            """
import sys
from goal_state import GoalRepository
from goal_state.storage.sqlite.connections import create_engine
with create_engine(sys.argv[1]).begin() as connection:
    GoalRepository(connection).create("t", "Ship")
""",
            database,
        )
        sink.wait_for(lambda: sink.positions == [1])


def test_a_sink_may_call_the_store(store: GoalStore) -> None:
    def pay(events: Sequence[GoalEvent]) -> None:
        for event in events:
            if event.kind == "created":
                store.charge(event.thread_id, tokens=5)

    with store.consume("payer", pay) as consumer:
        store.create("t", "Ship")
        assert consumer.drain(PATIENCE_SECONDS)
    goal = store.get("t")
    assert goal is not None
    assert goal.tokens_used == 5


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 257}, "name"),
        ({"sink": None}, "sink"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 10_001}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
    ],
)
def test_a_malformed_consumer_is_refused(
    store: GoalStore, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidValueError) as caught:
        store.consume(**{"name": "audit", "sink": print} | arguments)
    assert caught.value.field == field
    assert cursor(store, "audit") is None


# -- failures ----------------------------------------------------------------------------------------


def test_a_sink_that_raises_gets_the_same_events_again(
    store: GoalStore,
    consume: Callable[..., Consumer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("goal_state.delivery.consumers._FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr("goal_state.delivery.consumers._LONGEST_RETRY_SECONDS", 0.006)
    sink = Sink()

    def fail_often(events: Sequence[GoalEvent]) -> None:
        sink(events)
        if len(sink.batches) <= 5:
            kept.append(cursor(store, "audit"))
            raise ConnectionError("the receiver is away")

    kept: list[ConsumerCursor | None] = []
    write(store, 2)
    consumer = consume(store, "audit", fail_often)
    assert consumer.drain(PATIENCE_SECONDS)
    assert sink.batches == [[1, 2]] * 6
    assert [one.position for one in kept if one is not None] == [0] * 5

    records = [r for r in caplog.records if r.name == "goal_state.delivery.consumers"]
    assert [r.levelno for r in records] == [logging.WARNING] * 5
    assert {r.getMessage().partition(";")[0] for r in records} == {
        "consumer 'audit' failed at position 0 (ConnectionError: the receiver is away)"
    }
    pauses = [r.args[-1] for r in records if isinstance(r.args, tuple)]
    for pause, longest in zip(pauses, (0.001, 0.002, 0.004, 0.006, 0.006), strict=True):
        assert isinstance(pause, float)
        assert longest / 2 <= pause <= longest


def test_the_pause_begins_anew_after_a_success(
    store: GoalStore,
    consume: Callable[..., Consumer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("goal_state.delivery.consumers._FIRST_RETRY_SECONDS", 0.001)
    failures = iter([True, True, False, True, False])

    def fail_at_times(_: Sequence[GoalEvent]) -> None:
        if next(failures):
            raise ConnectionError

    write(store, 1)
    consumer = consume(store, "audit", fail_at_times)
    assert consumer.drain(PATIENCE_SECONDS)
    write(store, 1)
    assert consumer.drain(PATIENCE_SECONDS)
    pauses = [
        r.args[-1] for r in caplog.records if r.name == "goal_state.delivery.consumers" and r.args
    ]
    assert len(pauses) == 3
    assert pauses[2] <= 0.001


def test_a_sink_can_say_how_long_to_leave_its_receiver_alone(
    store: GoalStore, consume: Callable[..., Consumer], caplog: pytest.LogCaptureFixture
) -> None:
    told = threading.Event()

    def ask_for_time(_: Sequence[GoalEvent]) -> None:
        told.set()
        raise DeliveryError("the receiver is busy", retry_after_seconds=1000.0)

    write(store, 1)
    consumer = consume(store, "audit", ask_for_time)
    assert told.wait(PATIENCE_SECONDS)
    assert not consumer.close(0.0), "it does not wait those seconds out"
    [record] = [r for r in caplog.records if r.name == "goal_state.delivery.consumers"]
    assert isinstance(record.args, tuple)
    assert isinstance(record.args[-1], float)
    assert record.args[-1] > 1000.0


def test_what_was_taken_but_not_noted_is_given_again(
    store: GoalStore, consume: Callable[..., Consumer]
) -> None:
    source, sink = Relay(store), Sink()
    source.fail_after_sink.append(DatabaseBusyError("another process writes"))
    write(store, 2)
    consumer = consume(source, "audit", sink, lease_seconds=60.0)
    assert consumer.drain(PATIENCE_SECONDS)
    assert sink.batches == [[1, 2], [1, 2]]
    assert consumer.position == 2


# -- one holder at a time ----------------------------------------------------------------------------


@pytest.mark.parametrize("stores", ["one store", "two stores"])
def test_two_consumers_of_one_name_never_work_at_once(
    store: GoalStore, database: Path, stores: str, consume: Callable[..., Consumer]
) -> None:
    at_work = threading.Lock()
    overlapped: list[int] = []
    taken: list[int] = []

    def take(events: Sequence[GoalEvent]) -> None:
        if not at_work.acquire(blocking=False):
            overlapped.append(events[0].position)
            return
        taken.extend(event.position for event in events)
        at_work.release()

    with GoalStore.open(database) as other:
        first = consume(store, "audit", take)
        second = consume(store if stores == "one store" else other, "audit", take)
        write(store, 100)
        for consumer in (first, second):
            consumer.close(0.1)
        with store.consume("audit", take) as last:
            assert last.drain(PATIENCE_SECONDS)
        second.close(PATIENCE_SECONDS)
    assert overlapped == []
    assert taken == list(range(1, 101))


def test_a_name_that_is_given_back_goes_to_the_next(
    store: GoalStore, consume: Callable[..., Consumer]
) -> None:
    first, second = Sink(), Sink()
    holder = consume(store, "audit", first, lease_seconds=60.0)
    write(store, 2)
    assert holder.drain(PATIENCE_SECONDS)
    waiting = consume(store, "audit", second, lease_seconds=60.0)
    assert waiting.position is None
    assert holder.close(PATIENCE_SECONDS)
    write(store, 2)
    assert waiting.drain(PATIENCE_SECONDS)
    assert (first.positions, second.positions) == ([1, 2], [3, 4])


@pytest.mark.slow
def test_a_sink_slower_than_its_lease_keeps_the_name(
    store: GoalStore, database: Path, consume: Callable[..., Consumer]
) -> None:
    slow, rival = Gate(), Sink()
    write(store, 2)
    consume(store, "audit", slow, lease_seconds=1.0)
    assert slow.entered.wait(PATIENCE_SECONDS)
    with GoalStore.open(database) as other:
        source = Relay(other)
        waiting = consume(source, "audit", rival, lease_seconds=1.0)
        source.looks_again(8)  # the pauses between them add up to well beyond the lease
        assert waiting.position is None
        assert source.transactions == 0, "who waits takes no write lock"
        slow.open.set()
        slow.wait_for(lambda: slow.positions == [1, 2])
        waiting.close(0.1)
    assert rival.batches == []


_HOLDER = """
import sys, threading
from goal_state import GoalStore
from goal_state.delivery.consumers import Consumer

def sink(events):
    for event in events:
        print(event.position, flush=True)

with GoalStore.open(sys.argv[1]) as store:
    Consumer(store, "audit", sink, batch_size=10, on_close=lambda _: None, lease_seconds=1.0)
    print("ready", flush=True)
    threading.Event().wait()
"""


@pytest.mark.slow
def test_a_name_whose_process_was_killed_is_free_when_its_lease_ends(
    store: GoalStore, database: Path, consume: Callable[..., Consumer]
) -> None:
    sink = Sink()
    with running(_HOLDER, database) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        write(store, 3)
        assert [holder.stdout.readline() for _ in range(3)] == ["1\n", "2\n", "3\n"]
        source = Relay(store)
        consume(source, "audit", sink)
        source.looks_again(8)
        assert sink.batches == [], "the other process holds the name, and renews its lease"

        holder.kill()
        write(store, 2)
        sink.wait_for(lambda: 5 in sink.positions)
    # The killed one may have died before it noted how far it had got: at least once.
    assert sink.positions[-2:] == [4, 5]
    assert sink.positions == sorted(set(sink.positions))


_WORKER = """
import sys
from goal_state import GoalStore
from goal_state.delivery.consumers import Consumer

def sink(events):
    print(*(event.position for event in events), sep="\\n", flush=True)

with GoalStore.open(sys.argv[1]) as store:
    consumer = Consumer(store, "audit", sink, batch_size=3, on_close=lambda _: None)
    sys.stdin.read()
    consumer.close(0.1)
"""


@pytest.mark.slow
def test_two_processes_share_a_name_in_turn(store: GoalStore, database: Path) -> None:
    with running(_WORKER, database) as one, running(_WORKER, database) as two:
        write(store, 30)
        assert one.stdin is not None
        one.stdin.close()
        one.stdin = None  # so that it is not closed again
        first = finish(one)
        write(store, 30)
        sink = Sink()
        with store.consume("audit", sink) as last:
            second = finish(two)
            assert last.drain(PATIENCE_SECONDS)
    taken = [int(line) for line in (first + second).split()] + sink.positions
    assert sorted(taken) == list(range(1, 61))
    for one_taken in (first, second):
        positions = [int(line) for line in one_taken.split()]
        assert positions == sorted(positions)


def test_a_lease_of_a_clock_that_jumped_back_does_not_lock_the_name(store: GoalStore) -> None:
    now_ms = 1_800_000_000_000
    assert claim(store, "audit", "one", now_ms) == 0
    assert claim(store, "audit", "two", now_ms + 9_999) is None
    assert claim(store, "audit", "two", now_ms - 1_000) is None
    assert claim(store, "audit", "one", now_ms - 1_000) == 0, "its own holder may always"
    assert claim(store, "audit", "two", now_ms - MAX_LEASE_MS) == 0
    assert claim(store, "audit", "one", now_ms - MAX_LEASE_MS) is None


def test_a_lease_that_has_ended_is_free(store: GoalStore) -> None:
    assert claim(store, "audit", "one", 1_000_000) == 0
    assert claim(store, "audit", "two", 1_009_999) is None
    assert claim(store, "audit", "two", 1_010_000) == 0


def test_a_lost_name_moves_no_cursor(store: GoalStore) -> None:
    claim(store, "audit", "one", 1_000_000)
    claim(store, "audit", "two", 2_000_000)

    def late(repository: GoalRepository) -> tuple[bool, bool]:
        cursors = ConsumerCursors(repository.executor)
        cursors.release("audit", "one", now_ms=2_000_001)
        return (
            cursors.advance("audit", "one", 9, lease_ms=10_000, now_ms=2_000_001),
            cursors.renew("audit", "one", lease_ms=10_000, now_ms=2_000_001),
        )

    assert store.transact(late) == (False, False)
    assert cursor(store, "audit") == ConsumerCursor("audit", 0, "two", 2_010_000)


# -- drain and close ---------------------------------------------------------------------------------


def test_drain_says_whether_all_was_taken(
    store: GoalStore, consume: Callable[..., Consumer]
) -> None:
    gate = Gate()
    consumer = consume(store, "audit", gate)
    assert consumer.drain(PATIENCE_SECONDS), "the log is empty"
    write(store, 1)
    assert not consumer.drain(0.05)
    gate.open.set()
    assert consumer.drain(PATIENCE_SECONDS)
    assert gate.positions == [1]


def test_close_drains_and_gives_the_name_back(store: GoalStore) -> None:
    sink = Sink()
    write(store, 25)
    consumer = store.consume("audit", sink, batch_size=10)
    assert consumer.close(PATIENCE_SECONDS)
    assert sink.positions == list(range(1, 26))
    assert consumer.position == 25
    assert cursor(store, "audit") == ConsumerCursor("audit", 25, None, None)
    assert consumer.close(), "twice is fine"
    write(store, 1)
    with store.consume("audit", sink) as following:
        assert following.drain(PATIENCE_SECONDS)
    assert sink.positions == list(range(1, 27))


def test_close_says_that_something_is_left_for_the_next(store: GoalStore) -> None:
    def fail(_: Sequence[GoalEvent]) -> None:
        raise ConnectionError

    write(store, 3)
    assert not store.consume("audit", fail).close(0.05)
    sink = Sink()
    with store.consume("audit", sink) as consumer:
        assert consumer.drain(PATIENCE_SECONDS)
    assert sink.positions == [1, 2, 3]


def test_closing_the_store_stops_its_consumers(database: Path) -> None:
    sink = Sink()
    with GoalStore.open(database) as store:
        consumer = store.consume("audit", sink)
        write(store, 5)
    assert sink.positions == [1, 2, 3, 4, 5]
    assert not [one for one in threading.enumerate() if one.name.startswith("goal-state audit")]
    assert consumer.close()
    with pytest.raises(StoreClosedError):
        store.consume("audit", sink)


def test_a_store_closed_under_a_consumer_ends_it(
    database: Path, consume: Callable[..., Consumer], caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()
    with GoalStore.open(database) as store:
        write(store, 1)
        consumer = consume(store, "audit", sink)  # one of which the store knows nothing
        assert consumer.drain(PATIENCE_SECONDS)
    for thread in threading.enumerate():
        if thread.name.startswith("goal-state audit"):
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
    assert "consumer 'audit' stops: its store is closed" in caplog.text
    assert not consumer.close()
    assert "died" not in caplog.text
