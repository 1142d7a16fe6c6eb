"""What is handed out, as people and programs see it: as JSON, as text, and what cannot be handed on."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import goal_state
from goal_state import (
    AccountingMode,
    Charge,
    Difference,
    GoalMeter,
    GoalStore,
    ThreadUsage,
    TokenUsage,
)
from tests.in_memory import open_in_memory


def test_to_dict_of_a_goal_has_every_field_and_what_people_read(store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=500)
    goal = store.charge("t", tokens=100, seconds=2.5).goal
    assert goal is not None
    said = json.loads(json.dumps(goal.to_dict()))
    assert said == goal.to_dict()
    assert {name: said[name] for name in goal.__slots__} == {
        name: getattr(goal, name) for name in goal.__slots__
    }
    assert type(goal.to_dict()["status"]) is str
    assert (said["remaining_tokens"], said["time_used_seconds"]) == (400, 2)
    assert said["created_at"].endswith("Z")
    assert said["resume_at"] is None


def test_to_dict_of_what_is_handed_out_is_ready_for_json(store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=50)
    meter = GoalMeter(store, "t")
    with meter.turn("turn-1") as started:
        reading = meter.record_total(TokenUsage(70, 10))
    accounting = store.charge("t", tokens=1, response_id="r1")
    usage, baseline = store.usage("t"), store.baseline("t")
    assert usage is not None
    assert baseline is not None
    event = next(store.events())
    handed_out: list[Any] = [
        *(started, reading, accounting, usage, baseline, event, usage.total),
        Difference("t", "g", "tokens_used", 1, 2),
    ]
    for record in handed_out:
        said = record.to_dict()
        assert json.loads(json.dumps(said)) == said
    assert accounting.to_dict()["goal"]["tokens_used"] == 61
    assert reading.to_dict()["over_budget"] is True
    assert usage.to_dict()["total"]["cached_input_tokens"] == 10
    assert (usage.to_dict()["turn_id"], baseline.to_dict()["turn_id"]) == ("turn-1", "turn-1")
    assert (event.to_dict()["kind"], event.to_dict()["occurred_at"][-1]) == ("created", "Z")
    assert ThreadUsage(TokenUsage(5), TokenUsage(2), 9, "turn-1").to_dict() == {
        "total": TokenUsage(5).to_dict(),
        "last": TokenUsage(2).to_dict(),
        "model_context_window": 9,
        "turn_id": "turn-1",
    }


def test_repr_of_a_store_shows_its_path_and_whether_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "goals.db"
    with GoalStore.open(path) as store:
        assert repr(store) == f"<GoalStore {str(path)!r}>"
    assert repr(store) == f"<GoalStore {str(path)!r}, closed>"
    with open_in_memory() as store:
        assert repr(store) == "<GoalStore ':memory:'>"


def test_repr_of_a_meter_shows_its_thread_and_turn(store: GoalStore) -> None:
    meter = GoalMeter(store, "t")
    assert repr(meter) == "<GoalMeter of thread 't'>"
    meter.start_turn("turn-1")
    assert repr(meter) == "<GoalMeter of thread 't', in turn 'turn-1'>"


@pytest.mark.parametrize("hand_on", [pickle.dumps, copy.copy, copy.deepcopy])
def test_store_or_meter_that_is_pickled_or_copied_is_refused_in_words(
    store: GoalStore, hand_on: Any
) -> None:
    with pytest.raises(TypeError, match=r"hand on its path, and call GoalStore\.open there"):
        hand_on(store)
    with pytest.raises(TypeError, match="make one of the same thread id"):
        hand_on(GoalMeter(store, "t"))


@pytest.mark.slow
def test_version_is_that_of_the_package_and_is_not_looked_up_at_import() -> None:
    assert goal_state.__version__ == version("goal-state")
    script = "import goal_state; print('__version__' in vars(goal_state))"
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "False"


def test_help_of_the_accounting_modes_says_what_each_takes() -> None:
    shown = inspect.getdoc(AccountingMode)
    assert shown is not None
    for mode in AccountingMode:
        assert f"{mode.value}: taken" in shown


def test_repr_of_a_charge_shows_what_was_given() -> None:
    assert repr(Charge("t", tokens=5, seconds=1.5, response_id="r1")) == (
        "Charge('t', tokens=5, seconds=1.5, response_id='r1')"
    )
    assert repr(Charge("t", TokenUsage(5), mode="active_or_stopped", turn_id="turn-1")) == (
        f"Charge('t', {TokenUsage(5)!r}, mode='active_or_stopped', turn_id='turn-1')"
    )
