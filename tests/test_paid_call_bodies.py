"""What goes by in the body of a provider's response, however it is cut; and what OpenAI's API is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goal_state.paid_calls.contexts import Contexts
from goal_state.paid_calls.events import Answer, Reading
from goal_state.paid_calls.openai_api import Asked, paid_path


class Seen(Answer):
    """Keeps every event; hides those that say so."""

    def __init__(self, *, hides: bool = False) -> None:
        super().__init__()
        self.hides = hides
        self.events: list[Mapping[str, Any]] = []

    def take(self, event: Mapping[str, Any]) -> bool:
        self.events.append(event)
        return not event.get("hidden")


STREAM = (
    b": a comment\n\n"
    b'event: one\ndata: {"n": 1}\n\n'
    b'data: {"n": 2,\r\ndata: "hidden": true}\r\n\r\n'
    b"data: no JSON\n\n"
    b"data: [3]\n\n"
    b'id: 7\ndata:{"n": "\xe6\x97\xa5"}\n\n'
    b"data: [DONE]\n\n"
)
EVENTS = [{"n": 1}, {"n": 2, "hidden": True}, {"n": "日"}]


@given(cuts=st.lists(st.integers(0, len(STREAM))), hides=st.booleans())
def test_events_are_read_however_the_stream_is_cut(cuts: list[int], hides: bool) -> None:
    answer = Seen(hides=hides)
    reading = Reading(answer, is_stream=True)
    bounds = [0, *sorted(cuts), len(STREAM)]
    shown = b"".join(reading.feed(STREAM[begin:end]) for begin, end in pairwise(bounds))
    shown += reading.end()
    assert answer.events == EVENTS
    assert answer.is_complete
    hidden = b'data: {"n": 2,\r\ndata: "hidden": true}\r\n\r\n'
    assert shown == (STREAM.replace(hidden, b"") if hides else STREAM)


def test_a_stream_without_a_last_blank_line_is_read_to_its_end() -> None:
    answer = Seen(hides=True)
    reading = Reading(answer, is_stream=True)
    assert reading.feed(b'data: {"n": 1}') == b""
    assert reading.end() == b'data: {"n": 1}'
    assert answer.events == [{"n": 1}]
    assert not answer.is_complete


@pytest.mark.parametrize(
    ("text", "complete"),
    [(b'{"id": "r", "model": "m", "usage": {"x": 1}}', True), (b"<html>", False), (b"[1]", False)],
)
def test_a_whole_body_is_complete_where_it_is_an_object(text: bytes, complete: bool) -> None:
    answer = Seen()
    reading = Reading(answer, is_stream=False)
    assert reading.feed(text[:5]) + reading.feed(text[5:]) + reading.end() == text
    assert answer.is_complete == complete
    assert (answer.response_id, answer.model) == (("r", "m") if complete else (None, None))
    assert answer.usage == ({"x": 1} if complete else None)


@pytest.mark.parametrize(
    ("method", "url", "path"),
    [
        ("post", "/chat/completions", "/chat/completions"),
        ("POST", "https://example.org/v1/responses?beta=true", "/responses"),
        ("post", "/responses/compact", "/responses/compact"),
        ("get", "/responses", None),
        ("post", "/responses/r-1/cancel", None),
        ("post", "/responses/input_tokens", None),
        ("post", "/chat/completions/c-1", None),
        ("post", "/embeddings", None),
    ],
)
def test_only_what_is_made_by_a_model_is_paid(method: str, url: str, path: str | None) -> None:
    assert paid_path(method, url) == path


def test_contexts_forget_the_oldest() -> None:
    contexts = Contexts()
    for number in range(5_000):
        contexts.remember(10, f"r-{number}", None)
    assert contexts.tokens("r-0", "r-4999", None, "") == 10


def test_a_streamed_chat_is_asked_for_its_usage_and_keeps_what_else_it_asks_for() -> None:
    body = {"stream": True, "stream_options": {"include_obfuscation": False}, "max_tokens": 9}
    asked = Asked("/chat/completions", body, contexts=Contexts(), output_tokens=100)
    sent = asked.capped(5)
    assert sent["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert sent["max_tokens"] == 5
    assert json.dumps(body) == json.dumps(
        {"stream": True, "stream_options": {"include_obfuscation": False}, "max_tokens": 9}
    )
    usage = {"id": "c", "model": "m", "choices": [], "usage": {"prompt_tokens": 1}}
    answer = asked.answer()
    assert not answer.take(usage)
    assert (answer.usage, answer.is_complete) == ({"prompt_tokens": 1}, True)
