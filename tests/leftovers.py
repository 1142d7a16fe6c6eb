"""What a process holds that should be gone when its work is done: threads, child processes, open files."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Holdings", "left_behind"]

_DESCRIPTORS = Path("/proc/self/fd")
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Holdings:
    """What this process holds at one moment.

    Attributes:
        threads: those that run.
        files: what its descriptors lead to, and how many of them (sockets and pipes too); nothing where
            the system does not tell.
        has_children: whether it has child processes, those that ended and were not waited for included.
    """

    threads: frozenset[threading.Thread]
    files: Counter[str]
    has_children: bool

    @classmethod
    def now(cls) -> Holdings:
        """What is held now, garbage and the servers of `multiprocessing` not counted: both are ended."""
        gc.collect()
        _end_servers()
        return cls(frozenset(threading.enumerate()), _open_files(), _has_children())


def left_behind(before: Holdings, *, patience_seconds: float) -> list[str]:
    """What is held now and was not before, in words. What is about to end is given the time to."""
    deadline = time.monotonic() + patience_seconds
    while found := _added(before, Holdings.now()):
        if time.monotonic() > deadline:
            break
        time.sleep(_PAUSE_SECONDS)
    return found


def _end_servers() -> None:
    """Ends the two processes that `multiprocessing` else keeps until the interpreter ends."""
    for module, name in (
        ("multiprocessing.forkserver", "_forkserver"),
        ("multiprocessing.resource_tracker", "_resource_tracker"),
    ):
        if module in sys.modules:
            getattr(sys.modules[module], name)._stop()


def _added(before: Holdings, after: Holdings) -> list[str]:
    threads = sorted(thread.name for thread in after.threads - before.threads)
    return [
        *(f"thread {name!r}" for name in threads),
        *(f"open file {name!r}" for name in sorted((after.files - before.files).elements())),
        *(["a child process"] if after.has_children and not before.has_children else []),
    ]


def _open_files() -> Counter[str]:
    found: Counter[str] = Counter()
    if not _DESCRIPTORS.is_dir():
        return found
    for name in os.listdir(_DESCRIPTORS):  # noqa: PTH208
        try:
            found[str((_DESCRIPTORS / name).readlink())] += 1
        except FileNotFoundError:  # the one that the listing itself used
            continue
    return found


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
