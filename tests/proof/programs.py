"""Runs the programs of the proof, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from tests.processes import CHECKOUT

__all__ = ["program"]


def program(name: str, *arguments: object, environment: Mapping[str, str] = os.environ) -> str:
    """Runs a module of this folder to its end and returns what it printed; fails if it failed."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.proof.{name}", *map(str, arguments)],
        env=environment,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
