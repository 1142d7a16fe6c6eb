"""Who pays for one run of the program: a hold for each agent's next call, and a charge for each message."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from decimal import Decimal
from typing import Any, Final

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ConversationResetMessage,
    Message,
    ResultMessage,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from goal_state.aio.store import AsyncGoalStore
from goal_state.domain.prices import decimal_cost
from goal_state.domain.usage import TokenUsage
from goal_state.errors import IdempotencyConflictError
from goal_state.integrations.claude_agent.totals import Totals, read
from goal_state.operations.spending import current_spending
from goal_state.paid_calls import AsyncPaidCall, Payer

__all__ = ["Account", "Agent"]

_READER_MAY_LAG_SECONDS: Final = 30.0
_EVERY_STATUS: Final = ("active_or_stopped", "active_or_complete")


class Agent:
    """The main agent, or a sub-agent that a tool call has started.

    Attributes:
        payer: who holds for its calls.
        thread_id: whose goal pays.
        hold: what is held for its next call, if anything.
        is_spent: whether the call that is held for has been charged.
        is_charged: whether a call of this turn has been charged.
        unread: holds of calls that were answered, nobody has said yet with what usage.
        context_tokens: what its next call reads again.
    """

    def __init__(self, payer: Payer, thread_id: str = "") -> None:
        self.payer = payer
        self.thread_id = thread_id
        self.hold: AsyncPaidCall | None = None
        self.is_spent = False
        self.is_charged = False
        self.unread: list[AsyncPaidCall] = []
        self.context_tokens = 0

    @property
    def holds(self) -> list[AsyncPaidCall]:
        """All that is held for it."""
        return self.unread if self.hold is None else [*self.unread, self.hold]

    def take(self) -> AsyncPaidCall | None:
        """The hold of its first call that nobody has charged, which is then the caller's to end."""
        if self.unread:
            return self.unread.pop(0)
        hold, self.hold = self.hold, None
        return hold


class Account:
    """The holds of the agents of one run of the program, and the charges for its messages.

    Attributes:
        main: the main agent.
    """

    def __init__(self, store: AsyncGoalStore, payer: Payer, options: ClaudeAgentOptions) -> None:
        self._store = store
        self._session_id = options.session_id or options.resume
        self._model = options.model
        self._context = contextvars.copy_context()
        self.main: Agent = Agent(payer)
        self._agents: dict[str | None, Agent] = {None: self.main}
        """By the tool call that started them; those that have not answered."""
        self._callers: dict[str, asyncio.Future[str | None]] = {}
        """Which agent has made a tool call; done once that call's message is charged."""
        self._unshown: list[AsyncPaidCall] = []
        """Holds of sub-agents' last calls."""
        self._charged_ids: set[str] = set()
        self._totals = Totals()

    def is_for_the_caller(self) -> None:
        """What is held and charged from now on is on behalf of who is spending now."""
        self._context = contextvars.copy_context()

    # -- before a call -----------------------------------------------------------------------------

    async def hold(self, agent: Agent, prompt_tokens: int) -> None:
        """Holds for an agent's next call, unless that is done.

        Raises:
            BudgetExceededError, UnknownPriceError, GoalNotFoundError, InvalidValueError: as `Payer.begin`.
        """
        if agent.hold is not None:
            if not agent.is_spent:
                return
            paid, agent.hold = agent.hold, None
            await paid.refused()  # its call has been charged by its message
        agent.hold = await self._in_context(
            agent.payer.begin_awaited(prompt_tokens, model=self._model, thread_id=self._session_id)
        )
        agent.is_spent = False
        agent.thread_id = agent.hold.hold.thread_id

    async def _in_context(self, holding: Coroutine[Any, Any, AsyncPaidCall]) -> AsyncPaidCall:
        """Hooks run in the context in which the SDK has begun to read, not in that of the turn."""
        return await asyncio.create_task(holding, context=self._context)

    async def caller(self, tool_use_id: str, agent_id: str | None) -> Agent:
        """The agent that makes a tool call, as it is when the message with that call has been charged.

        The program sends the message first, but it may still be unread.
        """
        with suppress(TimeoutError):
            caller = asyncio.shield(self._callers.setdefault(tool_use_id, asyncio.Future()))
            return self.agent(await asyncio.wait_for(caller, _READER_MAY_LAG_SECONDS))
        return self.agent(agent_id)

    def agent(self, started_by: str | None, payer: Payer | None = None) -> Agent:
        """The agent that a tool call has started, or the main agent."""
        agent = self._agents.get(started_by)
        if agent is None:
            agent = Agent(payer or self.main.payer, self.main.thread_id)
            self._agents[started_by] = agent
        return agent

    async def keep(self) -> None:
        """Keeps what is held from expiring: a tool may run for longer than a hold lasts."""
        for agent in list(self._agents.values()):
            for paid in agent.holds:
                await paid.observed(None)

    # -- after a call ------------------------------------------------------------------------------

    async def charge(self, message: Message) -> None:
        """Charges what a message tells."""
        if isinstance(message, AssistantMessage):
            await self._charge_response(message)
            for block in message.content:
                if isinstance(block, ToolUseBlock):
                    caller = self._callers.setdefault(block.id, asyncio.Future())
                    if not caller.done():
                        caller.set_result(message.parent_tool_use_id)
        elif isinstance(message, UserMessage) and not isinstance(message.content, str):
            for block in message.content:
                if isinstance(block, ToolResultBlock):
                    self._callers.pop(block.tool_use_id, None)
                    await self._end_agent(block.tool_use_id)
        elif isinstance(message, ResultMessage):
            await self._charge_turn(message)
        elif isinstance(message, ConversationResetMessage):
            self._totals = Totals()

    async def _charge_response(self, message: AssistantMessage) -> None:
        # A response comes in several messages, one for each of its blocks, with a usage that is early: all of
        # its input, some of its output. One that tells of an error is the program's own.
        if message.error is not None or message.message_id in self._charged_ids:
            return
        agent = self.agent(message.parent_tool_use_id)
        usage = read(message.usage)
        if usage is None or message.message_id is None:
            if agent.hold is not None and not agent.is_spent and not agent.unread:
                agent.unread.append(agent.hold)
                agent.hold = None
            return
        self._charged_ids.add(message.message_id)
        cost = self._price(usage, message.model)
        await self._pay(
            agent, usage, cost=cost, model=message.model, response_id=message.message_id
        )
        self._totals.charged(usage, cost, of_main_agent=agent is self.main)
        agent.is_spent = agent.is_charged = True
        agent.context_tokens = usage.input_tokens + usage.output_tokens
        self._model = self._model or message.model

    async def _charge_turn(self, result: ResultMessage) -> None:
        """Charges what the program says beyond what its messages said, and ends what the turn held."""
        main = self.main
        told = self._totals.end_turn(result)
        tokens = self._store.counted_tokens(told.usage)
        cost = told.cost if told.cost is not None else self._price(told.usage, self._model)
        if tokens or cost:
            if not main.is_charged and (paid := main.take()) is not None:
                await paid.answered(told.usage, cost=cost, response_id=result.uuid)
            else:
                key = None if result.uuid is None else f"result {result.uuid}"
                await self._pay(main, tokens=tokens, cost=cost, idempotency_key=key)
        is_silent = result.usage is None and result.api_error_status is None
        knows_main = told.is_known or main.is_charged or not is_silent
        for agent in self._agents.values():
            # Of calls that were not shown, sub-agents' say something in the totals of all models alone.
            is_known = told.is_known if agent is main else bool(result.model_usage)
            await _end(agent.unread, is_known=is_known)
        await _end(self._unshown, is_known=bool(result.model_usage))
        if main.hold is not None:
            await _end([main.hold], is_known=knows_main)
            main.hold = None
        main.is_charged = False

    async def _end_agent(self, started_by: str) -> None:
        """A sub-agent has answered. Its last response, a text, is mostly not shown."""
        agent = self._agents.pop(started_by, None)
        if agent is None:
            return
        if agent.hold is not None and agent.is_spent:
            await agent.hold.refused()
            agent.hold = None
        self._unshown += agent.holds

    def _price(self, usage: TokenUsage, model: str | None) -> Decimal | None:
        nanos = self._store.tariff.cost_nanos(usage, model)
        return None if nanos is None else decimal_cost(nanos)

    async def _pay(self, agent: Agent, usage: TokenUsage | None = None, **options: Any) -> None:
        spending = self._context.run(current_spending)
        if spending is not None:
            options |= {"turn_id": spending.turn_id, "tags": spending.tags}
        with suppress(IdempotencyConflictError):  # what was charged under the id stands
            for mode in _EVERY_STATUS:
                paid = await self._store.charge(agent.thread_id, usage, mode=mode, **options)
                if paid.applied:
                    return

    async def end(self, error: BaseException | None) -> None:
        """Ends all that is held: calls that may be under way, and of unknown usage, are charged in full."""
        stack = AsyncExitStack()
        for agent in self._agents.values():
            if agent.hold is not None and agent.is_spent:
                self._unshown += agent.unread
                stack.push_async_callback(agent.hold.refused)
            else:
                self._unshown += agent.holds
            agent.hold, agent.unread = None, []
        for paid in self._unshown:
            stack.push_async_exit(paid)
        self._agents, self._unshown = {None: self.main}, []
        await stack.__aexit__(None if error is None else type(error), error, None)


async def _end(holds: list[AsyncPaidCall], *, is_known: bool) -> None:
    """Gives back what is held for calls that were charged otherwise, or not made; else charges it in full."""
    while holds:
        paid = holds.pop()
        await (paid.refused() if is_known else paid.hold.cut())
