"""Quiet logs, and the number of steps that were taken at the end of the report."""

from __future__ import annotations

import logging
from collections import Counter

import pytest


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Hundreds of thousands of refused charges would fill the memory with what is logged of them."""
    caplog.set_level(logging.CRITICAL, logger="goal_state")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    taken: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            if "tests/properties/" in report.nodeid and report.when == "call":
                taken.update(dict(report.user_properties))
    if steps := taken.pop("steps", 0):
        rest = ", ".join(f"{count} {name}" for name, count in sorted(taken.items()))
        terminalreporter.write_line(f"state machines took {steps} steps: {rest}")
