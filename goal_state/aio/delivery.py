"""Events to whoever listens on an event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Self

from goal_state.aio.lane import Lane, call_work, one_by_one
from goal_state.delivery.consumers import Consumer
from goal_state.delivery.listeners import Subscription
from goal_state.domain.events import GoalEvent
from goal_state.errors import DeliveryError
from goal_state.operations.async_hold import completed

__all__ = ["AsyncConsumer", "AsyncSink", "LoopSink", "Relay"]

_logger = logging.getLogger(__name__)

AsyncSink = Callable[[Sequence[GoalEvent]], Awaitable[object]]
"""Takes a batch of events, in order: a coroutine function. It returns once they are safe, or raises to get
the same batch again; a `DeliveryError` can say how long to wait before that."""

_LIVENESS_CHECK_SECONDS: Final = 0.5
"""How often a consumer that waits for its sink looks whether the sink's loop is still there."""


class Relay:
    """A listener of the store's that calls one on a loop: in one wake-up for all events that are there."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listener: Callable[[GoalEvent], object]
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._events: deque[GoalEvent] = deque()
        self._is_due = False
        self.subscription: Subscription | None = None

    def __call__(self, event: GoalEvent) -> None:
        """Hands an event on, from the thread of a writer."""
        self._events.append(event)
        if self._is_due:
            return
        self._is_due = True
        try:
            self._loop.call_soon_threadsafe(self._tell)
        except RuntimeError:  # the loop is closed, and nobody listens any more
            if self.subscription is not None:
                self.subscription.close()

    def _tell(self) -> None:
        self._is_due = False
        while self._events:
            event = self._events.popleft()
            if self.subscription is None or self.subscription.is_closed:
                continue
            try:
                self._listener(event)
            except Exception:
                _logger.exception("a listener failed on event %d (%s)", event.position, event.kind)


class LoopSink:
    """A sink of the store's, on a consumer's thread, that has one awaited on a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sink: AsyncSink) -> None:
        self._loop = loop
        self._sink = sink
        self.consumer: Consumer | None = None

    def __call__(self, events: Sequence[GoalEvent]) -> None:
        """Returns when the sink has taken the events."""
        taking = self._take(events)
        try:
            taken = asyncio.run_coroutine_threadsafe(taking, self._loop)
        except RuntimeError:  # the loop is closed
            taking.close()
            self._end()
            raise
        while not concurrent.futures.wait((taken,), timeout=_LIVENESS_CHECK_SECONDS).done:
            if self._loop.is_closed():
                self._end()
                raise DeliveryError("the event loop of the sink is closed")
        taken.result()

    async def _take(self, events: Sequence[GoalEvent]) -> None:
        await self._sink(events)

    def _end(self) -> None:
        """Has the consumer end: there is no loop any more on which it could deliver."""
        if self.consumer is not None:
            self.consumer.close(0)


class AsyncConsumer:
    """Hands the log to a sink on an event loop, batch by batch. Made by `AsyncGoalStore.consume`; see
    `goal_state.Consumer`, whose calls it awaits. It ends with its loop.
    """

    def __init__(self, consumer: Consumer) -> None:
        """Use `AsyncGoalStore.consume`."""
        self._consumer = consumer
        self._lane = Lane(
            f"consumer {consumer.name}", one_by_one(call_work), most_at_once=1, most_threads=4
        )

    @property
    def name(self) -> str:
        """Under which its position is kept."""
        return self._consumer.name

    @property
    def position(self) -> int | None:
        """The position of the last event that the sink took; None while the lease is not held."""
        return self._consumer.position

    async def drain(self, timeout_seconds: float | None = None) -> bool:
        """Waits until the sink has taken every event that is in the log now.

        Returns:
            False if time ran out, the consumer was closed or its thread has died.

        Raises:
            DatabaseError: the end of the log cannot be read.
        """
        return await self._lane.call(lambda: self._consumer.drain(timeout_seconds))

    async def close(self, timeout_seconds: float = 5.0) -> bool:
        """Drains within the time given, stops and releases the lease, also where its caller is cancelled.

        Returns:
            Whether everything was delivered. The next consumer of the name delivers what was not.
        """
        return await completed(self._lane.send(lambda: self._consumer.close(timeout_seconds)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not GeneratorExit:
            await self.close()
