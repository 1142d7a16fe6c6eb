"""`goal-state codex import`: what it writes, what it says, and that a dry run leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from goal_state import GoalStore
from goal_state.codex.builders import rollout
from tests.cli.program import (
    COMMAND,
    ENVIRONMENT,
    PATIENCE_SECONDS,
    finish,
    refused,
    run,
    run_json,
    start,
)
from tests.databases import contents, execute, fingerprints

RECORDED = Path(__file__).parents[1] / "data" / "home"
GOALS, ROLLOUTS = 6, 7


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECORDED, tmp_path / "home"))


def test_goals_and_usage_are_there_afterwards(home: Path, path: Path) -> None:
    result = run("codex", "import", home, "--db", path)
    assert result.stdout == "Imported 6 goals and the usage of 7 threads; skipped 0.\n"
    with GoalStore.open(path) as store:
        assert store.count() == GOALS
        assert store.verify() == []


def test_a_second_time_nothing_changes_and_everything_skipped_is_listed(
    home: Path, path: Path
) -> None:
    run("codex", "import", home, "--db", path)
    before = contents(path)
    *listed, last = run("codex", "import", home, "--db", path).stdout.splitlines()
    assert last == "Imported 0 goals and the usage of 0 threads; skipped 13."
    assert sum(line.startswith("goal ") for line in listed) == GOALS
    assert sum(line.startswith("rollout ") for line in listed) == ROLLOUTS
    assert all(line.endswith("imported already") for line in listed)
    assert contents(path) == before


def test_a_dry_run_makes_no_database(home: Path, path: Path) -> None:
    before = fingerprints(path.parent)
    result = run("codex", "import", home, "--db", path, "--dry-run")
    assert result.stdout == "Would import 6 goals and the usage of 7 threads; skipped 0.\n"
    assert fingerprints(path.parent) == before


def test_a_dry_run_into_a_database_changes_no_byte_of_it(home: Path, database: Path) -> None:
    with GoalStore.open(database) as store:
        store.create("01a1fa7e-7713-7782-9363-3fd645076e5b", "Mine")
    before = fingerprints(database.parent)
    result = run("codex", "import", home, "--db", database, "--dry-run")
    assert "a goal of its own" in result.stdout
    assert result.stdout.endswith("Would import 5 goals and the usage of 7 threads; skipped 1.\n")
    assert fingerprints(database.parent) == before


def test_json_says_all_of_it(home: Path, path: Path) -> None:
    silent = rollout(home)
    execute(home / "goals_1.sqlite", "UPDATE thread_goals SET tokens_used = 100000")
    document = run_json("codex", "import", home, "--db", path)
    [skipped] = document.pop("skipped")
    assert document == {
        "goals": GOALS,
        "baselines": ROLLOUTS,
        "budget_limited": ["01a1fa7e-7713-7782-9363-3fd645076e5b"],
        "dry_run": False,
    }
    assert (skipped["kind"], skipped["reason"]) == ("rollout", "states no usage")
    assert silent in skipped["name"]


def test_goals_that_became_budget_limited_are_listed(home: Path, path: Path) -> None:
    execute(home / "goals_1.sqlite", "UPDATE thread_goals SET tokens_used = 100000")
    first, _ = run("codex", "import", home, "--db", path).stdout.splitlines()
    assert first == (
        "goal 01a1fa7e-7713-7782-9363-3fd645076e5b: was active with its budget spent,"
        " is budget_limited now"
    )


def test_names_are_shown_without_their_control_characters(tmp_path: Path, path: Path) -> None:
    home = Path(shutil.copytree(RECORDED, tmp_path / "home"))
    execute(
        home / "goals_1.sqlite",
        "UPDATE thread_goals SET thread_id = char(27) || '[2J', objective = ''"
        " WHERE status = 'active'",
    )
    stdout = run("codex", "import", home, "--db", path).stdout
    assert "\x1b" not in stdout
    assert stdout.startswith("goal \\x1b[2J: skipped: objective: ")


@pytest.mark.slow
def test_a_terminal_sees_a_progress_bar(home: Path, path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "codex", "import", str(home), "--db", str(path)],
        env=ENVIRONMENT | {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert done.stdout == "Imported 6 goals and the usage of 7 threads; skipped 0.\n"
    assert "Importing" in done.stderr
    assert "13/13" in done.stderr


@pytest.mark.slow
def test_a_pipe_sees_no_progress_bar(home: Path, path: Path) -> None:
    stdout, stderr = finish(start("codex", "import", home, "--db", path))
    assert stdout == "Imported 6 goals and the usage of 7 threads; skipped 0.\n"
    assert stderr == ""


def test_what_is_no_data_directory_makes_no_database(tmp_path: Path, path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is no data directory" in refused("codex", "import", empty, "--db", path)
    assert not path.exists()
    (empty / "goals_1.sqlite").write_text("no database")
    assert "not a SQLite database" in refused("codex", "import", empty, "--db", path)
    assert not path.exists()
    assert "does not exist" in refused("codex", "import", tmp_path / "missing", "--db", path)
