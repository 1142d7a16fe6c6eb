"""Cancels a coroutine at its n-th await, at each of the moments at which a task can be cancelled there."""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Coroutine, Generator, Iterator
from typing import Any, Literal

__all__ = ["MOMENTS", "Moment", "cancelled", "cancelled_everywhere"]

Moment = Literal["at once", "meanwhile", "too late"]
MOMENTS: tuple[Moment, ...] = ("at once", "meanwhile", "too late")
"""As the task begins to wait; while another thread may be done, and the loop does not know yet; when what it
waits for is there, and the task has not gone on yet."""

_MEANWHILE_SECONDS = 0.02


async def cancelled(work: Coroutine[Any, Any, Any], at: int, moment: Moment, *, times: int) -> bool:
    """Runs a coroutine in a task that is cancelled at its n-th await, and at each one after that, so many
    times in all; whether it waited that often.
    """
    loop = asyncio.get_running_loop()
    awaits = 0

    @types.coroutine
    def counting() -> Generator[Any, Any, Any]:
        nonlocal awaits
        thrown: BaseException | None = None
        while True:
            try:
                waited_for = work.send(None) if thrown is None else work.throw(thrown)
            except StopIteration as stop:
                return stop.value
            thrown = None
            awaits += 1
            if at <= awaits < at + times:
                if moment == "too late" and asyncio.isfuture(waited_for):
                    waited_for.add_done_callback(lambda _: task.cancel())
                elif moment == "meanwhile":
                    loop.call_soon(cancel_after_a_moment)
                else:
                    loop.call_soon(task.cancel)
            try:
                yield waited_for
            except BaseException as error:
                thrown = error

    def cancel_after_a_moment() -> None:
        time.sleep(_MEANWHILE_SECONDS)  # the loop does not get to know what other threads do
        task.cancel()

    async def run() -> None:
        await counting()

    task = loop.create_task(run())
    try:
        await task
    except asyncio.CancelledError:
        assert awaits >= at
        return True
    return awaits >= at


def cancelled_everywhere() -> Iterator[tuple[int, Moment, int]]:
    """Where, when and how often to cancel, beginning at the first await; to be ended by the caller."""
    for at in range(1, 50):
        for moment in MOMENTS:
            for times in (1, 3):
                yield at, moment, times
    raise AssertionError("it waits without end")
