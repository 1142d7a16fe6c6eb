"""What all acts of a worker share."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from goal_state import GoalRepository, GoalStore, StoreClosedError, errors
from goal_state.delivery.consumers import Consumer
from tests.proof.chaos import strikes
from tests.proof.chaos.channel import Channel
from tests.proof.chaos.charges import charge_of, make, make_in
from tests.proof.chaos.strikes import Strike

__all__ = [
    "JOIN_SECONDS",
    "REFUSALS",
    "Acts",
    "Held",
    "Surprise",
    "charged",
    "expect_none",
    "goal_of",
    "on_thread",
    "plainly",
    "trace",
]

JOIN_SECONDS: Final = 60.0
REFUSALS: Final = (errors.NestedCallError,)
"""Of a call that is made where none can be carried out."""


class Surprise(Exception):  # noqa: N818
    """Something is not as it must be."""


class Held:
    """A store that is open, or was."""

    def __init__(self, store: GoalStore, name: str | None = None) -> None:
        self.store = store
        self.name = name
        self.process = os.getpid()
        self.is_closing = False
        self.telling = threading.Lock()
        self.heard: deque[tuple[int, int | None]] = deque()
        self.consumers: dict[str, Consumer] = {}
        self.engine: Any = None


class Acts:
    """What one process knows, and says."""

    def __init__(self, place: Path, number: int, path: Path, seed: int) -> None:
        self.place, self.number, self.path, self.seed = place, number, path, seed
        self.channel = Channel(place)
        self.held: dict[int, Held] = {}
        self.children: list[int] = []
        self.bursts: list[threading.Thread] = []
        self.backups = 0
        self.channel.say({"worker": number, "pid": os.getpid()})

    def say_surprise(self, error: BaseException) -> None:
        self.channel.say({"surprise": trace(error)})

    def charge(
        self,
        held: Held,
        number: int,
        struck_in: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> None:
        """Makes one charge and says what became of it. What was struck is tried again, where it can be."""
        charge = charge_of(self.seed, number)
        began = time.monotonic()
        became = "unknown"
        tokens: int | None = None
        thread = threading.get_ident()
        may_repeat = charge.key is not None and charge.tokens % 2 == 0
        was_struck = False

        def call() -> Any:
            if charge.way != "work":
                return make(held.store, charge)

            def work(repository: GoalRepository) -> Any:
                if threading.get_ident() != thread:
                    raise Surprise("a host's work ran on another thread")
                repository.get(charge.thread_id)
                return make_in(repository, charge)

            return held.store.transact(work)

        try:
            try:
                accounting = (struck_in or plainly)(call)
            except Strike:
                was_struck = True  # maybe after its commit
                if not may_repeat:
                    raise
                accounting = call()
            if not accounting.applied:
                raise Surprise(f"charge {number} was not applied")
            became, tokens = "made", accounting.goal.tokens_used
        except Strike:
            pass
        except StoreClosedError:
            if not held.is_closing:
                raise
            became = "unknown" if was_struck else "refused"
        at = [began, time.monotonic()]
        self.channel.say(
            {"charge": number, "became": became, "at": at, "tokens": tokens, "by": held.name}
        )

    def say_heard(self, held: Held) -> None:
        while strikes.failed:
            self.channel.say({"failed": strikes.failed.popleft()})
        with held.telling:
            heard: list[tuple[int, int | None]] = []
            with contextlib.suppress(IndexError):
                while True:
                    heard.append(held.heard.popleft())
            if not heard:
                return
            self.channel.say({"heard": heard, "by": held.name})


def plainly(work: Callable[[], Any]) -> Any:
    return work()


def trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-6000:]


def on_thread(how: str, work: Callable[[], Any]) -> Any:
    """Does the work here or on a thread of its own."""
    if how != "thread":
        return work()
    became: list[Any] = []

    def run() -> None:
        try:
            became.append((work(), None))
        except BaseException as error:
            became.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(JOIN_SECONDS)
    if not became:
        raise Surprise("a thread does not come to its end")
    result, error = became[0]
    if error is not None:
        raise error
    return result


def charged(accounting: Any) -> Any:
    if not accounting.applied:
        raise Surprise("a charge was not applied")
    return accounting.goal


def goal_of(store: GoalStore, thread_id: str) -> Any:
    goal = store.get(thread_id)
    if goal is None:
        raise Surprise(f"the goal of {thread_id} is gone")
    return goal


def expect_none(differences: list[Any]) -> None:
    if differences:
        raise Surprise(f"verify found {differences[:5]}")
