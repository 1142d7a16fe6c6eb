"""An HTTP server on loopback that answers as a script says, and keeps what it was sent."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

__all__ = ["Receiver", "Request", "check_delivery", "receiving"]

TAKING = frozenset(
    {
        "200",
        "half an answer",
        "taken, reset",
        "taken, stall",
        "taken, half a status",
        "drips a body",
        "endless body",
        "endless gzip",
    }
)
"""The answers of a receiver that has taken the batch."""

ACKNOWLEDGING = frozenset({"200", "half an answer", "drips a body", "endless body", "endless gzip"})
"""Those from which the sender can tell."""

OK = b"HTTP/1.1 200 OK\r\n"

ENDLESS = {
    "drips a status": (b"HTTP/1.1 200 ", b"O", 0.01),
    "drips headers": (OK, b"X-Drop: 1\r\n", 0.05),
    "endless headers": (OK, b"X-Drop: 1\r\n" * 100, 0.0),
    "endless informational": (b"", b"HTTP/1.1 102 Processing\r\n\r\n", 0.0),
    "drips a body": (OK + b"Content-Length: 1000000000\r\n\r\n", b"x", 0.01),
    "endless body": (OK + b"Content-Length: 1000000000000\r\n\r\n", b"x" * 65536, 0.0),
    "endless gzip": (
        OK + b"Content-Encoding: gzip\r\nContent-Length: 1000000000000\r\n\r\n",
        gzip.compress(bytes(2**20)),
        0.0,
    ),
}
"""How each begins, what follows again and again, and after how many seconds."""


@dataclass
class Request:
    answer: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def event_ids(self) -> list[str]:
        return [unquote(one) for one in self.headers["Goal-Event-Ids"].split(",")]


@dataclass
class Receiver:
    """Answers as the script says, request by request, and with 200 when it has come to its end.

    Answers: a status ("429", "500"), or one and a `Retry-After` ("503 Retry-After: 7"); "reset" and
    "stall"; the same after it took the batch ("taken, reset" …); "half an answer": all of the status and
    the headers, half of the body; "dies": nothing listens any more until `start`. Without an end, until the
    client goes away: "drips a status", "drips headers", "endless headers", "endless informational", and,
    after a 200, "drips a body", "endless body", "endless gzip".
    """

    script: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a client has gone away from an answer without an end."""
    _server: ThreadingHTTPServer | None = None
    _pause: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"

    @property
    def taken(self) -> list[Request]:
        return [request for request in self.requests if request.answer in TAKING]

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                receiver.connections += 1

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = receiver.script.pop(0) if receiver.script else "200"
                receiver.requests.append(Request(answer, dict(self.headers), body))
                receiver.answer(self, answer.removeprefix("taken, "))

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        serving = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        serving.start()

    def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, answer: str) -> None:
        if answer in ENDLESS:
            start, piece, pause = ENDLESS[answer]
            handler.close_connection = True
            try:
                handler.wfile.write(start)
                while True:
                    handler.wfile.write(piece)
                    self._pause.wait(pause)
            except OSError:
                self.left.set()
        elif answer == "reset":
            reset(handler)
        elif answer == "stall":
            handler.rfile.read(1)  # until the client goes away
            handler.close_connection = True
        elif answer == "dies":
            self.stop()
            reset(handler)
        elif answer == "half a status":
            handler.wfile.write(b"HTTP/1.1 20")
            handler.close_connection = True
        elif answer == "half an answer":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            handler.close_connection = True
        else:
            status, _, header = answer.partition(" ")
            handler.send_response(int(status))
            if header:
                handler.send_header(*header.split(": "))
            handler.send_header("Content-Length", "2")
            handler.end_headers()
            handler.wfile.write(b"{}")


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Ends the connection with RST."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.wfile.close()
    handler.rfile.close()
    handler.connection.close()
    handler.close_connection = True


@contextmanager
def receiving(*script: str) -> Iterator[Receiver]:
    receiver = Receiver(list(script))
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


def check_delivery(receiver: Receiver, event_ids: Iterable[str]) -> None:
    """Everything arrived, in order; what arrived twice did so because an acknowledgement was lost."""
    seen: dict[str, Any] = {}
    acknowledged: set[str] = set()
    for request in receiver.taken:
        assert len(request.event_ids) == len(request.body["events"]) <= 100
        for event_id, payload in zip(request.event_ids, request.body["events"], strict=True):
            assert event_id not in acknowledged
            assert seen.setdefault(event_id, payload) == payload
        if request.answer in ACKNOWLEDGING:
            acknowledged.update(request.event_ids)
    assert list(seen) == list(event_ids)
