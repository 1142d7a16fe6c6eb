"""Durable consumers: named readers of the log that resume from their stored cursor, across restarts.

"Interrupted" means that an exception was raised in a thread at an arbitrary instruction: by a signal handler
or by `PyThreadState_SetAsyncExc`.
"""

from __future__ import annotations

import inspect
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol, Self

from goal_state.delivery.wake_up import WakeUp
from goal_state.domain.events import GoalEvent
from goal_state.errors import DatabaseError, DeliveryError, StoreClosedError
from goal_state.storage import wall_clock
from goal_state.storage.cursors import ConsumerCursor, ConsumerCursors
from goal_state.storage.identifiers import new_id
from goal_state.storage.repository import GoalRepository

__all__ = ["CLOSE_SECONDS", "Consumer", "ConsumerSource", "Sink"]

_logger = logging.getLogger(__name__)

Sink = Callable[[Sequence[GoalEvent]], object]
"""Takes a batch of events, in order. It returns once they are safe, or raises to get the same batch again; a
`DeliveryError` can say how long to wait before that. A plain function: nothing here awaits it."""

CLOSE_SECONDS: Final = 5.0
"""What the consumers of a store that is closed have to drain, all together."""

_LEASE_SECONDS: Final = 10.0
_SHORTEST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
"""Bounds of the polling interval: other processes' commits are found by polling, those of this process set a
wake-up."""
_BATCHING_SECONDS: Final = 0.02
"""How long to wait for more events after a batch that was not full: each batch costs a commit of its own."""
_FIRST_RETRY_SECONDS: Final = 0.1
_LONGEST_RETRY_SECONDS: Final = 30.0
_LONGEST_RETRY_AFTER_SECONDS: Final = 86_400.0
"""The longest `retry_after_seconds` of a sink that is honoured."""
_STOP_SECONDS: Final = 0.5
"""The longest that a thread whose sink does not block needs to stop and release its lease."""
_LIVENESS_CHECK_SECONDS: Final = 0.1
"""How often a thread that waits for a consumer checks that the consumer's thread is alive."""


class ConsumerSource(Protocol):
    """What a consumer needs of its store."""

    def read_events(self, after: int, limit: int) -> list[GoalEvent]:
        """Up to `limit` events after a position."""
        ...

    def read_cursor(self, name: str) -> ConsumerCursor | None:
        """The stored cursor of a consumer name, with its lease."""
        ...

    def last_position(self) -> int:
        """The position of the newest event."""
        ...

    def transact(self, work: Callable[[GoalRepository], bool]) -> bool:
        """Runs work in a transaction."""
        ...


class _DrainRequest(NamedTuple):
    """A caller's wait until a pass that began after the request finds the cursor at `position` or later."""

    position: int
    passes_begun: int


class _SinkError(Exception):
    """Wraps what the sink raised, to tell it apart from the same exception raised by the store."""

    def __init__(self, position: int, cause: BaseException) -> None:
        super().__init__(position)
        self.position = position
        self.cause = cause


class Consumer:
    """A background thread that hands the log to a sink, batch by batch, and stores its position as a cursor.

    Made by `GoalStore.consume`. Of all consumers of one name, in this process or another, one at a time
    holds the lease; the others stand by. The lease is renewed while the sink runs, too, and expires ten
    seconds after the holder's process died or was stopped. Before each call of the sink the holder checks
    that the lease is still its own.

    Whatever the sink raises, the consumer goes on; it ends when it, or its store, is closed. It belongs to
    the process that made it: in a forked child `drain` and `close` return False at once.
    """

    def __init__(
        self,
        source: ConsumerSource,
        name: str,
        sink: Sink,
        *,
        batch_size: int,
        on_close: Callable[[Consumer], None],
        lease_seconds: float = _LEASE_SECONDS,
    ) -> None:
        self.name: Final = name
        self._source = source
        self._sink = sink
        self._batch_size = batch_size
        self._on_close = on_close
        self._lease_ms = round(lease_seconds * 1000)
        self._holder = new_id()
        self._process_id = os.getpid()
        self._position: int | None = None
        self._renewed_at = 0.0  # monotonic time at which the renewing transaction was begun
        self._failures = 0
        self._is_standby = False
        self._is_stopping = False
        self._has_ended = False
        self._has_drained: bool | None = None
        # No lock that an interrupted caller could leave held: the thread alone writes its counters, and each
        # caller that waits for it adds a wake-up of its own.
        self._passes_begun = 0
        self._passes_done = 0
        self._waiting: set[WakeUp] = set()
        self._events_wake_up, self._stop_wake_up, self._lease_wake_up = WakeUp(), WakeUp(), WakeUp()
        self._thread = threading.Thread(target=self._run, name=f"goal-state {name}", daemon=True)
        self._lease_thread = threading.Thread(
            target=self._keep_lease, name=f"goal-state {name} lease", daemon=True
        )
        try:
            self._thread.start()
            self._lease_thread.start()
        except BaseException:
            self._stop()
            raise

    @property
    def position(self) -> int | None:
        """The position of the last event that the sink took; None while the lease is not held."""
        return self._position

    def nudge(self) -> None:
        """Wakes the thread, since there may be new events. Never blocks, never raises."""
        self._events_wake_up.set()

    def drain(self, timeout_seconds: float | None = None) -> bool:
        """Waits until the sink has taken every event that is in the log now.

        Returns:
            False if time ran out, the consumer was closed or its thread has died; at once when called from
            its own sink, since it would wait for itself, and in a forked child.

        Raises:
            DatabaseError: the end of the log cannot be read.
        """
        ends = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        return self._can_be_waited_for() and self._wait_for(self._request_drain(), ends)

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """Drains within the time given, stops and releases the lease.

        Returns:
            Whether everything was delivered. The next consumer of the name delivers what was not.
        """
        return self.close_all((self,), timeout_seconds)

    @staticmethod
    def close_all(consumers: Iterable[Consumer], timeout_seconds: float) -> bool:
        """Closes consumers in parallel: all of them drain within the one time given.

        Returns:
            Whether everything was delivered to each of them.
        """
        consumers = list(consumers)
        ends = time.monotonic() + timeout_seconds
        closing = [one for one in consumers if one._has_drained is None and one._is_own_process()]
        requested = [(one, one._request_last_drain()) for one in closing]
        drained = [
            (one, request is not None and one._wait_for(request, ends, is_closing=True))
            for one, request in requested
        ]
        for one in closing:
            if not one._has_ended and not one._thread.is_alive():
                _logger.warning("consumer %r had died before it was closed", one.name)
            one._stop()
        ends = max(ends, time.monotonic() + _STOP_SECONDS)
        for one, has_drained in drained:
            one._join(ends)
            one._has_drained = has_drained
            one._on_close(one)
        return all(one._has_drained for one in consumers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for callers that wait ---------------------------------------------------------------------

    def _is_own_process(self) -> bool:
        return os.getpid() == self._process_id

    def _can_be_waited_for(self) -> bool:
        return self._is_own_process() and threading.current_thread() is not self._thread

    def _request_drain(self) -> _DrainRequest:
        request = _DrainRequest(self._source.last_position(), self._passes_begun)
        self._events_wake_up.set()
        return request

    def _request_last_drain(self) -> _DrainRequest | None:
        # A standby does not drain: that is up to the lease holder.
        if self._is_standby or not self._can_be_waited_for():
            return None
        try:
            return self._request_drain()
        except (DatabaseError, StoreClosedError) as error:
            _logger.warning("consumer %r stops without having drained: %s", self.name, error)
            return None

    def _has_drained_for(self, request: _DrainRequest) -> bool:
        return (
            self._passes_done > request.passes_begun and (self._position or 0) >= request.position
        )

    def _wait_for(
        self, request: _DrainRequest, ends: float | None, *, is_closing: bool = False
    ) -> bool:
        wake_up = WakeUp()
        self._waiting.add(wake_up)
        try:
            while True:
                is_over = (
                    self._is_stopping
                    or not self._thread.is_alive()
                    or (is_closing and self._is_standby)
                )
                if self._has_drained_for(request):
                    return True
                left = _LIVENESS_CHECK_SECONDS if ends is None else ends - time.monotonic()
                if is_over or left <= 0:
                    return False
                wake_up.wait(min(left, _LIVENESS_CHECK_SECONDS))
        finally:
            self._waiting.discard(wake_up)

    def _stop(self) -> None:
        self._is_stopping = True
        for wake_up in (self._events_wake_up, self._stop_wake_up, self._lease_wake_up):
            wake_up.set()
        self._wake_waiting()

    def _join(self, ends: float) -> None:
        for thread in (self._thread, self._lease_thread):
            if thread is not threading.current_thread():
                thread.join(max(ends - time.monotonic(), 0.0))

    def _wake_waiting(self) -> None:
        for wake_up in list(self._waiting):
            wake_up.set()

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._consume()
            self._has_ended = True
        except BaseException:
            _logger.exception("consumer %r has died; close it and consume again", self.name)
        finally:
            try:
                if self._is_own_process():
                    self._release_lease()
            finally:
                self._wake_waiting()

    def _consume(self) -> None:
        failure: BaseException | None = None
        pause = _SHORTEST_PAUSE_SECONDS
        while self._is_running():
            try:
                if failure is not None:
                    failed, failure = failure, None
                    self._back_off(failed)
                    continue
                taken = self._run_pass()
                if 0 < taken < self._batch_size:
                    self._stop_wake_up.wait(_BATCHING_SECONDS)
                if taken:
                    pause = _SHORTEST_PAUSE_SECONDS
                elif not self._events_wake_up.wait(pause):
                    pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            except StoreClosedError:
                _logger.warning("consumer %r stops: its store is closed", self.name)
                return
            except BaseException as error:  # also one that was sent to this thread
                failure = error

    def _is_running(self) -> bool:
        return not self._is_stopping and self._is_own_process()

    def _run_pass(self) -> int:
        """Claims the lease unless it is held, and delivers one batch; returns how many events were taken."""
        self._passes_begun += 1
        position = self._position if self._position is not None else self._claim_lease()
        if position is None:
            self._end_pass()
            return 0
        batch = self._source.read_events(position, self._batch_size)
        if not self._holds_lease(position):
            self._lose_lease()
            return 0
        self._end_pass()
        if batch:
            self._call_sink(batch, position)
            if not self._is_own_process():  # the sink forked, and this is the child
                return 0
            self._advance_cursor(batch[-1])
        self._failures = 0
        return len(batch)

    def _end_pass(self) -> None:
        """Marks the pass as done: `position` is now the stored cursor, or was when this pass began."""
        self._passes_done = self._passes_begun
        self._wake_waiting()

    def _call_sink(self, batch: list[GoalEvent], position: int) -> None:
        try:
            returned = self._sink(batch)
            if inspect.isawaitable(returned):
                if inspect.iscoroutine(returned):
                    returned.close()
                raise DeliveryError("the sink must be a plain function: nothing here awaits it")
        except BaseException as error:
            raise _SinkError(position, error) from error

    def _back_off(self, failure: BaseException) -> None:
        """Logs the failure and waits: exponential back-off with jitter."""
        self._failures += 1
        wait = _FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 30)
        wait = min(wait, _LONGEST_RETRY_SECONDS) * random.uniform(0.5, 1.0)  # noqa: S311
        if isinstance(failure, _SinkError):
            cause = failure.cause
            if isinstance(cause, DeliveryError) and cause.retry_after_seconds > 0:
                wait += min(cause.retry_after_seconds, _LONGEST_RETRY_AFTER_SECONDS)
            _logger.warning(
                "consumer %r failed at position %d (%s: %s); it is tried again in %.1f s",
                self.name,
                failure.position,
                type(cause).__name__,
                cause,
                wait,
            )
        else:
            self._position = None  # unknown: it is read again with the next claim
            _logger.warning(
                "consumer %r was interrupted (%s: %s); it is tried again in %.1f s",
                self.name,
                type(failure).__name__,
                failure,
                wait,
                exc_info=None if isinstance(failure, DatabaseError) else failure,
            )
        self._stop_wake_up.wait(wait)

    # -- the lease ---------------------------------------------------------------------------------

    def _claim_lease(self) -> int | None:
        """Takes the lease if it is free; returns the cursor's position, or None."""
        # Read before writing: a standby that polls takes no write lock.
        known = self._source.read_cursor(self.name)
        began = time.monotonic()
        position: int | None = None

        def claim(repository: GoalRepository) -> bool:
            nonlocal position
            position = ConsumerCursors(repository.executor).claim(
                self.name, self._holder, lease_ms=self._lease_ms, now_ms=wall_clock.now_ms()
            )
            return position is not None

        is_free = known is None or known.is_free_for(self._holder, wall_clock.now_ms())
        self._is_standby = not (is_free and self._source.transact(claim))
        if not self._is_standby:
            self._renewed_at = began
            self._position = position
        return position

    def _holds_lease(self, position: int) -> bool:
        """Whether the lease and the cursor are still this consumer's. Renews the lease where less than half
        of it is left by either clock, or where the wall clock seems to have been set.
        """
        cursor = self._source.read_cursor(self.name)
        if cursor is None or (cursor.holder, cursor.position) != (self._holder, position):
            return False
        left_ms = (cursor.lease_expires_at_ms or 0) - wall_clock.now_ms()
        left_s = self._renewed_at + self._lease_ms / 1000 - time.monotonic()
        if self._lease_ms / 2 <= left_ms <= self._lease_ms and left_s >= self._lease_ms / 2000:
            return True
        return self._renew_lease()

    def _renew_lease(self) -> bool:
        began = time.monotonic()
        kept = self._source.transact(
            lambda repository: ConsumerCursors(repository.executor).renew(
                self.name, self._holder, lease_ms=self._lease_ms, now_ms=wall_clock.now_ms()
            )
        )
        if kept:
            self._renewed_at = began
        return kept

    def _advance_cursor(self, last: GoalEvent) -> None:
        began = time.monotonic()

        def advance(repository: GoalRepository) -> bool:
            # After a restored backup another event may be at that position, which no sink has taken yet.
            return repository.log.holds(last.event_id, last.position) and ConsumerCursors(
                repository.executor
            ).advance(
                self.name,
                self._holder,
                last.position,
                lease_ms=self._lease_ms,
                now_ms=wall_clock.now_ms(),
            )

        if not self._source.transact(advance):
            self._lose_lease()
            return
        self._renewed_at = began
        self._position = last.position
        self._wake_waiting()

    def _lose_lease(self) -> None:
        if self._position is not None:
            self._position = None
            _logger.warning(
                "consumer %r lost its lease or its cursor was moved; it stands by", self.name
            )
        self._events_wake_up.set()

    def _keep_lease(self) -> None:
        while self._is_running():
            try:
                if self._lease_wake_up.wait(self._lease_ms / 3000):
                    continue  # stopping
                if self._position is not None and not self._renew_lease():
                    self._lose_lease()
            except StoreClosedError:
                return
            except BaseException as error:
                _logger.warning(
                    "consumer %r could not renew its lease: %s: %s",
                    self.name,
                    type(error).__name__,
                    error,
                )

    def _release_lease(self) -> None:
        def release(repository: GoalRepository) -> bool:
            ConsumerCursors(repository.executor).release(
                self.name, self._holder, now_ms=wall_clock.now_ms()
            )
            return True

        try:
            self._source.transact(release)
        except (DatabaseError, StoreClosedError) as error:
            _logger.warning(
                "consumer %r could not release its lease, which now has to expire: %s",
                self.name,
                error,
            )
