"""`goal-state codex resume`: the messages that a client would get, and that asking changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from goal_state import GoalStore, TokenUsage
from goal_state.codex import goal_updated, token_usage_updated
from goal_state.codex.builders import TURN_ID, USAGE, rollout, rollout_with_token_usage
from goal_state.codex.rollout import find_rollout
from tests.cli.program import refused, run, run_json_lines
from tests.databases import contents, fingerprints

CASES = Path(__file__).parents[1] / "data" / "replay-cases"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


def response(thread_id: str, *turn_ids: str) -> dict[str, object]:
    turns = [{"id": turn_id, "status": "completed"} for turn_id in turn_ids]
    return {"jsonrpc": "2.0", "id": 1, "result": {"thread": {"id": thread_id, "turns": turns}}}


def path_of(home: Path, thread_id: str) -> Path:
    path = find_rollout(home, thread_id)
    assert path is not None
    return path


def test_resume_by_rollout_without_a_database_makes_none(home: Path, path: Path) -> None:
    thread_id = rollout_with_token_usage(home)
    told = run_json_lines("codex", "resume", path_of(home, thread_id), "--db", path)
    assert told == [
        response(thread_id, TURN_ID),
        token_usage_updated(thread_id, TURN_ID, USAGE),
    ]
    assert not path.exists()


def test_resume_by_thread_finds_the_rollout_and_the_goal(home: Path, database: Path) -> None:
    thread_id = rollout_with_token_usage(home)
    with GoalStore.open(database) as store:
        goal = store.create(thread_id, "Ship it", token_budget=9)
    told = run_json_lines("codex", "resume", thread_id, "--home", home, "--db", database)
    assert told == [
        response(thread_id, TURN_ID),
        token_usage_updated(thread_id, TURN_ID, USAGE),
        goal_updated(goal),
    ]


def test_by_thread_from_the_database_alone(database: Path) -> None:
    with GoalStore.open(database) as store:
        store.set_baseline("thread", USAGE, turn_id="turn-7")
    told = run_json_lines("codex", "resume", "thread", "--db", database)
    # The database does not say how the turn ended, so it is not listed.
    assert told == [response("thread"), token_usage_updated("thread", "turn-7", USAGE)]


def test_people_get_the_same_on_more_lines(home: Path, path: Path) -> None:
    rollout_path = path_of(home, rollout_with_token_usage(home))
    text = run("codex", "resume", rollout_path, "--db", path).stdout
    documents, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        documents.append(document)
        text = text[end:]
    assert documents == run_json_lines("codex", "resume", rollout_path, "--db", path)


def test_a_thread_without_usage_gets_the_response_alone(home: Path, path: Path) -> None:
    thread_id = rollout(home)
    told = run_json_lines("codex", "resume", path_of(home, thread_id), "--db", path)
    assert told == [response(thread_id, TURN_ID)]


@pytest.mark.parametrize("is_paid_by_its_goal", [True, False])
def test_the_goal_is_shown_as_a_resume_would_leave_it_and_nothing_is_charged(
    home: Path, database: Path, is_paid_by_its_goal: bool
) -> None:
    """The rollout knows more than the store: a resume charges that to the goal of that time, if any."""
    thread_id = rollout_with_token_usage(home)
    with GoalStore.open(database) as store:
        if is_paid_by_its_goal:
            store.create(thread_id, "Ship it")
        store.set_baseline(thread_id, TokenUsage(200, 50, 0, 30))
        if not is_paid_by_its_goal:
            store.create(thread_id, "Ship it")
    before, files = contents(database), fingerprints(home)
    _, usage, goal = run_json_lines("codex", "resume", thread_id, "--home", home, "--db", database)
    due = USAGE.total.goal_tokens - 180 if is_paid_by_its_goal else 0
    assert goal["params"]["goal"]["tokensUsed"] == due
    assert usage == token_usage_updated(thread_id, TURN_ID, USAGE)
    assert contents(database) == before
    assert fingerprints(home) == files


def test_a_fork_finds_its_parent_in_the_directory_that_it_lies_in(home: Path, path: Path) -> None:
    day = home / "sessions" / "2026" / "11" / "20"
    shutil.copytree(CASES / "rejoin_mid_turn", day)
    _, fork = sorted(day.iterdir())
    _, usage = run_json_lines("codex", "resume", fork, "--db", path)
    assert usage["params"]["threadId"] in fork.name
    assert usage["params"]["tokenUsage"]["total"]["totalTokens"] == 276
    # Elsewhere it has no parent, and so no usage.
    moved = shutil.copy(fork, home)
    assert len(run_json_lines("codex", "resume", moved, "--db", path)) == 1
    assert len(run_json_lines("codex", "resume", moved, "--home", home, "--db", path)) == 2


def test_what_is_unknown_is_refused(home: Path, path: Path, database: Path) -> None:
    assert "no rollout and no record" in refused("codex", "resume", "nobody", "--db", database)
    assert "no rollout and no record" in refused(
        "codex", "resume", "nobody", "--home", home, "--db", path
    )
    assert "no rollout and no record" in refused("codex", "resume", home, "--db", path)
    nothing = home / "empty.jsonl"
    nothing.touch()
    assert "names a thread" in refused("codex", "resume", nothing, "--db", path)
