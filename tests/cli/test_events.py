"""`events`, and the ends that a running command can come to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from goal_state import GoalStore
from goal_state.analytics import goal_event
from tests.cli.program import (
    COMMAND,
    ENVIRONMENT,
    PATIENCE_SECONDS,
    finish,
    refused,
    run,
    run_json_lines,
    start,
)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "goals.db"
    with GoalStore.open(path) as store:
        store.create("a", "x", token_budget=10)
        store.create("b", "y")
        store.charge("a", tokens=10, turn_id="turn-1", idempotency_key="key")
        store.clear("b")
    return path


def test_events_for_programs_are_the_log(db: Path) -> None:
    listed = run_json_lines("events", "--db", db)
    with GoalStore.open(db) as store:
        events = list(store.events())
    assert len(events) == 5
    for one, event in zip(listed, events, strict=True):
        assert one == goal_event(event) | {"idempotency_key": event.idempotency_key}


def test_events_can_be_narrowed_down(db: Path) -> None:
    def positions(*words: object) -> list[int]:
        return [one["position"] for one in run_json_lines("events", *words, "--db", db)]

    with GoalStore.open(db) as store:
        goal = store.get("a")
    assert goal is not None
    assert positions() == [1, 2, 3, 4, 5]
    assert positions("--after", 3) == [4, 5]
    assert positions("--limit", 2) == [1, 2]
    assert positions("--thread", "b") == [2, 5]
    assert positions("--goal", goal.goal_id, "--after", 1, "--limit", 1) == [3]
    assert positions("--limit", 0) == []
    assert positions("--tail", 2) == [4, 5]
    assert positions("--tail", 0) == []
    assert positions("--tail", 9) == [1, 2, 3, 4, 5]
    assert positions("--tail", 1, "--thread", "b") == [5]
    assert positions("--tail", 2, "--limit", 1) == [4]
    assert positions("--tail", 3, "--after", 4) == [5]
    assert positions("--tail", 3, "--after", 9) == []


def test_events_for_people_stand_in_one_line_each(db: Path) -> None:
    lines = run("events", "--db", db).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "5"]
    assert lines[2].endswith(
        "usage_accounted    budget_limited  +10 tokens = 10 of 10  thread a  turn turn-1"
    )
    assert lines[3].endswith("status_changed     budget_limited  was active  thread a  turn turn-1")
    assert "thread" not in run("events", "--thread", "a", "--db", db).stdout


@pytest.mark.parametrize("option", ["--after", "--limit"])
def test_a_bound_is_named(db: Path, option: str) -> None:
    assert refused("events", option, -1, "--db", db) == (
        f"{option.removeprefix('--')}: must be 0 or more, is -1"
    )


@pytest.mark.slow
def test_follow_shows_what_others_write_and_ends_cleanly_with_ctrl_c(db: Path) -> None:
    process = start("events", "--follow", "--after", 4, "--json", "--db", db)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    with GoalStore.open(db) as store:
        store.create("c", "z")
    second = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    assert finish(process) == ("", "")
    assert [(one["position"], one["kind"]) for one in (first, second)] == [
        (5, "cleared"),
        (6, "created"),
    ]


@pytest.mark.slow
def test_follow_ends_at_its_limit(db: Path) -> None:
    process = start("events", "--follow", "--limit", 6, "--json", "--db", db)
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline()
    with GoalStore.open(db) as store:
        store.create("c", "z")
        store.create("d", "z")
    assert json.loads(finish(process)[0])["thread_id"] == "c"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["events", "--json"], ["events"], ["list"], ["list", "--json"]])
def test_a_reader_that_has_enough_leaves_no_trace(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "goals.db"
    with GoalStore.open(path) as store:

        def fill(repository) -> None:
            for number in range(2_000):
                repository.create(f"thread-{number}", "x" * 100)

        store.transact(fill)
    process = start(*words, "--db", path)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert finish(process)[1] == ""


@pytest.mark.slow
def test_without_click_the_program_says_how_to_install_it(tmp_path: Path) -> None:
    for package in ("click", "rich"):
        code = f"import sys; sys.modules[{package!r}] = None; import goal_state.cli"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert package in done.stderr
        assert "pip install 'goal-state[cli]'" in done.stderr


@pytest.mark.slow
def test_a_terminal_without_unicode_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "goals.db"
    with GoalStore.open(path) as store:
        store.create("a", "目標", token_budget=10)
        store.charge("a", tokens=5)
    done = subprocess.run(
        [*COMMAND, "show", "a", "--db", str(path)],
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u76ee\u6a19" in done.stdout
    assert "#" * 20 + "-" * 20 in done.stdout
