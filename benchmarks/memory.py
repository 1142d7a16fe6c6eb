"""Memory: what a process takes more than at rest while it goes through all goals or all events."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.large import EVENTS_PER_GOAL, large_file
from benchmarks.measure import Figure, Scale
from goal_state import GoalStore

__all__ = ["run"]

GROUP = "memory"


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    goals = scale.goals[-1]
    path = large_file(directory, goals)
    for what, count in (("goals", goals), ("events", goals * EVENTS_PER_GOAL)):
        grown = [_grown(path, what) for _ in range(min(scale.rounds, 3))]
        yield Figure(
            GROUP,
            f"going through {count:,} {what}",
            grown,
            unit="MiB",
            target=32,
            note="resident memory of a new process, above what it took once the store was open",
        )


def _grown(path: Path, what: str) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", str(path), what]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _measure(path: str, what: str) -> float:
    with GoalStore.open(path) as store:
        store.get("nobody")
        _forget_peak()
        at_rest = _peak_mib()
        for _ in store.goals() if what == "goals" else store.events():
            pass
        return _peak_mib() - at_rest


# On Linux the peak of `getrusage` begins at what the parent process had, and imports may have needed more
# than the loop does; /proc knows better.


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024


if __name__ == "__main__":
    print(_measure(sys.argv[1], sys.argv[2]))
