"""Lanes: the threads that carry out what is called on event loops.

A lane is a queue, and a thread that takes from it all that waits, carries it out together, and hands the
results back: one wake-up of each loop for all that it waits for. Each caller waits for its own result;
however many wait, so many at the most are carried out at once.

A caller that is cancelled takes its call with it, if no thread has begun it. One that was begun is carried
out; where its result must not be left with nobody to know of it (a hold that was granted), it is then undone.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from goal_state.delivery.wake_up import WakeUp
from goal_state.errors import GoalStateError, StoreClosedError, fresh
from goal_state.storage.backend import Outcome

__all__ = ["Lane", "call_work", "one_by_one"]

Work = Callable[..., Any]

_IDLE_SECONDS: Final = 5.0
"""A thread that has had nothing to do for so long ends; the next call begins another one."""


class _Job:
    """One call, from the loop that waits for it to the thread that carries it out and back."""

    __slots__ = ("_take_back", "future", "is_abandoned", "outcome", "work")

    def __init__(
        self,
        work: Work,
        future: asyncio.Future[Any] | None = None,
        *,
        take_back: Callable[[Any], None] | None = None,
    ) -> None:
        """
        Args:
            work: what to carry out.
            future: what its caller waits for; None where nobody does.
            take_back: called with the result where nobody is left to have it, on any thread, maybe twice.
        """
        self.work: Final = work
        self.future: Final = future
        self.is_abandoned = False
        self.outcome: Outcome | None = None
        self._take_back = take_back

    # The caller notes that it has gone and then looks for an outcome; the thread notes the outcome and then
    # looks whether the caller has gone. So at least one of them sees that there is something to take back.

    def abandon(self) -> None:
        """The caller has gone, or was told of an error."""
        self.is_abandoned = True
        self._take_back_if_due()

    def end(self, outcome: Outcome) -> None:
        """It was carried out, or failed."""
        self.outcome = outcome
        if self.is_abandoned:
            self._take_back_if_due()

    def _take_back_if_due(self) -> None:
        outcome = self.outcome
        if self._take_back is not None and outcome is not None and outcome.error is None:
            self._take_back(outcome.result)

    def deliver(self) -> None:
        """Tells the caller, on its loop."""
        if self.future is None or self.outcome is None or self.future.done():
            return
        result, error = self.outcome
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class Lane:
    """Carries out work on a thread of its own, for any number of loops."""

    def __init__(
        self,
        name: str,
        carry_out: Callable[[Sequence[Work]], Sequence[Outcome]],
        *,
        most_at_once: int,
        most_threads: int = 1,
    ) -> None:
        """
        Args:
            name: of its threads.
            carry_out: carries out several works, and tells what became of each.
            most_at_once: how many works are carried out together at the most.
            most_threads: how many threads there are at the most. A single one waits a while for further work;
                of several each ends when there is none.
        """
        self._name = name
        self._carry_out = carry_out
        self._most_at_once = most_at_once
        self._most_threads = most_threads
        self._is_stopping = False
        self.forget_threads()

    def forget_threads(self) -> None:
        """In a forked child: the threads stay with the parent, and so does whoever waits for them."""
        self._jobs: deque[_Job] = deque()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()  # of the threads, and of whether the lane takes work
        self._wake_up = WakeUp()

    # -- on a loop ---------------------------------------------------------------------------------

    async def call(self, work: Work, *, undo: Callable[[Any], Work | None] | None = None) -> Any:
        """Has work carried out and returns its result.

        Args:
            work: what to carry out; dropped, where the caller is cancelled before it was begun.
            undo: given the result, the work that undoes it where the caller is cancelled later. It comes
                before what waits, and maybe twice.

        Raises:
            StoreClosedError: the lane was stopped.
        """
        take_back = None if undo is None else partial(self._undo, undo)
        future = asyncio.get_running_loop().create_future()
        job = _Job(work, future, take_back=take_back)
        self._put(job)
        try:
            return await future
        except BaseException:
            job.abandon()
            raise

    def send(self, work: Work) -> asyncio.Future[Any]:
        """Has work carried out, whatever becomes of who waits for it.

        Raises:
            StoreClosedError: the lane was stopped.
        """
        future = asyncio.get_running_loop().create_future()
        self._put(_Job(work, future))
        return future

    def post(self, work: Work) -> None:
        """Has work carried out for which nobody waits, from any thread; not where the lane has ended."""
        self._put(_Job(work))

    def _undo(self, undo: Callable[[Any], Work | None], result: Any) -> None:
        work = undo(result)
        if work is not None:
            self._put(_Job(work), is_first=True)

    def _put(self, job: _Job, *, is_first: bool = False) -> None:
        with self._lock:
            if self._is_stopping:
                if job.future is not None:
                    raise StoreClosedError("the store is closed; open it again")
                if not self._threads:
                    return
            if len(self._threads) < self._most_threads:
                self._start()
            if is_first:
                self._jobs.appendleft(job)
            else:
                self._jobs.append(job)
        self._wake_up.set()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=f"goal-state {self._name}", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            self._threads.discard(thread)
            raise

    # -- on any thread -----------------------------------------------------------------------------

    def stop(self) -> None:
        """Takes no more calls. The threads end once all that were made are carried out. Never blocks."""
        self._is_stopping = True
        self._wake_up.set()

    def join(self) -> None:
        """Waits for the threads of a lane that was stopped."""
        for thread in list(self._threads):
            thread.join()

    # -- on a thread of the lane -------------------------------------------------------------------

    def _run(self) -> None:
        is_one_of_many = is_idle = self._most_threads > 1
        try:
            while not self._has_ended(is_idle=is_idle):
                is_busy = self._work()
                is_idle = is_one_of_many or not (is_busy or self._wake_up.wait(_IDLE_SECONDS))
        finally:
            self._threads.discard(threading.current_thread())

    def _has_ended(self, *, is_idle: bool) -> bool:
        with self._lock:
            if self._jobs or not (self._is_stopping or is_idle):
                return False
            self._threads.discard(threading.current_thread())
            return True

    def _work(self) -> bool:
        """Carries out what waits; False if nothing does. No variable knows of it once this has returned."""
        jobs: list[_Job] = []
        while len(jobs) < self._most_at_once:
            try:
                job = self._jobs.popleft()
            except IndexError:
                break
            if not job.is_abandoned:
                jobs.append(job)
        if not jobs:
            return bool(self._jobs)
        try:
            outcomes = self._carry_out([job.work for job in jobs])
        except BaseException as error:
            outcomes = [Outcome(None, _own(error)) for _ in jobs]
        waiting: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
        for job, outcome in zip(jobs, outcomes, strict=True):
            job.end(outcome)
            if job.future is not None:
                waiting.setdefault(job.future.get_loop(), []).append(job)
        for loop, ended in waiting.items():
            try:
                loop.call_soon_threadsafe(_deliver, ended)
            except RuntimeError:  # the loop is closed
                _abandon(ended)
        return True


def one_by_one(carry_out: Callable[[Work], Any]) -> Callable[[Sequence[Work]], Sequence[Outcome]]:
    """Carries out each of several works by itself, whatever became of those before it."""

    def outcome(work: Work) -> Outcome:
        try:
            return Outcome(carry_out(work), None)
        except BaseException as error:
            return Outcome(None, error)

    return lambda works: [outcome(work) for work in works]


def call_work(work: Callable[[], Any]) -> Any:
    """Carries out work that needs nothing."""
    return work()


def _deliver(jobs: list[_Job]) -> None:
    for job in jobs:
        job.deliver()


def _abandon(jobs: list[_Job]) -> None:
    for job in jobs:
        job.abandon()


def _own(error: BaseException) -> BaseException:
    """An error for one of several callers, so that no traceback grows with theirs."""
    return fresh(error) if isinstance(error, GoalStateError) else error
