"""Pydantic AI: the model calls of an agent are held to the budgets of a goal, and paid by what they used.

    agent = Agent("openai:some-model", capabilities=[Budget(store)])
    agent.run_sync("Ship the parser", conversation_id="thread-1")

It serves every way to run an agent (`run`, `run_sync`, `run_stream`, `iter`, …). It sits around the model,
not in a hook around the step: so each attempt and each part of a response is a call of its own, in streams
too, and each model of a `FallbackModel` is held and priced as itself. A realtime session asks no capability
before its responses, and is not held.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from pydantic_ai import UsageLimitExceeded, UserError
from pydantic_ai.capabilities import AbstractCapability, BatchModelRequests, CapabilityOrdering
from pydantic_ai.capabilities.abstract import ValidatedToolArgs, WrapToolExecuteHandler
from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError
from pydantic_ai.messages import FileUrl, ModelMessage, ModelRequest, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings, merge_model_settings
from pydantic_ai.tools import AgentDepsT, RunContext
from pydantic_ai.usage import RequestUsage

from goal_state.aio.store import AsyncGoalStore
from goal_state.errors import BudgetExceededError
from goal_state.paid_calls import AsyncPaidCall, Payer, prompt_tokens
from goal_state.paid_calls.refusals import refusal_as
from goal_state.store import GoalStore

__all__ = ["Budget", "UsageBudgetExceededError"]

# By their response's id: their provider goes on in the background, and says what they used later.
_Suspended: TypeAlias = dict[str, AsyncPaidCall]


class UsageBudgetExceededError(BudgetExceededError, UsageLimitExceeded):
    """A `BudgetExceededError` that is Pydantic AI's `UsageLimitExceeded` too. The call was not sent."""


@dataclass(init=False)
class Budget(AbstractCapability[AgentDepsT]):
    """A capability that has a goal pay for the model calls of an agent, each within what is left of it.

    Which goal: that of the thread of the argument; without one, that of the `store.spending` block around the
    run; else that of the run's `conversation_id`. The agents that a tool runs are paid by the same goal if
    they have a budget that names no thread, or with `child` by one below it.

    A call that is not left of a budget is not sent: the run ends with a `UsageBudgetExceededError`. Where
    little is left, the output is capped to it (`max_tokens`). A budget that is given to a run takes the place
    of the agent's.

    Args:
        store: a `GoalStore` or an `AsyncGoalStore`.
        thread_id: the thread whose goal pays.
        child: the name of a sub-agent. Its calls are paid by the goal of the thread `<thread>/<child>`, which
            is made, as a child of the thread's goal, when it is first needed.
        output_tokens: the cap of the output of a call whose settings have no `max_tokens`.

    Raises:
        InvalidValueError: an argument is out of its bounds.
    """

    id: str | None = "goal_state_budget"  # by which an agent has one: two would pay twice

    def __init__(
        self,
        store: GoalStore | AsyncGoalStore,
        *,
        thread_id: str | None = None,
        child: str | None = None,
        output_tokens: int = 4_096,
    ) -> None:
        self._payer = Payer(store, thread_id=thread_id, child=child, output_tokens=output_tokens)
        self._conversation_id: str | None = None
        self._suspended: _Suspended = {}

    async def for_run(self, ctx: RunContext[AgentDepsT]) -> AbstractCapability[AgentDepsT]:
        """The budget of one run, which knows its conversation."""
        of_run = copy(self)
        of_run._conversation_id = ctx.conversation_id
        return of_run

    def get_ordering(self) -> CapabilityOrdering:
        """Around what sends requests in batches, which passes over the models inside of it."""
        return CapabilityOrdering(wraps=(BatchModelRequests,))

    def get_wrapper_model(self, model: Model) -> Model:
        """The model, each of whose requests is held and paid."""
        if isinstance(model, FallbackModel):
            chain = copy(model)
            chain.models = [self.get_wrapper_model(each) for each in model.models]
            return chain
        return _HeldModel(model, self._payer, self._suspended, self._conversation_id)

    async def wrap_tool_execute(
        self,
        ctx: RunContext[AgentDepsT],
        *,
        args: ValidatedToolArgs,
        handler: WrapToolExecuteHandler,
        **_: Any,
    ) -> Any:
        """Has the agents that the tool runs be paid by the same goal."""
        with self._payer.spending(ctx.conversation_id):
            return await handler(args)


class _HeldModel(WrapperModel):
    def __init__(
        self, wrapped: Model, payer: Payer, suspended: _Suspended, thread_id: str | None
    ) -> None:
        super().__init__(wrapped)
        self._payer = payer
        self._suspended = suspended
        self._thread_id = thread_id

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        async with AsyncExitStack() as stack:
            paid = await self._begin(messages, model_settings, model_request_parameters)
            await stack.enter_async_context(paid)
            capped: ModelSettings = {**(model_settings or {}), "max_tokens": paid.output_tokens}
            try:
                response = await self.wrapped.request(messages, capped, model_request_parameters)
            except Exception as error:
                if _was_refused(error) and not _resumes(messages):
                    await paid.refused()
                raise
            await self._answered(paid, response, stack)
            return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        async with AsyncExitStack() as stack, AsyncExitStack() as opened:
            paid = await self._begin(messages, model_settings, model_request_parameters)
            await stack.enter_async_context(paid)
            capped: ModelSettings = {**(model_settings or {}), "max_tokens": paid.output_tokens}
            request = (messages, capped, model_request_parameters, run_context)
            try:
                response = await opened.enter_async_context(self.wrapped.request_stream(*request))
            except Exception as error:
                if _was_refused(error) and not _resumes(messages):
                    await paid.refused()
                raise
            try:
                yield response
            finally:
                known = response.get()
                if known.state in {"complete", "suspended"}:
                    await self._answered(paid, known, stack)
                else:  # waited for: a generator that is closed may do so, which the hold cannot tell
                    await paid.observed(_usage(known))
                    await paid.hold.cut()

    async def cancel_suspended_response(self, response: ModelResponse) -> None:
        if paid := self._suspended.pop(response.provider_response_id or "", None):
            await paid.hold.cut()
        await super().cancel_suspended_response(response)

    async def _begin(
        self,
        messages: Sequence[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> AsyncPaidCall:
        if (resumed := _resumes(messages)) and (paid := self._suspended.pop(resumed, None)):
            return paid
        cap = (merge_model_settings(self.wrapped.settings, settings) or {}).get("max_tokens")
        try:
            return await self._payer.begin_awaited(
                _prompt(messages, parameters),
                model=self.wrapped.model_name,
                output_tokens=cap or None,
                thread_id=self._thread_id,
            )
        except BudgetExceededError as error:
            raise refusal_as(UsageBudgetExceededError, error) from error

    async def _answered(
        self, paid: AsyncPaidCall, response: ModelResponse, stack: AsyncExitStack
    ) -> None:
        usage, response_id = _usage(response), response.provider_response_id
        if response.state == "suspended" and usage is None and response_id:
            self._suspended[response_id] = paid
            stack.pop_all()
        else:
            await paid.answered(usage, model=response.model_name, response_id=response_id)


def _resumes(messages: Sequence[ModelMessage]) -> str | None:
    """The id of the suspended response that a request goes on with, if it does."""
    if messages and isinstance(last := messages[-1], ModelResponse) and last.state == "suspended":
        return last.provider_response_id
    return None


def _usage(response: ModelResponse) -> RequestUsage | None:
    """What a response used, and the attempts that were rejected before it; None where it does not say."""
    if response.usage.unmeasured_requests or not response.usage.has_values():
        return None
    attempts = (attempt.usage for attempt in response.failed_attempts or ())
    return sum((attempt for attempt in attempts if attempt is not None), response.usage)


def _was_refused(error: Exception) -> bool:
    """Whether the provider took nothing: it said so before it began to answer, or was not reached."""
    if isinstance(error, ModelConnectionError):
        return error.phase in {"pool", "connect"}
    return isinstance(error, UserError) or (
        isinstance(error, ModelHTTPError) and not error.in_stream
    )


def _prompt(messages: Sequence[ModelMessage], parameters: ModelRequestParameters) -> int:
    """About how many tokens are sent: messages hold more than that, such as ids, times and usage."""
    instructions = [each.instructions for each in messages if isinstance(each, ModelRequest)]
    tools = (*parameters.function_tools, *parameters.output_tools)
    return prompt_tokens(
        [_sent(part) for message in messages for part in message.parts],
        parameters.instruction_parts or instructions[-1:],
        [(tool.name, tool.description, tool.parameters_json_schema) for tool in tools],
        parameters.output_object and parameters.output_object.json_schema,
    )


def _sent(part: object) -> tuple[object, ...]:
    content: Any = getattr(part, "content", None)
    items = cast("Sequence[object]", content if isinstance(content, (list, tuple)) else [content])
    files_as_bytes = [b"" if isinstance(item, FileUrl) else item for item in items]
    return getattr(part, "tool_name", None), getattr(part, "args", None), files_as_bytes
