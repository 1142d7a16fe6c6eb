"""The example with the agent loop: it runs by itself, and shows what it is there to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import CHECKOUT, python

pytestmark = pytest.mark.slow

AGENT = CHECKOUT / "examples" / "agent.py"

_WITHOUT_NETWORK = """
import runpy, socket, sys, tempfile

def refuse(*_):
    raise AssertionError("the example reaches for the network")

socket.socket.connect = refuse
tempfile.tempdir = sys.argv[2]
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return run(tmp_path_factory.mktemp("first"))


def run(folder: Path) -> list[str]:
    """What it prints, without the space around and between words."""
    out = python(_WITHOUT_NETWORK, AGENT, folder)
    return [" ".join(line.split()) for line in out.splitlines()]


def test_it_shows_charges_the_notice_and_how_the_turn_wraps_up(said: list[str]) -> None:
    begun, crossed = (
        said.index("turn-1"),
        said.index("edit_file: quotes in parser.py +1,900 [####################] 6,130 of 5,000"),
    )
    assert begun < crossed
    assert said[crossed + 1 : crossed + 5] == [
        "! the budget is used up; the model is told to wrap up",
        "Quotes work; comments are left. +1,020 [####################] 7,150 of 5,000",
        "",
        "No further turn: the goal is budget_limited.",
    ]
    assert sum(line.startswith("!") for line in said) == 1


def test_it_goes_on_with_a_higher_budget_until_the_goal_is_complete(said: list[str]) -> None:
    ends = said.index("No further turn: the goal is complete.")
    assert said.index("turn-2") < ends
    assert said[ends - 2].startswith("The parser takes quotes and comments now. free ")
    assert said[ends + 1] == "It took 10,450 tokens and 22 seconds."


def test_it_shows_what_the_sink_wrote(said: list[str]) -> None:
    lines = said[said.index("What goal-events.jsonl has of it:") + 1 :]
    assert lines[0] == "created active -"
    assert lines[-2:] == [
        "usage_accounted active turn-2 10,450 tokens",
        "status_changed complete turn-2",
    ]
    assert "status_changed budget_limited turn-1" in lines


def test_it_leaves_nothing_behind_and_says_the_same_each_time(
    said: list[str], tmp_path: Path
) -> None:
    assert run(tmp_path) == said
    assert list(tmp_path.iterdir()) == []
