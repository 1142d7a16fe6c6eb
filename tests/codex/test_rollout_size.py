"""What reading a rollout costs, and compressed ones."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest

import goal_state.codex.rollout.lines
import goal_state.codex.rollout.tail
from goal_state.codex.rollout import (
    MAX_HELD_BYTES,
    MAX_PARSED_BYTES,
    RolloutReader,
    RolloutTail,
    Turn,
)
from goal_state.errors import MissingZstandardError, NotARolloutError
from tests.codex.rollout_lines import (
    COMPLETED,
    FILLER,
    SOUND,
    Write,
    began,
    bytes_read,
    completed,
    context,
    event,
    line,
    memory_at_most,
    meta,
    recorded,
    text_of,
    token_count,
    used,
)


def sparse(path: Path, size: int, tail: bytes) -> None:
    """A rollout with one line of zeros between its meta and its tail, taking no room on the disk."""
    with path.open("wb") as file:
        file.write(text_of([meta()]))
        file.seek(size)
        file.write(b"\n" + tail)


def test_a_terabyte_of_history_costs_what_its_tail_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "huge.jsonl"
    sparse(path, 2**40, text_of([began("a"), token_count(5), completed("a")]) + FILLER * 100)
    with memory_at_most(2), bytes_read(monkeypatch) as sizes:
        assert RolloutReader(path).restored() == RolloutTail(used(5, turn_id="a"), "a", "a")
        assert RolloutReader(path).meta is not None
    assert 0 < sum(sizes) < 10 * 2**17


def test_the_turn_is_looked_for_in_a_bounded_stretch_before_the_usage(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.tail, "_TURN_SEARCH_BYTES", 2**20)
    ended = [began("a"), completed("a"), began("b"), context("b")]
    near = rollout(meta(), *ended, FILLER * 300, context("b"), token_count(5))
    assert near.restored() == RolloutTail(used(5, turn_id="b"), "b", "a")
    far = rollout(meta(), *ended, FILLER * 2000, context("b"), token_count(5))
    assert far.path.stat().st_size > 4 * 10**6
    with bytes_read(monkeypatch) as sizes:
        assert far.restored() == RolloutTail(used(5, turn_id="b"), "b", None)
    assert sum(sizes) < 2**20 + 3 * 2**16
    assert far.restored().turn_id == "b"
    halfway = [FILLER * 300, context("b"), FILLER * 300]
    reader = rollout(meta(), *ended, *halfway, token_count(5))
    assert reader.restored() == RolloutTail(used(5, turn_id="b"), "b", None), (
        "counted from the usage"
    )


def test_turns_are_listed_from_a_bounded_stretch_before_the_usage(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.tail, "_TURN_LIST_BYTES", 2**20)
    turns = [(began(name), FILLER * 200, completed(name)) for name in "abcdef"]
    reader = rollout(meta(), *(part for turn in turns for part in turn), token_count(5))
    with bytes_read(monkeypatch) as sizes:
        listed = reader.restored(list_turns=True).turns
    # Of "d" only the end lies within it, and that is enough to know how it ended.
    assert listed == (Turn("d", COMPLETED), Turn("e", COMPLETED), Turn("f", COMPLETED))
    assert sum(sizes) < 2**20 + 3 * 2**16


def test_a_line_longer_than_the_stretch_in_which_turns_are_looked_for_is_not_read_to_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.tail, "_TURN_LIST_BYTES", 2**20)
    path = tmp_path / "long.jsonl"
    sparse(path, 2**30, text_of([began("a"), token_count(5), completed("a")]))
    with bytes_read(monkeypatch) as sizes:
        assert RolloutReader(path).restored(list_turns=True).turns == (Turn("a", COMPLETED),)
    assert sum(sizes) < 2**20 + 6 * 2**16


def test_no_more_turns_are_listed_than_there_is_memory_for(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.tail, "_MAX_TURN_RECORDS", 6)
    turns = [line for name in "abcdef" for line in (began(name), completed(name))]
    listed = rollout(meta(), *turns, token_count(5)).restored(list_turns=True).turns
    assert [turn.turn_id for turn in listed] == ["d", "e", "f"]


def test_a_turn_that_is_named_before_each_response_is_kept_once(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.tail, "_MAX_TURN_RECORDS", 5)
    turns = [began("a"), completed("a"), began("b"), *(context("b") for _ in range(9))]
    listed = rollout(meta(), *turns, token_count(5)).restored(list_turns=True).turns
    assert [turn.turn_id for turn in listed] == ["a", "b"]


@pytest.mark.slow
def test_a_line_longer_than_memory_allows_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    sparse(path, 2**26, text_of(SOUND[1:]))
    reader = RolloutReader(path)
    with memory_at_most(32):
        assert reader.turns() == [Turn("a", COMPLETED)]
        assert [one.reason for one in reader.skipped.noted] == [
            f"longer than {MAX_HELD_BYTES} bytes"
        ]
        assert reader.restored().usage == used(5, turn_id="a")
    no_usage = tmp_path / "none.jsonl"
    sparse(no_usage, 2**26, b"")
    reader = RolloutReader(no_usage)
    with memory_at_most(32):
        assert reader.restored() == RolloutTail()
        assert reader.skipped.count == 1
        assert reader.skipped.noted[0].offset == len(text_of([meta()]))


def test_a_line_as_long_as_may_be_held_is_no_fault_and_one_too_long_to_parse_is(
    rollout: Write,
) -> None:
    ends = b'{"token":"', b'"}'
    held = ends[0] + b"x" * (MAX_HELD_BYTES - 12) + ends[1]
    reader = rollout(*SOUND[:1], token_count(5), held + b"\n")
    with memory_at_most(32):
        assert reader.restored().usage == used(5)
    assert reader.skipped.count == 0
    reader = rollout(*SOUND[:1], token_count(5), held + b" x\n")
    assert reader.restored().usage == used(5)
    assert reader.skipped.count == 1
    parsed = event("token_count", info=token_count(6)["payload"]["info"], note="")
    room = MAX_PARSED_BYTES - len(text_of([parsed])) + 1
    parsed["payload"]["note"] = "x" * room
    assert rollout(*SOUND, parsed).restored().usage == used(6, turn_id="a")
    parsed["payload"]["note"] += "x"
    reader = rollout(*SOUND, parsed)
    assert reader.restored().usage == used(5, turn_id="a")
    assert reader.skipped.noted[0].reason == f"longer than {MAX_PARSED_BYTES} bytes"


def test_lines_across_the_borders_of_blocks(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = recorded("01a1fa7e-8f29-7dd2-8bd7-26bb609ee313").read_bytes()
    whole = RolloutReader(recorded("01a1fa7e-8f29-7dd2-8bd7-26bb609ee313"))
    expected = whole.restored(), whole.turns(), list(whole.usages())
    for size in (1, 2, 7, 860, 4096):
        monkeypatch.setattr(goal_state.codex.rollout.lines, "_BLOCK_BYTES", size)
        reader = rollout(text)
        assert (reader.restored(), reader.turns(), list(reader.usages())) == expected
        assert reader.skipped.count == 0


@pytest.mark.parametrize("cut", [0, 5])
def test_a_file_that_shrinks_while_it_is_read_is_read_as_far_as_it_goes(
    rollout: Write, cut: int
) -> None:
    left = text_of(SOUND)[: len(text_of(SOUND)) - cut]
    reader = rollout(*SOUND, FILLER * 100, token_count(6), FILLER * 100)
    with goal_state.codex.rollout.lines.open_rollout(reader.path) as opened:
        lines = opened.backwards(goal_state.codex.rollout.lines.SkipLedger())
        next(lines)
        os.truncate(reader.path, len(left))
        rest = [one for one in lines if one.content and b"response_item" not in one.content]
    assert [one.content for one in rest] == left.splitlines()[::-1]
    assert [one.ended for one in rest] == [cut == 0] + [True] * (len(rest) - 1)


# --- Compressed ----------------------------------------------------------------------------------------


def test_gzip_is_told_by_its_contents(rollout: Write) -> None:
    for name in ("rollout.jsonl.gz", "rollout.jsonl"):
        reader = rollout(gzip.compress(text_of(SOUND)), name=name)
        assert reader.restored() == RolloutTail(used(5, turn_id="a"), "a", "a")
        assert reader.turns() == [Turn("a", COMPLETED)]
        assert list(reader.usages()) == [used(5, turn_id="a")]
        assert reader.meta is not None
        assert reader.skipped.count == 0


def test_a_gzip_that_breaks_off_gives_what_came_before(rollout: Write) -> None:
    noise = [line("response_item", {"content": os.urandom(500).hex()}) for _ in range(400)]
    packed = gzip.compress(text_of([*SOUND, *noise, token_count(6)]))
    for broken in (packed[: len(packed) // 2], packed[:-200] + b"\0" * 200, packed + b"junk"):
        reader = rollout(broken, name="broken.jsonl.gz")
        tail = reader.restored()
        assert tail.usage == (
            used(6, turn_id="a") if broken.endswith(b"junk") else used(5, turn_id="a")
        )
        assert tail.ended_turn_id == "a"
        assert any("damaged" in one.reason for one in reader.skipped.noted)
    assert rollout(packed[:15], name="head.jsonl.gz").restored() == RolloutTail()


def test_a_compressed_text_that_is_no_rollout_is_refused(rollout: Write) -> None:
    with pytest.raises(NotARolloutError):
        rollout(gzip.compress(b"hello\n")).restored()


@pytest.mark.slow
def test_a_compressed_rollout_is_read_in_little_memory(rollout: Write) -> None:
    many = b"".join(
        text_of([began(f"t{n}"), token_count(n), completed(f"t{n}")]) for n in range(6000)
    )
    reader = rollout(gzip.compress(text_of([meta()]) + many + FILLER * 6000 + b"0" * 2**24, 1))
    with memory_at_most(12):
        assert reader.restored() == RolloutTail(used(5999, turn_id="t5999"), "t5999", "t5999")
    assert reader.skipped.count == 1


def test_a_compressed_rollout_remembers_the_latest_turns(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.tail, "_MAX_TURN_LINES", 4)
    lines = [began("a"), completed("a"), token_count(5), *(began(f"b{n}") for n in range(3))]
    assert rollout(gzip.compress(text_of([meta(), *lines]))).restored() == RolloutTail(
        used(5, turn_id="a"), "b2", "a"
    )
    lines.append(began("b3"))
    assert rollout(gzip.compress(text_of([meta(), *lines]))).restored() == RolloutTail(
        used(5, turn_id="a"), "b3", None
    )


def test_zstandard_is_read_frame_by_frame(rollout: Write) -> None:
    zstandard: Any = pytest.importorskip("zstandard")
    text = text_of([*SOUND, *([line("response_item", {"x": os.urandom(50).hex()})] * 2000)])
    one, two = zstandard.compress(text), zstandard.compress(text_of([token_count(6)]))
    reader = rollout(one, name="rollout.jsonl.zst")
    assert reader.restored() == RolloutTail(used(5, turn_id="a"), "a", "a")
    assert reader.turns() == [Turn("a", COMPLETED)]
    assert reader.skipped.count == 0
    assert rollout(one + two).restored().usage == used(6, turn_id="a"), (
        "several frames follow each other"
    )
    damaged = bytearray(one)
    damaged[-40:] = b"\xff" * 40
    reader = rollout(bytes(damaged))
    assert reader.restored().usage in (used(5), None)
    assert any("damaged" in note.reason for note in reader.skipped.noted)
    assert rollout(one[: len(one) // 2]).restored().ended_turn_id in ("a", None)


def test_zstandard_without_the_package_names_the_extra(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingZstandardError, match=r"goal-state\[zstd\]"):
        rollout(b"\x28\xb5\x2f\xfd" + b"\0" * 20).restored()


def test_zstandard_is_driven_as_its_package_wants(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in, for where the package is not there: what comes before the damage is read."""

    class ZstdError(Exception):
        pass

    class Stream:
        def __init__(self) -> None:
            self.blocks = [text_of(SOUND[:2]), text_of(SOUND[2:])]

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read1(self, size: int) -> bytes:
            if not self.blocks:
                raise ZstdError
            return self.blocks.pop(0)

    class Decompressor:
        def __init__(self, *, max_window_size: int) -> None:
            assert max_window_size <= 2**23

        def stream_reader(self, *_: object, read_across_frames: bool, closefd: bool) -> Stream:
            assert read_across_frames
            assert not closefd
            return Stream()

    fake: Any = ModuleType("zstandard")
    fake.ZstdDecompressor, fake.ZstdError = Decompressor, ZstdError
    monkeypatch.setitem(sys.modules, "zstandard", fake)
    reader = rollout(b"\x28\xb5\x2f\xfd")
    assert reader.restored() == RolloutTail(used(5, turn_id="a"), "a", "a")
    assert reader.skipped.count == 1
