"""The handle of a hold whose calls are awaited, and the block that it is reserved for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, Self, overload

from goal_state.domain.hold_requests import EndHold, ObserveHold
from goal_state.domain.holds import HoldRecord
from goal_state.domain.requests import Request
from goal_state.errors import HoldEndedError
from goal_state.operations.calls import Awaited
from goal_state.operations.hold import Hold, HoldHandle

__all__ = ["AsyncHold", "Granting", "HoldCalls", "completed", "reservation"]

P = ParamSpec("P")


class HoldCalls(Protocol):
    """What carries out the requests about a hold."""

    def apply(self, request: Request[Any]) -> Awaitable[Any]:
        """Carries out a request; cancelled before that has begun, it never is."""
        ...

    def send(self, request: Request[Any]) -> asyncio.Future[Any]:
        """Has a request carried out in any case, whoever waits for it or not, behind those sent before."""
        ...

    def post(self, request: Request[Any]) -> None:
        """As `send`, for nobody who waits; no event loop need run."""
        ...


async def completed(future: asyncio.Future[Any]) -> Any:
    """The result of a future, however often its waiter is cancelled meanwhile; a cancellation leaves then."""
    cancellation: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        if not future.cancelled():
            future.exception()  # noted as seen: the cancellation takes its place
        raise cancellation
    return future.result()


class AsyncHold(Awaited, HoldHandle):
    """A part of a goal's budgets, set aside for one call; `AsyncGoalStore.reserve` makes it. Every call of a
    `Hold`, awaited.

        async with store.reserve("thread-1", tokens=12_000) as hold:
            reply = await client.messages.create(max_tokens=hold.tokens, …)
            await hold.settle(reply.usage, model=reply.model, response_id=reply.id)

    A block that is left while the hold is live ends it as its call was left, also where the task is
    cancelled: that leaves the block once the hold has ended. A settlement or a release that was called is
    carried out, also where its caller is cancelled meanwhile.
    """

    def __init__(self, calls: HoldCalls, record: HoldRecord, *, was_found: bool) -> None:
        """Use `reserve`."""
        super().__init__(record, was_found=was_found)
        self._calls = calls

    async def _carry_out(self, request: Request[Any], *, ends: bool = False) -> Any:
        apply = self._calls.send if ends else self._calls.apply
        return self._took(await apply(request), ends=ends)

    async def _observe(self, observation: ObserveHold) -> None:
        if self._may_observe(observation):
            await self._carry_out(observation)
            self._has_observed()

    async def _cut(self) -> None:
        observed = None if self._observation is None else self._calls.send(self._observation)
        ended = self._calls.send(EndHold(self.hold_id))  # behind it
        try:
            self._took(await completed(ended), ends=True)
        finally:
            if observed is not None and observed.done():
                with suppress(HoldEndedError):  # it has expired: what it charged then stands
                    observed.result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_over:
            return
        if kind is not GeneratorExit:
            await self._cut()
            return
        # The coroutine is thrown away, and may await nothing more.
        if self._observation is not None:
            self._calls.post(self._observation)
        self._calls.post(EndHold(self.hold_id))


class Granting:
    """A hold that is asked for: await it, or enter it as a block.

    hold = await store.reserve("thread-1", tokens=12_000)
    async with store.reserve("thread-1", tokens=12_000) as hold: ...
    """

    def __init__(self, reserve: Callable[[], Coroutine[Any, Any, AsyncHold]]) -> None:
        """Use `reserve`."""
        self._reserve = reserve
        self._hold: AsyncHold | None = None

    def __await__(self) -> Generator[Any, Any, AsyncHold]:
        return self._reserve().__await__()

    async def __aenter__(self) -> AsyncHold:
        self._hold = await self._reserve()
        return self._hold

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._hold is not None:
            await self._hold.__aexit__(kind, error, traceback)


if TYPE_CHECKING:

    class reservation(Generic[P]):  # noqa: N801
        """Marks a call that reserves: it returns a hold, or one to await where its owner is `Awaited`."""

        def __init__(self, function: Callable[Concatenate[Any, P], Hold]) -> None: ...

        @overload
        def __get__(self, instance: Awaited, owner: type[object]) -> Callable[P, Granting]: ...
        @overload
        def __get__(self, instance: object, owner: type[object]) -> Callable[P, Hold]: ...
        def __get__(self, instance: object, owner: type[object]) -> Any: ...

else:

    def reservation(function):
        """See above."""
        return function
