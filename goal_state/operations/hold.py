"""The handles of a hold: what a caller does with a part of a budget that is set aside for one call."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from goal_state.domain.goals import Accounting
from goal_state.domain.hold_requests import (
    DispatchHold,
    EndHold,
    ExtendHold,
    ObserveHold,
    ReleaseHold,
)
from goal_state.domain.holds import HoldRecord
from goal_state.domain.requests import Charge, Request
from goal_state.errors import HoldEndedError
from goal_state.operations.calls import call

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["Hold", "HoldHandle"]

_OBSERVED_EVERY_SECONDS: Final = 1.0


class HoldHandle(ABC):
    """What is done with a hold, whether its calls are awaited (`AsyncHold`) or not (`Hold`).

    Attributes:
        record: the hold as it was when it was last read or changed through this handle.
        was_found: whether it had been reserved before, under the same key.
    """

    def __init__(self, record: HoldRecord, *, was_found: bool) -> None:
        """Use `reserve`."""
        self.record: HoldRecord = record
        self.was_found: bool = was_found
        self._observation: ObserveHold | None = None
        self._observed_at = -_OBSERVED_EVERY_SECONDS
        self._is_over = False

    @property
    def hold_id(self) -> str:
        """Its id, by which another process can settle it: `charge(…, settles=hold_id)`."""
        return self.record.hold_id

    @property
    def thread_id(self) -> str:
        """The thread whose goal it is a part of."""
        return self.record.thread_id

    @property
    def tokens(self) -> int:
        """The tokens that are set aside; fewer than were asked for where `at_least` allowed it."""
        return self.record.tokens

    @property
    def cost(self) -> Decimal | None:
        """What is set aside of cost budgets, in the currency of the prices; None where nobody knows."""
        return self.record.cost

    @property
    def calls(self) -> int:
        """The calls that are set aside."""
        return self.record.calls

    @property
    def expires_at(self) -> datetime:
        """When it ends by itself, in UTC."""
        return self.record.expires_at

    @call
    def settle(
        self,
        usage: object = None,
        *,
        tokens: int = 0,
        cost: Decimal | int | str | None = None,
        seconds: float = 0,
        model: str | None = None,
        response_id: str | None = None,
        idempotency_key: str | None = None,
        turn_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Accounting:
        """Charges what the call has used, and gives back the rest. It is charged whatever the status of the
        goal, and above what was set aside where that is the truth.

        Arguments as for `charge`. The same settlement repeated changes nothing and returns its result.

        Returns:
            What became of it; `goal` is None where that is gone, and those above it have paid.

        Raises:
            HoldEndedError: it was settled with other figures, or released.
            IdempotencyConflictError, UsageOverflowError, InvalidValueError: as for `charge`.
        """
        return self._carry_out(
            Charge(
                self.thread_id,
                usage,
                tokens=tokens,
                cost=cost,
                seconds=seconds,
                model=self.record.model if model is None else model,
                response_id=response_id,
                idempotency_key=idempotency_key,
                turn_id=turn_id,
                tags=tags,
                settles=self.hold_id,
            ),
            ends=True,
        )

    @call
    def release(self) -> None:
        """Gives everything back: the call was not sent, or was refused before the provider took it.

        Raises:
            HoldEndedError: it has ended in another way.
        """
        return self._carry_out(ReleaseHold(self.hold_id), ends=True)

    @call
    def dispatched(self) -> None:
        """Notes that the call may be sent from now on, where it was reserved with `dispatched=False`.

        Raises:
            HoldEndedError: it has ended.
        """
        return self._carry_out(DispatchHold(self.hold_id))

    @call
    def observed(
        self,
        usage: object = None,
        *,
        tokens: int = 0,
        cost: Decimal | int | str | None = None,
        model: str | None = None,
    ) -> None:
        """Notes what a stream has used so far, all of it together: what is charged should it break off. It is
        written once a second at the most, so call it as often as you like.

        Raises:
            HoldEndedError: it has ended.
            InvalidValueError: a value is malformed.
        """
        return self._observe(
            ObserveHold(
                self.hold_id, usage, tokens, cost, self.record.model if model is None else model
            )
        )

    @call
    def extend(self, seconds: float) -> None:
        """Has the hold expire so many seconds from now.

        Raises:
            HoldEndedError: it has ended.
            InvalidValueError: it is no time from a millisecond to 366 days.
        """
        return self._carry_out(ExtendHold(self.hold_id, seconds))

    @call
    def cut(self) -> None:
        """Ends the hold of a call that was cut: with what was `observed`, else in full as an estimate (with
        `unknown="release"`: with nothing). A settlement that comes later adds what is missing. A hold that
        has ended stays as it is.
        """
        return self._cut()

    @abstractmethod
    def _carry_out(self, request: Request[Any], *, ends: bool = False) -> Any:
        """Carries out a request about the hold; returns its result, unless that is the hold as it is then.

        Args:
            request: the request.
            ends: whether it ends the hold.
        """

    @abstractmethod
    def _observe(self, observation: ObserveHold) -> Any:
        """Writes an observation, or keeps it for later where the last one was written a moment ago."""

    @abstractmethod
    def _cut(self) -> Any:
        """See `cut`."""

    def _took(self, result: Any, *, ends: bool) -> Any:
        """Notes what a request has made of the hold."""
        if ends:
            self._is_over = True
        if not isinstance(result, HoldRecord):
            return result
        self.record = result
        return None

    def _may_observe(self, observation: ObserveHold) -> bool:
        """Whether an observation is to be written now; if not, it is kept for when the hold is cut."""
        if time.monotonic() - self._observed_at >= _OBSERVED_EVERY_SECONDS:
            return True
        self._observation = observation
        return False

    def _has_observed(self) -> None:
        """Notes that an observation was written."""
        self._observation = None
        self._observed_at = time.monotonic()

    def __repr__(self) -> str:
        parts = [f"{self.tokens} tokens"] if self.tokens else []
        if self.cost:
            parts.append(f"cost {self.cost:f}")
        if self.calls:
            parts.append(f"{self.calls} calls")
        return f"<{type(self).__name__} {self.hold_id} of {self.thread_id!r}: {', '.join(parts)}>"


class Hold(HoldHandle):
    """A part of a goal's budgets, set aside for one call; `reserve` makes it.

        with store.reserve("thread-1", tokens=12_000) as hold:
            reply = client.messages.create(max_tokens=hold.tokens, …)
            hold.settle(reply.usage, model=reply.model, response_id=reply.id)

    A block that is left while the hold is live, by an exception or not, ends it as its call was left: with
    what was `observed`, else in full as an estimate, since it may have been sent. A hold whose process dies
    ends likewise when it expires.
    """

    def __init__(
        self,
        apply: Callable[[Request[Any]], Any],
        record: HoldRecord,
        *,
        was_found: bool,
    ) -> None:
        """Use `reserve`."""
        super().__init__(record, was_found=was_found)
        self._apply = apply

    def _carry_out(self, request: Request[Any], *, ends: bool = False) -> Any:
        return self._took(self._apply(request), ends=ends)

    def _observe(self, observation: ObserveHold) -> None:
        if self._may_observe(observation):
            self._carry_out(observation)
            self._has_observed()

    def _cut(self) -> None:
        if self._observation is not None:
            with suppress(HoldEndedError):  # it has expired: what it charged then stands
                self._carry_out(self._observation)
        self._carry_out(EndHold(self.hold_id), ends=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._is_over:
            self.cut()
