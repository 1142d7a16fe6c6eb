"""The turns of one run of the program: what is asked before they go on, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import claude_agent_sdk
from claude_agent_sdk import (
    ClaudeAgentOptions,
    ClaudeSDKError,
    CLIConnectionError,
    HookMatcher,
    Message,
    ResultMessage,
    Transport,
)

from goal_state.aio.store import AsyncGoalStore
from goal_state.errors import BudgetExceededError, GoalStateError
from goal_state.integrations.claude_agent.account import Account
from goal_state.paid_calls import Payer, prompt_tokens
from goal_state.paid_calls.refusals import refusal_as
from goal_state.store import GoalStore

__all__ = ["Prompt", "TurnBudgetExceededError", "Turns"]

Prompt = str | AsyncIterable[dict[str, Any]]

_START_AGENTS: Final = frozenset({"Agent", "Task"})
_MAY_GO_ON_SECONDS: Final = 10.0
"""How long a program that was told to stop may take for its next message."""
_KEEP_EVERY_SECONDS: Final = 60.0


class TurnBudgetExceededError(BudgetExceededError, ClaudeSDKError):
    """The next model call of a turn needs more than is left of a budget: the program was told to stop.

    It has the figures of a `BudgetExceededError`.

    Attributes:
        result: the message that the turn ended with; None where it had not begun, or told of no end.
    """

    result: ResultMessage | None = None


class Turns:
    """The turns of one run of the program.

    Attributes:
        options: the host's, with hooks that ask whether a turn may go on.
    """

    def __init__(
        self,
        store: GoalStore | AsyncGoalStore,
        options: ClaudeAgentOptions | None,
        thread_id: str | None,
        child: str | None,
        output_tokens: int,
        *,
        subagent_goals: bool,
    ) -> None:
        """Arguments as for `query`."""
        self._store = AsyncGoalStore(store) if isinstance(store, GoalStore) else store
        payer = Payer(self._store, thread_id=thread_id, child=child, output_tokens=output_tokens)
        self._output_tokens = output_tokens
        self._subagent_goals = subagent_goals
        options = ClaudeAgentOptions() if options is None else options
        hooks = dict(options.hooks or {})
        for event in ("UserPromptSubmit", "PreToolUse"):
            hooks[event] = [HookMatcher(hooks=[self._ask]), *hooks.get(event, ())]
        self.options: ClaudeAgentOptions = replace(options, hooks=hooks)
        self._account = Account(self._store, payer, options)
        self._refusal: GoalStateError | None = None
        self._patience: asyncio.Timeout | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def run(self, prompt: Prompt, transport: Transport | None) -> AsyncGenerator[Message]:
        """The messages of a `query`."""
        has_begun = False
        try:
            await self.begin(prompt)
            sdk = claude_agent_sdk.query(prompt=prompt, options=self.options, transport=transport)
            async for message in self.messages(sdk):
                has_begun = True
                yield message
        except CLIConnectionError:
            if not has_begun:
                await self.not_sent()
            raise
        finally:
            await self.end()

    async def begin(self, prompt: Prompt) -> None:
        """Holds for a turn that is about to begin, on behalf of who is spending now."""
        self._account.is_for_the_caller()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        try:
            tokens = prompt_tokens(prompt, self.options.system_prompt)
            await self._account.hold(self._account.main, tokens)
        except GoalStateError as error:
            raise _refusal_of(error) from error

    async def not_sent(self) -> None:
        """The prompt has not reached the program: its turn costs nothing."""
        if (paid := self._account.main.take()) is not None:
            await paid.refused()

    async def messages(self, messages: AsyncIterator[Message]) -> AsyncGenerator[Message]:
        """The program's messages, each charged before it is handed on."""
        try:
            while True:
                patience = None if self._refusal is None else _MAY_GO_ON_SECONDS
                async with asyncio.timeout(patience) as self._patience:
                    message = await anext(messages)
                await self._account.charge(message)
                if isinstance(message, ResultMessage) and self._refusal is not None:
                    if isinstance(self._refusal, TurnBudgetExceededError):
                        self._refusal.result = message
                    break
                yield message
        except StopAsyncIteration:
            pass
        except TimeoutError:
            if self._refusal is None:
                raise
        finally:
            if (close := getattr(messages, "aclose", None)) is not None:
                await close()
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal

    async def end(self) -> None:
        """Ends what is held; see `Account.end`."""
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None
        await self._account.end()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_EVERY_SECONDS)
            with suppress(GoalStateError):  # the next time, perhaps
                await self._account.keep()

    async def _ask(self, hook: Any, tool_use_id: str | None, _: object) -> Any:
        """The hook by which the program asks before it takes a prompt, and before it runs a tool."""
        try:
            if hook["hook_event_name"] == "UserPromptSubmit":
                await self._account.hold(self._account.main, prompt_tokens(hook["prompt"]))
            elif tool_use_id is not None:
                await self._hold_for_tool(hook, tool_use_id)
        except GoalStateError as error:
            self._refusal = _refusal_of(error)
            if self._patience is not None:
                until = asyncio.get_running_loop().time() + _MAY_GO_ON_SECONDS
                with suppress(RuntimeError):  # a message has come
                    self._patience.reschedule(until)
            return _stop(hook["hook_event_name"], str(error))
        return {}

    async def _hold_for_tool(self, hook: Any, tool_use_id: str) -> None:
        """Holds for the call that follows the tool, and for the first one of the agent that it starts."""
        account = self._account
        agent = await account.caller(tool_use_id, hook.get("agent_id"))
        await account.hold(agent, 0)
        if hook["tool_name"] in _START_AGENTS:
            task = hook["tool_input"]
            payer = None
            if self._subagent_goals:
                payer = Payer(
                    self._store,
                    thread_id=account.main.thread_id,
                    child=str(task.get("subagent_type") or "general-purpose"),
                    output_tokens=self._output_tokens,
                )
            await account.hold(account.agent(tool_use_id, payer), prompt_tokens(task))


def _refusal_of(error: GoalStateError) -> GoalStateError:
    if not isinstance(error, BudgetExceededError):
        return error
    return refusal_as(TurnBudgetExceededError, error)


def _stop(event: str, reason: str) -> dict[str, Any]:
    """Tells the program to stop; and not to take the prompt or run the tool, should it go on."""
    stop: dict[str, Any] = {"continue_": False, "stopReason": reason}
    if event == "UserPromptSubmit":
        return stop | {"decision": "block", "reason": reason}
    denied = {"permissionDecision": "deny", "permissionDecisionReason": reason}
    return stop | {"hookSpecificOutput": {"hookEventName": event} | denied}
