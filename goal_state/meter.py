"""GoalMeter: from what a live agent reports to charges on its thread's goal.

Rules that hold throughout, as recorded from a real program:

- A turn pays for the goal that is active when it starts, or that becomes active while it runs, from that
  moment on; never for another one. One that crosses the budget goes on paying to its end.
- Every change of the goal first charges what is due.
- Active time rides on the charges of tokens. Alone it is charged once a whole second is due; what is less
  is carried, from report to report and from turn to turn, for the goal that owes it.
- What was observed is durable: the usage baseline moves in the transaction of the charge, so that a
  process which dies at any point and starts again charges each token once.
- A call that an exception struck is repeated safely: what of it was committed is found in the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal, TypeVar

from goal_state.domain.goals import KEEP, Accounting, AccountingMode, Goal, GoalStatus, Keep
from goal_state.domain.requests import RecordTotal, SetBaseline, check_total
from goal_state.domain.totals import cumulative
from goal_state.domain.usage import TokenUsage, TokenUsageInfo
from goal_state.domain.values import check_name, check_optional_name
from goal_state.errors import TurnError
from goal_state.storage.repository import GoalRepository, wall_clock_ms
from goal_state.store import GoalStore

__all__ = ["GoalMeter", "Reading"]

Result = TypeVar("Result")

_NS_PER_MS: Final = 1_000_000
_LEAST_TIME_ALONE_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Reading:
    """What the meter did with a report.

    Attributes:
        goal: the thread's goal after it, or None.
        charged: whether the goal paid for something.
        budget_exhausted: True once for each time that the goal's budget fills, with the first charge that
            a meter makes on the full budget: tell the model to wrap up. A goal that was resumed with a
            higher budget, and fills it, says so again.
    """

    goal: Goal | None
    charged: bool
    budget_exhausted: bool

    @property
    def over_budget(self) -> bool:
        """Whether the goal has used its budget up: True with every reading for as long as it has."""
        return self.goal is not None and self.goal.remaining_tokens == 0


@dataclass(frozen=True, slots=True)
class _Turn:
    turn_id: str
    charge_tokens: bool
    count_id: str | None


@dataclass(slots=True)
class _State:
    """What a meter knows besides the database."""

    turn: _Turn | None = None
    paying_goal_id: str | None = None
    """The goal that takes the charges of now: fixed when the turn starts or a goal becomes active."""
    marked_ns: int = 0
    """Up to here active time was charged, or is in the rest, or was nobody's."""
    rest_ns: int = 0
    """Active time that is still due."""
    rest_goal_id: str | None = None
    """The goal that owes it."""
    unheard_goal_id: str | None = None
    """A goal whose budget was found to be full by a call that did not come to tell it."""


@dataclass(slots=True)
class _Attempt:
    """A call, and what it leaves. Whether it does is known once its transaction has ended, or (where an
    exception struck on the way back) once the log was asked.
    """

    state: _State | None = None
    event_id: str | None = None
    """The last event that it wrote, if it wrote any."""
    position: int = 0
    exhausted_goal_id: str | None = None
    """The goal whose budget it found to be full."""
    is_committed: bool = False
    is_struck: bool = False


class GoalMeter:
    """Meters one thread. Safe to call from several threads; several meters may share a thread id, in one
    process or many, and never charge the same tokens twice, whichever of them hears of them first or late.
    They do so within one turn, or where their totals have one `count_id`: see `GoalStore.record_total` for
    how a late total is told from the first of a new count.

    Time is another matter: each meter measures its own, so that two that run in one turn charge it twice.
    Let one of them measure it, and give the others a clock that stands still (`clock_ns=lambda: 0`).

    A call that raises has charged nothing, unless an exception from outside (`KeyboardInterrupt`, one of a
    signal handler) struck after its commit. It may be repeated in any case, and then charges nothing again;
    until then its turn is the one from before it.
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
        self._state = _State(marked_ns=clock_ns())
        self._last: _Attempt | None = None
        """The last call, until the next one finds out what became of it and makes that the state."""
        if count_idle_time:
            self._bind(self._state, store.get(self.thread_id))

    @property
    def turn_id(self) -> str | None:
        """The turn that runs, or None."""
        turn = self._turn
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
        count_id: str | None = None,
        charge_tokens: bool = True,
    ) -> Reading:
        """A turn begins. It pays for the goal that is active now.

        Args:
            turn_id: the turn, as the host names it.
            total: what the thread has used so far, as far as the host knows. On a thread that was never
                seen this (or zero) becomes the baseline. Where it is above the stored one, tokens were
                lost in a crash: they are charged now, to the turn that used them, if the goal that is
                active was there at that time. One below the stored one is the first of a new count if the
                turn has not reported before, else it is late.
            count_id: what the turn's totals are counted in, where a thread's usage is counted from zero
                more than once; as for `GoalStore.record_total`. Without it, a turn that is tried again
                under its id with a count from zero pays nothing until that exceeds what it had reported.
            charge_tokens: False for a turn that pays nothing (planning).

        Raises:
            TurnError: a turn is running.
            InvalidValueError: a value is out of its bounds.
        """
        turn = _Turn(
            check_name("turn_id", turn_id),
            charge_tokens,
            check_optional_name("count_id", count_id),
        )
        if total is not None:
            check_total(total)

        def check() -> None:
            if self._turn is not None:
                raise TurnError(
                    f"turn {turn_id!r} cannot start while turn {self._turn.turn_id!r} runs;"
                    " finish or abort that one first"
                )

        def work(repository: GoalRepository, state: _State) -> Accounting:
            if self._count_idle_time:
                idle = self._settle(repository, state).applied
            else:
                idle = False
                state.marked_ns = self._clock_ns()
            state.turn = turn
            caught_up = self._catch_up(repository, turn, total)
            goal = repository.get(self.thread_id)
            self._bind(state, goal)
            return Accounting(goal, applied=idle or caught_up)

        return self._report(check, work)

    def record_total(
        self,
        total: TokenUsage | TokenUsageInfo,
        *,
        turn_id: str | None = None,
        count_id: str | None = None,
    ) -> Reading:
        """The thread's cumulative usage is this now: charges what is new in it, and the active time.

        A total that is lower than the stored one charges nothing: it is the first of a new count if the
        turn has not reported before, else it is late. Time that comes with nothing new is charged once it
        is a whole second.

        Args:
            total: what the thread has used since it began.
            turn_id: the turn that the report is of; it must be the one that runs.
            count_id: the count that the total is of, and the turn's from now on; by default the turn's.

        Raises:
            TurnError: no turn runs, or another one.
            InvalidValueError: a value is malformed; nothing was charged.
            UsageOverflowError: the goal's usage would reach 2^63.
        """
        check_total(total)
        named = check_optional_name("turn_id", turn_id)
        count = check_optional_name("count_id", count_id)

        def work(repository: GoalRepository, state: _State) -> Accounting:
            if count is not None and state.turn is not None:
                state.turn = replace(state.turn, count_id=count)
            return self._settle(repository, state, total)

        return self._report(lambda: self._check_running(named), work)

    def flush(self) -> Reading:
        """Charges the active time so far, once it is a whole second; to be called after a tool has run.

        Raises:
            TurnError: no turn runs.
        """
        return self._report(self._check_running, self._settle)

    def finish_turn(self) -> Reading:
        """The turn is over; charges what is due. Less than a second is carried to the next turn.

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

    # -- calls -------------------------------------------------------------------------------------

    @property
    def _turn(self) -> _Turn | None:
        """The turn that runs. A call that was struck has neither begun nor ended one."""
        last = self._last
        if last is not None and last.is_committed and not last.is_struck and last.state is not None:
            return last.state.turn
        return self._state.turn

    def _check_running(self, turn_id: str | None = None) -> None:
        turn = self._turn
        if turn is None:
            raise TurnError("no turn is running; start one first")
        if turn_id is not None and turn_id != turn.turn_id:
            raise TurnError(f"turn {turn_id!r} is not running; turn {turn.turn_id!r} is")

    def _end_turn(self) -> Reading:
        def work(repository: GoalRepository, state: _State) -> Accounting:
            accounting = self._settle(repository, state)
            state.turn = None
            self._bind(state, accounting.goal)
            return accounting

        return self._report(self._check_running, work)

    def _report(
        self, check: Callable[[], None], work: Callable[[GoalRepository, _State], Accounting]
    ) -> Reading:
        """Makes a report that is answered by a reading."""

        def attempt(repository: GoalRepository, state: _State, call: _Attempt) -> Reading:
            accounting = work(repository, state)
            goal = accounting.goal
            self._note_payer(repository, state, goal)
            reading = Reading(goal, accounting.applied, budget_exhausted=False)
            if goal is None or not reading.over_budget:
                state.unheard_goal_id = None
                return reading
            if goal.goal_id == state.unheard_goal_id or (
                accounting.applied and repository.usage_log.warn_once(self.thread_id, goal.goal_id)
            ):
                call.exhausted_goal_id = goal.goal_id
                state.unheard_goal_id = None
                return replace(reading, budget_exhausted=True)
            return reading

        return self._call(check, attempt)

    def _change(self, change: Callable[[GoalRepository, str | None], Result]) -> Result:
        """Makes a change of the goal, after what is due was charged."""

        def attempt(repository: GoalRepository, state: _State, _: _Attempt) -> Result:
            self._settle(repository, state)
            before = repository.get(self.thread_id)
            result = change(repository, None if state.turn is None else state.turn.turn_id)
            goal = repository.get(self.thread_id)
            if state.turn is None or state.paying_goal_id is None or _begins(goal, before):
                self._bind(state, goal)
            self._note_payer(repository, state, goal)
            return result

        return self._call(None, attempt)

    def _call(
        self,
        check: Callable[[], None] | None,
        attempt: Callable[[GoalRepository, _State, _Attempt], Result],
    ) -> Result:
        """One call at a time: runs an attempt on a copy of the state, in a transaction.

        A live listener is called while the call that caused its event is not finished yet, so it cannot
        make another.
        """
        call = _Attempt()

        def work(repository: GoalRepository) -> Result:
            self._find_out(repository)
            state, newest_id = replace(self._state), repository.log.newest_id
            result = attempt(repository, state, call)
            if repository.log.newest_id != newest_id:
                call.event_id, call.position = (
                    repository.log.newest_id,
                    repository.log.last_position(),
                )
            call.state, self._last = state, call
            return result

        try:
            with self._lock:
                if self._at_work:
                    raise TurnError("the meter is at work; report after the listener has returned")
                self._at_work = True
                try:
                    if check is not None:
                        check()
                    result = self._store.transact(work)
                    call.is_committed = True
                    return result
                finally:
                    self._at_work = False
        except BaseException:
            call.is_struck = True
            raise

    def _find_out(self, repository: GoalRepository) -> None:
        """Makes what the last call left the state, if it was committed."""
        last = self._last
        if last is not None and last.state is not None:
            if not last.is_struck:
                if last.is_committed:
                    self._state = last.state
            elif last.is_committed or (
                last.event_id is not None and repository.log.holds(last.event_id, last.position)
            ):
                # It charged, and its caller does not know: the time and the notice are not due again.
                # Its turn is left as it was, so that it can be repeated.
                before, after = self._state, last.state
                self._state = replace(
                    after,
                    turn=before.turn,
                    paying_goal_id=after.paying_goal_id
                    if (after.turn is None) is (before.turn is None)
                    else before.paying_goal_id,
                    unheard_goal_id=last.exhausted_goal_id or after.unheard_goal_id,
                )
        self._last = None

    # -- shared steps ------------------------------------------------------------------------------

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
        stored = repository.usage_log.baseline(self.thread_id, state.turn.count_id)
        if stored is not None and stored.baseline.goal_id != payer:
            repository.usage_log.set_owners(
                self.thread_id,
                state.turn.count_id,
                turn_id=stored.baseline.turn_id,
                goal_id=payer,
                unpaid_turn_ids=stored.unpaid_turn_ids,
                now_ms=wall_clock_ms(),
            )

    def _settle(
        self,
        repository: GoalRepository,
        state: _State,
        total: TokenUsage | TokenUsageInfo | None = None,
    ) -> Accounting:
        """Charges the time since the mark, and what is new in the total, to the paying goal."""
        thread_id, turn_id, count_id = self.thread_id, None, None
        if state.turn is not None:
            turn_id, count_id = state.turn.turn_id, state.turn.count_id
        now_ns = self._clock_ns()
        elapsed_ns, state.marked_ns = max(now_ns - state.marked_ns, 0), now_ns
        if state.paying_goal_id is None:
            if total is not None:
                repository.apply(SetBaseline(thread_id, total, turn_id, count_id, is_stated=False))
            accounting = Accounting(repository.get(thread_id), applied=False)
            # A goal that somebody made or activated without this meter pays from the next report on.
            self._bind(state, accounting.goal)
            return accounting
        due_ns = state.rest_ns + elapsed_ns
        due_ms, below_ms_ns = divmod(due_ns, _NS_PER_MS)
        if total is not None:
            accounting = repository.apply(
                RecordTotal(
                    thread_id,
                    total,
                    due_ms / 1000,
                    AccountingMode.ACTIVE_ONLY,
                    state.paying_goal_id,
                    turn_id,
                    count_id,
                    least_time_alone_ms=_LEAST_TIME_ALONE_MS,
                )
            )
        else:
            accounting = repository.charge(
                thread_id,
                seconds=due_ms / 1000 if due_ms >= _LEAST_TIME_ALONE_MS else 0,
                expected_goal_id=state.paying_goal_id,
                turn_id=turn_id,
            )
        if _takes_charges(accounting.goal, state.paying_goal_id):
            state.rest_ns = below_ms_ns if accounting.applied else due_ns
        return accounting

    def _catch_up(
        self, repository: GoalRepository, turn: _Turn, total: TokenUsage | TokenUsageInfo | None
    ) -> bool:
        """Brings the baseline to what the host knows when a turn starts; whether a goal paid for it."""
        thread_id, count_id = self.thread_id, turn.count_id
        stored = repository.baseline(thread_id, count_id)
        if stored is None and total is None:
            if count_id is None and repository.usage_log.knows(thread_id):
                return False
            total = TokenUsage()
        if total is None:
            return False
        if stored is not None and cumulative(total).is_below(stored.total):
            repository.apply(SetBaseline(thread_id, total, turn.turn_id, count_id, is_stated=False))
            return False
        return repository.reconcile(thread_id, total, count_id=count_id).applied


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
