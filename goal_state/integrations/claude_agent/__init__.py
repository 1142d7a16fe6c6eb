"""The Claude Agent SDK: turns that are held to a goal's budgets, and paid by what they used.

    from goal_state.integrations.claude_agent import query
    async for message in query(prompt="Write the report", store=store, thread_id="thread-1"):
        print(message)

`query` and `ClaudeSDKClient` take the place of the SDK's own. The program that the SDK runs calls the models,
so a turn always has a hold for its next call: it is taken before the turn, and anew before each tool is run.
Where the budgets have no room for it, the program is told to stop, and the turn ends with a
`TurnBudgetExceededError`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import claude_agent_sdk
from claude_agent_sdk import ClaudeAgentOptions, CLIConnectionError, Message, Transport

from goal_state.aio.store import AsyncGoalStore
from goal_state.integrations.claude_agent.turns import Prompt, TurnBudgetExceededError, Turns
from goal_state.store import GoalStore

__all__ = ["ClaudeSDKClient", "TurnBudgetExceededError", "query"]


def query(
    *,
    prompt: Prompt,
    store: GoalStore | AsyncGoalStore,
    options: ClaudeAgentOptions | None = None,
    transport: Transport | None = None,
    thread_id: str | None = None,
    child: str | None = None,
    output_tokens: int = 4_096,
    subagent_goals: bool = False,
) -> AsyncGenerator[Message]:
    """As `claude_agent_sdk.query`, paid from a goal's budgets.

    The thread is that of the argument; without one, that of the `store.spending` block around the call; else
    the session that the options name (`session_id`, `resume`).

    Each response is charged as its message is read, once, and at the end of a turn what the program says that
    exceeds it: its running totals of tokens and cost, which count the rest of each output, sub-agents and
    calls that show no message. Read on to the `ResultMessage`: of a turn that is left before only what has
    been read is charged, and a call that may be under way, in full as an estimate.

    Before the first answer, only the prompt is known of what the model reads. A goal with a cost budget needs
    a store with `prices`, and options that name the `model` as the prices do.

    Args:
        prompt: as for the SDK's.
        store: a `GoalStore` or an `AsyncGoalStore`.
        options: as for the SDK's. Hooks are put before its own.
        transport: as for the SDK's.
        thread_id: the thread whose goal pays.
        child: the name of a sub-agent, as which all of this is run: paid by the goal of the thread
            `<thread>/<child>`, which is made, as a child of the thread's goal, when it is first needed.
        output_tokens: how much output to set aside for a call. The program has caps of its own.
        subagent_goals: whether each kind of sub-agent that the program starts pays from a goal of its own,
            of the thread `<thread>/<kind>`, a child of the thread's.

    Raises:
        TurnBudgetExceededError: instead of the `ResultMessage`, which it has, or before anything is started.
        UnknownPriceError, GoalNotFoundError: as for `GoalStore.reserve`.
        InvalidValueError: no thread is named, or an argument is out of its bounds.
    """
    turns = Turns(store, options, thread_id, child, output_tokens, subagent_goals=subagent_goals)
    return turns.run(prompt, transport)


class ClaudeSDKClient(claude_agent_sdk.ClaudeSDKClient):
    """As `claude_agent_sdk.ClaudeSDKClient`, paid from a goal's budgets as by `query`.

    `query`, and `connect` with a prompt, raise where no call fits; so do `receive_response` and
    `receive_messages`, instead of the `ResultMessage` of a turn that was stopped. `disconnect`, or leave the
    block: it ends what is held.
    """

    def __init__(
        self,
        options: ClaudeAgentOptions | None = None,
        transport: Transport | None = None,
        *,
        store: GoalStore | AsyncGoalStore,
        thread_id: str | None = None,
        child: str | None = None,
        output_tokens: int = 4_096,
        subagent_goals: bool = False,
    ) -> None:
        """Arguments as for `query`."""
        self._turns = Turns(
            store, options, thread_id, child, output_tokens, subagent_goals=subagent_goals
        )
        self._is_connecting = False
        super().__init__(self._turns.options, transport)

    async def connect(self, prompt: Prompt | None = None) -> None:
        """As the SDK's."""
        self._is_connecting = True
        try:
            if prompt is not None:
                await self._turns.begin(prompt)
            await super().connect(prompt)
        except BaseException as error:
            if isinstance(error, CLIConnectionError):
                await self._turns.not_sent()
            await self._turns.end()
            raise
        finally:
            self._is_connecting = False

    async def query(self, prompt: Prompt, session_id: str = "default") -> None:
        """As the SDK's."""
        await self._turns.begin(prompt)
        try:
            await super().query(prompt, session_id)
        except CLIConnectionError:
            await self._turns.not_sent()
            raise

    async def receive_messages(self) -> AsyncIterator[Message]:
        """As the SDK's."""
        async for message in self._turns.messages(super().receive_messages()):
            yield message

    async def disconnect(self) -> None:
        """As the SDK's."""
        try:
            await super().disconnect()
        finally:
            if not self._is_connecting:  # else the SDK's own, where that has failed
                await self._turns.end()
