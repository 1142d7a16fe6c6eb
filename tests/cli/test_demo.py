"""`make demo` runs what it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.program import CHECKOUT, ENVIRONMENT, PATIENCE_SECONDS


@pytest.mark.slow
def test_the_demo_meters_under_and_over_budget_and_clears_a_goal(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", CHECKOUT / "examples/demo.py"],
        cwd=tmp_path,
        env=ENVIRONMENT | {"TMPDIR": str(tmp_path), "GOAL_STATE_DB": str(tmp_path / "mine.db")},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    steps = re.split(r"^\$ (.*)$", done.stdout, flags=re.MULTILINE)
    shown = dict(zip(steps[1::2], steps[2::2], strict=True))
    commands = [command.split()[1] for command in steps[1::2]]
    assert commands[:6] == ["codex", "codex", "list", "verify", "clear", "list"]
    under, over = (shown[command] for command in steps[1:5:2])
    assert "status     active\n" in under
    assert "10,953 of 20,000 used, 9,047 remaining" in under
    assert "status     budget_limited\n" in over
    deleted = shown[next(command for command in shown if " clear " in command)]
    assert "5,613 of 4,000 used" in deleted
    assert "\n1 goal\n" in steps[12]
    assert list(tmp_path.iterdir()) == []
