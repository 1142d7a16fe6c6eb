"""The callback of the model calls of a graph or a chain."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, LLMResult

from goal_state.aio.store import AsyncGoalStore
from goal_state.domain.values import MAX_INTEGER
from goal_state.integrations.langchain.calls import (
    CAPS,
    graph_thread_id,
    is_cached,
    is_paid_for,
    refusing,
    said,
    sent_tokens,
    was_refused,
    with_chunk,
)
from goal_state.paid_calls import PaidCall, Payer
from goal_state.store import GoalStore

__all__ = ["BudgetCallback"]

_MOST_RUNS: Final = 4_096


class BudgetCallback(BaseCallbackHandler):
    """A callback that has a goal pay for the model calls of a graph or a chain, awaited or not.

    Which goal, and the arguments: as for `BudgetMiddleware`. A sub-graph has the callbacks of the graph
    around it; a callback of its own with a `child` takes its calls over.

    A call is held before it is sent, or refused with a `GraphBudgetExceededError`, and paid when it has
    ended. LangChain tells a callback less than a middleware: the output is not capped, so that a call may use
    more than it held; and where the task of a call is cancelled nobody says so, so that it is charged when
    its hold expires, after ten minutes: what its stream had said by then, else all of it as an estimate.
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
        serialized: dict[str, Any],  # noqa: ARG002
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
        serialized: dict[str, Any],  # noqa: ARG002
        prompts: list[str],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Holds what the call may use."""
        self._begin(run_id, prompts, kwargs.get("invocation_params") or {}, metadata or {})

    def on_llm_new_token(
        self,
        token: object,  # noqa: ARG002
        *,
        chunk: object = None,
        run_id: UUID,
        **kwargs: Any,
    ) -> None:
        """Notes what a stream says that it has used so far."""
        run = _RUNS.get(run_id)
        if run is not None and run.paid is not None and run.payer is self:
            usage = with_chunk(run.usage, chunk)
            if usage is not run.usage:
                run.usage = usage
                run.paid.observed(usage)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Pays for the call."""
        run = self._ended(run_id)
        if run is None or run.paid is None:
            return
        answers = _messages(response)
        with run.paid as paid:
            if is_cached(answers):
                paid.refused()
            elif answers:
                paid.answered(**said(answers))
            else:
                paid.answered((response.llm_output or {}).get("token_usage"))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Pays for what is known of a call that failed or was broken off."""
        run = self._ended(run_id)
        if run is None or run.paid is None:
            return
        usage = run.usage or said(_messages(kwargs.get("response")))["usage"]
        with run.paid as paid:
            if usage is None and was_refused(error):
                paid.refused()
            else:
                paid.observed(usage)

    def _begin(
        self, run_id: UUID, prompt: object, params: Mapping[str, Any], metadata: Mapping[str, Any]
    ) -> None:
        if is_paid_for.get():
            return
        run = _RUNS.setdefault(run_id, _Run())
        with run.lock:
            if run.paid is not None:
                if run.payer is None or run.payer._has_child or not self._has_child:
                    return
                run.paid.refused()
                run.paid = None
            caps = [*map(params.get, CAPS), metadata.get("ls_max_tokens")]
            try:
                with refusing():
                    run.paid = self._payer.begin(
                        sent_tokens(prompt),
                        model=metadata.get("ls_model_name"),
                        output_tokens=next((cap for cap in caps if isinstance(cap, int)), None),
                        least_output_tokens=MAX_INTEGER,
                        thread_id=metadata.get("thread_id") or graph_thread_id(),
                    )
            except BaseException:
                _RUNS.pop(run_id, None)
                raise
            run.payer = self
        if len(_RUNS) > _MOST_RUNS:  # nobody says that these have ended
            with suppress(RuntimeError):  # another thread changed it: that one sees to it
                _RUNS.pop(next(iter(_RUNS)), None)

    def _ended(self, run_id: UUID) -> _Run | None:
        """The run that has ended, if this callback pays for it."""
        run = _RUNS.get(run_id)
        if run is None or run.payer is not self:
            return None
        return _RUNS.pop(run_id, None)


@dataclass
class _Run:
    """A model's run, and which of the callbacks that see it pays for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    payer: BudgetCallback | None = None
    paid: PaidCall | None = None
    usage: UsageMetadata | None = None
    """What its stream has said so far."""


_RUNS: Final[dict[UUID, _Run]] = {}


def _messages(result: LLMResult | None) -> list[BaseMessage]:
    generations = [each for several in result.generations for each in several] if result else []
    return [each.message for each in generations if isinstance(each, ChatGeneration)]
