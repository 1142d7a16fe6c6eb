"""What SECURITY.md promises: files of their owner alone, and no way to anywhere else."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import make_url

from goal_state import DatabaseBusyError, GoalStore, InvalidValueError, RequestError
from goal_state.analytics import JsonLinesSink, send_events
from goal_state.analytics.http import HttpSink
from goal_state.codex.rollout import RolloutWriter, find_rollout
from tests.cli.program import SMALL, run
from tests.databases import contents, fingerprints
from tests.processes import CHECKOUT, PATIENCE_SECONDS, all_at_once


@pytest.fixture(params=[0o000, 0o077, 0o777], ids=oct)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """Loose, strict, and one that leaves nothing to anybody."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.fixture
def _loose() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Every file below a folder and who may do what with it."""
    return {
        str(file.relative_to(folder)): oct(stat.S_IMODE(file.stat().st_mode))
        for file in sorted(folder.rglob("*"))
    }


# -- files -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_loose")
def test_the_database_its_log_and_the_locks_are_their_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "goals.db"
    meet_at = threading.Barrier(2)

    with GoalStore.open(path) as one, GoalStore.open(path, busy_timeout_seconds=0.05) as other:
        # They meet: the file at which processes queue up is made then.
        def hold(_: object) -> None:
            meet_at.wait(PATIENCE_SECONDS)
            meet_at.wait(PATIENCE_SECONDS)

        holder = threading.Thread(target=one.transact, args=(hold,))
        holder.start()
        meet_at.wait(PATIENCE_SECONDS)
        with pytest.raises(DatabaseBusyError):
            other.create("t", "Ship")
        meet_at.wait(PATIENCE_SECONDS)
        holder.join()
        one.create("t", "Ship")
        found = modes(tmp_path)
    names = {f"goals.db{suffix}" for suffix in ("", "-wal", "-shm", "-queue", "-id")}
    assert found == dict.fromkeys(sorted(names), "0o600")


@pytest.mark.usefixtures("_loose")
def test_what_the_command_line_makes_is_the_users_alone(tmp_path: Path) -> None:
    run("set", "t", "--objective", "Ship", "--db", tmp_path / "set.db")
    run("db", "upgrade", "--db", tmp_path / "upgraded.db")
    run("backup", tmp_path / "copy.db", "--db", tmp_path / "set.db")
    run(
        "codex",
        "meter",
        SMALL,
        "--budget",
        1,
        "--db",
        tmp_path / "m.db",
        "--events",
        tmp_path / "m.jsonl",
    )
    names = ("copy.db", "m.db", "m.jsonl", "set.db", "upgraded.db")
    assert modes(tmp_path) == dict.fromkeys(names, "0o600")


_OPENING = """
import os, sys
from goal_state import GoalStore
os.umask(0)
print("ready", flush=True)
sys.stdin.readline()
with GoalStore.open(sys.argv[1]):
    pass
"""


@pytest.mark.slow
def test_a_file_that_many_processes_make_at_once(tmp_path: Path) -> None:
    path = tmp_path / "goals.db"
    all_at_once(_OPENING, path, processes=3)
    assert set(modes(tmp_path).values()) == {"0o600"}


@pytest.mark.usefixtures("_loose")
def test_copies_rollouts_analytics_and_dead_letters(tmp_path: Path) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        return httpx.Response(400)

    with (
        httpx.Client(transport=httpx.MockTransport(refuse)) as client,
        HttpSink("http://host/", dead_letter_path=tmp_path / "dead", client=client) as http,
        GoalStore.open(tmp_path / "goals.db") as store,
    ):
        store.create("t", "Ship")
        store.charge("t", tokens=1)
        lines = JsonLinesSink(tmp_path / "events.jsonl", max_file_bytes=1)
        for name, sink in (("lines", lines), ("http", http)):
            with send_events(store, sink, name=name) as consumer:
                assert consumer.drain(PATIENCE_SECONDS)
                store.charge("t", tokens=1)
                assert consumer.drain(PATIENCE_SECONDS)
        with RolloutWriter.create(
            tmp_path / "home", "t", started_at=datetime(2026, 1, 1, tzinfo=UTC)
        ) as rollout:
            rollout.append({"type": "x", "payload": {}})
        store.backup(tmp_path / "copy.db")
        partly = modes(tmp_path)
    folders = {"home", "home/sessions", "home/sessions/2026", "home/sessions/2026/01"}
    folders |= {"home/sessions/2026/01/01"}
    assert {name for name, mode in partly.items() if mode == "0o700"} == folders
    assert {mode for name, mode in partly.items() if name not in folders} == {"0o600"}
    assert {"copy.db", "dead", "events.jsonl", "events.jsonl.1"} <= set(partly)


@pytest.mark.usefixtures("_loose")
def test_a_backup_is_its_owners_alone_while_it_is_made(tmp_path: Path) -> None:
    seen: list[str] = []
    with GoalStore.open(tmp_path / "goals.db") as store:
        store.backup(
            tmp_path / "copy.db", progress=lambda *_: seen.extend(modes(tmp_path).values())
        )
    assert set(seen) == {"0o600"}


@pytest.mark.usefixtures("_umask")
def test_the_mode_is_the_same_under_every_umask(tmp_path: Path) -> None:
    path = tmp_path / "goals.db"
    try:
        GoalStore.open(path).close()
    except RequestError:
        # Under a umask that takes even the owner's rights there is no file, rather than one that is open.
        assert not path.exists()
    else:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


# -- places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///file:/etc/passwd?mode=ro&uri=true",
        "sqlite:///goals.db?uri=true&vfs=unix-none",
        "sqlite:///goals.db?mode=memory&cache=shared",
        "sqlite:///goals.db?immutable=1",
        "sqlite:///goals.db?check_same_thread=false",
        "sqlite:///goals.db?isolation_level=DEFERRED&detect_types=1&factory=os.system",
        "sqlite+pysqlcipher:///goals.db",
        "sqlite+aiosqlite:///goals.db",
    ],
)
@pytest.mark.parametrize("form", [str, make_url])
def test_a_url_with_parameters_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, form: type
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError):
        GoalStore.open(form(url))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file:other.db", "file:other.db?mode=memory", "a?mode=ro", "x#y"])
def test_a_name_that_looks_like_a_uri_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with GoalStore.open(name) as store:
        store.create("t", "Ship")
    with GoalStore.open(tmp_path / name, migrate=False) as store:
        assert store.count() == 1
        store.backup(f"{name} copy")
    assert {file.name for file in tmp_path.iterdir()} == {name, f"{name} copy"}


EVIL = (
    "../t",
    "../../../t",
    "/t",
    "t/../../x",
    "..",
    ".",
    "-rf",
    "t\n",
    "a\\b",
    "~",
    "C:t",
    "t\u202e",
)


@pytest.mark.slow
@pytest.mark.parametrize("thread_id", EVIL)
def test_a_thread_that_looks_like_a_path_leads_nowhere(tmp_path: Path, thread_id: str) -> None:
    home = tmp_path / "home"
    with pytest.raises(InvalidValueError) as caught:
        RolloutWriter.create(home, thread_id)
    assert caught.value.field == "thread_id"
    assert list(tmp_path.iterdir()) == []
    with RolloutWriter.create(home, "t"):
        assert find_rollout(home, thread_id) is None
    # For the database it is a text like any other.
    with GoalStore.open(tmp_path / "goals.db") as store:
        assert store.create(thread_id, "Ship") == store.get(thread_id)
    assert {file.name for file in tmp_path.iterdir()} == {"home", "goals.db"}


def test_meta_cannot_give_a_rollout_another_thread(tmp_path: Path) -> None:
    meta = {"id": "../other", "thread_id": "../other"}
    with RolloutWriter.create(tmp_path, "t", meta=meta) as rollout:
        assert rollout.path.resolve().is_relative_to(tmp_path)
    assert json.loads(rollout.path.read_text())["payload"]["id"] == "t"


SQL = (
    "'; DROP TABLE goal_state_goals; --",
    "' OR 1=1 --",
    "x') UNION SELECT name FROM sqlite_master --",
    '"',
    "%",
    "?",
)


@pytest.mark.parametrize("text", SQL)
def test_sql_in_a_text_is_text(database: Path, text: str) -> None:
    with GoalStore.open(database) as store:
        store.create("bystander", "Ship")
        before = contents(database)
        goal = store.create(text, text, turn_id=text)
        store.charge(text, tokens=1, turn_id=text, idempotency_key=text)
        assert store.get(text).objective == text  # type: ignore[union-attr]
        assert [event.goal_id for event in store.events(thread_id=text)] == [goal.goal_id] * 2
        assert list(store.events(goal_id=text)) == []
        assert store.clear("bystander", expected_goal_id=text) is None
        with store.consume(text, lambda _: None) as consumer:
            assert consumer.drain(PATIENCE_SECONDS)
        with pytest.raises(InvalidValueError):
            list(store.goals(text))
        assert store.verify() == []
        store.clear(text)
    after = contents(database)
    assert after["goal_state_goals"] == before["goal_state_goals"]
    assert after["sqlite_master"] == before["sqlite_master"]


def test_a_symbolic_link_as_a_new_backup_is_not_followed(database: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "copy.db.partial").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "not there")
    with GoalStore.open(database) as store:
        for name in ("link", "copy.db", "dangling"):
            with pytest.raises(RequestError):
                store.backup(tmp_path / name)
    assert victim.read_text() == "keep me"
    assert not (tmp_path / "not there").exists()


# -- the checkout ------------------------------------------------------------------------------------


def test_no_sql_is_made_of_what_a_caller_gave() -> None:
    """Every place that puts a name into SQL was looked at, and says so: the linter's rule for it is on."""
    marked = {
        path.name: text.count("noqa: S608")
        for path in sorted((CHECKOUT / "goal_state").rglob("*.py"))
        if "noqa: S608" in (text := path.read_text())
    }
    # What is put in are constants, and names of columns that were found in a list of ours.
    assert marked.keys() == {
        "importer.py",
        "connections.py",
        "location.py",
        "host_transaction.py",
        "restoring.py",
    }


def test_the_database_is_not_changed_by_looking_at_it(database: Path, tmp_path: Path) -> None:
    shutil.copy(database, tmp_path / "looked at.db")
    before = fingerprints(tmp_path)
    for command in ("list", "events", "verify"):
        run(command, "--db", tmp_path / "looked at.db")
    assert fingerprints(tmp_path) == before
