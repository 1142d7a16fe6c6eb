"""What a charge makes of a goal. Pure: no I/O, no clock, no SQL."""

from __future__ import annotations

from goal_state.domain.amounts import Amounts
from goal_state.domain.budgets import is_exhausted
from goal_state.domain.goals import (
    Accounting,
    AccountingMode,
    Goal,
    charged_status,
    goal_draft,
    takes_charge,
)
from goal_state.domain.holds import HoldRecord
from goal_state.domain.records import changed
from goal_state.domain.requests import Charge, RecordTotal
from goal_state.domain.values import MAX_INTEGER
from goal_state.errors import UsageOverflowError

__all__ = ["begin_hold", "charge_anyway", "charge_goal", "end_hold"]


def charge_goal(
    request: Charge | RecordTotal, goal: Goal | None, amounts: Amounts, key: str | None, now_ms: int
) -> Accounting:
    """What a charge of so much makes of the thread's goal.

    Raises:
        UsageOverflowError: a figure of the goal would reach 2^63.
    """
    expected = request.expected_goal_id
    if goal is None or (expected is not None and goal.goal_id != expected):
        return Accounting(goal, applied=False)
    if not takes_charge(goal.status, request.mode) or (key is None and not any(amounts)):
        return Accounting(goal, applied=False)
    return Accounting(_with(goal, amounts, request.mode, now_ms), applied=True)


def charge_anyway(goal: Goal, amounts: Amounts, now_ms: int) -> Goal:
    """What a charge makes of a goal that takes it whatever its status: one above the goal that was charged,
    or one whose hold is settled.

    Raises:
        UsageOverflowError: a figure of the goal would reach 2^63.
    """
    return _with(goal, amounts, AccountingMode.ACTIVE_ONLY, now_ms)


def begin_hold(goal: Goal, granted: Amounts) -> Goal:
    """What setting so much aside makes of a goal.

    Raises:
        UsageOverflowError: what is held would reach 2^63.
    """
    if (
        goal.held_tokens + granted.tokens > MAX_INTEGER
        or goal.held_cost_nanos + granted.cost_nanos > MAX_INTEGER
        or goal.held_calls + granted.calls > MAX_INTEGER
    ):
        raise UsageOverflowError("tokens", "what is held of the goal would be 2^63 or more")
    return changed(
        goal,
        live_holds=goal.live_holds + 1,
        held_tokens=goal.held_tokens + granted.tokens,
        held_cost_nanos=goal.held_cost_nanos + granted.cost_nanos,
        held_calls=goal.held_calls + granted.calls,
    )


def end_hold(goal: Goal, hold: HoldRecord) -> Goal:
    """What the end of a hold makes of a goal of whose budgets it was a part."""
    return changed(
        goal,
        live_holds=goal.live_holds - 1,
        held_tokens=goal.held_tokens - hold.tokens,
        held_cost_nanos=goal.held_cost_nanos - (hold.cost_nanos or 0),
        held_calls=goal.held_calls - hold.calls,
    )


def _with(goal: Goal, amounts: Amounts, mode: AccountingMode, now_ms: int) -> Goal:
    tokens, time_ms, cost_nanos, calls, unpriced_tokens, estimated_tokens = amounts
    draft = goal_draft(goal)
    draft.tokens_used = goal.tokens_used + tokens
    draft.time_used_ms = goal.time_used_ms + time_ms
    draft.cost_used_nanos = goal.cost_used_nanos + cost_nanos
    draft.calls_used = goal.calls_used + calls
    draft.unpriced_tokens = goal.unpriced_tokens + unpriced_tokens
    draft.estimated_tokens = goal.estimated_tokens + estimated_tokens
    if (
        draft.tokens_used > MAX_INTEGER
        or draft.time_used_ms > MAX_INTEGER
        or draft.cost_used_nanos > MAX_INTEGER
        or draft.calls_used > MAX_INTEGER
    ):
        raise _overflow(goal, amounts)
    draft.updated_at_ms = max(now_ms, goal.updated_at_ms)
    if is_exhausted(draft):
        draft.status = charged_status(goal.status, mode)
        if draft.status is not goal.status:
            draft.resume_at_ms = draft.blocked_reason = None
    draft.__class__ = Goal
    return draft


def _overflow(goal: Goal, amounts: Amounts) -> UsageOverflowError:
    if goal.tokens_used + amounts.tokens > MAX_INTEGER:
        return UsageOverflowError(
            "tokens", f"{goal.tokens_used} used and {amounts.tokens} more would be 2^63 or more"
        )
    if goal.time_used_ms + amounts.time_ms > MAX_INTEGER:
        return UsageOverflowError("seconds", "the goal's time would be 2^63 milliseconds or more")
    if goal.calls_used + amounts.calls > MAX_INTEGER:
        return UsageOverflowError("calls", "the goal's calls would be 2^63 or more")
    return UsageOverflowError("cost", "the goal's cost would be 2^63 times 10^-9 or more")
