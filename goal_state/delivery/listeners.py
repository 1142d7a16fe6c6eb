"""Live listeners: told of events after the commit that holds them, in the order of commits."""

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
        self.end()
        self._listeners.remove(self)

    def end(self) -> None:
        """Lets no further event through."""
        self._closed = True

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
        except Exception as error:
            if self._struck_outside(error):
                raise
            _logger.exception("a listener failed on event %d (%s)", event.position, event.kind)

    def _struck_outside(self, error: Exception) -> bool:
        """Whether an error is no listener's, but struck this thread just before or after it was called."""
        traceback = error.__traceback__
        return (
            traceback is not None
            and traceback.tb_next is None  # raised in `tell` itself
            and not isinstance(error, TypeError)  # the listener takes other arguments
            and not isinstance(self._listener, BuiltinFunctionType)  # has no frame of its own
        )


class _Batch:
    """The events of one transaction, and who listened when it was committed."""

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

    Delivery happens on the threads of those who write. A thread that finds another one delivering leaves
    its events to it, so that a listener which waits for a third thread cannot lock up the store.

    An exception may strike a writer at any instruction. So the events of a transaction are in the queue
    before its commit, which is what makes them facts; and who delivers is told from a lock that is held,
    not from a flag.
    """

    def __init__(self) -> None:
        self._subscriptions: tuple[Subscription, ...] = ()
        self._lock = threading.RLock()
        self._deliverer = threading.Lock()  # held by whoever delivers; a new one each time
        self._written: list[GoalEvent] = []
        self._queue: deque[_Batch] = deque()
        self._undecided: _Batch | None = None

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

    def begin(self) -> None:
        """A transaction begins. What the one before it wrote and did not commit never happened."""
        self._written = []
        self._undecided = None

    def end(self, commits: list[object]) -> None:
        """The transaction is about to be committed; its events become facts once `commits` is not empty."""
        if self._written and (subscriptions := self._subscriptions):
            batch = _Batch(commits, self._written, subscriptions)
            self._undecided = batch
            self._queue.append(batch)

    def deliver(self) -> None:
        """Tells what is to be told, unless another thread (or an outer call) is doing so already."""
        while self._first_decided() is not None:
            mine = threading.Lock()
            with mine:
                with self._lock:
                    if self._deliverer.locked():
                        return
                    self._deliverer = mine
                self._tell_all()

    def leave_to_parent(self) -> None:
        """In a forked child: whoever listens does so in the parent."""
        for subscription in self._subscriptions:
            subscription.end()
        self._subscriptions = ()
        self._lock = threading.RLock()
        self._deliverer = threading.Lock()

    def _first_decided(self) -> _Batch | None:
        """The oldest batch; None if there is none, or if its transaction may still be committed."""
        try:
            batch = self._queue[0]
        except IndexError:
            return None
        return None if batch is self._undecided and not batch.commits else batch

    def _tell_all(self) -> None:
        while (batch := self._first_decided()) is not None:
            while batch.commits and batch.events:
                event, subscription = batch.events[0]
                subscription.tell(event)
                # Last, so that a listener that was struck is told again rather than never.
                batch.events.popleft()
            self._queue.popleft()
