"""Power cuts at any moment of a recording: what the disk then holds, compared with the acknowledged calls."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from goal_state import GoalStore
from tests.proof.disk import Disk, Record, journal, preloaded
from tests.proof.programs import program
from tests.proof.recording import LANES
from tests.proof.workload import CONSUMER, Acks, Due, read_state

__all__ = ["Cut", "Damage", "Recording", "record"]


class Damage(Exception):  # noqa: N818
    """What was found after a power cut is not a whole database."""


class Cut(NamedTuple):
    """What a power cut left."""

    missing_calls: int
    """Of those that were acknowledged, in all lanes together."""
    missing_events: int
    """Of those that a listener or a consumer had got."""


class Recording(NamedTuple):
    """Everything that a program did to its disk, and the state that was due meanwhile."""

    records: list[Record]
    due: Due

    @property
    def acknowledged(self) -> int:
        """How many calls were."""
        acks = Acks()
        for entry in self.records:
            if entry.kind == "A":
                acks.add(entry.data)
        return sum(acks.done.values())

    def cut(self, folder: Path, draw: random.Random, cuts: int) -> list[Cut]:
        """Cuts the power at so many moments and looks at what is left each time.

        Raises:
            Damage: it is no whole database, or holds what no sequence of calls leaves behind.
        """
        folder.mkdir()
        results: list[Cut] = []
        disk, acks, done = Disk(), Acks(), 0
        for number, moment in enumerate(sorted(self._moment(draw) for _ in range(cuts))):
            for entry in self.records[done:moment]:
                disk.apply(entry)
                if entry.kind == "A":
                    acks.add(entry.data)
            done = moment
            left = folder / str(number)
            left.mkdir()
            disk.cut(left, draw)
            results.append(self._examine(left / "goals.db", acks, moment))
            shutil.rmtree(left)
        return results

    def _moment(self, draw: random.Random) -> int:
        """A number of records; often right behind something that was acknowledged or synced."""
        moment = draw.randint(0, len(self.records))
        wanted = draw.choice(("A", "A", "S", ""))
        while wanted and moment < len(self.records) and self.records[moment - 1].kind != wanted:
            moment += 1
        return moment

    def _examine(self, path: Path, acks: Acks, moment: int) -> Cut:
        try:
            with (
                GoalStore.open(path, durability="normal") as store,
                closing(sqlite3.connect(path)) as raw,
            ):
                found = raw.execute("PRAGMA integrity_check").fetchall()
                if found != [("ok",)]:
                    raise Damage(f"integrity_check: {found}")
                if differences := store.verify():
                    raise Damage(str(differences[0]))
                missing = sum(self._missing_calls(raw, lane, acks) for lane in LANES)
                log = set(raw.execute("SELECT position, event_id FROM goal_state_events"))
                told = {*acks.heard, *acks.took}
                taken = max((position for position, _ in acks.took), default=0)
                for (cursor,) in raw.execute(
                    "SELECT position FROM goal_state_cursors WHERE name = ?", (CONSUMER,)
                ):
                    if cursor > taken:
                        raise Damage(f"the cursor is at {cursor}, delivered was {taken}")
                store.replace("after the cut", "Life goes on")
                return Cut(missing, len(told - log))
        except Damage as damage:
            raise Damage(f"cut at {moment}: {damage}") from None
        except Exception as error:
            raise Damage(f"cut at {moment}: {type(error).__name__}: {error}") from error

    def _missing_calls(self, raw: sqlite3.Connection, lane: int, acks: Acks) -> int:
        acknowledged = acks.done.get(lane, 0)
        found = read_state(raw, lane)
        for number in range(acknowledged + 1, -1, -1):
            if self.due.state(lane, number) == found:
                return max(acknowledged - number, 0)
        raise Damage(f"lane {lane}: no beginning of its calls leaves this behind: {found}")


def record(
    folder: Path, shim: Path, *, seed: int, runs: int, calls: int, durability: str
) -> Recording:
    """Records a workload. Where the disk saw nothing of it, the recording is empty."""
    home = folder / "disk"
    home.mkdir(parents=True)
    to = folder / "journal"
    environment = preloaded(shim, home, journal=to)
    program("recording", home.resolve(), seed, runs, calls, durability, environment=environment)
    return Recording(list(journal(to)) if to.exists() else [], Due(seed))
