"""The builders of rollouts: what they write is what a reader reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from goal_state import InvalidValueError
from goal_state.codex.builders import (
    TURN_ID,
    USAGE,
    rollout,
    rollout_with_source,
    rollout_with_text_elements,
    rollout_with_token_usage,
)
from goal_state.codex.rollout import RolloutReader, Turn, TurnStatus, find_rollout, find_rollouts
from tests.codex.clients import used

STARTED_AT = datetime(2026, 3, 9, 7, 5, 2, 345_000, tzinfo=UTC)
ELEMENTS = [{"byte_range": {"start": 0, "end": 5}, "placeholder": "<note>"}]

BUILDERS: dict[str, Callable[..., str]] = {
    "plain": rollout,
    "with token usage": rollout_with_token_usage,
    "with source": lambda home, **more: rollout_with_source(home, "vscode", **more),
    "with text elements": lambda home, **more: rollout_with_text_elements(home, ELEMENTS, **more),
}

every_builder = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


def reader(home: Path, thread_id: str) -> RolloutReader:
    path = find_rollout(home, thread_id)
    assert path is not None
    return RolloutReader(path)


def lines(home: Path, thread_id: str) -> list[dict[str, Any]]:
    text = reader(home, thread_id).path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def user_message(home: Path, thread_id: str) -> dict[str, Any]:
    [item] = [
        line["payload"]["item"]
        for line in lines(home, thread_id)
        if line["payload"].get("type") == "item_completed"
    ]
    [content] = item["content"]
    return content


@every_builder
def test_it_is_a_real_file_in_the_real_layout(build: Callable[..., str], tmp_path: Path) -> None:
    thread_id = build(tmp_path, started_at=STARTED_AT, text="Grüße")
    name = f"rollout-2026-03-09T07-05-02-{thread_id}.jsonl"
    path = tmp_path / "sessions" / "2026" / "03" / "09" / name
    assert [found.path for found in find_rollouts(tmp_path)] == [path]
    assert path.stat().st_mtime_ns == int(STARTED_AT.timestamp() * 1000) * 1_000_000
    read = RolloutReader(path)
    assert read.meta is not None
    assert read.meta.thread_id == thread_id
    assert read.meta.started_at == STARTED_AT
    assert read.turns() == [Turn(TURN_ID, TurnStatus.COMPLETED)]
    assert read.skipped.count == 0
    assert user_message(tmp_path, thread_id)["text"] == "Grüße"
    written = lines(tmp_path, thread_id)
    assert [line["ordinal"] for line in written] == list(range(len(written)))
    assert {line["timestamp"] for line in written} == {"2026-03-09T07:05:02.345Z"}


@every_builder
def test_each_thread_is_another_one_and_begins_now(
    build: Callable[..., str], tmp_path: Path
) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    ids = {build(tmp_path) for _ in range(3)}
    assert {found.thread_id for found in find_rollouts(tmp_path)} == ids
    assert len(ids) == 3
    for thread_id in ids:
        meta = reader(tmp_path, thread_id).meta
        assert meta is not None
        assert meta.started_at is not None
        assert before <= meta.started_at <= datetime.now(UTC)


def test_a_time_zone_is_converted(tmp_path: Path) -> None:
    there = STARTED_AT.astimezone(timezone(timedelta(hours=-8)))
    thread_id = rollout(tmp_path, started_at=there)
    assert reader(tmp_path, thread_id).path.parent.name == "09"
    meta = reader(tmp_path, thread_id).meta
    assert meta is not None
    assert meta.started_at == STARTED_AT


@every_builder
def test_a_time_without_a_zone_is_refused(build: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="time zone"):
        build(tmp_path, started_at=datetime(2026, 3, 9))  # noqa: DTZ001
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "with token usage"])
def test_only_the_one_with_usage_has_used_anything(name: str, tmp_path: Path) -> None:
    thread_id = BUILDERS[name](tmp_path)
    tail = reader(tmp_path, thread_id).restored()
    assert tail.usage is None
    assert tail.turn_id == TURN_ID


def test_the_usage_reads_back_from_either_end(tmp_path: Path) -> None:
    thread_id = rollout_with_token_usage(tmp_path)
    read = reader(tmp_path, thread_id)
    tail = read.restored()
    assert (tail.usage, tail.turn_id) == (USAGE, TURN_ID)
    assert list(read.usages()) == [USAGE]


def test_another_usage_can_be_given(tmp_path: Path) -> None:
    thread_id = rollout_with_token_usage(tmp_path, used(7))
    assert reader(tmp_path, thread_id).restored().usage == used(7, TURN_ID)


def test_no_two_numbers_of_the_usage_are_equal_and_none_is_zero() -> None:
    numbers = [*astuple(USAGE.total), *astuple(USAGE.last), USAGE.model_context_window]
    assert len(set(numbers)) == len(numbers) == 13
    assert 0 not in numbers
    assert USAGE.total.goal_tokens != USAGE.last.goal_tokens


@pytest.mark.parametrize("source", ["vscode", "exec", {"subagent": {"other": "guardian"}}])
def test_the_source_is_the_given_one(source: str | dict[str, Any], tmp_path: Path) -> None:
    meta = reader(tmp_path, rollout_with_source(tmp_path, source)).meta
    assert meta is not None
    assert meta.source == source
    plain = reader(tmp_path, rollout(tmp_path)).meta
    assert plain is not None
    assert plain.source == "cli"


def test_the_text_elements_stand_beside_the_text(tmp_path: Path) -> None:
    thread_id = rollout_with_text_elements(tmp_path, ELEMENTS, text="Hello, world")
    assert user_message(tmp_path, thread_id) == {
        "type": "text",
        "text": "Hello, world",
        "text_elements": ELEMENTS,
    }
    assert user_message(tmp_path, rollout(tmp_path))["text_elements"] == []
