"""Totals of what threads have used: what is new in each is charged, and the baseline moves to it."""

from __future__ import annotations

import logging
from typing import Final
from weakref import WeakKeyDictionary

from goal_state.domain.amounts import Amounts
from goal_state.domain.counting import CountedTokens
from goal_state.domain.goals import Accounting, AccountingMode, Goal
from goal_state.domain.requests import Reconcile, RecordTotal, SetBaseline
from goal_state.domain.totals import (
    beginning,
    cumulative,
    is_late,
    names_turn,
    next_baseline,
    with_turn,
)
from goal_state.domain.usage import ThreadUsage
from goal_state.storage.baselines import StoredBaseline, UsageLog
from goal_state.storage.charges import Charges
from goal_state.storage.executor import Executor
from goal_state.storage.falling_totals import FallingTotals
from goal_state.storage.goals import GoalTable
from goal_state.storage.ledger import EventLog

__all__ = ["Totals"]

_logger = logging.getLogger(__name__)

_falling_totals: Final[WeakKeyDictionary[object, FallingTotals]] = WeakKeyDictionary()
"""Of each database, also where a host makes a repository for each of its transactions."""


class Totals:
    """Carries out reports of totals, inside a transaction that its owner began."""

    def __init__(
        self,
        goals: GoalTable,
        log: EventLog,
        usage_log: UsageLog,
        charges: Charges,
        counted_tokens: CountedTokens,
        executor: Executor,
    ) -> None:
        """
        Args:
            goals: the table of goals.
            log: the table of events.
            usage_log: the table of baselines.
            charges: writes what a total adds.
            counted_tokens: which tokens of a usage count.
            executor: what all of them run on.
        """
        self._goals = goals
        self._log = log
        self._usage_log = usage_log
        self._charges = charges
        self._counted_tokens = counted_tokens
        self._executor = executor

    def record(self, request: RecordTotal, now_ms: int) -> Accounting:
        """Charges what is new in a total, and moves the baseline to it."""
        goal = self._charges.lock(request, now_ms)
        stored = self._usage_log.baseline(request.thread_id, request.count_id)
        return self._charge(request, stored, goal, now_ms)

    def _charge(
        self, request: RecordTotal, stored: StoredBaseline | None, goal: Goal | None, now_ms: int
    ) -> Accounting:
        before = None if stored is None else stored.baseline
        if before is None and request.count_id is not None:
            before = beginning() if self._usage_log.knows(request.thread_id) else None
        late = self._comes_late(request, stored)
        after, tokens = (
            (None, 0)
            if late
            else next_baseline(before, request.total, request.turn_id, self._counted_tokens)
        )
        least_ms = request.least_time_alone_ms
        if least_ms is not None:
            counts = tokens > 0 or request.time_ms >= least_ms
        else:  # a first total, a repeated or a late one: neither its tokens nor its time are new
            counts = not late and before is not None and cumulative(request.total) != before.total
        amounts = _amounts(request, tokens) if counts else Amounts(tokens, unpriced_tokens=tokens)
        accounting = self._charges.write(request, goal, amounts, None, now_ms)
        if not late:
            # The tokens were used, whoever pays: the baseline moves also when no goal took the charge,
            # so that the next goal does not pay for them.
            paid = accounting.applied and tokens > 0
            self._write_baseline(request, stored, after, goal, now_ms, paid=paid)
        return accounting

    def set_baseline(self, request: SetBaseline, now_ms: int) -> None:
        """Makes a total the baseline, and charges nothing."""
        goal = self._goals.lock(request.thread_id)
        stored = self._usage_log.baseline(request.thread_id, request.count_id)
        if request.is_stated or not self._comes_late(request, stored):
            self._state(request, stored, goal, now_ms)

    def _state(
        self, request: SetBaseline, stored: StoredBaseline | None, goal: Goal | None, now_ms: int
    ) -> None:
        before = None if stored is None else stored.baseline
        after, _ = next_baseline(before, request.total, request.turn_id, self._counted_tokens)
        self._write_baseline(request, stored, after, goal, now_ms, paid=False)

    def _comes_late(
        self, request: RecordTotal | SetBaseline, stored: StoredBaseline | None
    ) -> bool:
        """Whether a total was overtaken. Says in the log if this thread's totals seem to be none."""
        if stored is None or not cumulative(request.total).is_below(stored.baseline.total):
            return False
        thread_id, turn_id = request.thread_id, request.turn_id
        late = is_late(
            stored.baseline,
            request.total,
            count_id=request.count_id,
            turn_id=turn_id,
            has_reported=lambda turn: (
                names_turn(stored.unpaid_turn_ids, turn)
                or self._log.turn_has_charged(thread_id, turn)
            ),
        )
        falling = _falling_totals.setdefault(self._executor.origin, FallingTotals())
        if request.count_id is None and falling.note(thread_id, turn_id, within_turn=late):
            _logger.warning(
                "the totals of thread %r fall in turn after turn, so they are no totals, and most of"
                " them charge nothing: if they are what single responses used, charge each of them with"
                " charge(thread, usage, response_id=…), of the store or the meter, instead of"
                " record_total(); if counting begins at zero again and again, give record_total() and the"
                " meter a count_id for each time",
                thread_id,
            )
        return late

    def _write_baseline(
        self,
        request: RecordTotal | SetBaseline,
        stored: StoredBaseline | None,
        usage: ThreadUsage | None,
        goal: Goal | None,
        now_ms: int,
        *,
        paid: bool,
    ) -> None:
        """Keeps a usage (None: the one that there is) as the baseline, in the time of a goal."""
        goal_id = None if goal is None else goal.goal_id
        before, unpaid = (None, None) if stored is None else stored
        if (
            request.count_id is None
            and request.turn_id is not None
            and not paid
            and (before is None or request.turn_id != before.turn_id)
        ):
            unpaid = with_turn(unpaid, request.turn_id)
        if before is None and usage is None:  # a further count whose first total is zero
            usage, _ = next_baseline(None, request.total, request.turn_id, self._counted_tokens)
        if usage is not None:
            number = 0 if before is None else before.epoch
            falls = before is not None and usage.total.is_below(before.total)
            self._usage_log.write(
                request.thread_id,
                request.count_id,
                usage,
                goal_id=goal_id,
                epoch=number + falls,
                unpaid_turn_ids=unpaid,
                now_ms=now_ms,
            )
        elif stored is not None and before is not None:
            turn_id = before.turn_id if request.turn_id is None else request.turn_id
            if (turn_id, goal_id, unpaid) != (before.turn_id, before.goal_id, stored[1]):
                self._usage_log.set_owners(
                    request.thread_id,
                    request.count_id,
                    turn_id=turn_id,
                    goal_id=goal_id,
                    unpaid_turn_ids=unpaid,
                    now_ms=now_ms,
                )

    def reconcile(self, request: Reconcile, now_ms: int) -> Accounting:
        """Brings a count up to a total that was found: charged to the goal that owes it, if there is one."""
        thread_id, total, count_id = request.thread_id, request.total, request.count_id
        goal = self._goals.lock(thread_id)
        stored = self._usage_log.baseline(thread_id, count_id)
        before = None if stored is None else stored.baseline
        if before is not None and cumulative(total).is_below(before.total):
            return Accounting(goal, applied=False)
        turn_id = request.turn_id or (None if before is None else before.turn_id)
        if goal is not None and before is not None and before.goal_id == goal.goal_id:
            charge = RecordTotal(
                thread_id, total, 0, AccountingMode.ACTIVE_ONLY, None, turn_id, count_id
            )
            return self._charge(charge, stored, goal, now_ms)
        # Also where nothing is new: what comes on top of it from now on is used in this goal's time.
        self._state(SetBaseline(thread_id, total, turn_id, count_id), stored, goal, now_ms)
        return Accounting(goal, applied=False)


def _amounts(request: RecordTotal, tokens: int) -> Amounts:
    cost_nanos = request.cost_nanos
    unpriced = tokens if cost_nanos is None else 0
    return Amounts(tokens, request.time_ms, cost_nanos or 0, request.calls, unpriced)
