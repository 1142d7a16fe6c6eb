"""LangChain and LangGraph: model calls are held to the budgets of a goal, and paid by what they used.

    agent = create_agent(model, tools, middleware=[BudgetMiddleware(store)])
    agent.invoke(messages, {"configurable": {"thread_id": "thread-1"}})

For graphs and chains that call models by themselves there is a callback. It cannot cap an output, and is not
told of every cancellation:

    graph.invoke(state, {"callbacks": [BudgetCallback(store)], "configurable": {"thread_id": "thread-1"}})

With both, a call is paid once: the callback leaves alone what the middleware pays for.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, cast
from uuid import UUID

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.agents.structured_output import StructuredOutputError
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp

from goal_state.aio.store import AsyncGoalStore
from goal_state.domain.values import MAX_INTEGER
from goal_state.errors import BudgetExceededError
from goal_state.paid_calls import PaidCall, Payer, prompt_tokens
from goal_state.store import GoalStore

__all__ = ["BudgetCallback", "BudgetMiddleware", "GraphBudgetExceededError"]

_CAPS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_MEDIA: Final = frozenset({"audio", "file", "image", "image_url", "input_audio", "video"})
_MOST_RUNS: Final = 4_096
_is_paid_for: ContextVar[bool] = ContextVar("goal_state_langchain_is_paid_for", default=False)


class GraphBudgetExceededError(BudgetExceededError, GraphBubbleUp):
    """A `BudgetExceededError` that ends the graph: nothing in it tries again, or makes a message of it. The
    call was not sent.
    """


class BudgetMiddleware(AgentMiddleware[Any, Any, Any]):
    """A middleware that has a goal pay for the model calls of an agent, each within what is left of it.

    Which goal: that of the thread of the argument; without one, that of the `store.spending` block around the
    run; else that of LangGraph's `thread_id`, which the agents have too that a tool or a node of it calls.

    Name it last, next to the model: then each attempt of a retry or a fallback is a call of its own. A call
    that is not left of a budget is not sent: the run ends with a `GraphBudgetExceededError`. Where little is
    left, the output is capped to it (`max_tokens`). A call of which nobody knows what it used, such as one in
    a stream that was broken off, is charged as it was held, as an estimate.

    Args:
        store: a `GoalStore` or an `AsyncGoalStore`.
        thread_id: the thread whose goal pays.
        child: the name of a sub-agent. Its calls are paid by the goal of the thread `<thread>/<child>`, which
            is made, as a child of the thread's goal, when it is first needed.
        output_tokens: the cap of the output of a call whose model and settings have none.

    Raises:
        InvalidValueError: an argument is out of its bounds.
    """

    def __init__(
        self,
        store: GoalStore | AsyncGoalStore,
        *,
        thread_id: str | None = None,
        child: str | None = None,
        output_tokens: int = 4_096,
    ) -> None:
        super().__init__()
        self._payer = Payer(store, thread_id=thread_id, child=child, output_tokens=output_tokens)

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any]:
        """Holds, calls and pays."""
        with _refusing():
            paid = self._payer.begin(**_asked(request))
        with paid, _paid_for():
            try:
                response = handler(_capped(request, paid.output_tokens))
            except Exception as error:
                if _was_refused(error):
                    paid.refused()
                elif isinstance(error, StructuredOutputError):
                    paid.answered(**_said([error.ai_message]))
                raise
            if _is_cached(response.result):
                paid.refused()
            else:
                paid.answered(**_said(response.result))
            return response

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """As `wrap_model_call`, awaited."""
        with _refusing():
            paid = await self._payer.begin_awaited(**_asked(request))
        async with paid:
            with _paid_for():
                try:
                    response = await handler(_capped(request, paid.output_tokens))
                except Exception as error:
                    if _was_refused(error):
                        await paid.refused()
                    elif isinstance(error, StructuredOutputError):
                        await paid.answered(**_said([error.ai_message]))
                    raise
            if _is_cached(response.result):
                await paid.refused()
            else:
                await paid.answered(**_said(response.result))
            return response


class BudgetCallback(BaseCallbackHandler):
    """A callback that has a goal pay for the model calls of a graph or a chain, awaited or not.

    Which goal, and the arguments: as for `BudgetMiddleware`. A sub-graph has the callbacks of the graph around
    it; one with a `child` of its own takes its calls over.

    A call is held before it is sent, or refused with a `GraphBudgetExceededError`, and paid when it has ended.
    LangChain tells a callback less than a middleware: the output is not capped, so that a call may use more
    than it held; and where the task of a call is cancelled nobody says so, so that its hold is charged, as an
    estimate, when it expires after ten minutes.
    """

    raise_error = True  # else a refusal would be logged, and the call sent
    # On asyncio LangChain then calls it on another thread and waits for that, so that no loop is blocked. The
    # errors of an async handler would be lost wherever a node is not async itself.
    run_inline = False

    def __init__(
        self,
        store: GoalStore | AsyncGoalStore,
        *,
        thread_id: str | None = None,
        child: str | None = None,
        output_tokens: int = 4_096,
    ) -> None:
        self._payer = Payer(store, thread_id=thread_id, child=child, output_tokens=output_tokens)
        self._has_child = child is not None

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Holds what the call may use."""
        params: Mapping[str, Any] = kwargs.get("invocation_params") or {}
        self._begin(run_id, [messages, params.get("tools")], params, metadata or {})

    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Holds what the call may use."""
        self._begin(run_id, prompts, kwargs.get("invocation_params") or {}, metadata or {})

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Pays for the call."""
        if (paid := self._ended(run_id)) is None:
            return
        with paid:
            answers = _messages(response)
            if _is_cached(answers):
                paid.refused()
            elif answers:
                paid.answered(**_said(answers))
            else:
                paid.answered((response.llm_output or {}).get("token_usage"))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Pays for what is known of a call that failed or was broken off."""
        if (paid := self._ended(run_id)) is None:
            return
        with paid:
            begun = _messages(cast("LLMResult | None", kwargs.get("response")))
            if begun:
                paid.observed(_said(begun)["usage"])
            elif _was_refused(error):
                paid.refused()

    def _begin(
        self, run_id: UUID, prompt: object, params: Mapping[str, Any], metadata: Mapping[str, Any]
    ) -> None:
        if _is_paid_for.get():
            return
        run = _RUNS.setdefault(run_id, _Run())
        with run.lock:
            if run.paid is not None:
                if run.payer is None or run.payer._has_child or not self._has_child:
                    return
                run.paid.refused()
                run.paid = None
            cap = next((params[name] for name in _CAPS if params.get(name)), None)
            try:
                with _refusing():
                    run.paid = self._payer.begin(
                        _prompt(prompt),
                        model=metadata.get("ls_model_name"),
                        output_tokens=cap,
                        least_output_tokens=MAX_INTEGER,
                        thread_id=metadata.get("thread_id") or _thread_id(),
                    )
            except BaseException:
                _RUNS.pop(run_id, None)
                raise
            run.payer = self
        while len(_RUNS) > _MOST_RUNS:  # those that nobody says have ended
            _RUNS.pop(next(iter(_RUNS)), None)

    def _ended(self, run_id: UUID) -> PaidCall | None:
        """The call that has ended, if this callback pays for it."""
        run = _RUNS.get(run_id)
        if run is None or run.payer is not self:
            return None
        del _RUNS[run_id]
        return run.paid


@dataclass
class _Run:
    """A model's run, and which of the callbacks that see it pays for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    payer: BudgetCallback | None = None
    paid: PaidCall | None = None


_RUNS: Final[dict[UUID, _Run]] = {}


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except BudgetExceededError as error:
        refusal = GraphBudgetExceededError(str(error))
        refusal.__dict__.update(error.__dict__)
        raise refusal from error


@contextmanager
def _paid_for() -> Iterator[None]:
    before = _is_paid_for.set(True)
    try:
        yield
    finally:
        _is_paid_for.reset(before)


def _asked(request: ModelRequest[Any]) -> dict[str, Any]:
    """The arguments of `Payer.begin`."""
    model, settings = request.model, request.model_settings
    caps = [settings.get(name) or getattr(model, name, None) for name in _CAPS]
    names = [getattr(model, name, None) for name in ("model_name", "model")]
    return {
        "prompt_tokens": _prompt([request.system_message, request.messages, request.tools]),
        "model": next((name for name in names if isinstance(name, str)), None),
        "output_tokens": next((cap for cap in caps if isinstance(cap, int)), None),
        "thread_id": _thread_id(),
    }


def _capped(request: ModelRequest[Any], output_tokens: int) -> ModelRequest[Any]:
    settings, model = request.model_settings, request.model
    named = [name for name in _CAPS if name in settings] or [n for n in _CAPS if hasattr(model, n)]
    cap = {(named or _CAPS)[0]: output_tokens}
    return request.override(model_settings={**settings, **cap})


def _thread_id() -> str | None:
    """The `thread_id` of the graph that runs here."""
    thread_id = ensure_config().get("configurable", {}).get("thread_id")
    return None if thread_id is None else str(thread_id)


def _messages(result: LLMResult | None) -> list[BaseMessage]:
    generations = [each for several in result.generations for each in several] if result else []
    return [each.message for each in generations if isinstance(each, ChatGeneration)]


def _said(messages: Sequence[BaseMessage]) -> dict[str, Any]:
    """What a response says of itself: the arguments of `PaidCall.answered`."""
    for message in messages:
        if isinstance(message, AIMessage) and (usage := message.usage_metadata):
            told = message.response_metadata
            model = told.get("model_name") or told.get("model")
            return {"usage": usage, "model": model, "response_id": told.get("id")}
    return {"usage": None}


def _is_cached(messages: Sequence[BaseMessage]) -> bool:
    usage: Mapping[str, Any] = _said(messages)["usage"] or {}
    return usage.get("total_cost") == 0


def _was_refused(error: BaseException) -> bool:
    """Whether the provider took nothing, as far as the errors of its SDK say so."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and status >= 400:
        return True
    causes = [error, error.__cause__, error.__cause__ and error.__cause__.__cause__]
    return any(type(each).__name__ in {"ConnectError", "ConnectTimeout"} for each in causes)


def _prompt(value: Any) -> int:
    """About how many tokens of messages, tools and what they hold are sent."""
    if isinstance(value, BaseMessage):
        calls = value.tool_calls if isinstance(value, AIMessage) else None
        return _prompt(value.content) + prompt_tokens([(c["name"], c["args"]) for c in calls or ()])
    if isinstance(value, BaseTool):
        return prompt_tokens(value.name, value.description, value.args)
    if isinstance(value, dict) and cast("dict[str, Any]", value).get("type") in _MEDIA:
        return prompt_tokens(b"")
    if isinstance(value, (list, tuple)):
        return sum(map(_prompt, cast("Sequence[Any]", value)))
    return prompt_tokens(cast("object", value))
