"""A small agent that works towards a goal with a token budget, against a model that follows a script.

    python examples/agent.py

It shows where a host calls the meter, what it does with the notice that the budget is used up, and how the
goal's events reach a file of JSON lines. Everything happens in a temporary folder; nothing is fetched.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from goal_state import GoalStatus, GoalStore, TokenUsage
from goal_state.analytics import JsonLinesSink, send_events
from goal_state.meter import GoalMeter, Reading

THREAD = "thread-1"
WRAP_UP = "The budget is used up: begin nothing new, and say how far you got."


@dataclass(frozen=True)
class Response:
    """What the model answers: a tool to call, or, without one, its last words of the turn."""

    says: str
    usage: TokenUsage
    seconds: float
    tool: str | None = None


class ScriptedModel:
    """Answers as it was told to beforehand, but does wrap up when it is asked to."""

    def __init__(self) -> None:
        self._script = iter(
            [
                Response("parser.py", TokenUsage(2_400, 0, 0, 150), 2.5, "read_file"),
                Response("tests/", TokenUsage(3_900, 2_300, 0, 80), 1.5, "run_tests"),
                Response("quotes in parser.py", TokenUsage(4_800, 3_800, 0, 900), 6.0, "edit_file"),
                Response(
                    "comments in parser.py", TokenUsage(5_900, 4_700, 0, 700), 5.0, "edit_file"
                ),
                Response("tests/", TokenUsage(6_600, 5_800, 0, 60), 1.5, "run_tests"),
                Response("All tests pass.", TokenUsage(7_100, 6_600, 0, 40), 1.0, "complete_goal"),
                Response(
                    "The parser takes quotes and comments now.", TokenUsage(7_200, 7_100), 1.0
                ),
            ]
        )

    def respond(self, messages: list[str]) -> Response:
        if messages[-1] == WRAP_UP:
            return Response(
                "Quotes work; comments are left.", TokenUsage(5_700, 4_800, 0, 120), 2.0
            )
        return next(self._script)


class Agent:
    """The loop that every agent has, with a meter in it."""

    def __init__(self, store: GoalStore) -> None:
        # A host leaves `clock_ns` out; here the script says how long things take.
        self.now_ns = 0
        self.meter = GoalMeter(store, THREAD, clock_ns=lambda: self.now_ns)
        self.model = ScriptedModel()
        self.total = TokenUsage()
        self.turns = 0

    def work(self) -> None:
        """Turn after turn, as long as the goal is active."""
        while (goal := self.meter.goal) is not None and goal.status is GoalStatus.ACTIVE:
            self.run_turn(goal.objective)
        print(f"\nNo further turn: the goal is {goal.status if goal else 'gone'}.")

    def run_turn(self, message: str) -> None:
        self.turns += 1
        messages = [message]
        self.meter.start_turn(f"turn-{self.turns}", total=self.total)
        print(f"\nturn-{self.turns}")
        while True:
            response = self.model.respond(messages)
            self.now_ns += int(response.seconds * 1e9)
            self.total += response.usage
            # As soon as the response is there: what it used is charged before anything else happens.
            reading = self.meter.record_total(self.total)
            show(response, reading)
            if response.tool is None:
                break
            messages.append(self.call_tool(response.tool))
            self.meter.flush()
            if reading.budget_exhausted:
                print("  ! the budget is used up; the model is told to wrap up")
                messages.append(WRAP_UP)
        self.meter.finish_turn()

    def call_tool(self, tool: str) -> str:
        self.now_ns += 500_000_000
        if tool == "complete_goal":
            self.meter.complete_goal()
        return f"{tool}: done"


def show(response: Response, reading: Reading) -> None:
    goal = reading.goal
    assert goal is not None
    assert goal.token_budget is not None
    share = min(goal.tokens_used / goal.token_budget, 1.0)
    bar = ("#" * round(share * 20)).ljust(20, ".")
    what = f"{response.tool}: {response.says}" if response.tool else response.says
    cost = f"+{response.usage.goal_tokens:,}" if reading.charged else "free"
    print(f"  {what:<42}{cost:>7}  [{bar}] {goal.tokens_used:,} of {goal.token_budget:,}")


def sent(path: Path) -> Iterator[str]:
    """The lines of the file, one event each, in short."""
    for line in path.read_text().splitlines():
        event = json.loads(line)
        tokens = event["cumulative_tokens"]
        yield (
            f"  {event['kind']:<16}{event['goal_status']:<16}{event['turn_id'] or '-':<8}"
            + ("" if tokens is None else f"{tokens:>6,} tokens")
        ).rstrip()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="goal-state-agent-") as folder:
        events = Path(folder) / "goal-events.jsonl"
        with GoalStore.open(Path(folder) / "goals.db") as store:
            consumer = send_events(store, JsonLinesSink(events))
            agent = Agent(store)

            print("The user sets a goal, with a budget of 5,000 tokens.")
            agent.meter.set_goal(objective="Make the parser's tests pass", token_budget=5_000)
            agent.work()

            print("\nThe user raises the budget to 12,000 tokens.")
            agent.meter.set_goal(token_budget=12_000, status=GoalStatus.ACTIVE)
            agent.work()

            goal = agent.meter.goal
            assert goal is not None
            print(f"It took {goal.tokens_used:,} tokens and {goal.time_used_seconds} seconds.")
            consumer.drain()
        print(f"\nWhat {events.name} has of it:")
        for line in sent(events):
            print(line)


if __name__ == "__main__":
    main()
