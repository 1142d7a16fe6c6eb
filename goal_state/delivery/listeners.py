"""Live listeners: called with events after the commit that holds them, in the order of commits.

"Interrupted" means that an exception was raised in a thread at an arbitrary instruction: by a signal handler
or by `PyThreadState_SetAsyncExc`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType
from typing import Final, Self

from goal_state.domain.events import EventKind, GoalEvent, check_kind
from goal_state.domain.values import check_optional_name
from goal_state.errors import InvalidValueError

__all__ = ["Listeners", "Subscription"]

_logger = logging.getLogger(__name__)


class Subscription:
    """A listener's registration; `close()` ends it. Also a context manager."""

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
        """Removes the listener: no further event reaches it. Closing twice is fine."""
        self.end()
        self._listeners.remove(self)

    @property
    def is_closed(self) -> bool:
        """Whether no further event reaches the listener."""
        return self._closed

    def end(self) -> None:
        """Drops all further events."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def deliver(self, event: GoalEvent) -> None:
        """Calls the listener with an event, if it asked for such; an error of the listener is logged."""
        if self._closed:
            return
        if self._thread_id is not None and event.thread_id != self._thread_id:
            return
        if self._kinds is not None and event.kind not in self._kinds:
            return
        try:
            self._listener(event)
        except Exception as error:
            if self._interrupted_outside(error):
                raise
            _logger.exception("a listener failed on event %d (%s)", event.position, event.kind)

    def _interrupted_outside(self, error: Exception) -> bool:
        """Whether an error is not the listener's, but interrupted this thread just before or after it ran."""
        traceback = error.__traceback__
        return (
            traceback is not None
            and traceback.tb_next is None  # raised in `deliver` itself
            and not isinstance(error, TypeError)  # the listener takes other arguments
            and not isinstance(self._listener, BuiltinFunctionType)  # has no frame of its own
        )


class _Batch:
    """The events of one transaction, and the subscriptions there were at its commit."""

    __slots__ = ("commits", "events")

    def __init__(
        self,
        commits: list[object],
        events: list[GoalEvent],
        subscriptions: tuple[Subscription, ...],
    ) -> None:
        self.commits = commits  # not empty if, and only if, the transaction was committed
        self.events: Final = deque((event, one) for event in events for one in subscriptions)


class Listeners:
    """Hands committed events to the listeners, one event at a time, in order.

    The writing threads deliver. A thread that finds another one delivering leaves its events to that one, so
    that a listener which waits for a third thread cannot deadlock the store.

    A writer may be interrupted at any instruction. So a transaction's events are queued before its commit,
    and the commit itself makes them deliverable; and a held lock, not a flag, shows that a thread delivers.
    """

    def __init__(self) -> None:
        self._subscriptions: tuple[Subscription, ...] = ()
        self._lock = threading.RLock()
        self._deliverer = (
            threading.Lock()
        )  # held by the delivering thread; a new one for each delivery
        self._written: list[GoalEvent] = []
        self._queue: deque[_Batch] = deque()
        self._uncommitted: _Batch | None = None

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
        """Removes a listener."""
        with self._lock:
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)

    @property
    def present(self) -> bool:
        """Whether there is a listener."""
        return bool(self._subscriptions)

    def written(self, event: GoalEvent) -> None:
        """Collects an event whose transaction is still open."""
        self._written.append(event)

    def begin(self) -> None:
        """A transaction begins: drops the events of the one before it if that was not committed."""
        self._written = []
        self._uncommitted = None

    def end(self, commits: list[object]) -> None:
        """Queues the events of a transaction before its commit; they are due once `commits` is not empty."""
        if self._written and (subscriptions := self._subscriptions):
            batch = _Batch(commits, self._written, subscriptions)
            self._uncommitted = batch
            self._queue.append(batch)

    def deliver(self) -> None:
        """Delivers the committed events, unless another thread (or an outer call) is already delivering."""
        while self._first_due() is not None:
            mine = threading.Lock()
            with mine:
                with self._lock:
                    if self._deliverer.locked():
                        return
                    self._deliverer = mine
                self._deliver_all()

    def leave_to_parent(self) -> None:
        """In a forked child: ends all subscriptions, since the listeners stay with the parent."""
        for subscription in self._subscriptions:
            subscription.end()
        self._subscriptions = ()
        self._lock = threading.RLock()
        self._deliverer = threading.Lock()

    def _first_due(self) -> _Batch | None:
        """The oldest batch; None if there is none, or if its transaction may still be committed."""
        try:
            batch = self._queue[0]
        except IndexError:
            return None
        return None if batch is self._uncommitted and not batch.commits else batch

    def _deliver_all(self) -> None:
        while (batch := self._first_due()) is not None:
            while batch.commits and batch.events:
                event, subscription = batch.events[0]
                subscription.deliver(event)
                # Last, so that an interrupted listener gets the event again rather than never.
                batch.events.popleft()
            self._queue.popleft()
