"""Group commit: the one way in which a store writes, many callers' requests in few transactions.

A caller that finds no leader becomes the leader: it takes every queued request, carries all of them out in
one transaction and commits. Callers that arrive meanwhile are followers, each waiting on a lock of its own.
The first follower becomes the next leader, so that its transaction begins while the others get their
results. There is no writer thread, and a single caller pays nothing. A host's own work is never part of a
group: it runs alone, on its caller's thread.

A caller may be interrupted at any instruction: by an exception that a signal handler raises, or that
`PyThreadState_SetAsyncExc` sets. Therefore:

- The connection is used only inside `with self.lock`, and `with driver` rolls back what an interrupted
  leader left open.
- A call is done once COMMIT has noted so, in the same call into C. Nothing has to be done after it.
- Leadership matters for speed alone, not for correctness: a follower that finds no leader at work leads by
  itself.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, TypeVar, cast

from goal_state.domain.requests import Charge
from goal_state.errors import (
    DatabaseError,
    ForkedStoreError,
    GoalStateError,
    NestedCallError,
    RequestError,
    StoreClosedError,
    fresh,
)
from goal_state.storage.backend import Outcome
from goal_state.storage.locks import is_mine
from goal_state.storage.repository import GoalRepository
from goal_state.storage.sqlite.executor import Executor
from goal_state.storage.sqlite.group_calls import Call, charges_from
from goal_state.storage.sqlite.turnstile import Gate

__all__ = ["Writer", "nested_call"]

Result = TypeVar("Result")

_MAX_GROUP: Final = 256
"""The most requests in one transaction: it bounds how long a follower waits for the commit."""

_POLL_SECONDS: Final = 0.02
"""How often a follower checks that a leader is at work."""

_NOT_FROM_A_REQUEST: Final = (NestedCallError, StoreClosedError, ForkedStoreError)
"""No request raises these: if one comes out of a request, a signal handler called the store inside it."""


class Writer:
    """Runs work on the repository of the store's one writing connection, in grouped transactions."""

    def __init__(
        self,
        repository: GoalRepository,
        executor: Executor,
        gate: Gate,
        *,
        check_file: Callable[[], None],
        reconnect: Callable[[], None],
        on_begin: Callable[[], None],
        on_end: Callable[[list[object]], None],
    ) -> None:
        """
        Args:
            repository: the one that all work is called with.
            executor: runs the repository's statements.
            gate: begins each transaction in turn with other processes.
            check_file: called before each commit; raises if the file is no longer the one that was opened.
            reconnect: makes a new connection, where there is none or the database failed on it.
            on_begin: called when a transaction begins.
            on_end: called just before its commit with a list that has an element once it is committed.
        """
        self._repository = repository
        self._executor = executor
        self._gate = gate
        self._check_file = check_file
        self._reconnect = reconnect
        self._on_begin = on_begin
        self._on_end = on_end
        self._waiting: deque[Call[Any]] = deque()
        self._has_leader = False
        self._leader: object = None  # the mark of the current leader, or the last one
        self._queue_lock = threading.RLock()  # never held while SQL runs
        self.lock: Final = threading.RLock()
        """Held while a transaction is open; its holder may use the connection."""
        self._at_work = threading.Lock()
        """Held together with `lock`, which as a reentrant lock cannot tell other threads that it is held."""
        self._held_for_fork = False
        self.runs_hosts_work: bool = False
        """Whether the transaction that is open, if there is one, is a host's."""
        self.refusal: RequestError | None = None
        """Set under the lock; from then on it is raised by every call, also by those that were queued."""

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is inside a transaction, or is just joining the queue."""
        return is_mine(self.lock) or is_mine(self._queue_lock)

    def group(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Carries out a request of the library's own, in one transaction with those of other callers, and
        returns its result once that is committed.

        The work may run more than once, each time after a rollback of what it did before, and on the thread
        of another caller. It raises nothing but `GoalStateError`s.
        """
        return self._submit(Call(work, alone=False))

    def group_together(self, works: Sequence[Callable[[GoalRepository], Any]]) -> list[Outcome]:
        """As `group` for each of several requests of one caller, in their order. One that raises anything
        else than a `GoalStateError` has that for its outcome, and leaves the others alone.
        """
        calls = [Call(work, alone=False) for work in works]
        own, own.others = calls[0], calls[1:]
        try:
            self._join_queue(own)
            if not own.done:
                self._lead(own)
        except BaseException as error:
            if len(works) == 1 and not own.done:
                own.error = error
            # Whoever was the cause, each of the others is tried by itself.
            return [
                call.outcome if call.done else self.group_together([call.work])[0] for call in calls
            ]
        return [call.outcome for call in calls]

    def alone(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Carries out a host's work: once, on this thread, in a transaction of its own."""
        return self._submit(Call(work, alone=True))

    def block(self) -> Generator[GoalRepository, bool, None]:
        """As `alone`, for a host's work that is done while this is suspended at its one `yield`, which then
        says whether it failed. For a `Block`, which alone sees to it that it is never left suspended.
        """
        call: Call[None] = Call(_nothing, alone=True)
        self._join_queue(call)
        try:
            with self.lock, self._at_work:
                self._leader = object()
                if self.refusal is not None:
                    raise fresh(self.refusal)
                try:
                    self._prepare()
                    with self._executor.driver:
                        self._begin(is_hosts=True)
                        self.runs_hosts_work = True
                        if (yield self._repository):
                            raise _BlockFailedError
                        self.runs_hosts_work = False
                        self._commit(call.commits)
                except sqlite3.Error as error:
                    raise self._executor.failed(error) from error
                except _BlockFailedError:  # the host has the error already
                    return
                finally:
                    self._gate.leave()
        finally:
            self._hand_over_lead()

    def exclusively(self, work: Callable[[], Result]) -> Result:
        """Runs work while no other thread uses the connection, outside of any transaction."""
        if self.is_mine:
            raise nested_call()
        with self.lock, self._at_work:
            if self.refusal is not None:
                raise fresh(self.refusal)
            if not self._executor.usable:
                self._reconnect()
            self._executor.clear()
            self._repository.known_goals.forget()
            self._executor.clear_statement()  # an open statement would make SQLite report "busy"
            return work()

    def hold(self, deadline: float) -> bool:
        """Before a fork: blocks new transactions until `go_on`; False if one is still open at the deadline,
        or is this thread's.
        """
        if self.is_mine:
            return False
        self._held_for_fork = True
        return self.lock.acquire(timeout=max(deadline - time.monotonic(), 0))

    def go_on(self) -> None:
        """The fork is over."""
        if self._held_for_fork:
            while is_mine(self.lock):
                self.lock.release()
            self._held_for_fork = False

    def forget_callers(self) -> None:
        """In a forked child: drops the queue, since its callers and their leader are the parent's threads."""
        self._waiting.clear()
        self._has_leader = False
        self._queue_lock = threading.RLock()
        self._at_work = threading.Lock()

    def _submit(self, call: Call[Result]) -> Result:
        self._join_queue(call)
        if not call.done:
            self._lead(call)
        error = call.raised
        if error is not None:
            raise fresh(error) from error.__cause__
        return cast(Result, call.result)

    # -- followers ---------------------------------------------------------------------------------

    def _join_queue(self, call: Call[Any]) -> None:
        """Returns when the call is done, or when its own thread is to lead."""
        if self.is_mine:
            raise nested_call()
        with self._queue_lock:
            waits = self._has_leader
            self._has_leader = True
        if waits:
            call.caller, call.wake_up = threading.Lock(), threading.Lock()
            with call.caller:
                self._wait(call)

    def _wait(self, call: Call[Any]) -> None:
        """Returns when the call is done, or when its own thread is to lead."""
        call.wake_up.acquire()
        try:
            with self._queue_lock:
                if not self._has_leader:
                    self._has_leader = True
                    return
                self._waiting.append(call)
            while not (call.done or call.leads):
                if call.wake_up.acquire(timeout=_POLL_SECONDS):
                    continue
                if not self._at_work.locked():
                    return  # the leader, or the next one, was interrupted
                with self._queue_lock:  # an interrupted leader may have lost this call
                    if not self._is_taken(call) and call not in self._waiting:
                        self._waiting.append(call)
        except BaseException:
            # No leader begins a call whose caller is gone. A leader that has begun it is waited for, so that
            # the outcome of the call is settled before its caller goes on.
            while self._is_taken(call) and not call.done:
                call.wake_up.acquire(timeout=_POLL_SECONDS)
            raise

    def _is_taken(self, call: Call[Any]) -> bool:
        """Whether a leader is at work on the call."""
        return call.leader is not None and call.leader is self._leader and self._at_work.locked()

    # -- leader ------------------------------------------------------------------------------------

    def _lead(self, own: Call[Any]) -> None:
        group = [own, *own.others]
        try:
            with self.lock, self._at_work:
                if own.done:  # by a leader that was taken for an interrupted one
                    return
                self._leader = object()
                if own.alone:
                    self._run_alone(own)
                else:
                    try:
                        self._collect(group)
                        self._run_group(group)
                    except BaseException:
                        # This leader was interrupted. The followers' calls are left to the next one.
                        with self._queue_lock:
                            self._requeue(group[1 + len(own.others) :])
                        raise
        finally:
            self._hand_over_lead()
            for call in group[1 + len(own.others) :]:
                if call.done:
                    _release(call.wake_up)

    # Loops under a lock are in functions of their own, see `locks`.

    def _collect(self, group: list[Call[Any]]) -> None:
        if not self._waiting:
            return
        with self._queue_lock:
            self._move_into(group)

    def _move_into(self, group: list[Call[Any]]) -> None:
        own = group[0]
        while self._waiting and len(group) < _MAX_GROUP and self._waiting[0].may_be_led:
            call = self._waiting.popleft()
            if call is not own and not call.done and call.caller.locked():
                call.leader = self._leader
                group.append(call)

    def _requeue(self, followers: list[Call[Any]]) -> None:
        for call in reversed(followers):
            if not call.done:
                call.leader = None
                self._waiting.appendleft(call)

    def _hand_over_lead(self) -> None:
        """Makes the first follower the leader."""
        with self._queue_lock:
            self._has_leader = self._wake_next_leader()

    def _wake_next_leader(self) -> bool:
        while self._waiting:
            call = self._waiting.popleft()
            if not call.done and call.caller.locked():
                call.leads = True
                _release(call.wake_up)
                return True
        return False

    def _run_group(self, group: list[Call[Any]]) -> None:
        """Settles every call of a group."""
        if self.refusal is not None:
            for call in group:
                call.error = self.refusal
            return
        while group:
            failed = self._run_in_one_transaction(group)
            if failed is None:
                return
            # A request failed, maybe after it had begun to write, and all of them were rolled back. Those
            # before it are carried out without it, and it is tried in a transaction of its own.
            self._run_group(group[:failed])
            self._run_in_one_transaction([group[failed]])
            group = group[failed + 1 :]

    def _run_in_one_transaction(self, group: list[Call[Any]]) -> int | None:
        """Runs a group in one transaction, which settles every call of it; where one of several failed, all
        of it was rolled back, and its place in the group is returned.
        """
        commits: list[object] = []
        for call in group:
            call.commits, call.refusal = commits, None
        try:
            self._transact(commits, lambda: self._run_requests(group), is_hosts=False)
        except _RequestFailedError as failed:
            if len(group) > 1:
                return failed.place
            group[0].error = failed.error
        except (DatabaseError, ForkedStoreError) as error:  # the fault of no single request
            for call in group:
                call.error = error
        return None

    def _run_requests(self, group: list[Call[Any]]) -> None:
        place = 0
        try:
            if len(group) == 1:
                group[0].result = group[0].work(self._repository)
                return
            while place < len(group):
                place += self._run_next(group, place)
        except _NOT_FROM_A_REQUEST:
            raise
        except sqlite3.Error as error:
            raise _RequestFailedError(self._executor.failed(error), place) from error
        except GoalStateError as error:
            raise _RequestFailedError(error, place) from None

    def _run_next(self, group: list[Call[Any]], place: int) -> int:
        """Runs a request of a group, or those of several charges as one; returns of how many calls."""
        charges = charges_from(group, place)
        if len(charges) > 1:
            self._run_charges(group, place, charges)
            return len(charges)
        changes = self._executor.changes
        try:
            group[place].result = group[place].work(self._repository)
        except _NOT_FROM_A_REQUEST:
            raise
        except RequestError as error:
            if self._executor.changes != changes:
                raise
            group[place].refusal = error  # it has written nothing that would have to be undone
        return 1

    def _run_charges(self, group: list[Call[Any]], place: int, charges: list[Charge]) -> None:
        for number, result in enumerate(self._repository.charge_each(charges), place):
            if isinstance(result, RequestError):
                group[number].refusal = result
            else:
                group[number].result = result

    def _run_alone(self, own: Call[Any]) -> None:
        if self.refusal is not None:
            raise fresh(self.refusal)

        def work() -> None:
            self.runs_hosts_work = True
            own.result = own.work(self._repository)
            self.runs_hosts_work = False

        try:
            self._transact(own.commits, work, is_hosts=True)
        except sqlite3.Error as error:
            raise self._executor.failed(error) from error

    def _transact(self, commits: list[object], work: Callable[[], None], *, is_hosts: bool) -> None:
        """Runs work in a transaction; `commits` has an element once it is committed."""
        try:
            self._prepare()
            with self._executor.driver:
                self._begin(is_hosts=is_hosts)
                work()
                self._commit(commits)
        finally:
            self._gate.leave()

    def _prepare(self) -> None:
        self.runs_hosts_work = False
        if not self._executor.usable:
            self._reconnect()
        self._executor.clear()

    def _begin(self, *, is_hosts: bool) -> None:
        self._gate.enter(self._executor.begin)
        # A host's work may swallow an exception that struck between a change and the note of it.
        self._repository.known_goals.begin(None if is_hosts else self._executor.version())
        self._on_begin()

    def _commit(self, commits: list[object]) -> None:
        executor = self._executor
        if executor.failure is not None:  # and the work caught and ignored the error
            raise fresh(executor.failure)
        if self.refusal is not None:  # in a child that was forked in the midst of it
            raise fresh(self.refusal)
        self._check_file()
        self._on_end(commits)
        executor.commit(commits)
        self._repository.known_goals.keep()


def _nothing(_repository: GoalRepository) -> None:
    """The work of a block, which is done elsewhere."""


class _BlockFailedError(Exception):
    """Undoes the transaction of a block that failed."""


class _RequestFailedError(Exception):
    """Wraps the error of a request, to tell it apart from an exception that interrupts the leader."""

    def __init__(self, error: Exception, place: int) -> None:
        super().__init__(error)
        self.error = error
        self.place = place  # in its group


def nested_call() -> NestedCallError:
    """The error of a call inside a transaction of its own thread, which would wait for itself."""
    return NestedCallError(
        "this thread is inside a transaction of the same store; inside transact() or transaction() call the"
        " repository that it passes to you, and in a signal handler try again later"
    )


def _release(wake_up: threading.Lock) -> None:
    try:
        wake_up.release()
    except RuntimeError:  # it was released already
        return
