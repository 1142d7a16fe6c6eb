"""HttpSink against a real server on loopback that fails in every way: nothing lost, order kept, a repeat
only after a lost acknowledgement and always under the same id."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goal_state import DeliveryError, GoalStore, InvalidValueError
from goal_state.analytics import AnalyticsEvent, send_events
from goal_state.analytics.http import HttpSink
from tests.analytics.receiver import Receiver, Request, check_delivery, receiving
from tests.databases import execute
from tests.processes import PATIENCE_SECONDS, running


@pytest.fixture(autouse=True)
def _eager_and_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again soon, and no proxy of the machine is in between."""
    monkeypatch.setattr("goal_state.delivery.consumers._FIRST_RETRY_SECONDS", 0.005)
    monkeypatch.setattr("goal_state.delivery.consumers._LONGEST_RETRY_SECONDS", 0.05)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def fill(store: GoalStore, events: int) -> None:
    """So many events, in one transaction."""

    def work(repository: Any) -> None:
        repository.replace("thread-1", "Ship it")
        for _ in range(events - 1):
            repository.charge("thread-1", tokens=1)

    store.transact(work)


def logged(store: GoalStore) -> list[str]:
    return [event.event_id for event in store.events()]


def one_event(store: GoalStore) -> list[AnalyticsEvent]:
    store.replace("thread-1", "Ship it")
    return [AnalyticsEvent([*store.events()][-1])]


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    return tmp_path / "refused.jsonl"


def answering(status: int, headers: dict[str, str] | None = None) -> httpx.Client:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers=headers)

    return httpx.Client(transport=httpx.MockTransport(answer))


def test_batches_of_a_hundred_over_one_connection(store: GoalStore, letters: Path) -> None:
    fill(store, 250)
    with receiving() as receiver, HttpSink(receiver.url, dead_letter_path=letters) as sink:
        with send_events(store, sink) as consumer:
            assert consumer.drain(PATIENCE_SECONDS)
        assert [len(request.body["events"]) for request in receiver.requests] == [100, 100, 50]
        assert receiver.connections == 1
        check_delivery(receiver, logged(store))
    sent = [payload for request in receiver.requests for payload in request.body["events"]]
    assert sent == [AnalyticsEvent(event).payload for event in store.events()]
    assert {tuple(request.body) for request in receiver.requests} == {("events",)}
    assert receiver.requests[0].headers["Content-Type"] == "application/json"


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        ["429 Retry-After: 0", "200", "503 Retry-After: 1"],
        ["500", "502", "200", "504"],
        ["reset", "200", "reset"],
        ["taken, reset", "200", "taken, reset", "taken, reset"],
        ["taken, half a status", "200", "500", "taken, half a status"],
        ["half an answer", "half an answer", "reset"],
        ["stall", "200", "taken, stall"],
        ["taken, reset", "429", "reset", "500", "taken, half a status", "200", "408", "425"],
    ],
    ids=", ".join,
)
def test_nothing_is_lost_and_order_is_kept(
    store: GoalStore, letters: Path, script: list[str]
) -> None:
    fill(store, 350)
    stalls = any("stall" in answer for answer in script)
    with (
        receiving(*script) as receiver,
        httpx.Client(timeout=1.0 if stalls else PATIENCE_SECONDS) as client,
    ):
        sink = HttpSink(receiver.url, dead_letter_path=letters, client=client)
        with send_events(store, sink) as consumer:
            assert consumer.drain(PATIENCE_SECONDS)
        assert receiver.script == []
        if stalls:
            # A busy machine may be late with a 200 as well; then that acknowledgement was lost.
            taken = [event_id for request in receiver.taken for event_id in request.event_ids]
            assert [*dict.fromkeys(taken)] == logged(store)
        else:
            check_delivery(receiver, logged(store))
    assert letters.read_text() == ""


@pytest.mark.slow
@settings(max_examples=10)
@given(
    script=st.lists(
        st.sampled_from(
            [
                "200",
                "429",
                "429 Retry-After: 0",
                "500",
                "reset",
                "taken, reset",
                "half an answer",
                "taken, half a status",
            ]
        ),
        max_size=12,
    ),
    sizes=st.lists(st.integers(1, 120), min_size=1, max_size=4),
)
def test_whatever_the_server_does_in_whatever_order(
    tmp_path_factory: pytest.TempPathFactory, script: list[str], sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("http")
    with (
        GoalStore.open(folder / "goals.db", durability="normal") as store,
        receiving(*script) as receiver,
        HttpSink(receiver.url, dead_letter_path=folder / "refused.jsonl") as sink,
        send_events(store, sink) as consumer,
    ):
        for size in sizes:
            fill(store, size)
        assert consumer.drain(PATIENCE_SECONDS)
        check_delivery(receiver, logged(store))


def test_a_server_that_dies_and_comes_back(store: GoalStore, letters: Path) -> None:
    refused = threading.Event()
    with (
        receiving("200", "dies") as receiver,
        HttpSink(receiver.url, dead_letter_path=letters) as sink,
    ):

        def watched(events: Sequence[AnalyticsEvent]) -> None:
            try:
                sink(events)
            except DeliveryError as error:
                if "ConnectError" in str(error):
                    refused.set()
                raise

        fill(store, 250)
        with send_events(store, watched) as consumer:
            assert refused.wait(PATIENCE_SECONDS)
            store.clear("thread-1")
            receiver.start()
            assert consumer.drain(PATIENCE_SECONDS)
        check_delivery(receiver, logged(store))


@pytest.mark.slow
def test_retry_after_outlives_close_and_the_rest_comes_after_the_next_start(
    path: Path, letters: Path
) -> None:
    with (
        receiving("200", "429 Retry-After: 3600") as receiver,
        HttpSink(receiver.url, dead_letter_path=letters) as sink,
    ):
        with GoalStore.open(path) as store:
            fill(store, 150)
            consumer = send_events(store, sink)
            assert consumer.close(timeout_seconds=0.5) is False
            # Unasked, it would have come again within milliseconds.
            assert [request.answer for request in receiver.requests[1:]] == [
                "429 Retry-After: 3600"
            ]
        with GoalStore.open(path) as store:
            fill(store, 10)
            with send_events(store, sink) as consumer:
                assert consumer.drain(PATIENCE_SECONDS)
            check_delivery(receiver, logged(store))


SENDER = """
import sys, time
from goal_state import GoalStore
from goal_state.analytics import send_events
from goal_state.analytics.http import HttpSink
path, url, letters = sys.argv[1:]
with GoalStore.open(path) as store:
    sink = HttpSink(url, dead_letter_path=letters)
    send_events(store, sink)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_sender_that_is_killed_goes_on_after_the_next_start(path: Path, letters: Path) -> None:
    with GoalStore.open(path) as store, receiving("200", "taken, stall") as receiver:
        fill(store, 300)
        with running(SENDER, path, receiver.url, letters) as process:
            _wait_until(lambda: len(receiver.requests) == 2, process)
            process.kill()
            process.wait(PATIENCE_SECONDS)
        # The lease of the dead runs out in ten seconds, or at once.
        execute(path, "UPDATE goal_state_cursors SET lease_expires_at_ms = 0")
        with (
            HttpSink(receiver.url, dead_letter_path=letters) as sink,
            send_events(store, sink) as consumer,
        ):
            assert consumer.drain(PATIENCE_SECONDS)
        check_delivery(receiver, logged(store))
        # The second batch was taken, and nobody could tell.
        assert receiver.requests[2].event_ids == receiver.requests[1].event_ids


def _wait_until(condition: Any, process: Any) -> None:
    pause = threading.Event()
    for _ in range(round(PATIENCE_SECONDS / 0.01)):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        pause.wait(0.01)
    raise AssertionError("it never came to that")


@pytest.mark.parametrize("status", [200, 202, 204])
def test_every_2xx_is_an_acknowledgement(store: GoalStore, letters: Path, status: int) -> None:
    with answering(status) as client:
        sink = HttpSink("http://receiver.test/", dead_letter_path=letters, client=client)
        sink(one_event(store))
    assert letters.read_text() == ""


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 599])
def test_what_can_pass_is_tried_again(store: GoalStore, letters: Path, status: int) -> None:
    with answering(status) as client:
        sink = HttpSink("http://receiver.test/", dead_letter_path=letters, client=client)
        with pytest.raises(DeliveryError, match=str(status)) as failure:
            sink(one_event(store))
    assert failure.value.retry_after_seconds == 0.0
    assert letters.read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 413, 422, 431])
def test_what_is_refused_for_good_is_put_aside_and_blocks_nothing(
    store: GoalStore, letters: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, 250)
    with (
        receiving("200", str(status)) as receiver,
        HttpSink(receiver.url, dead_letter_path=letters) as sink,
    ):
        with send_events(store, sink) as consumer:
            assert consumer.drain(PATIENCE_SECONDS)
        events = [*store.events()]
        assert [request.event_ids for request in receiver.requests] == [
            [event.event_id for event in part]
            for part in (events[:100], events[100:200], events[200:])
        ]
    [line] = letters.read_text().splitlines()
    letter = json.loads(line)
    assert list(letter) == ["refused_at", "status_code", "event_ids", "events"]
    assert datetime.fromisoformat(letter["refused_at"]).utcoffset() is not None
    assert letter["status_code"] == status
    assert letter["event_ids"] == receiver.requests[1].event_ids
    assert letter["events"] == receiver.requests[1].body["events"]
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.name == "goal_state.analytics.http"
    redirected = ": a redirection, and none is followed" in record.getMessage()
    assert redirected == (status < 400)
    assert f"100 events for good (status {status}" in record.getMessage()
    assert ", positions 101 to 200)" in record.getMessage()
    assert str(letters) in record.getMessage()


def test_nothing_is_lost_while_a_refused_batch_cannot_be_put_aside(
    store: GoalStore, tmp_path: Path
) -> None:
    folder, elsewhere = tmp_path / "letters", tmp_path / "elsewhere"
    folder.mkdir()
    failed = threading.Event()
    with (
        receiving("400", "400") as receiver,
        HttpSink(receiver.url, dead_letter_path=folder / "refused.jsonl") as sink,
    ):

        def watched(events: Sequence[AnalyticsEvent]) -> None:
            try:
                sink(events)
            except OSError:
                folder.mkdir()
                failed.set()
                raise

        folder.rename(elsewhere)
        store.create("thread-1", "Ship it")
        with send_events(store, watched) as consumer:
            assert consumer.drain(PATIENCE_SECONDS)
    assert failed.is_set()
    [line] = (folder / "refused.jsonl").read_text().splitlines()
    assert json.loads(line)["event_ids"] == logged(store)


def test_the_dead_letter_file_is_its_owners_alone(store: GoalStore, letters: Path) -> None:
    before = os.umask(0)
    try:
        with answering(400) as client:
            HttpSink("http://receiver.test/", dead_letter_path=letters, client=client)(
                one_event(store)
            )
    finally:
        os.umask(before)
    assert letters.stat().st_mode & 0o777 == 0o600


NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("-5", 0.0),
        ("86400", 3600.0),
        ("9" * 400, 3600.0),
        ("9" * 5000, 0.0),
        (format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True), 0.0),
        ("soon", 0.0),
        ("", 0.0),
    ],
    ids=lambda value: str(value)[:30],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(
    store: GoalStore,
    letters: Path,
    monkeypatch: pytest.MonkeyPatch,
    header: str,
    seconds: float,
) -> None:
    events = one_event(store)
    monkeypatch.setattr("goal_state.analytics.http.time", lambda: float(NOW))
    with answering(503, {"Retry-After": header}) as client:
        sink = HttpSink("http://receiver.test/", dead_letter_path=letters, client=client)
        with pytest.raises(DeliveryError) as failure:
            sink(events)
    assert failure.value.retry_after_seconds == seconds


@pytest.mark.parametrize(("size", "seconds"), [(1000, 0.0), (1, 1.0)], ids=["endless", "dripping"])
def test_an_answer_without_end_holds_nothing_up(
    store: GoalStore, letters: Path, monkeypatch: pytest.MonkeyPatch, size: int, seconds: float
) -> None:
    sizes: list[int] = []
    events = one_event(store)
    # Each piece of the answer takes so many seconds.
    monkeypatch.setattr("goal_state.analytics.exchange.monotonic", lambda: len(sizes) * seconds)

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                sizes.append(size)
                yield b"x" * size

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Endless())

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        HttpSink("http://receiver.test/", dead_letter_path=letters, client=client)(events)
    assert 0 < len(sizes) < 100


@pytest.fixture(params=["own client", "host's client"])
def client(request: pytest.FixtureRequest) -> Iterator[httpx.Client | None]:
    """None, or a client of the host's whose every step may take longer than a test."""
    if request.param == "own client":
        yield None
    else:
        with httpx.Client(timeout=PATIENCE_SECONDS, follow_redirects=True) as client:
            yield client


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer", ["drips a status", "drips headers", "endless headers", "endless informational"]
)
def test_a_status_that_never_comes_ends_the_exchange_and_the_batch_comes_again(
    store: GoalStore, letters: Path, client: httpx.Client | None, answer: str
) -> None:
    fill(store, 150)
    with (
        receiving(answer) as receiver,
        HttpSink(
            receiver.url, dead_letter_path=letters, client=client, timeout_seconds=1.0
        ) as sink,
        send_events(store, sink) as consumer,
    ):
        assert receiver.left.wait(PATIENCE_SECONDS), "the connection is shut down"
        assert consumer.drain(PATIENCE_SECONDS)
        assert receiver.requests[1].event_ids == receiver.requests[0].event_ids
        check_delivery(receiver, logged(store))
    assert client is None or not client.is_closed


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["drips a body", "endless body", "endless gzip"])
def test_an_answer_whose_body_never_ends_is_an_acknowledgement_and_is_cut(
    store: GoalStore, letters: Path, client: httpx.Client | None, answer: str
) -> None:
    fill(store, 150)
    with (
        receiving(answer) as receiver,
        HttpSink(receiver.url, dead_letter_path=letters, client=client) as sink,
        send_events(store, sink) as consumer,
    ):
        assert consumer.drain(PATIENCE_SECONDS)
        assert receiver.left.wait(PATIENCE_SECONDS)
        assert len(receiver.requests) == 2
        check_delivery(receiver, logged(store))


@pytest.mark.slow
def test_a_drip_on_a_connection_that_was_the_hosts_before_holds_up_no_batch(
    store: GoalStore, letters: Path
) -> None:
    """Which connection it is cannot be known: it is left to the host's client, and another one is made."""
    fill(store, 250)
    with (
        receiving("200", "drips a status", "200") as receiver,
        httpx.Client(timeout=PATIENCE_SECONDS) as client,
    ):
        sink = HttpSink(receiver.url, dead_letter_path=letters, client=client, timeout_seconds=1.0)
        with send_events(store, sink) as consumer:
            assert consumer.drain(PATIENCE_SECONDS)
        assert receiver.connections == 2
        check_delivery(receiver, logged(store))
        assert not client.is_closed


def test_exchanges_that_cannot_be_ended_do_not_pile_up(store: GoalStore, letters: Path) -> None:
    let_go = threading.Event()
    calls: list[object] = []

    def hang(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        assert let_go.wait(PATIENCE_SECONDS)
        return httpx.Response(200)

    events = one_event(store)
    with httpx.Client(transport=httpx.MockTransport(hang)) as client:
        sink = HttpSink(
            "http://receiver.test/", dead_letter_path=letters, client=client, timeout_seconds=0.01
        )
        for _ in range(12):
            with pytest.raises(DeliveryError):
                sink(events)
        assert len(calls) == 8
        let_go.set()
        for thread in threading.enumerate():
            if thread.name == "goal-state exchange":
                thread.join(PATIENCE_SECONDS)
        HttpSink("http://receiver.test/", dead_letter_path=letters, client=client)(events)
        assert len(calls) == 9


@pytest.mark.slow
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["another host", "no URL"])
def test_no_redirection_is_followed_whatever_the_client_does(
    store: GoalStore,
    letters: Path,
    client: httpx.Client | None,
    status: int,
    to: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with receiving() as stranger:
        target = stranger.url if to == "another host" else "http://[bad/"
        with (
            receiving(f"{status} Location: {target}") as receiver,
            HttpSink(receiver.url, dead_letter_path=letters, client=client) as sink,
        ):
            sink(one_event(store))
        assert stranger.requests == []
        assert stranger.connections == 0
    assert json.loads(letters.read_text())["status_code"] == status
    assert "a redirection, and none is followed" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "event_id", ["ünïcode", "a,b", "line\r\nX-Evil: 1", " spaced ", "%41", "𝒢"]
)
def test_an_event_id_of_any_text_can_be_sent_and_read(
    store: GoalStore, letters: Path, event_id: str
) -> None:
    [sent] = one_event(store)
    odd = AnalyticsEvent(replace(sent.event, event_id=event_id))
    with receiving() as receiver, HttpSink(receiver.url, dead_letter_path=letters) as sink:
        sink([odd, sent])
    [request] = receiver.requests
    assert request.event_ids == [event_id, sent.event_id]
    assert sent.event_id in request.headers["Goal-Event-Ids"], "a UUID stands as it is"
    assert "X-Evil" not in request.headers


@pytest.mark.parametrize("seconds", [0, -1, 3601, float("nan"), float("inf"), True, "1", None])
def test_a_time_limit_out_of_bounds_is_refused_at_once(letters: Path, seconds: Any) -> None:
    with pytest.raises(InvalidValueError) as refusal:
        HttpSink("http://receiver.test/", dead_letter_path=letters, timeout_seconds=seconds)
    assert refusal.value.field == "timeout_seconds"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_talks_on_a_connection_of_its_own(letters: Path, store: GoalStore) -> None:
    events = one_event(store)
    with receiving() as receiver, HttpSink(receiver.url, dead_letter_path=letters) as sink:
        sink(events)
        child = os.fork()
        if child == 0:
            try:
                sink(events)
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        sink(events)
        assert len(receiver.requests) == 3
        assert receiver.connections == 2


def test_a_client_of_the_hosts_carries_its_headers_and_stays_open(
    store: GoalStore, letters: Path
) -> None:
    with (
        receiving() as receiver,
        httpx.Client(headers={"Authorization": "Bearer of tidings"}) as client,
    ):
        with HttpSink(receiver.url, dead_letter_path=letters, client=client) as sink:
            sink(one_event(store))
        assert receiver.requests[0].headers["Authorization"] == "Bearer of tidings"
        assert not client.is_closed


@pytest.mark.slow
def test_what_comes_after_closing_the_sink_is_kept(path: Path, letters: Path) -> None:
    with receiving() as receiver, ExitStack() as stack:
        sink = HttpSink(receiver.url, dead_letter_path=letters)
        sink.close()
        with GoalStore.open(path) as store:
            store.create("thread-1", "Ship it")
            assert send_events(store, sink).close(timeout_seconds=0.2) is False
            again = stack.enter_context(HttpSink(receiver.url, dead_letter_path=letters))
            with send_events(store, again) as consumer:
                assert consumer.drain(PATIENCE_SECONDS)
            check_delivery(receiver, logged(store))


@pytest.mark.parametrize(
    "url", ["", "receiver", "ftp://receiver.test/", "http://", "http://receiver.test:port/", None]
)
def test_what_is_no_url_is_refused_at_once(letters: Path, url: Any) -> None:
    with pytest.raises(InvalidValueError) as refusal:
        HttpSink(url, dead_letter_path=letters)
    assert refusal.value.field == "url"


def test_a_dead_letter_file_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HttpSink("http://receiver.test/", dead_letter_path=tmp_path / "missing" / "refused.jsonl")


def test_the_receiver_of_these_tests_can_tell_a_fault() -> None:
    """The check is a check: it sees a loss, a repeat of what was acknowledged, and a wrong order."""

    def took(*batches: tuple[str, str]) -> Receiver:
        receiver = Receiver()
        for answer, ids in batches:
            body = {"events": [{"id": event_id} for event_id in ids.split(",")]}
            receiver.requests.append(
                Request(answer, {"Goal-Event-Ids": ids}, body),
            )
        return receiver

    check_delivery(took(("200", "a,b"), ("taken, reset", "c"), ("200", "c,d")), "abcd")
    for faulty in (
        took(("200", "a,b"), ("200", "d")),
        took(("200", "a,b"), ("200", "b,c"), ("200", "d")),
        took(("200", "b,a"), ("200", "c,d")),
    ):
        with pytest.raises(AssertionError):
            check_delivery(faulty, "abcd")
