"""Live listeners and durable consumers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from goal_state import DatabaseBusyError, GoalEvent, StoreClosedError
from goal_state.delivery.consumers import Consumer
from tests.proof.chaos.acts.base import JOIN_SECONDS, REFUSALS, Acts, Surprise
from tests.proof.chaos.charges import number_of

__all__ = ["ShortLease", "Telling"]

LEASE_SECONDS: Final = 1.0


class ShortLease(Consumer):
    """A consumer whose name is soon free after its process was killed."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named, lease_seconds=LEASE_SECONDS)


class Telling(Acts):
    """Acts that subscribe and consume."""

    def do_listen(self, store: int, calls: bool) -> None:
        """A listener that, at times, calls the store which is just telling it."""
        held = self.held[store]

        def hear(event: GoalEvent) -> None:
            if os.getpid() != held.process:
                self.channel.say({"surprise": "a listener was called in a forked child"})
            held.heard.append((event.position, number_of(event.turn_id)))
            if calls and event.position % 3 == 0:
                with contextlib.suppress(*REFUSALS, StoreClosedError):
                    held.store.get(event.thread_id)

        held.store.subscribe(hear)

    def do_consume(self, store: int, name: str, fails: dict[str, str]) -> None:
        """A consumer whose sink fails at some batches, each time in another way."""
        held = self.held[store]
        batches = 0

        def sink(events: Sequence[GoalEvent]) -> None:
            nonlocal batches
            batches += 1
            if (kind := fails.get(str(batches))) is not None:
                raise FAILURES[kind]()  # noqa: RSE102
            took = [[event.position, event.event_id] for event in events]
            self.channel.say({"took": took, "of": name})

        held.consumers[name] = held.store.consume(name, sink, batch_size=20)

    def do_drain(self, store: int, name: str) -> int | None:
        """The position up to which everything was handed over; None where another one has the name."""
        consumer = self.held[store].consumers[name]
        deadline = time.monotonic() + JOIN_SECONDS / 3
        while not consumer.drain(0.5):
            if consumer._is_standby:
                return None
            if time.monotonic() > deadline:
                raise Surprise(f"a consumer came no further than {consumer.position}")
        return consumer.position

    def do_holds(self, store: int, name: str) -> bool:
        """Whether a consumer of ours has the name, as far as it knows."""
        return self.held[store].consumers[name].position is not None

    def do_last_position(self, store: int) -> int:
        return self.held[store].store.last_position()

    def do_unconsume(self, store: int, name: str) -> None:
        self.held[store].consumers.pop(name).close()


class _SinkError(Exception):
    pass


FAILURES: Final[dict[str, Callable[[], BaseException]]] = {
    "error": lambda: _SinkError("a sink failed"),
    "cancelled": asyncio.CancelledError,
    "exit": SystemExit,
    "interrupt": KeyboardInterrupt,
    "request": lambda: StoreClosedError("another store's"),
    "database": lambda: DatabaseBusyError("another store's"),
}
"""What a sink raises."""
