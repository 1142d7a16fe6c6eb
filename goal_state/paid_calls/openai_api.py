"""What OpenAI's API is asked over HTTP, and answers: chat completions and responses, for adapters of clients
that speak it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from goal_state.paid_calls.contexts import Contexts
from goal_state.paid_calls.events import Answer
from goal_state.paid_calls.prompt import prompt_tokens

__all__ = ["Asked", "paid_path"]

_LEAST_OUTPUT_TOKENS: Final = 256
_FRAME_TOKENS: Final = 16
"""What the provider puts around the messages of a prompt."""
_CHAT: Final = "/chat/completions"
# What is paid, and by which names it takes a cap of its output.
_CAPS: Final[Mapping[str, tuple[str, ...]]] = {
    _CHAT: ("max_completion_tokens", "max_tokens"),
    "/responses": ("max_output_tokens",),
    "/responses/compact": (),
}
_PROMPT: Final = (
    "messages",
    "input",
    "instructions",
    "prompt",
    "tools",
    "functions",
    "response_format",
    "text",
)
_TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


def paid_path(method: str, url: str) -> str | None:
    """Which of the paths that are paid a request goes to; None where it goes elsewhere."""
    if method.lower() != "post":
        return None
    path = url.partition("?")[0].rstrip("/")
    return next((each for each in _CAPS if path.endswith(each)), None)


class Asked:
    """What a request asks for.

    Args:
        path: the one of the paths that are paid.
        body: what is sent.
        contexts: what went before.
        output_tokens: the cap of the output where it names none.

    Attributes:
        is_stream: whether a stream of events is asked for.
    """

    def __init__(
        self, path: str, body: Mapping[str, Any], *, contexts: Contexts, output_tokens: int
    ) -> None:
        self._is_chat = path == _CHAT
        self._body = body
        self._contexts = contexts
        self.is_stream: bool = bool(body.get("stream"))
        self._choices: int = (self._is_chat and body.get("n")) or 1
        named = [name for name in _CAPS[path] if body.get(name) is not None]
        self._cap: str | None = next(iter((*named, *_CAPS[path])), None)
        self._output_tokens: int = body[named[0]] if named else output_tokens
        streaming: Mapping[str, Any] = body.get("stream_options") or {}
        self._adds_usage = self._is_chat and self.is_stream and not streaming.get("include_usage")
        conversation = body.get("conversation")
        if isinstance(conversation, Mapping):
            conversation = cast("Mapping[str, Any]", conversation).get("id")
        self._conversation: str | None = conversation

    def reservation(self) -> dict[str, Any]:
        """The arguments of `Payer.begin`."""
        body, output_tokens = self._body, self._output_tokens * self._choices
        return {
            "prompt_tokens": _FRAME_TOKENS
            + prompt_tokens(*(body.get(name) for name in _PROMPT))
            + self._contexts.tokens(body.get("previous_response_id"), self._conversation),
            "model": body.get("model"),
            "output_tokens": output_tokens,
            "least_output_tokens": _LEAST_OUTPUT_TOKENS * self._choices
            if self._cap
            else output_tokens,
            "thread_id": self._conversation,
        }

    def capped(self, output_tokens: int) -> dict[str, Any]:
        """What is to be sent, with a cap of the output and, where it is streamed, with its usage."""
        body = dict(self._body)
        if self._cap:
            body[self._cap] = output_tokens // self._choices  # it is of each of them
        if self._adds_usage:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        return body

    def answer(self) -> Answer:
        """What takes in what comes of it."""
        if self._is_chat:
            return _Completion(hides=self._adds_usage)
        return _Response(self._contexts, self._conversation)


class _Completion(Answer):
    """A chat completion, whole or streamed."""

    def __init__(self, *, hides: bool) -> None:
        super().__init__()
        self.hides = hides

    def take(self, event: Mapping[str, Any]) -> bool:
        self.model = event.get("model") or self.model
        self.response_id = event.get("id") or self.response_id
        if not event.get("usage"):
            return True
        self.usage = event["usage"]
        if event.get("choices"):
            return True
        self.is_complete = True
        return not self.hides


class _Response(Answer):
    """A response, whole or streamed."""

    def __init__(self, contexts: Contexts, conversation: str | None) -> None:
        super().__init__()
        self._contexts = contexts
        self._conversation = conversation

    def take(self, event: Mapping[str, Any]) -> bool:
        if event.get("type") in _TERMINAL:
            self.take_whole(event.get("response") or {})
        return True

    def take_whole(self, body: Mapping[str, Any]) -> None:
        super().take_whole(body)
        if (tokens := (self.usage or {}).get("total_tokens")) is not None:
            self._contexts.remember(tokens, self.response_id, self._conversation)
