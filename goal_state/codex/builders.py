"""Rollouts for tests of programs that read them: real files, in the layout of a real data directory.

Each builder writes one thread of one completed turn, `TURN_ID`, in which a user said something, and
returns the thread's id. The file's name, its first line and its modification time agree on when it began.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from goal_state.codex.rollout import RolloutWriter
from goal_state.domain.usage import ThreadUsage, TokenUsage
from goal_state.storage.identifiers import new_id

__all__ = [
    "TURN_ID",
    "USAGE",
    "rollout",
    "rollout_with_source",
    "rollout_with_text_elements",
    "rollout_with_token_usage",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

TURN_ID: Final = "turn-1"
"""The one turn of every rollout that is built here."""

USAGE: Final = ThreadUsage(
    total=TokenUsage(
        input_tokens=1_200,
        cached_input_tokens=350,
        cache_write_input_tokens=75,
        output_tokens=480,
        reasoning_output_tokens=160,
        total_tokens=1_680,
    ),
    last=TokenUsage(
        input_tokens=410,
        cached_input_tokens=130,
        cache_write_input_tokens=25,
        output_tokens=95,
        reasoning_output_tokens=40,
        total_tokens=505,
    ),
    model_context_window=200_000,
    turn_id=TURN_ID,
)
"""A usage in which no two numbers are equal and none is zero, so that fields that were swapped or left out
show."""


def rollout(
    home: str | os.PathLike[str], *, started_at: datetime | None = None, text: str = "Hello"
) -> str:
    """A thread that has used nothing.

    Args:
        home: the data directory.
        started_at: when the thread began, with a time zone; now, if left out.
        text: what the user said.

    Returns:
        The thread's id.

    Raises:
        InvalidValueError: the time has no time zone, or the text cannot be written as JSON.
        OSError: the file cannot be written.
    """
    return _write(home, started_at, text)


def rollout_with_token_usage(
    home: str | os.PathLike[str],
    usage: ThreadUsage = USAGE,
    *,
    started_at: datetime | None = None,
    text: str = "Hello",
) -> str:
    """A thread whose turn has used `usage`. Other arguments, result and errors as for `rollout`."""
    return _write(home, started_at, text, usage=usage)


def rollout_with_source(
    home: str | os.PathLike[str],
    source: str | Mapping[str, Any],
    *,
    started_at: datetime | None = None,
    text: str = "Hello",
) -> str:
    """A thread that something else than the command line started: another client by its name (`"vscode"`,
    `"exec"`), or an agent (`{"subagent": …}`). Other arguments, result and errors as for `rollout`.
    """
    return _write(home, started_at, text, source=source)


def rollout_with_text_elements(
    home: str | os.PathLike[str],
    text_elements: Iterable[Mapping[str, Any]],
    *,
    started_at: datetime | None = None,
    text: str = "Hello",
) -> str:
    """A thread in whose text parts stand for something else, each
    `{"byte_range": {"start": …, "end": …}, "placeholder": …}`. Other arguments, result and errors as for
    `rollout`.
    """
    return _write(home, started_at, text, text_elements=text_elements)


def _write(
    home: str | os.PathLike[str],
    started_at: datetime | None,
    text: str,
    *,
    usage: ThreadUsage | None = None,
    source: str | Mapping[str, Any] = "cli",
    text_elements: Iterable[Mapping[str, Any]] = (),
) -> str:
    thread_id = new_id()
    moment = datetime.now(UTC) if started_at is None else started_at
    meta = {
        "cwd": "/home/user/project",
        "originator": "goal-state",
        "cli_version": "0.0.0",
        "source": source if isinstance(source, str) else dict(source),
        "model_provider": "mock",
    }
    user = {
        "type": "text",
        "text": text,
        "text_elements": [dict(element) for element in text_elements],
    }
    window = None if usage is None else usage.model_context_window
    lines = [
        _event("task_started", turn_id=TURN_ID, model_context_window=window),
        ("turn_context", {"turn_id": TURN_ID, "cwd": "/home/user/project", "model": "mock-model"}),
        (
            "response_item",
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]},
        ),
        _event(
            "item_completed",
            thread_id=thread_id,
            turn_id=TURN_ID,
            item={"type": "UserMessage", "id": "item-1", "content": [user]},
        ),
        *(() if usage is None else _usage_lines(thread_id, usage)),
        _event("task_complete", turn_id=TURN_ID, last_agent_message=None),
    ]
    with RolloutWriter.create(home, thread_id, started_at=moment, meta=meta) as writer:
        timestamp = moment.astimezone(UTC).isoformat(timespec="milliseconds")
        for ordinal, (kind, payload) in enumerate(lines, start=1):
            writer.append(
                {
                    "timestamp": timestamp.replace("+00:00", "Z"),
                    "ordinal": ordinal,
                    "type": kind,
                    "payload": payload,
                }
            )
    modified_ns = (moment - _EPOCH) // timedelta(microseconds=1) * 1000
    os.utime(writer.path, ns=(modified_ns, modified_ns))
    return thread_id


def _usage_lines(thread_id: str, usage: ThreadUsage) -> list[tuple[str, dict[str, Any]]]:
    """A usage as it is recorded: the response's own line, and the count that clients were told."""
    total, last = asdict(usage.total), asdict(usage.last)
    record = {
        "thread_id": thread_id,
        "turn_id": TURN_ID,
        "usage": last,
        "thread_token_usage": total,
    }
    count = {
        "total_token_usage": total,
        "last_token_usage": last,
        "model_context_window": usage.model_context_window,
    }
    return [
        ("token_usage_record", record),
        _event("token_count", info=count, rate_limits=None),
    ]


def _event(kind: str, **payload: Any) -> tuple[str, dict[str, Any]]:
    return "event_msg", {"type": kind, **payload}
