"""Who pays for one run of the program: what is held for its agents, and what its messages are charged."""

from __future__ import annotations

import asyncio
import contextvars
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
from goal_state.integrations.claude_agent.agent import Agent, end_holds
from goal_state.integrations.claude_agent.totals import Totals, read
from goal_state.operations.spending import current_spending
from goal_state.paid_calls import AsyncPaidCall, Payer

__all__ = ["Account"]

_READER_MAY_LAG_SECONDS: Final = 5.0
_EVERY_STATUS: Final = ("active_or_stopped", "active_or_complete")


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
        """Which agent has made a tool call; done once the message with it is charged."""
        self._unshown: list[AsyncPaidCall] = []
        """Holds of sub-agents' last calls."""
        self._charged_ids: set[str] = set()
        self._totals = Totals()

    # -- before a call -----------------------------------------------------------------------------

    def is_for_the_caller(self) -> None:
        """What is held and charged from now on is on behalf of who is spending now."""
        self._context = contextvars.copy_context()

    async def hold(self, agent: Agent, new_tokens: int) -> None:
        """Holds for an agent's next call; see `Agent.begin_call`."""
        # Hooks run in the context in which the SDK has begun to read, not in that of the turn.
        holding = agent.begin_call(new_tokens, model=self._model, session_id=self._session_id)
        await asyncio.create_task(holding, context=self._context)

    async def caller(self, tool_use_id: str, agent_id: str | None) -> Agent:
        """The agent that makes a tool call, once the response with that call has been charged."""
        # The program sends its message first, but a slow reader may not have come to it.
        caller = self._callers.setdefault(tool_use_id, asyncio.Future())
        with suppress(TimeoutError):
            return self.agent(
                await asyncio.wait_for(asyncio.shield(caller), _READER_MAY_LAG_SECONDS)
            )
        agent = self.agent(agent_id)
        agent.answered_unread()
        return agent

    def agent(self, started_by: str | None, payer: Payer | None = None) -> Agent:
        """The agent that a tool call has started, or the main agent."""
        agent = self._agents.get(started_by)
        if agent is None:
            agent = Agent(payer or self.main.payer, self.main.thread_id)
            self._agents[started_by] = agent
        return agent

    async def keep(self) -> None:
        """Has nothing that is held expire: a tool may run for longer than a hold lasts."""
        for agent in list(self._agents.values()):
            await agent.keep()

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
                    if (ended := self._agents.pop(block.tool_use_id, None)) is not None:
                        # Its last response, a text, is mostly not shown.
                        self._unshown += await ended.take_uncharged()
        elif isinstance(message, ResultMessage):
            await self._charge_turn(message)
        elif isinstance(message, ConversationResetMessage):
            self._totals = Totals()
            self.main.forget_context()

    async def _charge_response(self, message: AssistantMessage) -> None:
        # A response comes in several messages, one for each of its blocks, with a usage that is early: all of
        # its input, some of its output. One that tells of an error is the program's own.
        if message.error is not None or message.message_id in self._charged_ids:
            return
        agent = self.agent(message.parent_tool_use_id)
        usage = read(message.usage)
        if usage is None or message.message_id is None:
            if not agent.unread:
                agent.answered_unread()
            return
        self._charged_ids.add(message.message_id)
        if not agent.thread_id:  # a turn that nobody has asked for
            await self.hold(agent, 0)
        cost = self._price(usage, message.model)
        await self._pay(
            agent, usage, cost=cost, model=message.model, response_id=message.message_id
        )
        self._totals.charged(usage, cost, of_main_agent=agent is self.main)
        await agent.charged(usage)

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
        await end_holds(main.unread, is_known=told.is_known)
        is_known = told.is_known or main.is_charged or not is_silent
        await end_holds(await main.take_uncharged(), is_known=is_known)
        main.is_charged = False
        # Of sub-agents' calls that were not shown, only the totals of all models say something.
        if result.model_usage:
            for agent in self._agents.values():
                self._unshown += await agent.take_uncharged()
        await end_holds(self._unshown, is_known=bool(result.model_usage))

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

    async def end(self) -> None:
        """Ends all that is held: calls that may be under way, and of unknown usage, are charged in full."""
        async with AsyncExitStack() as stack:
            for agent in self._agents.values():
                agent.is_over = True
                for paid in agent.unread:
                    stack.push_async_exit(paid)
                if agent.hold is not None:
                    stack.push_async_exit(agent.hold)
                    if agent.is_spent:
                        stack.push_async_callback(agent.hold.refused)
            for paid in self._unshown:
                stack.push_async_exit(paid)
            self.main = Agent(self.main.payer)
            self._agents, self._unshown = {None: self.main}, []
            self._totals = Totals()
