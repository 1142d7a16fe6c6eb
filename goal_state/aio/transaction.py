"""A transaction whose block awaits: it lives on one thread, which does what the block asks for."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from goal_state.aio.lane import Lane
from goal_state.aio.turns import Turns
from goal_state.domain.hold_requests import Reserve
from goal_state.domain.requests import Request
from goal_state.errors import NestedCallError, TransactionError
from goal_state.operations.async_hold import AsyncHold, Granting, completed
from goal_state.operations.calls import Awaited
from goal_state.operations.goal_operations import GoalOperations
from goal_state.storage.repository import GoalRepository
from goal_state.store import GoalStore

__all__ = ["AsyncGoalRepository", "AsyncTransaction", "check_not_nested"]

P = ParamSpec("P")
Result = TypeVar("Result")

_inside: ContextVar[AsyncTransaction | None] = ContextVar("_inside", default=None)
"""The block that this task is in, or was begun in."""


def check_not_nested(store: GoalStore) -> None:
    """Refuses a call of a store inside a transaction of its own task, which would wait for itself.

    Raises:
        NestedCallError: it is one.
    """
    block = _inside.get()
    while block is not None:
        if block.is_open and block.store is store:
            raise NestedCallError(
                "this task is inside a transaction of the same store; inside transaction() call what it"
                " handed to your block"
            )
        block = block.outer


class AsyncTransaction:
    """The block of `AsyncGoalStore.transaction`."""

    def __init__(self, store: GoalStore, lane: Lane, turns: Turns) -> None:
        self.store = store
        self.is_open: bool = False
        self.outer: AsyncTransaction | None = None
        self._lane = lane
        self._turns = turns
        self._stack = ExitStack()

    async def __aenter__(self) -> AsyncGoalRepository:
        check_not_nested(self.store)
        await self._turns.__aenter__()
        try:
            repository = await self._lane.call(self._begin, undo=lambda _: self._undo)
        except BaseException:
            self._turns.give_up()  # whoever is next begins when the lane has undone this one
            raise
        self.is_open = True
        self.outer = _inside.get()
        _inside.set(self)
        return AsyncGoalRepository(self, repository)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.is_open = False
        try:
            _inside.set(self.outer)
            if kind is GeneratorExit:  # the coroutine is thrown away, and may await nothing more
                self._lane.post(self._undo)
            else:
                await completed(self._lane.send(self._commit if kind is None else self._undo))
        finally:
            self._turns.give_up()

    def call(self, work: Callable[[], Result]) -> Coroutine[Any, Any, Result]:
        """Does work inside the transaction."""
        self._check()
        return self._lane.call(work)

    def send(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Does work inside the transaction, whatever becomes of who waits for it."""
        self._check()
        return self._lane.send(work)

    def post(self, work: Callable[[], Any]) -> None:
        """Does work inside the transaction, for nobody."""
        if self.is_open:
            self._lane.post(work)

    def _check(self) -> None:
        if not self.is_open:
            raise TransactionError("the transaction is over; ask for a new one, with transaction()")

    # -- on the thread -----------------------------------------------------------------------------

    def _begin(self) -> GoalRepository:
        return self._stack.enter_context(self.store.transaction())

    def _commit(self) -> None:
        self._stack.__exit__(None, None, None)

    def _undo(self) -> None:
        self._stack.__exit__(_UndoneError, _UndoneError(), None)


class _UndoneError(Exception):
    """Tells the store's own block that it failed; raised nowhere."""


def _like(
    read: Callable[Concatenate[GoalRepository, P], Result],
) -> Callable[[object], Callable[Concatenate[AsyncGoalRepository, P], Coroutine[Any, Any, Result]]]:
    """Declares an awaited call that is like a method of the repository in all but that."""

    @functools.wraps(read)
    async def awaited(
        repository: AsyncGoalRepository, *args: P.args, **options: P.kwargs
    ) -> Result:
        return await repository.run(lambda inner: read(inner, *args, **options))

    return lambda _: awaited


class AsyncGoalRepository(Awaited, GoalOperations):
    """What a block of `AsyncGoalStore.transaction` is handed: the calls of a `GoalRepository`, awaited."""

    def __init__(self, block: AsyncTransaction, repository: GoalRepository) -> None:
        """Use `AsyncGoalStore.transaction`."""
        self._block = block
        self._repository = repository

    async def run(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Runs work with the repository, on the transaction's thread."""
        return await self._block.call(partial(work, self._repository))

    @_like(GoalRepository.get)
    def get(self) -> None:
        """See `GoalRepository.get`."""

    @_like(GoalRepository.goals_page)
    def goals_page(self) -> None:
        """See `GoalRepository.goals_page`."""

    @_like(GoalRepository.count)
    def count(self) -> None:
        """See `GoalRepository.count`."""

    @_like(GoalRepository.usage)
    def usage(self) -> None:
        """See `GoalRepository.usage`."""

    @_like(GoalRepository.baseline)
    def baseline(self) -> None:
        """See `GoalRepository.baseline`."""

    @_like(GoalRepository.children)
    def children(self) -> None:
        """See `GoalRepository.children`."""

    @_like(GoalRepository.holds)
    def holds(self) -> None:
        """See `GoalRepository.holds`."""

    @_like(GoalRepository.headroom)
    def headroom(self) -> None:
        """See `GoalRepository.headroom`."""

    @_like(GoalRepository.breakdown)
    def breakdown(self) -> None:
        """See `GoalRepository.breakdown`."""

    async def apply(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, request: Request[Result]
    ) -> Result:
        """Carries out a request in the transaction and returns its result."""
        return await self._block.call(self._work_of(request))

    def send(self, request: Request[Any]) -> asyncio.Future[Any]:
        """See `HoldCalls`."""
        return self._block.send(self._work_of(request))

    def post(self, request: Request[Any]) -> None:
        """See `HoldCalls`."""
        self._block.post(self._work_of(request))

    def _work_of(self, request: Request[Result]) -> Callable[[], Result]:
        return partial(self._block.store.work_of(request), self._repository)

    def _grant(self, request: Reserve) -> Granting:
        return Granting(partial(self._reserve, request))

    async def _reserve(self, request: Reserve) -> AsyncHold:
        record, was_found = await self._block.call(self._work_of(request))
        return AsyncHold(self, record, was_found=was_found)

    async def _apply_while_some(self, request: Request[Any], results: Any) -> Any:
        while some := await self.apply(request):
            results += some
        return results
