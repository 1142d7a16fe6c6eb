"""Exceptions, and calls of a signal handler, at every bytecode of the library."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.proof.effort import IS_LONG, PATIENCE_SECONDS
from tests.proof.programs import program
from tests.proof.stepping import CALLED, SCENARIOS

pytestmark = [
    pytest.mark.timeout(PATIENCE_SECONDS),
    pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no such signals"),
]

SECONDS = 0 if IS_LONG else 0.4
"""For each scenario; 0: every bytecode, twice."""
SEED = 7

HANDLED = [
    *(("Charging", called) for called in CALLED),
    *(("ChargingBesideWriters", called) for called in CALLED if called != "close"),
    *(("ChargingInMemory", called) for called in CALLED if called != "close"),
    *(("Transacting", called) for called in CALLED),
    *(("Reading", called) for called in CALLED),
    *(("Listening", called) for called in CALLED if called != "close"),
    *(("BackingUp", called) for called in CALLED),
    *(("Exporting", called) for called in CALLED),
]


# CPython 3.11 itself crashes now and then under a tracer that lets exceptions strike ("'traceback' object is
# not callable"), so this is for the long form, in which somebody looks at what failed. In the short form the
# storm of `test_interrupts` strikes, without a tracer.
@pytest.mark.skipif(not IS_LONG, reason="in the long form alone: make proof")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_exception_at_any_bytecode_strikes_once_and_leaves_nothing_behind(
    tmp_path: Path, scenario: str, figures: Callable[[str, float], None]
) -> None:
    said = json.loads(program("stepping", scenario, "raise", tmp_path, SEED, SECONDS))
    assert said["figures"]["raised"] > 0
    assert said["places"] > 0
    figures("steps: exceptions raised", said["figures"]["raised"])
    figures("steps: calls struck twice", said["figures"]["calls struck twice"])
    figures("steps: places in the library", said["places"])


@pytest.mark.parametrize(("scenario", "called"), HANDLED if IS_LONG else HANDLED[::4])
def test_a_call_from_a_signal_handler_at_any_bytecode_works_or_is_refused(
    tmp_path: Path, scenario: str, called: str, figures: Callable[[str, float], None]
) -> None:
    said = json.loads(program("stepping", scenario, called, tmp_path, SEED, SECONDS / 2))
    assert said["figures"]["handled"] > 0
    figures("steps: calls from a signal's handler", said["figures"]["handled"])
