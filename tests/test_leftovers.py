"""The check at the end of each test process: it finds what is left, and waits for what is ending."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.leftovers import Holdings, left_behind
from tests.processes import PATIENCE_SECONDS

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="the system does not tell which files are open"
)

pytestmark = pytest.mark.slow


def found_at_once(before: Holdings) -> list[str]:
    return left_behind(before, patience_seconds=0)


def test_with_nothing_left_behind_nothing_is_found() -> None:
    assert found_at_once(Holdings.now()) == []


@needs_proc
def test_an_open_file_is_found_by_its_name(tmp_path: Path) -> None:
    before = Holdings.now()
    with (tmp_path / "log").open("w"):
        assert found_at_once(before) == [f"open file {str(tmp_path / 'log')!r}"]
    assert found_at_once(before) == []


@needs_proc
def test_a_file_that_is_open_once_more_than_before_is_found(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        before = Holdings.now()
        second = os.dup(file.fileno())
        assert found_at_once(before) == [f"open file {str(tmp_path / 'log')!r}"]
        os.close(second)
        assert found_at_once(before) == []


@needs_proc
def test_an_open_socket_is_found() -> None:
    before = Holdings.now()
    with closing(socket.socket()):
        [found] = found_at_once(before)
        assert found.startswith("open file 'socket:")


def test_a_thread_that_goes_on_is_found_and_one_that_ends_is_waited_for() -> None:
    before = Holdings.now()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(PATIENCE_SECONDS,), name="endless")
    thread.start()
    assert found_at_once(before) == ["thread 'endless'"]
    ending = threading.Thread(target=lambda: (time.sleep(0.2), end.set()))
    ending.start()
    assert left_behind(before, patience_seconds=PATIENCE_SECONDS) == []
    ending.join()
    thread.join()


def test_a_child_process_is_found_until_it_was_waited_for() -> None:
    before = Holdings.now()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert "a child process" in found_at_once(before)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it ended, and nobody asked for it
        assert "a child process" in found_at_once(before)
    assert found_at_once(before) == []
