"""The example with the budgets: it keeps its promises, shows them, and fails where one is broken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.processes import CHECKOUT, python

pytestmark = pytest.mark.slow

EXAMPLE = CHECKOUT / "examples" / "budgets.py"

_WITHOUT_NETWORK = """
import runpy, socket, sys, tempfile

def refuse(*_):
    raise AssertionError("the example reaches for the network")

socket.socket.connect = refuse
tempfile.tempdir = sys.argv[2]
runpy.run_path(sys.argv[1], run_name="__main__")
"""

_WITH_A_RESERVE_THAT_GRANTS_ALL = """
import runpy, sys
from goal_state.storage import reservations

reservations.admitted = lambda chain, asked, at_least: asked
try:
    runpy.run_path(sys.argv[1], run_name="__main__")
except SystemExit as end:
    print(end)
"""


def test_it_shows_what_holds_keep_of_a_budget_and_leaves_nothing_behind(tmp_path: Path) -> None:
    said = [
        " ".join(line.split()) for line in python(_WITHOUT_NETWORK, EXAMPLE, tmp_path).splitlines()
    ]
    assert "without holds 20 calls 6,300 5,300 over" in said
    (held,) = (
        re.fullmatch(r"with holds (\d+) calls ([\d,]+) (\d+) refused", line)
        for line in said
        if line.startswith("with holds")
    )
    assert held is not None
    assert int(held[1]) + int(held[3]) == 20
    assert 900 < int(held[2].replace(",", "")) <= 1_000
    assert "critic may use 400 300 stopped by the lead's budget" in said
    assert "0.25 at the most 14 calls 0.231 0.019 left, a call may take 0.021" in said
    assert said[-1] == "Every goal is what its log adds up to."
    assert list(tmp_path.iterdir()) == []


def test_it_fails_where_a_budget_is_not_kept() -> None:
    said = python(_WITH_A_RESERVE_THAT_GRANTS_ALL, EXAMPLE).splitlines()
    assert said[-1] == "A promise was broken: what is used and held stays within the budget."
