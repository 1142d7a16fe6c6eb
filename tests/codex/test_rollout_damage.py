"""Rollouts in every state of damage: read as far as they go, or refused."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from goal_state.codex.rollout import (
    MAX_HELD_BYTES,
    MAX_PARSED_BYTES,
    RolloutReader,
    RolloutTail,
    RolloutWriter,
    SessionMeta,
    SkippedLine,
    SkippedLines,
    Turn,
    TurnStatus,
)
from goal_state.domain.usage import TokenUsage
from goal_state.errors import MissingZstandardError, NotARolloutError, RequestError
from tests.codex.rollout_lines import (
    COMPLETED,
    PARENT,
    SOUND,
    Write,
    event,
    line,
    meta,
    recorded,
    text_of,
    token_count,
    used,
)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" \t\r\n\r\n\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_blanks_and_a_byte_order_mark(rollout: Write, mark: bytes, end: bytes) -> None:
    reader = rollout(mark, text_of(SOUND, end))
    assert reader.restored() == RolloutTail(used(5, turn_id="a"), "a", "a")
    assert reader.turns() == [Turn("a", COMPLETED)]
    assert reader.meta is not None
    assert reader.meta.thread_id == "thread"
    assert reader.skipped.count == 0


DAMAGE: dict[str, tuple[bytes, str]] = {
    "not JSON": (b'{"type": "token_count", nonsense}\n', "not JSON"),
    "text": (b"hello\n", "not JSON"),
    "a list": (b"[1, 2]\n", "not a JSON object"),
    "zeros": (b"\0" * 4096 + b"\n", "not JSON"),
    "not UTF-8": (b'{"type": "\xff\xfe"}\n', "not UTF-8"),
    "deep": (b'{"type": "token_count", "x": ' + b"[" * 100_000 + b"\n", "not JSON"),
    "digits": (b'{"type": "token_count", "x": ' + b"1" * 5000 + b"}\n", "not JSON"),
    "something around it": (b'X{"type": "other"}X\n', "not JSON"),
    "a blank that JSON does not know": (b'\f{"type": "other"}\n', "not JSON"),
    "two in one": (b'{"a": 1}{"type": "token_count"}\n', "not JSON"),
}


@pytest.mark.parametrize(("broken", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_a_broken_line_is_skipped_and_counted(rollout: Write, broken: bytes, reason: str) -> None:
    first, *others = SOUND
    reader = rollout(first, broken, *others)
    assert reader.turns() == [Turn("a", COMPLETED)]
    assert [(one.offset, one.reason) for one in reader.skipped.noted] == [
        (len(text_of([first])), reason)
    ]
    assert reader.skipped.noted[0].path == reader.path
    assert list(reader.usages()) == [used(5, turn_id="a")]
    assert reader.skipped.count == 1

    at_the_end = rollout(*SOUND, broken, name="end.jsonl")
    assert at_the_end.restored() == RolloutTail(used(5, turn_id="a"), "a", "a")
    assert at_the_end.skipped.count == 1


UNPARSED: dict[str, tuple[bytes, str | None]] = {
    "no end": (b'{"type": "response_item"', "not a JSON object"),
    "no beginning": (b'"type": "response_item"}', "not a JSON object"),
    "not UTF-8": (b'{"x": "\xff\xfe"}', "not UTF-8"),
    "not UTF-8, as long as may be parsed": (
        b"{" + b"\xff" * (MAX_PARSED_BYTES - 2) + b"}",
        "not UTF-8",
    ),
    "too long to be decoded": (b"{" + b"\xff" * (MAX_PARSED_BYTES - 1) + b"}", None),
    "as long as may be held": (b"x" * MAX_HELD_BYTES, "not a JSON object"),
    "longer": (b"{" + b"x" * (MAX_HELD_BYTES - 1) + b"}", f"longer than {MAX_HELD_BYTES} bytes"),
}


@pytest.mark.parametrize(("broken", "reason"), UNPARSED.values(), ids=UNPARSED)
def test_what_gives_a_line_away_that_says_nothing(
    rollout: Write, broken: bytes, reason: str | None
) -> None:
    """Backwards, a line that is about neither turns nor usage is not parsed."""
    begin = len(text_of(SOUND))
    for end, kind in ((b"\n", ""), (b"", "torn: ")):
        reader = rollout(*SOUND, broken + end)
        assert reader.restored() == RolloutTail(used(5, turn_id="a"), "a", "a")
        if reason is not None and reason.startswith("longer"):
            kind = ""
        expected = [] if reason is None else [SkippedLine(reader.path, begin, kind + reason)]
        assert list(reader.skipped.noted) == expected


@pytest.mark.parametrize("size", range(2**16 - 2, 2**16 + 3))
def test_lines_are_told_apart_wherever_blocks_end(rollout: Write, size: int) -> None:
    """Files are read in blocks of 64 KiB, from either end. A size of 2^16 - 1 leaves one byte over."""
    first, last = meta(note=""), event("task_started", turn_id="a", note="")
    for one in (first, last):
        one["payload"]["note"] = "x" * (size - len(text_of([one])))
    parts = [text_of([first]), b"x\n", b"x" * (size - 1) + b"\n", b"x\n", text_of([last])]
    begins = [len(b"".join(parts[:number])) for number in (1, 2, 3)]
    reader = rollout(*parts)
    assert reader.turns() == [Turn("a", TurnStatus.IN_PROGRESS)]
    assert [one.offset for one in reader.skipped.noted] == begins
    assert reader.restored() == RolloutTail(last_turn_id="a")
    assert [one.offset for one in reader.skipped.noted] == begins[::-1]


def test_the_first_line_is_read_last_and_whole(rollout: Write) -> None:
    counted = token_count(5)
    counted["payload"]["note"] = "".join(f"{number:x}," for number in range(50_000))
    for mark in (b"", b"\xef\xbb\xbf"):
        reader = rollout(mark, counted, line("response_item", {}))
        assert reader.restored().usage == used(5)
        assert reader.skipped.count == 0
    reader = rollout(b"x" * 200_000 + b"\n", meta())
    assert reader.restored() == RolloutTail()
    assert reader.skipped.noted == (SkippedLine(reader.path, 0, "not a JSON object"),)


@pytest.mark.parametrize("before", [b"", text_of([meta()])], ids=["first", "second"])
def test_a_line_is_held_up_to_a_length_and_no_longer(rollout: Write, before: bytes) -> None:
    """Held, it is found too long to be parsed."""
    for size, most in ((MAX_HELD_BYTES, MAX_PARSED_BYTES), (MAX_HELD_BYTES + 1, MAX_HELD_BYTES)):
        reader = rollout(before, b"x" * size + b"\n", *SOUND)
        assert reader.turns() == [Turn("a", COMPLETED)]
        assert reader.skipped.noted == (
            SkippedLine(reader.path, len(before), f"longer than {most} bytes"),
        )


@pytest.mark.parametrize(
    "read",
    [RolloutReader.restored, RolloutReader.turns, lambda reader: list(reader.usages())],
    ids=["restored", "turns", "usages"],
)
def test_where_a_compressed_rollout_breaks_off_is_noted(rollout: Write, read: Any) -> None:
    text = text_of(SOUND)
    reader = rollout(gzip.compress(text)[:-4])
    assert read(reader)
    assert reader.skipped == SkippedLines(
        1,
        (
            SkippedLine(
                reader.path,
                len(text),
                "damaged compressed data: nothing after it can be read",
            ),
        ),
    )


def test_a_broken_first_line_costs_the_meta_alone(rollout: Write) -> None:
    reader = rollout(b"\0\0\0\n", *SOUND[1:])
    assert reader.meta is None
    assert reader.restored().usage == used(5, turn_id="a")


def test_a_torn_last_line_says_so_and_a_whole_one_without_newline_counts(rollout: Write) -> None:
    whole = text_of([*SOUND, token_count(6)]).rstrip()
    assert rollout(whole).restored().usage == used(6, turn_id="a")
    reader = rollout(whole[:-1])
    assert reader.restored().usage == used(5, turn_id="a")
    [torn] = reader.skipped.noted
    assert torn.reason == "torn: not JSON"
    assert torn.offset == len(text_of(SOUND))


def test_skipped_keeps_few_lines_and_counts_them_all(rollout: Write) -> None:
    reader = rollout(SOUND[0], b"x\n" * 500, *SOUND[1:])
    reader.turns()
    assert reader.skipped.count == 500
    assert len(reader.skipped.noted) == 20
    reader.turns()
    assert reader.skipped.count == 500, "each call counts anew"


def test_unknown_types_and_fields_are_no_fault(rollout: Write) -> None:
    unknown = [
        line("hologram", {"type": "token_count", "info": token_count(99)["payload"]["info"]}),
        event("token_count_of_another_kind", info={}),
        {"type": "token_count"},
        {"payload": {"type": "error"}},
        {"type": "event_msg", "payload": ["token_count"]},
        {"type": ["event_msg"], "payload": {"type": {"token_count": 1}}},
    ]
    reader = rollout(meta(extra={"deep": [1]}), *SOUND[1:], *unknown)
    assert reader.restored().usage == used(5, turn_id="a")
    assert reader.turns() == [Turn("a", COMPLETED)]
    assert reader.skipped.count == 0


def test_an_empty_file_has_nothing(rollout: Write) -> None:
    for contents in (b"", b"\n\r\n", b"\xef\xbb\xbf"):
        reader = rollout(contents)
        assert reader.restored() == RolloutTail()
        assert reader.restored().turn_id == ""
        assert reader.turns() == list(reader.usages()) == []
        assert reader.meta is None
        assert reader.skipped.count == 0


def test_nothing_is_skipped_before_anything_is_read(tmp_path: Path) -> None:
    assert RolloutReader(tmp_path / "missing.jsonl").skipped == SkippedLines()


def test_meta_is_found_once_it_is_there(rollout: Write) -> None:
    reader = rollout(b"")
    assert reader.meta is None
    rollout(meta("late"))
    assert reader.meta is not None
    assert reader.meta.thread_id == "late"


def test_meta_is_read_once_and_is_the_files_own(rollout: Write) -> None:
    reader = rollout(meta("own", timestamp="2026-11-20"), meta("copied from the parent"))
    found = reader.meta
    reader.path.unlink()
    assert found is not None
    assert found.thread_id == "own"
    assert found.started_at is None
    assert reader.meta is found


@pytest.mark.parametrize(
    "first",
    [
        text_of([event("agent_message")]),
        b'{"type": "session_meta", torn\n',
        b"{" + b"x" * MAX_HELD_BYTES + b"}\n",
        text_of([{"type": "session_meta", "payload": ["id"]}]),
        text_of([line("session_meta", {"cwd": "/"})]),
        text_of([event("session_meta", id="other")]),
    ],
    ids=["event", "torn", "long", "list", "no thread", "another type"],
)
def test_meta_need_not_be_the_first_line(rollout: Write, first: bytes) -> None:
    found = rollout(first, meta("thread")).meta
    assert found is not None
    assert found.thread_id == found.session_id == "thread"


def test_meta_is_looked_for_in_the_first_32_lines(rollout: Write) -> None:
    before = [event("agent_message")] * 31
    assert rollout(*before, meta()).meta is not None
    assert rollout(*before, *before[:1], meta()).meta is None


def test_meta_is_looked_for_as_far_as_a_compressed_file_can_be_read(rollout: Write) -> None:
    reader = rollout(gzip.compress(text_of([event("agent_message")]))[:-4])
    assert reader.meta is None


def test_what_meta_states_malformed_is_none(rollout: Write) -> None:
    found = rollout(
        meta(session_id="", forked_from_id=5, cli_version=1, originator=["A"], source=5, cwd=None)
    ).meta
    assert found == SessionMeta(
        thread_id="thread",
        session_id="thread",
        forked_from_id=None,
        history_base=None,
        started_at=None,
        cli_version=None,
        originator=None,
        source=5,
        cwd=None,
    )


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("2026-11-20T19:45:54.480Z", datetime(2026, 11, 20, 19, 45, 54, 480_000, tzinfo=UTC)),
        ("2026-11-20T21:45:54+02:00", datetime(2026, 11, 20, 19, 45, 54, tzinfo=UTC)),
        ("2026-11-20T19:45:54", datetime(2026, 11, 20, 19, 45, 54, tzinfo=UTC)),
        ("0001-01-01T00:00:00+14:00", None),
        ("2026-13-20T19:45:54Z", None),
        (1_795_203_954, None),
    ],
)
def test_a_malformed_start_of_a_session_is_none(
    rollout: Write, monkeypatch: pytest.MonkeyPatch, stated: Any, expected: datetime | None
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")  # a time without a zone is not this machine's
        time.tzset()
        found = rollout(meta(timestamp=stated)).meta
    time.tzset()
    assert found is not None
    assert found.started_at == expected
    assert found.started_at is None or found.started_at.tzinfo is UTC


NO_ROLLOUTS: dict[str, bytes] = {
    "text": b"hello\nworld\n",
    "text without a newline": b"hello",
    "a database": b"SQLite format 3\0" + b"\0\x01" * 5000,
    "another JSON": b'{\n  "type": "x",\n  "payload": {}\n}\n',
    "something in braces": b"{text}\n",
    "one JSON object": b'{"a": 1}',
    "other lines": b'{"a": 1}\n' * 40,
    "a rollout after 32 other lines": b'{"a": 1}\n' * 32 + text_of(SOUND),
    "a type without a payload": b'{"type": "event_msg"}\n',
    "a payload without a type": b'{"payload": {}}\n',
    "a type that is no text": b'{"type": 5, "payload": {}}\n',
    "UTF-16": '{"type": "event_msg", "payload": {}}\n'.encode("utf-16"),
    "one endless line": b"{" * (MAX_HELD_BYTES + 1),
}


@pytest.mark.parametrize("contents", NO_ROLLOUTS.values(), ids=NO_ROLLOUTS)
def test_a_file_that_is_no_rollout_is_a_clear_error(rollout: Write, contents: bytes) -> None:
    reader = rollout(contents)
    for read in (reader.restored, reader.turns, lambda: list(reader.usages()), lambda: reader.meta):
        with pytest.raises(NotARolloutError, match=r"rollout\.jsonl: not a rollout"):
            read()
    with pytest.raises(NotARolloutError):
        RolloutWriter(reader.path)
    assert reader.path.read_bytes() == contents
    assert issubclass(NotARolloutError, RequestError)


def test_a_rollout_may_begin_with_31_other_lines(rollout: Write) -> None:
    assert rollout(b'{"a": 1}\n' * 31, *SOUND).restored().usage == used(5, turn_id="a")


def test_the_path_of_a_rollout_that_needs_the_package_is_named(
    rollout: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    reader = rollout(b"\x28\xb5\x2f\xfd" + b"\0" * 20)
    with pytest.raises(MissingZstandardError) as caught:
        reader.restored()
    assert str(caught.value).startswith(f"{reader.path}: compressed with Zstandard;")


def test_paths_that_lead_to_no_file(tmp_path: Path) -> None:
    loop, pipe = tmp_path / "loop.jsonl", tmp_path / "pipe.jsonl"
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    for open_it in (lambda path: RolloutReader(path).restored(), RolloutWriter):
        with pytest.raises(NotARolloutError, match="symlink that leads back"):
            open_it(loop)
        with pytest.raises(NotARolloutError, match="not a regular file"):
            open_it(tmp_path)
        with pytest.raises(NotARolloutError, match="not a regular file"):
            open_it(pipe)
        with pytest.raises(NotARolloutError, match="not a path"):
            open_it("\0")
    with pytest.raises(FileNotFoundError):
        RolloutReader(tmp_path / "missing.jsonl").restored()


def test_a_symlink_to_a_rollout_is_followed(rollout: Write, tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(rollout(*SOUND).path)
    assert RolloutReader(tmp_path / "link.jsonl").restored().usage == used(5, turn_id="a")


# --- Every prefix, and fuzzing -------------------------------------------------------------------------


def stated_usages(text: bytes) -> list[tuple[int, int]]:
    """Where each usage line ends (without its newline), and its total: worked out apart from the reader."""
    found: list[tuple[int, int]] = []
    end = 0
    for one in text.splitlines(keepends=True):
        end += len(one)
        payload = json.loads(one)["payload"]
        if "thread_token_usage" in payload:
            found.append((end - 1, payload["thread_token_usage"]["total_tokens"]))
        elif payload.get("info"):
            found.append((end - 1, payload["info"]["total_token_usage"]["total_tokens"]))
    return found


@pytest.mark.slow
def test_every_prefix_of_a_real_rollout_gives_its_newest_whole_usage(tmp_path: Path) -> None:
    text = recorded("01a1fa7e-8cb1-7a32-930a-960d950ebfb8").read_bytes()
    usages = stated_usages(text)
    assert len(usages) == 2
    path = tmp_path / "prefix.jsonl"
    shutil.copy(recorded("01a1fa7e-8cb1-7a32-930a-960d950ebfb8"), path)
    path.chmod(0o600)
    reader = RolloutReader(path)
    for size in range(len(text), -1, -1):
        os.truncate(path, size)
        expected = [total for end, total in usages if end <= size]
        tail = reader.restored()
        totals = [] if tail.usage is None else [tail.usage.total.total_tokens]
        assert totals == expected[-1:], f"prefix of {size} bytes"
        cut = text[:size].rpartition(b"\n")[2]
        whole = not cut or (size < len(text) and text[size : size + 1] == b"\n")
        assert reader.skipped.count <= (not whole), f"prefix of {size} bytes"
        if size % 7 == 0:
            assert [one.total.total_tokens for one in reader.usages()] == expected[-1:]
            assert reader.skipped.count == (not whole), f"prefix of {size} bytes"
            assert len(reader.turns()) <= 1


REAL = recorded(PARENT).read_bytes()
REAL_TOTALS = {total for _, total in stated_usages(REAL)}
damages = st.lists(
    st.tuples(
        st.integers(0, len(REAL) - 1), st.integers(0, 300), st.binary(max_size=20) | st.just(b"\n")
    ),
    max_size=4,
)


@pytest.mark.slow
@given(damages)
@example([(0, 300, b"")])
def test_damage_never_makes_a_usage_or_an_undocumented_error(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, int, bytes]]
) -> None:
    text = REAL
    for begin, size, put in cuts:
        # Digits are left out: with them a damaged number may be another number.
        text = text[:begin] + put.translate(None, b"0123456789") + text[begin + size :]
    path = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    path.write_bytes(text)
    reader = RolloutReader(path)
    lines_left = text.split(b"\n")
    try:
        tail, usages, turns = reader.restored(), list(reader.usages()), reader.turns()
    except NotARolloutError:
        assert not any(one in lines_left for one in REAL.splitlines()[:32])
        return
    assert reader.skipped.count <= len(lines_left)
    assert {turn.status for turn in turns} <= set(TurnStatus)
    assert tail.usage == (usages[-1] if usages else None)
    untouched = [one for one in REAL.splitlines() if one in lines_left]
    if len(untouched) == len(REAL.splitlines()):
        assert tail.usage is not None
        assert tail.usage.total.total_tokens in REAL_TOTALS
    for usage in usages:
        # A cut within one line may shorten a number, never invent one: each stands in the file.
        for number in usage.total.to_mapping().values():
            assert str(number).encode() in text or number == derived_total(usage.total)


def derived_total(usage: TokenUsage) -> int:
    return usage.input_tokens + usage.output_tokens


@pytest.mark.slow
@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, contents: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(contents)
    reader = RolloutReader(path)
    try:
        assert reader.restored().usage is None
        assert list(reader.usages()) == reader.turns() == []
        assert reader.meta is None
    except (NotARolloutError, MissingZstandardError):
        assert contents.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n")


NAMES = [
    "turn_id",
    "info",
    "usage",
    "total_token_usage",
    "thread_token_usage",
    "input_tokens",
    "num_turns",
    "error",
    "id",
    "codex_error_info",
    "history_base",
    "timestamp",
    "session_id",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            children,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["event_msg", "token_usage_record", "turn_context", "session_meta"]),
            st.sampled_from(["token_count", "task_started", "task_complete", "turn_aborted"])
            | st.sampled_from(["error", "thread_rolled_back"]),
            st.dictionaries(
                st.sampled_from(NAMES),
                json_values,
                max_size=5,
            ),
        ),
        max_size=6,
    )
)
def test_payloads_of_any_shape_are_read_or_skipped(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, str, dict[str, Any]]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "shapes.jsonl"
    path.write_bytes(
        text_of([meta("m"), *(line(kind, {**rest, "type": event}) for kind, event, rest in said)])
    )
    reader = RolloutReader(path)
    tail, usages = reader.restored(), list(reader.usages())
    assert tail.usage == (usages[-1] if usages else None)
    assert reader.skipped.count <= len(said)
    assert len({turn.turn_id for turn in reader.turns()}) <= len(said)
    assert reader.meta is not None
