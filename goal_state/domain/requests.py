"""What callers ask for, checked: a request that exists is one whose every value is within its bounds.

So a malformed call is refused before a transaction begins, and what is carried out needs no more checks.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy as copy_of
from typing import Generic, Literal, Self, TypeVar

from goal_state.domain.counting import CountingFunction
from goal_state.domain.goals import (
    KEEP,
    Accounting,
    AccountingMode,
    Goal,
    GoalStatus,
    Keep,
    check_mode,
    check_status,
)
from goal_state.domain.usage import TokenUsage, TokenUsageInfo
from goal_state.domain.values import (
    check_amount,
    check_milliseconds,
    check_name,
    check_objective,
    check_optional_name,
    check_time_ms,
    check_token_budget,
)
from goal_state.errors import InvalidValueError

__all__ = [
    "ChangeGoal",
    "Charge",
    "ChargeMany",
    "ClearGoal",
    "CreateGoal",
    "Reconcile",
    "RecordTotal",
    "Request",
    "ResumeGoal",
    "SetBaseline",
    "ThreadRequest",
    "check_total",
]

Result_co = TypeVar("Result_co", covariant=True)


class Request(Generic[Result_co]):
    """Something to be done in one transaction; `Result_co` is what comes back."""

    __slots__ = ()

    def counted(self, counted_tokens: CountingFunction) -> Self:  # noqa: ARG002
        """The request with the tokens of its usages counted, where it is a charge of any. A host's own
        function may do that, so it is done once, on the caller's thread, before the transaction.
        """
        return self


class ThreadRequest(Request[Result_co]):
    """Something to be done with one thread's goal or usage."""

    __slots__ = ("thread_id", "turn_id")

    def __init__(self, thread_id: object, turn_id: object) -> None:
        self.thread_id: str = check_name("thread_id", thread_id)
        self.turn_id: str | None = None if turn_id is None else check_name("turn_id", turn_id)


class CreateGoal(ThreadRequest[Goal]):
    """A new goal; `replace` also where there is one that is not complete."""

    __slots__ = ("objective", "replace", "status", "token_budget")

    def __init__(
        self,
        thread_id: object,
        objective: object,
        token_budget: object,
        status: object,
        turn_id: object,
        *,
        replace: bool,
    ) -> None:
        super().__init__(thread_id, turn_id)
        self.objective: str = check_objective(objective)
        self.token_budget: int | None = check_token_budget(token_budget)
        self.status: GoalStatus = check_status(status)
        self.replace: bool = replace


class ChangeGoal(ThreadRequest[Goal]):
    """New values for a goal, which is made if it is missing and an objective is given."""

    __slots__ = (
        "blocked_reason",
        "expected_goal_id",
        "objective",
        "resume_at_ms",
        "status",
        "token_budget",
    )

    def __init__(
        self,
        thread_id: object,
        objective: object,
        status: object,
        token_budget: object,
        resume_at: object,
        blocked_reason: object,
        expected_goal_id: object,
        turn_id: object,
    ) -> None:
        super().__init__(thread_id, turn_id)
        self.objective: str | Literal[Keep.KEEP] = (
            KEEP if isinstance(objective, Keep) else check_objective(objective)
        )
        self.status: GoalStatus | Literal[Keep.KEEP] = (
            KEEP if isinstance(status, Keep) else check_status(status)
        )
        self.token_budget: int | Literal[Keep.KEEP] | None = _check_new_budget(token_budget)
        self.resume_at_ms: int | None = (
            None if resume_at is None else check_time_ms("resume_at", resume_at)
        )
        self.blocked_reason: str | None = (
            None if blocked_reason is None else check_objective(blocked_reason, "blocked_reason")
        )
        self.expected_goal_id: str | None = check_optional_name(
            "expected_goal_id", expected_goal_id
        )
        if self.resume_at_ms is not None and self.status is not GoalStatus.USAGE_LIMITED:
            raise InvalidValueError("resume_at", "goes with status usage_limited only")
        if self.blocked_reason is not None and self.status is not GoalStatus.BLOCKED:
            raise InvalidValueError("blocked_reason", "goes with status blocked only")


class ResumeGoal(ThreadRequest[Goal]):
    """A goal shall be active again, with another budget if one is given."""

    __slots__ = ("expected_goal_id", "token_budget")

    def __init__(
        self, thread_id: object, token_budget: object, expected_goal_id: object, turn_id: object
    ) -> None:
        super().__init__(thread_id, turn_id)
        self.token_budget: int | Literal[Keep.KEEP] | None = _check_new_budget(token_budget)
        self.expected_goal_id: str | None = check_optional_name(
            "expected_goal_id", expected_goal_id
        )


class ClearGoal(ThreadRequest["Goal | None"]):
    """A goal shall be removed."""

    __slots__ = ("expected_goal_id",)

    def __init__(self, thread_id: object, expected_goal_id: object, turn_id: object) -> None:
        super().__init__(thread_id, turn_id)
        self.expected_goal_id: str | None = check_optional_name(
            "expected_goal_id", expected_goal_id
        )


class Charge(ThreadRequest[Accounting]):
    """Usage to be added to a goal; see `GoalOperations.charge` for what the arguments mean.

    Raises:
        InvalidValueError: a value is out of its bounds.
    """

    __slots__ = (
        "expected_goal_id",
        "idempotency_key",
        "key",
        "mode",
        "response_id",
        "time_ms",
        "tokens",
        "usage",
    )

    def __init__(
        self,
        thread_id: str,
        usage: object = None,
        *,
        tokens: int = 0,
        seconds: float = 0,
        mode: AccountingMode | str = AccountingMode.ACTIVE_ONLY,
        expected_goal_id: str | None = None,
        turn_id: str | None = None,
        response_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        self.thread_id: str = check_name("thread_id", thread_id)
        self.turn_id: str | None = None if turn_id is None else check_name("turn_id", turn_id)
        self.usage: TokenUsage | None = None if usage is None else TokenUsage.of(usage)
        self.tokens: int = check_amount("tokens", tokens)
        self.time_ms: int = check_milliseconds("seconds", seconds)
        self.mode: AccountingMode = check_mode(mode)
        self.expected_goal_id: str | None = (
            None if expected_goal_id is None else check_name("expected_goal_id", expected_goal_id)
        )
        self.response_id: str | None = (
            None if response_id is None else check_name("response_id", response_id)
        )
        self.idempotency_key: str | None = (
            None if idempotency_key is None else check_name("idempotency_key", idempotency_key)
        )
        self.key: str | None = self.response_id or self.idempotency_key
        """What the charge is known by in its thread, however often it is repeated; None if by nothing."""
        if self.usage is not None and self.tokens:
            raise InvalidValueError(
                "tokens",
                "goes without usage: how many tokens of a usage count is the store's to say",
            )
        if self.response_id is not None:
            self._check_response()

    def _check_response(self) -> None:
        if self.usage is None and not self.tokens:
            raise InvalidValueError(
                "usage",
                f"is missing, so nothing is known of what response {self.response_id!r} used: have the"
                " provider report it (many leave it out of a stream unless they are asked), or give tokens",
            )
        if self.idempotency_key not in (None, self.response_id):
            raise InvalidValueError(
                "idempotency_key",
                "must be the response_id, or be left out: the response_id is the key of the charge",
            )

    def counted(self, counted_tokens: CountingFunction) -> Self:
        """See `Request`."""
        if self.usage is None:
            return self
        charge = copy_of(self)
        charge.usage, charge.tokens = None, counted_tokens(self.usage)
        return charge

    def __repr__(self) -> str:
        shown: list[str] = [repr(self.thread_id)]
        if self.usage is not None:
            shown.append(repr(self.usage))
        if self.tokens:
            shown.append(f"tokens={self.tokens}")
        if self.time_ms:
            shown.append(f"seconds={self.time_ms / 1000:g}")
        if self.mode is not AccountingMode.ACTIVE_ONLY:
            shown.append(f"mode={self.mode.value!r}")
        shown += [
            f"{name}={value!r}"
            for name in ("expected_goal_id", "turn_id", "response_id", "idempotency_key")
            if (value := getattr(self, name)) is not None
        ]
        return f"Charge({', '.join(shown)})"


class ChargeMany(Request[list[Accounting]]):
    """Many charges, of all of which each or none is to be made."""

    __slots__ = ("charges",)

    def __init__(self, charges: Iterable[Charge]) -> None:
        if not isinstance(charges, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError("charges", f"must be many, not {type(charges).__name__}")
        self.charges: list[Charge] = list(charges)
        for number, charge in enumerate(self.charges):
            if not isinstance(charge, Charge):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidValueError(
                    "charges", f"must be of Charge, number {number} is {type(charge).__name__}"
                )

    def counted(self, counted_tokens: CountingFunction) -> Self:
        """See `Request`."""
        if all(charge.usage is None for charge in self.charges):
            return self
        many = copy_of(self)
        many.charges = [charge.counted(counted_tokens) for charge in self.charges]
        return many


class RecordTotal(ThreadRequest[Accounting]):
    """What a count of a thread has come to, of which the new part is to be charged.

    Attributes:
        least_time_alone_ms: None where the time is that of the report: a repeated or late one brings none.
            Else it is what the caller's own clock says: it rides on the tokens that are charged, and is
            charged alone once it is so much.
    """

    __slots__ = ("count_id", "expected_goal_id", "least_time_alone_ms", "mode", "time_ms", "total")

    def __init__(
        self,
        thread_id: object,
        total: object,
        seconds: object,
        mode: object,
        expected_goal_id: object,
        turn_id: object,
        count_id: object,
        *,
        least_time_alone_ms: int | None = None,
    ) -> None:
        super().__init__(thread_id, turn_id)
        self.total: TokenUsage | TokenUsageInfo = check_total(total)
        self.count_id: str | None = check_optional_name("count_id", count_id)
        self.time_ms: int = check_milliseconds("seconds", seconds)
        self.least_time_alone_ms: int | None = least_time_alone_ms
        self.mode: AccountingMode = check_mode(mode)
        self.expected_goal_id: str | None = check_optional_name(
            "expected_goal_id", expected_goal_id
        )


class SetBaseline(ThreadRequest[None]):
    """What a count of a thread has come to, of which nothing is to be charged.

    Attributes:
        is_stated: whether that is the host's word, which holds also where it is lower than what is stored;
            else it is a report like others, which may be late.
    """

    __slots__ = ("count_id", "is_stated", "total")

    def __init__(
        self,
        thread_id: object,
        total: object,
        turn_id: object,
        count_id: object,
        *,
        is_stated: bool = True,
    ) -> None:
        super().__init__(thread_id, turn_id)
        self.total: TokenUsage | TokenUsageInfo = check_total(total)
        self.count_id: str | None = check_optional_name("count_id", count_id)
        self.is_stated: bool = is_stated


class Reconcile(ThreadRequest[Accounting]):
    """What a count of a thread has come to, as another source knows it."""

    __slots__ = ("count_id", "total")

    def __init__(self, thread_id: object, total: object, turn_id: object, count_id: object) -> None:
        super().__init__(thread_id, turn_id)
        self.total: TokenUsage | TokenUsageInfo = check_total(total)
        self.count_id: str | None = check_optional_name("count_id", count_id)


def _check_new_budget(value: object) -> int | Literal[Keep.KEEP] | None:
    return KEEP if isinstance(value, Keep) else check_token_budget(value)


def check_total(value: object) -> TokenUsage | TokenUsageInfo:
    """A cumulative usage, or `InvalidValueError`."""
    if not isinstance(value, TokenUsage | TokenUsageInfo):
        raise InvalidValueError(
            "total", f"must be a TokenUsage or a TokenUsageInfo, not {type(value).__name__}"
        )
    return value
