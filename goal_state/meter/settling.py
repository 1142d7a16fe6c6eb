"""Charging what a thread's turn owes: the tokens reported, and the active time since it was charged last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from goal_state.domain.goals import Accounting, AccountingMode, Goal, GoalStatus
from goal_state.domain.requests import Charge, RecordTotal, SetBaseline
from goal_state.domain.totals import cumulative
from goal_state.domain.usage import ThreadUsage, TokenUsage
from goal_state.meter.state import Reading, State, Turn, exhausted_in
from goal_state.storage import wall_clock
from goal_state.storage.repository import GoalRepository

__all__ = ["Settling", "begins"]

_NS_PER_MS: Final = 1_000_000
_LEAST_TIME_ALONE_MS: Final = 1000
_MOST_UNPAID_KEYS: Final = 16


class Settling:
    """Charges inside a meter's transaction, and notes in the meter's state what is due after it."""

    def __init__(
        self, thread_id: str, clock_ns: Callable[[], int], *, count_idle_time: bool
    ) -> None:
        self._thread_id = thread_id
        self._clock_ns = clock_ns
        self._count_idle_time = count_idle_time

    def bind(self, state: State, goal: Goal | None) -> None:
        """From now on the goal pays, if it is active and somebody is at work."""
        pays = state.turn.charge_tokens if state.turn is not None else self._count_idle_time
        active = goal is not None and goal.status is GoalStatus.ACTIVE
        state.paying_goal_id = goal.goal_id if goal is not None and active and pays else None
        if state.paying_goal_id not in (None, state.rest_goal_id):
            state.rest_goal_id, state.rest_ns = state.paying_goal_id, 0

    def note_payer(self, repository: GoalRepository, state: State, goal: Goal | None) -> None:
        """Keeps beside the baseline who pays for what the running turn uses beyond it, so that after a
        crash nobody else does.
        """
        if state.turn is None:
            return
        payer = state.paying_goal_id if _takes_charges(goal, state.paying_goal_id) else None
        stored = repository.usage_log.baseline(self._thread_id, state.turn.count_id)
        if stored is not None and stored.baseline.goal_id != payer:
            repository.usage_log.set_owners(
                self._thread_id,
                state.turn.count_id,
                turn_id=stored.baseline.turn_id,
                goal_id=payer,
                unpaid_turn_ids=stored.unpaid_turn_ids,
                now_ms=wall_clock.now_ms(),
            )

    def settle(
        self,
        repository: GoalRepository,
        state: State,
        total: TokenUsage | ThreadUsage | None = None,
    ) -> Accounting:
        """Charges the time since the mark, and what is new in the total, to the paying goal."""
        thread_id, turn_id, count_id = self._thread_id, None, None
        if state.turn is not None:
            turn_id, count_id = state.turn.turn_id, state.turn.count_id
        now_ns = self._clock_ns()
        elapsed_ns, state.marked_ns = max(now_ns - state.marked_ns, 0), now_ns
        if state.paying_goal_id is None:
            if total is not None:
                repository.apply(SetBaseline(thread_id, total, turn_id, count_id, is_stated=False))
            accounting = Accounting(repository.get(thread_id), applied=False)
            # A goal that somebody made or activated without this meter pays from the next report on.
            self.bind(state, accounting.goal)
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

    def settle_charge(
        self, repository: GoalRepository, state: State, charge: Charge, used: TokenUsage | None
    ) -> Accounting:
        """Charges a response (its counted tokens), and the time with it, to the paying goal."""
        thread_id, turn = self._thread_id, state.turn
        turn_id, count_id = (None, None) if turn is None else (turn.turn_id, turn.count_id)
        now_ns = self._clock_ns()
        elapsed_ns, state.marked_ns = max(now_ns - state.marked_ns, 0), now_ns
        if charge.settles is not None and state.paying_goal_id is None:
            # Whoever pays for the turn: the hold's own goal pays for its call.
            charge = charge.copied()
            charge.turn_id = turn_id
            accounting = repository.apply(charge)
            self.bind(state, accounting.goal)
        elif state.paying_goal_id is None:
            accounting = Accounting(repository.get(thread_id), applied=False)
            # A goal that somebody made or activated without this meter pays from the next report on.
            self.bind(state, accounting.goal)
        else:
            due_ns = state.rest_ns + elapsed_ns
            due_ms, below_ms_ns = divmod(due_ns, _NS_PER_MS)
            rides = charge.tokens > 0 or due_ms >= _LEAST_TIME_ALONE_MS
            charge = charge.copied()
            charge.time_ms = due_ms if rides else 0
            charge.expected_goal_id, charge.turn_id = state.paying_goal_id, turn_id
            accounting = repository.apply(charge)
            if accounting.duplicate:
                accounting = replace(accounting, goal=repository.get(thread_id), applied=False)
            if _takes_charges(accounting.goal, state.paying_goal_id):
                state.rest_ns = below_ms_ns if accounting.applied and rides else due_ns
        if used is None or accounting.duplicate or charge.key in state.unpaid_keys:
            return accounting
        if not accounting.applied and charge.key is not None:
            state.unpaid_keys = (*state.unpaid_keys, charge.key)[-_MOST_UNPAID_KEYS:]
        stored = repository.baseline(thread_id, count_id)
        if stored is not None or count_id is not None:
            total = used if stored is None else stored.total + used
            repository.apply(SetBaseline(thread_id, total, turn_id, count_id, is_stated=False))
        return accounting

    def catch_up(
        self, repository: GoalRepository, turn: Turn, total: TokenUsage | ThreadUsage | None
    ) -> bool:
        """Brings the baseline to what the host knows when a turn starts; whether a goal paid for it."""
        thread_id, count_id = self._thread_id, turn.count_id
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

    def reading(self, repository: GoalRepository, state: State, accounting: Accounting) -> Reading:
        """What answers a report. That a budget is exhausted is told once, and again after it was raised."""
        goal = accounting.goal
        chain = () if goal is None else (goal, *repository.above(goal))
        reading = Reading(goal, accounting.applied, False, exhausted_in(chain))
        if goal is None or not reading.over_budget:
            state.unheard_goal_id = None
            if len(chain) > 1:  # whoever raises a budget above does not know whom it stopped
                repository.usage_log.forget_warning(self._thread_id, chain[0].goal_id)
            return reading
        if goal.goal_id == state.unheard_goal_id or (
            accounting.applied and repository.usage_log.warn_once(self._thread_id, goal.goal_id)
        ):
            state.unheard_goal_id = None
            return replace(reading, budget_exhausted=True)
        return reading


def _takes_charges(goal: Goal | None, goal_id: str | None) -> bool:
    """Whether it is that goal, and in a status in which a turn that it began may charge it."""
    return (
        goal is not None
        and goal.goal_id == goal_id
        and goal.status in (GoalStatus.ACTIVE, GoalStatus.BUDGET_LIMITED)
    )


def begins(goal: Goal | None, before: Goal | None) -> bool:
    """Whether a change made a goal, or made it active, or took the one that was there."""
    if goal is None or before is None or goal.goal_id != before.goal_id:
        return True
    return goal.status is GoalStatus.ACTIVE and before.status is not GoalStatus.ACTIVE
