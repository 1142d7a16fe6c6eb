"""Faults that the library once had, or could have, each injected into a worker by replacing a function. They
prove that the chaos machine finds them."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from goal_state import meter, migrate, store
from goal_state.cli import opening
from goal_state.delivery import consumers, listeners
from goal_state.storage import baselines as usage_log
from goal_state.storage import forks, transfer
from goal_state.storage.sqlite import (
    backend,
    executor,
    host_transaction,
    location,
    readers,
    restoring,
    turnstile,
)
from goal_state.storage.sqlite import group_commit as writer

__all__ = ["FAULTS", "Fault"]


class Fault(NamedTuple):
    """How a fault is put back, and within how many steps the machine has to find it."""

    put_back: Callable[[], object]
    within_steps: int = 3_000


def _open_the_file() -> None:
    """The database is opened with `open`, and closed: the process's locks on it are gone."""
    inspect = location.inspect_file

    def open_and_inspect(path: Path, **arguments: Any) -> str | None:
        if path.exists():
            path.open("rb").close()
        return inspect(path, **arguments)

    for module in (backend, restoring, opening):
        module.inspect_file = open_and_inspect  # type: ignore[attr-defined]


def _keep_the_file_in_a_fork() -> None:
    """Nobody lets go of the file before a fork: the child goes on with its parent's connections."""
    store.register = lambda holder: None


def _fork_while_a_file_is_opened() -> None:
    """A fork does not wait for other threads that open a database."""
    backend.while_connecting = lambda path, work: work()


def _keep_the_turnstile_in_a_fork() -> None:
    """The file on which processes queue up stays open in a fork."""
    turnstile.Turnstile.let_go = lambda self: None  # type: ignore[method-assign]


def _overlook_what_was_lost() -> None:
    """A connection that an exception made its holder lose is open in a fork, until it is collected."""
    for module in (forks, readers, backend):
        module.until_held = lambda work: work()  # type: ignore[attr-defined]


def _restore_by_copying() -> None:
    """A backup is copied over the file that others have open."""

    def restore(self: store.GoalStore, path: Path) -> None:
        shutil.copyfile(path, self._backend.location)

    store.GoalStore.restore = restore  # type: ignore[assignment,method-assign]


def _overlook_an_exchanged_file() -> None:
    """A file is opened beside which the log of another one lies."""
    location._refuse_replaced = lambda path: None


def _leave_the_lead_behind() -> None:
    """Nobody who waits looks whether anybody leads."""
    writer._POLL_SECONDS = 3_600.0


def _blame_requests_for_strikes() -> None:
    """What strikes the one who leads is taken for an error of the call that it was at."""

    def run_requests(self: writer.Writer, group: list[Any]) -> None:
        for place, call in enumerate(group):
            try:
                call.result = call.work(self._repository)
            except BaseException as error:
                raise writer._RequestFailedError(error, place) from None

    writer.Writer._run_requests = run_requests  # type: ignore[method-assign]


def _run_work_in_groups() -> None:
    """A host's work shares a transaction with other callers' and is run by the one who leads."""
    store.GoalStore.transact = store.GoalStore._carry_out  # type: ignore[method-assign]


def _note_the_deliverer() -> None:
    """Whoever tells the listeners holds a lock that a strike can leave held."""
    is_delivering = threading.Lock()

    def deliver(self: listeners.Listeners) -> None:
        while self._first_due() is not None and is_delivering.acquire(blocking=False):
            self._lock.acquire()
            self._lock.release()
            try:
                self._deliver_all()
            finally:
                is_delivering.release()

    listeners.Listeners.deliver = deliver  # type: ignore[method-assign]


def _forget_events_first() -> None:
    """An event leaves the queue before its listener is told."""

    def deliver_all(self: listeners.Listeners) -> None:
        while (batch := self._first_due()) is not None:
            while batch.commits and batch.events:
                event, subscription = batch.events.popleft()
                subscription.deliver(event)
            self._queue.popleft()

    listeners.Listeners._deliver_all = deliver_all  # type: ignore[method-assign]


def _read_in_the_past() -> None:
    """A reader whose snapshot a strike left open is used again."""

    def read(self: readers.PooledReaders, work: Any) -> Any:
        try:
            reader = self._idle.pop()
        except IndexError:
            reader = self._new()
        with reader.in_use:
            try:
                return work(reader.repository)
            except sqlite3.Error as error:
                raise reader.executor.failed(error) from error
            finally:
                self._idle.append(reader)

    readers.PooledReaders.read = read  # type: ignore[method-assign]


def _nest_calls() -> None:
    """A call inside a transaction of its own thread is not noticed."""
    writer.Writer.is_mine = property(lambda self: False)  # type: ignore[assignment,method-assign]


def _close_at_once() -> None:
    """A handler's `close()` closes under the call that it interrupts."""
    is_mine = writer.Writer.is_mine
    close = store.GoalStore.close

    def close_at_once(self: store.GoalStore) -> None:
        writer.Writer.is_mine = property(lambda self: False)  # type: ignore[assignment,method-assign]
        try:
            close(self)
        finally:
            writer.Writer.is_mine = is_mine  # type: ignore[method-assign]

    store.GoalStore.close = close_at_once  # type: ignore[method-assign]


def _take_an_autocommit_connection() -> None:
    """A host's connection that ends each statement by itself is taken, and a transaction begun on it."""

    def take_write_lock(self: Any) -> None:
        if not self.driver.in_transaction:
            self._cursor.execute("BEGIN IMMEDIATE")

    host_transaction._refuse_autocommit = lambda connection, driver: None
    host_transaction._HostExecutor._take_write_lock = take_write_lock  # type: ignore[method-assign]


def _keep_the_drivers_connection() -> None:
    """A repository goes on with the driver's connection, whoever has it by now."""

    def join_transaction(self: Any) -> None:
        if not self.driver.in_transaction:
            self._cursor.execute("BEGIN IMMEDIATE")

    host_transaction._HostExecutor.run = executor.Executor.run  # type: ignore[method-assign]
    host_transaction._HostExecutor.join_transaction = join_transaction  # type: ignore[method-assign]


def _show_alembic_every_table() -> None:
    """A host's alembic finds our tables, which its metadata does not know."""
    migrate.include_name = lambda name, type_, parent_names: True


def _overlook_missing_tables() -> None:
    """A database of whose tables some are gone is taken for a new one."""
    for module in (location, migrate):
        module.check_tables = lambda names, revision: None  # type: ignore[attr-defined]


def _import_what_was_cut_off() -> None:
    """An export without its end is imported."""

    def end(self: Any) -> int:
        self._flush()
        return self._rows

    transfer._Import.end = end  # type: ignore[method-assign]
    transfer._Import.check_whole = lambda self, repository: None  # type: ignore[method-assign]


def _import_what_was_changed() -> None:
    """Nobody compares an export with its checksum, nor its rows with each other."""
    transfer._Digest.text = lambda self: ""  # type: ignore[method-assign]
    transfer._Import.check_whole = lambda self, repository: None  # type: ignore[method-assign]


def _end_with_the_sink() -> None:
    """A consumer whose sink raises what is no `Exception` ends without a word."""
    call_sink = consumers.Consumer._call_sink

    def call_sink_or_end(self: Any, batch: Any, position: int) -> None:
        try:
            call_sink(self, batch, position)
        except consumers._SinkError as error:
            self._is_stopping = not isinstance(error.cause, Exception)
            raise

    consumers.Consumer._call_sink = call_sink_or_end  # type: ignore[method-assign]


def _skip_what_a_sink_refused() -> None:
    """What a sink refused is taken for delivered."""

    def call_sink(self: Any, batch: Any, position: int) -> None:
        with contextlib.suppress(BaseException):
            self._sink(batch)

    consumers.Consumer._call_sink = call_sink  # type: ignore[method-assign]


def _hand_out_after_the_lease() -> None:
    """A consumer neither looks whether its name is still its own, nor hears that it cannot be renewed."""
    renew = consumers.Consumer._renew_lease

    def renew_or_not(self: Any) -> bool:
        renew(self)
        return True

    consumers.Consumer._renew_lease = renew_or_not  # type: ignore[method-assign]
    consumers.Consumer._holds_lease = lambda self, position: True  # type: ignore[method-assign]


def _forget_what_was_struck() -> None:
    """A meter takes a call that was struck for one that never was, also after its commit."""

    def find_out(self: Any, _repository: object) -> None:
        last = self._last
        if last is not None and last.state is not None and last.is_committed and not last.is_struck:
            self._state = last.state
        self._last = None

    meter.GoalMeter._find_out = find_out  # type: ignore[method-assign]


def _tell_once_for_ever() -> None:
    """That a budget is full is said once for each goal, however often it is raised and filled."""
    usage_log.UsageLog.forget_warning = lambda self, thread_id, goal_id: None  # type: ignore[method-assign]


FAULTS: Final = {
    "the file is opened with open()": Fault(_open_the_file),
    "a fork keeps the file open": Fault(_keep_the_file_in_a_fork),
    "a fork does not wait for an open": Fault(_fork_while_a_file_is_opened),
    "a fork keeps the turnstile open": Fault(_keep_the_turnstile_in_a_fork),
    "a fork keeps what was lost": Fault(_overlook_what_was_lost),
    "a backup is copied over the file": Fault(_restore_by_copying),
    "an exchanged file is opened": Fault(_overlook_an_exchanged_file),
    "the lead is left behind": Fault(_leave_the_lead_behind),
    "a strike is taken for a request's error": Fault(_blame_requests_for_strikes),
    "a host's work runs on another thread": Fault(_run_work_in_groups),
    "a strike leaves nobody to tell listeners": Fault(_note_the_deliverer, 6_000),
    "a strike loses a listener's event": Fault(_forget_events_first, 6_000),
    "a strike leaves a reader in the past": Fault(_read_in_the_past),
    "a call inside a transaction is not noticed": Fault(_nest_calls),
    "close() closes under an interrupted call": Fault(_close_at_once),
    "a host's autocommit connection is taken": Fault(_take_an_autocommit_connection),
    "a kept repository charges for a stranger": Fault(_keep_the_drivers_connection),
    "a host's alembic drops our tables": Fault(_show_alembic_every_table),
    "missing tables are overlooked": Fault(_overlook_missing_tables),
    "an export that was cut off is imported": Fault(_import_what_was_cut_off),
    "a changed export is imported": Fault(_import_what_was_changed),
    "a sink's exit ends its consumer": Fault(_end_with_the_sink),
    "what a sink refused is skipped": Fault(_skip_what_a_sink_refused),
    "an overtaken consumer hands out events": Fault(_hand_out_after_the_lease),
    "a meter forgets a call that was struck": Fault(_forget_what_was_struck),
    "a raised budget fills without a word": Fault(_tell_once_for_ever),
}
