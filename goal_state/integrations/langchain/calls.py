"""What a call of a LangChain model is: who pays, what it sends, and what its end says."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, cast

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables.config import (
    ensure_config,
    merge_configs,
    var_child_runnable_config,
)
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp

from goal_state.errors import BudgetExceededError
from goal_state.paid_calls import prompt_tokens
from goal_state.paid_calls.refusals import refusal_as, was_never_sent

CAPS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""What models call the cap of their output."""

_MEDIA: Final = frozenset({"audio", "file", "image", "image_url", "input_audio", "video"})

is_paid_for: Final = ContextVar("goal_state_langchain_is_paid_for", default=False)
"""Whether the middleware pays for the model call that is made here."""


class GraphBudgetExceededError(BudgetExceededError, GraphBubbleUp):
    """A `BudgetExceededError` that ends the graph: nothing in it tries again, or makes a message of it. The
    call was not sent.
    """


@contextmanager
def refusing() -> Generator[None]:
    """Has a refusal end the graph."""
    try:
        yield
    except BudgetExceededError as error:
        raise refusal_as(GraphBudgetExceededError, error) from error


class Observer(BaseCallbackHandler):
    """Adds up what a stream says on its way: a model in a graph may be streamed, and its caller not told."""

    run_inline = True

    def __init__(self) -> None:
        self.usage: UsageMetadata | None = None

    def on_llm_new_token(self, token: object, *, chunk: object = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Notes the usage that a chunk has."""
        self.usage = with_chunk(self.usage, chunk)


@contextmanager
def paid_for() -> Generator[Observer]:
    """Has callbacks leave alone the model call that is made inside, and observes it."""
    observer = Observer()
    observed = merge_configs(ensure_config(), {"callbacks": [observer]})
    config_before, before = var_child_runnable_config.set(observed), is_paid_for.set(True)
    try:
        yield observer
    finally:
        is_paid_for.reset(before)
        var_child_runnable_config.reset(config_before)


def with_chunk(usage: UsageMetadata | None, chunk: object) -> UsageMetadata | None:
    """A usage and what a chunk of the same stream adds to it."""
    message = getattr(chunk, "message", None)
    more = message.usage_metadata if isinstance(message, AIMessage) else None
    return add_usage(usage, more) if usage and more else more or usage


def graph_thread_id() -> str | None:
    """The `thread_id` of the graph that runs here."""
    thread_id = ensure_config().get("configurable", {}).get("thread_id")
    return None if thread_id is None else str(thread_id)


def said(messages: Sequence[BaseMessage]) -> dict[str, Any]:
    """What a response says of itself: the arguments of `PaidCall.answered`."""
    for message in messages:
        if isinstance(message, AIMessage) and (usage := message.usage_metadata):
            told = message.response_metadata
            model = told.get("model_name") or told.get("model")
            return {"usage": usage, "model": model, "response_id": told.get("id")}
    return {"usage": None}


def is_cached(messages: Sequence[BaseMessage]) -> bool:
    """Whether a response came from LangChain's cache, which repeats its usage at no cost."""
    usage: Mapping[str, Any] = said(messages)["usage"] or {}
    return usage.get("total_cost") == 0


def was_refused(error: BaseException) -> bool:
    """Whether the provider took nothing, as far as the errors of its SDK say so."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and status >= 400:
        return True
    return was_never_sent(error)


def sent_tokens(value: Any) -> int:
    """About how many tokens of messages, tools and what they hold are sent."""
    if isinstance(value, BaseMessage):
        calls = value.tool_calls if isinstance(value, AIMessage) else None
        return sent_tokens(value.content) + prompt_tokens(
            [(c["name"], c["args"]) for c in calls or ()]
        )
    if isinstance(value, BaseTool):
        return prompt_tokens(value.name, value.description, value.args)
    if isinstance(value, dict) and cast("dict[str, Any]", value).get("type") in _MEDIA:
        return prompt_tokens(b"")
    if isinstance(value, (list, tuple)):
        return sum(map(sent_tokens, cast("Sequence[Any]", value)))
    return prompt_tokens(cast("object", value))
