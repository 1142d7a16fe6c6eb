"""Charges of what was used: to the thread's goal, to those above it, and into the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from goal_state.domain.amounts import Amounts
from goal_state.domain.charging import charge_anyway, charge_goal
from goal_state.domain.events import GoalEvent
from goal_state.domain.goals import Accounting, Goal
from goal_state.domain.prices import decimal_cost
from goal_state.domain.records import changed
from goal_state.domain.requests import Charge, ChargeMany, RecordTotal
from goal_state.errors import (
    ClaimOvertakenError,
    IdempotencyConflictError,
    RequestError,
    UsageOverflowError,
)
from goal_state.storage.goals import GoalTable
from goal_state.storage.ledger import EventDraft, EventLog, Purpose, charge_events
from goal_state.storage.reservations import Reservations

__all__ = ["Charges", "check_claimed"]

_logger = logging.getLogger(__name__)

_REFUSALS: Final = (ClaimOvertakenError, IdempotencyConflictError, UsageOverflowError)
"""What a charge raises that cannot be made."""


class Charges:
    """Carries out charges, inside a transaction that its owner began."""

    def __init__(self, goals: GoalTable, log: EventLog, reservations: Reservations) -> None:
        self._goals = goals
        self._log = log
        self._reservations = reservations

    def lock(self, request: Charge | RecordTotal, now_ms: int) -> Goal | None:
        """The thread's goal, locked, without holds that are due, but for the one that the request settles:
        its usage is known now.

        Raises:
            ClaimOvertakenError: the claim that the request names was overtaken.
        """
        goal = self._goals.lock(request.thread_id)
        if (
            goal is not None
            and (goal.live_holds or goal.ancestor_goal_ids is not None)
            and self._reservations.expire_due(goal, now_ms, keep=request.settles)
        ):
            goal = self._goals.lock(request.thread_id)
        if request.claim is not None:
            check_claimed(request.thread_id, goal, request.claim)
        return goal

    def charge(self, request: Charge, now_ms: int) -> Accounting:
        """Charges once: a repeat of a key has the result of the first charge."""
        goal = self.lock(request, now_ms)
        key = request.key
        if key is not None and (first := self._log.charge_by_key(request.thread_id, key)):
            repeated = self._repeated(request, first, goal)
            if request.settles is not None and first.hold_id != request.settles:
                self._reservations.settled_elsewhere(request, now_ms)
            return repeated
        return self.write(request, goal, request.amounts, key, now_ms)

    def charge_many(self, request: ChargeMany, now_ms: int) -> list[Accounting]:
        """As `charge` for each, but each goal is read and written once and the log in one go."""
        if any(charge.settles is not None for charge in request.charges):
            return [self.charge(charge, now_ms) for charge in request.charges]
        batch = _Batch(self._goals, self._log, self._reservations, self._repeated, now_ms)
        results = [batch.charge(charge, batch.read(charge.thread_id)) for charge in request.charges]
        batch.write()
        return results

    def charge_each(
        self, requests: Sequence[Charge], now_ms: int
    ) -> list[Accounting | RequestError]:
        """As `charge_many`, for several callers, none of whom settles a hold: the error of a charge that is
        refused stands in its place, and the others are made.
        """
        batch = _Batch(self._goals, self._log, self._reservations, self._repeated, now_ms)
        results: list[Accounting | RequestError] = []
        for request in requests:
            goal = batch.read(request.thread_id)
            try:
                results.append(batch.charge(request, goal))
            except _REFUSALS as error:
                results.append(error)
        batch.write()
        return results

    def write(
        self,
        request: Charge | RecordTotal,
        goal: Goal | None,
        amounts: Amounts,
        key: str | None,
        now_ms: int,
    ) -> Accounting:
        """Charges the thread's goal, if it takes the charge, and those above it, and logs it."""
        if request.settles is not None:
            return self._reservations.settle(request, goal, amounts, key, now_ms)
        changes: list[tuple[Goal, Goal]] = []
        accounting, drafts = _charged(
            request, goal, amounts, key, now_ms, self._goals.lock_by_id, changes.append
        )
        for before, after in changes:
            self._goals.charge(before, after)
        if drafts:
            self._log.add(drafts)
        return accounting

    def _repeated(self, request: Charge, first: GoalEvent, goal: Goal | None) -> Accounting:
        """The result of the charge that used this key before."""
        paid = Amounts(first.tokens_delta, cost_nanos=first.cost_delta_nanos)
        if first.hold_id is not None:  # what came after an estimate has added only what exceeded it
            paid = self._reservations.charged(first.hold_id) or paid
        return _repeated(request, first, goal, paid)


class _Batch:
    """Charges that are made together: each goal is read once, and stands here as they have made it so far.

    One that is refused changes nothing here. None of them settles a hold.
    """

    def __init__(
        self,
        goals: GoalTable,
        log: EventLog,
        reservations: Reservations,
        repeated: Callable[[Charge, GoalEvent, Goal | None], Accounting],
        now_ms: int,
    ) -> None:
        self._goals = goals
        self._log = log
        self._reservations = reservations
        self._repeated = repeated
        self._now_ms = now_ms
        self._goal_ids: dict[str, str | None] = {}  # by thread
        self._trees: set[str] = set()  # whose holds are not due, by their roots
        self._before: dict[str, Goal | None] = {}
        self._after: dict[str, Goal | None] = {}
        self._firsts: dict[tuple[str, str], EventDraft] = {}
        self._drafts: list[EventDraft] = []

    def charge(self, request: Charge, goal: Goal | None) -> Accounting:
        """See `Charges.charge`: the goal is the thread's as `read` tells it. Written by `write`."""
        thread_id, key = request.thread_id, request.key
        if request.claim is not None:
            check_claimed(thread_id, goal, request.claim)
        if key is not None:
            first = self._firsts.get((thread_id, key)) or self._log.charge_by_key(thread_id, key)
            if first is not None:
                return self._repeated(request, first, goal)
        changes: list[tuple[Goal, Goal]] = []
        accounting, drafts = _charged(
            request, goal, request.amounts, key, self._now_ms, self._by_id, changes.append
        )
        for _, after in changes:
            self._after[after.goal_id] = after
        if drafts:
            self._drafts += drafts
            if key is not None:
                self._firsts[thread_id, key] = drafts[0]
        return accounting

    def write(self) -> None:
        """Writes what the charges have made of the goals, and their events."""
        if not self._drafts:
            return
        self._goals.charge_many(
            (before, after)
            for goal_id, after in self._after.items()
            if after is not None
            and (before := self._before[goal_id]) is not None
            and after is not before
        )
        self._log.add(self._drafts)

    def read(self, thread_id: str) -> Goal | None:
        """The thread's goal as it is by now; what is due of its tree is written at the first time."""
        if thread_id not in self._goal_ids:
            goal = self._without_due_holds(self._goals.lock(thread_id))
            self._goal_ids[thread_id] = None if goal is None else goal.goal_id
            if goal is not None and goal.goal_id not in self._after:
                self._before[goal.goal_id] = self._after[goal.goal_id] = goal
        goal_id = self._goal_ids[thread_id]
        return None if goal_id is None else self._after[goal_id]

    def _without_due_holds(self, goal: Goal | None) -> Goal | None:
        """A goal without holds that are due. Ending those of a tree changes its goals, so it is done before
        any of them is here.
        """
        if goal is None or not (goal.live_holds or goal.ancestor_goal_ids is not None):
            return goal
        if goal.root_goal_id in self._trees:
            return goal
        self._trees.add(goal.root_goal_id)
        return (
            self._goals.lock(goal.thread_id)
            if self._reservations.expire_due(goal, self._now_ms)
            else goal
        )

    def _by_id(self, goal_id: str) -> Goal | None:
        if goal_id not in self._after:
            self._before[goal_id] = self._after[goal_id] = self._goals.lock_by_id(goal_id)
        return self._after[goal_id]


def _charged(
    request: Charge | RecordTotal,
    goal: Goal | None,
    amounts: Amounts,
    key: str | None,
    now_ms: int,
    by_id: Callable[[str], Goal | None],
    put: Callable[[tuple[Goal, Goal]], None],
) -> tuple[Accounting, list[EventDraft]]:
    """What a charge makes of the thread's goal and of those above it, and its events.

    Args:
        request: the charge.
        goal: the thread's goal, locked.
        amounts: how much.
        key: under which it is charged.
        now_ms: the time.
        by_id: finds and locks a goal above.
        put: takes each goal as it was and as it is.
    """
    accounting = charge_goal(request, goal, amounts, key, now_ms)
    charged = accounting.goal
    if goal is None or charged is None or not accounting.applied:
        if any(amounts):
            _log_unpaid(request, accounting)
        return accounting, []
    put((goal, charged))
    purpose = Purpose(request.turn_id, key, request.model, request.tags_json)
    drafts = charge_events(goal, charged, amounts, purpose, charged.updated_at_ms)
    if goal.ancestor_goal_ids is not None:
        drafts += _above_charged(goal, amounts, purpose, now_ms, by_id, put)
    return accounting, drafts


def _above_charged(
    goal: Goal,
    amounts: Amounts,
    purpose: Purpose,
    now_ms: int,
    by_id: Callable[[str], Goal | None],
    put: Callable[[tuple[Goal, Goal]], None],
) -> list[EventDraft]:
    """The events of what those above a goal pay for it: tokens, cost and calls, not its time."""
    shared = amounts.without_time
    drafts: list[EventDraft] = []
    if not any(shared):
        return drafts
    for goal_id, theirs in purpose.above(goal):
        ancestor = by_id(goal_id)
        if ancestor is not None:  # else it was cleared or replaced; those above it still pay
            charged = charge_anyway(ancestor, shared, now_ms)
            put((ancestor, charged))
            drafts += charge_events(ancestor, charged, shared, theirs, charged.updated_at_ms)
    return drafts


def check_claimed(thread_id: str, goal: Goal | None, claim: int) -> None:
    """Makes sure that a claim is still the goal's.

    Raises:
        ClaimOvertakenError: it is not.
    """
    if goal is None or goal.claim_number != claim:
        now = "the goal is gone" if goal is None else f"claim {goal.claim_number} holds now"
        raise ClaimOvertakenError(
            f"claim {claim} on the goal of thread {thread_id!r} was overtaken ({now}); stop working on it"
        )


def _log_unpaid(request: Charge | RecordTotal, accounting: Accounting) -> None:
    goal = accounting.goal
    if goal is None or request.expected_goal_id not in (None, goal.goal_id):
        _logger.debug("a charge of turn %r found no goal to pay it", request.turn_id)
    else:
        _logger.debug("goal %s is %s and takes no charge", goal.goal_id, goal.status)


def _repeated(request: Charge, first: GoalEvent, goal: Goal | None, paid: Amounts) -> Accounting:
    """The result of the charge that used this key before. Its seconds are measured anew for each try, so
    they tell nothing.
    """
    if paid.tokens != request.tokens:
        name, advice = "idempotency_key", "repeat a charge with the tokens of its first try"
        if request.response_id is not None:
            name = "response_id"
            advice = "a response is charged once, when it is complete and its usage is final"
        raise IdempotencyConflictError(
            f"{name} {request.key!r} has charged {paid.tokens} tokens in thread"
            f" {request.thread_id!r}, and that stands; the {request.tokens} of this call were not charged:"
            f" {advice}"
        )
    if request.names_cost and paid.cost_nanos != request.cost_nanos:
        raise IdempotencyConflictError(
            f"key {request.key!r} has charged a cost of {decimal_cost(paid.cost_nanos):f} in thread"
            f" {request.thread_id!r}, and that stands; the {decimal_cost(request.cost_nanos or 0):f} of this"
            " call was not charged: repeat a charge with the cost of its first try, or without one"
        )
    if goal is None or goal.goal_id != first.goal_id:
        return Accounting(None, applied=True, duplicate=True)
    is_same = first.goal_status is goal.status
    tokens_used = first.cumulative_tokens or 0
    as_it_was = changed(
        goal,
        status=first.goal_status,
        token_budget=first.token_budget,
        tokens_used=tokens_used,
        time_used_ms=first.cumulative_time_ms,
        cost_used_nanos=first.cumulative_cost_nanos,
        calls_used=first.cumulative_calls,
        # No event says how many these were; not more than all.
        unpriced_tokens=min(goal.unpriced_tokens, tokens_used),
        estimated_tokens=min(goal.estimated_tokens, tokens_used),
        updated_at_ms=max(first.occurred_at_ms, goal.created_at_ms),
        resume_at_ms=goal.resume_at_ms if is_same else None,
        blocked_reason=goal.blocked_reason if is_same else None,
    )
    return Accounting(as_it_was, applied=True, duplicate=True)
