"""Runs the benchmarks and writes what they found.

    python -m benchmarks [--quick | --full] [--output DIRECTORY] [--scratch DIRECTORY] [group ...]

Exits with 1 only where a group could not be measured; a target that is missed is a line in the report.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import (
    aio,
    budgets,
    costs,
    holds,
    limits,
    memory,
    pages,
    peers,
    processes,
    report,
    rollout_tail,
    single,
    size,
    start,
    threads,
    trees,
)
from benchmarks.measure import FULL, MEDIUM, QUICK, Figure, Scale

GROUPS: dict[str, Callable[[Path, Scale], Iterator[Figure]]] = {
    module.GROUP: module.run
    for module in (
        single,
        costs,
        trees,
        holds,
        limits,
        threads,
        aio,
        processes,
        start,
        size,
        pages,
        memory,
        rollout_tail,
        peers,
        budgets,
    )
}
SCALES = {"quick": QUICK, "medium": MEDIUM, "full": FULL}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("groups", nargs="*", metavar="group", help=f"of {', '.join(GROUPS)}")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--quick",
        dest="scale",
        action="store_const",
        const="quick",
        default="medium",
        help="only see that everything runs; the figures mean nothing",
    )
    length.add_argument(
        "--full",
        dest="scale",
        action="store_const",
        const="full",
        help="up to a million goals and ten million events; takes an hour and 12 GB",
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--scratch", type=Path, default=None, help="where the databases are made (and deleted)"
    )
    options = parser.parse_args()
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    wanted = [name for name in GROUPS if not options.groups or name in options.groups]

    figures: list[Figure] = []
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="goal-state-bench-", dir=options.scratch) as scratch:
        for name in wanted:
            began = time.monotonic()
            directory = Path(scratch, name)
            directory.mkdir()
            try:
                for figure in GROUPS[name](directory, SCALES[options.scale]):
                    figures.append(figure)
                    print(report.line(figure), flush=True)
            except Exception as error:  # one group that fails does not take the others with it
                traceback.print_exc()
                failures[name] = f"{type(error).__name__}: {error}"
            shutil.rmtree(directory, ignore_errors=True)
            print(f"-- {name}: {time.monotonic() - began:.0f} s", flush=True)
    written = report.write(options.output, figures, failures, options.scale)
    print("\n".join(str(path) for path in written))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
