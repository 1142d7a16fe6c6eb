"""Forked children, and the end of a process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from goal_state import GoalRepository, errors
from tests.proof.chaos import strikes
from tests.proof.chaos.acts.base import JOIN_SECONDS, Held, Surprise, charged, on_thread
from tests.proof.chaos.acts.stores import Stores
from tests.proof.chaos.channel import Channel
from tests.proof.chaos.charges import charge_of, make_in

__all__ = ["Leave", "Processes", "Reborn", "fork"]


class Reborn(BaseException):
    """Unwinds a forked child, which goes on as a worker of its own."""

    def __init__(self, worker: Processes) -> None:
        self.worker = worker


class Leave(BaseException):
    """The process ends as a program does that came to its end."""


class Processes(Stores):
    """Acts that make processes, and end them."""

    def do_fork(self, child: int) -> int:
        """A child that goes on as a worker, with the stores that were open."""
        pid = fork()
        if pid == 0:
            self.channel.close()
            reborn = type(self)(self.place, child, self.path, self.seed)
            reborn.check_inherited()
            for number, held in self.held.items():
                reborn.held[number] = Held(held.store, f"{child}/{number}")
            raise Reborn(reborn)
        self.children.append(pid)
        return pid

    def check_inherited(self) -> None:
        """A forked child has nothing of the database open: SQLite would take the parent's locks for its own.
        Where the system does not tell, the loss of what is charged shows it, sooner or later.
        """
        files = Path("/proc/self/fd")
        if not files.is_dir():
            return
        for file in files.iterdir():
            with contextlib.suppress(OSError):
                name = file.readlink().name
                if name in [f"{self.path.name}{end}" for end in ("", "-wal", "-queue")]:
                    self.channel.say({"surprise": f"a forked child inherits {file.readlink()}"})
                    return

    def do_fork_briefly(
        self, store: int, numbers: list[int], how: str, end: str, beside: str
    ) -> None:
        """A child that charges, by the store that it inherited or by one of its own, and ends."""
        held = self.held[store]
        is_over = threading.Event()

        def keep_busy() -> None:
            try:
                while not is_over.is_set():
                    if beside == "open":
                        self.opened("here").store.close()
                    else:
                        held.store.verify("thread-0")
            except BaseException as error:
                self.say_surprise(error)

        def live() -> None:
            child = fork()
            if child:
                wait_for(child)
                return
            status = 1
            try:
                self.channel.close()
                self.channel = Channel(self.place)
                self.channel.say({"worker": None, "pid": os.getpid()})
                self.check_inherited()
                mine = Held(held.store) if how == "inherited" else self.opened("here")
                for number in numbers:
                    self.charge(mine, number)
                if end != "exit":
                    mine.store.close()
                status = 0
            except BaseException as error:
                self.say_surprise(error)
            finally:
                os._exit(status)

        busy = threading.Thread(target=keep_busy, daemon=True)
        if beside:
            busy.start()
            time.sleep(0.002)
        try:
            on_thread("thread" if end == "thread" else "here", live)
        finally:
            is_over.set()
        if beside:
            busy.join(JOIN_SECONDS)

    def do_fork_in_work(self, store: int, number: int) -> None:
        """A fork from inside a transaction: the child is refused, the parent unharmed."""
        held = self.held[store]
        charge = charge_of(self.seed, number)
        began = time.monotonic()

        def work(repository: GoalRepository) -> Any:
            accounting = make_in(repository, charge)
            child = fork()
            if child == 0:
                status = 1
                try:
                    held.store.get("thread-0")
                except errors.ForkedStoreError:
                    status = 0
                finally:
                    os._exit(status)
            wait_for(child)
            return accounting

        tokens = charged(held.store.transact(work)).tokens_used
        at = [began, time.monotonic()]
        self.channel.say({"charge": number, "became": "made", "at": at, "tokens": tokens})

    def do_leave(self) -> None:
        """Ends as a program does, with whatever is open."""
        raise Leave

    def do_reap(self) -> None:
        for child in list(self.children):
            if os.waitpid(child, os.WNOHANG)[0]:
                self.children.remove(child)


def fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        strikes.forget_other_threads()
    return child


def wait_for(child: int) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise Surprise(f"a forked child ended with {status}")
