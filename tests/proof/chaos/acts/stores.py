"""Stores that are opened, closed, dropped and looked at."""

from __future__ import annotations

import gc
import time
from typing import Any

from sqlalchemy import create_engine as make_engine

from goal_state import GoalStore, StoreClosedError
from tests.proof.chaos.acts.base import JOIN_SECONDS, Acts, Held, Surprise, expect_none, on_thread
from tests.proof.chaos.channel import Message

__all__ = ["Stores"]


class Stores(Acts):
    """Acts on stores as a whole."""

    def do_open(self, store: int, how: str, durability: Any) -> None:
        held = on_thread(how, lambda: self.opened(how, durability))
        held.name = f"{self.number}/{store}"
        self.held[store] = held

    def opened(self, how: str, durability: Any = "normal") -> Held:
        if how == "engine":
            engine = make_engine(f"sqlite:///{self.path}")
            held = Held(GoalStore.open(engine, durability=durability))
            held.engine = engine
            return held
        return Held(GoalStore.open(self.path, durability=durability))

    def do_close(self, store: int, how: str) -> None:
        held = self.held.pop(store)
        held.is_closing = True
        on_thread(how, held.store.close)
        if held.engine is not None:
            held.engine.dispose()
        try:
            held.store.get("thread-0")
        except StoreClosedError:
            return
        raise Surprise("a closed store reads")

    def do_abandon(self, store: int) -> None:
        """The store is collected without having been closed."""
        del self.held[store]
        gc.collect()

    def do_open_close(self, number: int, how: str) -> None:
        """As a web server does that opens a store for each request."""

        def request() -> None:
            with GoalStore.open(self.path, durability="normal") as store:
                self.charge(Held(store), number)

        on_thread(how, request)

    def do_look(self, store: int, thread: str) -> Message:
        """What a store reads now."""
        held = self.held[store]
        began = time.monotonic()

        def look() -> dict[str, int]:
            return {
                goal.thread_id: goal.tokens_used
                for goal in (held.store.get(f"thread-{n}") for n in range(4))
                if goal is not None
            }

        tokens = on_thread(thread, look)
        self.say_heard(held)
        return {"at": began, "tokens": tokens}

    def do_verify(self, store: int) -> None:
        expect_none(self.held[store].store.verify())

    def do_ready(self) -> None:
        """Every burst has come to its end."""
        for thread in self.bursts:
            thread.join(JOIN_SECONDS)
            if thread.is_alive():
                raise Surprise("a burst of charges does not end")
        self.bursts.clear()
        for held in self.held.values():
            self.say_heard(held)
