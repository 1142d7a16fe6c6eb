"""The one way in which a store writes: many callers' requests, few commits.

Whoever finds no commit under way leads: it takes every request that is waiting, carries all of them out
in one transaction and commits. Those who come meanwhile wait, and one of them leads the next round. There
is no thread of its own, so that a caller alone pays nothing for it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, cast

from goal_state.repository import GoalRepository

__all__ = ["Writer"]

Result = TypeVar("Result")


class _Call(Generic[Result]):
    """One caller's work and what became of it."""

    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Callable[[GoalRepository], Result]) -> None:
        self.work = work
        self.done = False
        self.result: Result | None = None
        self.error: BaseException | None = None


_MAX_GROUP: Final = 256
"""Requests in one transaction at the most, so that nobody waits for the commit of a crowd."""


class Writer:
    """Runs work on the repository of the store's one writing connection, in grouped transactions."""

    def __init__(
        self,
        repository: GoalRepository,
        *,
        on_commit: Callable[[], None],
        on_rollback: Callable[[], None],
    ) -> None:
        """
        Args:
            repository: the one that all work is handed to.
            on_commit: called after each commit, before the next transaction begins.
            on_rollback: called when a transaction was undone.
        """
        self._repository = repository
        self._executor = repository.executor
        self._on_commit = on_commit
        self._on_rollback = on_rollback
        self._waiting: deque[_Call[Any]] = deque()
        self.lock: Final = threading.Lock()
        """Held while a transaction is open; whoever holds it may use the connection."""
        self.refusal: Exception | None = None
        """Set under the lock, it is raised to all who come after, and to those who were waiting."""

    def run(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Carries out the work and returns its result once the commit that holds it is done.

        The work may be carried out more than once, each time after what it did before was undone.
        """
        call = _Call(work)
        self._waiting.append(call)
        with self.lock:
            while not call.done:  # more than once where so many wait that it is in no early group
                if self.refusal is not None:
                    raise self.refusal
                self._lead(call)
        if call.error is not None:
            raise call.error
        return cast(Result, call.result)

    def _lead(self, own: _Call[Any]) -> None:
        waiting = self._waiting
        group = [waiting.popleft() for _ in range(min(len(waiting), _MAX_GROUP))]
        try:
            if not self._carry_out(group):
                # One of them failed, maybe after it had begun to write. All of them were undone, and each
                # is tried by itself.
                for call in group:
                    self._carry_out([call])
        except BaseException:
            # An interrupt of this caller: the others' calls are for the next one to lead.
            self._undo()
            left = [call for call in group if not call.done and call is not own]
            waiting.extendleft(reversed(left))
            raise

    def _carry_out(self, group: list[_Call[Any]]) -> bool:
        """Runs a group in one transaction; False if it was undone so as to try each call by itself."""
        executor = self._executor
        call = group[0]
        failure: BaseException | None = None
        committing = False
        try:
            executor.begin()
            try:
                for call in group:
                    call.result = call.work(self._repository)
            except KeyboardInterrupt:  # meant for the thread that leads, whoever's work it hit
                raise
            except BaseException as error:
                self._undo()
                if len(group) > 1:
                    return False
                failure = error
            else:
                committing = True
                executor.commit()
                self._on_commit()
        except Exception as error:  # the database's: nobody's work is to blame
            self._undo()
            failure = error
        except BaseException:
            if committing and not executor.in_transaction:  # too late: nothing may be done again
                self._on_commit()
                for call in group:
                    call.done = True
            raise
        for call in group:
            call.error = failure
            call.done = True
        return True

    def _undo(self) -> None:
        self._executor.rollback()
        self._on_rollback()
