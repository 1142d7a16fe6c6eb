"""The OpenAI Agents SDK: a model whose every call is held to a goal's budgets, and paid by what it used.

    agent = Agent(name="Writer", model=metered("gpt-5.2", store))
    with store.spending("thread-1"):
        result = await Runner.run(agent, "Write the report")

Before a call its prompt and the cap of its output are set aside. A call that the budgets have no room for is
not sent, and the run ends with a `RunBudgetExceededError`. Handoffs and agents as tools call models of their
own: give each agent one that is metered, or a run one for all of its agents, `RunConfig(model=metered(…))`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any, Final, cast

from agents import AgentsException, FunctionTool, MultiProvider, UserError
from agents.items import ModelResponse, TResponseStreamEvent
from agents.model_settings import ModelSettings
from agents.models.interface import Model
from agents.retry import ModelRetryAdvice, ModelRetryAdviceRequest
from agents.tracing import get_current_trace
from openai import APIConnectionError, APIStatusError

from goal_state.aio.store import AsyncGoalStore
from goal_state.domain.usage import TokenUsage
from goal_state.errors import BudgetExceededError, InvalidValueError
from goal_state.paid_calls import AsyncPaidCall, Payer, prompt_tokens
from goal_state.paid_calls.contexts import Contexts
from goal_state.paid_calls.refusals import refusal_as, was_never_sent
from goal_state.store import GoalStore

__all__ = ["RunBudgetExceededError", "metered"]

# What the SDK fills in where a provider names no response (chat completions, streamed), and what its
# `ScriptedModel` calls each of its responses.
_NO_IDS: Final = frozenset({"__fake_id__", "resp-789"})
_ENDS_OF_STREAMS: Final = frozenset(
    {"response.completed", "response.incomplete", "response.failed"}
)
_REQUEST: Final = inspect.signature(Model.get_response)


class RunBudgetExceededError(BudgetExceededError, AgentsException):
    """A model call of a run needs more than is left of a budget, and was not sent: what `Runner` raises.

    It has the figures of a `BudgetExceededError`, and the `run_data` of the SDK's exceptions.
    """


def metered(
    model: Model | str,
    store: GoalStore | AsyncGoalStore,
    *,
    thread_id: str | None = None,
    child: str | None = None,
    output_tokens: int = 4_096,
) -> Model:
    """A model that pays from a goal's budgets for each call, streamed or not: `Agent(model=metered(…))`.

    The thread is that of the argument; without one, that of the `store.spending` block around the run; else
    the run's `conversation_id`, else its `RunConfig(group_id=…)` (which shows only where tracing is on).

    A response is paid under the id that its provider gave it: the same one again, out of a cache below this
    model or charged by the host too, costs nothing more. One that has no id of its own, or a placeholder of
    the SDK's, is paid each time. A fake that gives all its responses one id looks like a repetition where
    they use the same: have it give None.

    The SDK's retries are calls of their own. Nothing is paid where the provider refused a call or was not
    reached; one that was cut (a time-out, `result.cancel()`) is paid in full, as an estimate.

    Args:
        model: a model of the SDK, or a name, which the SDK's default provider resolves at the first call. The
            settings that a name implies (`get_default_model_settings`) are then the agent's to give.
        store: a `GoalStore` or an `AsyncGoalStore`.
        thread_id: the thread whose goal pays.
        child: the name of a sub-agent. Its calls are paid by the goal of the thread `<thread>/<child>`, which
            is made, as a child of the thread's goal, when it is first needed.
        output_tokens: the cap of the output of a call whose `ModelSettings.max_tokens` names none.

    Raises:
        InvalidValueError: an argument is out of its bounds.
    """
    if not isinstance(model, (Model, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidValueError(
            "model", f"must be a Model of the Agents SDK or a name, not {type(model).__name__}"
        )
    payer = Payer(store, thread_id=thread_id, child=child, output_tokens=output_tokens)
    return _MeteredModel(model, payer)


class _MeteredModel(Model):
    def __init__(self, model: Model | str, payer: Payer) -> None:
        self._given = model
        self._payer = payer
        self._contexts = Contexts()

    @property
    def _model(self) -> Model:
        if isinstance(self._given, str):
            self._given = MultiProvider().get_model(self._given)
        return self._given

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        request = _REQUEST.bind(self, *args, **kwargs)
        async with await self._begin(request) as paid:
            try:
                response = await self._model.get_response(*request.args[1:], **request.kwargs)
            except Exception as error:
                if _was_not_taken(error):
                    await paid.refused()
                raise
            await self._answered(paid, request, response.usage, response.response_id)
        return response

    async def stream_response(
        self, *args: Any, **kwargs: Any
    ) -> AsyncIterator[TResponseStreamEvent]:
        request = _REQUEST.bind(self, *args, **kwargs)
        async with await self._begin(request) as paid:
            settings: ModelSettings = request.arguments["model_settings"]
            if (
                settings.include_usage is None
            ):  # else many providers of chat completions stream none
                settings = settings.resolve(ModelSettings(include_usage=True))
                request.arguments["model_settings"] = settings
            has_begun = False
            stream = self._model.stream_response(*request.args[1:], **request.kwargs)
            try:
                async for event in stream:
                    has_begun = True
                    if getattr(event, "type", None) in _ENDS_OF_STREAMS:
                        # Now: whoever is handed the end may not ask for more.
                        response = cast("Any", event).response
                        await self._answered(paid, request, response.usage, response.id)
                    yield event
            except Exception as error:
                if not has_begun and _was_not_taken(error):
                    await paid.refused()
                raise
            finally:
                if (close := getattr(stream, "aclose", None)) is not None:
                    await close()

    async def _begin(self, request: inspect.BoundArguments) -> AsyncPaidCall:
        """Sets aside what a request may use, and writes the cap of its output into it."""
        asked = request.arguments
        model: object = getattr(self._model, "model", None)
        settings: ModelSettings = asked["model_settings"]
        kept = asked["previous_response_id"] or asked["conversation_id"]
        try:
            paid = await self._payer.begin_awaited(
                self._contexts.tokens(kept) + prompt_tokens(*_written(asked)),
                model=model if isinstance(model, str) else None,
                output_tokens=settings.max_tokens,
                thread_id=asked["conversation_id"] or _group_id(),
            )
        except BudgetExceededError as error:
            raise refusal_as(RunBudgetExceededError, error) from error
        asked["model_settings"] = settings.resolve(ModelSettings(max_tokens=paid.output_tokens))
        return paid

    async def _answered(
        self,
        paid: AsyncPaidCall,
        request: inspect.BoundArguments,
        usage: object,
        response_id: str | None,
    ) -> None:
        if response_id in _NO_IDS:
            response_id = None
        await paid.answered(usage, response_id=response_id)
        try:
            known = TokenUsage.of(usage)
        except InvalidValueError:
            return
        self._contexts.remember(
            known.input_tokens + known.output_tokens,
            response_id,
            request.arguments["conversation_id"],
        )

    # What else a model of the SDK has is the other model's.

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        if isinstance(request.error, RunBudgetExceededError):
            return ModelRetryAdvice(
                suggested=request.error.waiting_helps, replay_safety="safe", reason="over budget"
            )
        return self._model.get_retry_advice(request)

    async def close(self) -> None:
        await self._model.close()

    async def _cleanup_on_run_end(self, owner: object) -> None:
        await self._model._cleanup_on_run_end(owner)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._model, name)


def _written(asked: dict[str, Any]) -> list[object]:
    """What is written into a request for the model to read."""
    written = [asked["system_instructions"], asked["input"], asked["prompt"]]
    for tool in asked["tools"]:
        if isinstance(tool, FunctionTool):
            written += tool.name, tool.description, tool.params_json_schema
        else:
            written.append(tool)
    for handoff in asked["handoffs"]:
        written += handoff.tool_name, handoff.tool_description, handoff.input_json_schema
    schema = asked["output_schema"]
    if schema is not None and not schema.is_plain_text():
        written.append(schema.json_schema())
    return written


def _group_id() -> str | None:
    group_id: object = getattr(get_current_trace(), "group_id", None)
    return group_id if isinstance(group_id, str) and group_id else None


def _was_not_taken(error: Exception) -> bool:
    """Whether an error says that the provider has not begun to answer."""
    if isinstance(error, APIConnectionError):
        return was_never_sent(error)
    # The SDK raises a UserError as it puts a request together.
    return isinstance(error, (APIStatusError, UserError))
