"""Where a database may lie: each wrong place has an error of its own and stays as it was."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import make_url

from goal_state import (
    DatabaseCorruptError,
    DatabaseLocationError,
    DatabaseReadOnlyError,
    ForeignDatabaseError,
    Goal,
    GoalStateError,
    GoalStore,
    InvalidValueError,
    NotADatabaseError,
    RequestError,
    UnsupportedDatabaseError,
)
from tests.databases import execute, fingerprints
from tests.processes import python

OTHER_APPLICATIONS = Path(__file__).parent / "data" / "other-applications"


def refused(target: Any, error: type[GoalStateError], message: str) -> None:
    for migrate in (True, False):
        with pytest.raises(error, match=message) as caught:
            GoalStore.open(target, migrate=migrate)
        assert type(caught.value) is error


# -- files that are not ours -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"some text\n" * 1000,
        b"\0" * 4096,
        b"SQLite format 2\0" + b"\0" * 4080,
        b"SQLite format 3",
    ],
    ids=["a byte", "text", "zeros", "older format", "cut header"],
)
def test_a_file_that_is_no_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    before = fingerprints(path.parent)
    refused(
        path,
        NotADatabaseError,
        "is not a SQLite database; name another file, or restore a backup if it was one",
    )
    assert fingerprints(path.parent) == before
    assert issubclass(NotADatabaseError, DatabaseLocationError)


def test_a_file_with_a_header_and_nothing_true_behind_it(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    before = fingerprints(path.parent)
    refused(path, NotADatabaseError, "restore a backup")
    assert fingerprints(path.parent) == before


def test_an_error_of_the_database_has_its_result_code(database: Path) -> None:
    with database.open("r+b") as file:
        file.seek(100)  # where the list of tables begins
        file.write(b"\xff" * 3996)
    with pytest.raises(DatabaseCorruptError, match="SQLITE_CORRUPT") as caught:
        GoalStore.open(database)
    assert caught.value.code == sqlite3.SQLITE_CORRUPT


def test_a_database_that_was_cut_off(database: Path) -> None:
    whole = database.read_bytes()
    database.write_bytes(whole[: len(whole) // 2])
    before = fingerprints(database.parent)
    refused(database, DatabaseCorruptError, "restore a backup")
    assert fingerprints(database.parent) == before


@pytest.mark.parametrize("written", ["back", "to the log alone"])
def test_a_database_of_another_application_that_is_open(path: Path, written: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE recipes (name TEXT)")
        if written == "back":
            connection.execute("PRAGMA wal_checkpoint (TRUNCATE)")
        before = path.read_bytes()
        refused(path, ForeignDatabaseError, "belongs to another application .*'recipes'")
        assert path.read_bytes() == before
        connection.execute("INSERT INTO recipes VALUES ('soup')")
        connection.commit()
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_log_that_a_crash_left_is_not_written_back(path: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE recipes (name TEXT)")
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        for file in ("goals.db", "goals.db-wal"):
            (crashed / file).write_bytes((tmp_path / file).read_bytes())
    before = fingerprints(crashed)
    refused(crashed / "goals.db", ForeignDatabaseError, "'recipes'")
    now = fingerprints(crashed)
    assert {file: now[file] for file in before} == before


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_database_of_another_application_is_refused(path: Path, journal: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.execute("INSERT INTO recipes VALUES ('soup')")
        connection.commit()
    before = fingerprints(path.parent)
    refused(path, ForeignDatabaseError, "belongs to another application .*'recipes'")
    assert fingerprints(path.parent) == before
    assert issubclass(ForeignDatabaseError, DatabaseLocationError)


def test_the_database_of_a_recorded_peer(path: Path) -> None:
    path.write_bytes((OTHER_APPLICATIONS / "goals_1.sqlite").read_bytes())
    before = fingerprints(path.parent)
    refused(path, ForeignDatabaseError, "belongs to another application")
    assert fingerprints(path.parent) == before


def test_a_table_called_goals_makes_a_database_not_ours(path: Path) -> None:
    execute(path, "CREATE TABLE goals (scorer TEXT, minute INTEGER)")
    before = fingerprints(path.parent)
    refused(path, ForeignDatabaseError, "belongs to another application .*'goals'")
    assert fingerprints(path.parent) == before


def test_an_engine_says_that_goals_shall_live_in_it(path: Path) -> None:
    execute(path, "CREATE TABLE recipes (name TEXT)", "INSERT INTO recipes VALUES ('soup')")
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with GoalStore.open(engine) as store:
        store.create("t", "Ship")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM recipes").all() == [("soup",)]
    engine.dispose()


@pytest.mark.parametrize(
    "make", [Path.touch, lambda path: execute(path)], ids=["empty", "sqlite's"]
)
def test_an_empty_file_becomes_a_database(path: Path, make: Callable[[Path], Any]) -> None:
    make(path)
    assert path.stat().st_size == 0
    with GoalStore.open(path) as store:
        store.create("t", "Ship")
    with GoalStore.open(path, migrate=False) as store:
        assert store.count() == 1


# -- places that hold no file ------------------------------------------------------------------------


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    refused(tmp_path / "no" / "goals.db", DatabaseLocationError, "does not exist; make it first")
    assert fingerprints(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file" / "goals.db", DatabaseLocationError, "does not exist; make it first")


def test_a_directory_in_the_place_of_a_file(tmp_path: Path) -> None:
    refused(tmp_path, DatabaseLocationError, "is a directory; name a file in it")


def test_something_that_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", DatabaseLocationError, "is not a regular file")


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("sqlite:///goals.db?mode=ro", DatabaseLocationError, r"has parameters \(mode\)"),
        ("sqlite:///goals.db?cache=shared&uri=true", DatabaseLocationError, "cache, uri"),
        ("sqlite+pysqlite:///goals.db?timeout=3", DatabaseLocationError, "pass an Engine"),
        ("postgresql://user:secret@host/goals", UnsupportedDatabaseError, "'postgresql' is not"),
        ("mysql+pymysql://host/goals", UnsupportedDatabaseError, "'mysql' is not"),
        ("://goals.db", DatabaseLocationError, "is not a database URL"),
        ("sqlite:///a\0b", DatabaseLocationError, "has a NUL character"),
        ("sqlite:///\ud800", DatabaseLocationError, "has a lone surrogate"),
        ("sqlite://goals.db", DatabaseLocationError, "names no host"),
        ("sqlite://user:secret@/goals.db", DatabaseLocationError, "no user"),
        ("sqlite+aiosqlite:///goals.db", UnsupportedDatabaseError, r"not 'sqlite\+aiosqlite'"),
        ("sqlite+nothing:///goals.db", UnsupportedDatabaseError, r"not 'sqlite\+nothing'"),
    ],
)
def test_urls_that_lead_nowhere_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    error: type[RequestError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(url, error, message)
    if not url.startswith("://"):
        refused(make_url(url), error, message)
    assert list(tmp_path.iterdir()) == []


def test_no_password_is_told_in_an_error() -> None:
    with pytest.raises(UnsupportedDatabaseError) as caught:
        GoalStore.open("postgresql://user:secret@host/goals")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("target", [None, 5, b"goals.db", "", "a\0b", ["goals.db"]])
def test_what_is_no_target_at_all(target: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        GoalStore.open(target)
    assert caught.value.field == "target"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"durability": "FULL"}, "durability"),
        ({"durability": None}, "durability"),
        ({"durability": "normal; DROP TABLE goals"}, "durability"),
        ({"busy_timeout_seconds": -1}, "busy_timeout_seconds"),
        ({"busy_timeout_seconds": float("nan")}, "busy_timeout_seconds"),
        ({"busy_timeout_seconds": 86_401}, "busy_timeout_seconds"),
        ({"busy_timeout_seconds": True}, "busy_timeout_seconds"),
        ({"busy_timeout_seconds": "10"}, "busy_timeout_seconds"),
    ],
)
def test_options_out_of_their_bounds_are_refused_by_name(
    tmp_path: Path, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidValueError) as caught:
        GoalStore.open(tmp_path / "goals.db", **arguments)
    assert caught.value.field == field
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "form", [str, Path, lambda p: f"sqlite:///{p}", lambda p: make_url(f"sqlite:///{p}")]
)
def test_every_form_of_a_path_names_the_same_file(path: Path, form: Callable[[Path], Any]) -> None:
    with GoalStore.open(form(path)) as store:
        store.create("t", "Ship")
    assert path.is_file()


@pytest.mark.parametrize("target", [":memory:", "sqlite://", "sqlite:///:memory:"])
def test_each_store_in_memory_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with GoalStore.open(target) as one, GoalStore.open(target) as two:
        one.create("t", "Ship")
        assert (one.count(), two.count()) == (1, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_found_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with GoalStore.open("goals.db") as store:
        store.create("t", "Ship")
    assert (tmp_path / "goals.db").is_file()


def test_a_link_to_a_database_opens_that(database: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(database)
    with GoalStore.open(link) as store, GoalStore.open(database) as other:
        store.create("t", "Ship")
        assert other.count() == 1


# -- rights ------------------------------------------------------------------------------------------

_OPENED_WITHOUT_PRIVILEGES = """
import sys
import goal_state
from tests.permissions import obey_permissions

obey_permissions()
for migrate in (True, False):
    try:
        goal_state.GoalStore.open(sys.argv[1], migrate=migrate).close()
    except goal_state.GoalStateError as error:
        print(type(error).__name__, error)
    else:
        print("opened")
"""


@pytest.fixture
def guarded(database: Path) -> Iterator[Path]:
    """A database whose permissions a test takes away; its folder can be removed afterwards."""
    yield database
    database.parent.chmod(0o700)


def opened_without_privileges(path: Path) -> list[str]:
    """What comes of opening the path where its permissions count, with migrating and without."""
    return python(_OPENED_WITHOUT_PRIVILEGES, path).splitlines()


@pytest.mark.slow
def test_a_file_that_may_only_be_read(guarded: Path) -> None:
    guarded.chmod(0o444)
    guarded.parent.chmod(0o777)
    before = fingerprints(guarded.parent)
    lines = opened_without_privileges(guarded)
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("DatabaseReadOnlyError")
        assert "is read-only for this user; allow writing to it" in line
    assert fingerprints(guarded.parent) == before


@pytest.mark.slow
@pytest.mark.parametrize("there_is_a_file", [True, False])
def test_a_folder_that_may_only_be_read(guarded: Path, there_is_a_file: bool) -> None:
    if there_is_a_file:
        guarded.chmod(0o666)
    else:
        guarded.unlink()
    guarded.parent.chmod(0o555)
    before = fingerprints(guarded.parent)
    lines = opened_without_privileges(guarded)
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("DatabaseReadOnlyError")
        assert "is read-only; SQLite keeps its log beside the database" in line
    assert fingerprints(guarded.parent) == before


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "folder_mode"), [(0o666, 0o000), (0o222, 0o777)])
def test_a_place_that_may_not_be_looked_into(guarded: Path, mode: int, folder_mode: int) -> None:
    guarded.chmod(mode)
    guarded.parent.chmod(folder_mode)
    lines = opened_without_privileges(guarded)
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("DatabaseLocationError")
        assert "cannot be reached: Permission denied; see the rights of its folders" in line


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    refused(tmp_path / ("x" * 300), DatabaseLocationError, "cannot be reached: File name too long")


def test_read_only_is_a_fault_of_the_database_not_of_the_call() -> None:
    assert not issubclass(DatabaseReadOnlyError, RequestError)


def test_new_files_are_their_owners_alone_whatever_the_umask(path: Path) -> None:
    mask = os.umask(0)
    try:
        with GoalStore.open(path) as store:
            store.create("t", "Ship")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(mask)
    names = {f"goals.db{suffix}" for suffix in ("", "-wal", "-shm", "-id")}
    assert modes == dict.fromkeys(names, 0o600)


def test_the_rights_of_a_file_that_was_there_stay(path: Path) -> None:
    path.touch(0o640)
    path.chmod(0o640)
    with GoalStore.open(path) as store:
        store.create("t", "Ship")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_closing_leaves_one_file(path: Path) -> None:
    with GoalStore.open(path) as store:
        store.create("t", "Ship")
        store.get("t")
    assert [file.name for file in path.parent.iterdir()] == ["goals.db"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["path", "url", "engine"])
def test_a_relative_path_leads_to_the_same_file_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    engine = sqlalchemy.create_engine("sqlite:///goals.db") if kind == "engine" else None
    with GoalStore.open(
        engine or ("goals.db" if kind == "path" else "sqlite:///goals.db")
    ) as store:
        store.create("t", "Ship")
        monkeypatch.chdir(elsewhere)
        with ThreadPoolExecutor(4) as threads:  # each reader has a connection of its own
            together = threading.Barrier(4)

            def read(_: int) -> Goal | None:
                together.wait(20)
                return store.get("t")

            assert list(threads.map(read, range(4))) == [store.get("t")] * 4
            assert list(store.export_lines())
        child = os.fork()  # parent and child connect anew
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                status = int(store.charge("t", tokens=1).goal is None)
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        goal = store.get("t")
        assert goal is not None
        assert goal.tokens_used == 1
    if engine is not None:
        engine.dispose()
    assert list(elsewhere.iterdir()) == []
    assert [name.name for name in sorted(tmp_path.iterdir())] == ["elsewhere", "goals.db"]
