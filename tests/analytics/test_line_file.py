"""A file of lines under interrupts and forks: all lines of a call or none, and no lock is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from goal_state.analytics.line_file import LineFile
from tests.interrupts import Interrupted
from tests.processes import finish, python, running


@pytest.mark.parametrize("failure", [KeyboardInterrupt, Interrupted, OSError])
def test_what_strikes_in_the_middle_of_a_batch_leaves_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    path = tmp_path / "events.jsonl"
    file = LineFile(path)
    file.append(["one"])
    write = os.write

    def write_a_part(descriptor: int, data: bytes) -> int:
        if written:
            raise failure
        written.append(write(descriptor, data[:3]))
        return written[0]

    written: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_a_part)
        with pytest.raises(failure):
            file.append(["two", "three"])
    assert written == [3]
    assert path.read_text() == "one\n"
    file.append(["four"])
    assert path.read_text() == "one\nfour\n"


_BATCH = ["a" * 100, "b" * 100, "c" * 100]
# In a process of its own: a descriptor that is lost between two instructions stays open until that ends.
_INTERRUPTED = """
import sys
from goal_state.analytics.line_file import LineFile
from tests.analytics.test_line_file import _BATCH
from tests.interrupts import interrupts

file = LineFile(sys.argv[1], max_file_bytes=20_000)
interrupts(lambda: file.append(_BATCH), times=300)
file.append(_BATCH)
"""


@pytest.mark.slow
def test_interrupted_appends_leave_whole_batches(tmp_path: Path) -> None:
    batch = _BATCH
    python(_INTERRUPTED, tmp_path / "events.jsonl")
    for part in tmp_path.iterdir():
        lines = part.read_text().splitlines()
        assert lines == batch * (len(lines) // 3)


_FORKING_WRITER = """
import os, sys, time, warnings
from goal_state.analytics.line_file import LineFile

warnings.simplefilter("ignore", DeprecationWarning)
file = LineFile(sys.argv[1])
fsync = os.fsync

def fork_and_sync(descriptor):
    child = os.fork()
    if child == 0:
        time.sleep(600)
    print(child, flush=True)
    fsync(descriptor)

os.fsync = fork_and_sync
file.append(["one"])
os.fsync = fsync
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_was_forked_meanwhile_keeps_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    children: list[int] = []
    with running(_FORKING_WRITER, path) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        while (line := writer.stdout.readline()) != "ready\n":
            children.append(int(line))
        try:
            with running(_APPENDING, path) as other:
                assert finish(other) == ""
        finally:
            for child in children:
                os.kill(child, 9)
    assert children
    assert path.read_text() == "one\ntwo\n"


_APPENDING = """
import signal, sys
from goal_state.analytics.line_file import LineFile
signal.alarm(30)
LineFile(sys.argv[1]).append(["two"])
"""
