"""Locks where an exception may strike at any instruction: a signal handler's, or one set from another thread.

CPython delivers such an exception after a call returned and before its result is used, so that
`lock.acquire(); try: …` can leave the lock held. `with lock:` cannot, as long as the lock is one of C
(`threading.Lock`, `threading.RLock`): nothing is delivered between entering and the block, nor between the
block and leaving. From CPython 3.12 on this does not hold for a loop that stands directly in the block, whose
jump back is no part of it, so loops are in functions that the block calls. Locks are held by `with`, then,
wherever code of others may run; what cannot be put that way is made so that it heals: state is derived from
what is true (a lock that is held, a commit that happened) rather than kept in flags that a stroke could leave
behind.
"""

from __future__ import annotations

import threading
from typing import Any, TypeAlias, cast

__all__ = ["ReentrantLock", "is_mine"]

ReentrantLock: TypeAlias = "threading.RLock"  # a function at run time, before Python 3.13


def is_mine(lock: ReentrantLock) -> bool:
    """Whether the calling thread holds the lock.

    `threading.Condition` relies on the same method; without it, one would have to note the thread beside
    the lock, and the note could be wrong after an exception.
    """
    return cast(Any, lock)._is_owned()
