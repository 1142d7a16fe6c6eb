"""Forks, whose history lies in other files."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import goal_state.codex.rollout.tail
from goal_state.codex.rollout import (
    MAX_HELD_BYTES,
    RolloutReader,
    RolloutTail,
    SkippedLine,
    Turn,
)
from tests.codex.rollout_lines import (
    COMPLETED,
    FILLER,
    IN_PROGRESS,
    Write,
    began,
    bytes_read,
    completed,
    meta,
    text_of,
    token_count,
    used,
)


def numbered(lines: Iterable[dict[str, Any]], first: int = 0) -> list[dict[str, Any]]:
    return [{**one, "ordinal": number} for number, one in enumerate(lines, first)]


def fork_of(thread_id: str, end: int, offset: int | None = None) -> dict[str, Any]:
    base = {"thread_id": thread_id, "end_ordinal_exclusive": end, "end_byte_offset": offset}
    return {"forked_from_id": thread_id, "history_base": base}


PARENT_LINES = numbered(
    [
        *(meta("parent"), began("a"), token_count(5), completed("a")),
        *(began("b"), token_count(9), completed("b")),
    ]
)


@pytest.mark.parametrize("offset", [None, 0, 5, 10**9, 2**62, len(text_of(PARENT_LINES[:3]))])
@pytest.mark.parametrize("end", [3, 4, 5])
def test_a_fork_inherits_up_to_its_ordinal(rollout: Write, end: int, offset: int | None) -> None:
    parent = rollout(*PARENT_LINES, name="parent.jsonl")
    fork = rollout(meta("fork", **fork_of("parent", end, offset)), name="fork.jsonl")
    tail = fork.restored({"parent": parent.path}.get)
    assert tail == RolloutTail(
        used(5, turn_id="a"), "b" if end == 5 else "a", None if end == 3 else "a"
    )


def test_the_byte_offset_saves_reading_what_the_parent_did_later(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    offset = len(text_of(PARENT_LINES[:4]))
    parent = rollout(*PARENT_LINES, FILLER * 500, name="parent.jsonl")
    fork = rollout(meta("fork", **fork_of("parent", 4, offset)), name="fork.jsonl")
    with bytes_read(monkeypatch) as sizes:
        assert fork.restored({"parent": parent.path}.get).usage == used(5, turn_id="a")
    assert sum(sizes) < 500_000 < parent.path.stat().st_size


@pytest.mark.parametrize(
    "before",
    [b"\n", b"broken\n", b"{" + b"x" * MAX_HELD_BYTES + b"}\n"],
    ids=["blank", "broken", "too long"],
)
def test_a_byte_offset_behind_what_is_no_line_is_not_relied_on(
    rollout: Write, before: bytes
) -> None:
    parent = rollout(before, *PARENT_LINES, name="parent.jsonl")
    base = fork_of("parent", 4, len(before))
    fork = rollout(meta("fork", **base), name="fork.jsonl")
    assert fork.restored({"parent": parent.path}.get) == RolloutTail(used(5, turn_id="a"), "a", "a")


def test_lines_without_ordinals_are_cut_by_the_byte_offset(rollout: Write) -> None:
    lines = [meta("parent"), token_count(5), token_count(9)]
    parent = rollout(*lines, name="parent.jsonl")
    for offset, expected in ((len(text_of(lines[:2])), used(5)), (None, None)):
        fork = rollout(meta("fork", **fork_of("parent", 2, offset)), name="fork.jsonl")
        assert fork.restored({"parent": parent.path}.get).usage == expected


@pytest.mark.parametrize("ordinal", [None, "1", True, 1.5])
def test_an_ordinal_that_is_no_number_is_none(rollout: Write, ordinal: Any) -> None:
    lines = [
        {**one, "ordinal": ordinal} for one in (meta("parent"), token_count(5), token_count(9))
    ]
    parent = rollout(*lines, name="parent.jsonl")
    base = fork_of("parent", 2, len(text_of(lines[:2])))
    fork = rollout(meta("fork", **base), name="fork.jsonl")
    assert fork.restored({"parent": parent.path}.get).usage == used(5)
    assert fork.skipped.count == 0


@pytest.mark.parametrize("packed", [False, True])
def test_a_broken_line_of_a_parent_is_noted_with_the_parents_path(
    rollout: Write, packed: bool
) -> None:
    first = text_of(PARENT_LINES[:3])
    text = first + b"broken\n" + text_of(PARENT_LINES[3:])
    parent = rollout(gzip.compress(text) if packed else text, name="parent.jsonl")
    fork = rollout(meta("fork", **fork_of("parent", 4)), name="fork.jsonl")
    assert fork.restored({"parent": parent.path}.get) == RolloutTail(used(5, turn_id="a"), "a", "a")
    [note] = fork.skipped.noted
    assert (note.path, note.offset) == (parent.path, len(first))


def test_a_compressed_parent_tells_the_usage(rollout: Write) -> None:
    parent = rollout(gzip.compress(text_of(PARENT_LINES)), name="parent.jsonl.gz")
    fork = rollout(meta("fork", **fork_of("parent", 4)), name="fork.jsonl")
    assert fork.restored({"parent": parent.path}.get) == RolloutTail(used(5, turn_id="a"), "a", "a")


def test_a_forks_own_usage_comes_first_and_its_parent_tells_the_turn(rollout: Write) -> None:
    parent = rollout(*PARENT_LINES, name="parent.jsonl")
    lines = numbered([meta("fork", **fork_of("parent", 4)), began("c"), token_count(30)], 4)
    fork = rollout(*lines, name="fork.jsonl")
    assert fork.restored() == RolloutTail(used(30, turn_id="c"), "c", None)
    assert fork.restored({"parent": parent.path}.get) == RolloutTail(
        used(30, turn_id="c"), "c", "a"
    )


def test_a_fork_of_a_fork_inherits_from_the_first(rollout: Write) -> None:
    paths = {"parent": rollout(*PARENT_LINES, name="parent.jsonl").path}
    middle = numbered([meta("middle", **fork_of("parent", 4)), began("m")], 4)
    paths["middle"] = rollout(*middle, name="middle.jsonl").path
    fork = rollout(meta("fork", **fork_of("middle", 6)), name="fork.jsonl")
    assert fork.restored(paths.get) == RolloutTail(used(5, turn_id="a"), "m", "a")


def test_forks_of_each_other_come_to_an_end(rollout: Write) -> None:
    asked: list[str] = []
    paths: dict[str, Path] = {}

    def find(thread_id: str) -> Path | None:
        asked.append(thread_id)
        assert len(asked) < 9, "asked for ever"
        return paths.get(thread_id)

    for name, other in (("one", "two"), ("two", "one"), ("self", "self")):
        paths[name] = rollout(meta(name, **fork_of(other, 9)), name=f"{name}.jsonl").path
    assert RolloutReader(paths["one"]).restored(find) == RolloutTail()
    assert RolloutReader(paths["self"]).restored(find) == RolloutTail()
    assert asked == ["two"]


def test_a_parent_that_cannot_be_used_has_no_usage(rollout: Write, tmp_path: Path) -> None:
    fork = rollout(meta("fork", **fork_of("parent", 9)), name="fork.jsonl")
    assert fork.restored(lambda _: None) == RolloutTail()
    assert fork.skipped.count == 0
    text = rollout(b"no rollout\n", name="text.jsonl").path
    other = rollout(*numbered([meta("other"), token_count(5)]), name="other.jsonl").path
    for path, reason in (
        (tmp_path / "missing.jsonl", "cannot be read: FileNotFoundError"),
        (text, "cannot be read: NotARolloutError"),
        (other, "not the rollout of the thread it was forked from"),
    ):
        assert fork.restored(lambda _, path=path: path) == RolloutTail()
        assert fork.skipped.noted == (SkippedLine(path, 0, reason),)


def test_a_fork_that_copied_its_history_needs_no_parent(rollout: Write) -> None:
    reader = rollout(meta("fork", forked_from_id="parent"), *PARENT_LINES)
    assert reader.restored(lambda _: pytest.fail("asked")).usage == used(9, turn_id="b")
    assert reader.meta is not None
    assert (reader.meta.thread_id, reader.meta.history_base) == ("fork", None)


@pytest.mark.parametrize("base", ["parent", {}, {"thread_id": "p"}, {"thread_id": 5}])
def test_a_malformed_history_base_is_none(rollout: Write, base: Any) -> None:
    found = rollout(meta("fork", history_base=base)).meta
    assert found is not None
    assert found.history_base is None


def test_the_turns_of_a_fork_are_its_parents_up_to_the_fork_and_its_own(rollout: Write) -> None:
    parent = rollout(*PARENT_LINES, name="parent.jsonl")
    own = numbered([meta("fork", **fork_of("parent", 5)), began("c"), token_count(9)], 5)
    fork = rollout(*own, name="fork.jsonl")
    tail = fork.restored({"parent": parent.path}.get, list_turns=True)
    # The parent's second turn had begun when the fork was made, and its end is not the fork's.
    assert tail.turns == (Turn("a", COMPLETED), Turn("b", IN_PROGRESS), Turn("c", IN_PROGRESS))


def test_the_search_for_turns_ends_in_a_parent_after_as_many_bytes_as_in_one_file(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.tail, "_TURN_SEARCH_BYTES", 2**20)
    begin = [meta("parent"), began("a"), completed("a")]
    parent = rollout(*numbered(begin), FILLER * 1000, began("b"), name="parent.jsonl")
    size = parent.path.stat().st_size
    own = meta("fork", **fork_of("parent", 10**6, size))
    fork = rollout(own, token_count(9), name="fork.jsonl")
    with bytes_read(monkeypatch) as sizes:
        tail = fork.restored({"parent": parent.path}.get, list_turns=True)
    assert tail.turns == (Turn("b", IN_PROGRESS),)
    assert sum(sizes) < 2**20 + 6 * 2**16
