"""The one way in which a store writes: many callers' requests, few commits.

Whoever finds nobody leading leads: it takes every request that is waiting, carries all of them out in one
transaction and commits. Those who come meanwhile wait, each on a lock of its own. The first of them is
handed the lead, so that its transaction begins while the others learn of their results. There is no
thread of its own, and a caller alone pays nothing for it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, cast

from goal_state.repository import GoalRepository
from goal_state.turnstile import Gate

__all__ = ["Writer"]

Result = TypeVar("Result")

_MAX_GROUP: Final = 256
"""Requests in one transaction at the most, so that nobody waits for the commit of a crowd."""


class _Call(Generic[Result]):
    """One caller's work and what became of it."""

    __slots__ = ("done", "error", "leads", "result", "turn", "work")

    def __init__(self, work: Callable[[GoalRepository], Result]) -> None:
        self.work = work
        self.done = False
        self.leads = False
        self.turn: threading.Lock | None = None  # held until the call is done or leads
        self.result: Result | None = None
        self.error: BaseException | None = None


class Writer:
    """Runs work on the repository of the store's one writing connection, in grouped transactions."""

    def __init__(
        self,
        repository: GoalRepository,
        gate: Gate,
        *,
        check_file: Callable[[], None],
        reconnect: Callable[[], None],
        on_commit: Callable[[], None],
        on_rollback: Callable[[], None],
    ) -> None:
        """
        Args:
            repository: the one that all work is handed to.
            gate: how each transaction takes its turn with other processes.
            check_file: called before each commit; raises if the file is no longer the one that was opened.
            reconnect: gives the repository a new connection, after the database failed on the old one.
            on_commit: called after each commit, before the next transaction begins.
            on_rollback: called when a transaction was undone.
        """
        self._repository = repository
        self._executor = repository.executor
        self._gate = gate
        self._check_file = check_file
        self._reconnect = reconnect
        self._on_commit = on_commit
        self._on_rollback = on_rollback
        self._waiting: deque[_Call[Any]] = deque()
        self._committing: list[_Call[Any]] = []
        self._has_leader = False
        self._queue = threading.Lock()  # never held while SQL runs
        self.lock: Final = threading.Lock()
        """Held while a transaction is open; whoever holds it may use the connection."""
        self.refusal: Exception | None = None
        """Set under the lock, it is raised to all who come after, and to those who were waiting."""

    def run(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Carries out the work and returns its result once the commit that holds it is done.

        The work may be carried out more than once, each time after what it did before was undone.
        """
        call = _Call(work)
        with self._queue:
            if self._has_leader:
                call.turn = threading.Lock()
                call.turn.acquire()
                self._waiting.append(call)
            else:
                self._has_leader = call.leads = True
        if call.turn is not None:
            self._wait(call, call.turn)
        if call.leads:
            self._lead(call)
        if call.error is not None:
            raise call.error
        return cast(Result, call.result)

    def _wait(self, call: _Call[Any], turn: threading.Lock) -> None:
        try:
            turn.acquire()
        except BaseException:
            # An interrupt: the call leaves the queue, and hands on the lead if it was just given it.
            with self._queue:
                if call in self._waiting:
                    self._waiting.remove(call)
            if call.leads:
                self._hand_on()
            raise

    def _lead(self, own: _Call[Any]) -> None:
        group = [own]
        if self._waiting:
            with self._queue:
                while self._waiting and len(group) < _MAX_GROUP:
                    group.append(self._waiting.popleft())
        try:
            with self.lock:
                self._finish(group, own)
        finally:
            self._hand_on()
            for call in group:
                if call.done and call.turn is not None and call is not own:
                    call.turn.release()

    def _hand_on(self) -> None:
        """Makes the first who waits the leader."""
        with self._queue:
            if not self._waiting:
                self._has_leader = False
                return
            call = self._waiting.popleft()
            call.leads = True
        if call.turn is not None:
            call.turn.release()

    def _finish(self, group: list[_Call[Any]], own: _Call[Any]) -> None:
        """Sees to it that every call of a group is done, or waits again."""
        if self.refusal is not None:
            for call in group:
                call.error = self.refusal
                call.done = True
            return
        try:
            if not self._carry_out(group):
                # One of them failed, maybe after it had begun to write. All of them were undone, and each
                # is tried by itself.
                for call in group:
                    self._carry_out([call])
        except BaseException:
            # An interrupt of this caller. If it came just after the commit, all is done.
            if self._committing and not self._executor.in_transaction:
                self._conclude(self._committing, None)
            # Else the others' calls are for the next one to lead.
            self._undo()
            left = [call for call in group if not call.done and call is not own]
            with self._queue:
                self._waiting.extendleft(reversed(left))
            raise

    def _carry_out(self, group: list[_Call[Any]]) -> bool:
        """Runs a group in one transaction; False if it was undone so as to try each call by itself."""
        executor = self._executor
        failure: BaseException | None = None
        try:
            if executor.failure is not None:
                self._reconnect()
            self._gate.enter(executor.begin)
            try:
                for call in group:
                    call.result = call.work(self._repository)
                if executor.failure is not None:  # and the work made light of it
                    raise executor.failure
                self._check_file()
            except KeyboardInterrupt:  # meant for the thread that leads, whoever's work it hit
                raise
            except BaseException as error:
                self._undo()
                if len(group) > 1:
                    return False
                failure = executor.failed(error) if isinstance(error, sqlite3.Error) else error
            else:
                self._committing = group
                executor.commit()
        except Exception as error:  # the database's: nobody's work is to blame
            self._undo()
            failure = error
        finally:
            self._gate.leave()
        self._conclude(group, failure)
        return True

    def _conclude(self, group: list[_Call[Any]], failure: BaseException | None) -> None:
        for call in group:
            call.error = failure
            call.done = True
        if failure is None:
            self._on_commit()
        self._committing = []

    def _undo(self) -> None:
        self._executor.rollback()
        self._on_rollback()
