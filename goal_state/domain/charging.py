"""What a charge makes of a goal. Pure: no I/O, no clock, no SQL."""

from __future__ import annotations

from goal_state.domain.goals import Accounting, Goal, charged_status, goal_draft
from goal_state.domain.requests import Charge, RecordTotal
from goal_state.domain.values import MAX_INTEGER
from goal_state.errors import UsageOverflowError

__all__ = ["charge_goal"]


def charge_goal(
    request: Charge | RecordTotal,
    goal: Goal | None,
    tokens: int,
    time_ms: int,
    key: str | None,
    now_ms: int,
) -> Accounting:
    """What a charge of so many tokens and so much time makes of the thread's goal.

    Raises:
        UsageOverflowError: the goal's usage would reach 2^63.
    """
    expected = request.expected_goal_id
    if goal is None or (expected is not None and goal.goal_id != expected):
        return Accounting(goal, applied=False)
    used = goal.tokens_used + tokens
    time_used = goal.time_used_ms + time_ms
    status = charged_status(
        goal.status, request.mode, tokens_used=used, token_budget=goal.token_budget
    )
    if status is None:
        return Accounting(goal, applied=False)
    if not tokens and not time_ms and key is None:
        return Accounting(goal, applied=False)
    if used > MAX_INTEGER:
        raise UsageOverflowError(
            "tokens", f"{goal.tokens_used} used and {tokens} more would be 2^63 or more"
        )
    if time_used > MAX_INTEGER:
        raise UsageOverflowError("seconds", "the goal's time would be 2^63 milliseconds or more")
    draft = goal_draft(goal)
    draft.tokens_used = used
    draft.time_used_ms = time_used
    draft.updated_at_ms = max(now_ms, goal.updated_at_ms)
    if status is not goal.status:
        draft.status = status
        draft.resume_at_ms = draft.blocked_reason = None
    draft.__class__ = Goal
    return Accounting(draft, applied=True)
