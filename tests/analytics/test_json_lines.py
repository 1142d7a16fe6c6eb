"""The file of JSON lines: whole lines whatever happens, rotated, readable by its owner alone."""

from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from goal_state import GoalEvent, GoalStore, InvalidValueError
from goal_state.analytics import AnalyticsEvent, JsonLinesSink
from goal_state.analytics.line_file import LineFile
from tests.processes import finish, python, running


def files(target: Path) -> list[Path]:
    """The rotated files, oldest first, and the current one."""
    rotated = [file for file in target.parent.iterdir() if re.search(r"\.\d+$", file.name)]
    return [*sorted(rotated, key=lambda file: int(file.suffix[1:])), target]


def lines(target: Path) -> list[Any]:
    return [json.loads(line) for file in files(target) for line in file.read_text().splitlines()]


def batch(store: GoalStore, count: int) -> list[AnalyticsEvent]:
    for _ in range(count):
        store.replace("thread-1", "Ship it")
    events = [AnalyticsEvent(event) for event in store.events()]
    return events[-count:]


def test_one_line_per_event_appended_to_what_is_there(store: GoalStore, tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    sent: list[AnalyticsEvent] = []
    for count in (1, 3):
        sent += (events := batch(store, count))
        JsonLinesSink(target)(events)
    assert lines(target) == [event.payload for event in sent]


def only_id(event: GoalEvent) -> dict[str, str]:
    """A payload that is as long for each event."""
    return {"event_id": event.event_id}


def test_what_is_full_is_renamed_and_nothing_is_lost(store: GoalStore, tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    size = len(json.dumps(only_id(batch(store, 1)[0].event))) + 1
    sink = JsonLinesSink(target, max_file_bytes=3 * size)
    sent: list[AnalyticsEvent] = []
    for count in (2, 1, 1, 5, 1, 2, 1):
        events = [AnalyticsEvent(one.event, only_id) for one in batch(store, count)]
        sent += events
        sink(events)
    counts = [len(file.read_text().splitlines()) for file in files(target)]
    # Batches are not split: the one of five has a file of its own.
    assert counts == [3, 1, 5, 3, 1]
    assert files(target)[0].name == "events.jsonl.1"
    assert lines(target) == [event.payload for event in sent]


def test_numbers_go_on_where_older_files_were_taken_away(tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    full = LineFile(target, max_file_bytes=1)
    for number in range(12):
        full.append([f"{number}"])
    for file in files(target)[:9]:
        file.unlink()
    full.append(["12"])
    assert [file.name for file in files(target)] == [
        "events.jsonl.10",
        "events.jsonl.11",
        "events.jsonl.12",
        "events.jsonl",
    ]
    assert lines(target) == [9, 10, 11, 12]


WRITER = """
import json, sys
from goal_state.analytics.line_file import LineFile
path, writer, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
file = LineFile(path, max_file_bytes=4096)
print("ready", flush=True)
sys.stdin.readline()
for number in range(0, count, 5):
    file.append(json.dumps([writer, n, "x" * (7 * n % 90)]) for n in range(number, number + 5))
"""


@pytest.mark.slow
def test_several_processes_write_whole_lines_and_lose_none(tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    writers, count = 4, 500
    with ExitStack() as stack:
        processes = [
            stack.enter_context(running(WRITER, target, writer, count)) for writer in range(writers)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            finish(process)
    found = lines(target)
    for writer in range(writers):
        assert [line[1] for line in found if line[0] == writer] == list(range(count))
    assert len(found) == writers * count
    assert len(files(target)) > 10
    assert all(file.stat().st_size <= 4096 for file in files(target))


@pytest.mark.parametrize("taken_away", [Path.unlink, lambda path: path.rename(f"{path}.old")])
def test_a_file_that_was_taken_away_is_begun_anew(tmp_path: Path, taken_away: Any) -> None:
    target = tmp_path / "events.jsonl"
    file = LineFile(target)
    file.append(["1"])
    taken_away(target)
    file.append(["2"])
    assert target.read_text() == "2\n"


@pytest.mark.slow
def test_what_cannot_be_written_whole_is_not_written_at_all(tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    python(
        "import resource, sys\n"
        "from goal_state.analytics.line_file import LineFile\n"
        "file = LineFile(sys.argv[1])\n"
        "file.append(['first'])\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))\n"
        "try:\n"
        "    file.append(['second' * 20, 'third'])\n"
        "except OSError:\n"
        "    assert open(sys.argv[1]).read() == 'first\\n'\n"
        "else:\n"
        "    raise AssertionError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))\n"
        "file.append(['fourth'])\n",
        target,
    )
    assert target.read_text() == "first\nfourth\n"


def test_half_a_line_that_a_crash_left_spoils_no_other(tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    target.write_text('{"a": 1}\n{"b": ')
    LineFile(target).append(['{"c": 3}', '{"d": 4}'])
    assert target.read_text() == '{"a": 1}\n{"b": \n{"c": 3}\n{"d": 4}\n'


def test_the_files_are_their_owners_alone_even_under_a_loose_umask(tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    before = os.umask(0)
    try:
        file = LineFile(target, max_file_bytes=1)
        file.append(["1"])
        file.append(["2"])
    finally:
        os.umask(before)
    assert [file.stat().st_mode & 0o777 for file in files(target)] == [0o600, 0o600]


def test_it_stays_where_it_was_made_when_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    file = LineFile("events.jsonl", max_file_bytes=1)
    monkeypatch.chdir(there)
    file.append(["1"])
    file.append(["2"])
    assert lines(here / "events.jsonl") == [1, 2]
    assert list(there.iterdir()) == []


def test_what_cannot_be_a_file_of_lines_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InvalidValueError, match="regular file"):
        JsonLinesSink(pipe)
    with pytest.raises(IsADirectoryError):
        JsonLinesSink(tmp_path)
    with pytest.raises(FileNotFoundError):
        JsonLinesSink(tmp_path / "missing" / "events.jsonl")
    for bound in (0, -1, 1.5, True):
        with pytest.raises(InvalidValueError) as refusal:
            JsonLinesSink(tmp_path / "events.jsonl", max_file_bytes=bound)  # pyright: ignore[reportArgumentType]
        assert refusal.value.field == "max_file_bytes"
