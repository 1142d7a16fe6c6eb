"""Rollouts for tests: recorded ones, lines made by hand, and what reading them costs."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import goal_state.codex.rollout.lines
import goal_state.codex.rollout.reader
from goal_state.codex.rollout import (
    RolloutReader,
    TurnStatus,
)
from goal_state.domain.usage import ThreadUsage, TokenUsage

RECORDED = Path(__file__).parents[1] / "data" / "rollouts"
HOME = RECORDED / "home"
DAY = HOME / "sessions" / "2026" / "11" / "20"

PARENT = "01a1fa7c-7d69-77f2-8089-3c42b51e041a"
FORK = "01a1fa7c-9307-7d53-8eb0-990ca4057258"
TURN_1 = "01a1fa7c-7d94-7d90-840a-8585a799730e"
TURN_2 = "01a1fa7c-8665-7060-8ae4-04500a2079aa"

COMPLETED, FAILED = TurnStatus.COMPLETED, TurnStatus.FAILED
IN_PROGRESS, INTERRUPTED = TurnStatus.IN_PROGRESS, TurnStatus.INTERRUPTED


def recorded(thread_id: str) -> Path:
    [path] = RECORDED.rglob(f"*{thread_id}.jsonl")
    return path


def line(kind: str, payload: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"timestamp": "2026-11-20T19:00:00.000Z", **more, "type": kind, "payload": payload}


def event(kind: str, **payload: Any) -> dict[str, Any]:
    return line("event_msg", {"type": kind, **payload})


def meta(thread_id: str = "thread", **payload: Any) -> dict[str, Any]:
    return line("session_meta", {"id": thread_id, **payload})


def counts(tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": tokens,
        "cached_input_tokens": 0,
        "output_tokens": 1,
        "reasoning_output_tokens": 0,
        "total_tokens": tokens + 1,
    }


def token_count(tokens: int, window: int | None = None) -> dict[str, Any]:
    info = {"total_token_usage": counts(tokens), "last_token_usage": counts(1)}
    return event("token_count", info={**info, "model_context_window": window}, rate_limits=None)


def record(tokens: int, turn_id: str | None = "turn") -> dict[str, Any]:
    payload = {"turn_id": turn_id, "usage": counts(1), "thread_token_usage": counts(tokens)}
    return line("token_usage_record", payload)


def used(tokens: int, window: int | None = None, turn_id: str | None = None) -> ThreadUsage:
    return ThreadUsage(TokenUsage(tokens, 0, 0, 1, 0), TokenUsage(1, 0, 0, 1, 0), window, turn_id)


def began(turn_id: str | None, window: int | None = None) -> dict[str, Any]:
    return event("task_started", turn_id=turn_id, model_context_window=window)


def completed(turn_id: str | None, **payload: Any) -> dict[str, Any]:
    return event("task_complete", turn_id=turn_id, **payload)


def aborted(turn_id: str | None, reason: str = "interrupted") -> dict[str, Any]:
    return event("turn_aborted", turn_id=turn_id, reason=reason)


def context(turn_id: str | None) -> dict[str, Any]:
    return line("turn_context", {"turn_id": turn_id, "cwd": "/"})


def text_of(lines: Iterable[dict[str, Any]], end: bytes = b"\n") -> bytes:
    return b"".join(json.dumps(one).encode() + end for one in lines)


SOUND = [meta(), began("a"), token_count(5), completed("a")]


FILLER = text_of([line("response_item", {"type": "message", "content": "x" * 2000})])


def write_rollout(
    directory: Path, *lines: dict[str, Any] | bytes, name: str = "rollout.jsonl"
) -> RolloutReader:
    """Writes lines (objects, or bytes as they are) to a file and reads it."""
    parts = [one if isinstance(one, bytes) else text_of([one]) for one in lines]
    path = directory / name
    path.write_bytes(b"".join(parts))
    return RolloutReader(path)


Write = Callable[..., RolloutReader]


@contextmanager
def memory_at_most(mebibytes: float) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < mebibytes * 2**20, f"{peak / 2**20:.1f} MiB"


@contextmanager
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of the blocks that are read from plain files."""
    sizes: list[int] = []
    real = goal_state.codex.rollout.lines.io.FileIO

    class Counting(real):  # type: ignore[misc, valid-type]
        def read(self, size: int = -1, /) -> bytes:
            block = super().read(size)
            sizes.append(len(block))
            return block

    with monkeypatch.context() as patched:
        patched.setattr(goal_state.codex.rollout.lines.io, "FileIO", Counting)
        yield sizes
