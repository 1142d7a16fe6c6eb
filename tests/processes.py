"""Other Python processes, run beside a test."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = [
    "CHECKOUT",
    "PATIENCE_SECONDS",
    "all_at_once",
    "finish",
    "peak_memory_mib",
    "python",
    "running",
]

CHECKOUT = Path(__file__).parents[1]

PATIENCE_SECONDS = 60.0
"""Longer than anything takes that works: what is not there by then will not come."""


def _command(code: str, arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(CHECKOUT)}


def python(code: str, *arguments: object, cwd: Path | None = None) -> str:
    """Runs a program to its end and returns what it printed; fails if it failed."""
    done = subprocess.run(
        _command(code, arguments),
        env=_environment(),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def running(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A program that runs meanwhile; what is left of it at the end is killed."""
    process = subprocess.Popen(
        _command(code, arguments),
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str], *, patience_seconds: float = PATIENCE_SECONDS) -> str:
    """Waits for the end of a running program and returns what else it printed; fails if it failed."""
    out, err = process.communicate(timeout=patience_seconds)
    assert process.returncode == 0, err
    return out


def all_at_once(
    code: str, *arguments: object, processes: int, patience_seconds: float = PATIENCE_SECONDS
) -> list[str]:
    """Runs a program several times at once, with the arguments and a number. Each prints a line when it is
    ready, and begins when it can read one. What each printed after that."""
    with ExitStack() as stack:
        started = [stack.enter_context(running(code, *arguments, n)) for n in range(processes)]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [finish(process, patience_seconds=patience_seconds) for process in started]


def peak_memory_mib() -> float:
    """The most memory that this process has had since it began."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    # The peak of `getrusage` begins at what the parent process had.
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 2**10
