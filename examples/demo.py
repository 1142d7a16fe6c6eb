"""Meters two recorded threads, one under its budget and one over it, and clears a goal.

    make demo

Everything happens in a temporary folder that is gone afterwards; nothing is fetched.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent
DATABASE = ("--db", "goals.db")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="goal-state-demo-") as name:
        folder = Path(name)
        shutil.copytree(EXAMPLES / "rollouts", folder / "rollouts")
        meter_and_clear(folder)


def meter_and_clear(folder: Path) -> None:
    say("A recorded thread that stays under its budget of 20,000 tokens.")
    run(folder, "codex", "meter", "rollouts/under-budget.jsonl", "--budget", "20000", *DATABASE)

    say("Another one that goes over its budget of 4,000: the goal becomes budget_limited.")
    run(folder, "codex", "meter", "rollouts/over-budget.jsonl", "--budget", "4000", *DATABASE)

    say("Both goals, and whether each is what its events add up to.")
    run(folder, "list", *DATABASE)
    run(folder, "verify", *DATABASE)

    say("Clearing a goal prints the deleted row.")
    run(folder, "clear", thread_of(folder / "rollouts/over-budget.jsonl"), *DATABASE)
    run(folder, "list", *DATABASE)


def thread_of(rollout: Path) -> str:
    """The thread that the first line of a rollout names."""
    with rollout.open(encoding="utf-8") as lines:
        return json.loads(next(lines))["payload"]["id"]


def say(sentence: str) -> None:
    print(f"\n# {sentence}", flush=True)


def run(folder: Path, *words: str) -> None:
    """Shows a command and runs it in the folder; its failure is the demo's."""
    print(f"\n$ {shlex.join(('goal-state', *words))}", flush=True)
    environment = {name: text for name, text in os.environ.items() if name != "GOAL_STATE_DB"}
    command = [sys.executable, "-m", "goal_state", *words]
    done = subprocess.run(command, cwd=folder, env=environment, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
