"""GoalStore: the library's front door. It owns the transactions, the live listeners and the consumers."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from sqlalchemy import Engine
from sqlalchemy.engine import URL

from goal_state import migrate as migrations
from goal_state.delivery.listeners import Listeners, Subscription
from goal_state.domain.counting import CountedTokens, Counting
from goal_state.domain.events import EventKind, GoalEvent
from goal_state.domain.prices import Prices
from goal_state.domain.requests import Request
from goal_state.domain.tariff import Tariff
from goal_state.domain.values import check_amount, check_name, check_path, check_time_ms
from goal_state.errors import InvalidValueError, RequestError
from goal_state.operations.goal_operations import GoalOperations
from goal_state.operations.spending import NamesSpending
from goal_state.pricing import tariff_of
from goal_state.reading import GoalReads, Pages
from goal_state.storage.backend import Backend, Outcome
from goal_state.storage.blocks import Block
from goal_state.storage.forks import FileIdentity, register
from goal_state.storage.opening import open_backend
from goal_state.storage.options import Durability
from goal_state.storage.repository import GoalRepository, RequestWork

# What a store needs only now and then is imported where it is used: opening one and reading a goal should
# cost little more than SQLAlchemy.
if TYPE_CHECKING:
    from goal_state.delivery.consumers import Consumer, Sink

__all__ = ["GoalStore"]

Result = TypeVar("Result")


class GoalStore(GoalOperations, GoalReads, NamesSpending):
    """Keeps goals in one SQLite file, for any number of threads and processes.

    Every call that changes something is one transaction: when it returns, the change is durable; when it
    raises, nothing has changed. Use it as a context manager, or call `close()`.

    A process with an open store may fork: parent and child go on with it. Where the store cannot let go of
    its database for the fork (it is in memory, or a transaction, an export or a backup is open), the child
    gets a `ForkedStoreError`.

    A signal handler may call the store: what its thread is in the midst of a transaction of the same store
    for is refused with `NestedCallError`; `close()` then takes place when that transaction is over.
    """

    def __init__(self, backend: Backend, listeners: Listeners) -> None:
        """Use `GoalStore.open`."""
        self._backend = backend
        self._listeners = listeners
        self._tariff = backend.writes_with.tariff
        self._consumers: set[Consumer] = set()
        self._closes_after_call = self._is_closed = False
        register(self)

    @classmethod
    def open(
        cls,
        target: str | os.PathLike[str] | URL | Engine,
        *,
        durability: Durability = "full",
        busy_timeout_seconds: float = 10.0,
        migrate: bool = True,
        counted_tokens: Counting = "uncached",
        prices: Prices | None = None,
    ) -> GoalStore:
        """Opens a store, creating or upgrading its schema.

        Args:
            target: a path, `":memory:"`, a SQLAlchemy URL, or a host's own SQLite `Engine`, whose database
                then holds the goals beside its own tables. The engine stays the host's to dispose of.
            durability: `"full"`: what was acknowledged survives a power cut. `"normal"`: faster, but the
                last changes may be missing after one.
            busy_timeout_seconds: how long a call waits for another process that writes.
            migrate: False only checks the schema.
            counted_tokens: which tokens of a usage a goal pays for: `"uncached"` (input without cached, plus
                output), `"all"` (with cached), or a named function of a `TokenUsage`. The first store on a
                database chooses; its name is kept there, so that no goal adds up different counts.
            prices: what usage costs: a function of a `TokenUsage` and a model's name (or None) that returns a
                `Decimal`, or None where it does not know; `goal_state.prices.GenaiPrices()` is one. It is
                called once for each response, on the caller's thread. All prices of a database are in one
                currency; where the function has a `currency`, its name is kept there and checked.

        Raises:
            SettingsConflictError: the database's goals are charged with other `counted_tokens`, or in another
                currency.
            DatabaseLocationError: there is no such folder, or the path is a directory.
            NotADatabaseError: the file is no SQLite database.
            ForeignDatabaseError: the file is another application's database.
            DatabaseReadOnlyError: the file or its folder cannot be written to.
            SchemaTooNewError: it was made by a newer version; it was left untouched.
            SchemaOutOfDateError: it is older than the library and `migrate` is False.
            SchemaIncompleteError: tables of ours were dropped, or one of yours has the name of one of ours.
            TransactionError: a transaction is open on the one connection of an engine in memory.
            UnsupportedDatabaseError: it is no SQLite database, or SQLite is too old.
            InvalidValueError: an argument is out of its bounds.
            DatabaseError: the database could not be opened.
        """
        listeners = Listeners()
        return cls(
            open_backend(
                target,
                tariff=tariff_of(counted_tokens, prices),
                durability=durability,
                busy_timeout_seconds=busy_timeout_seconds,
                migrations=migrations,
                migrate=migrate,
                on_begin=listeners.begin,
                on_end=listeners.end,
            ),
            listeners,
        )

    def read(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Runs work that only reads, outside of any transaction, with a repository that no other thread uses
        meanwhile.
        """
        return self._backend.read(work)

    def _paged(self, pages: Pages[Result]) -> Iterator[Result]:
        self._backend.check_open()

        def rows() -> Iterator[Result]:
            while not pages.is_over:
                yield from self.read(pages.next)

        return rows()

    @property
    def counted_tokens(self) -> CountedTokens:
        """Which tokens of a usage the goals pay for; called with a usage, it says how many."""
        return self._tariff.counted_tokens

    @property
    def tariff(self) -> Tariff:
        """How usage is counted and priced before it is charged."""
        return self._tariff

    # -- events ------------------------------------------------------------------------------------

    def subscribe(
        self,
        listener: Callable[[GoalEvent], object],
        *,
        kinds: Iterable[EventKind | str] | None = None,
        thread_id: str | None = None,
    ) -> Subscription:
        """Calls the listener with each event that this store commits from now on, in order.

        It is called on the thread of a writer, after the commit and before that writer's call returns
        (or by another writer that is just delivering). An error in it is logged and hurts no one else.
        What other processes write, and hosts with a `GoalRepository`, only `consume` and `events` show.

        Args:
            listener: takes one event.
            kinds: only events of these kinds.
            thread_id: only events of this thread.

        Returns:
            A handle; `close()` ends the subscription.

        Raises:
            InvalidValueError: there is no such kind, or the thread id is out of its bounds.
        """
        self._backend.check()
        if not callable(listener):
            raise InvalidValueError("listener", f"must be callable, not {type(listener).__name__}")

        def subscribe() -> Subscription:
            subscription = self._listeners.subscribe(listener, kinds, thread_id)
            self._backend.writes_with.log.on_event = self._listeners.written
            return subscription

        # So that each transaction is heard of as a whole.
        return self._backend.between_transactions(subscribe)

    def consume(self, name: str, sink: Sink, *, batch_size: int = 100) -> Consumer:
        """Hands the whole log to a sink, in order, at least once, across restarts and processes.

        A background thread calls `sink(events)` with up to `batch_size` events and then notes how far it
        got. A sink that raises gets the same events again, after a growing pause. One worker at a time
        holds a name; others that consume under it wait until it stops or dies.

        Args:
            name: under which the position is kept, 1 to 256 characters.
            sink: takes a list of events.
            batch_size: events per call at the most, from 1 to 10,000.

        Returns:
            The running consumer; `close()` stops it, and so does closing the store.

        Raises:
            InvalidValueError: an argument is out of its bounds.
        """
        from goal_state.delivery.consumers import Consumer

        self._backend.check()
        name = check_name("name", name)
        if not callable(sink):
            raise InvalidValueError("sink", f"must be callable, not {type(sink).__name__}")
        if not 1 <= check_amount("batch_size", batch_size) <= 10_000:
            raise InvalidValueError("batch_size", f"must be from 1 to 10000, is {batch_size}")
        consumer = Consumer(
            self, name, sink, batch_size=batch_size, on_close=self._consumers.discard
        )
        self._consumers.add(consumer)
        return consumer

    def prune_events(self, *, before: datetime) -> int:
        """Deletes events from before a time, in small transactions, so that others go on writing.

        What `verify` needs is kept: of each goal the `created` event and a balance of what was pruned. Of
        a goal that is gone nothing is left once its last event is pruned. No event is pruned that a
        durable consumer has not taken yet. An idempotency key is forgotten with its event: a repeat of a
        charge older than `before` would be charged again. Holds that ended before it are forgotten, too.

        Args:
            before: an aware datetime.

        Returns:
            How many events were deleted.

        Raises:
            InvalidValueError: the time has no time zone.
        """
        from goal_state.storage.retention import (
            last_prunable_position,
            prune_chunk,
            prune_ended,
            prune_holds,
        )

        before_ms = check_time_ms("before", before)
        through = self._backend.read(lambda reader: last_prunable_position(reader, before_ms))
        pruned = 0
        while (
            count := self._carry_out(lambda repository: prune_chunk(repository, through, 2000))
        ) is not None:
            pruned += count
        while count := self._carry_out(lambda repository: prune_ended(repository, through)):
            pruned += count
        self._carry_out(lambda repository: prune_holds(repository, before_ms))
        return pruned

    def backup(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Makes a consistent copy of the database while others go on writing.

        Args:
            path: a new file; it appears when the copy is whole, readable by its owner only.
            progress: called now and then with the pages left and the pages in all.

        Raises:
            DatabaseLocationError: the file exists, or its folder does not.
            InvalidValueError: it is no path.
            OSError: the file cannot be made there.
            DatabaseError: the copy could not be made; nothing of it is left.
        """
        self._backend.back_up(check_path("path", path), progress)

    def restore(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Goes back to a backup: everything becomes as it was when that was made, also for whoever else has
        the database open, in this process or another. Never put a backup in place by moving or copying it
        over the database.

        It is the whole database, a host's own tables in it as well, in one transaction: others see all of it
        or nothing. What was charged since is gone, with its idempotency keys; live listeners hear of nothing;
        durable consumers go on from where they were. A backup of an older schema is upgraded.

        Args:
            path: the backup; it is left as it is.
            progress: called now and then with the pages left to be read and the pages in all.

        Raises:
            DatabaseLocationError: there is no such file, it holds no goals of ours, or it is the database.
            SchemaTooNewError: the backup was made by a newer version.
            DatabaseCorruptError: the backup is damaged; the database was left as it was.
            SettingsConflictError: the backup's goals are charged with other `counted_tokens`.
            DatabaseBusyError: others kept the write lock; the database was left as it was.
            InvalidValueError: it is no path.
            OSError: there is no room for a copy beside the database.
        """
        self._backend.restore(check_path("path", path), progress)

    def export_lines(self) -> Iterator[str]:
        """Everything in the store as lines of JSON, as of one snapshot, in bounded memory.

        A store in memory can do nothing else until the last line was taken.
        """
        from goal_state.storage.transfer import export_lines

        self._backend.check()

        def lines() -> Iterator[str]:
            with self._backend.stream(export_lines) as rows:
                yield from rows

        return lines()

    def import_lines(self, lines: Iterable[str]) -> int:
        """Puts what `export_lines` gave into this store, which must be empty; all of it or nothing.

        Args:
            lines: the lines, with or without their ends; read once, in bounded memory, while the
                transaction is open.

        Returns:
            How many rows there were.

        Raises:
            StoreNotEmptyError: the store holds something.
            NotAnExportError: it is no whole and unchanged export; with the number of the line.
            InvalidValueError: `lines` cannot be iterated over.
        """
        from goal_state.storage.transfer import import_lines

        if not isinstance(lines, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError("lines", f"must be iterable, not {type(lines).__name__}")
        return self.transact(lambda repository: import_lines(repository, lines))

    # -- transactions ------------------------------------------------------------------------------

    def apply(self, request: Request[Result]) -> Result:
        """Carries out a request in a transaction of its own and returns its result once it is durable.

        Raises:
            InvalidValueError: it is no request.
        """
        try:
            return self._carry_out(self.work_of(request))
        except RequestError as error:
            if (late := error.overdue_thread_id) is not None:  # what noticed it was rolled back
                self._carry_out(lambda repository: repository.notice(late))
            raise

    def work_of(self, request: Request[Result]) -> Callable[[GoalRepository], Result]:
        """What carries out a request in a transaction. What its usage costs is found out here and now.

        Raises:
            InvalidValueError: it is no request.
        """
        if not isinstance(request, Request):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError("request", f"must be a request, not {type(request).__name__}")
        return RequestWork(request.rated(self._tariff))

    def carry_out_together(self, works: Sequence[Callable[[GoalRepository], Any]]) -> list[Outcome]:
        """Carries out what `work_of` made of several requests, in their order, as if each were applied by
        itself, but in as few transactions as it takes; returns once all of them are durable.
        """
        try:
            outcomes = self._backend.write_together(works)
            overdue = {
                error.overdue_thread_id
                for _, error in outcomes
                if isinstance(error, RequestError) and error.overdue_thread_id is not None
            }
            if overdue:  # the transactions that noticed it were rolled back
                self._backend.write_together(
                    [partial(GoalRepository.notice, thread_id=thread_id) for thread_id in overdue]
                )
        finally:
            if self._closes_after_call:
                self.close()
        self._tell()
        return outcomes

    def transact(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Runs several operations in one transaction: all of them or none.

        The work runs once, on the caller's thread. Inside it, call the repository that it is given: a call
        of the store there raises `NestedCallError`.

        Raises:
            NestedCallError: this thread is in the midst of a transaction of the store.
            DatabaseError: the database could not do it; nothing was changed.
        """
        try:
            result = self._backend.transact(work)
        finally:
            if self._closes_after_call:
                self.close()
        self._tell()
        return result

    def transaction(self) -> AbstractContextManager[GoalRepository]:
        """Runs several operations in one transaction, as `transact`: the block of a `with` statement.

            with store.transaction() as tx:
                tx.charge("thread-1", response.usage, response_id=response.id)
                tx.set("thread-1", status="complete")

        It is committed at the end of the block, on the thread that entered it, or undone where an exception
        leaves the block. Inside it, call the repository that it hands over: a call of the store there raises
        `NestedCallError`. Everybody else who writes waits meanwhile, so do no slow work there.

        Raises:
            NestedCallError: this thread is in the midst of a transaction of the store.
            DatabaseError: the database could not do it; nothing was changed.
        """
        return Block(self._block())

    def _block(self) -> Generator[GoalRepository, bool, None]:
        try:
            yield from self._backend.block()
        finally:
            if self._closes_after_call:
                self.close()
        self._tell()

    def _carry_out(self, work: Callable[[GoalRepository], Result]) -> Result:
        """As `transact`, for work of the library's own, which shares a commit with that of other callers."""
        try:
            result = self._backend.write(work)
        finally:
            if self._closes_after_call:
                self.close()
        self._tell()
        return result

    def _tell(self) -> None:
        """Tells of what was committed."""
        if self._consumers:
            for consumer in list(self._consumers):
                consumer.nudge()
        if self._listeners.present:
            self._listeners.deliver()

    def close(self) -> None:
        """Stops the consumers (they drain side by side, five seconds at the most) and closes all connections.

        Closing twice is fine; any other call after it raises `StoreClosedError`. A signal handler may close
        the store, too: if its thread is in the midst of a call, that call is finished first.
        """
        if self._is_closed:
            return
        if self._backend.is_mine:
            self._closes_after_call = True
            return
        self._closes_after_call = False
        if self._consumers:
            from goal_state.delivery.consumers import CLOSE_SECONDS, Consumer

            Consumer.close_all(list(self._consumers), CLOSE_SECONDS)
        self._backend.close()
        self._is_closed = True

    def __repr__(self) -> str:
        closed = ", closed" if self._is_closed else ""
        return f"<GoalStore {self._backend.location!r}{closed}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a GoalStore cannot be pickled or copied, for it has connections of its process: hand on its"
            " path, and call GoalStore.open there"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
            self._listeners.leave_to_parent()
            self._consumers.clear()
