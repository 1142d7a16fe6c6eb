"""One HTTP request and its answer, within one time limit for all of it. Needs `goal-state[http]`.

An HTTP client limits each step, and a receiver that sends a byte now and then makes each step in time for
ever. So the exchange runs on a thread of its own, whose caller stops waiting when the time is over; then
the connection is shut down, where it is the exchange's alone, and the thread ends by that.
"""

from __future__ import annotations

import contextvars
import os
import socket
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, Final, NamedTuple

import httpx

from goal_state.delivery.wake_up import WakeUp
from goal_state.errors import DeliveryError

__all__ = ["Answer", "Exchanges"]

_STEP_SECONDS: Final = 10.0
_READ_OUT_SECONDS: Final = 2.0
"""What the rest of an answer may take whose status is known: it only saves making a new connection."""
_MAX_ANSWER_BYTES: Final = 64 * 2**10
_MAX_GIVEN_UP: Final = 8
"""Exchanges that were given up and still hang: on what nobody here can shut down, a name server perhaps."""


class Answer(NamedTuple):
    """What counts of an answer."""

    status_code: int
    retry_after: str | None = None


class _GivenUpError(httpx.TimeoutException):
    """Raised on the exchange's own thread, where nobody waits for it any more."""


class _Line:
    """A client, and the connections that were made on it for us; after `cut` they lead nowhere."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.is_cut = False
        self._streams: deque[Any] = deque(maxlen=4)  # one connection with what it was wrapped in

    def connected(self, stream: Any) -> None:
        """Keeps a connection that was just made, to be cut with the line."""
        read = stream.read

        def read_unless_cut(max_bytes: int, timeout: float | None = None) -> bytes:
            # A receiver that never stops sending is read on after its connection was shut down.
            if self.is_cut:
                raise _GivenUpError("given up")
            return read(max_bytes, timeout)

        stream.read = read_unless_cut
        self._streams.append(stream)
        if self.is_cut:
            _shut_down(stream)

    def cut(self) -> None:
        """Ends what goes on on these connections."""
        self.is_cut = True
        for stream in list(self._streams):
            _shut_down(stream)


class Exchanges:
    """Posts to one URL. Several threads may do so at once.

    Args:
        url: where to.
        client: the host's, which is never closed; None for clients of our own, each for one exchange at a
            time, so that what hangs can be ended without hurting another.
        timeout_seconds: from the name look-up to the status of the answer.
    """

    def __init__(self, url: httpx.URL, client: httpx.Client | None, timeout_seconds: float) -> None:
        self._url = url
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._is_closed = False
        self._process_id = os.getpid()
        self._idle: deque[_Line] = deque()
        self._given_up: list[_Exchange] = []
        if client is None:
            self._idle.append(_new_line())

    def post(self, body: str, headers: Mapping[str, str]) -> Answer:
        """Posts, following no redirection, and returns how that was answered.

        Raises:
            DeliveryError: there was no answer in time.
            httpx.HTTPError: there was none at all.
        """
        if self._is_closed:
            raise DeliveryError("the sink was closed; make a new one")
        self._given_up = [one for one in self._given_up if not one.has_finished]
        if len(self._given_up) >= _MAX_GIVEN_UP:
            raise DeliveryError(f"{_MAX_GIVEN_UP} requests hang that were given up")
        ends = monotonic() + self._timeout_seconds
        line = self._line()
        exchange = _Exchange(line, self._url, body, headers, is_own=self._client is None)
        try:
            exchange.start()
            exchange.answered.wait(ends - monotonic())
            if exchange.answer is not None:
                exchange.finished.wait(min(_READ_OUT_SECONDS, ends - monotonic()))
        finally:
            if exchange.has_finished:
                self._give_back(line)
            else:
                self._given_up.append(exchange)
                exchange.give_up()
        if exchange.answer is not None:
            return exchange.answer
        if exchange.error is not None:
            raise exchange.error
        raise DeliveryError(f"the receiver did not answer within {self._timeout_seconds:g} s")

    def close(self) -> None:
        """Closes our own connections; what is under way closes its own when it ends."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().client.close()

    def _line(self) -> _Line:
        if self._client is not None:
            return _Line(self._client)
        if self._process_id != os.getpid():
            # The connections are the parent's, who talks on them: they are not even to be closed here.
            _inherited.append(self._idle)
            self._process_id, self._idle, self._given_up = os.getpid(), deque(), []
        try:
            return self._idle.pop()
        except IndexError:
            return _new_line()

    def _give_back(self, line: _Line) -> None:
        if self._client is None:
            self._idle.append(line)
            if self._is_closed:
                self.close()


_inherited: Final[list[object]] = []


def _new_line() -> _Line:
    return _Line(httpx.Client(timeout=_STEP_SECONDS))


def _shut_down(stream: Any) -> None:
    # Not closed: its thread may be about to read, and the number may be another file's by then.
    connection: socket.socket | None = stream.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):  # it is closed
            connection.shutdown(socket.SHUT_RDWR)


class _Exchange:
    """A request on its way, on a daemon thread."""

    def __init__(
        self, line: _Line, url: httpx.URL, body: str, headers: Mapping[str, str], *, is_own: bool
    ) -> None:
        self._line = line
        self._url, self._body, self._headers = url, body, headers
        self._is_own = is_own
        self._is_given_up = False
        self._shares_connections = False
        self._status_code: int | None = None
        self.answered, self.finished = WakeUp(), WakeUp()
        self._has_run = False
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._run,),
            name="goal-state exchange",
            daemon=True,
        )
        self.answer: Answer | None = None
        self.error: BaseException | None = None

    @property
    def has_finished(self) -> bool:
        """Whether nothing of it goes on: it came to its end, or never began."""
        return self._has_run or not self._thread.is_alive()

    def start(self) -> None:
        """Begins, in the context of the caller."""
        self._thread.start()

    def give_up(self) -> None:
        """Nobody waits for it any more: it sends nothing more, and its connection is shut down."""
        self._is_given_up = True
        if self._is_own or not self._shares_connections:
            self._line.cut()
        if self.has_finished:
            self._close_own()

    def _run(self) -> None:
        try:
            with self._line.client.stream(
                "POST",
                self._url,
                content=self._body,
                headers=self._headers,
                follow_redirects=False,
                extensions={"trace": self._trace},
            ) as response:
                self.answer = Answer(response.status_code, response.headers.get("Retry-After"))
                self.answered.set()
                self._read_out(response)
        except BaseException as error:  # the caller's to raise
            self.error = error
            if self.answer is None and self._status_code is not None:
                # A redirection to what is no URL raises, though nobody wants to follow it.
                self.answer = Answer(self._status_code)
        finally:
            self._has_run = True
            if self._is_given_up:
                self._close_own()
            self.answered.set()
            self.finished.set()

    def _read_out(self, response: httpx.Response) -> None:
        """Reads the answer to its end, so that the connection can be used again; but not at any price, and
        as it comes: what is packed stays packed.
        """
        if response.is_stream_consumed:  # by a hook of the host's client
            return
        ends = monotonic() + _READ_OUT_SECONDS
        with suppress(httpx.HTTPError):
            for _ in response.iter_raw():
                if response.num_bytes_downloaded > _MAX_ANSWER_BYTES or monotonic() > ends:
                    return

    def _trace(self, step: str, details: Mapping[str, Any]) -> None:
        """What httpcore tells of: each step as it begins and ends."""
        if step.startswith("http2."):  # other requests of the host's may be on it too
            self._shares_connections = True
        if step.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._line.connected(details["return_value"])
        elif step.endswith(".receive_response_headers.complete"):
            status_code = next(one for one in details["return_value"] if isinstance(one, int))
            self._status_code = status_code if 300 <= status_code < 400 else None
        elif step.endswith(".started") and self._is_given_up and "close" not in step:
            raise _GivenUpError("given up")

    def _close_own(self) -> None:
        if self._is_own:
            self._line.client.close()
