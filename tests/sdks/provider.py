"""A provider of models that is none: it answers Anthropic's messages and OpenAI's chat completions and
responses over a mock transport, and keeps a ledger of its own, which is the truth.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from goal_state import TokenUsage

__all__ = ["Entry", "Provider", "Reply", "TokenUsage"]

DEFAULT = TokenUsage(100, output_tokens=20)


@dataclass(frozen=True)
class Reply:
    """What the provider is to do with a request.

    Attributes:
        usage: what it uses; `DEFAULT` where it does not say.
        text: what is said.
        tools: the tools that are to be called, with their arguments.
        status: the HTTP status; from 400 on the request is refused and costs nothing.
        error: what the transport raises instead of an answer, made for the request.
        carried_out: whether the model had answered before `error`, and is paid.
        breaks_after: after how many events of a stream, or bytes of another answer, the connection breaks.
        hangs_after: after how many events of a stream nothing more comes (asyncio).
        before: called before the request is answered (asyncio: a coroutine function, too).
        delay_seconds: how long it takes.
        response_id: its id; a new one where it does not say.
        says_usage: whether the response says what it used.
        headers: of the response, besides.
    """

    usage: TokenUsage = DEFAULT
    text: str = "All is well."
    tools: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    status: int = 200
    error: Callable[..., Exception] | None = None
    carried_out: bool = False
    breaks_after: int | None = None
    hangs_after: int | None = None
    before: Callable[[], Any] | None = None
    delay_seconds: float = 0.0
    response_id: str | None = None
    says_usage: bool = True
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Entry:
    """What the provider answered, and charges for."""

    response_id: str
    model: str
    path: str
    usage: TokenUsage


class Provider:
    """The provider: `script` says what becomes of the next requests, `always` of those after it.

    Attributes:
        requests: the body of every request that came, and `paths` where it went.
        ledger: what was answered.
    """

    def __init__(
        self, *script: Reply, always: Reply | Callable[[Mapping[str, Any]], Reply] = Reply()
    ) -> None:
        self.script = deque(script)
        self.always = always
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.ledger: list[Entry] = []
        self._lock = threading.Lock()

    @property
    def tokens(self) -> int:
        """All the uncached tokens of the ledger."""
        return sum(entry.usage.goal_tokens for entry in self.ledger)

    @property
    def all_tokens(self) -> int:
        """All the tokens of the ledger, cached ones too."""
        return sum(entry.usage.input_tokens + entry.usage.output_tokens for entry in self.ledger)

    def client(self) -> httpx2.Client:
        return httpx2.Client(transport=httpx2.MockTransport(self._answer))

    def async_client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.MockTransport(self._answer_awaited))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        number, reply, body = self._next(request)
        if reply.before is not None:
            reply.before()
        time.sleep(reply.delay_seconds)
        return self._respond(request, number, reply, body)

    async def _answer_awaited(self, request: httpx2.Request) -> httpx2.Response:
        number, reply, body = self._next(request)
        if reply.before is not None and (waiting := reply.before()) is not None:
            await waiting
        await asyncio.sleep(reply.delay_seconds)
        return self._respond(request, number, reply, body)

    def _next(self, request: httpx2.Request) -> tuple[int, Reply, dict[str, Any]]:
        body = json.loads(request.content or b"{}")
        with self._lock:
            self.requests.append(body)
            self.paths.append(request.url.path)
            if self.script:
                reply = self.script.popleft()
            else:
                reply = self.always if isinstance(self.always, Reply) else self.always(body)
            return len(self.requests), reply, body

    def _respond(
        self, request: httpx2.Request, number: int, reply: Reply, body: dict[str, Any]
    ) -> httpx2.Response:
        path = request.url.path
        headers = dict(reply.headers or {})
        if reply.status >= 400:
            error = {"type": "error", "error": {"type": "api_error", "message": "refused"}}
            headers.setdefault("retry-after-ms", "1")
            return httpx2.Response(reply.status, json=error, headers=headers)
        entry = Entry(
            reply.response_id or f"response-{number}", body.get("model", ""), path, reply.usage
        )
        if reply.error is None or reply.carried_out:
            with self._lock:
                self.ledger.append(entry)
        if reply.error is not None:
            raise reply.error("broken", request=request)
        if path.endswith("/embeddings"):
            return httpx2.Response(200, json=_EMBEDDINGS)
        shape = next(shape for end, shape in _SHAPES.items() if path.endswith(end))
        if body.get("stream"):
            headers.setdefault("content-type", "text/event-stream")
            events = list(shape.events(entry, reply, body))
            return httpx2.Response(200, headers=headers, stream=_Parts(events, reply))
        text = json.dumps(shape.whole(entry, reply)).encode()
        headers.setdefault("content-type", "application/json")
        parts = [text[:40], text[40:]]
        return httpx2.Response(200, headers=headers, stream=_Parts(parts, reply))


class _Parts(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body in parts, whose connection may break or hang after some of them."""

    def __init__(self, parts: list[bytes], reply: Reply) -> None:
        self._parts = parts
        self._reply = reply

    def __iter__(self) -> Iterator[bytes]:
        for number, part in enumerate(self._parts):
            if number == self._reply.breaks_after:
                raise httpx2.ReadError("the connection broke")
            yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, part in enumerate(self):
            await asyncio.sleep(60 if number == self._reply.hangs_after else 0)
            yield part


_EMBEDDINGS: dict[str, Any] = {
    "object": "list",
    "model": "embedder",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
    "usage": {"prompt_tokens": 5, "total_tokens": 5},
}


def _event(data: Mapping[str, Any], *, named: bool = True) -> bytes:
    name = f"event: {data['type']}\n" if named else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


def _words(text: str) -> list[str]:
    return [word + " " for word in text.split(" ")]


class _Messages:
    """Anthropic's messages."""

    @staticmethod
    def usage(usage: TokenUsage) -> dict[str, Any]:
        read, written = usage.cached_input_tokens, usage.cache_write_input_tokens
        return {
            "input_tokens": usage.input_tokens - read - written,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written,
                "ephemeral_1h_input_tokens": 0,
            },
            "output_tokens": usage.output_tokens,
            "service_tier": "standard",
        }

    @classmethod
    def whole(cls, entry: Entry, reply: Reply) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": reply.text}]
        for number, (name, arguments) in enumerate(reply.tools):
            content.append(
                {"type": "tool_use", "id": f"call-{number}", "name": name, "input": arguments}
            )
        message = {
            "id": entry.response_id,
            "type": "message",
            "role": "assistant",
            "model": entry.model,
            "content": content,
            "stop_reason": "tool_use" if reply.tools else "end_turn",
            "stop_sequence": None,
        }
        return message | ({"usage": cls.usage(entry.usage)} if reply.says_usage else {})

    @classmethod
    def events(cls, entry: Entry, reply: Reply, body: Mapping[str, Any]) -> Iterator[bytes]:
        whole = cls.whole(entry, reply)
        begun = {**whole, "content": [], "stop_reason": None}
        if reply.says_usage:
            begun["usage"] = {**whole["usage"], "output_tokens": 1}
        yield _event({"type": "message_start", "message": begun})
        for index, block in enumerate(whole["content"]):
            if block["type"] == "text":
                empty, deltas = (
                    {**block, "text": ""},
                    [{"type": "text_delta", "text": word} for word in _words(block["text"])],
                )
            else:
                empty, deltas = (
                    {**block, "input": {}},
                    [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}],
                )
            yield _event({"type": "content_block_start", "index": index, "content_block": empty})
            for delta in deltas:
                yield _event({"type": "content_block_delta", "index": index, "delta": delta})
            yield _event({"type": "content_block_stop", "index": index})
        delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
        ended = {"usage": {"output_tokens": entry.usage.output_tokens}} if reply.says_usage else {}
        yield _event({"type": "message_delta", "delta": delta, **ended})
        yield _event({"type": "message_stop"})


class _Chat:
    """OpenAI's chat completions."""

    @staticmethod
    def usage(usage: TokenUsage) -> dict[str, Any]:
        return {
            "prompt_tokens": usage.input_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
            "completion_tokens": usage.output_tokens,
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_output_tokens},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }

    @staticmethod
    def _tools(reply: Reply) -> list[dict[str, Any]]:
        return [
            {
                "index": number,
                "id": f"call-{number}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for number, (name, arguments) in enumerate(reply.tools)
        ]

    @classmethod
    def whole(cls, entry: Entry, reply: Reply) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.tools:
            message["tool_calls"] = cls._tools(reply)
        reason = "tool_calls" if reply.tools else "stop"
        completion = {
            "id": entry.response_id,
            "object": "chat.completion",
            "created": 0,
            "model": entry.model,
            "choices": [{"index": 0, "finish_reason": reason, "message": message}],
        }
        return completion | ({"usage": cls.usage(entry.usage)} if reply.says_usage else {})

    @classmethod
    def events(cls, entry: Entry, reply: Reply, body: Mapping[str, Any]) -> Iterator[bytes]:
        whole = cls.whole(entry, reply)
        (choice,) = whole.pop("choices")
        usage = whole.pop("usage", None)
        whole["object"] = "chat.completion.chunk"
        asks = (body.get("stream_options") or {}).get("include_usage")
        if asks:
            whole["usage"] = None
        deltas: list[dict[str, Any]] = [{"content": word} for word in _words(reply.text)]
        deltas += [{"tool_calls": [tool]} for tool in choice["message"].get("tool_calls", ())]
        for delta in [{"role": "assistant", "content": ""}, *deltas, {}]:
            reason = None if delta else choice["finish_reason"]
            chunk = {"index": 0, "delta": delta, "finish_reason": reason}
            yield _event({**whole, "choices": [chunk]}, named=False)
        if asks and usage is not None:
            yield _event({**whole, "choices": [], "usage": usage}, named=False)
        yield b"data: [DONE]\n\n"


class _Responses:
    """OpenAI's responses."""

    @staticmethod
    def usage(usage: TokenUsage) -> dict[str, Any]:
        return {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_input_tokens,
                "cache_write_tokens": usage.cache_write_input_tokens,
            },
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_output_tokens},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }

    @classmethod
    def whole(cls, entry: Entry, reply: Reply) -> dict[str, Any]:
        text = {"type": "output_text", "text": reply.text, "annotations": []}
        output: list[dict[str, Any]] = [
            {
                "type": "message",
                "id": "message-1",
                "role": "assistant",
                "status": "completed",
                "content": [text],
            }
        ]
        for number, (name, arguments) in enumerate(reply.tools):
            output.append(
                {
                    "type": "function_call",
                    "id": f"item-{number}",
                    "call_id": f"call-{number}",
                    "name": name,
                    "arguments": json.dumps(arguments),
                    "status": "completed",
                }
            )
        return {
            "id": entry.response_id,
            "object": "response.compaction" if entry.path.endswith("compact") else "response",
            "created_at": 0,
            "status": "completed",
            "model": entry.model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": cls.usage(entry.usage) if reply.says_usage else None,
        }

    @classmethod
    def events(cls, entry: Entry, reply: Reply, body: Mapping[str, Any]) -> Iterator[bytes]:
        whole = cls.whole(entry, reply)
        begun = {**whole, "status": "in_progress", "output": [], "usage": None}
        events: list[dict[str, Any]] = [{"type": "response.created", "response": begun}]
        for index, item in enumerate(whole["output"]):
            place = {"output_index": index, "item_id": item["id"]}
            empty = {**item, "content": []} if item["type"] == "message" else item
            events.append(
                {"type": "response.output_item.added", "output_index": index, "item": empty}
            )
            if item["type"] == "message":
                part = {"type": "output_text", "text": "", "annotations": []}
                place["content_index"] = 0
                events.append({"type": "response.content_part.added", **place, "part": part})
                for word in _words(reply.text):
                    delta = {"delta": word, "logprobs": []}
                    events.append({"type": "response.output_text.delta", **place, **delta})
            events.append(
                {"type": "response.output_item.done", "output_index": index, "item": item}
            )
        events.append({"type": "response.completed", "response": whole})
        for number, event in enumerate(events):
            yield _event({**event, "sequence_number": number})


_SHAPES: Mapping[str, Any] = {
    "/v1/messages": _Messages,
    "/chat/completions": _Chat,
    "/responses": _Responses,
    "/responses/compact": _Responses,
}
