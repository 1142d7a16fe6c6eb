"""What a provider's response says as it goes by: a stream of events, or one JSON text."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

__all__ = ["Answer", "Reading"]


class Answer(ABC):
    """What is known of a response by what has come of it. Each form of response has its own.

    Attributes:
        usage: what it has used so far, all of it together; None where nothing says.
        model: the model that answered.
        response_id: the provider's id of the response.
        is_complete: whether all of it has come.
        hides: whether there are events that the caller is not to see.
    """

    hides: bool = False

    def __init__(self) -> None:
        self.usage: Mapping[str, Any] | None = None
        self.model: str | None = None
        self.response_id: str | None = None
        self.is_complete: bool = False
        self._told: Mapping[str, Any] | None = None

    def take_whole(self, body: Mapping[str, Any]) -> None:
        """Notes a response that was not streamed."""
        usage = body.get("usage")
        self.usage = cast("Mapping[str, Any]", usage) if isinstance(usage, Mapping) else None
        self.model = body.get("model")
        self.response_id = body.get("id")
        self.is_complete = True

    @abstractmethod
    def take(self, event: Mapping[str, Any]) -> bool:
        """Notes an event of a stream; returns whether the caller is to see it."""

    def news(self) -> Mapping[str, Any] | None:
        """What it has used so far, where that has changed since this was asked."""
        told, self._told = self._told, self.usage
        return None if self.usage is told else self.usage

    def done(self) -> None:
        """Notes the mark at the end of a stream."""
        self.is_complete = True


class Reading:
    """Makes out what goes by: events of a stream, or one JSON text."""

    def __init__(self, answer: Answer, *, is_stream: bool) -> None:
        self._answer = answer
        self._is_stream = is_stream
        self._line = bytearray()
        self._event = bytearray()
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> bytes:
        """Takes what has come; returns what the caller may have now."""
        self._line += chunk
        if not self._is_stream:
            return chunk
        shown = bytearray()
        *lines, rest = self._line.split(b"\n")
        self._line = rest
        for line in lines:
            self._event += line + b"\n"
            if line.strip(b"\r"):
                self._read_line(line)
            else:
                shown += self._ended_event()
        return bytes(shown) if self._answer.hides else chunk

    def take_all(self, content: bytes) -> None:
        """Takes what has come as a whole."""
        self.feed(content)
        self.end()

    def end(self) -> bytes:
        """Takes the end; returns what the caller has not had yet."""
        if not self._is_stream:
            body = _parsed(bytes(self._line))
            if body is not None:
                self._answer.take_whole(body)
            return b""
        self._event += self._line
        self._read_line(bytes(self._line))
        shown = self._ended_event()
        return shown if self._answer.hides else b""

    def _read_line(self, line: bytes | bytearray) -> None:
        if line.startswith(b"data:"):
            self._data.append(bytes(line[5:]).strip())

    def _ended_event(self) -> bytes:
        event, data = bytes(self._event), b"\n".join(self._data)
        self._event.clear()
        self._data.clear()
        if data == b"[DONE]":
            self._answer.done()
        elif (parsed := _parsed(data)) is not None and not self._answer.take(parsed):
            return b""
        return event


def _parsed(text: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else None
