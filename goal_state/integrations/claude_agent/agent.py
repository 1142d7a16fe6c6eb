"""An agent of the program: the main one, or a sub-agent that a tool call has started."""

from __future__ import annotations

import asyncio

from goal_state.domain.usage import TokenUsage
from goal_state.paid_calls import AsyncPaidCall, Payer

__all__ = ["Agent", "end_holds"]


class Agent:
    """What is held for an agent's calls.

    Attributes:
        thread_id: whose goal pays; empty until something has been held.
        hold: what is held for its next call, if anything.
        is_spent: whether that call has been charged.
        unread: holds of calls that were answered, and not charged: nobody has said yet with what usage.
        is_charged: whether a call of this turn has been charged.
        is_over: whether the program has gone, so that nothing more is held.
    """

    def __init__(self, payer: Payer, thread_id: str = "") -> None:
        self.payer: Payer = payer
        self.thread_id: str = thread_id
        self.hold: AsyncPaidCall | None = None
        self.is_spent: bool = False
        self.unread: list[AsyncPaidCall] = []
        self.is_charged: bool = False
        self.is_over: bool = False
        self._context_tokens = 0
        self._lock = asyncio.Lock()

    async def begin_call(
        self, new_tokens: int, *, model: str | None, session_id: str | None
    ) -> None:
        """Holds for its next call, unless that is done.

        Args:
            new_tokens: what the call reads beside what the last one has read and written.
            model: the model that is called.
            session_id: the thread that pays where nobody else names one.

        Raises:
            BudgetExceededError, UnknownPriceError, GoalNotFoundError, InvalidValueError: as `Payer.begin`.
        """
        async with self._lock:  # tools that run side by side ask side by side
            if self.hold is not None:
                if not self.is_spent:
                    return
                paid, self.hold = self.hold, None
                await paid.refused()  # its call has been charged by its message
            paid = await self.payer.begin_awaited(
                self._context_tokens + new_tokens, model=model, thread_id=session_id
            )
            if self.is_over:  # while it was asked for
                await paid.refused()
                return
            self.hold = paid
            self.is_spent = False
            self.thread_id = paid.hold.thread_id

    def answered_unread(self) -> None:
        """Its call was answered: what is held for it stays held until somebody says with what usage."""
        if self.hold is not None and not self.is_spent:
            self.unread.append(self.hold)
            self.hold = None

    async def charged(self, usage: TokenUsage) -> None:
        """Its call was charged, what the response says."""
        self.is_charged = True
        self._context_tokens = usage.input_tokens + usage.output_tokens
        if self.unread:
            await self.unread.pop(0).refused()
        elif self.hold is not None:
            await self.hold.observed(usage)  # by which the next hold knows what is cached
            self.is_spent = True

    def forget_context(self) -> None:
        """Its conversation begins anew."""
        self._context_tokens = 0

    def take(self) -> AsyncPaidCall | None:
        """The hold of its first call that was not charged, which is the caller's to end from now on."""
        if self.unread:
            return self.unread.pop(0)
        hold, self.hold = self.hold, None
        return hold

    async def take_uncharged(self) -> list[AsyncPaidCall]:
        """All that is held for calls that were not charged, which is the caller's to end from now on."""
        hold, self.hold = self.hold, None
        taken, self.unread = self.unread, []
        if hold is not None and not self.is_spent:
            taken.append(hold)
        elif hold is not None:
            await hold.refused()
        return taken

    async def keep(self) -> None:
        """Has nothing that is held expire."""
        for paid in (*self.unread, self.hold):
            if paid is not None:
                await paid.observed(None)


async def end_holds(holds: list[AsyncPaidCall], *, is_known: bool) -> None:
    """Gives back what is held for calls that were charged otherwise, or not made; else charges it in full."""
    while holds:
        paid = holds.pop()
        await (paid.refused() if is_known else paid.hold.cut())
