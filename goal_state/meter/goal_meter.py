"""GoalMeter: the calls of a meter, on a store that answers at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import TypeVar

from goal_state.domain.goals import Goal
from goal_state.domain.usage import ThreadUsage, TokenUsage
from goal_state.errors import TurnError
from goal_state.meter.calls import MeterCalls
from goal_state.meter.state import Attempt, Reading, State
from goal_state.storage.blocks import Block
from goal_state.storage.repository import GoalRepository
from goal_state.store import GoalStore

__all__ = ["GoalMeter"]

Result = TypeVar("Result")


class GoalMeter(MeterCalls):
    """Meters one thread. Safe to call from several threads; several meters may share a thread id, in one
    process or many, and never charge the same tokens twice, whichever of them hears of them first or late.
    They do so within one turn, or where their totals have one `count_id`: see `GoalStore.record_total` for
    how a late total is told from the first of a new count.

    Time is another matter: each meter measures its own, so that two that run in one turn charge it twice.
    Let one of them measure it, and give the others a clock that stands still (`clock_ns=lambda: 0`).

    A call that raises has charged nothing, unless an exception from outside (`KeyboardInterrupt`, one of a
    signal handler) struck after its commit. It may be repeated in any case, and then charges nothing again
    (a `charge` needs its `response_id` for that); until then its turn is the one from before it.

        meter = GoalMeter(store, "thread-1")
        with meter.turn("turn-1"):
            reading = meter.charge(response.usage, response_id=response.id)

    Charge each response, or record totals, whichever the provider reports. Where both come in one turn,
    charge a response before the total that contains it: the total then pays for the rest alone.
    """

    def __init__(
        self,
        store: GoalStore,
        thread_id: str,
        *,
        count_idle_time: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """
        Args:
            store: where the goal is kept. The meter does not close it.
            thread_id: the conversation.
            count_idle_time: whether the time between turns counts as active, while a goal is.
            clock_ns: a monotonic clock in nanoseconds.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        super().__init__(thread_id, count_idle_time=count_idle_time, clock_ns=clock_ns)
        self._store: GoalStore = store
        self._lock = threading.RLock()
        self._at_work = False
        if count_idle_time:
            self._settling.bind(self._state, store.get(self.thread_id))

    @property
    def goal(self) -> Goal | None:
        """The thread's goal as it is stored now, or None."""
        return self._store.get(self.thread_id)

    @property
    def remaining_tokens(self) -> int | None:
        """What is left of the goal's budget, from 0; None without a goal or without a budget."""
        goal = self.goal
        return None if goal is None else goal.remaining_tokens

    def _turn_block(
        self,
        turn_id: str,
        total: TokenUsage | ThreadUsage | None,
        count_id: str | None,
        *,
        charge_tokens: bool,
    ) -> AbstractContextManager[Reading]:
        return Block(self._run_turn(turn_id, total, count_id, charge_tokens=charge_tokens))

    def _run_turn(
        self,
        turn_id: str,
        total: TokenUsage | ThreadUsage | None,
        count_id: str | None,
        *,
        charge_tokens: bool,
    ) -> Generator[Reading, bool, None]:
        reading = self.start_turn(
            turn_id, total=total, count_id=count_id, charge_tokens=charge_tokens
        )
        end = self.abort_turn
        try:
            if not (yield reading):
                end = self.finish_turn
        finally:
            if self.turn_id == turn_id:
                end()

    def _call(
        self,
        check: Callable[[], None] | None,
        attempt: Callable[[GoalRepository, State, Attempt], Result],
    ) -> Result:
        """See `MeterCalls`. A live listener is called while the call that caused its event is not finished
        yet, so it cannot make another.
        """
        call = Attempt()
        try:
            with self._lock:
                if self._at_work:
                    raise TurnError("the meter is at work; report after the listener has returned")
                self._at_work = True
                try:
                    if check is not None:
                        check()
                    result = self._store.transact(self._work_of(call, attempt))
                    call.is_committed = True
                    return result
                finally:
                    self._at_work = False
        except BaseException:
            call.is_struck = True
            raise
