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
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal, TypeVar

from goal_state.charging import cumulative
from goal_state.errors import TurnError
from goal_state.goals import KEEP, Accounting, Goal, GoalStatus, Keep
from goal_state.repository import GoalRepository, wall_clock_ms
from goal_state.requests import check_total
from goal_state.store import GoalStore
from goal_state.usage import TokenUsage, TokenUsageInfo, UsageBaseline
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
        budget_exhausted: True once in the life of a goal, with the first charge that a meter makes on its
            full budget: tell the model to wrap up.
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
    known_total: TokenUsage = field(default_factory=TokenUsage)
    """The last cumulative usage that this meter was told; before that, the one stored when it was made."""
    was_told: bool = False
    """Whether it was told one."""
    count_number: int = 0
    """The count that the known total is of, as the database numbers them."""


class GoalMeter:
    """Meters one thread. Safe to call from several threads; several meters may share a thread id, in one
    process or many, and never charge the same tokens twice, whichever of them hears of them first or late,
    also where the count begins anew meanwhile.

    One thing no meter can know: whether a first total that is below the stored one is late or the first of
    a new count. It is late if the baseline moved since the meter was made, or is of the turn that the
    meter runs; else it is a new count, as after a restart of the host. What is late charges nothing.
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
        stored = store.baseline(self.thread_id)
        self._state = _State(marked_ns=clock_ns())
        if stored is not None:
            self._state.known_total = stored.total
            self._state.count_number = stored.count_number
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
                state.turn = turn
                caught_up = self._catch_up(repository, state, total)
                goal = repository.get(self.thread_id)
                self._bind(state, goal)
                return Accounting(goal, applied=idle or caught_up)

            return self._run(work)

    def observe(self, total: TokenUsage | TokenUsageInfo, *, turn_id: str | None = None) -> Reading:
        """The thread's cumulative usage is this now: charges what is new in it, and the active time.

        A total that is lower than the one this meter was told before is a new count, which charges what
        comes on top of it. One that another meter has overtaken charges nothing, nor does one of a count
        that another meter has seen end.

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
            accounting = work(repository, state)
            goal = accounting.goal
            self._note_payer(repository, state, goal)
            exhausted = (
                accounting.applied
                and goal is not None
                and goal.status is GoalStatus.BUDGET_LIMITED
                and repository.usage_log.warn_once(self.thread_id, goal.goal_id)
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
        stored = repository.baseline(self.thread_id)
        if stored is not None and stored.goal_id != payer:
            repository.usage_log.set_owners(self.thread_id, stored.turn_id, payer, wall_clock_ms())

    def _settle(
        self, repository: GoalRepository, state: _State, total: TokenUsage | TokenUsageInfo | None
    ) -> Accounting:
        """Charges the time since the mark, and what is new in the total, to the paying goal."""
        if total is not None:
            stored, seen = repository.baseline(self.thread_id), cumulative(total)
            if not _is_current(state, stored, seen) or (
                stored is not None and seen == stored.total
            ):
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
        return accounting

    def _charge(
        self,
        repository: GoalRepository,
        total: TokenUsage | TokenUsageInfo | None,
        time_ms: int,
        goal_id: str,
        turn_id: str | None,
    ) -> Accounting:
        if total is None:
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

    def _catch_up(
        self,
        repository: GoalRepository,
        state: _State,
        total: TokenUsage | TokenUsageInfo | None,
    ) -> bool:
        """Brings the baseline to what the host knows when a turn starts; whether a goal paid for it."""
        stored = repository.baseline(self.thread_id)
        if stored is not None:
            _follow_count(state, stored)
        elif total is None:
            total = TokenUsage()
        if total is None or not _is_current(state, stored, cumulative(total)):
            return False
        if stored is not None and cumulative(total).is_below(stored.total):
            repository.set_baseline(self.thread_id, total, turn_id=stored.turn_id)
            return False
        return repository.reconcile(self.thread_id, total).applied


def _follow_count(state: _State, stored: UsageBaseline) -> None:
    """When a turn starts: finds the meter's place if others have seen the count begin anew.

    Where less is stored than the meter knew, its next total is expected to be lower too, which brings it
    to the stored count. Otherwise it takes what is stored for what it knows.
    """
    if state.count_number == stored.count_number:
        return
    if stored.total.is_below(state.known_total):
        state.count_number = stored.count_number - 1
    else:
        state.count_number = stored.count_number
        state.known_total, state.was_told = stored.total, False


def _is_current(state: _State, stored: UsageBaseline | None, seen: TokenUsage) -> bool:
    """Takes note of a total; whether it is of the stored count and not overtaken, or of a later count.

    A total below the one before it is of the next count, which every meter sees in its own time. The
    first one that a meter is told may only be late: it is of a new count if nobody moved the baseline
    since the meter was made, and if that baseline is not of the very turn that runs.
    """
    falls = seen.is_below(state.known_total)
    if stored is not None and not state.was_told and state.count_number == stored.count_number:
        is_joined = state.turn is not None and state.turn.turn_id == stored.turn_id
        falls = falls and stored.total == state.known_total and not is_joined
    state.count_number += falls
    state.known_total, state.was_told = seen, True
    if stored is None or state.count_number > stored.count_number:
        return True
    return state.count_number == stored.count_number and not seen.is_below(stored.total)


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
