"""The OpenAI SDK: every chat completion and response that its client asks for is paid by a goal (extra
`openai`).

    client = metered(OpenAI(), store)
    with store.spending("thread-1"):
        client.responses.create(model="gpt-5", input="Ship the parser")
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar, cast

from openai import AsyncOpenAI, OpenAI, OpenAIError
from openai._models import FinalRequestOptions  # what its hooks take

from goal_state.aio.store import AsyncGoalStore
from goal_state.errors import InvalidValueError
from goal_state.paid_calls import Payer
from goal_state.paid_calls.contexts import Contexts
from goal_state.paid_calls.http import sent, sent_awaited
from goal_state.paid_calls.openai_api import Asked, paid_path
from goal_state.store import GoalStore

__all__ = ["metered"]

Client = TypeVar("Client", bound="OpenAI | AsyncOpenAI")

# The attempts that a call is about to send, one at the most; None inside a call that is not paid.
_WAITING: Final[ContextVar[list[tuple[Asked, Any]] | None]] = ContextVar(
    "goal_state_openai_waiting", default=None
)


def metered(
    client: Client,
    store: GoalStore | AsyncGoalStore,
    *,
    thread_id: str | None = None,
    child: str | None = None,
    output_tokens: int = 4_096,
) -> Client:
    """A client like the one that is given, whose completions and responses are paid by a goal; that one stays
    as it is. It is of a class of its own below the client's, and so are the copies that `with_options` makes.

    Each attempt to get one (`create`, `stream` and `parse` of `chat.completions` and `responses`, and
    `responses.compact`, with raw and with streaming responses) sets aside what it may use before it is sent,
    lowers the cap of the output where little is left (`max_output_tokens`; of a chat `max_completion_tokens`,
    or `max_tokens` where that is the one that is named) and is charged what the response says. An attempt
    that the provider refused costs nothing, also where the SDK tries again; one that was lost on the way, a
    time-out or a dropped connection, is charged as an estimate, since it may have been carried out. So is a
    stream that is broken off before its end, where the usage is, and a response that is made in the
    background.

    A streamed chat is asked for its usage (`stream_options`). Where the call does not ask for it, the chunk
    that has it, one without choices, is not shown.

    Everything else goes on unpaid: embeddings, images, sounds, files, models, batches, the older completions
    and assistants, realtime and other sockets.

    Args:
        client: an `OpenAI` or an `AsyncOpenAI` client, or one of its kind for another platform.
        store: a `GoalStore` or an `AsyncGoalStore`; either serves clients of both kinds.
        thread_id: the thread whose goal pays; without one, that of the `store.spending` block around a call,
            else the `conversation` of a response.
        child: the name of a sub-agent. Its calls are paid by the goal of the thread `<thread>/<child>`, which
            is made, as a child of the thread's goal, when it is first needed.
        output_tokens: the cap of the output of a call that names none itself.

    Raises:
        InvalidValueError: it is another client, or is metered already, or a value is out of its bounds.

    A call raises `BudgetExceededError` where a budget does not leave room for it; nothing was sent then.
    """
    if isinstance(client, (_Metered, _AsyncMetered)):
        raise InvalidValueError(
            "client",
            "is metered already, so that its calls would be paid twice: give the plain one",
        )
    if not isinstance(client, (OpenAI, AsyncOpenAI)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidValueError(
            "client", f"must be an OpenAI or an AsyncOpenAI, not {type(client).__name__}"
        )
    payer = Payer(store, thread_id=thread_id, child=child, output_tokens=output_tokens)
    paying = _Paying(payer, Contexts(), output_tokens)
    base = _Metered if isinstance(client, OpenAI) else _AsyncMetered
    # A class for each, so that the copies that the SDK makes by its client's class are paid likewise.
    kind = type(type(client).__name__, (base, type(client)), {"_paying": paying})
    copy: Any = client.copy()
    copy.__class__ = kind
    return cast("Client", copy)


class _Paying(NamedTuple):
    """Who pays for the calls of a client, and what they go on from."""

    payer: Payer
    contexts: Contexts
    output_tokens: int

    def asked(self, options: FinalRequestOptions) -> Asked | None:
        """What an attempt asks for; None where nobody pays for it."""
        path, body = paid_path(options.method, options.url), options.json_data
        if path is None or not isinstance(body, Mapping):
            return None
        whole = {**cast("Mapping[str, Any]", body), **(options.extra_json or {})}
        return Asked(path, whole, contexts=self.contexts, output_tokens=self.output_tokens)


class _Metered(OpenAI):
    """What a metered client does in the hooks that the SDK has for its own kinds of client."""

    _paying: _Paying

    def request(self, cast_to: Any, options: FinalRequestOptions, **streaming: Any) -> Any:
        waiting: list[tuple[Asked, Any]] = []
        before = _WAITING.set(waiting if paid_path(options.method, options.url) else None)
        try:
            return super().request(cast_to, options, **streaming)
        finally:
            _WAITING.reset(before)
            for _, unsent in waiting:
                unsent.refused()

    def _prepare_options(self, options: FinalRequestOptions) -> FinalRequestOptions:
        options = super()._prepare_options(options)
        waiting = _WAITING.get()
        if waiting is None or (asked := self._paying.asked(options)) is None:
            return options
        paid = self._paying.payer.begin(**asked.reservation())
        waiting.append((asked, paid))
        options.json_data, options.extra_json = asked.capped(paid.output_tokens), None
        return options

    def _send_request(self, request: Any, **sending: Any) -> Any:
        send = partial(super()._send_request, request, **sending)
        if not (waiting := _WAITING.get()):
            return send()
        asked, paid = waiting.pop()
        return sent(paid, send, asked.answer(), is_stream=asked.is_stream, unsent=OpenAIError)


class _AsyncMetered(AsyncOpenAI):
    """As `_Metered`, for asyncio."""

    _paying: _Paying

    async def request(self, cast_to: Any, options: FinalRequestOptions, **streaming: Any) -> Any:
        waiting: list[tuple[Asked, Any]] = []
        before = _WAITING.set(waiting if paid_path(options.method, options.url) else None)
        try:
            return await super().request(cast_to, options, **streaming)
        finally:
            _WAITING.reset(before)
            for _, unsent in waiting:
                await unsent.refused()

    async def _prepare_options(self, options: FinalRequestOptions) -> FinalRequestOptions:
        options = await super()._prepare_options(options)
        waiting = _WAITING.get()
        if waiting is None or (asked := self._paying.asked(options)) is None:
            return options
        paid = await self._paying.payer.begin_awaited(**asked.reservation())
        waiting.append((asked, paid))
        options.json_data, options.extra_json = asked.capped(paid.output_tokens), None
        return options

    async def _send_request(self, request: Any, **sending: Any) -> Any:
        send = partial(super()._send_request, request, **sending)
        if not (waiting := _WAITING.get()):
            return await send()
        asked, paid = waiting.pop()
        return await sent_awaited(
            paid, send, asked.answer(), is_stream=asked.is_stream, unsent=OpenAIError
        )
