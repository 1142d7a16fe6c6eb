"""Durable consumers: named readers of the log that go on where they stopped, across restarts."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, Self

from goal_state.errors import DatabaseError, DeliveryError, RequestError
from goal_state.event_log import ConsumerCursors
from goal_state.events import GoalEvent
from goal_state.identifiers import new_id
from goal_state.repository import GoalRepository, wall_clock_ms

__all__ = ["Consumer", "ConsumerSource", "Sink"]

_logger = logging.getLogger(__name__)

Sink = Callable[[Sequence[GoalEvent]], object]
"""Takes a batch of events, in order. It returns when they are safe, or raises to get them again; with a
`DeliveryError` it can say from when on."""

_LEASE_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
_FIRST_RETRY_SECONDS: Final = 0.1
_LONGEST_RETRY_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 0.5
"""What a thread that is not held up by its sink needs at the most to stop and give its name back."""


class ConsumerSource(Protocol):
    """What a consumer needs of its store."""

    def read_events(self, after: int, limit: int) -> list[GoalEvent]:
        """Up to `limit` events behind a position."""
        ...

    def last_position(self) -> int:
        """The position of the newest event."""
        ...

    def transact(self, work: Callable[[GoalRepository], bool]) -> bool:
        """Runs work in a transaction."""
        ...


class Consumer:
    """A background thread that hands the log to a sink, batch by batch, and remembers how far it got.

    Made by `GoalStore.consume`. Of all who consume under a name, in this process or another, one at a time
    holds it; the others wait their turn. Its lease is renewed also while the sink is at work, and expires
    ten seconds after its process died.
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
        self._position: int | None = None
        self._failures = 0
        self._waits_its_turn = False
        self._state = threading.Condition()
        self._stop = threading.Event()
        self._nudge = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"goal-state {name}", daemon=True)
        self._heart = threading.Thread(
            target=self._renew_lease, name=f"goal-state {name} lease", daemon=True
        )
        self._thread.start()
        self._heart.start()

    @property
    def position(self) -> int | None:
        """The position of the last event that the sink took; None until the name is held."""
        return self._position

    def drain(self, timeout_seconds: float | None = None) -> bool:
        """Waits until the sink has taken every event that is in the log now; False if time ran out."""
        goal = self._source.last_position()
        self._nudge.set()
        with self._state:
            return (
                self._state.wait_for(
                    lambda: (self._position or 0) >= goal or self._stop.is_set(), timeout_seconds
                )
                and (self._position or 0) >= goal
            )

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """Drains within the time given, stops and gives the name back.

        Returns:
            Whether everything was delivered. What was not is delivered by the next consumer of the name.
        """
        if self._stop.is_set():
            return True
        ends = time.monotonic() + timeout_seconds
        # One that waits its turn leaves the log to the holder of the name.
        try:
            drained = not self._waits_its_turn and self.drain(timeout_seconds)
        except DatabaseError as error:
            _logger.warning("consumer %r stops without having drained: %s", self.name, error)
            drained = False
        self._stop.set()
        self._nudge.set()
        with self._state:
            self._state.notify_all()
        for thread in (self._thread, self._heart):
            if thread is not threading.current_thread():
                thread.join(max(ends - time.monotonic(), _STOP_SECONDS))
        self._on_close(self)
        return drained

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    busy = self._step()
                except RequestError:  # the store was closed under it
                    _logger.warning("consumer %r stops: its store is closed", self.name)
                    return
                except DatabaseError as error:
                    wait = self._next_wait()
                    _logger.warning(
                        "consumer %r: %s; it is tried again in %.1f s", self.name, error, wait
                    )
                    self._position = None
                    self._stop.wait(wait)
                    busy = True
                if not busy:
                    self._pause(_POLL_SECONDS)
        finally:
            self._give_back()

    def _step(self) -> bool:
        """Claims the name if need be, delivers one batch; False when there was nothing to do."""
        if self._position is None and not self._claim():
            return False
        position = self._position or 0
        batch = self._source.read_events(position, self._batch_size)
        if not batch:
            self._failures = 0
            return False
        try:
            self._sink(batch)
        except Exception as error:
            wait = self._next_wait()
            if isinstance(error, DeliveryError):
                wait += error.retry_after_seconds
            _logger.warning(
                "consumer %r failed at position %d (%s: %s); it is tried again in %.1f s",
                self.name,
                position,
                type(error).__name__,
                error,
                wait,
            )
            self._stop.wait(wait)
            return True
        self._failures = 0
        self._advance(batch[-1].position)
        return True

    def _next_wait(self) -> float:
        """Seconds until the next try: twice as long after each failure in a row, and never quite the same."""
        self._failures += 1
        wait = _FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 30)
        return min(wait, _LONGEST_RETRY_SECONDS) * random.uniform(0.5, 1.0)  # noqa: S311

    def _claim(self) -> bool:
        def claim(repository: GoalRepository) -> bool:
            nonlocal position
            position = ConsumerCursors(repository.executor).claim(
                self.name, self._holder, lease_ms=self._lease_ms, now_ms=wall_clock_ms()
            )
            return position is not None

        position: int | None = None
        self._waits_its_turn = not self._source.transact(claim)
        if self._waits_its_turn:
            return False
        self._moved_to(position)
        return True

    def _advance(self, position: int) -> None:
        kept = self._source.transact(
            lambda repository: ConsumerCursors(repository.executor).advance(
                self.name, self._holder, position, lease_ms=self._lease_ms, now_ms=wall_clock_ms()
            )
        )
        if not kept:
            _logger.warning("consumer %r lost its name to another; it waits its turn", self.name)
        self._moved_to(position if kept else None)

    def _moved_to(self, position: int | None) -> None:
        with self._state:
            self._position = position
            self._state.notify_all()

    def _pause(self, seconds: float) -> None:
        self._nudge.wait(seconds)
        self._nudge.clear()

    def _renew_lease(self) -> None:
        while not self._stop.wait(self._lease_ms / 3000):
            if self._position is None:
                continue
            try:
                self._source.transact(
                    lambda repository: ConsumerCursors(repository.executor).renew(
                        self.name, self._holder, lease_ms=self._lease_ms, now_ms=wall_clock_ms()
                    )
                )
            except RequestError:
                return
            except DatabaseError as error:
                _logger.warning("consumer %r could not renew its lease: %s", self.name, error)

    def _give_back(self) -> None:
        def release(repository: GoalRepository) -> bool:
            ConsumerCursors(repository.executor).release(
                self.name, self._holder, now_ms=wall_clock_ms()
            )
            return True

        try:
            self._source.transact(release)
        except (RequestError, DatabaseError) as error:
            _logger.warning("consumer %r keeps its name until the lease ends: %s", self.name, error)
