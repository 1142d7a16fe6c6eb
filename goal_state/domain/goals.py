"""What a goal is and how its status may change. Pure: no I/O, no clock, no SQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any, Final, Literal

from goal_state.domain.budgets import (
    BudgetKind,
    Budgets,
    exhausted_budgets,
    is_exhausted,
    warn_millionths,
)
from goal_state.domain.plain import iso, plain_fields
from goal_state.domain.prices import decimal_cost
from goal_state.domain.records import changed, copier
from goal_state.domain.values import (
    check_amount,
    check_budget,
    check_name,
    check_objective,
    check_stored_time_ms,
)
from goal_state.errors import InvalidValueError

__all__ = [
    "KEEP",
    "MAX_DEPTH",
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
    "goal_ids_above",
    "requested_status",
    "status_by_budget",
    "takes_charge",
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
    """A budget of its own is reached."""
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
        tokens_used: the tokens that were charged to it (which ones count: `counted_tokens`).
        time_used_ms: the active time that was charged to it, in milliseconds.
        created_at_ms, updated_at_ms: Unix times in milliseconds.
        resume_at_ms: when the provider's limit ends (Unix ms), while `usage_limited` and if known.
        blocked_reason: what it waits for, while `blocked` and if said.
        cost_budget_nanos, cost_used_nanos: what it may cost and has cost, in 10^-9 of the currency of the
            prices; see `cost_budget` and `cost_used`.
        call_budget, calls_used: the model calls that it may make and has made.
        time_budget_ms: the active time that it may take, in milliseconds.
        deadline_ms: when it must be done (Unix ms).
        warn_fractions: the fractions of `warn_at`, as text.
        unpriced_tokens: of `tokens_used`, those whose cost nobody knows: `cost_used` lacks what they cost.
        estimated_tokens: of `tokens_used`, those that stand for calls whose usage never became known.
        parent_goal_id: the goal that it was made under; it pays for this one, too.
        ancestor_goal_ids: that one and those above it, the root first, joined by blanks.
        live_holds, held_tokens, held_cost_nanos, held_calls: how many holds, on it and on the goals below
            it, have not ended, and what they set aside. No used figure contains them.
        claim_number: the fencing number of its last claim, above those of all claims on the thread before
            it; 0 before the first. See `claim`.
        claim_owner, claim_expires_at_ms: who claimed it last, and until when (Unix ms).
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
    cost_budget_nanos: int | None = None
    cost_used_nanos: int = 0
    call_budget: int | None = None
    calls_used: int = 0
    time_budget_ms: int | None = None
    deadline_ms: int | None = None
    warn_fractions: str | None = None
    unpriced_tokens: int = 0
    estimated_tokens: int = 0
    parent_goal_id: str | None = None
    ancestor_goal_ids: str | None = None
    live_holds: int = 0
    held_tokens: int = 0
    held_cost_nanos: int = 0
    held_calls: int = 0
    claim_number: int = 0
    claim_owner: str | None = None
    claim_expires_at_ms: int | None = None

    @property
    def root_goal_id(self) -> str:
        """The goal at the top of its tree: the goal itself where it has no parent."""
        above = self.ancestor_goal_ids
        return self.goal_id if above is None else above.split(" ", 1)[0]

    @property
    def cost_budget(self) -> Decimal | None:
        """What it may cost, in the currency of the prices; None for no bound."""
        return None if self.cost_budget_nanos is None else decimal_cost(self.cost_budget_nanos)

    @property
    def cost_used(self) -> Decimal:
        """What it has cost as far as prices are known, in their currency; see `unpriced_tokens`."""
        return decimal_cost(self.cost_used_nanos)

    @property
    def time_budget(self) -> float | None:
        """The active time that it may take, in seconds; None for no bound."""
        return None if self.time_budget_ms is None else self.time_budget_ms / 1000

    @property
    def deadline(self) -> datetime | None:
        """When it must be done, in UTC; None where it need not. The first change after it notices it."""
        return None if self.deadline_ms is None else utc_from_ms(self.deadline_ms)

    @property
    def warn_at(self) -> tuple[float, ...]:
        """The fractions of its budgets that an event is to tell of as they are passed."""
        return tuple(each / 1_000_000 for each in warn_millionths(self.warn_fractions))

    @property
    def exhausted(self) -> tuple[BudgetKind, ...]:
        """Which of its own budgets are reached; the deadline from the first change after it."""
        return exhausted_budgets(self)

    @property
    def budgets(self) -> Budgets:
        """All that bounds it, as it is stored."""
        return Budgets(*(getattr(self, name) for name in Budgets._fields))

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

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: every field, and as people read them the times (ISO 8601), the whole seconds,
        the costs (decimal numbers as text), what is left of the token budget and which budgets are reached.
        """
        return plain_fields(self) | {
            "remaining_tokens": self.remaining_tokens,
            "time_used_seconds": self.time_used_seconds,
            "time_budget_seconds": self.time_budget,
            "cost_budget": None if self.cost_budget is None else f"{self.cost_budget:f}",
            "cost_used": f"{self.cost_used:f}",
            "deadline": None if self.deadline is None else iso(self.deadline),
            "warn_at": list(self.warn_at),
            "exhausted": [kind.value for kind in self.exhausted],
            "created_at": iso(self.created_at),
            "updated_at": iso(self.updated_at),
            "resume_at": None if self.resume_at is None else iso(self.resume_at),
        }


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

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return plain_fields(self)


class AccountingMode(StrEnum):
    """Which statuses take a charge, and from which a full budget makes the goal `budget_limited`.

    active_status_only: taken while active; flips from active.
    active_only: taken while active or budget limited, so that a turn pays to its end; flips from active.
    active_or_complete: taken while active, budget limited or complete; flips from active.
    active_or_stopped: taken in every status but complete; flips from any of them.
    """

    ACTIVE_STATUS_ONLY = "active_status_only"
    ACTIVE_ONLY = "active_only"
    ACTIVE_OR_COMPLETE = "active_or_complete"
    ACTIVE_OR_STOPPED = "active_or_stopped"


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


def requested_status(
    current: GoalStatus, requested: GoalStatus | Literal[Keep.KEEP], *, exhausted: bool
) -> GoalStatus:
    """The status that a goal takes when a host asks for one, or (KEEP) changes its budgets alone.

    A goal of which a budget is exhausted cannot be active; one that is budget limited is not made to look
    merely paused or blocked.
    """
    status = current if isinstance(requested, Keep) else requested
    if status is GoalStatus.ACTIVE and exhausted:
        return GoalStatus.BUDGET_LIMITED
    if current is GoalStatus.BUDGET_LIMITED and status in (GoalStatus.PAUSED, GoalStatus.BLOCKED):
        return current
    return status


def takes_charge(status: GoalStatus, mode: AccountingMode) -> bool:
    """Whether a goal in a status takes a charge."""
    return status in _ACCEPTING[mode]


def charged_status(current: GoalStatus, mode: AccountingMode) -> GoalStatus:
    """The status after a charge that was taken and that leaves a budget reached."""
    flips = current is GoalStatus.ACTIVE or mode is AccountingMode.ACTIVE_OR_STOPPED
    return GoalStatus.BUDGET_LIMITED if flips else current


_GOAL_ID_CHARACTERS: Final = 36
_BUDGETS: Final = ("token_budget", "cost_budget_nanos", "call_budget", "time_budget_ms")
_AMOUNTS: Final = (
    "tokens_used",
    "time_used_ms",
    "cost_used_nanos",
    "calls_used",
    "unpriced_tokens",
    "estimated_tokens",
    "live_holds",
    "held_tokens",
    "held_cost_nanos",
    "held_calls",
    "claim_number",
)

MAX_DEPTH: Final = 16
"""The most goals one under the other, the root counted."""

_MAX_TIME_MS: Final = 253_402_300_799_999
"""The last millisecond that a datetime can tell."""


def status_by_budget(goal: Goal) -> GoalStatus:
    """Active, or budget limited where a budget is reached."""
    return GoalStatus.BUDGET_LIMITED if is_exhausted(goal) else GoalStatus.ACTIVE


def check_goal_id(field: str, value: object) -> str:
    """The id of a goal, which may be another store's: 36 characters."""
    text = check_name(field, value)
    if len(text) != _GOAL_ID_CHARACTERS:
        raise InvalidValueError(field, f"must be a UUID of {_GOAL_ID_CHARACTERS} characters")
    return text


def goal_ids_above(ancestor_goal_ids: str | None) -> list[str]:
    """The goals that a stored `ancestor_goal_ids` tells, the nearest first."""
    return [] if ancestor_goal_ids is None else ancestor_goal_ids.split(" ")[::-1]


def _check_ancestors(goal: Goal) -> None:
    text = goal.ancestor_goal_ids
    if not isinstance(text, str | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidValueError("ancestor_goal_ids", f"must be text, not {type(text).__name__}")
    ids = goal_ids_above(text)
    for goal_id in ids:
        check_goal_id("ancestor_goal_ids", goal_id)
    if len(ids) >= MAX_DEPTH:
        raise InvalidValueError("ancestor_goal_ids", f"must be fewer than {MAX_DEPTH}")
    if len({goal.goal_id, *ids}) <= len(ids):
        raise InvalidValueError(
            "ancestor_goal_ids", "must not hold a goal twice, nor the goal itself"
        )
    if goal.parent_goal_id != (ids[0] if ids else None):
        raise InvalidValueError("parent_goal_id", "must be the last of ancestor_goal_ids")


def check_goal(goal: Goal) -> Goal:
    """A goal that was not made by this library, as it will be stored.

    Raises:
        InvalidValueError: a value is out of its bounds, or contradicts another one.
    """
    check_name("thread_id", goal.thread_id)
    check_goal_id("goal_id", goal.goal_id)
    objective, status = check_objective(goal.objective), check_status(goal.status)
    for field in _BUDGETS:
        check_budget(field, getattr(goal, field))
    if goal.deadline_ms is not None:
        check_stored_time_ms("deadline_ms", goal.deadline_ms)
    warn_millionths(goal.warn_fractions)
    for field in _AMOUNTS:
        check_amount(field, getattr(goal, field))
    for field in ("unpriced_tokens", "estimated_tokens"):
        if getattr(goal, field) > goal.tokens_used:
            raise InvalidValueError(field, "must not be more than tokens_used")
    _check_ancestors(goal)
    if (goal.claim_owner is None) != (goal.claim_expires_at_ms is None):
        raise InvalidValueError("claim_owner", "goes with claim_expires_at_ms")
    if goal.claim_owner is not None:
        check_name("claim_owner", goal.claim_owner)
        check_stored_time_ms("claim_expires_at_ms", goal.claim_expires_at_ms)
    for field in ("created_at_ms", "updated_at_ms"):
        if check_amount(field, getattr(goal, field)) > _MAX_TIME_MS:
            raise InvalidValueError(field, "must be a time before the year 10000")
    if goal.updated_at_ms < goal.created_at_ms:
        raise InvalidValueError("updated_at_ms", "must not be before created_at_ms")
    if status is GoalStatus.ACTIVE and status_by_budget(goal) is not GoalStatus.ACTIVE:
        raise InvalidValueError("status", "must not be active: a budget is used up")
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
