"""GoalStore: the library's front door. It owns the transactions, the live listeners and the consumers."""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL

from goal_state import migrate as migrations
from goal_state.database import (
    Durability,
    check_busy_timeout,
    check_durability,
    check_writable,
    create_engine,
    create_file,
    database_path,
    detached_connection,
    enable_wal,
    inspect_file,
    is_memory,
    opened_file,
    set_pragmas,
)
from goal_state.errors import (
    ForkedStoreError,
    InvalidValueError,
    RequestError,
    StoreClosedError,
    UnsupportedDatabaseError,
)
from goal_state.events import EventKind, GoalEvent
from goal_state.executor import driver_connection
from goal_state.goals import Goal, GoalStatus, check_status
from goal_state.listeners import Listeners, Subscription
from goal_state.operations import GoalOperations
from goal_state.readers import PooledReaders, Readers, SharedReader, reading
from goal_state.repository import GoalRepository
from goal_state.requests import Request
from goal_state.turnstile import Turnstile, gate
from goal_state.usage import ThreadUsage, UsageBaseline
from goal_state.validation import (
    check_amount,
    check_name,
    check_optional_name,
    check_path,
    check_time_ms,
)
from goal_state.writer import Writer

# What a store needs only now and then is imported where it is used: opening one and reading a goal should
# cost little more than SQLAlchemy.
if TYPE_CHECKING:
    from goal_state.consumers import Consumer, Sink
    from goal_state.verification import Difference

__all__ = ["GoalStore"]

Result = TypeVar("Result")

_PAGE: Final = 500


class GoalStore(GoalOperations):
    """Keeps goals in one SQLite file, for any number of threads and processes.

    Every call that changes something is one transaction: when it returns, the change is durable; when it
    raises, nothing has changed. A store that was open when the process forked cannot be used in the
    child; open it again there. Use it as a context manager, or call `close()`.
    """

    def __init__(
        self, engine: Engine, connect: Callable[[], Connection], busy_timeout_seconds: float
    ) -> None:
        """Use `GoalStore.open`."""
        self._engine = engine
        self._connect = connect
        self._refusal: RequestError | None = None
        self._listeners = Listeners()
        connection = connect()
        self._file = opened_file(connection)
        self._repository = GoalRepository(connection)
        self._gate = gate(database_path(engine), busy_timeout_seconds)
        self._leave_waiting_to_gate()
        try:
            check_writable(connection)
        except BaseException:
            self._repository.executor.close()
            raise
        self._writer = Writer(
            self._repository,
            self._gate,
            check_file=self._file.check,
            reconnect=self._reconnect_writer,
            on_commit=self._listeners.commit,
            on_rollback=self._listeners.rollback,
        )
        self._readers: Readers = (
            SharedReader(self._repository, self._writer.lock)
            if is_memory(engine)
            else PooledReaders(self._connect_reader)
        )
        self._consumers: set[Consumer] = set()
        _open_stores.add(self)

    @classmethod
    def open(
        cls,
        target: str | os.PathLike[str] | URL | Engine,
        *,
        durability: Durability = "full",
        busy_timeout_seconds: float = 10.0,
        migrate: bool = True,
    ) -> GoalStore:
        """Opens a store, creating or upgrading its schema.

        Args:
            target: a path, `":memory:"`, a SQLAlchemy URL, or a host's own SQLite `Engine`, whose database
                then holds the goals beside its own tables. The engine stays the host's to dispose of.
            durability: `"full"`: what was acknowledged survives a power cut. `"normal"`: faster, but the
                last changes may be missing after one.
            busy_timeout_seconds: how long a call waits for another process that writes.
            migrate: False only checks the schema.

        Raises:
            DatabaseLocationError: there is no such folder, or the path is a directory.
            NotADatabaseError: the file is no SQLite database.
            ForeignDatabaseError: the file is another application's database.
            DatabaseReadOnlyError: the file or its folder cannot be written to.
            SchemaTooNewError: it was made by a newer version; it was left untouched.
            SchemaOutOfDateError: it is older than the library and `migrate` is False.
            UnsupportedDatabaseError: it is no SQLite database, or SQLite is too old.
            InvalidValueError: an argument is out of its bounds.
            DatabaseError: the database could not be opened.
        """
        check_durability(durability)
        timeout_ms = check_busy_timeout(busy_timeout_seconds)
        if isinstance(target, Engine):
            engine, own = target, False
            if engine.dialect.name != "sqlite":
                raise UnsupportedDatabaseError(
                    f"goals are kept in SQLite, not in {engine.dialect.name}"
                )
            revision = migrations.current(engine)
        else:
            engine, own = (
                create_engine(
                    target, durability=durability, busy_timeout_seconds=busy_timeout_seconds
                ),
                True,
            )
            path = database_path(engine)
            revision = None if path is None else inspect_file(path)
            if path is not None and revision is None and migrate:
                create_file(path)
        migrations.ensure_current(engine, revision, migrate=migrate)

        def connect() -> Connection:
            connection = detached_connection(engine)
            try:
                if not own:
                    set_pragmas(driver_connection(connection), durability, timeout_ms)
                enable_wal(connection, busy_timeout_seconds=busy_timeout_seconds)
            except BaseException:
                connection.close()
                raise
            return connection

        return cls(engine, connect, busy_timeout_seconds)

    # -- reading -----------------------------------------------------------------------------------

    def get(self, thread_id: str) -> Goal | None:
        """The thread's goal, or None.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        if self._refusal is not None:
            raise self._refusal
        reader = self._readers.acquire()
        try:
            return reader.get(thread_id)
        except sqlite3.Error as error:  # as in `reading`
            raise reader.executor.failed(error) from error
        finally:
            self._readers.release(reader)

    def goals(self, status: GoalStatus | str | None = None) -> Iterator[Goal]:
        """All goals (of a status), in the order in which they were made, in bounded memory.

        They are read a page at a time; each page is one snapshot.

        Raises:
            InvalidValueError: there is no such status.
        """
        wanted = None if status is None else check_status(status)
        return self._paged(
            lambda reader, after: reader.goals_page(after=after, status=wanted, limit=_PAGE),
            "",
            lambda goal: goal.goal_id,
        )

    def count(self, status: GoalStatus | str | None = None) -> int:
        """How many goals there are (of a status).

        Raises:
            InvalidValueError: there is no such status.
        """
        return self._read(lambda reader: reader.count(status))

    def usage(self, thread_id: str) -> ThreadUsage | None:
        """What the thread has used, all its counts together, and the turn that reported last, as
        `(info, turn_id)`; None if none was recorded.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        return self._read(lambda reader: reader.usage(thread_id))

    def baseline(self, thread_id: str, *, count_id: str | None = None) -> UsageBaseline | None:
        """From where the thread's next total is charged, whose that is, and how often its count has begun
        anew; None if no total of that count was recorded.

        Args:
            thread_id: the conversation.
            count_id: which of its counts; by default the one without a name.

        Raises:
            InvalidValueError: the thread id or the count id is out of its bounds.
        """
        return self._read(lambda reader: reader.baseline(thread_id, count_id))

    def events(
        self,
        *,
        after: int = 0,
        thread_id: str | None = None,
        goal_id: str | None = None,
        limit: int | None = None,
    ) -> Iterator[GoalEvent]:
        """The log in order, in bounded memory.

        Args:
            after: begin behind this position.
            thread_id: only events of this thread.
            goal_id: only events of this goal.
            limit: so many at the most.

        Raises:
            InvalidValueError: an argument is out of its bounds.
        """
        after = check_amount("after", after)
        thread_id = check_optional_name("thread_id", thread_id)
        goal_id = check_optional_name("goal_id", goal_id)
        left = None if limit is None else check_amount("limit", limit)

        def page(reader: GoalRepository, behind: int) -> list[GoalEvent]:
            if goal_id is not None:
                return reader.log.page_of_goal(goal_id, behind, _PAGE)
            if thread_id is not None:
                return reader.log.page_of_thread(thread_id, behind, _PAGE)
            return reader.log.page(behind, _PAGE)

        events = self._paged(page, after, lambda event: event.position)
        if goal_id is not None and thread_id is not None:
            events = (event for event in events if event.thread_id == thread_id)
        return (
            events
            if left is None
            else (event for event, _ in zip(events, range(left), strict=False))
        )

    def verify(self, thread_id: str | None = None) -> list[Difference]:
        """Recomputes every goal (or one thread's) from the log; an empty list means that all agree.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        from goal_state.verification import verify

        thread_id = check_optional_name("thread_id", thread_id)
        return self._read(lambda reader: list(verify(reader, thread_id)))

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
        self._check_open()
        if not callable(listener):
            raise InvalidValueError("listener", f"must be callable, not {type(listener).__name__}")
        with self._writer.lock:  # between two transactions, so that none is heard of by half
            subscription = self._listeners.subscribe(listener, kinds, thread_id)
            self._repository.log.on_event = self._listeners.written
        return subscription

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
        from goal_state.consumers import Consumer

        self._check_open()
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

    def read_events(self, after: int, limit: int) -> list[GoalEvent]:
        """One page of the log: up to `limit` events behind a position.

        Raises:
            InvalidValueError: an argument is out of its bounds.
        """
        after, limit = check_amount("after", after), check_amount("limit", limit)
        return self._read(lambda reader: reader.log.page(after, limit))

    def last_position(self) -> int:
        """The position of the newest event, 0 in an empty log."""
        return self._read(lambda reader: reader.log.last_position())

    def prune_events(self, *, before: datetime) -> int:
        """Deletes events from before a time, in small transactions, so that others go on writing.

        What `verify` needs is kept: of each goal the `created` event and a balance of what was pruned. Of
        a goal that is gone nothing is left once its last event is pruned. No event is pruned that a
        durable consumer has not taken yet. An idempotency key is forgotten with its event: a repeat of a
        charge older than `before` would be charged again.

        Args:
            before: an aware datetime.

        Returns:
            How many events were deleted.

        Raises:
            InvalidValueError: the time has no time zone.
        """
        from goal_state.retention import last_prunable_position, prune_chunk, prune_ended

        before_ms = check_time_ms("before", before)
        through = self._read(lambda reader: last_prunable_position(reader, before_ms))
        pruned = 0
        while (
            count := self.transact(lambda repository: prune_chunk(repository, through, 2000))
        ) is not None:
            pruned += count
        while count := self.transact(lambda repository: prune_ended(repository, through)):
            pruned += count
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
        from goal_state.transfer import back_up

        place = check_path("path", path)
        self._read(lambda reader: back_up(reader, place, progress))

    def export_lines(self) -> Iterator[str]:
        """Everything in the store as lines of JSON, as of one snapshot, in bounded memory.

        A store in memory can do nothing else until the last line was taken.
        """
        from goal_state.transfer import export_lines

        self._check_open()

        def lines() -> Iterator[str]:
            with reading(self._readers) as reader:
                yield from export_lines(reader)

        return lines()

    def import_lines(self, lines: Callable[[], Iterable[str]]) -> int:
        """Puts what `export_lines` gave into this store, which must be empty; all of it or nothing.

        Args:
            lines: gives the lines from the first on, each time it is called.

        Returns:
            How many rows there were.

        Raises:
            StoreNotEmptyError: the store holds something.
            NotAnExportError: a line is not one of ours.
        """
        from goal_state.transfer import import_lines

        return self.transact(lambda repository: import_lines(repository, lines()))

    # -- transactions ------------------------------------------------------------------------------

    def apply(self, request: Request[Result]) -> Result:
        """Carries out a request in a transaction of its own and returns its result once it is durable."""
        return self.transact(lambda repository: repository.apply(request))

    def transact(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Runs several operations in one transaction: all of them or none.

        The work may be run again after what it did was undone, so it should do nothing but call the
        repository that it is given.
        """
        if self._refusal is not None:
            raise self._refusal
        result = self._writer.run(work)
        if self._listeners.present:
            self._listeners.deliver()
        return result

    def close(self) -> None:
        """Stops the consumers (each drains for five seconds at the most) and closes the connections.

        Closing twice is fine; any other call after it raises `StoreClosedError`.
        """
        if self._refusal is not None:
            return
        for consumer in list(self._consumers):
            consumer.close()
        with self._writer.lock:
            self._refusal = StoreClosedError("the store is closed; open it again")
            self._writer.refusal = self._refusal
            self._readers.close()
            self._repository.executor.close()
            self._gate.close()
        _open_stores.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- connections -------------------------------------------------------------------------------

    def _connect_reader(self) -> GoalRepository:
        self._file.check()  # else SQLite would make an empty file where there is none
        return GoalRepository(self._connect())

    def _reconnect_writer(self) -> None:
        self._file.check()
        self._repository.executor.reconnect(self._connect)
        self._leave_waiting_to_gate()

    def _leave_waiting_to_gate(self) -> None:
        if isinstance(self._gate, Turnstile):
            self._repository.executor.wait_for_lock(0)

    # -- shared steps ------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    def _read(self, work: Callable[[GoalRepository], Result]) -> Result:
        self._check_open()
        with reading(self._readers) as reader:
            return work(reader)

    def _paged(
        self,
        page: Callable[[GoalRepository, Any], list[Result]],
        behind: Any,
        key: Callable[[Result], Any],
    ) -> Iterator[Result]:
        """The rows of page after page, each read behind the key of the last row before it."""
        self._check_open()

        def rows(behind: Any) -> Iterator[Result]:
            while True:
                self._check_open()
                with reading(self._readers) as reader:
                    batch = page(reader, behind)
                yield from batch
                if len(batch) < _PAGE:
                    return
                behind = key(batch[-1])

        return rows(behind)

    def _leave_to_parent(self) -> None:
        """In a forked child: the connections are the parent's, not even to be closed here."""
        _inherited.append((self._engine, self._repository, self._readers))
        self._refusal = ForkedStoreError(
            "the store was opened before os.fork(); open it again in the child"
        )
        self._consumers.clear()


_open_stores: weakref.WeakSet[GoalStore] = weakref.WeakSet()
_inherited: list[object] = []


def _after_fork_in_child() -> None:
    for store in list(_open_stores):
        store._leave_to_parent()  # pyright: ignore[reportPrivateUsage]
    _open_stores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
