"""Cold start: a new process that opens a current file and reads one goal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.by_hand import new_file
from benchmarks.measure import Figure, Scale, Spread, ratios, rotated

__all__ = ["run"]

GROUP = "start"

_OPEN = (
    "import sys\n"
    "from goal_state import GoalStore\n"
    "with GoalStore.open(sys.argv[1]) as store:\n"
    "    assert store.get('thread-0001') is not None\n"
)


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    path = new_file(directory / "start.db", ["thread-0001"])
    programs = {"open": _OPEN, "sqlalchemy": "import sqlalchemy\n", "python": "\n"}
    # Compiled once, in the round that is not counted, as an installed package is; whatever the caller's
    # shell says about bytecode.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(directory / "bytecode")
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(scale.starts + 1):
        for name in rotated(list(programs), number):
            seconds = _run(programs[name], path, environment)
            if number:
                taken[name].append(seconds)
    medians = {name: Spread.of(taken[name]).median * 1e3 for name in programs}
    values = ratios(taken["open"], taken["sqlalchemy"])
    is_missed = Spread.of(values).mean > 1.15 and len(values) >= 5
    yield Figure(
        GROUP,
        "cold start: open at head and read one goal, in a new process",
        values,
        reference="a bare `import sqlalchemy`",
        target=1.15,
        behind=(
            f"{medians['open']:.0f} / {medians['sqlalchemy']:.0f} ms"
            f" (Python alone {medians['python']:.0f})"
        ),
        profile=_imports(path, environment) if is_missed else (),
    )


def _run(program: str, path: Path, environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, env=environment)
    return time.perf_counter() - began


def _imports(path: Path, environment: dict[str, str]) -> list[str]:
    """What is imported beyond SQLAlchemy, the dearest first."""
    loaded = [
        subprocess.run(
            [sys.executable, "-X", "importtime", "-c", program, str(path)],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        ).stderr
        for program in (_OPEN, "import sqlalchemy\n")
    ]
    own = [
        {
            name.strip(): int(time_us.removeprefix("import time:"))
            for time_us, _, name in (line.split("|") for line in text.splitlines()[1:])
        }
        for text in loaded
    ]
    extra = sorted(((us, name) for name, us in own[0].items() if name not in own[1]), reverse=True)
    total = sum(us for us, _ in extra)
    return [f"{total / 1e3:6.1f} ms in all imports beyond SQLAlchemy's"] + [
        f"{us / 1e3:6.1f} ms {name}" for us, name in extra[:13]
    ]
