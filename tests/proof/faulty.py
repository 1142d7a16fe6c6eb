"""Makes each call to the disk fail in turn, and checks the store after it.

    python -m tests.proof.faulty FOLDER FAULTS CALLS

Runs on the simulated disk. Prints its figures as one JSON object; fails with a traceback at the first
violated check.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import shutil
import sqlite3
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from goal_state import (
    DatabaseCorruptError,
    DatabaseError,
    DatabaseFullError,
    DatabaseIOError,
    DatabaseLocationError,
    DatabaseReadOnlyError,
    GoalStateError,
    GoalStore,
)
from tests.proof.disk import Faults, Kind
from tests.proof.workload import Due, call, perform, read_state

Result = TypeVar("Result")

SEED: Final = 11
LANE: Final = 0
CALLS_BEFORE: Final = 60
"""Calls that the database has seen before anything fails."""


class Fault(NamedTuple):
    """What the disk fails at, and what a caller may be told then."""

    name: str
    kinds: Kind
    error: int
    told: tuple[type[GoalStateError], ...]
    told_when_opening: tuple[type[GoalStateError], ...]


FAULTS: Final = (
    # SQLite itself takes a part that it cannot read for a damaged one.
    Fault(
        "an I/O error at the n-th read",
        Kind.READ,
        errno.EIO,
        (DatabaseIOError, DatabaseCorruptError),
        (DatabaseIOError, DatabaseCorruptError, DatabaseLocationError),
    ),
    Fault(
        "an I/O error at the n-th write",
        Kind.WRITE,
        errno.EIO,
        (DatabaseIOError,),
        (DatabaseIOError,),
    ),
    Fault(
        "a full disk at the n-th write",
        Kind.WRITE,
        errno.ENOSPC,
        (DatabaseFullError,),
        (DatabaseFullError,),
    ),
    Fault(
        "an I/O error at the n-th sync",
        Kind.SYNC,
        errno.EIO,
        (DatabaseIOError,),
        (DatabaseIOError,),
    ),
    Fault(
        "a file system that turns read-only at the n-th change",
        Kind.WRITE | Kind.SYNC | Kind.OPEN,
        errno.EROFS,
        (DatabaseIOError, DatabaseReadOnlyError),
        (DatabaseIOError, DatabaseReadOnlyError),
    ),
)


class Trial:
    """One run of the workload, in which the disk fails at one moment, or from then on until it is mended."""

    def __init__(self, path: Path, faults: Faults, due: Due, fault: Fault) -> None:
        self._path = path
        self._faults = faults
        self._due = due
        self._fault = fault
        self.told: Counter[str] = Counter()

    def run(self, calls: int, passing: int, *, lasting: bool) -> bool:
        """Makes the calls; whether the disk failed at all."""
        with closing(sqlite3.connect(self._path)) as raw:
            (before,) = raw.execute("SELECT max(position) FROM goal_state_events").fetchone()
        heard: list[str] = []
        self._faults.arm(self._fault.kinds, passing, self._fault.error, lasting=lasting)
        with self._insist(
            lambda: GoalStore.open(self._path), self._fault.told_when_opening
        ) as store:
            store.subscribe(lambda event: heard.append(event.event_id))
            for number in range(CALLS_BEFORE + 1, CALLS_BEFORE + calls + 1):
                # A call that failed has changed nothing: made again, it is made once.
                self._insist(functools.partial(perform, store, call(SEED, LANE, number)))
                self._insist(lambda: list(store.goals()))
            self._insist(lambda: list(store.events()))
            assert self._insist(store.verify) == []
        has_failed = self._faults.failed > 0
        self._faults.lift()
        with GoalStore.open(self._path) as store, closing(sqlite3.connect(self._path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert store.verify() == []
            assert read_state(raw, LANE) == self._due.state(LANE, CALLS_BEFORE + calls)
            assert heard == [event.event_id for event in store.events(after=before)]
        return has_failed

    def _insist(
        self, step: Callable[[], Result], told: tuple[type[GoalStateError], ...] | None = None
    ) -> Result:
        """Takes a step, again if it fails, and once more after the disk was mended."""
        for attempt in range(3):
            try:
                return step()
            except (DatabaseError, DatabaseLocationError) as error:
                if type(error) not in (told or self._fault.told):
                    raise
                self.told[type(error).__name__] += 1
                if attempt == 1:
                    self._faults.lift()
        raise AssertionError("the store does not go on although the disk was mended")


def fail(folder: Path, faults: Faults, calls: int) -> Counter[str]:
    """Tries every fault at every moment; what was done, by kind."""
    template = folder / "template.db"
    figures: Counter[str] = Counter()
    with Due(SEED) as due:
        with GoalStore.open(template) as store:
            for number in range(1, CALLS_BEFORE + 1):
                perform(store, call(SEED, LANE, number))
        for fault in FAULTS:
            for lasting in (False, True):
                for passing in itertools.count():
                    path = folder / "goals.db"
                    shutil.copy(template, path)
                    trial = Trial(path, faults, due, fault)
                    try:
                        has_failed = trial.run(calls, passing, lasting=lasting)
                    except BaseException as error:
                        error.add_note(f"{fault.name}, n = {passing + 1}, lasting: {lasting}")
                        raise
                    for left in folder.glob("goals.db*"):
                        left.unlink()
                    if not has_failed:
                        break
                    figures[f"{fault.name}: {'lasting' if lasting else 'once'}"] += 1
                    for name, count in trial.told.items():
                        figures[f"told: {name}"] += count
    return figures


if __name__ == "__main__":
    warnings.simplefilter("error")
    print(json.dumps(fail(Path(sys.argv[1]), Faults(Path(sys.argv[2])), int(sys.argv[3]))))
