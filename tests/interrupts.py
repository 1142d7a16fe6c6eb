"""Signals that raise, wherever they strike the main thread."""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from goal_state.delivery.wake_up import WakeUp
from tests.processes import PATIENCE_SECONDS

__all__ = ["Interrupted", "interrupts"]


class Interrupted(Exception):  # noqa: N818
    """Raised by a signal handler, wherever it strikes."""


def interrupts(work: Callable[[], object], *, times: int) -> None:
    """Does the work again and again on the main thread, until it was struck so many times."""
    main = threading.main_thread().ident
    assert main is not None
    is_armed = False
    left = times
    handled = WakeUp()

    def handle(_: int, __: FrameType | None) -> None:
        nonlocal is_armed, left
        handled.set()
        if is_armed:  # in the work, and not struck already
            is_armed = False
            left -= 1
            raise Interrupted

    def strike() -> None:
        pauses, pause = random.Random(times), threading.Event()
        while left:
            pause.wait(pauses.uniform(0.0, 0.003))
            signal.pthread_kill(main, signal.SIGUSR1)
            if not handled.wait(PATIENCE_SECONDS):
                return

    def forget(what: sys.UnraisableHookArgs) -> None:
        # In a finaliser or a callback of the garbage collector nobody can be told of it.
        if not isinstance(what.exc_value, Interrupted):
            reports(what)

    reports, sys.unraisablehook = sys.unraisablehook, forget
    before = signal.signal(signal.SIGUSR1, handle)
    striking = threading.Thread(target=strike)
    striking.start()
    try:
        while left:
            try:
                while left:
                    is_armed = True  # again, should one have struck where Python can raise nothing
                    work()
            except Interrupted:
                pass
        is_armed = False
        striking.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
        sys.unraisablehook = reports
