"""The program whose writes are recorded, on the simulated disk.

    python -m tests.proof.recording FOLDER SEED RUNS CALLS DURABILITY

Opens the store in the folder RUNS times, each time for CALLS calls of every lane. With the durability `off`,
which the library does not offer, SQLite syncs nothing: the proof must detect the loss that this causes.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import warnings
from pathlib import Path
from typing import Any, Final

from goal_state.storage.sqlite import connections
from tests.proof import workload

LANES: Final = (0, 1)
LEASE_SECONDS: Final = 0.1


def record(folder: Path, seed: int, runs: int, calls: int, durability: Any) -> None:
    workload.shorten_leases(LEASE_SECONDS)
    if durability == "off":
        durability = "normal"
        _sync_nothing()
    acks = os.open(folder / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for run in range(runs):
        workload.run(
            folder / "goals.db",
            acks,
            seed=seed,
            done=dict.fromkeys(LANES, run * calls),
            calls=calls,
            durability=durability,
        )


def _sync_nothing() -> None:
    set_pragmas = connections.set_pragmas

    def set_pragmas_and_sync_nothing(connection: sqlite3.Connection, *values: Any) -> None:
        set_pragmas(connection, *values)
        connection.execute("PRAGMA synchronous = OFF")

    connections.set_pragmas = set_pragmas_and_sync_nothing


if __name__ == "__main__":
    warnings.simplefilter("error")
    record(Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5])  # type: ignore[call-arg]
