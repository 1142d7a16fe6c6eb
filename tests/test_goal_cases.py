"""Every recorded scenario of the real program, played through the public API of store and meter."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goal_state import EventKind, Goal, GoalEvent, GoalStatus, GoalStore, TokenUsage
from goal_state.meter import GoalMeter

CASES = sorted((Path(__file__).parent / "data" / "goal-cases").glob("*.json"))
IMPOSSIBLE_SEEDS = {"transition_from_active_over_budget"}

THREAD = "thread1"


def snake(status: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in status)


class Player:
    """Plays steps of a case, as a host would that runs an agent on one thread."""

    def __init__(self, path: Path, *, real_clock: bool) -> None:
        self.path = path
        self.real_clock = real_clock
        self.now_ns = 0
        self.total = TokenUsage()
        self.turns = 0
        self.goals: dict[str, str] = {}
        self.open()

    def open(self) -> None:
        self.store = GoalStore.open(self.path, durability="normal")
        self.meter = GoalMeter(self.store, THREAD, clock_ns=self.clock_ns)

    def clock_ns(self) -> int:
        return time.monotonic_ns() if self.real_clock else self.now_ns

    def wait(self, seconds: float) -> None:
        if self.real_clock:
            time.sleep(seconds)
        else:
            self.now_ns += round(seconds * 1e9)

    def seed(self, seed: dict[str, Any] | None) -> None:
        self.store.clear(THREAD)
        if seed is None:
            return
        self.store.create(THREAD, "seeded")
        self.store.charge(THREAD, tokens=seed["tokens_used"], seconds=seed["time_used_seconds"])
        self.store.set(THREAD, token_budget=seed["token_budget"], status=seed["status"])
        goal = self.store.get(THREAD)
        assert goal is not None
        self.goals = {goal.goal_id: "goal1"}

    # -- steps, by their names in the recordings ----------------------------------------------------

    def play(self, do: dict[str, Any]) -> Any:
        ((name, arguments),) = do.items()
        return getattr(self, name.replace("/", "_"))(arguments)

    def turn(self, turn: dict[str, Any]) -> None:
        responses = iter(turn["model_responses"])
        for _ in range(turn["turns_completed"]):
            self.start_turn()
            self.respond(responses, ends=True)

    def turn_in_progress(self, turn: dict[str, Any]) -> None:
        self.start_turn()
        self.respond(iter(turn["model_responses"]), ends=False)

    def turn_finishes(self, turn: dict[str, Any]) -> None:
        self.respond(iter(turn["model_responses"]), ends=True)

    def turn_interrupt(self, _: Any) -> None:
        self.meter.abort_turn()

    def thread_goal_set(self, values: dict[str, Any]) -> dict[str, Any]:
        names = {"objective": "objective", "status": "status", "tokenBudget": "token_budget"}
        changes = {names[key]: value for key, value in values.items()}
        if "status" in changes:
            changes["status"] = snake(changes["status"])
        return {"goal": self.wire(self.meter.set_goal(**changes))}

    def thread_goal_get(self, values: dict[str, Any]) -> dict[str, Any]:
        if "after" in values:  # the process was killed: nothing of it is left but the file
            self.store.close()
            self.open()
        return {"goal": self.wire(self.store.get(values.get("thread", THREAD)))}

    def thread_goal_clear(self, _: Any) -> dict[str, Any]:
        return {"cleared": self.meter.clear_goal() is not None}

    def thread_resume(self, _: Any) -> None:
        self.store.close()
        self.open()

    def thread_fork(self, _: Any) -> None:
        self.store.set_baseline("fork", self.total)

    # -- the agent ---------------------------------------------------------------------------------

    def start_turn(self) -> None:
        self.turns += 1
        self.meter.start_turn(f"turn{self.turns}", total=self.total)

    def respond(self, responses: Iterator[dict[str, Any]], *, ends: bool) -> None:
        """The model's responses up to the end of the turn (a response without a tool call)."""
        for response in responses:
            self.wait(response.get("delay", 0))
            if "status" in response:
                self.meter.block_goal()
                break
            taken, cached, output, reasoning = response["usage"]
            self.total += TokenUsage(taken, cached, 0, output, reasoning)
            self.meter.record_total(self.total)
            if "call" not in response:
                break
            self.call_tool(*response["call"])
            self.meter.flush()
        if ends:
            self.meter.finish_turn()

    def call_tool(self, name: str, arguments: dict[str, Any]) -> None:
        if name == "create_goal":
            self.meter.create_goal(arguments["objective"], token_budget=arguments["token_budget"])
        elif name == "update_goal":
            assert arguments == {"status": "complete"}
            self.meter.complete_goal()

    # -- what came of it, as the recordings write it ------------------------------------------------

    def wire(self, goal: Goal | None) -> dict[str, Any] | None:
        if goal is None:
            return None
        first, *words = goal.status.split("_")
        return {
            "objective": goal.objective,
            "status": first + "".join(word.capitalize() for word in words),
            "tokenBudget": goal.token_budget,
            "tokensUsed": goal.tokens_used,
        }

    def symbol(self, goal_id: str) -> str:
        return self.goals.setdefault(goal_id, f"goal{len(self.goals) + 1}")

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "thread": goal.thread_id,
                "goal": self.symbol(goal.goal_id),
                "objective": goal.objective,
                "status": goal.status.value,
                "token_budget": goal.token_budget,
                "tokens_used": goal.tokens_used,
                "time_used_seconds": goal.time_used_seconds,
            }
            for goal in self.store.goals()
        ]

    def analytics(self, event: GoalEvent) -> dict[str, Any]:
        return {
            "event_kind": event.kind.value,
            "goal": self.symbol(event.goal_id),
            "turn": event.turn_id,
            "goal_status": event.goal_status.value,
            "has_token_budget": event.has_token_budget,
            "cumulative_tokens_accounted": event.cumulative_tokens,
            "cumulative_time_accounted": None if event.cumulative_seconds is None else True,
        }


def with_last_charge_only(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Charges of a step may have been recorded as one: the last of them is what counts."""
    charges = [e for e in events if e["event_kind"] == EventKind.USAGE_ACCOUNTED]
    return [e for e in events if e not in charges or e is charges[-1]]


@pytest.mark.slow
@pytest.mark.parametrize("real_clock", [False, True], ids=["clock that stands", "real clock"])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_recorded_case_charges_exactly(
    path: Path, made_once: Path, tmp_path: Path, *, real_clock: bool
) -> None:
    case = json.loads(path.read_text())
    player = Player(Path(shutil.copy(made_once, tmp_path)), real_clock=real_clock)
    try:
        if case["name"] in IMPOSSIBLE_SEEDS:
            player.seed(case["seed"])
            goal = player.store.get(THREAD)
            assert goal is not None
            assert goal.status is GoalStatus.BUDGET_LIMITED, "an impossible seed was reached"
            return
        player.seed(case["seed"])
        for step in case["steps"]:
            if case.get("reset_before_each_step"):
                player.seed(case["seed"])
            before = player.store.last_position()
            response = player.play(step["do"])
            appended = list(player.store.events(after=before))
            alone = [e for e in appended if e.time_delta_ms and not e.tokens_delta]
            # On a machine that stands still for a second, time alone is due where the recorded had none.
            assert all(e.time_delta_ms >= 1_000 for e in alone)
            assert real_clock or not alone
            # Of a kind of our own the recorded program knows nothing.
            own = (EventKind.BUDGET_CHANGED, EventKind.THRESHOLD_CROSSED)
            events = [player.analytics(e) for e in appended if e not in alone and e.kind not in own]
            rows = player.rows()
            for row, recorded in zip(rows, step["goals"], strict=True):
                # Seconds depend on the machine that was recorded.
                seconds = recorded.pop("time_used_seconds")
                time_used = row.pop("time_used_seconds")
                assert time_used >= seconds - 1
                assert real_clock or time_used <= seconds + 1
                assert row == recorded
            assert with_last_charge_only(events) == with_last_charge_only(step["analytics"])
            if isinstance(response, dict):
                assert response == step["response"]
        assert player.store.verify() == []
    finally:
        player.store.close()


def test_every_case_is_there() -> None:
    assert len(CASES) == 29
