"""Running the program: in this process, and as one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from goal_state.cli.main import program

CHECKOUT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-W", "error", "-m", "goal_state"]
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("GOAL_STATE_")
} | {"PYTHONPATH": str(CHECKOUT)}
PATIENCE_SECONDS = 60.0

UNDER = CHECKOUT / "examples/rollouts/under-budget.jsonl"
OVER = CHECKOUT / "examples/rollouts/over-budget.jsonl"
SMALL = CHECKOUT / "examples/rollouts/small.jsonl"


def run(*words: object, code: int = 0, answer: str | None = None) -> Result:
    """Runs a command in this process; its output is on the result, stderr apart."""
    result = CliRunner(env={"GOAL_STATE_DB": None, "COLUMNS": None}).invoke(
        program, [*map(str, words)], input=answer, prog_name="goal-state"
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def run_json(*words: object, code: int = 0) -> Any:
    """What a command writes with --json: one document, and nothing on stderr."""
    result = run(*words, "--json", code=code)
    assert result.stderr == ""
    return json.loads(result.stdout)


def run_json_lines(*words: object) -> list[Any]:
    """What a command writes with --json: a document on each line."""
    return [json.loads(line) for line in run(*words, "--json").stdout.splitlines()]


def refused(*words: object, code: int = 2) -> str:
    """The one sentence with which a command is refused; nothing else is written."""
    result = run(*words, code=code)
    assert result.stdout == ""
    sentence = result.stderr.splitlines()[-1]
    assert sentence.startswith("Error: ")
    return sentence.removeprefix("Error: ")


def start(*words: object, **options: Any) -> subprocess.Popen[str]:
    """Starts the program as a process of its own."""
    return subprocess.Popen(
        [*COMMAND, *map(str, words)],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str], *, code: int = 0) -> tuple[str, str]:
    """What a process wrote to stdout and stderr until it ended, which it must do with this code."""
    with process:
        try:
            stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    return stdout, stderr
