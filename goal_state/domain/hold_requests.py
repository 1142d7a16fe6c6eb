"""What callers ask for of holds and claims, checked; see `requests`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from goal_state.domain.amounts import Amounts
from goal_state.domain.goals import Goal
from goal_state.domain.holds import HoldRecord, OnUnknown
from goal_state.domain.prices import check_cost
from goal_state.domain.requests import Request, ThreadRequest
from goal_state.domain.tags import check_tags
from goal_state.domain.usage import TokenUsage
from goal_state.domain.values import (
    check_amount,
    check_claim,
    check_milliseconds,
    check_name,
    check_optional_name,
)
from goal_state.errors import InvalidValueError

if TYPE_CHECKING:
    from goal_state.domain.tariff import Tariff

__all__ = [
    "ClaimGoal",
    "DispatchHold",
    "EndHold",
    "ExpireHolds",
    "ExtendHold",
    "ObserveHold",
    "ReleaseHold",
    "Reserve",
    "ResumeDue",
]


class Reserve(ThreadRequest[tuple[HoldRecord, bool]]):
    """A part of the goal's budgets shall be set aside; the result says too whether it was there already."""

    __slots__ = (
        "at_least",
        "calls",
        "claim",
        "cost_nanos",
        "expected_goal_id",
        "expires_in_ms",
        "is_dispatched",
        "is_rated",
        "key",
        "model",
        "on_unknown",
        "tags_json",
        "tokens",
        "usage",
    )

    def __init__(
        self,
        thread_id: object,
        *,
        tokens: object,
        usage: object,
        model: object,
        cost: object,
        calls: object,
        at_least: object,
        key: object,
        expires_in: object,
        unknown: object,
        dispatched: object,
        tags: object,
        turn_id: object,
        expected_goal_id: object,
        claim: object,
    ) -> None:
        super().__init__(thread_id, turn_id)
        self.tokens: int = check_amount("tokens", tokens)
        self.usage: TokenUsage | None = None if usage is None else TokenUsage.of(usage)
        if self.usage is not None and self.tokens:
            raise InvalidValueError("tokens", "goes without usage, which says how many there are")
        self.model: str | None = check_optional_name("model", model)
        self.cost_nanos: int | None = None if cost is None else check_cost("cost", cost)
        self.calls: int = check_amount("calls", calls)
        self.at_least: int | None = None if at_least is None else check_amount("at_least", at_least)
        self.key: str | None = check_optional_name("key", key)
        self.expires_in_ms: int = _check_span("expires_in", expires_in)
        self.on_unknown: OnUnknown = _check_unknown(unknown)
        if not isinstance(dispatched, bool):
            raise InvalidValueError(
                "dispatched", f"must be a bool, not {type(dispatched).__name__}"
            )
        self.is_dispatched: bool = dispatched
        self.tags_json: str | None = check_tags(tags)
        self.expected_goal_id: str | None = check_optional_name(
            "expected_goal_id", expected_goal_id
        )
        self.claim: int | None = check_claim(claim)
        self.is_rated: bool = False
        self._check_amounts()

    def _check_amounts(self) -> None:
        if not (self.tokens or self.usage or self.cost_nanos or self.calls):
            raise InvalidValueError(
                "tokens", "must be more than 0, or cost, calls or a usage given"
            )
        if self.at_least == 0:
            raise InvalidValueError("at_least", "must be 1 or more")
        if self.at_least is not None and self.usage is None and not self.at_least <= self.tokens:
            raise InvalidValueError("at_least", f"must not be more than tokens, {self.tokens}")

    @property
    def amounts(self) -> Amounts:
        """What is asked for, once it is rated."""
        return Amounts(self.tokens, 0, self.cost_nanos or 0, self.calls)

    def rated(self, tariff: Tariff) -> Self:
        """See `Request`. Of tokens whose division is not known each counts at the dearest rate."""
        if self.is_rated:
            return self
        usage, request = self.usage, self.copied()
        request.is_rated = True
        if usage is not None:
            request.usage, request.tokens = None, tariff.counted_tokens(usage)
        if request.cost_nanos is None:
            if usage is not None:
                request.cost_nanos = tariff.cost_nanos(usage, self.model)
            elif self.tokens:
                request.cost_nanos = tariff.most_cost_nanos(self.tokens, self.model)
        request._check_amounts()
        return request


class HoldRequest(Request[HoldRecord]):
    """Something to be done with a hold."""

    __slots__ = ("hold_id",)

    def __init__(self, hold_id: object) -> None:
        self.hold_id: str = check_name("hold_id", hold_id)


class ReleaseHold(HoldRequest):
    """Nothing of the hold was used."""

    __slots__ = ()


class EndHold(HoldRequest):
    """The call of the hold was cut, and what it used will not become known."""

    __slots__ = ()


class DispatchHold(HoldRequest):
    """The call of the hold may be sent from now on."""

    __slots__ = ()


class ExtendHold(HoldRequest):
    """The hold shall expire so much later from now."""

    __slots__ = ("expires_in_ms",)

    def __init__(self, hold_id: object, seconds: object) -> None:
        super().__init__(hold_id)
        self.expires_in_ms: int = _check_span("seconds", seconds)


class ObserveHold(HoldRequest):
    """What the call of the hold is known to have used so far."""

    __slots__ = ("cost_nanos", "model", "tokens", "usage")

    def __init__(
        self, hold_id: object, usage: object, tokens: object, cost: object, model: object
    ) -> None:
        super().__init__(hold_id)
        self.usage: TokenUsage | None = None if usage is None else TokenUsage.of(usage)
        self.tokens: int = check_amount("tokens", tokens)
        self.cost_nanos: int | None = None if cost is None else check_cost("cost", cost)
        self.model: str | None = check_optional_name("model", model)
        if self.usage is not None and self.tokens:
            raise InvalidValueError("tokens", "goes without usage, which says how many there are")

    def rated(self, tariff: Tariff) -> Self:
        """See `Request`."""
        if self.usage is None:
            return self
        request = self.copied()
        request.usage, request.tokens = None, tariff.counted_tokens(self.usage)
        if request.cost_nanos is None:
            request.cost_nanos = tariff.cost_nanos(self.usage, self.model)
        return request


class ExpireHolds(Request[int]):
    """Every hold that is due shall end; the result is how many."""

    __slots__ = ()


class ClaimGoal(ThreadRequest[Goal]):
    """An owner shall be the only one to run a goal, for a time."""

    __slots__ = ("owner", "span_ms")

    def __init__(self, thread_id: object, owner: object, seconds: object) -> None:
        super().__init__(thread_id, None)
        self.owner: str = check_name("owner", owner)
        self.span_ms: int = _check_span("seconds", seconds)


class ResumeDue(Request[list[Goal]]):
    """The goals whose provider's limit has ended shall be active again, some of them at a time."""

    __slots__ = ("limit", "now_ms")

    def __init__(self, now_ms: int | None, limit: int) -> None:
        self.now_ms: int | None = now_ms
        self.limit: int = limit


_MAX_SPAN_MS = 366 * 24 * 3600 * 1000


def _check_span(field: str, value: object) -> int:
    milliseconds = check_milliseconds(field, value)
    if not 1 <= milliseconds <= _MAX_SPAN_MS:
        raise InvalidValueError(field, "must be from a millisecond to 366 days, in seconds")
    return milliseconds


def _check_unknown(value: object) -> OnUnknown:
    try:
        return OnUnknown(value)
    except ValueError:
        raise InvalidValueError(
            "unknown", f"must be one of {', '.join(OnUnknown)}, is {value!r:.80}"
        ) from None
