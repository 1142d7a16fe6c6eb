"""Kills a process between the steps of the lives of holds, repeats them with their keys, and checks the sums.

    python -m tests.proof.hold_kills FOLDER LONG

Prints its figures as one JSON object; fails with a traceback at the first violated check.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sqlite3
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from goal_state import GoalStore
from goal_state.errors import HoldEndedError
from goal_state.operations.hold import Hold
from goal_state.storage import wall_clock
from tests.proof.points import Points

__all__ = ["kills"]

COMMITS: Final = ("before COMMIT", "after COMMIT")
BEGUN_MS: Final = 1_900_000_000_000

Step = Callable[[GoalStore], None]


@contextmanager
def later(seconds: float) -> Iterator[None]:
    """Time has passed; in all but this the clock stands still."""
    before = wall_clock.now_ms
    wall_clock.now_ms = lambda: BEGUN_MS + round(seconds * 1000)
    yield
    wall_clock.now_ms = before


def _hold(store: GoalStore, name: str, *, dispatched: bool = True) -> Hold | None:
    """The hold of a name, found again if it was made before; None once it has ended."""
    try:
        return store.reserve(
            "leaf", tokens=10, key=name, turn_id=name, expires_in=60, dispatched=dispatched
        )
    except HoldEndedError:
        return None


def _settle(store: GoalStore, name: str, hold: Hold | None, tokens: int) -> None:
    """Settles a hold; one that has ended by its id, which the log tells."""
    hold_id = None if hold is None else hold.hold_id
    for event in store.events(thread_id="leaf"):
        if event.turn_id == name and event.hold_id is not None:
            hold_id = event.hold_id
    assert hold_id is not None
    store.charge("leaf", tokens=tokens, response_id=f"response of {name}", settles=hold_id)


def settled(store: GoalStore) -> None:
    hold = _hold(store, "settled")
    if hold is not None:
        hold.observed(tokens=3)
    _settle(store, "settled", hold, 7)


def released(store: GoalStore) -> None:
    hold = _hold(store, "released")
    if hold is not None:
        hold.release()


def dispatched(store: GoalStore) -> None:
    hold = _hold(store, "dispatched", dispatched=False)
    if hold is not None:
        hold.dispatched()
        hold.extend(70)
    _settle(store, "dispatched", hold, 9)


def cut(store: GoalStore) -> None:
    hold = _hold(store, "cut")
    if hold is not None:
        hold.observed(tokens=4)
        hold.cut()


def expired(store: GoalStore) -> None:
    _hold(store, "expired")
    with later(60):
        store.expire_holds()


def expired_unsent(store: GoalStore) -> None:
    _hold(store, "expired unsent", dispatched=False)
    with later(60):
        store.expire_holds()


def settled_late(store: GoalStore) -> None:
    hold = _hold(store, "settled late")
    with later(60):
        store.charge("root", seconds=0.001, idempotency_key="the next write")
        _settle(store, "settled late", hold, 12)


LIVES: Final[dict[Step, int]] = {
    settled: 7,
    released: 0,
    dispatched: 9,
    cut: 4,
    expired: 10,
    expired_unsent: 0,
    settled_late: 12,
}
"""By the life of a hold: the tokens that it charges, in whatever pieces it was lived."""
CALLS: Final = 5


def live(path: Path) -> None:
    """Lives all of them, as if none of it had happened yet."""
    with GoalStore.open(path) as store:
        for life in LIVES:
            life(store)


def check(path: Path, *, is_whole: bool) -> None:
    with GoalStore.open(path) as store, closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert store.verify() == []
        if not is_whole:
            return
        assert store.holds() == []
        for thread_id in ("root", "leaf"):
            goal = store.get(thread_id)
            assert goal is not None
            assert goal.tokens_used == sum(LIVES.values()), goal
            assert (goal.calls_used, goal.estimated_tokens, goal.live_holds) == (CALLS, 10, 0), goal


def _in_child(program: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            program()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitpid(child, 0)[1]


def kills(folder: Path, *, at_every_point: bool) -> Counter[str]:
    """Kills a process each time that it passes a point, and lives the rest in another; returns the counts."""
    folder.mkdir()
    wall_clock.now_ms = lambda: BEGUN_MS
    new = folder / "new.db"
    with GoalStore.open(new) as store:
        store.create("root", "Ship", token_budget=1000)
        store.create("leaf", "Ship", parent="root")

    def passed(path: Path, point: str | None, hit: int, counts: Path | None) -> None:
        points = Points(point, hit)
        points.install()
        live(path)
        if counts is not None:
            counts.write_text(json.dumps(points.passed))

    scouted = Path(shutil.copy(new, folder / "scouted.db"))
    assert _in_child(lambda: passed(scouted, None, 1, folder / "counts")) == 0
    check(scouted, is_whole=True)
    counts: dict[str, int] = json.loads((folder / "counts").read_text())
    figures: Counter[str] = Counter()
    for point in sorted(counts) if at_every_point else COMMITS:
        for hit in range(1, counts[point] + 1):
            path = Path(shutil.copy(new, folder / "killed.db"))
            status = _in_child(lambda at=(path, point, hit): passed(*at, None))
            assert os.WIFSIGNALED(status), (point, hit, status)
            assert os.WTERMSIG(status) == signal.SIGKILL
            check(path, is_whole=False)
            live(path)
            check(path, is_whole=True)
            live(path)  # and once more: all its keys are known
            check(path, is_whole=True)
            figures["kills"] += 1
            for file in folder.glob("killed.db*"):
                file.unlink()
    figures["points"] = len(counts)
    figures["commits"] = counts["after COMMIT"]
    return figures


if __name__ == "__main__":
    warnings.simplefilter("error")
    logging.getLogger("goal_state").setLevel(logging.ERROR)  # holds expire here on purpose
    place, is_long = sys.argv[1:]
    print(json.dumps(kills(Path(place), at_every_point=is_long == "True")))
