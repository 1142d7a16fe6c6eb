"""GoalMeter: from what a live agent reports to charges on its thread's goal.

Rules that hold throughout, as recorded from a real program:

- A turn pays for the goal that is active when it starts, or that becomes active while it runs, from that
  moment on; never for another one. One that crosses the budget goes on paying to its end.
- Every change of the goal first charges what is due.
- What was observed is durable: the usage baseline moves in the transaction of the charge, so that a
  process which dies at any point and starts again charges each token once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal, TypeVar

from goal_state.charging import cumulative
from goal_state.errors import TurnError
from goal_state.goals import KEEP, Accounting, Goal, GoalStatus, Keep
from goal_state.repository import GoalRepository, wall_clock_ms
from goal_state.requests import check_total
from goal_state.store import GoalStore
from goal_state.usage import TokenUsage, TokenUsageInfo
from goal_state.validation import check_name, check_optional_name

__all__ = ["GoalMeter", "Reading"]

Result = TypeVar("Result")

_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """What the meter did with a report.

    Attributes:
        goal: the thread's goal after it, or None.
        charged: whether the goal paid for something.
        budget_exhausted: True once in the life of a goal, when a charge fills its budget for the first
            time: tell the model to wrap up.
    """

    goal: Goal | None
    charged: bool
    budget_exhausted: bool


@dataclass(slots=True)
class _Turn:
    turn_id: str
    charge_tokens: bool


@dataclass(slots=True)
class _State:
    """What a meter knows besides the database. Replaced as a whole once a transaction has committed."""

    turn: _Turn | None = None
    paying_goal_id: str | None = None
    """The goal that takes the charges of now: fixed when the turn starts or a goal becomes active."""
    marked_ns: int = 0
    """Up to here active time was charged (or was nobody's)."""
    rest_ns: int = 0
    """Active time below a millisecond that is still due."""
    rest_goal_id: str | None = None
    """The goal that owes it."""
    last_total: TokenUsage | None = None
    """The last cumulative usage that this meter was told."""
    own_baseline: TokenUsage | None = None
    """The stored baseline as this meter found it when it was made, or as it wrote it itself."""


class GoalMeter:
    """Meters one thread. Safe to call from several threads; several meters may share a thread id, in one
    process or many, and never charge the same tokens twice.
    """

    def __init__(
        self,
        store: GoalStore,
        thread_id: str,
        *,
        count_idle_time: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """
        Args:
            store: where the goal is kept. The meter does not close it.
            thread_id: the conversation.
            count_idle_time: whether the time between turns counts as active, while a goal is.
            clock_ns: a monotonic clock in nanoseconds.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        self.thread_id: Final = check_name("thread_id", thread_id)
        self._store = store
        self._count_idle_time = count_idle_time
        self._clock_ns = clock_ns
        self._lock = threading.RLock()
        self._at_work = False
        stored = store.usage(self.thread_id)
        self._state = _State(
            marked_ns=clock_ns(), own_baseline=None if stored is None else stored.info.total
        )
        if count_idle_time:
            self._bind(self._state, store.get(self.thread_id))

    @property
    def turn_id(self) -> str | None:
        """The turn that runs, or None."""
        turn = self._state.turn
        return None if turn is None else turn.turn_id

    @property
    def goal(self) -> Goal | None:
        """The thread's goal as it is stored now, or None."""
        return self._store.get(self.thread_id)

    @property
    def remaining_tokens(self) -> int | None:
        """What is left of the goal's budget, from 0; None without a goal or without a budget."""
        goal = self.goal
        return None if goal is None else goal.remaining_tokens

    # -- turns -------------------------------------------------------------------------------------

    def start_turn(
        self,
        turn_id: str,
        *,
        total: TokenUsage | TokenUsageInfo | None = None,
        charge_tokens: bool = True,
    ) -> Reading:
        """A turn begins. It pays for the goal that is active now.

        Args:
            turn_id: the turn, as the host names it.
            total: what the thread has used so far, as far as the host knows. On a thread that was never
                seen this (or zero) becomes the baseline. Where it is above the stored one, tokens were
                lost in a crash: they are charged now, to the turn that used them, if the goal that is
                active was there at that time.
            charge_tokens: False for a turn that pays nothing (planning).

        Raises:
            TurnError: a turn is running.
            InvalidValueError: a value is out of its bounds.
        """
        turn = _Turn(check_name("turn_id", turn_id), charge_tokens)
        if total is not None:
            check_total(total)
        with self._alone():
            if self._state.turn is not None:
                raise TurnError(
                    f"turn {turn_id!r} cannot start while turn {self._state.turn.turn_id!r} runs;"
                    " finish or abort that one first"
                )

            def work(repository: GoalRepository, state: _State) -> Accounting:
                if self._count_idle_time:
                    idle = self._settle(repository, state, None).applied
                else:
                    idle = False
                    state.marked_ns = self._clock_ns()
                caught_up = self._catch_up(repository, state, total)
                goal = repository.get(self.thread_id)
                state.turn = turn
                self._bind(state, goal)
                return Accounting(goal, applied=idle or caught_up)

            return self._run(work)

    def observe(self, total: TokenUsage | TokenUsageInfo, *, turn_id: str | None = None) -> Reading:
        """The thread's cumulative usage is this now: charges what is new in it, and the active time.

        A total that is lower than the one this meter saw before is a new beginning. One that another
        meter has overtaken meanwhile charges nothing.

        Args:
            total: what the thread has used since it began.
            turn_id: the turn that the report is of; it must be the one that runs.

        Raises:
            TurnError: no turn runs, or another one.
            InvalidValueError: the usage is malformed; nothing was charged.
            UsageOverflowError: the goal's usage would reach 2^63.
        """
        check_total(total)
        named = check_optional_name("turn_id", turn_id)
        with self._alone():
            self._running(named)

            def work(repository: GoalRepository, state: _State) -> Accounting:
                return self._settle(repository, state, total)

            return self._run(work)

    def flush(self) -> Reading:
        """Charges the active time so far; to be called after a tool has run.

        Raises:
            TurnError: no turn runs.
        """
        with self._alone():
            self._running(None)
            return self._run(lambda repository, state: self._settle(repository, state, None))

    def finish_turn(self) -> Reading:
        """The turn is over; charges what is due.

        Raises:
            TurnError: no turn runs.
        """
        return self._end_turn()

    def abort_turn(self) -> Reading:
        """The turn was interrupted; it pays for what it used.

        Raises:
            TurnError: no turn runs.
        """
        return self._end_turn()

    # -- changes caused by the turn ----------------------------------------------------------------

    def create_goal(self, objective: str, *, token_budget: int | None = None) -> Goal:
        """The model makes a goal; it pays from now on. As `GoalStore.create`."""
        return self._change(
            lambda repository, turn_id: repository.create(
                self.thread_id, objective, token_budget=token_budget, turn_id=turn_id
            )
        )

    def complete_goal(self) -> Goal:
        """The model has reached the goal, which takes its last charge first.

        Raises:
            GoalNotFoundError: there is no goal.
        """
        return self._change(
            lambda repository, turn_id: repository.set(
                self.thread_id, status=GoalStatus.COMPLETE, turn_id=turn_id
            )
        )

    def block_goal(self, reason: str | None = None) -> Goal:
        """The turn failed, or waits for somebody; the goal is blocked.

        Args:
            reason: kept on the goal while it is blocked, 1 to 4000 characters; never in an event.

        Raises:
            GoalNotFoundError: there is no goal.
            InvalidValueError: the reason is out of its bounds.
        """
        return self._change(
            lambda repository, turn_id: repository.set(
                self.thread_id, status=GoalStatus.BLOCKED, blocked_reason=reason, turn_id=turn_id
            )
        )

    def usage_limited(self, resume_at: datetime | None = None) -> Goal:
        """The provider refuses more usage for now.

        Args:
            resume_at: when it will take it again, if it said so; kept on the goal meanwhile.

        Raises:
            GoalNotFoundError: there is no goal.
            InvalidValueError: the time has no time zone.
        """
        return self._change(
            lambda repository, turn_id: repository.set(
                self.thread_id,
                status=GoalStatus.USAGE_LIMITED,
                resume_at=resume_at,
                turn_id=turn_id,
            )
        )

    # -- changes from outside ----------------------------------------------------------------------

    def set_goal(
        self,
        *,
        objective: str | Literal[Keep.KEEP] = KEEP,
        status: GoalStatus | str | Literal[Keep.KEEP] = KEEP,
        token_budget: int | Literal[Keep.KEEP] | None = KEEP,
        turn_id: str | None = None,
    ) -> Goal:
        """Somebody changes the goal, or makes one. As `GoalStore.set`; charges what is due first."""
        return self._change(
            lambda repository, _: repository.set(
                self.thread_id,
                objective=objective,
                status=status,
                token_budget=token_budget,
                turn_id=turn_id,
            )
        )

    def clear_goal(self, *, turn_id: str | None = None) -> Goal | None:
        """Somebody removes the goal. As `GoalStore.clear`; charges what is due first."""
        return self._change(lambda repository, _: repository.clear(self.thread_id, turn_id=turn_id))

    # -- shared steps ------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Generator[None]:
        """One report at a time. A live listener is called while the report that caused its event is not
        finished yet, so it cannot make another.
        """
        with self._lock:
            if self._at_work:
                raise TurnError("the meter is at work; report after the listener has returned")
            self._at_work = True
            try:
                yield
            finally:
                self._at_work = False

    def _running(self, turn_id: str | None) -> _Turn:
        turn = self._state.turn
        if turn is None:
            raise TurnError("no turn is running; start one first")
        if turn_id is not None and turn_id != turn.turn_id:
            raise TurnError(f"turn {turn_id!r} is not running; turn {turn.turn_id!r} is")
        return turn

    def _end_turn(self) -> Reading:
        with self._alone():
            self._running(None)

            def work(repository: GoalRepository, state: _State) -> Accounting:
                accounting = self._settle(repository, state, None)
                state.turn = None
                self._bind(state, accounting.goal)
                return accounting

            return self._run(work)

    def _run(self, work: Callable[[GoalRepository, _State], Accounting]) -> Reading:
        """Runs work on a copy of the state, which becomes the state once the transaction is durable."""

        def attempt(repository: GoalRepository) -> tuple[_State, Reading]:
            state = replace(self._state)
            before = repository.get(self.thread_id)
            accounting = work(repository, state)
            goal = accounting.goal
            self._note_payer(repository, state, goal)
            exhausted = (
                accounting.applied
                and goal is not None
                and goal.status is GoalStatus.BUDGET_LIMITED
                and before is not None
                and before.status is not GoalStatus.BUDGET_LIMITED
                and repository.log.crossings(goal.goal_id) == 1
            )
            return state, Reading(goal, accounting.applied, exhausted)

        self._state, reading = self._store.transact(attempt)
        return reading

    def _change(self, change: Callable[[GoalRepository, str | None], Result]) -> Result:
        with self._alone():

            def attempt(repository: GoalRepository) -> tuple[_State, Result]:
                state = replace(self._state)
                self._settle(repository, state, None)
                before = repository.get(self.thread_id)
                result = change(repository, self.turn_id)
                goal = repository.get(self.thread_id)
                if state.turn is None or state.paying_goal_id is None or _begins(goal, before):
                    self._bind(state, goal)
                self._note_payer(repository, state, goal)
                return state, result

            self._state, result = self._store.transact(attempt)
            return result

    def _bind(self, state: _State, goal: Goal | None) -> None:
        """From now on the goal pays, if it is active and somebody is at work."""
        pays = state.turn.charge_tokens if state.turn is not None else self._count_idle_time
        active = goal is not None and goal.status is GoalStatus.ACTIVE
        state.paying_goal_id = goal.goal_id if goal is not None and active and pays else None
        if state.paying_goal_id not in (None, state.rest_goal_id):
            state.rest_goal_id, state.rest_ns = state.paying_goal_id, 0

    def _note_payer(self, repository: GoalRepository, state: _State, goal: Goal | None) -> None:
        """Keeps beside the baseline who pays for what the running turn uses beyond it, so that after a
        crash nobody else does.
        """
        if state.turn is None:
            return
        payer = state.paying_goal_id if _takes_charges(goal, state.paying_goal_id) else None
        if repository.usage_log.goal_id(self.thread_id) == payer:
            return
        if (usage := repository.usage(self.thread_id)) is not None:
            repository.usage_log.write(self.thread_id, usage, payer, wall_clock_ms())

    def _settle(
        self, repository: GoalRepository, state: _State, total: TokenUsage | TokenUsageInfo | None
    ) -> Accounting:
        """Charges the time since the mark, and what is new in the total, to the paying goal."""
        if total is not None and self._is_overtaken(repository, state, total):
            state.last_total = cumulative(total)
            total = None
        turn_id = None if state.turn is None else state.turn.turn_id
        now_ns = self._clock_ns()
        elapsed_ns, state.marked_ns = max(now_ns - state.marked_ns, 0), now_ns
        if state.paying_goal_id is None:
            if total is not None:
                repository.set_baseline(self.thread_id, total, turn_id=turn_id)
            accounting = Accounting(repository.get(self.thread_id), applied=False)
            # A goal that somebody made or activated without this meter pays from the next report on.
            self._bind(state, accounting.goal)
        else:
            due_ms, rest_ns = divmod(state.rest_ns + elapsed_ns, _NS_PER_MS)
            accounting = self._charge(repository, total, due_ms, state.paying_goal_id, turn_id)
            if _takes_charges(accounting.goal, state.paying_goal_id):
                state.rest_ns = rest_ns
        if total is not None:
            state.last_total = state.own_baseline = cumulative(total)
        return accounting

    def _charge(
        self,
        repository: GoalRepository,
        total: TokenUsage | TokenUsageInfo | None,
        time_ms: int,
        goal_id: str,
        turn_id: str | None,
    ) -> Accounting:
        stored = repository.usage(self.thread_id)
        if total is None or (stored is not None and stored.info.total == cumulative(total)):
            return repository.account(
                self.thread_id,
                seconds=time_ms / 1000,
                expected_goal_id=goal_id,
                turn_id=turn_id,
            )
        return repository.record_usage(
            self.thread_id,
            total,
            seconds=time_ms / 1000,
            expected_goal_id=goal_id,
            turn_id=turn_id,
        )

    def _is_overtaken(
        self, repository: GoalRepository, state: _State, total: TokenUsage | TokenUsageInfo
    ) -> bool:
        """Whether another meter has seen more than this total, of the same count.

        A total below the stored one is a new count only if this meter saw it fall: below the last one it
        was told itself or, before that, below a baseline that nobody has moved since it was made.
        """
        stored = repository.usage(self.thread_id)
        seen = cumulative(total)
        if stored is None or not seen.is_below(stored.info.total):
            return False
        if state.last_total is not None:
            return not seen.is_below(state.last_total)
        return stored.info.total != state.own_baseline

    def _catch_up(
        self,
        repository: GoalRepository,
        state: _State,
        total: TokenUsage | TokenUsageInfo | None,
    ) -> bool:
        """Brings the baseline to what the host knows when a turn starts; whether a goal paid for it."""
        stored = repository.usage(self.thread_id)
        if total is None:
            if stored is None:
                state.own_baseline = TokenUsage()
                repository.set_baseline(self.thread_id, state.own_baseline)
            return False
        if self._is_overtaken(repository, state, total):
            state.last_total = cumulative(total)
            return False
        if stored is not None and cumulative(total).is_below(stored.info.total):
            repository.set_baseline(self.thread_id, total, turn_id=stored.turn_id)  # a new count
            applied = False
        else:
            applied = repository.reconcile(self.thread_id, total).applied
        state.last_total = state.own_baseline = cumulative(total)
        return applied


def _begins(goal: Goal | None, before: Goal | None) -> bool:
    """Whether a change made a goal, or made it active, or took the one that was there."""
    if goal is None or before is None or goal.goal_id != before.goal_id:
        return True
    return goal.status is GoalStatus.ACTIVE and before.status is not GoalStatus.ACTIVE


def _takes_charges(goal: Goal | None, goal_id: str | None) -> bool:
    """Whether it is that goal, and in a status in which a turn that it began may charge it."""
    return (
        goal is not None
        and goal.goal_id == goal_id
        and goal.status in (GoalStatus.ACTIVE, GoalStatus.BUDGET_LIMITED)
    )
