"""Interrupts a thread in the middle of a call, as signal handlers, Ctrl-C and time limits do.

Three ways: a timer's signal on the main thread; `PyThreadState_SetAsyncExc` on any other thread; and a
counted one, raised at the n-th point inside the library at which CPython would deliver a signal (the start of
a function, the return from a C function), so that every window, however short, is interrupted as easily as
any other, and again with the same number.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar

import goal_state

Result = TypeVar("Result")

__all__ = [
    "STRIKES",
    "Guard",
    "Strike",
    "at",
    "failed",
    "forget_other_threads",
    "of_kind",
    "prepare",
    "was_unraisable",
]

_LIBRARY: Final = (
    str(Path(goal_state.__file__).parent),
    str(Path(__file__).with_name("faults.py")),  # what is put back is as it was in the library
)

_NEVER_LOGGED_BY: Final = (
    "goal_state.store",
    "goal_state.storage.sqlite.group_commit",
    "goal_state.storage.sqlite.readers",
)

_NO_POINT: Final = (len, isinstance, iter, next, type)
"""After these CPython does not look for signals."""

PATIENCE_SECONDS: Final = 10.0

_POINTS_FROM_COMMIT: Final = 30

_LATER_SECONDS: Final = 0.0001


class BareStrike(BaseException):
    """Derived from nothing that anybody catches."""


class KeyboardStrike(KeyboardInterrupt):
    """As Ctrl-C."""


class ExitStrike(SystemExit):
    """As a SIGTERM handler that calls `sys.exit`."""


class SoftStrike(Exception):  # noqa: N818
    """As the soft time limit of a task queue."""


Strike = (BareStrike, KeyboardStrike, ExitStrike, SoftStrike)
"""For `except`."""

STRIKES: Final = {kind.__name__: kind for kind in Strike}

AnyStrike = type[BareStrike] | type[KeyboardStrike] | type[ExitStrike] | type[SoftStrike]


def of_kind(name: str) -> AnyStrike:
    return STRIKES[name]


def _is_library(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_LIBRARY)


def counted(
    act: Callable[[], None], at: int, work: Callable[[], Result], *, from_commit: bool = False
) -> Result:
    """Does the work, and `act` (which may raise) at the n-th point in the library that it reaches, or that it
    reaches once it commits.
    """
    left, counts = at, not from_commit

    def at_point(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left, counts
        if event not in ("call", "c_return") or not _is_library(frame):
            return
        counts = counts or frame.f_code.co_name == "commit"
        if not counts:
            return
        if event == "c_return" and (
            argument in _NO_POINT or getattr(argument, "__name__", "") == "append"
        ):
            return
        left -= 1
        if left == 0:
            sys.setprofile(None)
            act()

    sys.setprofile(at_point)
    try:
        return work()
    finally:
        sys.setprofile(None)


_armed: Callable[[], None] | None = None
_unraisable: set[int] = set()
"""Threads in which a strike could only be reported: it came in a finalizer, say."""


failed: Final[deque[object]] = deque()
"""Positions of events in whose listener, not in the library, an exception struck."""


def _on_alarm(_number: int, frame: FrameType | None) -> None:
    global _armed
    if _armed is not None and _logs(frame):
        signal.setitimer(signal.ITIMER_REAL, _LATER_SECONDS)
        return
    act, _armed = _armed, None
    if act is not None:
        act()


def _logs(frame: FrameType | None) -> bool:
    """Whether Python's `logging` is at work: before 3.13 an exception could leave it locked for ever."""
    while frame is not None:
        if frame.f_code.co_filename == logging.__file__:
            return True
        frame = frame.f_back
    return False


def _on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    if isinstance(unraisable.exc_value, Strike):
        _unraisable.add(threading.get_ident())
    else:
        sys.__unraisablehook__(unraisable)


class _SeenInLogs(logging.Handler):
    """Notes strikes that code which is not the library's (a pool, a listener) could only log."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info and record.exc_info[1]
        if isinstance(error, Strike) and record.name not in _NEVER_LOGGED_BY:
            _unraisable.add(threading.get_ident())
            if record.name == "goal_state.delivery.listeners" and isinstance(record.args, tuple):
                failed.append(record.args[0])


def prepare() -> None:
    """To be called once, on the main thread."""
    logging.getLogger().addHandler(_SeenInLogs())
    signal.signal(signal.SIGALRM, _on_alarm)
    sys.unraisablehook = _on_unraisable


def was_unraisable() -> bool:
    """Whether a strike on this thread could only be reported or logged; asking forgets it."""
    thread = threading.get_ident()
    if thread not in _unraisable:
        return False
    _unraisable.discard(thread)
    return True


def on_timer(act: Callable[[], None], after_seconds: float, work: Callable[[], Result]) -> Result:
    """Does the work on the main thread, and `act` from a signal handler if it lasts so long."""
    global _armed
    try:
        _armed = act
        signal.setitimer(signal.ITIMER_REAL, after_seconds)
        return work()
    finally:
        _armed = None
        signal.setitimer(signal.ITIMER_REAL, 0)


def at(how: str, when: float, act: Callable[[], None], work: Callable[[], Result]) -> Result:
    """Does the work, and `act` at a point of it ("counted"), of what follows its commit ("committed"), or at
    a time.
    """
    if how == "counted":
        return counted(act, int(when), work)
    if how == "committed":
        return counted(act, 1 + int(when) % _POINTS_FROM_COMMIT, work, from_commit=True)
    return on_timer(act, when / 50_000, work)


class _Nothing(BaseException):
    """Raised to be caught at once."""


def forget_other_threads() -> None:
    """To be called in a forked child. An exception that was on its way to a thread of the parent's leaves
    CPython 3.11 looking for it for ever, and with a profiler set it does nothing else; one that comes to
    this thread ends that.
    """
    try:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(threading.get_ident()), ctypes.py_object(_Nothing)
        )
        while True:
            time.sleep(0)
    except _Nothing:
        return


class Guard:
    """Lets one thread be struck by others inside `call`, and nowhere else."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._is_open = False
        self._is_sending = False
        self._is_sent = False

    def strike(self, kind: AnyStrike) -> bool:
        """Called by another thread; whether the exception was sent."""
        self._is_sending = True
        try:
            if not self._is_open or self._is_sent:
                return False
            self._is_sent = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread), ctypes.py_object(kind)
            )
            return True
        finally:
            self._is_sending = False

    def call(self, work: Callable[[], Result]) -> Result:
        """Does the work. At its end it waits for an exception that is on its way."""
        self._is_sent = False
        self._is_open = True
        try:
            return work()
        except Strike:
            self._is_sent = False
            raise
        finally:
            self._is_open = False
            while self._is_sending:
                time.sleep(0)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while self._is_sent and not was_unraisable():
                if time.monotonic() > deadline:
                    raise AssertionError("an exception that was sent to a thread never came")
                time.sleep(0.0001)
