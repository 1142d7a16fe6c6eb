"""Holds from their beginning to their end: admission, settlement, release and expiry."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from goal_state.domain.amounts import Amounts
from goal_state.domain.budgets import BudgetKind
from goal_state.domain.charging import begin_hold, charge_anyway, end_hold
from goal_state.domain.events import Estimate
from goal_state.domain.goals import Accounting, Goal, GoalStatus, goal_ids_above
from goal_state.domain.hold_requests import ExtendHold, ObserveHold, Reserve
from goal_state.domain.holds import HoldOutcome, HoldRecord, admitted
from goal_state.domain.records import changed
from goal_state.domain.requests import Charge, RecordTotal
from goal_state.errors import HoldEndedError, HoldNotFoundError, UnknownPriceError
from goal_state.storage.goals import GoalTable
from goal_state.storage.holds import HoldTable
from goal_state.storage.identifiers import new_id
from goal_state.storage.ledger import EventDraft, EventLog, Purpose, charge_events

__all__ = ["Reservations"]

_logger = logging.getLogger(__name__)

_ROOTS_AT_ONCE: Final = 100


class _End(NamedTuple):
    """What the end of a hold has come to."""

    goal: Goal | None
    """The hold's own goal after it; None where that is gone."""
    is_charged: bool
    """Whether it, or one above it, has paid anything."""


class Reservations:
    """Carries out what is asked of holds, inside a transaction that its owner began.

    Attributes:
        overdue_thread_id: the thread of which time alone has changed something since this was set to None.
    """

    def __init__(self, goals: GoalTable, holds: HoldTable, log: EventLog) -> None:
        self._goals = goals
        self._holds = holds
        self._log = log
        self.overdue_thread_id: str | None = None

    # -- beginning ---------------------------------------------------------------------------------

    def find(self, request: Reserve, now_ms: int) -> HoldRecord | None:
        """The live hold that was made under the request's key.

        Raises:
            HoldEndedError: it has ended.
        """
        if request.key is None:
            return None
        hold = self._holds.by_key(request.thread_id, request.key)
        if hold is not None and hold.outcome is None and hold.expires_at_ms <= now_ms:
            self.overdue_thread_id = hold.thread_id
            self._expire_tree(hold.root_goal_id, now_ms)
            hold = self._holds.by_key(request.thread_id, request.key)
        if hold is not None and hold.outcome is not None:
            raise HoldEndedError(
                f"the hold of key {request.key!r} in thread {request.thread_id!r} has ended"
                f" ({hold.outcome}); a new call needs a new key"
            )
        return hold

    def reserve(self, request: Reserve, goal: Goal, now_ms: int) -> HoldRecord:
        """Sets a part of the budgets of a goal, and of those above it, aside.

        Raises:
            BudgetExceededError: one of them is not active, or has not so much left.
            UnknownPriceError: one of them has a cost budget, and nobody knows the price.
        """
        chain = [goal, *self.above(goal, now_ms)]
        if request.cost_nanos is None:
            _require_no_cost_budget(chain, request)
        granted = admitted(chain, request.amounts, request.at_least)
        hold = HoldRecord(
            hold_id=new_id(),
            thread_id=goal.thread_id,
            goal_id=goal.goal_id,
            root_goal_id=goal.root_goal_id,
            ancestor_goal_ids=goal.ancestor_goal_ids,
            hold_key=request.key,
            tokens=granted.tokens,
            cost_nanos=None if request.cost_nanos is None else granted.cost_nanos,
            calls=granted.calls,
            observed_tokens=None,
            observed_cost_nanos=None,
            observed_unpriced_tokens=None,
            model=request.model,
            turn_id=request.turn_id,
            tags_json=request.tags_json,
            on_unknown=request.on_unknown,
            is_dispatched=int(request.is_dispatched),
            created_at_ms=now_ms,
            expires_at_ms=now_ms + request.expires_in_ms,
        )
        after = [begin_hold(each, granted) for each in chain]
        for each in after:
            self._goals.hold(each)
        self._holds.insert(hold)
        return hold

    def above(self, goal: Goal, now_ms: int) -> list[Goal]:
        """The goals above one that are there still, the nearest first, locked, as time has made them."""
        goals: list[Goal] = []
        for goal_id in goal_ids_above(goal.ancestor_goal_ids):
            ancestor = self._goals.lock_by_id(goal_id)
            if ancestor is not None:
                goals.append(self.noticed(ancestor, now_ms))
                if goals[-1] is not ancestor:
                    self.overdue_thread_id = goal.thread_id
        return goals

    def without_unsent(self, chain: list[Goal], now_ms: int) -> list[Goal]:
        """A goal and those above it as they would be if what has expired unsent were given back; writes
        nothing.
        """
        for hold in self._holds.due_in_tree(chain[0].root_goal_id, now_ms):
            if not hold.is_dispatched:
                chain = [
                    end_hold(each, hold) if each.goal_id in hold.goal_ids else each
                    for each in chain
                ]
        return chain

    def noticed(self, goal: Goal, now_ms: int) -> Goal:
        """A goal as its deadline has made it, written where that has passed."""
        if (
            goal.status is not GoalStatus.ACTIVE
            or goal.deadline_ms is None
            or now_ms < goal.deadline_ms
        ):
            return goal
        late = changed(
            goal,
            status=GoalStatus.BUDGET_LIMITED,
            updated_at_ms=max(now_ms, goal.updated_at_ms),
        )
        self._goals.update(late)
        self._log.append_status_change(goal, late, turn_id=None, now_ms=now_ms)
        return late

    # -- under way ---------------------------------------------------------------------------------

    def dispatch(self, hold_id: str, now_ms: int) -> HoldRecord:
        """Notes that the call of a hold may be sent from now on."""
        hold = self._live(hold_id, now_ms)
        if hold.is_dispatched:
            return hold
        return self._updated(changed(hold, is_dispatched=1))

    def extend(self, request: ExtendHold, now_ms: int) -> HoldRecord:
        """Has a hold expire so much later from now."""
        hold = self._live(request.hold_id, now_ms)
        return self._updated(changed(hold, expires_at_ms=now_ms + request.expires_in_ms))

    def observe(self, request: ObserveHold, now_ms: int) -> HoldRecord:
        """Notes what the call of a hold is known to have used so far."""
        hold = self._live(request.hold_id, now_ms)
        cost_nanos = request.cost_nanos
        return self._updated(
            changed(
                hold,
                is_dispatched=1,
                observed_tokens=request.tokens,
                observed_cost_nanos=cost_nanos or 0,
                observed_unpriced_tokens=request.tokens if cost_nanos is None else 0,
            )
        )

    # -- end ---------------------------------------------------------------------------------------

    def release(self, hold_id: str, now_ms: int) -> HoldRecord:
        """Ends a hold of which nothing was used."""
        hold = self._get(hold_id)
        ended_unsent = hold.outcome is HoldOutcome.UNKNOWN and not hold.is_dispatched
        if hold.outcome is HoldOutcome.RELEASED or ended_unsent:
            return hold
        if hold.outcome is not None or hold.is_dispatched:
            hold = self._live(hold_id, now_ms)
        self._end(hold, Amounts(), Purpose(), None, now_ms)
        return self._ended(hold, HoldOutcome.RELEASED, Amounts(), now_ms)

    def end_unknown(self, hold_id: str, now_ms: int) -> HoldRecord:
        """Ends a hold whose call was cut: charged is what is known of it, else an estimate. One that has
        ended stays as it is.
        """
        hold = self._get(hold_id)
        return hold if hold.outcome is not None else self._end_unknown(hold, now_ms)

    def settle(
        self,
        request: Charge | RecordTotal,
        goal: Goal | None,
        amounts: Amounts,
        key: str | None,
        now_ms: int,
    ) -> Accounting:
        """Charges what the call of a hold has used, whatever the status of the goal, and ends the hold.

        Args:
            request: what names the hold.
            goal: the thread's goal, locked; the hold may be another one's.
            amounts: what was used.
            key: under which it is charged.
            now_ms: the time.
        """
        hold = self._of_thread(request)
        amounts = amounts._replace(calls=hold.calls or amounts.calls)
        purpose = Purpose(
            request.turn_id or hold.turn_id,
            key,
            request.model or hold.model,
            request.tags_json or hold.tags_json,
            None,
            hold.hold_id,
        )
        if hold.outcome is HoldOutcome.UNKNOWN:
            return self._settle_late(hold, amounts, purpose, now_ms)
        if hold.outcome is not None:
            return self._settle_again(request, hold, amounts)
        end = self._end(hold, amounts, purpose, key, now_ms, goal)
        self._ended(hold, HoldOutcome.SETTLED, amounts, now_ms)
        return Accounting(end.goal, applied=end.is_charged)

    def settled_elsewhere(self, request: Charge, now_ms: int) -> None:
        """Ends a hold whose response was charged under its key already."""
        hold = self._of_thread(request)
        if hold.outcome is None:
            self._end(hold, Amounts(), Purpose(), None, now_ms)
            self._ended(hold, HoldOutcome.SETTLED, Amounts(), now_ms)

    def charged(self, hold_id: str) -> Amounts | None:
        """What a hold has come to in all; None where it is not known any more."""
        hold = self._holds.get(hold_id)
        return None if hold is None else hold.charged

    def expire_due(self, goal: Goal, now_ms: int, *, keep: str | None = None) -> bool:
        """Ends what is due in the tree of a goal, but for one hold to be kept; whether there was anything."""
        if not goal.live_holds and goal.ancestor_goal_ids is None:
            return False
        root = self._goals.known_by_id(goal.root_goal_id)
        if root is not None and not root.live_holds:  # it counts those of its whole tree
            return False
        if not self._expire_tree(goal.root_goal_id, now_ms, keep):
            return False
        self.overdue_thread_id = goal.thread_id
        return True

    def expire_thread(self, thread_id: str, now_ms: int) -> None:
        """Ends what is due of a thread, also of goals that are gone."""
        for hold in self._holds.live_of_thread(thread_id):
            if hold.expires_at_ms <= now_ms:
                self._expire(hold, now_ms)

    def expire_all(self, now_ms: int) -> int:
        """Ends the live holds that have expired, in some of the trees; returns how many."""
        roots = self._holds.due_roots(now_ms, _ROOTS_AT_ONCE)
        return sum(self._expire_tree(root, now_ms) for root in roots)

    def _expire_tree(self, root_goal_id: str, now_ms: int, keep: str | None = None) -> int:
        count = 0
        while True:
            due = self._holds.due_in_tree(root_goal_id, now_ms)
            due = [hold for hold in due if hold.hold_id != keep]
            if not due:
                return count
            for hold in due:
                self._expire(hold, now_ms)
            count += len(due)

    def _expire(self, hold: HoldRecord, now_ms: int) -> HoldRecord:
        _logger.warning(
            "hold %s of thread %r has expired %s", hold.hold_id, hold.thread_id, _what(hold)
        )
        return self._end_unknown(hold, now_ms)

    def _settle_late(
        self, hold: HoldRecord, amounts: Amounts, purpose: Purpose, now_ms: int
    ) -> Accounting:
        """Adds what exceeds what a hold has charged when its usage was not known, and never refunds."""
        estimated, was_estimate = hold.unknown_usage()
        before = hold.charged
        more = Amounts(
            max(amounts.tokens - before.tokens, 0),
            amounts.time_ms,
            max(amounts.cost_nanos - before.cost_nanos, 0),
            max(amounts.calls - before.calls, 0),
            min(amounts.unpriced_tokens, max(amounts.tokens - before.tokens, 0)),
            -estimated.estimated_tokens if was_estimate else 0,
        )
        purpose = purpose._replace(estimate=Estimate.RESOLVED if was_estimate else None)
        end = self._charge(hold, more, purpose, now_ms, must_log=True)
        self._ended(hold, HoldOutcome.SETTLED, amounts, now_ms)
        return Accounting(end.goal, applied=True)

    def _settle_again(
        self, request: Charge | RecordTotal, hold: HoldRecord, amounts: Amounts
    ) -> Accounting:
        before = hold.charged
        names_cost = isinstance(request, Charge) and request.names_cost
        if isinstance(request, RecordTotal) and not amounts.tokens:
            amounts = before  # the baseline has moved to this total: nothing is new in its repeat
        if (
            hold.outcome is HoldOutcome.RELEASED
            or before.tokens != amounts.tokens
            or (names_cost and before.cost_nanos != amounts.cost_nanos)
        ):
            raise HoldEndedError(
                f"hold {hold.hold_id} has ended ({hold.outcome}) with {before.tokens} tokens, and that"
                f" stands; the {amounts.tokens} of this call were not charged: settle a hold once, with the"
                " final usage of its call"
            )
        goal = self._goals.lock_by_id(hold.goal_id)
        return Accounting(goal, applied=True, duplicate=True)

    def _end_unknown(self, hold: HoldRecord, now_ms: int) -> HoldRecord:
        amounts, is_estimate = hold.unknown_usage()
        purpose = Purpose(
            hold.turn_id,
            None,
            hold.model,
            hold.tags_json,
            Estimate.MADE if is_estimate else None,
            hold.hold_id,
        )
        self._end(hold, amounts, purpose, None, now_ms)
        return self._ended(hold, HoldOutcome.UNKNOWN, amounts, now_ms)

    def _end(
        self,
        hold: HoldRecord,
        amounts: Amounts,
        purpose: Purpose,
        key: str | None,
        now_ms: int,
        known: Goal | None = None,
    ) -> _End:
        """Gives back what a live hold has set aside, and charges so much instead."""
        return self._charge(
            hold, amounts, purpose, now_ms, known, must_log=key is not None, gives_back=True
        )

    def _charge(
        self,
        hold: HoldRecord,
        amounts: Amounts,
        purpose: Purpose,
        now_ms: int,
        known: Goal | None = None,
        *,
        must_log: bool,
        gives_back: bool = False,
    ) -> _End:
        changes: list[tuple[Goal, Goal]] = []
        drafts: list[EventDraft] = []
        own: Goal | None = None
        for number, (goal_id, theirs) in enumerate([(hold.goal_id, purpose), *purpose.above(hold)]):
            is_known = known is not None and known.goal_id == goal_id
            goal = known if is_known else self._goals.lock_by_id(goal_id)
            if goal is None:  # it was cleared or replaced; those above it still pay
                continue
            share = amounts if number == 0 else amounts.without_time
            after = end_hold(goal, hold) if gives_back else goal
            if any(share) or (must_log and number == 0):
                after = charge_anyway(after, share, now_ms)
                drafts += charge_events(goal, after, share, theirs, after.updated_at_ms)
            changes.append((goal, after))
            own = after if number == 0 else own
        for before, after in changes:
            self._goals.charge(before, after)
        if drafts:
            self._log.add(drafts)
        return _End(own, is_charged=bool(drafts))

    def _ended(
        self,
        hold: HoldRecord,
        outcome: HoldOutcome,
        charged: Amounts,
        now_ms: int,
    ) -> HoldRecord:
        hold = changed(
            hold,
            outcome=outcome,
            ended_at_ms=now_ms,
            charged_tokens=charged.tokens,
            charged_cost_nanos=charged.cost_nanos,
            charged_calls=charged.calls,
        )
        self._holds.end(hold)
        return hold

    def _updated(self, hold: HoldRecord) -> HoldRecord:
        self._holds.change(hold)
        return hold

    def _get(self, hold_id: str) -> HoldRecord:
        hold = self._holds.get(hold_id)
        if hold is None:
            raise HoldNotFoundError(f"there is no hold {hold_id!r}, or it was pruned")
        return hold

    def _of_thread(self, request: Charge | RecordTotal) -> HoldRecord:
        hold = self._get(request.settles or "")
        if hold.thread_id != request.thread_id:
            raise HoldNotFoundError(
                f"hold {hold.hold_id} is one of thread {hold.thread_id!r}, not of {request.thread_id!r}"
            )
        return hold

    def _live(self, hold_id: str, now_ms: int) -> HoldRecord:
        hold = self._get(hold_id)
        if hold.outcome is None and hold.expires_at_ms <= now_ms:
            self.overdue_thread_id = hold.thread_id
            hold = self._expire(hold, now_ms)
        if hold.outcome is not None:
            raise _has_ended(hold)
        return hold


def _has_ended(hold: HoldRecord) -> HoldEndedError:
    return HoldEndedError(
        f"hold {hold.hold_id} has ended ({hold.outcome}), and that stands; reserve anew for another call"
    )


def _what(hold: HoldRecord) -> str:
    if not hold.is_dispatched:
        return "unsent: nothing was charged"
    amounts, is_estimate = hold.unknown_usage()
    return f"with its usage unknown: {amounts.tokens} tokens were charged" + (
        ", all it held, as an estimate" if is_estimate else ""
    )


def _require_no_cost_budget(chain: list[Goal], request: Reserve) -> None:
    for goal in chain:
        if goal.cost_budget_nanos is not None:
            raise UnknownPriceError(
                f"the {BudgetKind.COST} budget of thread {goal.thread_id!r} bounds the call, and the price of"
                f" model {request.model!r} is not known: name the cost, or open the store with prices that"
                " know it"
            )
