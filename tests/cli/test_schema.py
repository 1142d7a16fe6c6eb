"""`db upgrade|downgrade|current|history|check|stamp`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from goal_state import GoalStore, migrate
from goal_state.storage.schema import HEAD_REVISION
from tests.cli.program import refused, run, run_json, run_json_lines
from tests.databases import contents, fingerprints
from tests.next_schema import NEXT_REVISION

FIRST = migrate.history()[0].revision


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {name for (name,) in rows}


def test_upgrade_makes_a_database_for_its_owner_alone(path: Path) -> None:
    assert run("db", "upgrade", "--db", path).stdout == f"{path}: no schema → {HEAD_REVISION}\n"
    assert {"goal_state_goals", "goal_state_events"} <= tables(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert run("db", "upgrade", "--db", path).stdout == f"{path}: {HEAD_REVISION}\n"


@pytest.mark.usefixtures("next_revision")
def test_upgrade_goes_as_far_as_it_is_told(path: Path) -> None:
    state = run_json("db", "upgrade", FIRST, "--db", path)
    assert state == {
        "database": str(path),
        "revision": FIRST,
        "previous_revision": None,
        "head": NEXT_REVISION,
    }
    assert run("db", "current", "--db", path).stdout == f"{FIRST}\n"
    assert f"goal-state db upgrade --db {path}" in refused("list", "--db", path)
    assert f"goal-state db upgrade --db {path}" in refused("db", "check", "--db", path)
    assert run_json("db", "upgrade", "--db", path)["previous_revision"] == FIRST
    assert run_json_lines("list", "--db", path) == []


def test_current_tells_the_revision(path: Path) -> None:
    path.touch()
    assert run("db", "current", "--db", path).stdout == "no schema\n"
    assert run_json("db", "current", "--db", path)["revision"] is None
    run("db", "upgrade", "--db", path)
    assert run("db", "current", "--db", path).stdout == f"{HEAD_REVISION} (head)\n"
    assert run_json("db", "current", "--db", path)["revision"] == HEAD_REVISION


@pytest.mark.usefixtures("next_revision")
def test_history_marks_the_newest_and_the_database_s(path: Path) -> None:
    run("db", "upgrade", FIRST, "--db", path)
    lines = run("db", "history", "--db", path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [step.revision for step in migrate.history()]
    assert lines[0].endswith("(current)")
    assert lines[-1].endswith("(head)")
    listed = run_json_lines("db", "history", "--db", path)
    assert [(one["revision"], one["current"]) for one in listed] == [
        (step.revision, step.revision == FIRST) for step in migrate.history()
    ]


def test_history_needs_no_database(path: Path) -> None:
    assert HEAD_REVISION in run("db", "history", "--db", path).stdout
    assert not path.exists()


@pytest.mark.slow
def test_check_tells_the_revision_or_what_differs(path: Path) -> None:
    run("db", "upgrade", "--db", path)
    before = fingerprints(path.parent)
    assert HEAD_REVISION in run("db", "check", "--db", path).stdout
    assert run_json("db", "check", "--db", path)["revision"] == HEAD_REVISION
    assert fingerprints(path.parent) == before
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE goal_state_goals ADD COLUMN mine TEXT")
    assert "the tables are not those of revision" in refused("db", "check", "--db", path)


@pytest.mark.usefixtures("next_revision")
def test_stamp_notes_a_revision_and_changes_nothing_else(path: Path) -> None:
    run("db", "upgrade", "--db", path)
    before = tables(path)
    assert run_json("db", "stamp", FIRST, "--db", path)["revision"] == FIRST
    assert run("db", "current", "--db", path).stdout == f"{FIRST}\n"
    assert tables(path) == before


def test_downgrade_asks_and_names_what_is_lost(path: Path) -> None:
    with GoalStore.open(path) as store:
        store.create("a", "x")
        store.charge("a", tokens=1)
    before = contents(path)
    for answer in ("n\n", ""):
        result = run("db", "downgrade", "base", "--db", path, code=2, answer=answer)
        assert f"Every goal (1 of them), event (2), baseline and consumer's position in {path}" in (
            result.stderr
        )
        assert "nothing was changed" in result.stderr
        assert contents(path) == before
    result = run("db", "downgrade", "base", "--db", path, answer="y\n")
    assert result.stdout.endswith(f"{path}: {HEAD_REVISION} → no schema\n")
    assert not {"goal_state_goals", "goal_state_events"} & tables(path)


def test_downgrade_with_yes_does_not_ask(path: Path) -> None:
    run("db", "upgrade", "--db", path)
    state = run_json("db", "downgrade", "base", "--yes", "--db", path)
    assert (state["revision"], state["previous_revision"]) == (None, HEAD_REVISION)


@pytest.mark.usefixtures("next_revision")
def test_downgrade_by_a_step_keeps_the_goals(path: Path) -> None:
    with GoalStore.open(path) as store:
        store.create("a", "x")
    result = run("db", "downgrade", FIRST, "--db", path, answer="y\n")
    assert f"What revision {FIRST} cannot hold is lost from {path}." in result.stderr
    run("db", "upgrade", "--db", path)
    assert [one["thread_id"] for one in run_json_lines("list", "--db", path)] == ["a"]


@pytest.mark.parametrize("command", [["upgrade"], ["downgrade", "--yes"], ["stamp"]])
def test_an_unknown_revision_is_answered_with_the_known_ones(
    path: Path, command: list[str]
) -> None:
    sentence = refused("db", *command, "nonsense", "--db", path)
    assert "'nonsense'" in sentence
    assert HEAD_REVISION in sentence
    assert not path.exists()


@pytest.mark.parametrize(
    "command", [["downgrade", "base", "--yes"], ["current"], ["check"], ["stamp", "head"]]
)
def test_only_upgrade_makes_a_database(path: Path, command: list[str]) -> None:
    assert refused("db", *command, "--db", path).startswith(f"there is no database {str(path)!r}")
    assert list(path.parent.iterdir()) == []


def test_the_database_can_be_named_by_the_environment(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from goal_state.cli.main import program

    runner = CliRunner(env={"GOAL_STATE_DB": str(path)})
    assert runner.invoke(program, ["db", "upgrade"]).exit_code == 0
    assert path.exists()
    monkeypatch.chdir(tmp_path)
    path.unlink()
    run("db", "upgrade")
    assert (tmp_path / "goals.db").exists()
    shown = " ".join(runner.invoke(program, ["list", "--help"]).output.split())
    assert "env var: GOAL_STATE_DB; default: goals.db" in shown
