"""Durable consumers: named readers of the log that go on where they stopped, across restarts."""

from __future__ import annotations

import inspect
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol, Self

from goal_state.delivery.bells import Bell
from goal_state.domain.events import GoalEvent
from goal_state.errors import DatabaseError, DeliveryError, StoreClosedError
from goal_state.storage.cursors import ConsumerCursor, ConsumerCursors
from goal_state.storage.identifiers import new_id
from goal_state.storage.repository import GoalRepository, wall_clock_ms

__all__ = ["Consumer", "ConsumerSource", "Sink"]

_logger = logging.getLogger(__name__)

Sink = Callable[[Sequence[GoalEvent]], object]
"""Takes a batch of events, in order. It returns when they are safe, or raises to get them again; with a
`DeliveryError` it can say from when on. A plain function: nothing here awaits it."""

_LEASE_SECONDS: Final = 10.0
_SHORTEST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
"""How long other processes' commits can go unnoticed. Those of this process ring a bell."""
_GATHER_SECONDS: Final = 0.02
"""How long events may gather after a batch that was not full: each batch costs a commit of its own."""
_FIRST_RETRY_SECONDS: Final = 0.1
_LONGEST_RETRY_SECONDS: Final = 30.0
_LONGEST_REST_SECONDS: Final = 86_400.0
"""How long a sink can ask to be left alone."""
_STOP_SECONDS: Final = 0.5
"""What a thread that is not held up by its sink needs at the most to stop and give its name back."""
_LOOK_SECONDS: Final = 0.1
"""How often those who wait for a consumer look whether its thread still lives."""


class ConsumerSource(Protocol):
    """What a consumer needs of its store."""

    def read_events(self, after: int, limit: int) -> list[GoalEvent]:
        """Up to `limit` events behind a position."""
        ...

    def read_cursor(self, name: str) -> ConsumerCursor | None:
        """How far the consumers of a name have got, and who holds it."""
        ...

    def last_position(self) -> int:
        """The position of the newest event."""
        ...

    def transact(self, work: Callable[[GoalRepository], bool]) -> bool:
        """Runs work in a transaction."""
        ...


class _Ask(NamedTuple):
    """What somebody waits for: that a pass which began later than this one finds that all was taken."""

    position: int
    passes_begun: int


class _SinkError(Exception):
    """Its cause was raised by the sink: whatever it is, it says nothing about the store."""

    def __init__(self, position: int, cause: BaseException) -> None:
        super().__init__(position)
        self.position = position
        self.cause = cause


class Consumer:
    """A background thread that hands the log to a sink, batch by batch, and remembers how far it got.

    Made by `GoalStore.consume`. Of all who consume under a name, in this process or another, one at a time
    holds it; the others wait their turn. Its lease is renewed also while the sink is at work, and expires
    ten seconds after its process died or was stopped. Before each call of the sink the holder looks whether
    the name still is its own.

    Whatever the sink raises, the consumer goes on; it ends when it, or its store, is closed. It stays with
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
        self._renewed_at = 0.0  # by the monotonic clock, before the transaction that did it
        self._failures = 0
        self._waits_its_turn = False
        self._is_stopping = False
        self._has_ended = False
        self._has_drained: bool | None = None
        # No lock is taken here that a caller could be interrupted with: the thread alone writes what it
        # counts, and whoever waits for it hangs up a bell.
        self._passes_begun = 0
        self._passes_done = 0
        self._waiting: set[Bell] = set()
        self._news, self._halt, self._beat = Bell(), Bell(), Bell()
        self._thread = threading.Thread(target=self._run, name=f"goal-state {name}", daemon=True)
        self._heart = threading.Thread(
            target=self._keep_lease, name=f"goal-state {name} lease", daemon=True
        )
        try:
            self._thread.start()
            self._heart.start()
        except BaseException:
            self._stop()
            raise

    @property
    def position(self) -> int | None:
        """The position of the last event that the sink took; None until the name is held."""
        return self._position

    def nudge(self) -> None:
        """Says that there may be something new. Never waits, never raises."""
        self._news.ring()

    def drain(self, timeout_seconds: float | None = None) -> bool:
        """Waits until the sink has taken every event that is in the log now.

        Returns:
            False if time ran out, the consumer was closed or its thread has died; at once in a sink of its
            own, which it would wait for, and in a forked child.

        Raises:
            DatabaseError: where the log ends cannot be read.
        """
        ends = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        return self._can_be_waited_for() and self._await(self._ask(), ends)

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """Drains within the time given, stops and gives the name back.

        Returns:
            Whether everything was delivered. What was not is delivered by the next consumer of the name.
        """
        return self.close_all((self,), timeout_seconds)

    @staticmethod
    def close_all(consumers: Iterable[Consumer], timeout_seconds: float) -> bool:
        """Closes consumers side by side: all of them drain within the one time given.

        Returns:
            Whether everything was delivered to each of them.
        """
        consumers = list(consumers)
        ends = time.monotonic() + timeout_seconds
        closing = [one for one in consumers if one._has_drained is None and one._is_at_home()]
        asked = [(one, one._ask_before_closing()) for one in closing]
        drained = [
            (one, ask is not None and one._await(ask, ends, is_closing=True)) for one, ask in asked
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

    # -- for those who wait ------------------------------------------------------------------------

    def _is_at_home(self) -> bool:
        return os.getpid() == self._process_id

    def _can_be_waited_for(self) -> bool:
        return self._is_at_home() and threading.current_thread() is not self._thread

    def _ask(self) -> _Ask:
        ask = _Ask(self._source.last_position(), self._passes_begun)
        self._news.ring()
        return ask

    def _ask_before_closing(self) -> _Ask | None:
        # One that waits its turn leaves the log to the holder of the name.
        if self._waits_its_turn or not self._can_be_waited_for():
            return None
        try:
            return self._ask()
        except (DatabaseError, StoreClosedError) as error:
            _logger.warning("consumer %r stops without having drained: %s", self.name, error)
            return None

    def _has_answered(self, ask: _Ask) -> bool:
        return self._passes_done > ask.passes_begun and (self._position or 0) >= ask.position

    def _await(self, ask: _Ask, ends: float | None, *, is_closing: bool = False) -> bool:
        bell = Bell()
        self._waiting.add(bell)
        try:
            while True:
                is_over = (
                    self._is_stopping
                    or not self._thread.is_alive()
                    or (is_closing and self._waits_its_turn)
                )
                if self._has_answered(ask):
                    return True
                left = _LOOK_SECONDS if ends is None else ends - time.monotonic()
                if is_over or left <= 0:
                    return False
                bell.wait(min(left, _LOOK_SECONDS))
        finally:
            self._waiting.discard(bell)

    def _stop(self) -> None:
        self._is_stopping = True
        for bell in (self._news, self._halt, self._beat):
            bell.ring()
        self._tell_those_who_wait()

    def _join(self, ends: float) -> None:
        for thread in (self._thread, self._heart):
            if thread is not threading.current_thread():
                thread.join(max(ends - time.monotonic(), 0.0))

    def _tell_those_who_wait(self) -> None:
        for bell in list(self._waiting):
            bell.ring()

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._consume()
            self._has_ended = True
        except BaseException:
            _logger.exception("consumer %r has died; close it and consume anew", self.name)
        finally:
            try:
                if self._is_at_home():
                    self._give_back()
            finally:
                self._tell_those_who_wait()

    def _consume(self) -> None:
        failure: BaseException | None = None
        pause = _SHORTEST_PAUSE_SECONDS
        while self._is_running():
            try:
                if failure is not None:
                    failed, failure = failure, None
                    self._rest_after(failed)
                    continue
                taken = self._step()
                if 0 < taken < self._batch_size:
                    self._halt.wait(_GATHER_SECONDS)
                if taken:
                    pause = _SHORTEST_PAUSE_SECONDS
                elif not self._news.wait(pause):
                    pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            except StoreClosedError:
                _logger.warning("consumer %r stops: its store is closed", self.name)
                return
            except BaseException as error:  # also one that was sent to this thread
                failure = error

    def _is_running(self) -> bool:
        return not self._is_stopping and self._is_at_home()

    def _step(self) -> int:
        """Claims the name if need be and delivers one batch; how many events the sink took."""
        self._passes_begun += 1
        position = self._position if self._position is not None else self._claim()
        if position is None:
            self._end_pass()
            return 0
        batch = self._source.read_events(position, self._batch_size)
        if not self._still_holds(position):
            self._lose()
            return 0
        self._end_pass()
        if batch:
            self._hand_over(batch, position)
            if not self._is_at_home():  # the sink forked, and this is the child
                return 0
            self._advance(batch[-1])
        self._failures = 0
        return len(batch)

    def _end_pass(self) -> None:
        """From here on `position` is what the database says, or said when this pass began."""
        self._passes_done = self._passes_begun
        self._tell_those_who_wait()

    def _hand_over(self, batch: list[GoalEvent], position: int) -> None:
        try:
            returned = self._sink(batch)
            if inspect.isawaitable(returned):
                if inspect.iscoroutine(returned):
                    returned.close()
                raise DeliveryError("the sink must be a plain function: nothing here awaits it")
        except BaseException as error:
            raise _SinkError(position, error) from error

    def _rest_after(self, failure: BaseException) -> None:
        """Says what failed, and waits: twice as long after each failure in a row, never quite the same."""
        self._failures += 1
        wait = _FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 30)
        wait = min(wait, _LONGEST_RETRY_SECONDS) * random.uniform(0.5, 1.0)  # noqa: S311
        if isinstance(failure, _SinkError):
            cause = failure.cause
            if isinstance(cause, DeliveryError) and cause.retry_after_seconds > 0:
                wait += min(cause.retry_after_seconds, _LONGEST_REST_SECONDS)
            _logger.warning(
                "consumer %r failed at position %d (%s: %s); it is tried again in %.1f s",
                self.name,
                failure.position,
                type(cause).__name__,
                cause,
                wait,
            )
        else:
            self._position = None  # what the database has is to be found out
            _logger.warning(
                "consumer %r was struck (%s: %s); it is tried again in %.1f s",
                self.name,
                type(failure).__name__,
                failure,
                wait,
                exc_info=None if isinstance(failure, DatabaseError) else failure,
            )
        self._halt.wait(wait)

    # -- the lease ---------------------------------------------------------------------------------

    def _claim(self) -> int | None:
        """Takes the name, if it is free; the position to go on behind."""
        # Looking first: those who wait their turn take no write lock for it.
        known = self._source.read_cursor(self.name)
        began = time.monotonic()
        position: int | None = None

        def claim(repository: GoalRepository) -> bool:
            nonlocal position
            position = ConsumerCursors(repository.executor).claim(
                self.name, self._holder, lease_ms=self._lease_ms, now_ms=wall_clock_ms()
            )
            return position is not None

        is_free = known is None or known.is_free_for(self._holder, wall_clock_ms())
        self._waits_its_turn = not (is_free and self._source.transact(claim))
        if not self._waits_its_turn:
            self._renewed_at = began
            self._position = position
        return position

    def _still_holds(self, position: int) -> bool:
        """Whether the name, and the place in the log, are this consumer's; the lease is renewed where less
        than half of it is left by either clock, or where the clock of the day seems to have been set.
        """
        cursor = self._source.read_cursor(self.name)
        if cursor is None or (cursor.holder, cursor.position) != (self._holder, position):
            return False
        left_ms = (cursor.lease_expires_at_ms or 0) - wall_clock_ms()
        left_s = self._renewed_at + self._lease_ms / 1000 - time.monotonic()
        if self._lease_ms / 2 <= left_ms <= self._lease_ms and left_s >= self._lease_ms / 2000:
            return True
        return self._renew()

    def _renew(self) -> bool:
        began = time.monotonic()
        kept = self._source.transact(
            lambda repository: ConsumerCursors(repository.executor).renew(
                self.name, self._holder, lease_ms=self._lease_ms, now_ms=wall_clock_ms()
            )
        )
        if kept:
            self._renewed_at = began
        return kept

    def _advance(self, last: GoalEvent) -> None:
        began = time.monotonic()

        def advance(repository: GoalRepository) -> bool:
            # After a restored backup another event may stand there, which nobody has taken yet.
            return repository.log.holds(last.event_id, last.position) and ConsumerCursors(
                repository.executor
            ).advance(
                self.name,
                self._holder,
                last.position,
                lease_ms=self._lease_ms,
                now_ms=wall_clock_ms(),
            )

        if not self._source.transact(advance):
            self._lose()
            return
        self._renewed_at = began
        self._position = last.position
        self._tell_those_who_wait()

    def _lose(self) -> None:
        if self._position is not None:
            self._position = None
            _logger.warning(
                "consumer %r lost its name or its place in the log; it waits its turn", self.name
            )
        self._news.ring()

    def _keep_lease(self) -> None:
        while self._is_running():
            try:
                if self._beat.wait(self._lease_ms / 3000):
                    continue  # stopping
                if self._position is not None and not self._renew():
                    self._lose()
            except StoreClosedError:
                return
            except BaseException as error:
                _logger.warning(
                    "consumer %r could not renew its lease: %s: %s",
                    self.name,
                    type(error).__name__,
                    error,
                )

    def _give_back(self) -> None:
        def release(repository: GoalRepository) -> bool:
            ConsumerCursors(repository.executor).release(
                self.name, self._holder, now_ms=wall_clock_ms()
            )
            return True

        try:
            self._source.transact(release)
        except (DatabaseError, StoreClosedError) as error:
            _logger.warning("consumer %r keeps its name until the lease ends: %s", self.name, error)
