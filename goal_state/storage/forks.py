"""Closing database connections before `os.fork()`.

A child inherits SQLite's bookkeeping of the files that its parent has open, but none of the locks: a
connection that the child opened would take no lock, and could delete the log under its parent. So every
holder of a connection closes it before the fork and reconnects at its next use, in parent and child alike.
Where a holder cannot close it, the child may never open that file: it is barred.

"Interrupted" means that an exception was raised in a thread at an arbitrary instruction: by a signal handler
or by `PyThreadState_SetAsyncExc`.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from goal_state.errors import ForkedStoreError
from goal_state.storage.locks import is_mine

__all__ = [
    "FileIdentity",
    "Holder",
    "check_not_barred",
    "register",
    "until_held",
    "while_connecting",
]

Result = TypeVar("Result")

FileIdentity = tuple[int, int]
"""A file's device and inode."""

_BRIEF_USE_SECONDS: Final = 10.0
"""How long a fork waits for another thread that opens, copies or migrates a database."""

_MAX_TRIES: Final = 10_000
"""How often releasing the holders is tried in all, if it is interrupted again and again."""


class Holder(Protocol):
    """Keeps connections open between calls."""

    def let_go(self) -> bool:
        """Closes every connection, in the thread that is about to fork, and blocks new ones until the fork
        is over; False if that does not succeed within the busy timeout.
        """
        ...

    def after_fork(self, *, in_child: bool, let_go: bool) -> None:
        """The fork is over, or failed. Called in the same thread, in parent and child."""
        ...

    @property
    def files(self) -> list[FileIdentity]:
        """The files that the connections lead to."""
        ...


class _BriefUse:
    """The connections of one thread for the length of one call."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        # Held by its thread while it has a connection. Reentrant, so that a fork from inside the call (in a
        # signal handler or a callback) can tell that the call is its own thread's.
        self.lock = threading.RLock()


_gate = threading.RLock()
"""Held during a fork, and by a thread while it begins a brief use."""

_holders: dict[int, weakref.ref[Holder]] = {}
_brief_uses: dict[int, _BriefUse] = {}
_let_go: list[tuple[Holder, bool]] = []
_barred: set[FileIdentity] = set()
_was_mine = False
"""Whether the forking thread (in a signal handler) had the gate already, to begin a brief use."""
_unheld: set[object] = set()
"""A mark for each connection that has no holder: not yet, or never, since its thread was interrupted."""


def register(holder: Holder) -> None:
    """From now on the holder's methods are called at each fork, until it is collected."""
    key = id(holder)
    _holders[key] = weakref.ref(holder, lambda _: _holders.pop(key, None) and None)


def while_connecting(path: str | None, work: Callable[[], Result]) -> Result:
    """Runs work that opens connections and closes them again, or gives them to a holder. Forks wait for it.

    Args:
        path: the file that the connections lead to, if it is known.
        work: what to do.
    """
    use = _BriefUse(path)
    try:
        with use.lock:
            with _gate:
                _brief_uses[id(use)] = use
            return until_held(work)
    finally:
        _brief_uses.pop(id(use), None)


def until_held(work: Callable[[], Result]) -> Result:
    """Runs work that makes a connection and gives it to a holder. One that is lost in between, by an
    interruption, is collected before the next fork.
    """
    mark = object()
    _unheld.add(mark)
    result = work()
    _unheld.discard(mark)
    return result


def check_not_barred(path: str) -> None:
    """Makes sure that this process may open a file.

    Raises:
        ForkedStoreError: it was forked while its parent could not close its connections to the file.
    """
    if _barred and _identity(path) in _barred:
        raise ForkedStoreError(
            f"this process was forked while its parent could not close {path!r}; fork when no transaction,"
            " export or backup is open, or start a new process instead (spawn, exec)"
        )


def _identity(path: str | None) -> FileIdentity | None:
    if not path:
        return None
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_over(use: _BriefUse, deadline: float) -> bool:
    """Waits for the brief use of another thread to end; False if it has not ended at the deadline."""
    if is_mine(use.lock):
        return False
    if not use.lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
        return False
    use.lock.release()
    return True


class _Cycle:
    """Garbage that only the collector of cycles frees."""

    def __init__(self) -> None:
        self.itself = self


def _collect(deadline: float) -> None:
    """Collects garbage, also while another thread does so, when `gc.collect()` returns without collecting."""
    while True:
        cycle = weakref.ref(_Cycle())
        gc.collect()
        if cycle() is None or time.monotonic() > deadline:
            return
        time.sleep(0.001)


def _before_fork() -> None:
    global _was_mine
    _was_mine = is_mine(_gate)
    _gate.acquire()
    deadline = time.monotonic() + _BRIEF_USE_SECONDS
    for use in list(_brief_uses.values()):
        if _is_over(use, deadline):
            _brief_uses.pop(id(use), None)
    for reference in list(_holders.values()):
        holder = reference()
        if holder is not None:
            # Noted first, so that its locks are released even if it fails half-way.
            _let_go.append((holder, False))
            _let_go[-1] = (holder, holder.let_go())
    if _unheld:
        # A lost connection has no reference; it closes when it is collected.
        _unheld.clear()
        _collect(deadline)


def _after_fork(*, in_child: bool) -> None:
    interruption: BaseException | None = None
    tries = 0
    while _let_go:
        try:
            tries += 1
            holder, let_go = _let_go[-1]
            if in_child and not let_go:
                _barred.update(holder.files)
            holder.after_fork(in_child=in_child, let_go=let_go)
            _let_go.pop()
        except BaseException as error:  # a signal handler's: first release every lock
            interruption = error
            if tries > _MAX_TRIES:
                _let_go.clear()
    if in_child:
        _barred.update(
            identity
            for use in _brief_uses.values()
            if (identity := _identity(use.path)) is not None
        )
        _brief_uses.clear()
    while is_mine(_gate):
        _gate.release()
        if _was_mine:
            break
    if interruption is not None:
        raise interruption


def _after_fork_in_parent() -> None:
    _after_fork(in_child=False)


def _after_fork_in_child() -> None:
    _after_fork(in_child=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
