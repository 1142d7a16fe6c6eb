"""Interrupts the library by an exception or a signal at a chosen bytecode, where CPython delivers them.

A trace function that raises would interrupt between any two bytecodes, also where CPython never checks for
pending exceptions (such as right before the exit of a `with`): it would find faults that cannot occur. Here
the trace function only makes an exception or a signal *pending*. It does so by an operator written in C: no
bytecode, which could itself be interrupted, runs between that and the return of the trace function. The
interpreter then delivers at its next check, for signal handlers and for `PyThreadState_SetAsyncExc` alike. So
every interrupted point is a real one, and in time each of them is reached.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

import goal_state

__all__ = [
    "Limit",
    "Strike",
    "Struck",
    "chain",
    "collect_unraisable",
    "count_steps",
    "frames",
    "kinds",
    "strike_class",
    "struck_at",
    "take_unraisable",
]

SIGNAL: Final = signal.SIGUSR1

_PACKAGE: Final = str(Path(goal_state.__file__).parent)
_TRACED: Final = (_PACKAGE, contextlib.__file__)


class Struck(BaseException):
    """The root of what is thrown in, however it is to look."""


class Limit(Struck, Exception):  # noqa: N818
    """What a worker's soft time limit looks like: an ordinary exception."""


class Stop(Struck, KeyboardInterrupt):
    """Control-C."""


class Exit(Struck, SystemExit):
    """The end of the process."""


kinds: Final = (Struck, Limit, Stop, Exit)


def strike_class(number: int) -> type[Struck]:
    """A class for one strike alone, so that it is known again wherever it turns up."""
    return type(f"Strike{number}", (kinds[number % len(kinds)],), {})


def chain(error: BaseException | None) -> Iterator[Struck]:
    """Every strike in an exception: itself, and those that it came upon while they were on their way."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Struck):
            yield one
        todo += [one.__context__, one.__cause__]


def frames(error: BaseException) -> Iterator[FrameType]:
    """Where an exception was, the outermost frame first."""
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def struck_at(error: BaseException) -> str | None:
    """The innermost line of the library that an exception came through."""
    traceback, found = error.__traceback__, None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_filename.startswith(_TRACED):
            found = f"{Path(code.co_filename).stem}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found


_reported: Final[list[Any]] = []


def collect_unraisable() -> None:
    """From here on `take_unraisable` says what CPython could raise to nobody. In a process of its own: in one
    of pytest's, its own hook fails the test.
    """
    # In C: the next exception could strike a hook of bytecodes, and nobody would hear of either.
    sys.unraisablehook = _reported.append


def take_unraisable() -> list[BaseException]:
    """What CPython could raise to nobody since it was asked for last: the exceptions that struck a
    finaliser. Others are printed.
    """
    found: list[BaseException] = []
    while _reported:
        what = _reported.pop()
        if isinstance(what.exc_value, Struck):
            found.append(what.exc_value)
        else:
            sys.__unraisablehook__(what)
    return found


def _operator(function: Callable[[], object]) -> Any:
    """An object whose negation calls a function written in C."""
    return type("Operator", (), {"__neg__": staticmethod(function)})()


def asynchronous(error: type[Struck], thread: int | None = None) -> Any:
    """Negated, it makes an exception pending in a thread: by default in the one that asks now."""
    number = threading.get_ident() if thread is None else thread
    set_async = ctypes.pythonapi.PyThreadState_SetAsyncExc
    return _operator(functools.partial(set_async, ctypes.c_ulong(number), ctypes.py_object(error)))


def arriving_signal() -> Any:
    """Negated, it makes a signal pending, for the main thread to handle."""
    return _operator(functools.partial(ctypes.pythonapi.PyErr_SetInterruptEx, int(SIGNAL)))


class Strike:
    """One call of the library, in which something becomes pending at the n-th bytecode.

    As a context manager around the call: tracing is on inside.
    """

    def __init__(self, steps: int, operator: Any) -> None:
        """
        Args:
            steps: at which bytecode of the library, from 1.
            operator: from `asynchronous` or `arriving_signal`.
        """
        self._left = steps
        self._operator = operator
        self.armed = False
        # CPython calls it without a reference of its own: removed while it is called, it must not be freed.
        self._tracer = self._trace

    def __enter__(self) -> Self:
        sys.settrace(self._tracer)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def again(self, steps: int, operator: Any, frame: FrameType | None) -> None:
        """From inside a signal's handler: once more, so many bytecodes after it."""
        self._left, self._operator, self.armed = steps, operator, False
        while frame is not None:
            if frame.f_code.co_filename.startswith(_TRACED):
                frame.f_trace, frame.f_trace_opcodes, frame.f_trace_lines = self._trace, True, False
            frame = frame.f_back
        sys.settrace(self._tracer)

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if event == "opcode":
            self._left -= 1
            if self._left == 0:
                sys.settrace(None)
                self.armed = True
                operator = self._operator
                -operator  # noqa: B018 - nothing but a return must come behind it
                return None
            return self._trace
        if event == "call":
            if not frame.f_code.co_filename.startswith(_TRACED):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._trace


def count_steps(call: Callable[[], object]) -> int:
    """How many bytecodes of the library a call runs through."""
    most = 1 << 60
    strike = Strike(most, None)
    with strike:
        call()
    return most - strike._left
