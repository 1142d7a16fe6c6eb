"""The SQLite backend of a store: one writing connection, several reading ones, and the database file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import Engine
from sqlalchemy.engine import URL

from goal_state.domain.tariff import Tariff
from goal_state.errors import ForkedStoreError, RequestError, StoreClosedError, fresh
from goal_state.storage.backend import Migrations, Outcome
from goal_state.storage.forks import FileIdentity, register, until_held, while_connecting
from goal_state.storage.options import Durability, Progress, check_busy_timeout, check_durability
from goal_state.storage.repository import GoalRepository
from goal_state.storage.sqlite.connections import (
    check_writable,
    create_engine,
    opened_file,
    require_sqlite3,
)
from goal_state.storage.sqlite.executor import Executor
from goal_state.storage.sqlite.file_guard import forget_log_owner, note_log_owner
from goal_state.storage.sqlite.group_commit import Writer, nested_call
from goal_state.storage.sqlite.location import (
    create_file,
    inspect_file,
    is_memory_name,
    sqlite_url,
)
from goal_state.storage.sqlite.readers import PooledReaders, Readers, SharedReader
from goal_state.storage.sqlite.sources import EngineSource, FileSource, Source
from goal_state.storage.sqlite.turnstile import gate

__all__ = ["SqliteBackend"]

Result = TypeVar("Result")

_kept_open_in_child: list[object] = []
"""In a forked child, connections of its parent. Referenced for good: the child must not even close them."""


class SqliteBackend:
    """See `goal_state.storage.backend.Backend`."""

    def __init__(
        self,
        source: Source,
        tariff: Tariff,
        busy_timeout_seconds: float,
        migrations: Migrations,
        *,
        on_begin: Callable[[], None],
        on_end: Callable[[list[object]], None],
    ) -> None:
        """Use `SqliteBackend.open`."""
        self._source = source
        self._busy_timeout_seconds = busy_timeout_seconds
        self._migrations = migrations
        self._refusal: RequestError | None = None
        self._is_closed = False
        connected = source.connect()
        self._file = opened_file(connected.driver)
        self._executor = Executor(connected)
        self.writes_with: GoalRepository = GoalRepository.with_executor(self._executor, tariff)
        self._gate = gate(source.path, busy_timeout_seconds)
        self._let_gate_wait()
        try:
            check_writable(connected.driver)
            # Of the database; noted as the owner of its log.
            self._identity: str | None = self.writes_with.settings.check()
        except BaseException:
            self._executor.close()
            raise
        self._writer = Writer(
            self.writes_with,
            self._executor,
            self._gate,
            check_file=self._file.check,
            reconnect=self._reconnect_writer,
            on_begin=on_begin,
            on_end=on_end,
        )
        self._readers: Readers = (
            SharedReader(self.writes_with, self._executor, self._writer.lock)
            if source.path is None
            else PooledReaders(self._connect_reader)
        )
        # Not through its store, which may be collected before this backend is.
        register(self)

    @classmethod
    def open(
        cls,
        target: str | os.PathLike[str] | URL | Engine,
        *,
        tariff: Tariff,
        durability: Durability,
        busy_timeout_seconds: float,
        migrations: Migrations,
        migrate: bool,
        on_begin: Callable[[], None],
        on_end: Callable[[list[object]], None],
    ) -> SqliteBackend:
        """Opens a database, creating or upgrading its schema; see `GoalStore.open`.

        Args:
            target: a path, `":memory:"`, a URL, or a host's engine.
            tariff: how usage is counted and priced.
            durability: see `Durability`.
            busy_timeout_seconds: how long to wait for another process that writes.
            migrations: maintains the schema.
            migrate: whether to upgrade the schema, or only check it.
            on_begin: called when a transaction begins.
            on_end: called just before its commit with a list that has an element once it is committed.
        """
        timeout_ms = check_busy_timeout(busy_timeout_seconds)
        source = _source(target, check_durability(durability), timeout_ms)
        path = source.path

        def open_there() -> SqliteBackend:
            if source.is_hosts:
                revision = migrations.current(source.engine())
            else:
                revision = None if path is None else inspect_file(path)
                if path is not None and revision is None and migrate:
                    create_file(path)
            migrations.ensure_current(source.engine, revision, migrate=migrate)
            backend = cls(
                source,
                tariff,
                timeout_ms / 1000,
                migrations,
                on_begin=on_begin,
                on_end=on_end,
            )
            if not source.is_hosts and migrate:
                backend._agree_on_settings()
                if path is not None:
                    backend._note_log_owner(path)
            return backend

        try:
            return while_connecting(None if path is None else str(path), open_there)
        except BaseException:
            source.close()  # a database in memory keeps its connection otherwise
            raise

    # -- work --------------------------------------------------------------------------------------

    @property
    def location(self) -> str:
        """See `Backend`."""
        return ":memory:" if self._source.path is None else str(self._source.path)

    @property
    def is_mine(self) -> bool:
        """See `Backend`."""
        return self._writer.is_mine

    def check_open(self) -> None:
        """See `Backend`."""
        if self._refusal is not None:
            raise fresh(self._refusal)

    def check(self) -> None:
        """See `Backend`."""
        self.check_open()
        if self._writer.is_mine:
            raise nested_call()

    def read(self, work: Callable[[GoalRepository], Result]) -> Result:
        """See `Backend`."""
        if self._refusal is not None:
            raise fresh(self._refusal)
        if self._writer.runs_hosts_work and self._writer.is_mine:
            raise nested_call()
        return self._readers.read(work)

    def stream(
        self, work: Callable[[GoalRepository], Iterator[Result]]
    ) -> AbstractContextManager[Iterator[Result]]:
        """See `Backend`."""
        return self._readers.stream(work)

    def write(self, work: Callable[[GoalRepository], Result]) -> Result:
        """See `Backend`."""
        if self._refusal is not None:
            raise fresh(self._refusal)
        return self._writer.group(work)

    def write_together(self, works: Sequence[Callable[[GoalRepository], Any]]) -> list[Outcome]:
        """See `Backend`."""
        self.check_open()
        return self._writer.group_together(works)

    def transact(self, work: Callable[[GoalRepository], Result]) -> Result:
        """See `Backend`."""
        self.check_open()
        return self._writer.alone(work)

    def block(self) -> Generator[GoalRepository, bool, None]:
        """See `Backend`."""
        self.check_open()
        return self._writer.block()

    def between_transactions(self, work: Callable[[], Result]) -> Result:
        """See `Backend`."""
        self.check()
        with self._writer.lock:
            return work()

    # -- copies ------------------------------------------------------------------------------------

    def back_up(self, path: Path, progress: Progress | None) -> None:
        """See `Backend`."""
        from goal_state.storage.sqlite.copies import back_up

        self.read(lambda reader: back_up(_own(reader), path, progress))

    def restore(self, path: Path, progress: Progress | None) -> None:
        """See `Backend`."""
        from goal_state.storage.sqlite.restoring import check_copy, prepared, write_over

        self.check()
        identity = self.read(lambda reader: reader.settings.identity())
        page_size = self.read(lambda reader: _own(reader).page_size())

        def put_in_place() -> None:
            with prepared(
                path, self._source.path, identity, page_size, progress, self._migrations.upgrade
            ) as copy:
                check_copy(copy, self.writes_with.tariff)
                self._writer.exclusively(
                    lambda: write_over(copy, self._executor.driver, self._busy_timeout_seconds)
                )

        while_connecting(str(path), put_in_place)

    # -- connections -------------------------------------------------------------------------------

    def _connect_reader(self) -> tuple[GoalRepository, Executor]:
        self._file.check()  # else SQLite would create an empty file if ours was moved
        executor = Executor(self._source.connect())
        return GoalRepository.with_executor(executor, self.writes_with.tariff), executor

    def _reconnect_writer(self) -> None:
        self._file.check()
        until_held(lambda: self._executor.reconnect(self._source.connect))
        self._let_gate_wait()
        if self._identity is not None and self._source.path is not None:
            # While there was no connection, the log may have been deleted, and its owner's note with it.
            note_log_owner(_real(self._source.path), self._identity)

    def _let_gate_wait(self) -> None:
        if self._gate.waits:
            self._executor.wait_for_lock(0)

    def _note_log_owner(self, path: Path) -> None:
        """Notes whose log it is, so that the next open detects a file that replaced this one."""
        if self._identity is not None:
            note_log_owner(_real(path), self._identity)

    def _agree_on_settings(self) -> None:
        """Stores the settings in a new database; every later store must agree with them."""
        if self._identity is None:
            self.write(lambda repository: repository.settings.agree())
            self._identity = self.read(lambda reader: reader.settings.identity())

    def close(self) -> None:
        """See `Backend`."""
        if self._is_closed:
            return
        with self._writer.lock:
            self._refusal = StoreClosedError("the store is closed; open it again")
            self._writer.refusal = self._refusal
            self._readers.close()
            self._executor.close()
            self._gate.close()
            self._source.close()
            if not self._source.is_hosts and self._source.path is not None:
                forget_log_owner(_real(self._source.path))
            self._is_closed = True

    # -- forks -------------------------------------------------------------------------------------

    @property
    def files(self) -> list[FileIdentity]:
        """See `forks.Holder`."""
        return [] if self._file.identity is None else [self._file.identity]

    def let_go(self) -> bool:
        """See `forks.Holder`."""
        if self._is_closed:
            return True
        deadline = time.monotonic() + self._busy_timeout_seconds
        if not (
            self._writer.hold(deadline) and self._readers.let_go(deadline) and self._source.let_go()
        ):
            return False
        self._executor.close()
        self._gate.let_go()
        return True

    def after_fork(self, *, in_child: bool, let_go: bool) -> None:
        """See `forks.Holder`."""
        self._readers.go_on()
        self._writer.go_on()
        if not in_child:
            return
        self._writer.forget_callers()
        if not let_go and not self._is_closed:
            _kept_open_in_child.append((self._source, self._executor, self._readers))
            self._gate.forget()
            self._refusal = ForkedStoreError(
                "this process was forked while the store could not close its connections (the database is in"
                " memory, or a transaction, an export or a backup was open); open it in a new process"
            )
            self._writer.refusal = self._refusal
            self._is_closed = True


def _source(
    target: str | os.PathLike[str] | URL | Engine, durability: Durability, timeout_ms: int
) -> Source:
    if isinstance(target, Engine):
        require_sqlite3(target.dialect)
        return EngineSource(target, durability, timeout_ms, is_hosts=True)
    url = sqlite_url(target)
    if url.database is not None and not is_memory_name(url.database):
        return FileSource(Path(url.database), durability, timeout_ms)
    engine = create_engine(url, durability=durability, busy_timeout_seconds=timeout_ms / 1000)
    return EngineSource(engine, durability, timeout_ms, is_hosts=False)


def _own(repository: GoalRepository) -> Executor:
    """The executor of a repository that this backend made."""
    return cast(Executor, repository.executor)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
