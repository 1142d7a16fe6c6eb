"""AsyncGoalStore: the calls of a store, awaited."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, NoReturn, ParamSpec, Self, TypeVar, cast

from goal_state.aio.delivery import AsyncConsumer, AsyncSink, LoopSink, Relay
from goal_state.aio.lane import Lane, call_work, one_by_one
from goal_state.aio.transaction import AsyncTransaction, check_not_nested
from goal_state.aio.turns import Turns
from goal_state.delivery.consumers import Consumer
from goal_state.delivery.listeners import Subscription
from goal_state.domain.counting import CountedTokens
from goal_state.domain.events import EventKind, GoalEvent
from goal_state.domain.hold_requests import ReleaseHold, Reserve
from goal_state.domain.requests import Request
from goal_state.domain.tariff import Tariff
from goal_state.errors import InvalidValueError, StoreClosedError
from goal_state.operations.async_hold import AsyncHold, Granting, completed
from goal_state.operations.calls import Awaited
from goal_state.operations.goal_operations import GoalOperations
from goal_state.operations.spending import NamesSpending
from goal_state.reading import GoalReads, Pages
from goal_state.storage.forks import FileIdentity, register
from goal_state.storage.repository import GoalRepository
from goal_state.store import GoalStore

if TYPE_CHECKING:
    from goal_state.domain.holds import HoldRecord

__all__ = ["AsyncGoalStore", "Opening"]

P = ParamSpec("P")
Result = TypeVar("Result")

_MOST_AT_ONCE: Final = 256
"""The most calls in one transaction, so that no caller waits for too many others."""
_MOST_LONG_CALLS: Final = 16
"""How many calls that take seconds are carried out at the same time."""
_LINES_AT_ONCE: Final = 500


class Opening:
    """A store that is being opened: await it, or enter it as a block, at whose end it is closed.

    store = await AsyncGoalStore.open("goals.db")
    async with AsyncGoalStore.open("goals.db") as store: ...
    """

    def __init__(self, open_store: Callable[[], GoalStore]) -> None:
        """Use `AsyncGoalStore.open`."""
        self._open_store = open_store
        self._store: AsyncGoalStore | None = None

    async def _open(self) -> AsyncGoalStore:
        lane = Lane("open", one_by_one(call_work), most_at_once=1, most_threads=2)
        return AsyncGoalStore(await lane.call(self._open_store, undo=lambda store: store.close))

    def __await__(self) -> Generator[Any, Any, AsyncGoalStore]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncGoalStore:
        self._store = await self._open()
        return self._store

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._store is not None:
            await self._store.__aexit__(kind, error, traceback)


def _opening(open_store: Callable[P, GoalStore]) -> Callable[[object], Callable[P, Opening]]:
    """Declares what opens a store as another function does."""

    @functools.wraps(open_store)
    def opening(*args: P.args, **options: P.kwargs) -> Opening:
        return Opening(lambda: open_store(*args, **options))

    return lambda _: opening


def _at_length(
    method: Callable[Concatenate[GoalStore, P], Result],
) -> Callable[[object], Callable[Concatenate[AsyncGoalStore, P], Coroutine[Any, Any, Result]]]:
    """Declares an awaited call that is like a method of the store, and may take seconds."""

    @functools.wraps(method)
    async def at_length(store: AsyncGoalStore, *args: P.args, **options: P.kwargs) -> Result:
        return await store.call_at_length(lambda inner: method(inner, *args, **options))

    return lambda _: at_length


class AsyncGoalStore(Awaited, GoalOperations, GoalReads, NamesSpending):
    """A `GoalStore` for asyncio: each of its calls, awaited. Its event loop never waits for a lock, a disk or
    another process.

        async with AsyncGoalStore.open("goals.db") as store:
            await store.create("thread-1", "Ship the parser", token_budget=200_000)
            await store.charge("thread-1", response.usage, response_id=response.id)
            async for event in store.events(thread_id="thread-1"): ...

    Calls that wait together are committed together, in the order in which they were made: many tasks share
    the price of one. Any number of loops, in any number of threads, may share a store.

    A call that is cancelled was carried out whole or not at all: not, where it had still to wait. A `reserve`
    that is cancelled gives back the hold that it was granted. A hold that is being ended is ended, and a
    block that is being committed is committed, before a cancellation leaves.

    What prices a usage runs on the loop; what you hand to `transact`, `backup`, `restore` and `import_lines`
    runs on another thread. Forks are as for `GoalStore`: the child goes on with the store, in a loop of its
    own; the calls that its parent's loop had made stay with the parent.
    """

    def __init__(self, store: GoalStore) -> None:
        """`AsyncGoalStore.open` opens one.

        Args:
            store: a store that is open, whose calls are to be awaited as well; `close` closes it.
        """
        self._store = store
        self._writes = Lane("writes", store.carry_out_together, most_at_once=_MOST_AT_ONCE)
        self._reads = Lane("reads", one_by_one(store.read), most_at_once=_MOST_AT_ONCE)
        self._transactions = Lane("transactions", one_by_one(call_work), most_at_once=1)
        self._long_calls = Lane(
            "long calls", one_by_one(call_work), most_at_once=1, most_threads=_MOST_LONG_CALLS
        )
        self._lanes = (self._writes, self._reads, self._transactions, self._long_calls)
        self._turns = Turns()
        self._is_closing = False
        self._closed: Future[None] = Future()
        register(self)
        # Of a store that nobody closed no thread is left.
        weakref.finalize(self, _stop, self._lanes).atexit = False

    @staticmethod
    @_opening(GoalStore.open)
    def open() -> None:
        """See `GoalStore.open`."""

    @property
    def blocking(self) -> GoalStore:
        """The same store for code that runs outside of an event loop: its calls block."""
        return self._store

    @property
    def counted_tokens(self) -> CountedTokens:
        """Which tokens of a usage the goals pay for; called with a usage, it says how many."""
        return self._store.counted_tokens

    @property
    def tariff(self) -> Tariff:
        """How usage is counted and priced before it is charged."""
        return self._store.tariff

    # -- changing ----------------------------------------------------------------------------------

    async def apply(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, request: Request[Result]
    ) -> Result:
        """Carries out a request, in one transaction with others that wait, and returns its result once it is
        durable.

        Raises:
            InvalidValueError: it is no request.
        """
        self._check()
        return await self._writes.call(self._store.work_of(request))

    async def carry_out(self, work: Callable[[GoalRepository], Result]) -> Result:
        """As `apply`, for work of the library's own: it may share a transaction with other callers' requests,
        and run again after a rollback. It raises nothing but `GoalStateError`s.
        """
        self._check()
        return await self._writes.call(work)

    async def transact(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Runs several operations in one transaction, as `GoalStore.transact`: on another thread, once."""
        self._check()
        async with self._turns:
            return await self._transactions.call(partial(self._store.transact, work))

    def transaction(self) -> AsyncTransaction:
        """Runs several operations in one transaction: the block of an `async with` statement.

            async with store.transaction() as tx:
                await tx.charge("thread-1", response.usage, response_id=response.id)
                await tx.set("thread-1", status="complete")

        It is committed at the end of the block, or undone where an exception leaves it, a cancellation too.
        Inside it, call what it hands over: a call of the store there raises `NestedCallError`, in tasks that
        were begun there as well. Everybody else who writes waits meanwhile, so await no slow work there.

        Raises:
            NestedCallError: this task is in the midst of a transaction of the store.
            DatabaseError: the database could not do it; nothing was changed.
        """
        self._check()
        return AsyncTransaction(self._store, self._transactions, self._turns)

    def _grant(self, request: Reserve) -> Granting:
        return Granting(partial(self._reserve, request))

    async def _reserve(self, request: Reserve) -> AsyncHold:
        self._check()
        record, was_found = await self._writes.call(
            self._store.work_of(request), undo=self._give_back
        )
        return AsyncHold(self, record, was_found=was_found)

    def _give_back(
        self, granted: tuple[HoldRecord, bool]
    ) -> Callable[[GoalRepository], object] | None:
        record, was_found = granted
        return None if was_found else self._store.work_of(ReleaseHold(record.hold_id))

    async def _apply_while_some(self, request: Request[Any], results: Any) -> Any:
        while some := await self.apply(request):
            results += some
        return results

    def send(self, request: Request[Any]) -> asyncio.Future[Any]:
        """See `HoldCalls`."""
        return self.send_work(self._store.work_of(request))

    def send_work(self, work: Callable[[GoalRepository], Any]) -> asyncio.Future[Any]:
        """As `carry_out`, whatever becomes of who waits for it."""
        self._check()
        return self._writes.send(work)

    def post(self, request: Request[Any]) -> None:
        """See `HoldCalls`."""
        self._writes.post(self._store.work_of(request))

    # -- reading -----------------------------------------------------------------------------------

    async def read(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, work: Callable[[GoalRepository], Result]
    ) -> Result:
        """Runs work with a repository outside of any transaction, on another thread."""
        self._check()
        return await self._reads.call(work)

    async def _read_at_length(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, work: Callable[[GoalRepository], Result]
    ) -> Result:
        return await self.call_at_length(lambda store: store.read(work))

    def _paged(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pages: Pages[Result]
    ) -> AsyncIterator[Result]:
        self._check()

        async def rows() -> AsyncIterator[Result]:
            while not pages.is_over:
                for row in await self.read(pages.next):
                    yield row

        return rows()

    # -- events ------------------------------------------------------------------------------------

    async def subscribe(
        self,
        listener: Callable[[GoalEvent], object],
        *,
        kinds: Iterable[EventKind | str] | None = None,
        thread_id: str | None = None,
    ) -> Subscription:
        """Calls the listener with each event that this store commits from now on, in order, on this loop.

        It is called after the commit, and before the call that caused it returns to this loop. An error in
        it is logged and hurts no one else. What other processes write only `consume` and `events` show.

        Args:
            listener: takes one event: a plain function.
            kinds: only events of these kinds.
            thread_id: only events of this thread.

        Returns:
            A handle; `close()`, or the end of its `with` block, ends the subscription.

        Raises:
            InvalidValueError: there is no such kind, the thread id is out of its bounds, or the listener is
                no plain function.
        """
        if not callable(listener) or inspect.iscoroutinefunction(listener):
            raise InvalidValueError(
                "listener", f"must be a plain function, not {type(listener).__name__}"
            )
        relay = Relay(asyncio.get_running_loop(), listener)

        def subscribe(store: GoalStore) -> Subscription:
            relay.subscription = store.subscribe(relay, kinds=kinds, thread_id=thread_id)
            return relay.subscription

        return await self.call_at_length(subscribe, undo=lambda subscription: subscription.close)

    async def consume(self, name: str, sink: AsyncSink, *, batch_size: int = 100) -> AsyncConsumer:
        """Hands the whole log to a sink, in order, at least once, across restarts and processes.

        `await sink(events)` runs on this loop with up to `batch_size` events; then it is noted how far it
        got. A sink that raises gets the same events again, after a growing pause. One worker at a time
        holds a name; others that consume under it wait until it stops or dies.

        Args:
            name: under which the position is kept, 1 to 256 characters.
            sink: a coroutine function that takes a list of events.
            batch_size: events per call at the most, from 1 to 10,000.

        Returns:
            The running consumer; `close()` stops it, and so does closing the store.

        Raises:
            InvalidValueError: an argument is out of its bounds.
        """
        if not callable(sink):
            raise InvalidValueError("sink", f"must be callable, not {type(sink).__name__}")
        on_loop = LoopSink(asyncio.get_running_loop(), sink)

        def consume(store: GoalStore) -> Consumer:
            on_loop.consumer = store.consume(name, on_loop, batch_size=batch_size)
            return on_loop.consumer

        return AsyncConsumer(
            await self.call_at_length(consume, undo=lambda consumer: consumer.close)
        )

    # -- the whole store ---------------------------------------------------------------------------

    @_at_length(GoalStore.prune_events)
    def prune_events(self) -> None:
        """See `GoalStore.prune_events`."""

    @_at_length(GoalStore.backup)
    def backup(self) -> None:
        """See `GoalStore.backup`."""

    @_at_length(GoalStore.restore)
    def restore(self) -> None:
        """See `GoalStore.restore`."""

    @_at_length(GoalStore.import_lines)
    def import_lines(self) -> None:
        """See `GoalStore.import_lines`."""

    async def export_lines(self) -> AsyncIterator[str]:
        """Everything in the store as lines of JSON, as of one snapshot, in bounded memory.

        A store in memory can do nothing else until the last line was taken.
        """
        self._check()
        lines = self._store.export_lines()
        lane = Lane("export", one_by_one(call_work), most_at_once=1)
        try:
            while some := await lane.call(lambda: list(islice(lines, _LINES_AT_ONCE))):
                for line in some:
                    yield line
        finally:
            lane.post(cast("Generator[str]", lines).close)
            lane.stop()

    async def call_at_length(
        self,
        work: Callable[[GoalStore], Result],
        *,
        undo: Callable[[Result], Callable[[], object]] | None = None,
    ) -> Result:
        """Has work that may take seconds done with the store, on a thread that nothing else waits for.

        Args:
            work: what to do.
            undo: given its result, what undoes it where the caller was cancelled meanwhile.
        """
        self._check()
        return await self._long_calls.call(partial(work, self._store), undo=undo)

    # -- closing -----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Carries out every call that was made before, waits for a transaction that is open, stops the
        consumers (they drain side by side, five seconds at the most) and closes the connections. Cancelled,
        it has closed the store all the same.

        Closing twice is fine; any other call after it raises `StoreClosedError`.

        Raises:
            NestedCallError: this task is inside a transaction of the store.
        """
        check_not_nested(self._store)
        if not self._is_closing:
            self._is_closing = True
            self._turns.ask(self._begin_to_close)
        await completed(asyncio.wrap_future(self._closed))

    def _begin_to_close(self) -> bool:
        threading.Thread(target=self._close, name="goal-state close").start()
        return True

    def _close(self) -> None:
        try:
            _stop(self._lanes)
            for lane in self._lanes:
                lane.join()
            self._store.close()
        except BaseException as error:
            self._closed.set_exception(error)
        else:
            self._closed.set_result(None)
        finally:
            self._turns.give_up()

    def _check(self) -> None:
        if self._is_closing:
            raise StoreClosedError("the store is closed; open it again")
        check_not_nested(self._store)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # One that is thrown away may await nothing more.
        if kind is not GeneratorExit:
            await self.close()

    def __repr__(self) -> str:
        return f"<Async{repr(self._store)[1:]}"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an AsyncGoalStore cannot be pickled or copied, for it has connections of its process: hand on"
            " its path, and call AsyncGoalStore.open there"
        )

    # -- forks -------------------------------------------------------------------------------------

    @property
    def files(self) -> list[FileIdentity]:
        """See `forks.Holder`: the backend's own to tell."""
        return []

    def let_go(self) -> bool:
        """See `forks.Holder`."""
        return True

    def after_fork(self, *, in_child: bool, let_go: bool) -> None:  # noqa: ARG002
        """See `forks.Holder`."""
        if in_child:
            for lane in self._lanes:
                lane.forget_threads()
            self._turns.forget()


def _stop(lanes: Iterable[Lane]) -> None:
    for lane in lanes:
        lane.stop()
