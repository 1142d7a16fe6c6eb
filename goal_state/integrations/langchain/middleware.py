"""The middleware of an agent's model calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.agents.structured_output import StructuredOutputError

from goal_state.aio.store import AsyncGoalStore
from goal_state.integrations.langchain.calls import (
    CAPS,
    graph_thread_id,
    is_cached,
    paid_for,
    refusing,
    said,
    sent_tokens,
    was_refused,
)
from goal_state.paid_calls import Payer
from goal_state.store import GoalStore

__all__ = ["BudgetMiddleware"]


class BudgetMiddleware(AgentMiddleware[Any, Any, Any]):
    """A middleware that has a goal pay for the model calls of an agent, each within what is left of it.

    Which goal: that of the thread of the argument; without one, that of the `store.spending` block around the
    run; else that of LangGraph's `thread_id`, which the agents have too that a tool or a node of it calls.

    Name it last, next to the model: then each attempt of a retry or a fallback is a call of its own. A call
    that is not left of a budget is not sent: the run ends with a `GraphBudgetExceededError`. Where little is
    left, the output is capped to it (`max_tokens`).

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
        with refusing():
            paid = self._payer.begin(**_asked(request))
        with paid, paid_for() as stream:
            try:
                response = handler(_capped(request, paid.output_tokens))
            except BaseException as error:
                if isinstance(error, StructuredOutputError):
                    paid.answered(**said([error.ai_message]))
                elif stream.usage is None and was_refused(error):
                    paid.refused()
                else:
                    paid.observed(stream.usage)
                raise
            if is_cached(response.result):
                paid.refused()
            else:
                paid.answered(**said(response.result))
            return response

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """As `wrap_model_call`, awaited."""
        with refusing():
            paid = await self._payer.begin_awaited(**_asked(request))
        async with paid:
            with paid_for() as stream:
                try:
                    response = await handler(_capped(request, paid.output_tokens))
                except (Exception, asyncio.CancelledError) as error:
                    if isinstance(error, StructuredOutputError):
                        await paid.answered(**said([error.ai_message]))
                    elif stream.usage is None and was_refused(error):
                        await paid.refused()
                    else:
                        await paid.observed(stream.usage)
                    raise
            if is_cached(response.result):
                await paid.refused()
            else:
                await paid.answered(**said(response.result))
            return response


def _asked(request: ModelRequest[Any]) -> dict[str, Any]:
    """The arguments of `Payer.begin`."""
    model, settings = request.model, request.model_settings
    caps = [settings.get(name) or getattr(model, name, None) for name in CAPS]
    names = [getattr(model, name, None) for name in ("model_name", "model")]
    return {
        "prompt_tokens": sent_tokens([request.system_message, request.messages, request.tools]),
        "model": next((name for name in names if isinstance(name, str)), None),
        "output_tokens": next((cap for cap in caps if isinstance(cap, int)), None),
        "thread_id": graph_thread_id(),
    }


def _capped(request: ModelRequest[Any], output_tokens: int) -> ModelRequest[Any]:
    settings, model = request.model_settings, request.model
    named = [name for name in CAPS if name in settings] or [n for n in CAPS if hasattr(model, n)]
    cap = {(named or CAPS)[0]: output_tokens}
    return request.override(model_settings={**settings, **cap})
