"""What a goal is and how its status may change. Pure: no I/O, no clock, no SQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import Final, Literal

from goal_state.domain.records import changed, copier
from goal_state.domain.values import (
    check_amount,
    check_name,
    check_objective,
    check_stored_time_ms,
    check_token_budget,
)
from goal_state.errors import InvalidValueError

__all__ = [
    "KEEP",
    "Accounting",
    "AccountingMode",
    "Goal",
    "GoalStatus",
    "Keep",
    "charged_status",
    "check_goal",
    "check_goal_id",
    "check_mode",
    "check_status",
    "goal_draft",
    "requested_status",
    "status_by_budget",
    "utc_from_ms",
]


class GoalStatus(StrEnum):
    """What may be done towards a goal. The text is what is stored and sent."""

    ACTIVE = "active"
    """The agent works on it, and its turns are charged."""
    PAUSED = "paused"
    """Put aside by the host."""
    BLOCKED = "blocked"
    """The agent cannot go on (an error of the model, a question that nobody answered)."""
    USAGE_LIMITED = "usage_limited"
    """The provider refuses more usage for now."""
    BUDGET_LIMITED = "budget_limited"
    """The token budget is used up."""
    COMPLETE = "complete"
    """Reached."""


class Keep(Enum):
    """The type of `KEEP`."""

    KEEP = "KEEP"

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = Keep.KEEP
"""Stands for "leave this field as it is", where None has a meaning of its own."""


def utc_from_ms(milliseconds: int) -> datetime:
    """The aware UTC time of a Unix time in milliseconds, exact to the millisecond."""
    seconds, rest = divmod(milliseconds, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1000)


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal as it was at one moment.

    Attributes:
        thread_id: the conversation that it belongs to.
        goal_id: a UUIDv7, minted once and never used again.
        objective: what is to be reached, 1 to 4000 characters.
        status: see `GoalStatus`.
        token_budget: the tokens that it may use, or None for no bound.
        tokens_used: the tokens that were charged to it (cached input is free).
        time_used_ms: the active time that was charged to it, in milliseconds.
        created_at_ms, updated_at_ms: Unix times in milliseconds.
        resume_at_ms: when the provider's limit ends (Unix ms), while `usage_limited` and if known.
        blocked_reason: what it waits for, while `blocked` and if said.
    """

    thread_id: str
    goal_id: str
    objective: str
    status: GoalStatus
    token_budget: int | None
    tokens_used: int
    time_used_ms: int
    created_at_ms: int
    updated_at_ms: int
    resume_at_ms: int | None = None
    blocked_reason: str | None = None

    @property
    def time_used_seconds(self) -> int:
        """The active time in whole seconds, rounded down."""
        return self.time_used_ms // 1000

    @property
    def created_at(self) -> datetime:
        """When the goal was made, in UTC."""
        return utc_from_ms(self.created_at_ms)

    @property
    def updated_at(self) -> datetime:
        """When the goal last changed, in UTC."""
        return utc_from_ms(self.updated_at_ms)

    @property
    def resume_at(self) -> datetime | None:
        """When the provider's limit ends, in UTC; None where it is not known or there is none."""
        return None if self.resume_at_ms is None else utc_from_ms(self.resume_at_ms)

    @property
    def has_token_budget(self) -> bool:
        """Whether there is a bound at all."""
        return self.token_budget is not None

    @property
    def remaining_tokens(self) -> int | None:
        """What is left of the budget, never below 0; None without a budget."""
        return None if self.token_budget is None else max(self.token_budget - self.tokens_used, 0)


goal_draft: Final = copier(Goal)
"""Makes a draft of a goal, which is finished by setting its `__class__`; see `records`."""


@dataclass(frozen=True, slots=True)
class Accounting:
    """What became of a charge.

    Attributes:
        goal: the goal after the charge, or None where the thread has none (or no longer has it).
        applied: whether the usage stands in the goal's ledger. False for a charge that no status
            accepted, for one meant for another goal, and for one of nothing.
        duplicate: whether it stood there already, under the same idempotency key; then `goal` shows the
            usage, budget and status that the first charge left behind.
    """

    goal: Goal | None
    applied: bool
    duplicate: bool = False


class AccountingMode(StrEnum):
    """Which statuses take a charge, and from which a full budget makes the goal `budget_limited`."""

    ACTIVE_STATUS_ONLY = "active_status_only"
    """Taken while active; flips from active."""
    ACTIVE_ONLY = "active_only"
    """Taken while active or budget limited, so that a turn pays to its end; flips from active."""
    ACTIVE_OR_COMPLETE = "active_or_complete"
    """Taken while active, budget limited or complete; flips from active."""
    ACTIVE_OR_STOPPED = "active_or_stopped"
    """Taken in every status but complete; flips from any of them."""


_ACCEPTING: Final[dict[AccountingMode, frozenset[GoalStatus]]] = {
    AccountingMode.ACTIVE_STATUS_ONLY: frozenset({GoalStatus.ACTIVE}),
    AccountingMode.ACTIVE_ONLY: frozenset({GoalStatus.ACTIVE, GoalStatus.BUDGET_LIMITED}),
    AccountingMode.ACTIVE_OR_COMPLETE: frozenset(
        {GoalStatus.ACTIVE, GoalStatus.BUDGET_LIMITED, GoalStatus.COMPLETE}
    ),
    AccountingMode.ACTIVE_OR_STOPPED: frozenset(GoalStatus) - {GoalStatus.COMPLETE},
}


def check_status(value: object, field: str = "status") -> GoalStatus:
    """The status of that name, or `InvalidValueError` with the names there are."""
    if type(value) is GoalStatus:
        return value
    try:
        return GoalStatus(value)
    except ValueError:
        raise InvalidValueError(field, _unknown(value, [*GoalStatus])) from None


def check_mode(value: object) -> AccountingMode:
    """The accounting mode of that name, or `InvalidValueError` with the names there are."""
    if type(value) is AccountingMode:
        return value
    try:
        return AccountingMode(value)
    except ValueError:
        raise InvalidValueError("mode", _unknown(value, [*AccountingMode])) from None


def _unknown(value: object, known: list[GoalStatus] | list[AccountingMode]) -> str:
    shown = ascii(value) if isinstance(value, str) else type(value).__name__
    return f"must be one of {', '.join(known)}, is {shown[:80]}"


def _is_spent(tokens_used: int, token_budget: int | None) -> bool:
    return token_budget is not None and tokens_used >= token_budget


def requested_status(
    current: GoalStatus,
    requested: GoalStatus | Literal[Keep.KEEP],
    *,
    tokens_used: int,
    token_budget: int | None,
) -> GoalStatus:
    """The status that a goal takes when a host asks for one, or (KEEP) changes its budget alone.

    A goal whose budget is spent cannot be active; one that is budget limited is not made to look merely
    paused or blocked.
    """
    status = current if isinstance(requested, Keep) else requested
    if status is GoalStatus.ACTIVE and _is_spent(tokens_used, token_budget):
        return GoalStatus.BUDGET_LIMITED
    if current is GoalStatus.BUDGET_LIMITED and status in (GoalStatus.PAUSED, GoalStatus.BLOCKED):
        return current
    return status


def charged_status(
    current: GoalStatus, mode: AccountingMode, *, tokens_used: int, token_budget: int | None
) -> GoalStatus | None:
    """The status after a charge that brings the usage to `tokens_used`; None if it is not accepted."""
    if current not in _ACCEPTING[mode]:
        return None
    flips = current is GoalStatus.ACTIVE or mode is AccountingMode.ACTIVE_OR_STOPPED
    if flips and _is_spent(tokens_used, token_budget):
        return GoalStatus.BUDGET_LIMITED
    return current


_GOAL_ID_CHARACTERS: Final = 36
_MAX_TIME_MS: Final = 253_402_300_799_999
"""The last millisecond that a datetime can tell."""


def status_by_budget(goal: Goal) -> GoalStatus:
    """Active, or budget limited where the usage has reached the budget."""
    spent = _is_spent(goal.tokens_used, goal.token_budget)
    return GoalStatus.BUDGET_LIMITED if spent else GoalStatus.ACTIVE


def check_goal_id(field: str, value: object) -> str:
    """The id of a goal, which may be another store's: 36 characters."""
    text = check_name(field, value)
    if len(text) != _GOAL_ID_CHARACTERS:
        raise InvalidValueError(field, f"must be a UUID of {_GOAL_ID_CHARACTERS} characters")
    return text


def check_goal(goal: Goal) -> Goal:
    """A goal that was not made by this library, as it will be stored.

    Raises:
        InvalidValueError: a value is out of its bounds, or contradicts another one.
    """
    check_name("thread_id", goal.thread_id)
    check_goal_id("goal_id", goal.goal_id)
    objective, status = check_objective(goal.objective), check_status(goal.status)
    check_token_budget(goal.token_budget)
    check_amount("tokens_used", goal.tokens_used)
    check_amount("time_used_ms", goal.time_used_ms)
    for field in ("created_at_ms", "updated_at_ms"):
        if check_amount(field, getattr(goal, field)) > _MAX_TIME_MS:
            raise InvalidValueError(field, "must be a time before the year 10000")
    if goal.updated_at_ms < goal.created_at_ms:
        raise InvalidValueError("updated_at_ms", "must not be before created_at_ms")
    if status is GoalStatus.ACTIVE and status_by_budget(goal) is not GoalStatus.ACTIVE:
        raise InvalidValueError("status", "must not be active: the token budget is used up")
    if goal.resume_at_ms is not None:
        check_stored_time_ms("resume_at_ms", goal.resume_at_ms)
        if status is not GoalStatus.USAGE_LIMITED:
            raise InvalidValueError("resume_at_ms", "goes with status usage_limited only")
    reason = goal.blocked_reason
    if reason is not None:
        if status is not GoalStatus.BLOCKED:
            raise InvalidValueError("blocked_reason", "goes with status blocked only")
        reason = check_objective(reason, "blocked_reason")
    return changed(goal, objective=objective, status=status, blocked_reason=reason)
