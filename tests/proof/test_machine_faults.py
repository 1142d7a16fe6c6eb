"""Other faults of a machine: the database file is deleted or damaged, its folder is not accessible, the clock
jumps, or the file is on a network file system."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from goal_state import DatabaseCorruptError, DatabaseReplacedError, GoalRepository, GoalStore
from goal_state.domain.requests import Charge
from goal_state.storage.sqlite import file_guard as files
from goal_state.storage.sqlite.file_guard import network_file_system
from tests.processes import PATIENCE_SECONDS, python
from tests.proof.workload import CONSUMER, Due, call, perform, read_state

PAGE_BYTES = 4096


# -- a file that is moved, deleted or replaced --------------------------------------------------------


@pytest.fixture
def written(store: GoalStore) -> GoalStore:
    """A store with a goal in it, and a connection for reading."""
    assert store.create("t", "Ship") == store.get("t")
    return store


def read_on_a_new_connection(store: GoalStore) -> None:
    """Reads while the connection that there is for reading is in use."""
    store._backend._readers.read(lambda _: store.get("t"))


def test_nothing_is_written_to_a_file_that_was_moved_until_it_is_back(
    written: GoalStore, database: Path
) -> None:
    heard: list[object] = []
    written.subscribe(heard.append)
    elsewhere = database.rename(database.with_name("elsewhere"))
    with pytest.raises(DatabaseReplacedError, match="moved or deleted"):
        written.charge("t", tokens=5)
    assert heard == []
    elsewhere.rename(database)
    assert written.charge("t", tokens=7).goal == written.get("t")
    assert [event.tokens_delta for event in written.events()] == [0, 7]
    assert written.verify() == []


def test_no_file_is_made_in_the_place_of_one_that_was_deleted(
    written: GoalStore, database: Path
) -> None:
    database.unlink()
    with pytest.raises(DatabaseReplacedError, match="moved or deleted"):
        written.clear("t")
    with pytest.raises(DatabaseReplacedError):
        read_on_a_new_connection(written)
    assert not database.exists()


def test_a_file_that_took_the_place_of_another_is_left_alone(
    written: GoalStore, database: Path, made_once: Path
) -> None:
    database.unlink()
    shutil.copy(made_once, database)
    before = database.read_bytes()
    with pytest.raises(DatabaseReplacedError, match="another file"):
        written.charge("t", tokens=5)
    with pytest.raises(DatabaseReplacedError):
        read_on_a_new_connection(written)
    assert database.read_bytes() == before


def test_a_consumer_goes_on_when_the_file_is_back(written: GoalStore, database: Path) -> None:
    took: list[int] = []
    elsewhere = database.rename(database.with_name("elsewhere"))
    with written.consume(
        "audit", lambda events: took.extend(e.position for e in events)
    ) as consumer:
        with suppress(DatabaseReplacedError):  # where it asks for the end of the log itself
            assert not consumer.drain(0.2)
        assert not consumer.close(0.2)
    with written.consume(
        "audit", lambda events: took.extend(e.position for e in events)
    ) as consumer:
        elsewhere.rename(database)
        assert consumer.drain(PATIENCE_SECONDS)
    assert took == [1]


# -- a log that was left behind -----------------------------------------------------------------------

DIE_WHILE_OPEN = """
import os, sys
from goal_state import GoalStore
store = GoalStore.open(sys.argv[1])
store.create("t", "Ship")
os._exit(0)
"""


def test_a_log_that_was_left_behind_is_taken_over(path: Path) -> None:
    python(DIE_WHILE_OPEN, path)
    assert path.with_name(f"{path.name}-wal").stat().st_size > 0
    with GoalStore.open(path) as store:
        assert store.get("t") is not None
        assert store.verify() == []


def test_the_log_of_a_database_that_is_gone_does_not_get_into_a_new_one(path: Path) -> None:
    python(DIE_WHILE_OPEN, path)
    path.unlink()
    with GoalStore.open(path) as store:
        assert store.count() == 0
        store.create("u", "Another")
    with GoalStore.open(path) as store, closing(sqlite3.connect(path)) as raw:
        assert [goal.thread_id for goal in store.goals()] == ["u"]
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# -- damage -------------------------------------------------------------------------------------------


@pytest.fixture
def large(database: Path) -> bytes:
    """A database of some pages; its content."""
    with GoalStore.open(database, durability="normal") as store:
        for number in range(50):
            store.create(f"t-{number}", "x" * 300)
    return database.read_bytes()


def overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def damaged(content: bytes, first_page: int) -> bytes:
    return content[: first_page * PAGE_BYTES] + b"\xa5" * (len(content) - first_page * PAGE_BYTES)


def test_a_store_goes_on_when_damaged_pages_are_whole_again(database: Path, large: bytes) -> None:
    with GoalStore.open(database) as store:
        overwrite(database, damaged(large, 1))
        for step in (
            lambda: store.charge("t-7", tokens=1),
            lambda: store.get("t-7"),
            store.verify,
            lambda: list(store.events()),
        ):
            with pytest.raises(DatabaseCorruptError, match="damaged"):
                step()
        overwrite(database, large)
        assert store.charge("t-7", tokens=3).goal == store.get("t-7")
        assert store.verify() == []
        assert store.last_position() == 51


def test_a_damaged_file_is_refused_when_it_is_opened(database: Path, large: bytes) -> None:
    overwrite(database, damaged(large, 1))
    with pytest.raises(DatabaseCorruptError), GoalStore.open(database) as store:
        store.verify()
    overwrite(database, large)
    with GoalStore.open(database) as store:
        assert store.verify() == []


def test_work_that_makes_light_of_an_error_of_the_database_is_undone_all_the_same(
    database: Path, large: bytes
) -> None:
    """SQLite may have undone the first half by itself: what comes after it must not be committed alone."""

    def work(repository: GoalRepository) -> None:
        repository.create("before", "Ship")
        overwrite(database, damaged(large, 3))
        with pytest.raises(DatabaseCorruptError):
            repository.charge_many(Charge(f"t-{number}", tokens=1) for number in range(50))
        overwrite(database, large)
        repository.create("after", "Ship")

    with GoalStore.open(database) as store:
        heard: list[object] = []
        store.subscribe(heard.append)
        with pytest.raises(DatabaseCorruptError):
            store.transact(work)
        assert heard == []
        assert store.count() == 50
        store.create("after", "Ship")
        assert len(heard) == 1
        assert store.verify() == []


# -- permissions --------------------------------------------------------------------------------------

PERMISSIONS = """
import json, sys
from pathlib import Path
from goal_state import DatabaseReadOnlyError, GoalStore
from tests.permissions import obey_permissions
obey_permissions()
folder = Path(sys.argv[1])
path = folder / "goals.db"
with GoalStore.open(path) as store:
    store.create("t", "Ship")
said = []
with GoalStore.open(path) as store:
    store.charge("t", tokens=1)
    path.chmod(0o400)
    folder.chmod(0o500)
    said.append(store.charge("t", tokens=2).goal.tokens_used)
    for place in ("folder", "file"):
        try:
            GoalStore.open(path).close()
        except DatabaseReadOnlyError as error:
            said.append(place if place in str(error) or place == "file" else str(error))
        folder.chmod(0o700)
    path.chmod(0o600)
    said.append(store.charge("t", tokens=4).goal.tokens_used)
with GoalStore.open(path) as store:
    said += [store.get("t").tokens_used, store.verify()]
print(json.dumps(said))
"""


def test_permissions_that_are_taken_away_stop_only_who_comes_after(tmp_path: Path) -> None:
    """An open store has its files open already. Once the permissions are back, others can open it again."""
    assert json.loads(python(PERMISSIONS, tmp_path)) == [3, "folder", "file", 7, 7, []]


# -- the clock ----------------------------------------------------------------------------------------


def test_a_clock_that_jumps_back_changes_nothing_but_times(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(3)
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() - draw.randint(0, 10**15))
    took: list[int] = []
    with Due(3) as due, GoalStore.open(database, durability="normal") as store:
        with store.consume(
            CONSUMER, lambda events: took.extend(e.position for e in events)
        ) as consumer:
            for number in range(1, 301):
                perform(store, call(3, 0, number))
            assert consumer.drain(PATIENCE_SECONDS)
        with closing(sqlite3.connect(database)) as raw:
            assert read_state(raw, 0) == due.state(0, 300)
        assert store.verify() == []
        positions = [event.position for event in store.events()]
        assert positions == list(range(1, len(positions) + 1)) == took
        for goal in store.goals():
            assert goal.updated_at_ms >= goal.created_at_ms


# -- network file systems -----------------------------------------------------------------------------

MOUNTS = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:40 / /home rw shared:2 - nfs4 server:/home rw,vers=4.2
23 22 8:2 / /home/local rw - xfs /dev/sdb1 rw
24 21 0:41 / /a\040place rw master:5 - fuse.sshfs host: rw
25 21 0:42 / /homeless rw - tmpfs tmpfs rw
26 21 8:3 / /over rw - ext4 /dev/sdc1 rw
27 26 0:43 / /over rw - cifs //server/share rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/goals.db", None),
        ("/home/goals.db", "nfs4"),
        ("/home/local/goals.db", None),
        ("/homeless/goals.db", None),
        ("/a place/deep/goals.db", "fuse.sshfs"),
        ("/over/goals.db", "cifs"),
    ],
)
def test_a_network_file_system_is_told_from_a_local_one(
    tmp_path: Path, path: str, kind: str | None
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS.lstrip())
    assert network_file_system(path, mounts) == kind
    assert network_file_system(path, tmp_path / "missing") is None


def test_a_network_file_system_is_warned_of_once(
    database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "network_file_system", lambda path: "nfs4")
    monkeypatch.setattr(files, "_local_devices", set())
    for _ in range(2):
        GoalStore.open(database).close()
    (warning,) = [
        record for record in caplog.records if record.name == "goal_state.storage.sqlite.file_guard"
    ]
    assert warning.levelname == "WARNING"
    assert "network file system (nfs4)" in warning.getMessage()
    assert database.name in warning.getMessage()


# -- locks --------------------------------------------------------------------------------------------


def test_processes_write_also_where_they_cannot_queue_up(database: Path) -> None:
    database.with_name(f"{database.name}-queue").mkdir()  # which is no file to be locked
    with GoalStore.open(database) as store, closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=store.create, args=("t", "Ship"))
        writer.start()
        writer.join(0.2)
        assert store.get("t") is None
        other.execute("COMMIT")
        writer.join()
        assert store.get("t") is not None
