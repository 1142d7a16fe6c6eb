"""`tree`, `breakdown`: what the goals under a goal have used, and what limits each."""

from __future__ import annotations

from pathlib import Path

import pytest

from goal_state import GoalStore
from tests.cli.program import refused, run, run_json


@pytest.fixture
def db(database: Path) -> Path:
    """A goal with two under it, and one under the first of them."""
    with GoalStore.open(database, durability="normal") as store:
        store.create("lead", "Lead", token_budget=1_000)
        store.create("a", "First", parent="lead", token_budget=300)
        store.create("b", "Second", parent="lead")
        store.create("a1", "Part of the first", parent="a", call_budget=2)
        store.charge("lead", tokens=100, model="m-1", turn_id="turn-1", seconds=2)
        store.charge("a", tokens=50, cost="0.5", model="m-2", tags={"user": "ada"})
        store.charge("a1", tokens=20, tags={"user": "[red]bob"})
        store.reserve("b", tokens=30)
    return database


def test_tree_shows_what_each_goal_has_used_and_who_limits_it(db: Path) -> None:
    lines = run("tree", "lead", "--db", db).stdout.splitlines()
    assert [line[:8].rstrip() for line in lines] == ["thread", "lead", "├─ a", "│  └─ a1", "└─ b"]
    cells = [" ".join(line.replace("─ ", " ").split()) for line in lines]
    assert cells[1] == "lead active 170 of 1,000 0.5 2.0 s 30 tokens, 1 call 800 tokens"
    assert cells[2].endswith("a active 70 of 300 0.5 230 tokens")
    assert cells[3].endswith("a1 active 20 0 of 2 230 tokens of thread a, 2 calls")
    assert cells[4].endswith("b active 0 30 tokens, 1 call 800 tokens of thread lead")


def test_tree_for_programs_has_every_goal_below_its_parent(db: Path) -> None:
    tree = run_json("tree", "lead", "--db", db)
    with GoalStore.open(db) as store:
        goals = {goal.thread_id: goal.to_dict() for goal in store.goals()}
        headroom = store.headroom("a1")
    assert headroom is not None
    first, second = tree["children"]
    assert tree["goal"] == goals["lead"]
    assert (first["goal"], second["goal"]) == (goals["a"], goals["b"])
    (below,) = first["children"]
    assert below == {"goal": goals["a1"], "headroom": headroom.to_dict(), "children": []}


def test_tree_of_a_goal_below_begins_there(db: Path) -> None:
    assert run_json("tree", "a", "--db", db)["goal"]["thread_id"] == "a"


def test_breakdown_adds_up_by_child_model_turn_and_tag(db: Path) -> None:
    def parts(*by: str) -> dict[str | None, int]:
        told = run_json("breakdown", "lead", *by, "--db", db)
        return {part["name"]: part["tokens"] for part in told["parts"]}

    assert parts() == parts("--by", "child") == {"lead": 100, "a": 70}
    assert parts("--by", "model") == {"m-1": 100, "m-2": 50, None: 20}
    assert parts("--by", "turn") == {"turn-1": 100, None: 70}
    assert parts("--by", "user") == {None: 100, "ada": 50, "[red]bob": 20}


def test_breakdown_for_people_is_a_table(db: Path) -> None:
    lines = run("breakdown", "lead", "--by", "user", "--db", db).stdout.splitlines()
    assert lines[0].split() == [
        "user", "tokens", "cost", "calls", "time", "estimated", "unpriced"
    ]  # fmt: skip
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["(none)", "100", "0"],
        ["ada", "50", "0.5"],
        ["[red]bob", "20", "0"],
    ]
    assert lines[4] == "3 parts"


@pytest.mark.parametrize("command", ["tree", "breakdown"])
def test_a_thread_without_a_goal_is_refused(db: Path, command: str) -> None:
    assert refused(command, "nobody", "--db", db) == "thread 'nobody' has no goal"
