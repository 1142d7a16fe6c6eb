"""What callers ask for, checked: a request that exists is one whose every value is within its bounds.

So a malformed call is refused before a transaction begins, and what is carried out needs no more checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, Generic, Literal, Self, TypeVar

from goal_state.domain.amounts import Amounts
from goal_state.domain.budgets import Budgets, changed_budgets, check_budgets
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
from goal_state.domain.prices import check_cost, decimal_cost
from goal_state.domain.tags import check_tags
from goal_state.domain.tariff import Tariff
from goal_state.domain.usage import ThreadUsage, TokenUsage
from goal_state.domain.values import (
    check_amount,
    check_claim,
    check_milliseconds,
    check_name,
    check_objective,
    check_optional_name,
    check_time_ms,
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

    def copied(self) -> Self:
        """A copy, of which fields can be set; a tenth of the cost of `copy.copy`."""
        copy = object.__new__(type(self))
        for name in _fields_of(type(self)):
            setattr(copy, name, getattr(self, name))
        return copy

    def rated(self, tariff: Tariff) -> Self:  # noqa: ARG002
        """The request with its usages counted and priced, where it is a charge of any. A host's own functions
        may do that, so it is done once, on the caller's thread, before the transaction.
        """
        return self


@cache
def _fields_of(cls: type[Any]) -> list[str]:
    return [name for base in cls.__mro__ for name in getattr(base, "__slots__", ())]


class ThreadRequest(Request[Result_co]):
    """Something to be done with one thread's goal or usage."""

    __slots__ = ("thread_id", "turn_id")

    def __init__(self, thread_id: object, turn_id: object) -> None:
        self.thread_id: str = check_name("thread_id", thread_id)
        self.turn_id: str | None = None if turn_id is None else check_name("turn_id", turn_id)


class CreateGoal(ThreadRequest[Goal]):
    """A new goal.

    Attributes:
        where: `"free"`: where there is none, or only a complete one; `"anyway"`: in place of any;
            `"missing"`: where there is none, else the goal that there is.
        parent: the thread under whose goal it is made.
    """

    __slots__ = ("budgets", "objective", "parent", "status", "where")

    def __init__(
        self,
        thread_id: object,
        objective: object,
        status: object,
        parent: object,
        turn_id: object,
        *,
        where: Literal["free", "anyway", "missing"],
        **budgets: object,
    ) -> None:
        super().__init__(thread_id, turn_id)
        self.objective: str = check_objective(objective)
        self.budgets: Budgets = check_budgets(**budgets)
        self.status: GoalStatus = check_status(status)
        self.parent: str | None = check_optional_name("parent", parent)
        self.where: Literal["free", "anyway", "missing"] = where
        if self.parent == self.thread_id:
            raise InvalidValueError("parent", "must be another thread than the goal's own")


class ChangeGoal(ThreadRequest[Goal]):
    """New values for a goal, which is made if it is missing and an objective is given."""

    __slots__ = (
        "blocked_reason",
        "budgets",
        "claim",
        "expected_goal_id",
        "objective",
        "resume_at_ms",
        "status",
    )

    def __init__(
        self,
        thread_id: object,
        objective: object,
        status: object,
        resume_at: object,
        blocked_reason: object,
        expected_goal_id: object,
        turn_id: object,
        claim: object,
        **budgets: object,
    ) -> None:
        super().__init__(thread_id, turn_id)
        self.claim: int | None = check_claim(claim)
        self.objective: str | Literal[Keep.KEEP] = (
            KEEP if isinstance(objective, Keep) else check_objective(objective)
        )
        self.status: GoalStatus | Literal[Keep.KEEP] = (
            KEEP if isinstance(status, Keep) else check_status(status)
        )
        self.budgets: dict[str, Any] = changed_budgets(KEEP, **budgets)
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
    """A goal shall be active again, with other budgets if any are given."""

    __slots__ = ("budgets", "claim", "expected_goal_id")

    def __init__(
        self,
        thread_id: object,
        expected_goal_id: object,
        turn_id: object,
        claim: object,
        **budgets: object,
    ) -> None:
        super().__init__(thread_id, turn_id)
        self.claim: int | None = check_claim(claim)
        self.budgets: dict[str, Any] = changed_budgets(KEEP, **budgets)
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
        "calls",
        "claim",
        "cost_nanos",
        "expected_goal_id",
        "idempotency_key",
        "key",
        "mode",
        "model",
        "names_cost",
        "response_id",
        "settles",
        "tags_json",
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
        cost: Decimal | int | str | None = None,
        seconds: float = 0,
        model: str | None = None,
        mode: AccountingMode | str = AccountingMode.ACTIVE_ONLY,
        expected_goal_id: str | None = None,
        turn_id: str | None = None,
        response_id: str | None = None,
        idempotency_key: str | None = None,
        tags: Mapping[str, str] | None = None,
        claim: int | None = None,
        settles: str | None = None,
    ) -> None:
        self.thread_id: str = check_name("thread_id", thread_id)
        self.turn_id: str | None = None if turn_id is None else check_name("turn_id", turn_id)
        self.usage: TokenUsage | None = None if usage is None else TokenUsage.of(usage)
        self.tokens: int = check_amount("tokens", tokens)
        self.time_ms: int = check_milliseconds("seconds", seconds)
        self.cost_nanos: int | None = None if cost is None else check_cost("cost", cost)
        self.names_cost: bool = cost is not None
        """Whether the cost is the caller's own figure, and not a price of today."""
        self.model: str | None = None if model is None else check_name("model", model)
        self.tags_json: str | None = None if tags is None else check_tags(tags)
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
        self.claim: int | None = None if claim is None else check_claim(claim)
        self.settles: str | None = None if settles is None else check_name("settles", settles)
        """The id of the hold that the charge settles."""
        self.calls: int = 0 if self.usage is None and self.response_id is None else 1
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

    @property
    def amounts(self) -> Amounts:
        """What it adds; of a usage that is not rated, nothing."""
        cost_nanos, tokens = self.cost_nanos, self.tokens
        if cost_nanos is None:
            return Amounts(tokens, self.time_ms, 0, self.calls, tokens)
        return Amounts(tokens, self.time_ms, cost_nanos, self.calls)

    def rated(self, tariff: Tariff) -> Self:
        """See `Request`."""
        usage = self.usage
        if usage is None:
            return self
        charge = self.copied()
        charge.usage, charge.tokens = None, tariff.counted_tokens(usage)
        if charge.cost_nanos is None:
            charge.cost_nanos = tariff.cost_nanos(usage, self.model)
        return charge

    def __repr__(self) -> str:
        shown: list[str] = [repr(self.thread_id)]
        if self.usage is not None:
            shown.append(repr(self.usage))
        if self.tokens:
            shown.append(f"tokens={self.tokens}")
        if self.cost_nanos is not None:
            shown.append(f"cost='{decimal_cost(self.cost_nanos):f}'")
        if self.time_ms:
            shown.append(f"seconds={self.time_ms / 1000:g}")
        if self.mode is not AccountingMode.ACTIVE_ONLY:
            shown.append(f"mode={self.mode.value!r}")
        shown += [
            f"{name}={value!r}"
            for name in ("model", "expected_goal_id", "turn_id", "response_id", "idempotency_key")
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

    def rated(self, tariff: Tariff) -> Self:
        """See `Request`."""
        if all(charge.usage is None for charge in self.charges):
            return self
        many = self.copied()
        many.charges = [charge.rated(tariff) for charge in self.charges]
        return many


class RecordTotal(ThreadRequest[Accounting]):
    """What a count of a thread has come to, of which the new part is to be charged.

    Attributes:
        least_time_alone_ms: None where the time is that of the report: a repeated or late one brings none.
            Else it is what the caller's own clock says: it rides on the tokens that are charged, and is
            charged alone once it is so much.
        calls, cost_nanos: of what is new in the total, like the time; None for a cost that nobody knows.
    """

    __slots__ = (
        "calls",
        "claim",
        "cost_nanos",
        "count_id",
        "expected_goal_id",
        "least_time_alone_ms",
        "mode",
        "model",
        "settles",
        "tags_json",
        "time_ms",
        "total",
    )

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
        calls: object = 0,
        cost: object = None,
        model: object = None,
        tags: object = None,
        claim: object = None,
        settles: object = None,
        least_time_alone_ms: int | None = None,
    ) -> None:
        self.total: TokenUsage | ThreadUsage = check_total(total)
        super().__init__(thread_id, _turn_of(self.total, turn_id))
        self.count_id: str | None = check_optional_name("count_id", count_id)
        self.time_ms: int = check_milliseconds("seconds", seconds)
        self.calls: int = check_amount("calls", calls)
        self.cost_nanos: int | None = None if cost is None else check_cost("cost", cost)
        self.model: str | None = check_optional_name("model", model)
        self.tags_json: str | None = check_tags(tags)
        self.claim: int | None = check_claim(claim)
        self.settles: str | None = check_optional_name("settles", settles)
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
        self.total: TokenUsage | ThreadUsage = check_total(total)
        super().__init__(thread_id, _turn_of(self.total, turn_id))
        self.count_id: str | None = check_optional_name("count_id", count_id)
        self.is_stated: bool = is_stated


class Reconcile(ThreadRequest[Accounting]):
    """What a count of a thread has come to, as another source knows it."""

    __slots__ = ("count_id", "total")

    def __init__(self, thread_id: object, total: object, turn_id: object, count_id: object) -> None:
        self.total: TokenUsage | ThreadUsage = check_total(total)
        super().__init__(thread_id, _turn_of(self.total, turn_id))
        self.count_id: str | None = check_optional_name("count_id", count_id)


def check_total(value: object) -> TokenUsage | ThreadUsage:
    """A cumulative usage, or `InvalidValueError`."""
    if not isinstance(value, TokenUsage | ThreadUsage):
        raise InvalidValueError(
            "total", f"must be a TokenUsage or a ThreadUsage, not {type(value).__name__}"
        )
    return value


def _turn_of(total: TokenUsage | ThreadUsage, turn_id: object) -> object:
    """The turn that a call names, else the one that its total does."""
    return total.turn_id if turn_id is None and isinstance(total, ThreadUsage) else turn_id
