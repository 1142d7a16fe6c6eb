"""The one way in which a store writes: many callers' requests, few commits.

Whoever finds nobody leading leads: it takes every request that is waiting, carries all of them out in one
transaction and commits. Those who come meanwhile wait, each on a lock of its own. The first of them is
handed the lead, so that its transaction begins while the others learn of their results. There is no
thread of its own, and a caller alone pays nothing for it. A host's own work is never part of a group: it
runs alone, on its caller's thread.

An exception (a signal handler's, or one set by another thread) may strike a caller at any instruction.
Therefore:

- Only what is inside `with self.lock` touches the connection, and `with driver` undoes what a stroke leaves
  unfinished.
- A call is done if COMMIT has noted so, in the same call into C. Nothing has to be done after it.
- Who leads is a matter of speed alone. A waiter that finds that nobody is at work, where somebody should be,
  leads by itself.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, cast

from goal_state.errors import (
    DatabaseError,
    ForkedStoreError,
    GoalStateError,
    NestedCallError,
    RequestError,
    StoreClosedError,
    fresh,
)
from goal_state.storage.locks import is_mine
from goal_state.storage.repository import GoalRepository
from goal_state.storage.sqlite.executor import Executor
from goal_state.storage.sqlite.turnstile import Gate

__all__ = ["Writer", "nested_call"]

Result = TypeVar("Result")

_MAX_GROUP: Final = 256
"""Requests in one transaction at the most, so that nobody waits for the commit of a crowd."""

_LOOK_UP_SECONDS: Final = 0.02
"""So often a waiter looks whether anybody is at work."""

_NEVER_A_REQUESTS: Final = (NestedCallError, StoreClosedError, ForkedStoreError)
"""No request raises these: one that comes out of it comes from a signal handler's call of the store."""


class _Call(Generic[Result]):
    """One caller's work and what became of it."""

    __slots__ = ("alone", "caller", "commits", "error", "leads", "result", "taker", "turn", "work")

    caller: threading.Lock
    """Held as long as the caller waits."""
    turn: threading.Lock
    """Held until the call is done or leads."""

    def __init__(self, work: Callable[[GoalRepository], Result], *, alone: bool) -> None:
        self.work = work
        self.alone = alone
        self.leads = False
        self.taker: object = None  # the mark of whoever took it into a group last
        self.commits: list[
            object
        ] = []  # of the transaction that it is in; shared with the others in it
        self.result: Result | None = None
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        return bool(self.commits) or self.error is not None


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
            repository: the one that all work is handed to.
            executor: what it runs its statements with.
            gate: how each transaction takes its turn with other processes.
            check_file: called before each commit; raises if the file is no longer the one that was opened.
            reconnect: gives the repository a connection, where it has none or the database failed on it.
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
        self._waiting: deque[_Call[Any]] = deque()
        self._has_leader = False
        self._taker: object = None  # the mark of the one who leads, or led last
        self._queue = threading.RLock()  # never held while SQL runs
        self.lock: Final = threading.RLock()
        """Held while a transaction is open; whoever holds it may use the connection."""
        self._at_work = threading.Lock()
        """Held together with it: a reentrant lock does not tell others whether it is held."""
        self._held_for_fork = False
        self.runs_hosts_work: bool = False
        """Whether the transaction that is open, if there is one, is a host's."""
        self.refusal: RequestError | None = None
        """Set under the lock, it is raised to all who come after, and to those who were waiting."""

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is in the midst of a transaction, or of joining the queue."""
        return is_mine(self.lock) or is_mine(self._queue)

    def group(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Carries out work of the library's own, together with that of others, and returns its result once
        the commit that holds it is done.

        The work may be carried out more than once, each time after what it did before was undone, and on
        the thread of another caller. It raises nothing but `GoalStateError`s.
        """
        return self._run(_Call(work, alone=False))

    def alone(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Carries out a host's work: once, on this thread, in a transaction of its own."""
        return self._run(_Call(work, alone=True))

    def exclusively(self, work: Callable[[], Result]) -> Result:
        """Runs work while nobody uses the connection, outside of any transaction."""
        if self.is_mine:
            raise nested_call()
        with self.lock, self._at_work:
            if self.refusal is not None:
                raise fresh(self.refusal)
            if not self._executor.usable:
                self._reconnect()
            self._executor.clear()
            self._executor.clear_statement()  # SQLite would take it for somebody at work
            return work()

    def hold(self, deadline: float) -> bool:
        """Before a fork: keeps transactions from beginning until `go_on`; False if one is still open at the
        deadline, or is this thread's.
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
        """In a forked child: those who waited, and who led, do so in the parent."""
        self._waiting.clear()
        self._has_leader = False
        self._queue = threading.RLock()
        self._at_work = threading.Lock()

    def _run(self, call: _Call[Result]) -> Result:
        if self.is_mine:
            raise nested_call()
        with self._queue:
            waits = self._has_leader
            self._has_leader = True
        if waits:
            call.caller, call.turn = threading.Lock(), threading.Lock()
            with call.caller:
                self._wait(call)
        if not call.done:
            self._lead(call)
        if call.error is not None:
            # Without the frames of the thread that carried it out.
            raise fresh(call.error) from call.error.__cause__
        return cast(Result, call.result)

    # -- waiting -----------------------------------------------------------------------------------

    def _wait(self, call: _Call[Any]) -> None:
        """Returns when the call is done, or is to be led by its own thread."""
        call.turn.acquire()
        try:
            with self._queue:
                if not self._has_leader:
                    self._has_leader = True
                    return
                self._waiting.append(call)
            while not (call.done or call.leads):
                if call.turn.acquire(timeout=_LOOK_UP_SECONDS):
                    continue
                if not self._at_work.locked():
                    return  # whoever led, or was to lead, was struck
                with self._queue:  # by whom this call may have been lost
                    if not self._is_taken(call) and call not in self._waiting:
                        self._waiting.append(call)
        except BaseException:
            # Nobody begins with the call of a caller that is gone. Who has begun is waited for, so that
            # what becomes of the call is settled when its caller goes on.
            while self._is_taken(call) and not call.done:
                call.turn.acquire(timeout=_LOOK_UP_SECONDS)
            raise

    def _is_taken(self, call: _Call[Any]) -> bool:
        """Whether somebody is at work on a call."""
        return call.taker is not None and call.taker is self._taker and self._at_work.locked()

    # -- leading -----------------------------------------------------------------------------------

    def _lead(self, own: _Call[Any]) -> None:
        group = [own]
        try:
            with self.lock, self._at_work:
                if own.done:  # by a leader that was thought to be lost
                    return
                self._taker = object()
                if own.alone:
                    self._carry_out_alone(own)
                else:
                    try:
                        self._collect(group)
                        self._finish(group)
                    except BaseException:
                        # This caller was struck. The others' calls are for the next one to lead.
                        with self._queue:
                            self._put_back(group)
                        raise
        finally:
            self._hand_on()
            for call in group:
                if call.done and call is not own:
                    _release(call.turn)

    # The loops are in functions of their own, see `locks`.

    def _collect(self, group: list[_Call[Any]]) -> None:
        if not self._waiting:
            return
        with self._queue:
            self._move_into(group)

    def _move_into(self, group: list[_Call[Any]]) -> None:
        own = group[0]
        while self._waiting and len(group) < _MAX_GROUP and not self._waiting[0].alone:
            call = self._waiting.popleft()
            if call is not own and not call.done and call.caller.locked():
                call.taker = self._taker
                group.append(call)

    def _put_back(self, group: list[_Call[Any]]) -> None:
        for call in reversed(group[1:]):
            if not call.done:
                call.taker = None
                self._waiting.appendleft(call)

    def _hand_on(self) -> None:
        """Makes the first who waits the leader."""
        with self._queue:
            self._has_leader = self._is_handed_on()

    def _is_handed_on(self) -> bool:
        while self._waiting:
            call = self._waiting.popleft()
            if not call.done and call.caller.locked():
                call.leads = True
                _release(call.turn)
                return True
        return False

    def _finish(self, group: list[_Call[Any]]) -> None:
        """Sees to it that every call of a group is done."""
        if self.refusal is not None:
            for call in group:
                call.error = self.refusal
            return
        if self._carry_out(group):
            return
        # One of them failed, maybe after it had begun to write. All of them were undone, and each is tried
        # by itself.
        for call in group:
            self._carry_out([call])

    def _carry_out(self, group: list[_Call[Any]]) -> bool:
        """Runs a group in one transaction; False if it was undone so as to try each call by itself."""
        commits: list[object] = []
        for call in group:
            call.commits = commits
        try:
            self._transact(commits, lambda: self._run_requests(group))
        except _RequestFailedError as failed:
            if len(group) > 1:
                return False
            group[0].error = failed.error
        except (DatabaseError, ForkedStoreError) as error:  # no request is to blame
            for call in group:
                call.error = error
        return True

    def _run_requests(self, group: list[_Call[Any]]) -> None:
        for call in group:
            try:
                call.result = call.work(self._repository)
            except _NEVER_A_REQUESTS:
                raise
            except (GoalStateError, sqlite3.Error) as error:
                if isinstance(error, sqlite3.Error):
                    raise _RequestFailedError(self._executor.failed(error)) from error
                raise _RequestFailedError(error) from None

    def _carry_out_alone(self, own: _Call[Any]) -> None:
        if self.refusal is not None:
            raise fresh(self.refusal)

        def work() -> None:
            self.runs_hosts_work = True
            own.result = own.work(self._repository)
            self.runs_hosts_work = False

        try:
            self._transact(own.commits, work)
        except sqlite3.Error as error:
            raise self._executor.failed(error) from error

    def _transact(self, commits: list[object], work: Callable[[], None]) -> None:
        """Runs work in a transaction; `commits` has an element once it is committed."""
        executor = self._executor
        self.runs_hosts_work = False
        if not executor.usable:
            self._reconnect()
        try:
            executor.clear()
            with executor.driver:
                self._gate.enter(executor.begin)
                self._on_begin()
                work()
                if executor.failure is not None:  # and the work made light of it
                    raise fresh(executor.failure)
                self._check_file()
                self._on_end(commits)
                executor.commit(commits)
        finally:
            self._gate.leave()


class _RequestFailedError(Exception):
    """Carries the error of a request past what strikes the thread that carries it out."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def nested_call() -> NestedCallError:
    """What a call is refused with that the transaction of its own thread would have to wait for."""
    return NestedCallError(
        "this thread is in the midst of a transaction of the same store; inside transact() call the"
        " repository that it hands over, and in a signal handler try again later"
    )


def _release(turn: threading.Lock) -> None:
    try:
        turn.release()
    except RuntimeError:  # its waiter is told twice
        return
