"""Going back to a backup: while others have the database open, and what is refused."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import goal_state
from goal_state import GoalStateError, GoalStore
from goal_state.storage.schema import HEAD_REVISION
from tests.databases import contents, fingerprints
from tests.processes import CHECKOUT, PATIENCE_SECONDS, finish, python, running
from tests.upgrade.make_fixtures import fixture


@pytest.fixture
def backup(path: Path) -> Path:
    """A copy of a database in which the goals `t`, `thread` and `process` have used 10 tokens each; 90 more
    were charged to `t` since."""
    copy = path.with_name("backup.db")
    with GoalStore.open(path) as store:
        for name in ("t", "thread", "process"):
            store.create(name, "Ship")
            store.charge(name, tokens=10)
        store.backup(copy)
        store.charge("t", tokens=90)
        store.create("new", "Ship")
    return copy


def tokens(store: GoalStore, thread_id: str = "t") -> int:
    goal = store.get(thread_id)
    assert goal is not None
    return goal.tokens_used


def is_whole(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# -- while others have it open -----------------------------------------------------------------------

_CHARGING = """
import sys
from goal_state import GoalStore
with GoalStore.open(sys.argv[1], durability="normal") as store:
    print("ready", flush=True)
    number = 0
    stopping = []
    import threading
    threading.Thread(target=lambda: stopping.append(sys.stdin.readline()), daemon=True).start()
    while not stopping:
        number += 1
        store.charge("process", tokens=1, turn_id=str(number))
        if number == 20:
            print("charging", flush=True)
    assert store.verify() == []
print(number)
"""


def check_turns(store: GoalStore, thread_id: str, last: int) -> None:
    """Of the charges made one after the other, all behind some point are there: those from before the backup
    was put in place are gone, and no later one."""
    events = [event for event in store.events(thread_id=thread_id) if event.turn_id is not None]
    turns = [int(event.turn_id or 0) for event in events]
    assert turns == list(range(last - len(turns) + 1, last + 1))
    assert turns
    assert len(turns) < last
    assert tokens(store, thread_id) == 10 + len(turns)


@pytest.mark.slow
def test_a_restore_while_other_stores_and_processes_charge_loses_nothing_that_came_later(
    path: Path, backup: Path
) -> None:
    stopping, failed = threading.Event(), list[BaseException]()
    made = 0

    def charge(store: GoalStore) -> None:
        nonlocal made
        try:
            while not stopping.is_set():
                made += 1
                store.charge("thread", tokens=1, turn_id=str(made))
        except BaseException as error:
            failed.append(error)

    with (
        running(_CHARGING, path) as process,
        GoalStore.open(path, durability="normal") as store,
        GoalStore.open(path, durability="normal") as other,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert tokens(store) == tokens(other) == 100
        thread = threading.Thread(target=charge, args=(other,), daemon=True)
        thread.start()
        assert process.stdout.readline() == "charging\n"
        store.restore(backup)
        assert tokens(store) == tokens(other) == 10
        assert other.get("new") is None
        store.charge("t", tokens=1)
        other.charge("t", tokens=1)
        for _ in range(20):
            store.get("thread")
        stopping.set()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        process.stdin.write("stop\n")
        process.stdin.flush()
        last = int(finish(process))
        assert failed == []
        check_turns(store, "process", last)
        check_turns(other, "thread", made)
        assert tokens(store) == 12
        assert store.verify() == other.verify() == []
    assert is_whole(path)
    with GoalStore.open(path, migrate=False) as store:
        assert tokens(store) == 12
        assert store.verify() == []


@pytest.mark.slow
def test_what_is_charged_after_a_restore_survives_a_kill(path: Path, backup: Path) -> None:
    python(
        """
import os, signal, sys
from goal_state import GoalStore
store = GoalStore.open(sys.argv[1])
store.restore(sys.argv[2])
store.charge("t", tokens=5)
if os.fork() == 0:
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
os._exit(0)  # without closing
""",
        path,
        backup,
    )
    with GoalStore.open(path) as store:
        assert tokens(store) == 15
        assert store.get("new") is None
        assert store.verify() == []


def test_an_export_that_began_before_a_restore_is_of_one_moment(path: Path, backup: Path) -> None:
    with GoalStore.open(path) as store, GoalStore.open(path) as other:
        whole = list(other.export_lines())
        lines = other.export_lines()
        first = next(lines)
        store.restore(backup)
        assert [first, *lines] == whole
        assert list(other.export_lines()) != whole
        assert tokens(other) == 10


def test_the_same_backup_can_be_restored_again_and_is_left_as_it_is(
    path: Path, backup: Path
) -> None:
    before = backup.read_bytes()
    with GoalStore.open(path) as store:
        for _ in range(3):
            store.charge("t", tokens=7, idempotency_key="k")
            store.restore(backup)
            assert tokens(store) == 10
        assert store.verify() == []
    assert backup.read_bytes() == before
    assert not list(path.parent.glob("backup.db?*"))


@pytest.mark.slow
def test_a_backup_that_another_store_has_open_can_be_restored(path: Path, backup: Path) -> None:
    with GoalStore.open(backup) as live, GoalStore.open(path) as store:
        live.charge("t", tokens=3)
        store.restore(backup)
        assert tokens(store) == 13
        live.charge("t", tokens=1)
        python("from goal_state.cli import main; main()", "list", "--db", backup)
        live.charge("t", tokens=1)
        assert tokens(live) == 15
        assert tokens(store) == 13
    with GoalStore.open(backup) as again:
        assert tokens(again) == 15


@pytest.mark.usefixtures("next_revision")
def test_an_older_schema_is_upgraded(path: Path, backup: Path) -> None:
    older = path.with_name("older.db")
    shutil.copy(fixture(HEAD_REVISION), older)
    before = older.read_bytes()
    with GoalStore.open(path) as store:
        store.restore(older)
        assert store.verify() == []
        assert store.get("new") is None
        store.create("another", "Ship")
    assert older.read_bytes() == before
    with GoalStore.open(path, migrate=False) as store:
        assert store.get("another") is not None


def test_listeners_hear_of_what_comes_after_a_restore(path: Path, backup: Path) -> None:
    heard: list[str] = []
    with GoalStore.open(path) as store:
        store.subscribe(lambda event: heard.append(event.thread_id))
        store.restore(backup)
        store.charge("t", tokens=1)
    assert heard == ["t"]


def test_a_restore_inside_a_transaction_is_refused(path: Path, backup: Path) -> None:
    with GoalStore.open(path) as store:
        with pytest.raises(goal_state.NestedCallError):
            store.transact(lambda repository: store.restore(backup))
        assert tokens(store) == 100


# -- the command line --------------------------------------------------------------------------------


@pytest.mark.slow
def test_goal_state_restore_while_a_process_has_it_open(path: Path, backup: Path) -> None:
    with GoalStore.open(path) as store:
        python("from goal_state.cli import main; main()", "restore", backup, "--yes", "--db", path)
        assert tokens(store) == 10
        store.charge("t", tokens=1)
    with GoalStore.open(path) as store:
        assert tokens(store) == 11


# -- what is refused ---------------------------------------------------------------------------------


def _newer(file: Path, backup: Path) -> None:
    shutil.copy(backup, file)
    with closing(sqlite3.connect(file)) as raw, raw:
        (table,) = raw.execute(
            "SELECT name FROM sqlite_master WHERE name LIKE '%alembic_version'"
        ).fetchone()
        raw.execute(f"UPDATE {table} SET version_num = '9999'")


def _foreign(file: Path, _backup: Path) -> None:
    with closing(sqlite3.connect(file)) as raw, raw:
        raw.execute("CREATE TABLE theirs (a)")


def _truncated(file: Path, backup: Path) -> None:
    file.write_bytes(backup.read_bytes()[: backup.stat().st_size // 2])


def _damaged(file: Path, backup: Path) -> None:
    whole = bytearray(backup.read_bytes())
    whole[4096 : 3 * 4096] = b"\x5a" * (2 * 4096)
    file.write_bytes(whole)


SOURCES: dict[str, Callable[[Path, Path], object]] = {
    "another application's": _foreign,
    "a newer one": _newer,
    "text": lambda file, backup: file.write_text("no database, but long enough " * 1_000),
    "an empty file": lambda file, backup: file.touch(),
    "a truncated one": _truncated,
    "a damaged one": _damaged,
    "a directory": lambda file, backup: file.mkdir(),
    "missing": lambda file, backup: None,
    "the database by a symlink": lambda file, backup: file.symlink_to("goals.db"),
    "the database by a hard link": lambda file, backup: file.hardlink_to(
        file.with_name("goals.db")
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_what_is_no_backup_is_refused_and_nothing_changes(
    path: Path, backup: Path, source: str
) -> None:
    file = path.with_name("source.db")
    SOURCES[source](file, backup)
    with GoalStore.open(path) as store:
        before, names = contents(path), sorted(path.parent.iterdir())
        with pytest.raises(GoalStateError) as raised:
            store.restore(file)
        assert len(str(raised.value)) > 20
        assert contents(path) == before
        store.charge("t", tokens=1)
        assert tokens(store) == 101
        assert store.verify() == []
        assert sorted(path.parent.iterdir()) == names
    with GoalStore.open(path) as store:
        assert tokens(store) == 101


@pytest.mark.slow
def test_the_database_itself_is_refused(path: Path, backup: Path) -> None:
    with GoalStore.open(path) as store:
        with pytest.raises(GoalStateError):
            store.restore(path)
        store.charge("t", tokens=1)
        python("from goal_state.cli import main; main()", "list", "--db", path)
        store.charge("t", tokens=1)
        assert tokens(store) == 102


# -- a backup that was put in place by other means ------------------------------------------------------

_KILLED = """
import os, signal, sys
from goal_state import GoalStore
store = GoalStore.open(sys.argv[1])
for _ in range(50):
    store.charge("t", tokens=1)
print("charged", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_a_writer(path: Path) -> None:
    """Leaves a log beside the database."""
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b"charged\n"
    assert path.with_name(f"{path.name}-wal").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mv", "cp", "mv of a vacuumed copy"])
@pytest.mark.parametrize("migrate", [True, False])
def test_a_backup_that_was_put_beside_an_old_log_is_refused_and_left_as_it_is(
    path: Path, backup: Path, how: str, migrate: bool
) -> None:
    kill_a_writer(path)
    if how == "mv of a vacuumed copy":
        with closing(sqlite3.connect(backup)) as raw:
            raw.execute("VACUUM")
    if how == "cp":
        shutil.copyfile(backup, path)
    else:
        backup.replace(path)
    before = fingerprints(path.parent)
    with pytest.raises(goal_state.DatabaseReplacedError) as raised:
        GoalStore.open(path, migrate=migrate)
    assert "restore" in str(raised.value)
    assert fingerprints(path.parent) == before


@pytest.mark.slow
def test_the_log_of_a_killed_process_is_taken_over_as_ever(path: Path, backup: Path) -> None:
    kill_a_writer(path)
    with GoalStore.open(path) as store:
        assert tokens(store) == 150
    kill_a_writer(path)
    kill_a_writer(path)
    with GoalStore.open(path) as store:
        assert tokens(store) == 250
        assert store.verify() == []


@pytest.mark.slow
def test_a_database_that_was_moved_with_its_log_is_taken_over(path: Path, backup: Path) -> None:
    kill_a_writer(path)
    moved = path.parent / "elsewhere"
    moved.mkdir()
    for file in path.parent.glob("goals.db*"):
        file.rename(moved / file.name)
    with GoalStore.open(moved / "goals.db") as store:
        assert tokens(store) == 150


@pytest.mark.slow
def test_a_backup_in_the_place_of_a_database_that_was_closed_is_opened(
    path: Path, backup: Path
) -> None:
    """No log lies beside it: nothing can be replayed."""
    backup.replace(path)
    with GoalStore.open(path) as store:
        assert tokens(store) == 10
    kill_a_writer(path)
    with GoalStore.open(path) as store:
        assert tokens(store) == 60


@pytest.mark.slow
@pytest.mark.parametrize("change", ["restore", "vacuum", "prune"])
def test_the_log_of_a_process_killed_after_a_great_change_is_taken_over(
    path: Path, backup: Path, change: str
) -> None:
    with GoalStore.open(path) as store:
        if change == "restore":
            store.restore(backup)
    if change == "vacuum":
        python("from goal_state.cli import main; main()", "db", "vacuum", "--db", path)
    if change == "prune":
        python(
            "from goal_state.cli import main; main()",
            *("db", "prune", "--before", "2100-01-01", "--db", path),
        )
    kill_a_writer(path)
    with GoalStore.open(path) as store:
        assert tokens(store) == (60 if change == "restore" else 150)
        assert store.verify() == []


def test_restoring_after_a_read_that_was_struck_half_way_works(tmp_path: Path) -> None:
    with GoalStore.open(tmp_path / "goals.db") as store:
        store.create("a", "Ship")
        store.create("b", "Ship")
        store.backup(tmp_path / "backup.db")
        store.clear("a")
        store._backend._executor._cursor.execute("SELECT * FROM goal_state_events").fetchone()
        store.restore(tmp_path / "backup.db")
        assert store.get("a") is not None
