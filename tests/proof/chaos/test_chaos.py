"""One state machine over many circumstances: whatever is done to a store, what was acknowledged is kept, no
call hangs, and no undocumented error is raised. Injected faults prove that the machine finds them."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Callable
from itertools import islice
from typing import Final

import pytest

from tests.proof.chaos.driver import run
from tests.proof.chaos.faults import FAULTS
from tests.proof.chaos.model import Found
from tests.proof.chaos.plan import Plan
from tests.proof.effort import IS_LONG, PATIENCE_SECONDS

MISSING: Final = [
    name
    for name, is_there in (
        ("os.fork", hasattr(os, "fork")),
        ("signal.setitimer", hasattr(signal, "setitimer")),
        ("Unix sockets", hasattr(socket, "AF_UNIX")),
    )
    if not is_there
]

pytestmark = [
    pytest.mark.timeout(PATIENCE_SECONDS),
    pytest.mark.skipif(bool(MISSING), reason=f"this system has no {', '.join(MISSING)}"),
]

FRESH_SEED: Final = random.SystemRandom().randrange(1_000_000, 1_000_000_000)
SEEDS, STEPS = (range(1, 40), 2_500) if IS_LONG else ((42, 52), 400)
"""With the fresh one, 100,000 steps in the long form. The two come to nearly every step in few."""

FOUND_SOON: Final = ("a host's work runs on another thread", "a fork keeps the file open")
FAULTS_OF_THIS_FORM: Final = sorted(FAULTS) if IS_LONG else FOUND_SOON
SEEDS_OF_FAULTS: Final = (1, 2, 3) if IS_LONG else (1,)


@pytest.mark.parametrize("seed", SEEDS)
def test_chaos_of_a_known_seed_loses_nothing(
    seed: int, figures: Callable[[str, float], None]
) -> None:
    _run(seed, figures)


def test_chaos_of_a_fresh_seed_loses_nothing(figures: Callable[[str, float], None]) -> None:
    print("seed", FRESH_SEED)
    _run(FRESH_SEED, figures)


def _run(seed: int, figures: Callable[[str, float], None]) -> None:
    done = run(seed, STEPS)
    figures("chaos: steps", sum(done.steps.values()))
    figures("chaos: charges acknowledged", done.charges)
    for name in ("kill", "restore", "strike"):
        figures(f"chaos: steps of {name}", done.steps[name])


def test_plan_of_a_seed_is_always_the_same() -> None:
    assert list(Plan(7).steps(2_000)) == list(Plan(7).steps(2_000))
    assert list(islice(Plan(7).steps(2_000), 20)) != list(islice(Plan(8).steps(2_000), 20))


def test_plan_comes_to_every_circumstance() -> None:
    steps = list(Plan(1).steps(20_000))
    assert {step.name for step in steps} == {
        *("open", "open_close", "close", "abandon", "fresh", "spawn", "leave", "kill", "stop"),
        *("fork", "fork_briefly", "fork_in_work", "charge", "charge_here", "strike", "handler"),
        *("nested", "backup", "restore", "export", "aside", "prune", "vacuum", "cli", "host"),
        *("listen", "consume", "unconsume", "drain", "overtake", "meter", "look", "verify"),
        "checkpoint",
    }
    hosts = {step.arguments["how"] for step in steps if step.name == "host"}
    assert hosts == {"commit", "rollback", "savepoint", "autocommit", "kept"}


@pytest.mark.parametrize("name", FAULTS_OF_THIS_FORM)
def test_fault_that_is_put_back_is_found(name: str, figures: Callable[[str, float], None]) -> None:
    fault = FAULTS[name]
    for seed in SEEDS_OF_FAULTS:
        with pytest.raises(Found) as found:
            run(seed, fault.within_steps, fault=name, limit=10)
        figures(f"chaos: steps to find, seed {seed}: {name}", found.value.steps)
