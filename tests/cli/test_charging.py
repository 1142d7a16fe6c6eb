"""`charge`: adds usage to a goal."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from goal_state import Goal, GoalEvent, GoalStore
from tests.cli.program import refused, run, run_json

USAGE = {
    "input_tokens": 90,
    "input_tokens_details": {"cached_tokens": 40},
    "output_tokens": 10,
}


@pytest.fixture
def db(database: Path) -> Path:
    """A database with a goal that may use 100 tokens."""
    with GoalStore.open(database, durability="normal") as store:
        store.create("t", "Ship the parser", token_budget=100)
    return database


def stored(db: Path) -> tuple[Goal, GoalEvent]:
    """The goal, and the last charge in the log."""
    with GoalStore.open(db) as store:
        goal = store.get("t")
        charges = [event for event in store.events() if event.kind == "usage_accounted"]
    assert goal is not None
    return goal, charges[-1]


def test_charge_adds_figures_with_all_that_is_said_of_them(db: Path) -> None:
    words = ("--tokens", 25, "--cost", "0.10", "--seconds", 1.5, "--model", "m-1", "--turn", "t-1")
    told = run_json("charge", "t", *words, "--tag", "user=ada", "--tag", "tool=a=b", "--db", db)
    goal, event = stored(db)
    assert (told["applied"], told["duplicate"]) == (True, False)
    assert told["goal"] == goal.to_dict()
    assert (goal.tokens_used, goal.cost_used, goal.time_used_ms) == (25, Decimal("0.1"), 1500)
    assert (event.model, event.turn_id) == ("m-1", "t-1")
    assert event.tags == {"user": "ada", "tool": "a=b"}


def test_charge_counts_a_usage_as_its_provider_reports_it(db: Path) -> None:
    shown = run("charge", "t", "--usage", json.dumps(USAGE), "--db", db).stdout
    assert "tokens     60 of 100 used, 40 remaining\n" in shown
    assert stored(db)[0].calls_used == 1


def test_charge_of_a_response_is_made_once(db: Path) -> None:
    words = ("charge", "t", "--usage", json.dumps(USAGE), "--response-id", "r-1", "--db", db)
    assert run_json(*words)["duplicate"] is False
    assert run_json(*words)["duplicate"] is True
    assert run(*words).stdout.startswith("This response was charged before, and nothing was added")
    assert stored(db)[0].tokens_used == 60
    other = refused("charge", "t", "--tokens", 61, "--response-id", "r-1", "--db", db)
    assert "r-1" in other


def test_charge_that_fills_a_budget_shows_the_goal_budget_limited(db: Path) -> None:
    shown = run("charge", "t", "--tokens", 120, "--db", db).stdout
    assert "status     budget_limited\n" in shown
    assert "exhausted  tokens\n" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name what to charge"),
        (["--tokens", "-1"], "tokens: must be 0 or more, is -1"),
        (["--tokens", "1", "--cost", "cheap"], "cost: must be a number, such as '0.25'"),
        (["--seconds", "inf"], "seconds: must be finite, is inf"),
        (["--usage", "{"], "must be JSON"),
        (["--usage", "[" * 100_000], "must be JSON"),
        (["--usage", "7"], "usage"),
        (["--usage", '{"spent": 3}'], "usage"),
        (["--usage", json.dumps(USAGE), "--tokens", "3"], "tokens: goes without usage"),
        (["--seconds", "1", "--response-id", "r"], "usage: is missing"),
        (["--tokens", "1", "--tag", "ada"], "'ada' is not of the form NAME=VALUE"),
        (["--tokens", "1", "--tag", "a=1", "--tag", "a=2"], "names 'a' twice"),
        (["--tokens", "1", "--tag", "a="], "tags: must have 1 to 256 characters, has 0"),
    ],
)
def test_charge_of_what_makes_no_sense_is_refused_and_charges_nothing(
    db: Path, words: list[str], said: str
) -> None:
    assert said in refused("charge", "t", *words, "--db", db)
    with GoalStore.open(db) as store:
        assert [event.kind for event in store.events()] == ["created"]


def test_charge_that_no_goal_takes_is_an_error(db: Path) -> None:
    assert "'nobody' has no goal" in refused("charge", "nobody", "--tokens", 1, "--db", db)
    run("set", "t", "--status", "paused", "--db", db)
    assert "it is paused" in refused("charge", "t", "--tokens", 1, "--db", db)
    assert "no database" in refused("charge", "t", "--tokens", 1, "--db", db.parent / "none.db")
