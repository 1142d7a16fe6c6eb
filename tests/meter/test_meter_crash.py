"""A process that meters a thread is killed at any moment and started again: each token is paid once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from random import Random

import pytest

from goal_state import GoalStore
from tests.meter.figures import THREAD
from tests.processes import finish, running

KILLS = 500 if os.environ.get("HYPOTHESIS_PROFILE") == "proof" else 30

# Each line it reads begets a process that meters until it has heard so many responses, or is killed. What the
# thread has used is in a journal of its own, one byte for a response: written before the meter is told.
_HOST = """
import os, sys
from goal_state import GoalStore, TokenUsage
from goal_state.meter import GoalMeter

path, journal = sys.argv[1:]

def usage(responses):
    return TokenUsage(responses * 10, responses * 3, 0, responses)

def work(last):
    with open(journal, "ab", buffering=0) as file:
        responses = file.tell()
        with GoalStore.open(path, durability="normal", busy_timeout_seconds=60) as store:
            meter = GoalMeter(store, "thread-1")
            print(os.getpid(), flush=True)
            while responses < last:
                meter.start_turn(f"turn-{responses}", total=usage(responses))
                for _ in range(5):
                    file.write(b".")
                    responses += 1
                    if responses % 3:
                        meter.record_total(usage(responses))
                    meter.flush()
                meter.finish_turn()
            meter.start_turn("last", total=usage(responses))
            meter.finish_turn()

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        work(int(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_at_any_moment_charges_each_token_once(
    database: Path, tmp_path: Path
) -> None:
    random = Random(20)
    journal = tmp_path / "journal"
    journal.touch()
    with (
        GoalStore.open(database, durability="normal") as store,
        running(_HOST, database, journal) as host,
    ):
        store.create(THREAD, "work")
        for _ in range(KILLS):
            _say(host, 10**9)
            child = int(_answer(host))
            # By how far it has got, not by a clock: a slow machine must not change what is tested.
            aim = journal.stat().st_size + random.randrange(12)
            while journal.stat().st_size < aim:
                time.sleep(0.0005)
            os.kill(child, signal.SIGKILL)
            assert int(_answer(host)) == -signal.SIGKILL
            assert store.verify() == []
        _say(host, journal.stat().st_size + 7)
        _answer(host)
        assert int(_answer(host)) == 0
        finish(host)
        goal = store.get(THREAD)
        assert goal is not None
        responses = journal.stat().st_size
        assert responses > KILLS
        assert goal.tokens_used == responses * (10 - 3 + 1)
        assert store.verify() == []


def _say(host: subprocess.Popen[str], last: int) -> None:
    assert host.stdin is not None
    host.stdin.write(f"{last}\n")
    host.stdin.flush()


def _answer(host: subprocess.Popen[str]) -> str:
    assert host.stdout is not None
    return host.stdout.readline()
