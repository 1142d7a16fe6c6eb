"""Locks that are safe against asynchronous exceptions.

A thread is interrupted when an exception is raised in it at an arbitrary instruction: by a signal handler or
by `PyThreadState_SetAsyncExc`. CPython may raise it after a call has returned and before its result is used,
so that `lock.acquire(); try: …` can leave the lock held. `with lock:` cannot, if the lock is implemented in C
(`threading.Lock`, `threading.RLock`): CPython raises nothing between entering and the block, nor between the
block and leaving. From CPython 3.12 on this does not hold for a loop directly in the block, whose backward
jump is not covered by it, so loops are in functions that the block calls. Therefore locks are held by `with`
wherever foreign code may run. Where `with` is not possible, the code repairs itself: state is derived from
facts (a lock that is held, a commit that was made), not kept in flags that an interrupted thread would leave
behind.
"""

from __future__ import annotations

import threading
from typing import Any, TypeAlias, cast

__all__ = ["ReentrantLock", "is_mine"]

ReentrantLock: TypeAlias = "threading.RLock"  # a function at run time, before Python 3.13


def is_mine(lock: ReentrantLock) -> bool:
    """Whether the calling thread holds the lock.

    `threading.Condition` relies on the same method. The alternative, a note of the owning thread beside the
    lock, could be wrong after the thread was interrupted.
    """
    return cast(Any, lock)._is_owned()
