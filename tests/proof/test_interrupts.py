"""A storm of exceptions: no thread hangs, totals are exact, each exception is raised once, in its thread."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.proof.effort import IS_LONG, PATIENCE_SECONDS
from tests.proof.programs import program

pytestmark = [
    pytest.mark.timeout(PATIENCE_SECONDS),
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such timers"),
]

STRIKES, SECONDS = (20_000, 900) if IS_LONG else (400, 4)
"""So many exceptions, or so long, in each storm."""


@pytest.mark.parametrize("seed", range(2 if IS_LONG else 1))
@pytest.mark.parametrize("where", ["a file", ":memory:"])
def test_exceptions_at_random_moments_strike_once_and_leave_nothing_behind(
    tmp_path: Path, where: str, seed: int, figures: Callable[[str, float], None]
) -> None:
    place = tmp_path if where == "a file" else where
    said = json.loads(program("storm", place, seed, STRIKES, SECONDS))
    assert said["by signals"] > 20
    assert said["into other threads"] > 20
    assert said["charges"] > 20
    figures("storm: exceptions by signals", said["by signals"])
    figures("storm: exceptions into other threads", said["into other threads"])
    figures("storm: exceptions that CPython could raise to nobody", said["unraisable"])
    figures("storm: charges in between", said["charges"])
