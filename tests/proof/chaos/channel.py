"""JSON lines between the driver and its workers, over a socket that each worker makes itself: so a forked
child has one of its own, too.
"""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

__all__ = ["Channel", "Message"]

Message = dict[str, Any]


class Channel:
    """A worker's end."""

    def __init__(self, place: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(place))
        self._lines = self._socket.makefile("rb")
        self._lock = threading.Lock()

    def say(self, message: Message) -> None:
        """Sends a message. When this returns, it outlives the process."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._socket.sendall(line)

    def hear(self) -> Message | None:
        """The next message; None once the driver is gone."""
        line = self._lines.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        """Closes this end (in a forked child: the child's copy of it)."""
        self._lines.close()
        self._socket.close()
