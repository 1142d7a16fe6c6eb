"""The Anthropic SDK: every message that its client asks for is paid by a goal (extra `anthropic`).

client = metered(Anthropic(), store)
with store.spending("thread-1"):
    client.messages.create(model="claude-sonnet-4-6", max_tokens=1_000, messages=[…])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar, cast, runtime_checkable

import httpx2
from anthropic import (
    APIRequest,
    APIResponse,
    AsyncAPIResponse,
    AsyncCallNext,
    CallNext,
    Middleware,
    MiddlewareInput,
)

from goal_state.aio.store import AsyncGoalStore
from goal_state.errors import InvalidValueError
from goal_state.paid_calls import Payer, prompt_tokens
from goal_state.paid_calls.events import Answer
from goal_state.paid_calls.http import sent, sent_awaited
from goal_state.store import GoalStore

__all__ = ["metered"]

_LEAST_TEXT_TOKENS: Final = 256
_BYTES_PER_TOKEN: Final = 3
_TOOLS_TOKENS: Final = 350
"""What the provider adds to the prompt of a request that has tools."""


@runtime_checkable
class _Extensible(Protocol):
    """A client of the SDK's, for whatever platform."""

    @property
    def middleware(self) -> tuple[MiddlewareInput, ...]: ...

    def with_middleware(self, *middleware: MiddlewareInput) -> Self: ...


Client = TypeVar("Client", bound=_Extensible)


def metered(
    client: Client,
    store: GoalStore | AsyncGoalStore,
    *,
    thread_id: str | None = None,
    child: str | None = None,
    output_tokens: int = 4_096,
) -> Client:
    """A client like the one that is given, whose messages are paid by a goal; that one stays as it is.

    Each attempt to get a message (`messages.create`, `stream` and `parse`, the same in `beta`, with raw and
    with streaming responses, and what a tool runner asks for) sets aside what it may use before it is sent,
    lowers `max_tokens` where little is left, never to what `thinking` needs, and is charged what the response
    says. An attempt that the provider refused costs nothing, also where the SDK tries again; one that was
    lost on the way, a time-out or a dropped connection, is charged as an estimate, since it may have been
    carried out. A stream that is broken off is charged the input that it began with and an estimate of the
    output that came.

    Everything else goes on unpaid: counting tokens, batches, files, models, sessions. What a stream of
    Bedrock's says is not read, so that its hold is charged as it is.

    Args:
        client: an `Anthropic` or an `AsyncAnthropic` client, or one of the SDK's for another platform.
        store: a `GoalStore` or an `AsyncGoalStore`; either serves clients of both kinds.
        thread_id: the thread whose goal pays; without one, that of the `store.spending` block around a call.
        child: the name of a sub-agent. Its calls are paid by the goal of the thread `<thread>/<child>`, which
            is made, as a child of the thread's goal, when it is first needed.
        output_tokens: the cap of the output of a message that names none itself.

    Raises:
        InvalidValueError: it is another client, or is metered already, or a value is out of its bounds.

    A call raises `BudgetExceededError` where a budget does not leave room for it; nothing was sent then.
    """
    if not isinstance(client, _Extensible):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidValueError(
            "client", f"must be an Anthropic or an AsyncAnthropic, not {type(client).__name__}"
        )
    if any(isinstance(each, _Paying) for each in client.middleware):
        raise InvalidValueError(
            "client",
            "is metered already, so that its calls would be paid twice: give the plain one",
        )
    payer = Payer(store, thread_id=thread_id, child=child, output_tokens=output_tokens)
    return client.with_middleware(_Paying(payer))


class _Asked(NamedTuple):
    """What a request for a message asks for."""

    body: Mapping[str, Any]
    is_stream: bool

    @classmethod
    def of(cls, request: APIRequest) -> _Asked | None:
        """None where it is for something else."""
        path = request.url.partition("?")[0].rstrip("/")
        body = cast("object", request.options.json_data)
        if request.method.lower() != "post" or not path.endswith("/v1/messages"):
            return None
        if not isinstance(body, Mapping):
            return None
        message = cast("Mapping[str, Any]", body)
        return cls(message, bool(message.get("stream")))

    def reservation(self) -> dict[str, Any]:
        """The arguments of `Payer.begin`."""
        body = self.body
        thinking: Mapping[str, Any] = body.get("thinking") or {}
        for_thinking = thinking.get("budget_tokens") or 0
        return {
            "prompt_tokens": prompt_tokens(
                body.get("system"), body.get("messages"), body.get("tools")
            )
            + (_TOOLS_TOKENS if body.get("tools") else 0),
            "model": body.get("model"),
            "output_tokens": body.get("max_tokens"),
            # `max_tokens` has to be above what is left for thinking.
            "least_output_tokens": for_thinking + _LEAST_TEXT_TOKENS,
        }

    def capped(self, request: APIRequest, output_tokens: int) -> APIRequest:
        """The request with a cap of the output."""
        return request.copy(body={**self.body, "max_tokens": output_tokens})


class _Message(Answer):
    """A message, whole or streamed."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, Any] = {}
        self._output_bytes = 0
        self._estimated_bytes = 0

    def take(self, event: Mapping[str, Any]) -> bool:
        match event.get("type"):
            case "message_start":
                message: Mapping[str, Any] = event.get("message") or {}
                self.model, self.response_id = message.get("model"), message.get("id")
                self._update(message.get("usage"))
            case "message_delta":
                self._output_bytes = 0
                self._update(event.get("usage"))
            case "content_block_delta":
                self._estimate(event.get("delta") or {})
            case "message_stop":
                self.is_complete = True
            case _:
                pass
        return True

    def _estimate(self, delta: Mapping[str, Any]) -> None:
        """Adds to the output, of which a message only says at its end how many tokens it was."""
        self._output_bytes += sum(
            len(part.encode(errors="replace"))
            for name, part in delta.items()
            if name != "type" and isinstance(part, str)
        )
        if self._output_bytes > 1.1 * self._estimated_bytes:  # each time would take time
            self._update(None)

    def _update(self, usage: Mapping[str, Any] | None) -> None:
        known = {name: value for name, value in (usage or {}).items() if value is not None}
        self._said.update(known)
        if not self._said:
            return
        self._estimated_bytes = self._output_bytes
        estimated = -(-self._output_bytes // _BYTES_PER_TOKEN)
        said = self._said.get("output_tokens", 0)
        self.usage = {**self._said, "output_tokens": max(said, estimated)}


class _Paying(Middleware):
    """Pays for each attempt to get a message."""

    def __init__(self, payer: Payer) -> None:
        self._payer = payer

    def handle(self, request: APIRequest, call_next: CallNext) -> APIResponse[Any]:
        asked = _Asked.of(request)
        if asked is None:
            return call_next(request)
        paid = self._payer.begin(**asked.reservation())
        responses: list[APIResponse[Any]] = []

        def send() -> httpx2.Response:
            responses.append(call_next(asked.capped(request, paid.output_tokens)))
            return responses[0].http_response

        raw = sent(paid, send, _Message(), is_stream=asked.is_stream)
        responses[0].http_response = raw
        return responses[0]

    async def handle_async(
        self, request: APIRequest, call_next: AsyncCallNext
    ) -> AsyncAPIResponse[Any]:
        asked = _Asked.of(request)
        if asked is None:
            return await call_next(request)
        paid = await self._payer.begin_awaited(**asked.reservation())
        responses: list[AsyncAPIResponse[Any]] = []

        async def send() -> httpx2.Response:
            responses.append(await call_next(asked.capped(request, paid.output_tokens)))
            return responses[0].http_response

        raw = await sent_awaited(paid, send, _Message(), is_stream=asked.is_stream)
        responses[0].http_response = raw
        return responses[0]
