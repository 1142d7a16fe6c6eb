"""A bell: how one thread wakes another that waits for it.

`threading.Event` and `Condition` are Python code around a lock. A signal handler that raises while a thread
is inside one may leave that lock held, and every later call of anybody waits for ever. A bell is one call of
a lock, which happens whole or not at all.
"""

from __future__ import annotations

import threading
from typing import Final

__all__ = ["Bell"]


class Bell:
    """Rung by anybody, from a signal handler too, without ever waiting; heard once by the one who waits."""

    __slots__ = ("_silence",)

    def __init__(self) -> None:
        self._silence: Final = threading.Lock()  # held until it rings
        self._silence.acquire()

    def ring(self) -> None:
        """Wakes who waits, or who waits next. Ringing before it was heard changes nothing."""
        try:  # noqa: SIM105 - `suppress` would be Python code around the lock again
            self._silence.release()
        except RuntimeError:  # it rings already
            pass

    def wait(self, seconds: float) -> bool:
        """Waits until it rings; False if it did not within so many seconds."""
        return self._silence.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))
