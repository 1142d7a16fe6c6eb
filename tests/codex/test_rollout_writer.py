"""Writing rollouts, through crashes."""

from __future__ import annotations

import errno
import gzip
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from goal_state.codex.rollout import (
    MAX_HELD_BYTES,
    MAX_PARSED_BYTES,
    RolloutReader,
    RolloutWriter,
    Turn,
    find_rollouts,
    rollout_path,
)
from goal_state.errors import InvalidValueError, NotARolloutError, RolloutClosedError
from tests.codex.rollout_lines import (
    COMPLETED,
    FILLER,
    SOUND,
    Write,
    began,
    event,
    line,
    memory_at_most,
    meta,
    text_of,
    token_count,
    used,
)


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


STARTED = datetime(2026, 1, 2, 1, 30, 0, 123_456, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.usefixtures("loose_umask")
def test_create_writes_a_rollout_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with RolloutWriter.create(
        home, "thread-1", started_at=STARTED, meta={"cwd": "/w", "id": "x", "session_id": "s"}
    ) as writer:
        writer.append(token_count(5))
    expected = home / "sessions" / "2026" / "01" / "01"
    assert writer.path == expected / "rollout-2026-01-01T23-30-00-thread-1.jsonl"
    assert mode(writer.path) == 0o600
    for directory in (home, home / "sessions", expected.parent.parent, expected.parent, expected):
        assert mode(directory) == 0o700
    reader = RolloutReader(writer.path)
    assert reader.meta is not None
    assert (reader.meta.thread_id, reader.meta.session_id, reader.meta.cwd) == (
        "thread-1",
        "s",
        "/w",
    )
    assert reader.meta.started_at == datetime(2026, 1, 1, 23, 30, 0, 123_000, tzinfo=UTC)
    assert reader.restored().usage == used(5)
    assert [one.path for one in find_rollouts(home)] == [writer.path]
    with pytest.raises(FileExistsError):
        RolloutWriter.create(home, "thread-1", started_at=STARTED)


def test_the_first_line_is_the_session_in_utc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")  # the machine's own zone does not show in it
        time.tzset()
        RolloutWriter.create(tmp_path, "thread-1", started_at=STARTED, meta={"cwd": "/w"}).close()
    time.tzset()
    [found] = find_rollouts(tmp_path)
    began_at = "2026-01-01T23:30:00.123Z"
    assert [json.loads(one) for one in found.path.read_text().splitlines()] == [
        {
            "timestamp": began_at,
            "ordinal": 0,
            "type": "session_meta",
            "payload": {
                "session_id": "thread-1",
                "cwd": "/w",
                "id": "thread-1",
                "timestamp": began_at,
            },
        }
    ]


def test_create_comes_to_terms_with_another_that_makes_the_same_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.mkdir

    def mkdir(self: Path, *args: Any) -> None:
        real(self)  # the other was faster
        real(self, *args)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    RolloutWriter.create(tmp_path / "home", "thread-1").close()
    assert len(list(find_rollouts(tmp_path / "home"))) == 1


@pytest.mark.usefixtures("loose_umask")
def test_a_writer_makes_a_new_file_for_its_owner_alone(tmp_path: Path) -> None:
    with RolloutWriter(tmp_path / "new.jsonl") as writer:
        writer.append(meta())
    assert mode(writer.path) == 0o600


def test_create_takes_the_present_moment(tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0, tzinfo=None)
    RolloutWriter.create(tmp_path, "thread-1").close()
    [found] = find_rollouts(tmp_path)
    assert before <= found.timestamp <= datetime.now(UTC).replace(tzinfo=None)


EVIL = ["../x", "/etc/x", "..", ".", ".hidden", "a/b", "a\\b", "C:x", "a\nb", "", "-x", "x" * 201]


@pytest.mark.parametrize("thread_id", [*EVIL, "a\0b", "naïve", 5, None])
def test_a_thread_id_that_looks_like_a_path_reaches_nowhere(tmp_path: Path, thread_id: Any) -> None:
    home = tmp_path / "home"
    with pytest.raises(InvalidValueError) as caught:
        RolloutWriter.create(home, thread_id)
    assert caught.value.field == "thread_id"
    assert list(tmp_path.iterdir()) == []


class Guise(str):
    """A text that says something else when it is put into another."""

    __slots__ = ()

    def __str__(self) -> str:
        return "../../../../x"


def test_a_thread_id_is_what_was_checked(tmp_path: Path) -> None:
    with RolloutWriter.create(tmp_path, Guise("thread")) as writer:
        assert writer.path.name.endswith("-thread.jsonl")
        assert tmp_path / "sessions" in writer.path.parents


def test_create_refuses_before_it_creates(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="time zone"):
        RolloutWriter.create(tmp_path, "thread", started_at=STARTED.replace(tzinfo=None))
    with pytest.raises(InvalidValueError, match="JSON"):
        RolloutWriter.create(tmp_path, "thread", meta={"source": object()})
    no_mapping: Any = []
    with pytest.raises(InvalidValueError, match=r"^meta: must be a mapping, not list$"):
        RolloutWriter.create(tmp_path, "thread", meta=no_mapping)
    assert list(tmp_path.iterdir()) == []


def test_the_longest_thread_id_still_makes_a_file(tmp_path: Path) -> None:
    RolloutWriter.create(tmp_path, "x" * 200).close()
    [found] = find_rollouts(tmp_path)
    assert found.path == rollout_path(tmp_path, "x" * 200, found.timestamp.replace(tzinfo=UTC))


def test_a_line_is_one_write_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    synced: list[int] = []
    real_write, real_sync = os.write, os.fsync
    monkeypatch.setattr(
        os, "write", lambda fd, data: (written.append(data), real_write(fd, data))[1]
    )
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), real_sync(fd))[1])
    with RolloutWriter(tmp_path / "a.jsonl") as writer:
        writer.append({"text": "two\nlines\u2028\x85", "名": "✓"})
        assert not synced
    assert written == ['{"text":"two\\nlines\u2028\x85","名":"✓"}\n'.encode()]
    RolloutWriter.create(tmp_path, "unsynced").close()
    assert not synced
    with RolloutWriter.create(tmp_path, "thread", fsync=True) as writer:
        assert len(synced) == 2, "the line, and the name in its directory"
        writer.append({})
    assert len(synced) == 3


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "must be a mapping, not list"),
        ("line", "must be a mapping, not str"),
        (None, "must be a mapping, not NoneType"),
        ({"a": float("nan")}, "cannot be written as JSON (ValueError)"),
        ({"a": "\ud800"}, "cannot be written as JSON (UnicodeEncodeError)"),
        ({"a": object()}, "cannot be written as JSON (TypeError)"),
        ({("a",): 1}, "cannot be written as JSON (TypeError)"),
    ],
    ids=["list", "text", "none", "NaN", "surrogate", "object", "key"],
)
def test_a_line_that_cannot_be_json_is_refused(tmp_path: Path, value: Any, problem: str) -> None:
    with RolloutWriter(tmp_path / "a.jsonl") as writer:
        with pytest.raises(InvalidValueError) as caught:
            writer.append(value)
        assert str(caught.value) == f"line_object: {problem}"
        endless: dict[str, Any] = {}
        endless["self"] = endless
        with pytest.raises(InvalidValueError):
            writer.append(endless)
        assert writer.path.read_bytes() == b""


def test_a_closed_writer_says_so(tmp_path: Path) -> None:
    writer = RolloutWriter(tmp_path / "a.jsonl")
    writer.close()
    writer.close()
    with pytest.raises(RolloutClosedError):
        writer.append({})


@pytest.mark.slow
def test_every_torn_tail_is_mended_and_nothing_whole_is_lost(tmp_path: Path) -> None:
    lines = [meta(), token_count(5), event("agent_message", message="naïve ✓")]
    text = text_of(lines)
    path = tmp_path / "torn.jsonl"
    for size in range(len(text) + 1):
        path.write_bytes(text[:size])
        with RolloutWriter(path) as writer:
            writer.append(token_count(6))
        whole = [one for n, one in enumerate(lines) if len(text_of(lines[: n + 1])) - 1 <= size]
        found = [json.loads(one) for one in path.read_text().splitlines()]
        assert found == [*whole, token_count(6)], f"cut after {size} bytes"


def test_a_tail_of_zeros_is_cut_off_and_one_too_long_to_tell_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "tail.jsonl"
    path.write_bytes(text_of(SOUND) + b"\0" * 5000)
    RolloutWriter(path).close()
    assert path.read_bytes() == text_of(SOUND)
    for size in (MAX_PARSED_BYTES + 1, MAX_HELD_BYTES + 2**17):
        path.write_bytes(text_of(SOUND) + b"{" + b"x" * size)
        with memory_at_most(4), RolloutWriter(path) as writer:
            writer.append(token_count(6))
        assert path.stat().st_size == len(text_of([*SOUND, token_count(6)])) + size + 2 - spared()
        reader = RolloutReader(path)
        assert reader.restored().usage == used(6, turn_id="a")
        assert reader.turns() == [Turn("a", COMPLETED)]
        assert reader.skipped.count == 1


def test_a_torn_tail_as_long_as_may_be_parsed_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "tail.jsonl"
    path.write_bytes(text_of(SOUND) + b"{" + b"x" * (MAX_PARSED_BYTES - 1))
    RolloutWriter(path).close()
    assert path.read_bytes() == text_of(SOUND)


def test_a_torn_tail_of_a_long_file_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    text = text_of(SOUND) + FILLER * (MAX_HELD_BYTES // len(FILLER) + 1)
    path.write_bytes(text + b'{"type": "eve')
    RolloutWriter(path).close()
    assert path.read_bytes() == text


def test_a_tail_is_told_from_reads_that_give_less_than_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tail.jsonl"
    real = os.read
    text = text_of([meta(), began("a")])
    for cut in (1, 2, 10):
        path.write_bytes(text[:-cut])
        with monkeypatch.context() as patched:
            patched.setattr(os, "read", lambda fd, size: real(fd, min(size, 7)))
            RolloutWriter(path).close()
        assert path.read_bytes() == (text if cut == 1 else text_of([meta()]))


def test_a_file_that_ends_with_a_whole_line_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "sound.jsonl"
    for contents in (b"", text_of(SOUND)):
        path.write_bytes(contents)
        os.utime(path, (1, 1))
        RolloutWriter(path).close()
        assert path.read_bytes() == contents
        assert path.stat().st_mtime == 1, "written to, or cut to the length it had"


def spared() -> int:
    """What the writer spares by writing no blanks between the parts of a line."""
    spaced, compact = json.dumps(token_count(6)), json.dumps(token_count(6), separators=(",", ":"))
    return len(spaced) - len(compact)


def test_a_whole_tail_behind_a_byte_order_mark_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "mark.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + text_of([meta()]).rstrip())
    RolloutWriter(path).close()
    assert path.read_bytes() == b"\xef\xbb\xbf" + text_of([meta()])


def test_a_tail_behind_a_byte_order_mark_in_the_middle_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "mark.jsonl"
    path.write_bytes(text_of(SOUND) + b"\xef\xbb\xbf" + text_of([token_count(6)]).rstrip())
    assert RolloutReader(path).restored().usage == used(5, turn_id="a")
    RolloutWriter(path).close()
    assert path.read_bytes() == text_of(SOUND)


def test_a_tail_torn_by_another_writer_is_mended_before_the_next_line(tmp_path: Path) -> None:
    with RolloutWriter(tmp_path / "a.jsonl") as writer:
        writer.append(meta())
        with writer.path.open("ab") as other:
            other.write(b'{"type": "eve')
        writer.append(token_count(5))
        assert [json.loads(one) for one in writer.path.read_text().splitlines()] == [
            meta(),
            token_count(5),
        ]


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RolloutWriter(tmp_path / "a.jsonl") as writer:
        writer.append(meta())
        before = writer.path.read_bytes()
        real = os.write
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
            with pytest.raises(OSError, match="10 of") as caught:
                writer.append(token_count(5))
        assert caught.value.errno == errno.ENOSPC
        assert writer.path.read_bytes() == before
        writer.append(token_count(6))
    assert RolloutReader(tmp_path / "a.jsonl").restored().usage == used(6)


def test_a_compressed_rollout_is_not_appended_to(rollout: Write) -> None:
    reader = rollout(gzip.compress(text_of(SOUND)))
    before = reader.path.read_bytes()
    with pytest.raises(NotARolloutError, match="compressed"):
        RolloutWriter(reader.path)
    assert reader.path.read_bytes() == before


def test_lines_of_many_writers_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    shared = RolloutWriter(path)
    shared.append(meta())

    def write(name: int) -> None:
        with RolloutWriter(path) as own:
            for number in range(30):
                (own if number % 2 else shared).append(
                    line("event_msg", {"name": name, "number": number, "text": "x" * 5000})
                )

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shared.close()
    payloads = [json.loads(one)["payload"] for one in path.read_text().splitlines()][1:]
    for name in range(4):
        assert [one["number"] for one in payloads if one["name"] == name] == list(range(30))


def test_a_writer_waits_for_the_lock_of_another(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with RolloutWriter(tmp_path / "a.jsonl") as writer, writer.path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b'{"half":')
        other.flush()
        thread = threading.Thread(target=writer.append, args=(meta(),))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        other.write(b"1}\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_UN)
        thread.join()
        assert [json.loads(one) for one in writer.path.read_text().splitlines()] == [
            {"half": 1},
            meta(),
        ]


def test_threads_that_share_a_writer_append_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []
    most: list[int] = []
    real = os.lseek

    def slow_seek(descriptor: int, offset: int, whence: int) -> int:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return real(descriptor, offset, whence)

    with RolloutWriter(tmp_path / "a.jsonl") as writer:
        monkeypatch.setattr(os, "lseek", slow_seek)
        threads = [threading.Thread(target=writer.append, args=(meta(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(most) == 1
    assert len(most) >= 4
