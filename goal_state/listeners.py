"""Live listeners: told of events after the commit that holds them, in the order of commits."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Self

from goal_state.errors import InvalidValueError
from goal_state.events import EventKind, GoalEvent, check_kind
from goal_state.validation import check_optional_name

__all__ = ["Listeners", "Subscription"]

_logger = logging.getLogger(__name__)


class Subscription:
    """A listener's place in the queue; `close()` gives it up. Also a context manager."""

    def __init__(
        self,
        listeners: Listeners,
        listener: Callable[[GoalEvent], object],
        kinds: frozenset[EventKind] | None,
        thread_id: str | None,
    ) -> None:
        self._listeners = listeners
        self._listener = listener
        self._kinds = kinds
        self._thread_id = thread_id
        self._closed = False

    def close(self) -> None:
        """No event reaches the listener from now on. Closing twice is fine."""
        self._closed = True
        self._listeners.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, event: GoalEvent) -> None:
        """Hands over an event that the listener asked for; an error of the listener is logged."""
        if self._closed:
            return
        if self._thread_id is not None and event.thread_id != self._thread_id:
            return
        if self._kinds is not None and event.kind not in self._kinds:
            return
        try:
            self._listener(event)
        except Exception:
            _logger.exception("a listener failed on event %d (%s)", event.position, event.kind)


class Listeners:
    """Hands committed events to the listeners, one event at a time, in order.

    Delivery happens on the threads of those who write. A thread that finds another one delivering leaves
    its events to it, so that a listener which waits for a third thread cannot lock up the store.
    """

    def __init__(self) -> None:
        self._subscriptions: tuple[Subscription, ...] = ()
        self._lock = threading.Lock()
        self._delivering = threading.Lock()
        self._written: list[GoalEvent] = []
        self._committed: deque[tuple[GoalEvent, tuple[Subscription, ...]]] = deque()

    def subscribe(
        self,
        listener: Callable[[GoalEvent], object],
        kinds: Iterable[EventKind | str] | None,
        thread_id: str | None,
    ) -> Subscription:
        """Adds a listener; see `GoalStore.subscribe`."""
        if not (kinds is None or isinstance(kinds, Iterable)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError("kinds", f"must be many, not {type(kinds).__name__}")
        wanted = None if kinds is None else frozenset(check_kind(kind) for kind in kinds)
        thread_id = check_optional_name("thread_id", thread_id)
        subscription = Subscription(self, listener, wanted, thread_id)
        with self._lock:
            self._subscriptions += (subscription,)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """Takes a listener out."""
        with self._lock:
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)

    @property
    def present(self) -> bool:
        """Whether anybody listens."""
        return bool(self._subscriptions)

    def written(self, event: GoalEvent) -> None:
        """Keeps an event whose transaction is still open."""
        self._written.append(event)

    def commit(self) -> None:
        """The events written since the last commit now are facts, to be told to those who listen now."""
        if subscriptions := self._subscriptions:
            self._committed.extend((event, subscriptions) for event in self._written)
        self._written.clear()

    def rollback(self) -> None:
        """The events written since the last commit never happened."""
        self._written.clear()

    def deliver(self) -> None:
        """Tells what is to be told, unless another thread (or an outer call) is doing so already."""
        while self._committed and self._delivering.acquire(blocking=False):
            try:
                while self._committed:
                    event, subscriptions = self._committed.popleft()
                    for subscription in subscriptions:
                        subscription.tell(event)
            finally:
                self._delivering.release()
