"""The queue of messages for one client: sent in order, on a thread of its own, so that nobody waits."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Final, Protocol

from goal_state.codex.messages import Message
from goal_state.delivery.wake_up import WakeUp

__all__ = ["Connection", "Outbox"]

_logger = logging.getLogger(__name__)

_MAX_WAITING: Final = 1000
"""Messages that may wait for a client. A client that is further behind is dropped."""
_LOOK_SECONDS: Final = 0.1
"""How often `flush` checks whether the sending thread is still alive."""


class Connection(Protocol):
    """A client's end: whatever can send it a message. It may block, and it may raise."""

    def send(self, message: Message, /) -> object:
        """Sends a JSON-RPC message."""
        ...


class Outbox:
    """The queue of one connection, emptied by a thread that lives while there is something to send.

    A connection that raises is dropped, whatever it raises. A caller that is interrupted leaves nothing
    locked; what it had queued already is sent with the next message, or by `flush`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages: deque[Message] = deque()
        # Plain locks: a Condition's would stay held by a caller that is interrupted inside it.
        self._lock = threading.Lock()
        self._waiting: set[WakeUp] = set()
        self._sender: threading.Thread | None = None
        self._dropped = False

    @property
    def is_dropped(self) -> bool:
        """Whether the connection failed or was too slow, so that nothing more is sent."""
        return self._dropped

    def put(self, *messages: Message) -> bool:
        """Queues messages, with nobody else's between them; False if the connection was dropped."""
        with self._lock:
            if not self._dropped and len(self._messages) + len(messages) > _MAX_WAITING:
                _logger.warning("a connection is %d messages behind and was dropped", _MAX_WAITING)
                self._drop()
            if self._dropped:
                return False
            self._messages.extend(messages)
        self._ensure_sender()
        return True

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until all is sent (or the connection was dropped); False if time ran out."""
        ends = time.monotonic() + timeout_seconds
        wake_up = WakeUp()
        self._waiting.add(wake_up)
        try:
            while not self._dropped and (self._messages or self._is_sending()):
                left = ends - time.monotonic()
                if left <= 0:
                    return False
                self._ensure_sender()
                wake_up.wait(min(left, _LOOK_SECONDS))
            return True
        finally:
            self._waiting.discard(wake_up)

    def drop(self) -> None:
        """Sends nothing more."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        self._dropped = True
        self._messages.clear()
        self._wake_waiting()

    def _wake_waiting(self) -> None:
        for wake_up in list(self._waiting):
            wake_up.set()

    def _is_sending(self) -> bool:
        sender = self._sender
        return sender is not None and sender.is_alive()

    def _ensure_sender(self) -> None:
        # Two callers may each start a thread: the second one finds the first sending, and ends.
        if self._messages and not self._is_sending():
            threading.Thread(target=self._send_all, name="goal-state outbox", daemon=True).start()

    def _send_all(self) -> None:
        with self._lock:
            if self._is_sending():
                return
            self._sender = threading.current_thread()
        while True:
            with self._lock:
                if not self._messages:
                    self._sender = None
                    self._wake_waiting()
                    return
                message = self._messages.popleft()
            try:
                self._connection.send(message)
            except BaseException as error:
                _logger.warning("a connection failed (%s) and was dropped", type(error).__name__)
                with self._lock:
                    self._sender = None
                    self._drop()
                return
