"""Nothing but SQLite opens a database file, and what many stores on one file acknowledge is there."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from goal_state import GoalStore
from goal_state.storage.schema import metadata
from tests.processes import all_at_once, python, running

SECONDS = 3.0
"""For how long stores are opened and closed."""


# -- who opens it ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_files_of_a_database_whichever_way_it_is_reached_are_opened_by_sqlite_alone(
    tmp_path: Path,
) -> None:
    said = python(
        "import sys; from pathlib import Path; from tests.opening_everything import main;"
        " main(Path(sys.argv[1]))",
        tmp_path,
    )
    found = json.loads(said)
    assert len(found) > 40
    assert {name: by for name, by in found.items() if by} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "opening",
    [
        "open(path).close()",
        "os.close(os.open(path, os.O_RDONLY))",
        "pathlib.Path(path).read_bytes()",
        "os.chdir(folder); open('goals.db').close()",
        "os.symlink(path, folder + '/link'); open(folder + '/link').close()",
        "os.link(path, folder + '/hard'); open(folder + '/hard').close()",
        "d = os.open(folder, 0); os.close(os.open('goals.db', 0, dir_fd=d))",
        "open(path + '-wal', 'w').close()",
        "open(path.encode()).close()",
        "import shutil; shutil.copy(path, folder + '/copy')",
        "new = open(folder + '/new', 'w'); os.rename(folder + '/new', path)",
        "new = open(folder + '/new', 'w'); os.remove(path); os.link(folder + '/new', path)",
    ],
)
def test_an_open_call_on_a_watched_file_is_noticed(path: Path, opening: str) -> None:
    path.touch()
    python(
        f"""
import os, pathlib, sys
from tests.opened_files import Watch
path, folder = sys.argv[1:]
watch = Watch()
new = None
with watch.on(pathlib.Path(path)):
    {opening}
if new is not None:
    new.close()
assert watch.reached
""",
        path,
        path.parent,
        cwd=Path("/"),
    )


def test_other_files_are_not_taken_for_watched_ones(path: Path) -> None:
    python(
        """
import os, pathlib, sqlite3, sys
from tests.opened_files import Watch
path = pathlib.Path(sys.argv[1])
watch = Watch()
with watch.on(path):
    made = path.with_name("made")
    made.touch()
    os.link(made, path)
    os.remove(made)
    sqlite3.connect(path).close()
    path.with_name("goals.db-door").touch()
assert watch.reached == []
assert watch.connected == 2  # its place was taken, and it was opened
""",
        path,
    )


# -- what becomes of what was acknowledged ------------------------------------------------------------

_PER_REQUEST = """
import sys, threading, time
from goal_state import GoalStore

path, seconds, process = sys.argv[1], float(sys.argv[2]), sys.argv[3]
acknowledged, failed = [], []


def serve(thread):
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until and not failed:
        number += 1
        key = f"{process}-{thread}-{number}"
        try:
            with GoalStore.open(path, durability="normal") as store:
                store.charge("t", tokens=1, idempotency_key=key)
        except BaseException as error:
            failed.append(f"{key}: {type(error).__name__}: {error}")
            return
        acknowledged.append(key)


threads = [threading.Thread(target=serve, args=(n,)) for n in range(4)]
print("ready", flush=True)
sys.stdin.readline()
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed[0]
print("\\n".join(acknowledged))
"""


def keys(path: Path) -> list[str]:
    """The keys of all charges in a file, read past the library; it must be whole."""
    (events,) = (name for name in metadata.tables if name.endswith("events"))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [
            key
            for (key,) in connection.execute(
                f"SELECT idempotency_key FROM {events} WHERE idempotency_key IS NOT NULL"
            )
        ]


def check(path: Path, acknowledged: list[str]) -> None:
    """Every acknowledged charge is there, once, and nothing else."""
    found = keys(path)
    assert set(acknowledged) - set(found) == set()
    assert sorted(found) == sorted(acknowledged)
    with GoalStore.open(path, migrate=False) as store:
        goal = store.get("t")
        assert goal is not None
        assert goal.tokens_used == len(acknowledged)
        assert store.verify() == []


@pytest.mark.slow
def test_stores_opened_for_each_request_in_many_threads_and_processes_lose_nothing(
    path: Path,
) -> None:
    with GoalStore.open(path) as store:
        store.create("t", "Ship")
    printed = all_at_once(_PER_REQUEST, path, SECONDS, processes=2)
    acknowledged = [key for keys in printed for key in keys.split()]
    assert len(acknowledged) > 50
    check(path, acknowledged)


_KEEPING_OPEN = """
import sys
from goal_state import GoalStore
path, how = sys.argv[1:]
store = GoalStore.open(path)
store.create("t", "Ship")
store.charge("t", tokens=1, idempotency_key="first")
print("first", flush=True)
sys.stdin.readline()
{second}
for number in range(200):
    key = "k" + str(number)
    store.charge("t", tokens=1, idempotency_key=key)
    print(key, flush=True)
print("done", flush=True)
sys.stdin.readline()
store.charge("t", tokens=1, idempotency_key="last")
print("last", flush=True)
print("done", flush=True)
sys.stdin.readline()
"""

SECOND = {
    "open and close": "GoalStore.open(path).close()",
    "open and stay": "second = GoalStore.open(path); second.get('t')",
    "open without migrating": "GoalStore.open(path, migrate=False).close()",
    "a refused open": (
        "try:\n    GoalStore.open(path, durability='none')\nexcept ValueError:\n    pass"
    ),
    "a backup": "store.backup(path + '-copy')",
    "the command line in the process": (
        "from goal_state.cli.main import program\n"
        "program.main(['list', '--db', path, '--json'], standalone_mode=False)"
    ),
    "a symlink": (
        "import os\nos.symlink(path, path + '-link')\nGoalStore.open(path + '-link').close()"
    ),
}


_OPENING_TWICE = """
import sys
from goal_state import GoalStore
for _ in range(2):
    with GoalStore.open(sys.argv[1]) as store:
        assert store.count() == 1
"""


def said(process: object) -> list[str]:
    stdout = process.stdout  # type: ignore[attr-defined]
    lines: list[str] = []
    while (line := stdout.readline().strip()) != "done":
        assert line, "the program ended"
        lines.append(line)
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("second", SECOND)
def test_a_killed_process_beside_a_second_open_and_another_process_loses_nothing(
    path: Path, second: str
) -> None:
    """The second open drops the first one's locks, if anything but SQLite opened the file; the other
    process then closes as the last one, and deletes the log."""
    with running(_KEEPING_OPEN.format(second=SECOND[second]), path, second) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        process.stdin.write("\n")
        process.stdin.flush()
        acknowledged = [
            "first",
            *(line for line in said(process) if line.startswith("k")),
        ]
        python(_OPENING_TWICE, path)
        process.stdin.write("\n")
        process.stdin.flush()
        acknowledged += said(process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
    assert len(acknowledged) == 202
    check(path, acknowledged)
