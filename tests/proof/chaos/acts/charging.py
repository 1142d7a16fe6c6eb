"""Charges on threads, with interruptions."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

from goal_state import GoalRepository, GoalStore, StoreClosedError
from tests.proof.chaos import strikes
from tests.proof.chaos.acts.base import (
    REFUSALS,
    Acts,
    Held,
    Surprise,
    charged,
    expect_none,
    plainly,
)
from tests.proof.chaos.channel import Message
from tests.proof.chaos.charges import charge_of, make
from tests.proof.chaos.strikes import Guard, Strike

__all__ = ["Charging"]


class Charging(Acts):
    """Acts that charge, with exceptions and handlers in their midst."""

    def do_charge(
        self, store: int, burst: int, lanes: list[list[int]], kinds: list[str], pause: float
    ) -> None:
        """Begins to charge on threads, one for each lane, and goes on; they may be struck meanwhile."""
        held = self.held[store]
        guards: list[Guard] = []
        ended = threading.Semaphore(0)

        def charge_lane(numbers: list[int]) -> None:
            try:
                guard = Guard()
                guards.append(guard)
                for number in numbers:
                    self.charge(held, number, guard.call if kinds else plainly)
                    if pause:
                        time.sleep(pause)
            except BaseException as error:
                self.say_surprise(error)
            finally:
                ended.release()

        threads = [
            threading.Thread(target=charge_lane, args=(numbers,), daemon=True) for numbers in lanes
        ]

        def see_it_through() -> None:
            draw = random.Random(burst)
            try:
                for name in kinds:
                    time.sleep(draw.expovariate(1 / 0.001))
                    for _ in range(20):
                        if guards and draw.choice(guards).strike(strikes.of_kind(name)):
                            break
                        time.sleep(0.0001)
                for _ in lanes:
                    ended.acquire()
                self.say_heard(held)
            except BaseException as error:
                self.say_surprise(error)
            self.channel.say({"burst": burst})

        for thread in threads:
            thread.start()
        watcher = threading.Thread(target=see_it_through, daemon=True)
        watcher.start()
        self.bursts = [thread for thread in self.bursts if thread.is_alive()] + [watcher]

    def do_charge_here(self, store: int, numbers: list[int]) -> None:
        """Charges on the main thread."""
        held = self.held[store]
        for number in numbers:
            self.charge(held, number)
        self.say_heard(held)

    def do_strike(
        self,
        store: int,
        what: str,
        numbers: list[int],
        how: str,
        when: list[float],
        kinds: list[str],
        burst: int,
        lanes: list[list[int]],
    ) -> None:
        """Does one thing again and again on the main thread, and is struck in it; other threads charge."""
        held = self.held[store]
        self.do_charge(store, burst, lanes, [], 0)
        for index, number in enumerate(numbers):
            kind = kinds[index]
            raised = 0

            def act(kind: str = kind) -> None:
                nonlocal raised
                raised += 1
                raise strikes.of_kind(kind)

            def struck(
                work: Callable[[], Any], act: Callable[[], None] = act, index: int = index
            ) -> Any:
                return strikes.at(how, when[index], act, work)

            came = 0
            strikes.was_unraisable()
            if what == "charge":

                def counting(work: Callable[[], Any]) -> Any:
                    nonlocal came
                    try:
                        return struck(work)
                    except Strike:
                        came += 1
                        raise

                self.charge(held, number, counting)
            else:
                try:
                    struck(lambda: self._touch(held, what))
                except Strike:
                    came += 1
            came = came or strikes.was_unraisable()
            if raised != came:
                raise Surprise(f"{kind} was raised {raised} times and came {came} times, in {what}")
        self.say_heard(held)

    def _touch(self, held: Held, what: str) -> None:
        store = held.store
        if what == "get":
            store.get("thread-0")
        elif what == "verify":
            expect_none(store.verify("thread-1"))
        elif what == "goals":
            list(store.goals())
        elif what == "events":
            list(store.events(after=0, limit=20))
        elif what == "export":
            for _, _line in zip(range(5), store.export_lines(), strict=False):
                pass
        elif what == "open":
            GoalStore.open(self.path, durability="normal").close()
        elif what == "backup":
            self._back_up(store)
        elif what == "listen":
            store.subscribe(lambda event: None).close()
        else:
            raise AssertionError(what)

    def _back_up(self, store: GoalStore) -> None:
        """What is there of a backup that was struck is whole."""
        self.backups += 1
        place = self.path.with_name(f"struck-{os.getpid()}-{self.backups}.db")
        try:
            store.backup(place)
        finally:
            if place.exists():
                with contextlib.closing(sqlite3.connect(place)) as copy:
                    if copy.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                        raise Surprise("a backup that was struck is there, and is damaged")
                place.unlink()

    def do_handler(
        self,
        store: int,
        other: int,
        numbers: list[int],
        extra: int,
        how: str,
        when: float,
        what: str,
    ) -> None:
        """Charges on the main thread; once, in the middle of a call, a handler calls the store."""
        held, called = self.held[store], self.held[other]
        has_acted = False

        def act() -> None:
            nonlocal has_acted
            has_acted = True
            if what == "charge":
                said.append(self._charge_quietly(called, extra))
            elif what == "get":
                with contextlib.suppress(*REFUSALS):
                    called.store.get("thread-0")
            else:
                called.is_closing = True
                called.store.close()

        said: list[Message] = []
        for number in numbers:
            if has_acted:
                self.charge(held, number)
            else:
                self.charge(held, number, lambda work: strikes.at(how, when, act, work))
        if what == "charge" and not said:
            said.append(self._charge_quietly(called, extra))
        for message in said:
            self.channel.say(message)
        self.say_heard(held)
        if what == "close":
            if not has_acted:
                act()
            del self.held[other]
            try:
                called.store.get("thread-0")
            except StoreClosedError:
                return
            raise Surprise("a store that a handler closed reads")

    def _charge_quietly(self, held: Held, number: int) -> Message:
        began = time.monotonic()
        charge = charge_of(self.seed, number)
        became = "made"
        tokens: int | None = None
        try:
            tokens = charged(make(held.store, charge)).tokens_used
        except REFUSALS:
            became = "refused"
        at = [began, time.monotonic()]
        return {"charge": number, "became": became, "at": at, "tokens": tokens, "by": held.name}

    def do_nested(self, store: int, what: str) -> None:
        """A call of the store inside its own transaction is refused at once."""
        held = self.held[store]

        def work(repository: GoalRepository) -> None:
            repository.get("thread-0")
            if what == "get":
                held.store.get("thread-0")
            elif what == "charge":
                held.store.charge("thread-0", tokens=1)
            else:
                held.store.transact(lambda inner: inner.get("thread-0"))

        try:
            held.store.transact(work)
        except REFUSALS:
            return
        raise Surprise(f"a {what} inside transact was not refused")
