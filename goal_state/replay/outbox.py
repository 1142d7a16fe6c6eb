"""One client's messages on their way: in order, and never in the way of anybody else's."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Final, Protocol

from goal_state.replay.restored import Message

__all__ = ["Connection", "Outbox"]

_logger = logging.getLogger(__name__)

_MAX_WAITING: Final = 1000
"""Messages that may wait for a client. One that is further behind is slow beyond hope and is dropped."""


class Connection(Protocol):
    """A client's end: whatever can send it a message. It may block, and it may raise."""

    def send(self, message: Message, /) -> object:
        """Sends a JSON-RPC message."""
        ...


class Outbox:
    """The queue of one connection, emptied by a thread that lives while there is something to send."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages: deque[Message] = deque()
        self._changed = threading.Condition()
        self._sending = False
        self._dropped = False

    @property
    def is_dropped(self) -> bool:
        """Whether the connection failed or was too slow, so that nothing more is sent."""
        return self._dropped

    def put(self, *messages: Message) -> bool:
        """Queues messages, with nobody else's between them; False if the connection was dropped."""
        with self._changed:
            if not self._dropped and len(self._messages) + len(messages) > _MAX_WAITING:
                _logger.warning("a connection is %d messages behind and was dropped", _MAX_WAITING)
                self._drop()
            if self._dropped:
                return False
            self._messages.extend(messages)
            if not self._sending:
                self._sending = True
                threading.Thread(
                    target=self._send_all, name="goal-state outbox", daemon=True
                ).start()
            return True

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until all is sent (or the connection was dropped); False if time ran out."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._dropped or not (self._messages or self._sending), timeout_seconds
            )

    def drop(self) -> None:
        """Sends nothing more."""
        with self._changed:
            self._drop()

    def _drop(self) -> None:
        self._dropped = True
        self._messages.clear()
        self._changed.notify_all()

    def _send_all(self) -> None:
        while True:
            with self._changed:
                if not self._messages:
                    self._sending = False
                    self._changed.notify_all()
                    return
                message = self._messages.popleft()
            try:
                self._connection.send(message)
            except Exception as error:
                _logger.warning("a connection failed (%s) and was dropped", type(error).__name__)
                with self._changed:
                    self._sending = False
                    self._drop()
                return
