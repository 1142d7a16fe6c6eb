"""Charges of what was used: to the thread's goal, and into the log."""

from __future__ import annotations

import logging

from goal_state.domain.charging import charge_goal
from goal_state.domain.events import GoalEvent
from goal_state.domain.goals import Accounting, Goal
from goal_state.domain.records import changed
from goal_state.domain.requests import Charge, ChargeMany, RecordTotal
from goal_state.errors import IdempotencyConflictError
from goal_state.storage.goals import GoalTable
from goal_state.storage.ledger import EventDraft, EventLog, charge_events

__all__ = ["Charges"]

_logger = logging.getLogger(__name__)


class Charges:
    """Carries out charges, inside a transaction that its owner began."""

    def __init__(self, goals: GoalTable, log: EventLog) -> None:
        self._goals = goals
        self._log = log

    def charge(self, request: Charge, now_ms: int) -> Accounting:
        """Charges once: a repeat of a key has the result of the first charge."""
        goal = self._goals.lock(request.thread_id)
        key = request.idempotency_key
        if key is not None and (first := self._log.charge_by_key(request.thread_id, key)):
            return _repeated(request, first, goal)
        return self.write(request, goal, request.tokens, request.time_ms, key, now_ms)

    def charge_many(self, request: ChargeMany, now_ms: int) -> list[Accounting]:
        """As `charge` for each, but each goal is read and written once and the log in one go."""
        before: dict[str, Goal | None] = {}
        after: dict[str, Goal | None] = {}
        firsts: dict[tuple[str, str], GoalEvent] = {}
        drafts: list[EventDraft] = []
        results: list[Accounting] = []
        for charge in request.charges:
            thread_id, key = charge.thread_id, charge.idempotency_key
            if thread_id not in after:
                before[thread_id] = after[thread_id] = self._goals.lock(thread_id)
            goal = after[thread_id]
            if key is not None:
                first = firsts.get((thread_id, key)) or self._log.charge_by_key(thread_id, key)
                if first is not None:
                    results.append(_repeated(charge, first, goal))
                    continue
            accounting = charge_goal(charge, goal, charge.tokens, charge.time_ms, key, now_ms)
            results.append(accounting)
            charged = accounting.goal
            if goal is None or charged is None or not accounting.applied:
                if charge.tokens or charge.time_ms:
                    _log_unpaid(charge, accounting)
                continue
            after[thread_id] = charged
            new = _events(charge, goal, charged, charge.tokens, charge.time_ms, key)
            drafts += new
            if key is not None:
                firsts[thread_id, key] = new[0]
        if drafts:
            pairs = ((before[thread_id], goal) for thread_id, goal in after.items())
            self._goals.charge_many(
                (old, new)
                for old, new in pairs
                if old is not None and new is not None and new is not old
            )
            self._log.add(drafts)
        return results

    def write(
        self,
        request: Charge | RecordTotal,
        goal: Goal | None,
        tokens: int,
        time_ms: int,
        key: str | None,
        now_ms: int,
    ) -> Accounting:
        """Charges the thread's goal, if it takes the charge, and logs it."""
        accounting = charge_goal(request, goal, tokens, time_ms, key, now_ms)
        charged = accounting.goal
        if goal is None or charged is None or not accounting.applied:
            if tokens or time_ms:
                _log_unpaid(request, accounting)
            return accounting
        self._goals.charge(goal, charged)
        self._log.add(_events(request, goal, charged, tokens, time_ms, key))
        return accounting


def _log_unpaid(request: Charge | RecordTotal, accounting: Accounting) -> None:
    goal = accounting.goal
    if goal is None or request.expected_goal_id not in (None, goal.goal_id):
        _logger.debug("a charge of turn %r found no goal to pay it", request.turn_id)
    else:
        _logger.debug("goal %s is %s and takes no charge", goal.goal_id, goal.status)


def _events(
    request: Charge | RecordTotal,
    goal: Goal,
    charged: Goal,
    tokens: int,
    time_ms: int,
    key: str | None,
) -> list[EventDraft]:
    return charge_events(
        charged,
        tokens=tokens,
        time_ms=time_ms,
        previous_status=goal.status,
        turn_id=request.turn_id,
        idempotency_key=key,
        now_ms=charged.updated_at_ms,
    )


def _repeated(request: Charge, first: GoalEvent, goal: Goal | None) -> Accounting:
    """The result of the charge that used this key before. Its seconds are measured anew for each try, so
    they tell nothing.
    """
    if first.tokens_delta != request.tokens:
        raise IdempotencyConflictError(
            f"idempotency_key {request.idempotency_key!r} has charged {first.tokens_delta} tokens in thread"
            f" {request.thread_id!r}, and that stands; the {request.tokens} of this call were not charged:"
            " repeat a charge with the tokens of its first try"
        )
    if goal is None or goal.goal_id != first.goal_id:
        return Accounting(None, applied=True, duplicate=True)
    is_same = first.goal_status is goal.status
    as_it_was = changed(
        goal,
        status=first.goal_status,
        token_budget=first.token_budget,
        tokens_used=first.cumulative_tokens,
        time_used_ms=first.cumulative_time_ms,
        updated_at_ms=max(first.occurred_at_ms, goal.created_at_ms),
        resume_at_ms=goal.resume_at_ms if is_same else None,
        blocked_reason=goal.blocked_reason if is_same else None,
    )
    return Accounting(as_it_was, applied=True, duplicate=True)
