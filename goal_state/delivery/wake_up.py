"""How one thread wakes another one that waits, safe against asynchronous exceptions.

`threading.Event` and `Condition` are Python code around a lock. A signal handler that raises while a thread
is inside that code may leave the lock held, and every later call on it waits for ever. Each operation of a
`WakeUp` is one call of a lock, which happens whole or not at all.
"""

from __future__ import annotations

import threading
from typing import Final

__all__ = ["WakeUp"]


class WakeUp:
    """An auto-reset event: any thread may set it, and one wait consumes it. Setting it never blocks, not
    even from a signal handler.
    """

    __slots__ = ("_unset",)

    def __init__(self) -> None:
        self._unset: Final = threading.Lock()  # held until `set`
        self._unset.acquire()

    def set(self) -> None:
        """Wakes the thread that waits, or the next one to wait. Setting it twice wakes one wait only."""
        if not self._unset.locked():  # it is already set: an error would cost more than to ask
            return
        try:  # noqa: SIM105 - `suppress` would be Python code around the lock again
            self._unset.release()
        except RuntimeError:  # by now it is
            pass

    def wait(self, seconds: float) -> bool:
        """Waits until it is set, and resets it; False if it was not set within so many seconds."""
        return self._unset.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))
