"""What a recorded peer did with goals that were set, read and cleared from outside: the same here.

Each file of `data/goal-cases` is one scenario: the goal before it (`seed`), and per step the call, its
response, the rows afterwards and the events that were sent, with goals named in the order of their making.
"""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from goal_state import EventKind, Goal, GoalEvent, GoalStatus, GoalStore
from tests.databases import execute

RECORDED_KINDS = frozenset(
    (EventKind.CREATED, EventKind.USAGE_ACCOUNTED, EventKind.STATUS_CHANGED, EventKind.CLEARED)
)

CASES = {
    path.stem: json.loads(path.read_text())
    for pattern in ("transition_*.json", "budget_*.json", "create_*.json")
    for path in sorted((Path(__file__).parent / "data" / "goal-cases").glob(pattern))
}


class Scenario(NamedTuple):
    seed: dict[str, Any] | None
    steps: list[dict[str, Any]]


def _scenarios() -> list[Any]:
    scenarios: list[Any] = []
    for name, case in CASES.items():
        marks = []
        if _is_impossible(case["seed"]):
            marks = [pytest.mark.skip(reason="unreachable: active while over its budget")]
        if case.get("reset_before_each_step"):
            for step in case["steps"]:
                [(call, parameters)] = step["do"].items()
                scenario = Scenario(case["seed"], [step])
                name_of_step = f"{name}-{'-'.join(map(str, parameters.values()))}"
                scenarios.append(pytest.param(scenario, id=name_of_step, marks=marks))
                assert call == "thread/goal/set"
        else:
            scenarios.append(pytest.param(Scenario(case["seed"], case["steps"]), id=name))
    return scenarios


def _is_impossible(seed: dict[str, Any] | None) -> bool:
    return (
        seed is not None
        and seed["status"] == "active"
        and seed["token_budget"] is not None
        and seed["tokens_used"] >= seed["token_budget"]
    )


def _plant(store: GoalStore, seed: dict[str, Any]) -> Goal:
    store.create("thread1", "seeded")
    store.charge("thread1", tokens=seed["tokens_used"], seconds=seed["time_used_seconds"])
    return store.set("thread1", token_budget=seed["token_budget"], status=seed["status"])


def _do(store: GoalStore, call: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Makes a call of the protocol and returns its response."""
    if call == "thread/goal/clear":
        return {"cleared": store.clear("thread1") is not None}
    if call == "thread/goal/get":
        goal = store.get("thread1")
    else:
        assert call == "thread/goal/set"
        goal = store.set("thread1", **{_snake(key): value for key, value in parameters.items()})
    return {"goal": None if goal is None else _on_the_wire(goal)}


def _snake(name: str) -> str:
    return re.sub("([A-Z])", lambda letter: f"_{letter[0].lower()}", name)


def _camel(name: str) -> str:
    return re.sub("_([a-z])", lambda letter: letter[1].upper(), name)


def _on_the_wire(goal: Goal) -> dict[str, Any]:
    return {
        "objective": goal.objective,
        "status": _camel(goal.status),
        "tokenBudget": goal.token_budget,
        "tokensUsed": goal.tokens_used,
    }


def _row(goal: Goal, names: dict[str, str]) -> dict[str, Any]:
    return {
        "thread": goal.thread_id,
        "goal": names[goal.goal_id],
        "objective": goal.objective,
        "status": str(goal.status),
        "token_budget": goal.token_budget,
        "tokens_used": goal.tokens_used,
        "time_used_seconds": goal.time_used_seconds,
    }


def _sent(event: GoalEvent, names: dict[str, str]) -> dict[str, Any]:
    return {
        "event_kind": str(event.kind),
        "goal": names[event.goal_id],
        "turn": event.turn_id,
        "goal_status": str(event.goal_status),
        "has_token_budget": event.has_token_budget,
        "cumulative_tokens_accounted": event.cumulative_tokens,
        "cumulative_time_accounted": event.cumulative_seconds,
    }


@pytest.mark.parametrize("scenario", _scenarios())
def test_a_recorded_scenario_ends_as_recorded(store: GoalStore, scenario: Scenario) -> None:
    if scenario.seed is not None:
        planted = _plant(store, scenario.seed)
        assert planted.status == scenario.seed["status"], "the seed itself"
        assert planted.tokens_used == scenario.seed["tokens_used"]
    position = max((event.position for event in store.events()), default=0)

    for step in scenario.steps:
        [(call, parameters)] = step["do"].items()
        if "status" in parameters:
            parameters = parameters | {"status": _snake(parameters["status"])}
        response = _do(store, call, parameters)
        happened = list(store.events(after=position))
        position = max([position, *(event.position for event in happened)])
        # Codex knows nothing of the others, which are not sent to it.
        sent = [event for event in happened if event.kind in RECORDED_KINDS]
        names: dict[str, str] = {}
        for event in store.events():
            names.setdefault(event.goal_id, f"goal{len(names) + 1}")

        assert response == step["response"], step["do"]
        assert [_row(goal, names) for goal in store.goals()] == step["goals"], step["do"]
        assert [_sent(event, names) for event in sent] == step["analytics"], step["do"]
    assert store.verify() == []


def test_every_recorded_matrix_is_here() -> None:
    assert len(CASES) == 13
    assert sum(len(case["steps"]) for case in CASES.values()) == 64
    impossible = [name for name, case in CASES.items() if _is_impossible(case["seed"])]
    assert impossible == ["transition_from_active_over_budget"]


def test_a_goal_that_is_active_over_its_budget_cannot_be(database: Path) -> None:
    """What makes that seed unreachable: the calls limit the goal, and the table refuses the row."""
    seed = CASES["transition_from_active_over_budget"]["seed"]
    with GoalStore.open(database) as store:
        assert _plant(store, seed).status is GoalStatus.BUDGET_LIMITED
    with pytest.raises(sqlite3.IntegrityError, match="ck_goal_state_goals_active_within_budget"):
        execute(database, "UPDATE goal_state_goals SET status = 'active'")
