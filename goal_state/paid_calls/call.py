"""One model call and its hold, from the request to whatever became of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from goal_state.domain.usage import TokenUsage
from goal_state.errors import HoldEndedError, IdempotencyConflictError, InvalidValueError
from goal_state.operations.async_hold import AsyncHold
from goal_state.operations.hold import Hold, HoldHandle

__all__ = ["EXPIRES_IN_SECONDS", "AsyncPaidCall", "PaidCall"]

_logger = logging.getLogger(__name__)

AnyHold = TypeVar("AnyHold", bound=HoldHandle)

EXPIRES_IN_SECONDS: Final = 600.0


class _Call(Generic[AnyHold]):
    def __init__(
        self, hold: AnyHold, output_tokens: int, note: Callable[[TokenUsage], None]
    ) -> None:
        """Use `Payer`."""
        self.hold: AnyHold = hold
        self.output_tokens: int = output_tokens
        self._note = note
        self._extended_at = time.monotonic()

    def _read(self, usage: object) -> TokenUsage | None:
        """What a usage says; None where it is none that we know, or says nothing."""
        if usage is None:
            return None
        try:
            known = TokenUsage.of(usage)
        except InvalidValueError as error:
            _logger.warning(
                "a response of thread %s came with a usage that cannot be read, so that its whole hold is"
                " charged as an estimate: %s",
                self.hold.thread_id,
                error,
            )
            return None
        if not any(known.counts()):
            return None
        self._note(known)
        return known

    def _conflicts(self, response_id: str | None) -> None:
        _logger.warning(
            "thread %s was charged for a response %r before, with other tokens: its provider names two"
            " responses alike, so that this one is charged without its id",
            self.hold.thread_id,
            response_id,
        )

    def _is_long(self) -> bool:
        """Whether the hold would expire while its stream goes on."""
        now = time.monotonic()
        if now - self._extended_at < EXPIRES_IN_SECONDS / 2:
            return False
        self._extended_at = now
        return True


class PaidCall(_Call[Hold]):
    """A model call with its hold: the block of a `with` statement around the call.

    Leave the block with `answered`, or with `refused` where the provider took nothing. Otherwise what was
    `observed` is charged, else the whole hold, as an estimate: the call may have been sent.

    Attributes:
        hold: what is set aside.
        output_tokens: the cap of the output to be sent along; less than was asked for where little is left.
    """

    def observed(self, usage: object) -> None:
        """What a stream has used so far, all of it together; as often as you like."""
        if (known := self._read(usage)) is not None:
            with suppress(HoldEndedError):  # it has expired, and is settled late
                self.hold.observed(known)
        if self._is_long():
            with suppress(HoldEndedError):
                self.hold.extend(EXPIRES_IN_SECONDS)

    def refused(self) -> None:
        """The call was not sent, or the provider refused it: nothing is charged."""
        with suppress(HoldEndedError):  # it has expired: what it charged then stands
            self.hold.release()

    def answered(
        self,
        usage: object,
        *,
        cost: Decimal | int | str | None = None,
        model: str | None = None,
        response_id: str | None = None,
    ) -> None:
        """Charges what the response used. Where nothing says what (None, zeros, a usage of no known form),
        the whole hold is charged as an estimate.

        Args:
            usage: what the response says: whatever `GoalStore.charge` takes, or None.
            cost: what it cost, where somebody says.
            model: the model that answered, where it is not the one that was asked.
            response_id: the provider's id of the response, under which it is charged once.
        """
        known = self._read(usage)
        if known is None and cost is None:
            self.hold.cut()
            return
        model = model or None
        try:
            self.hold.settle(known, cost=cost, model=model, response_id=response_id or None)
        except IdempotencyConflictError:
            self._conflicts(response_id)
            self.hold.settle(known, cost=cost, model=model)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.hold.__exit__(kind, error, traceback)


class AsyncPaidCall(_Call[AsyncHold]):
    """A `PaidCall` whose calls are awaited: the block of an `async with` statement around the call.

    Attributes:
        hold: what is set aside.
        output_tokens: the cap of the output to be sent along; less than was asked for where little is left.
    """

    async def observed(self, usage: object) -> None:
        """As `PaidCall.observed`."""
        if (known := self._read(usage)) is not None:
            with suppress(HoldEndedError):  # it has expired, and is settled late
                await self.hold.observed(known)
        if self._is_long():
            with suppress(HoldEndedError):
                await self.hold.extend(EXPIRES_IN_SECONDS)

    async def refused(self) -> None:
        """As `PaidCall.refused`."""
        with suppress(HoldEndedError):
            await self.hold.release()

    async def answered(
        self,
        usage: object,
        *,
        cost: Decimal | int | str | None = None,
        model: str | None = None,
        response_id: str | None = None,
    ) -> None:
        """As `PaidCall.answered`."""
        known = self._read(usage)
        if known is None and cost is None:
            await self.hold.cut()
            return
        model = model or None
        try:
            await self.hold.settle(known, cost=cost, model=model, response_id=response_id or None)
        except IdempotencyConflictError:
            self._conflicts(response_id)
            await self.hold.settle(known, cost=cost, model=model)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.hold.__aexit__(kind, error, traceback)
