"""No rollout, and no folder of them, makes reading unbounded: what is too much is passed over and counted."""

from __future__ import annotations

import gzip
import os
import struct
from functools import partial
from pathlib import Path

import pytest

import goal_state.codex.rollout.lines
import goal_state.codex.rollout.paths
import goal_state.codex.rollout.reader
from goal_state.codex.rollout import (
    MAX_LINES,
    MAX_READ_BYTES,
    MAX_SEARCHED_BYTES,
    RolloutReader,
    RolloutTail,
    RolloutWriter,
    find_rollout,
    find_rollouts,
)
from goal_state.errors import NotARolloutError
from tests.codex.rollout_lines import (
    FILLER,
    SOUND,
    Write,
    began,
    bytes_read,
    completed,
    event,
    memory_at_most,
    meta,
    text_of,
    token_count,
    used,
    write_rollout,
)
from tests.processes import python

_HUGE_BYTES = 10**13
_MEMBER = gzip.compress(b"")
_READ_ALL = """
import sys
from goal_state.codex.rollout import RolloutReader
from goal_state.errors import NotARolloutError
from tests.processes import peak_memory_mib
reader = RolloutReader(sys.argv[1])
for read in (reader.restored, reader.turns, lambda: list(reader.usages()), lambda: reader.meta):
    try:
        print(bool(read()), reader.skipped.count, reader.skipped.noted[-1].reason)
    except NotARolloutError:
        print("no rollout")
    except IndexError:
        print("nothing skipped")
assert peak_memory_mib() < 200
"""


def read_all(path: Path) -> list[str]:
    """What reading in every way says, in a process that is ended where it does not come to an end."""
    return python(_READ_ALL, path).splitlines()


@pytest.fixture
def rollout(tmp_path: Path) -> Write:
    return partial(write_rollout, tmp_path)


def sparse(path: Path, head: bytes, size: int = _HUGE_BYTES, tail: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(head)
        file.seek(size)
        file.write(tail)
        file.truncate()
    return path


# -- files without an end --------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_terabytes_without_a_newline_are_no_rollout(tmp_path: Path) -> None:
    path = sparse(tmp_path / "zeros.jsonl", b"")
    assert read_all(path) == ["no rollout"] * 4
    with pytest.raises(NotARolloutError, match="not a rollout"):
        RolloutWriter(path)
    half = sparse(tmp_path / "half.jsonl", b'{"type":"session_meta","payload":')
    assert read_all(half) == ["no rollout"] * 4


@pytest.mark.slow
def test_ten_terabytes_of_one_line_behind_a_sound_head_are_passed_over(tmp_path: Path) -> None:
    path = sparse(tmp_path / "long.jsonl", text_of(SOUND))
    far = f"nothing before the last {MAX_SEARCHED_BYTES} bytes is read"
    long = f"nothing after {MAX_READ_BYTES} bytes is read"
    restored, turns, usages, described = read_all(path)
    assert restored == f"True 1 {far}"  # a tail is told, of which nothing is known
    assert turns == usages == f"True 2 {long}"
    assert described == f"True 2 {long}"


def test_a_search_backwards_ends_at_its_bound(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.lines, "MAX_SEARCHED_BYTES", 2**20)
    near = rollout(*SOUND, FILLER * 100)
    assert near.restored().usage == used(5, turn_id="a")
    assert near.skipped.count == 0
    far = rollout(*SOUND, FILLER * 2000)
    with bytes_read(monkeypatch) as sizes:
        assert far.restored() == RolloutTail()
    assert sum(sizes) < 2**20 + 2**18
    [noted] = far.skipped.noted
    assert noted.offset == far.path.stat().st_size - 2**20
    assert noted.reason == "nothing before the last 1048576 bytes is read"


@pytest.mark.parametrize("filler", [b"\n", b"{}\n", b"x\n"])
def test_lines_of_nothing_are_counted_as_well(
    filler: bytes, rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.lines, "MAX_LINES", 1000)
    reader = rollout(*SOUND, filler * 990)
    assert reader.restored().usage == used(5, turn_id="a")
    assert len(reader.turns()) == 1
    reader = rollout(*SOUND, filler * 1000)
    assert reader.restored() == RolloutTail()
    assert reader.skipped.count == {b"\n": 1, b"{}\n": 1, b"x\n": 1000}[filler]
    late = rollout(meta(), filler * 1000, *SOUND[1:])
    assert late.turns() == []
    assert late.restored().usage == used(5, turn_id="a")


def test_more_turns_than_are_kept_leave_the_latest(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.reader, "_MAX_TURNS", 3)
    reader = rollout(meta(), *(began(name) for name in "abcde"))
    assert [turn.turn_id for turn in reader.turns()] == ["c", "d", "e"]
    assert [one.reason for one in reader.skipped.noted] == ["more than 3 turns"] * 2


@pytest.mark.slow
def test_turns_that_are_dropped_again_and_again_cost_no_more(rollout: Write) -> None:
    dropped = event("thread_rolled_back", num_turns=1)
    turns = [began(str(number)) for number in range(5_000)]
    reader = rollout(meta(), *turns, *[dropped] * 4_000)
    assert [turn.turn_id for turn in reader.turns()] == [str(number) for number in range(1_000)]
    all_of_them = event("thread_rolled_back", num_turns=2**63 - 1)
    reader = rollout(meta(), token_count(5), *turns, all_of_them)
    assert reader.restored() == RolloutTail(used(5), None, None)
    assert rollout(*SOUND, completed("a"), all_of_them).turns() == []


# -- bombs -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_gzip_bomb_ends_at_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.lines, "MAX_READ_BYTES", 2**24)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(text_of(SOUND)) + gzip.compress(bytes(2**26)) * 3)
    reader = RolloutReader(path)
    with memory_at_most(32):
        assert reader.restored().usage == used(5, turn_id="a")
    assert reader.skipped.noted[-1].reason == f"nothing after {2**24} bytes is read"
    lines = tmp_path / "lines.jsonl.gz"
    lines.write_bytes(gzip.compress(text_of(SOUND) + b"\n" * (MAX_LINES + 5)))
    reader = RolloutReader(lines)
    assert reader.restored().usage == used(5, turn_id="a")
    assert [one.reason for one in reader.skipped.noted] == [
        f"nothing after {MAX_LINES} lines is read"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"", id="padding"),
        pytest.param(_MEMBER[:3] + b"\x08" + _MEMBER[4:10] + b"x" * 2**22, id="name"),
        pytest.param(_MEMBER * 200_000, id="members"),
    ],
)
def test_what_gzip_reads_byte_by_byte_has_an_end(tmp_path: Path, rest: bytes) -> None:
    path = sparse(tmp_path / "small.jsonl.gz", gzip.compress(text_of(SOUND)) + rest)
    restored = read_all(path)[0]
    assert restored == "True 1 too much compressed data: nothing after it is read"


@pytest.mark.slow
def test_compressed_data_that_stands_for_nothing_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zstandard = pytest.importorskip("zstandard")
    head = zstandard.ZstdCompressor().compress(text_of(SOUND))
    skippable = struct.pack("<II", 0x184D2A50, 2**32 - 1)
    path = sparse(tmp_path / "skipped.jsonl.zst", head + skippable)
    assert read_all(path)[0] == "True 1 too much compressed data: nothing after it is read"
    monkeypatch.setattr(goal_state.codex.rollout.lines, "MAX_READ_BYTES", 2**24)
    bomb = tmp_path / "bomb.jsonl.zst"
    bomb.write_bytes(head + zstandard.ZstdCompressor().compress(bytes(2**28)))
    reader = RolloutReader(bomb)
    with memory_at_most(32):
        assert reader.restored().usage == used(5, turn_id="a")
    assert reader.skipped.noted[-1].reason == f"nothing after {2**24} bytes is read"


def test_stored_blocks_of_gzip_end_at_the_bound_of_what_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.lines, "MAX_COMPRESSED_BYTES", 2**20)
    path = tmp_path / "plain.jsonl.gz"
    path.write_bytes(gzip.compress(text_of(SOUND) + os.urandom(2**21), compresslevel=0))
    reader = RolloutReader(path)
    assert reader.restored().usage == used(5, turn_id="a")
    with goal_state.codex.rollout.lines.open_rollout(path) as opened:
        ledger = goal_state.codex.rollout.lines.SkipLedger()
        assert sum(len(line.content or b"") for line in opened.forwards(ledger)) < 2**20
    assert [one.reason for one in ledger.noted] == [
        "too much compressed data: nothing after it is read"
    ]


# -- folders ---------------------------------------------------------------------------------------------


def place(home: Path, name: str = "rollout-2026-11-20T10-00-00-a.jsonl") -> Path:
    day = home / "sessions" / "2026" / "11" / "20"
    day.mkdir(parents=True, exist_ok=True)
    return day / name


def test_a_folder_with_too_many_entries_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path).write_bytes(text_of(SOUND))
    for number in range(10):
        place(tmp_path, f"junk-{number}").touch()
    monkeypatch.setattr(goal_state.codex.rollout.paths, "MAX_DIRECTORY_ENTRIES", 11)
    assert find_rollout(tmp_path, "a") == place(tmp_path)
    monkeypatch.setattr(goal_state.codex.rollout.paths, "MAX_DIRECTORY_ENTRIES", 10)
    with pytest.raises(OSError, match="too many entries") as caught:
        list(find_rollouts(tmp_path))
    assert caught.value.filename == str(place(tmp_path).parent)


def test_entries_are_counted_over_all_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path).write_bytes(text_of(SOUND))
    monkeypatch.setattr(goal_state.codex.rollout.paths, "_MAX_ENTRIES", 4)
    assert len(list(find_rollouts(tmp_path))) == 1
    place(tmp_path).parent.with_name("19").mkdir()
    with pytest.raises(OSError, match="too many entries"):
        list(find_rollouts(tmp_path))


def test_folders_that_lead_to_one_another_are_listed_once(tmp_path: Path) -> None:
    place(tmp_path).write_bytes(text_of(SOUND))
    year = tmp_path / "sessions" / "2026"
    for number in range(1, 10):
        (tmp_path / "sessions" / f"202{number % 6}").exists() or (
            tmp_path / "sessions" / f"202{number % 6}"
        ).symlink_to(year)
        (year / f"0{number}").symlink_to(year / "11")
        (year / "11" / f"0{number}").symlink_to(year / "11" / "20")
    (year / "11" / "31").symlink_to(year / "11" / "31")
    (year / "12").symlink_to(tmp_path / "sessions")
    assert [found.thread_id for found in find_rollouts(tmp_path)] == ["a"]


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "loop"])
def test_what_is_no_file_is_neither_found_nor_opened(tmp_path: Path, kind: str) -> None:
    path = place(tmp_path)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path)
    assert list(find_rollouts(tmp_path)) == []
    with pytest.raises(NotARolloutError):
        RolloutReader(path).restored()


def test_a_chain_of_forks_ends_at_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_state.codex.rollout.reader, "_MAX_ANCESTORS", 5)

    def write(number: int) -> Path:
        base = {"thread_id": f"t{number + 1}", "end_ordinal_exclusive": 10}
        path = tmp_path / f"t{number}.jsonl"
        path.write_bytes(text_of([meta(id=f"t{number}", history_base=base)]))
        return path

    paths = {f"t{number}": write(number) for number in range(20)}
    asked: list[str] = []

    def find(thread_id: str) -> Path | None:
        asked.append(thread_id)
        return paths.get(thread_id)

    reader = RolloutReader(paths["t0"])
    assert reader.restored(find) == RolloutTail()
    assert len(asked) == 6
    assert reader.skipped.noted[-1].reason == "more than 5 forks away"
