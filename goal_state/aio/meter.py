"""AsyncGoalMeter: the calls of a meter, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from goal_state.aio.store import AsyncGoalStore
from goal_state.aio.turns import Turns
from goal_state.domain.goals import Goal
from goal_state.domain.usage import ThreadUsage, TokenUsage
from goal_state.meter.calls import MeterCalls
from goal_state.meter.state import Attempt, Reading, State
from goal_state.operations.async_hold import completed
from goal_state.operations.calls import Awaited
from goal_state.storage.repository import GoalRepository

__all__ = ["AsyncGoalMeter"]

Result = TypeVar("Result")


class AsyncGoalMeter(Awaited, MeterCalls):
    """A `GoalMeter` for asyncio: each of its calls, awaited.

        meter = AsyncGoalMeter(store, "thread-1")
        async with meter.turn("turn-1"):
            reading = await meter.charge(response.usage, response_id=response.id)

    Tasks may share one; their calls take turns. A call that is cancelled before its turn has come does
    nothing. After that it is carried out, and the cancellation leaves then: a turn that it ended has ended,
    one that it was to begin has not begun. A coroutine that is thrown away (its loop has ended) can await
    nothing more: the turn of its block runs on, until `abort_turn`.
    """

    def __init__(
        self,
        store: AsyncGoalStore,
        thread_id: str,
        *,
        count_idle_time: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """
        Args:
            store: where the goal is kept. The meter does not close it.
            thread_id: the conversation.
            count_idle_time: whether the time between turns counts as active, while a goal is; from the end of
                the first call on.
            clock_ns: a monotonic clock in nanoseconds; it is read on another thread.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        super().__init__(thread_id, count_idle_time=count_idle_time, clock_ns=clock_ns)
        self._store: AsyncGoalStore = store
        self._turns = Turns()

    async def goal(self) -> Goal | None:
        """The thread's goal as it is stored now, or None."""
        return await self._store.get(self.thread_id)

    async def remaining_tokens(self) -> int | None:
        """What is left of the goal's budget, from 0; None without a goal or without a budget."""
        goal = await self.goal()
        return None if goal is None else goal.remaining_tokens

    def _turn_block(
        self,
        turn_id: str,
        total: TokenUsage | ThreadUsage | None,
        count_id: str | None,
        *,
        charge_tokens: bool,
    ) -> _TurnBlock:
        return _TurnBlock(self, turn_id, total, count_id, charge_tokens=charge_tokens)

    async def _call(
        self,
        check: Callable[[], None] | None,
        attempt: Callable[[GoalRepository, State, Attempt], Result],
    ) -> Result:
        call = Attempt()
        async with self._turns:
            if check is not None:
                check()
            before = self._turn
            carried_out = self._store.send_work(self._work_of(call, attempt))
            try:
                return await completed(carried_out)
            except asyncio.CancelledError:
                # Its caller knows nothing of a turn that has begun, and would never end it.
                call.is_struck = (
                    before is None and call.state is not None and call.state.turn is not None
                )
                raise
            finally:
                call.is_committed = carried_out.done() and carried_out.exception() is None


class _TurnBlock:
    """The block of `AsyncGoalMeter.turn`."""

    def __init__(
        self,
        meter: AsyncGoalMeter,
        turn_id: str,
        total: TokenUsage | ThreadUsage | None,
        count_id: str | None,
        *,
        charge_tokens: bool,
    ) -> None:
        self._meter = meter
        self._turn_id = turn_id
        self._total = total
        self._count_id = count_id
        self._charge_tokens = charge_tokens

    async def __aenter__(self) -> Reading:
        return await self._meter.start_turn(
            self._turn_id,
            total=self._total,
            count_id=self._count_id,
            charge_tokens=self._charge_tokens,
        )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is GeneratorExit:  # the coroutine is thrown away, and may await nothing more
            return
        meter = self._meter
        cancellation: asyncio.CancelledError | None = None
        while meter.turn_id == self._turn_id:
            try:
                await (meter.finish_turn() if kind is None else meter.abort_turn())
            except asyncio.CancelledError as cancelled:  # maybe before it was this call's turn
                cancellation = cancelled
        if cancellation is not None:
            raise cancellation
