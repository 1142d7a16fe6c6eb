"""Exceptions at any moment, in every thread, while other threads and another process write.

A program: a folder (or `:memory:`), a seed, the number of exceptions, and the most seconds to run. The main
thread is interrupted by signals whose handler raises (now and then two in quick succession), the others by
`PyThreadState_SetAsyncExc`. Each thread makes calls with keys, and repeats an interrupted call. It prints its
figures as JSON.
"""

from __future__ import annotations

import contextvars
import faulthandler
import importlib
import itertools
import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any, Final

from goal_state import Charge, GoalEvent, GoalStore
from tests.proof.strikes import Struck, asynchronous, chain, frames, strike_class, struck_at

__all__: list[str] = []

WORKERS: Final = 4
"""With the main thread, which is the first."""
PATIENCE_SECONDS: Final = 30.0
"""Whoever makes no progress for so long hangs."""

_numbers = itertools.count(1)
_mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark")


class Worker:
    """One thread's calls, and what struck it."""

    def __init__(self, storm: Storm, number: int) -> None:
        self.storm = storm
        self.number = number
        self.thread = f"t{number}"
        self.random = random.Random(f"{storm.seed} {number}")
        self.ident = 0
        self.made = 0
        """Charges that were acknowledged; each has the number as its key."""
        self.turns = 0
        self.sent: list[type[Struck]] = []
        self.outstanding: type[Struck] | None = None
        self.top: list[type[Struck]] = []
        """What was caught as it is: nothing may be caught twice."""
        self.seen: set[type[Struck]] = set()
        """What was caught, as it is or as another one's context."""
        self.failed: BaseException | None = None
        self.mean_seconds = 0.001
        """Of a turn, about: so that on a busy machine, too, some get through."""
        self.is_ready = False
        """Not from when it is struck until it goes on: nobody could catch the next one."""

    # -- what it does ------------------------------------------------------------------------------

    def run(self) -> None:
        self.ident = threading.get_ident()
        while True:
            try:
                self._run()
                return
            except Struck as error:
                self.note(error)
            except BaseException as error:
                self.failed = error
                return

    def _run(self) -> None:
        while not self.storm.is_over or self.outstanding is not None:
            try:
                self.is_ready = True
                began = time.monotonic()
                self._turn()
                self.mean_seconds += 0.1 * (time.monotonic() - began - self.mean_seconds)
            except Struck as error:
                self.note(error)
            self.turns += 1

    def _turn(self) -> None:
        store, chance = self.storm.store, self.random.random()
        if chance < 0.45:
            self._charge(lambda key: store.charge(self.thread, tokens=1, idempotency_key=key))
        elif chance < 0.55:
            self._charge(
                lambda key: store.charge_many(
                    [Charge(self.thread, tokens=1, idempotency_key=key), Charge(self.thread)]
                )
            )
        elif chance < 0.68:
            self._charge(self._transact)
        elif chance < 0.80:
            goal = store.get(self.thread)
            assert goal is not None
            assert goal.tokens_used in (self.made, self.made + 1), "a read of the past"
        elif chance < 0.86:
            assert len(list(store.goals())) >= WORKERS
            list(store.events(after=max(0, store.last_position() - 5)))
        elif chance < 0.92:
            with store.subscribe(lambda event: None, thread_id=self.thread):
                self._charge(lambda key: store.charge(self.thread, tokens=1, idempotency_key=key))
        elif self.storm.path is None:
            store.count()
        elif chance < 0.98:
            with GoalStore.open(self.storm.path, durability="normal", migrate=False) as own:
                self._charge(lambda key: own.charge(self.thread, tokens=1, idempotency_key=key))
        elif chance < 0.99:
            list(store.export_lines())
        else:
            copy = self.storm.path.with_name(f"copy-{self.number}-{self.turns}")
            try:
                store.backup(copy)
            finally:
                copy.unlink(missing_ok=True)

    def pause(self) -> float:
        """Until this thread is struck next, in seconds."""
        return 0.0002 + self.storm.pauses.random() * 4 * self.mean_seconds

    def _charge(self, call: Callable[[str], object]) -> None:
        # Struck before the number moves on, the call is made once more with its key.
        call(f"{self.thread}-{self.made + 1}")
        self.made += 1

    def _transact(self, key: str) -> object:
        ran: list[tuple[int, str]] = []
        _mark.set(key)

        def work(repository: Any) -> object:
            ran.append((threading.get_ident(), _mark.get("another's")))
            return repository.charge(self.thread, tokens=1, idempotency_key=key)

        try:
            return self.storm.store.transact(work)
        finally:
            if ran not in ([], [(self.ident, key)]):
                self.storm.faults.append(f"the work of {key} in {self.ident} ran as {ran}")

    # -- what struck it ----------------------------------------------------------------------------

    def note(self, error: Struck) -> None:
        """May be struck itself: then the first strike is the second one's context."""
        self.is_ready = False
        self.mean_seconds *= 1.15  # else those that take long would never get through
        self.top.append(type(error))
        self.storm.places[struck_at(error) or "the caller"] += 1
        for one in chain(error):
            self.storm.excuse(one)
            self.seen.add(type(one))
        if self.outstanding in self.seen:
            self.outstanding = None

    def check(self) -> None:
        if self.failed is not None:
            raise AssertionError(f"{self.thread} failed: {self.failed!r}") from self.failed
        lost = set(self.sent) - self.seen - self.storm.unraisable - self.storm.logged
        assert not lost, f"{len(lost)} of {len(self.sent)} were swallowed: {lost}"
        assert self.seen <= set(self.sent), "raised in another thread than it struck"
        assert len(self.top) == len(set(self.top)), "raised twice"


class Storm:
    """The store, those who use it, and those who strike."""

    def __init__(self, path: Path | None, seed: int, strikes: int, seconds: float) -> None:
        self.path, self.seed, self.strikes, self.seconds = path, seed, strikes, seconds
        self.store = GoalStore.open(":memory:" if path is None else path, durability="normal")
        self.pauses = random.Random(f"{seed} pauses")
        self.is_over = False
        self.places: Counter[str] = Counter()
        self.faults: list[str] = []
        self.unraisable: set[type[Struck]] = set()
        self.logged: set[type[Struck]] = set()
        self.excused: set[int] = set()
        self.heard: list[int] = []
        self.workers = [Worker(self, number) for number in range(WORKERS)]
        for worker in self.workers:
            self.store.create(worker.thread, "Ship")
        self.first = self.store.last_position()
        self.store.subscribe(self.listen)
        sys.unraisablehook = self._note_unraisable
        handler = logging.Handler()
        handler.emit = self._note_logged  # type: ignore[method-assign]
        logging.getLogger("goal_state").addHandler(handler)

    def listen(self, event: GoalEvent) -> None:
        self.heard.append(event.position)

    def excuse(self, error: BaseException) -> None:
        """A listener that was struck may not have noted what it was told."""
        for frame in frames(error):
            if frame.f_code is Storm.listen.__code__ and "event" in frame.f_locals:
                self.excused.add(frame.f_locals["event"].position)

    def _note_unraisable(self, what: Any) -> None:
        if not isinstance(what.exc_value, Struck):
            sys.__unraisablehook__(what)
            self.faults.append(f"unraisable: {what.exc_value!r}")
        for one in chain(what.exc_value):
            self.unraisable.add(type(one))
        for worker in self.workers:
            if worker.outstanding in self.unraisable:
                worker.outstanding = None

    def _note_logged(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        for one in chain(error):
            # A strike inside a listener looks like the listener's own error.
            if Storm.listen.__code__ in [frame.f_code for frame in frames(one)]:
                self.logged.add(type(one))
        self.excuse(error)
        for worker in self.workers:
            if worker.outstanding in self.logged:
                worker.outstanding = None

    # -- strikes -----------------------------------------------------------------------------------

    def _strike_main(self, _signal: int, frame: FrameType | None) -> None:
        main = self.workers[0]
        spared = {
            handler.__code__
            for handler in (
                *(Storm._strike_main, Storm._note_unraisable, Storm._note_logged, Worker.note),
            )
        }
        outer = frame
        while outer is not None:  # where an exception is on its way, or being noted
            if outer.f_code in spared or (outer is frame and outer.f_code is Worker.run.__code__):
                signal.setitimer(signal.ITIMER_REAL, 0.001)
                return
            outer = outer.f_back
        if self.is_over:
            return
        pause = 0.00003 if main.random.random() < 0.2 else main.pause()
        error = strike_class(next(_numbers))
        main.sent.append(error)
        signal.setitimer(signal.ITIMER_REAL, pause)
        raise error

    def _strike_others(self) -> None:
        due = {worker: time.monotonic() + worker.pause() for worker in self.workers[1:]}
        while not self.is_over:
            for worker, moment in due.items():
                if moment > time.monotonic():
                    continue
                due[worker] = time.monotonic() + worker.pause()
                if worker.outstanding is None and worker.is_ready and not self.is_over:
                    error = strike_class(next(_numbers))
                    worker.sent.append(error)
                    worker.outstanding = error
                    operator = asynchronous(error, worker.ident)
                    -operator  # noqa: B018
            time.sleep(0.0001)

    def _watch(self) -> None:
        """Ends the storm in time, and the process where somebody hangs."""
        until = time.monotonic() + self.seconds
        turns, moved = [0] * WORKERS, [time.monotonic()] * WORKERS
        while any(worker.ident for worker in self.workers):
            now = time.monotonic()
            if now > until or sum(len(worker.sent) for worker in self.workers) >= self.strikes:
                self.is_over = True
            for number, worker in enumerate(self.workers):
                if worker.turns != turns[number] or not worker.ident:
                    turns[number], moved[number] = worker.turns, now
                elif now - moved[number] > PATIENCE_SECONDS:
                    print(f"{worker.thread} hangs", file=sys.stderr)
                    faulthandler.dump_traceback()
                    os._exit(3)
                if self.is_over and worker.outstanding is not None and now > until + 10:
                    worker.outstanding = None  # it was swallowed, as the check will say
            time.sleep(0.01)

    # -- the whole ---------------------------------------------------------------------------------

    def run(self) -> None:
        others = [
            threading.Thread(target=self._run_worker, args=(worker,), daemon=True)
            for worker in self.workers[1:]
        ]
        helpers = [
            threading.Thread(target=target, daemon=True)
            for target in (self._strike_others, self._watch)
        ]
        for thread in (*others, *helpers):
            thread.start()
        signal.signal(signal.SIGALRM, self._strike_main)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        self.workers[0].run()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        self.workers[0].ident = 0
        for thread in others:
            thread.join(PATIENCE_SECONDS * 2)
            assert not thread.is_alive(), "a worker hangs"

    def _run_worker(self, worker: Worker) -> None:
        worker.run()
        worker.ident = 0

    def check(self) -> None:
        assert self.faults == [], self.faults[:3]
        for worker in self.workers:
            worker.check()
        for worker in self.workers:
            goal = self.store.get(worker.thread)
            assert goal is not None
            # The last call may have been struck after its commit.
            assert goal.tokens_used in (worker.made, worker.made + 1), worker.thread
            worker.made = goal.tokens_used
        keys = Counter(
            (event.thread_id, event.idempotency_key)
            for event in self.store.events()
            if event.idempotency_key is not None
        )
        for worker in self.workers:
            due = {(worker.thread, f"{worker.thread}-{n + 1}") for n in range(worker.made)}
            assert {key for key in keys if key[0] == worker.thread} == due
        assert set(keys.values()) <= {1}, "charged twice"
        assert self.store.verify() == []
        self._check_listener()

    def _check_listener(self) -> None:
        made = self.store.charge("t0", tokens=1)
        assert made.applied
        last = self.store.last_position()
        assert last in self.heard[-3:], "listeners are told no more"
        assert self.heard == sorted(self.heard), "told out of order"

    def check_locks(self, path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            raw.execute("ROLLBACK")
            busy = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            assert not busy, "somebody is left inside a snapshot"


_ELSEWHERE: Final = """
import sys, time
from goal_state import GoalStore
with GoalStore.open(sys.argv[1], durability="normal") as store:
    store.create("elsewhere", "Ship")
    made = 0
    print("ready", flush=True)
    until = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < until:
        store.charge("elsewhere", tokens=1)
        made += 1
        time.sleep(0.001)
print(made)
"""


def main() -> None:
    where, seed, strikes, seconds = sys.argv[1:]
    # A strike while a module is imported fails the import in whichever other thread waits for it, too.
    importlib.import_module("goal_state.storage.transfer")
    path = None if where == ":memory:" else Path(where) / "goals.db"
    faulthandler.dump_traceback_later(float(seconds) + 4 * PATIENCE_SECONDS, exit=True)
    storm = Storm(path, int(seed), int(strikes), float(seconds))
    if path is None:
        storm.run()
    else:
        with subprocess.Popen(
            [sys.executable, "-c", _ELSEWHERE, str(path), str(min(float(seconds), 600))],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        ) as elsewhere:
            assert elsewhere.stdout is not None
            assert elsewhere.stdout.readline() == "ready\n"
            storm.run()
            made = int(elsewhere.stdout.read())
        assert elsewhere.returncode == 0
        goal = storm.store.get("elsewhere")
        assert goal is not None
        assert goal.tokens_used == made, "the other process's charges"
    storm.check()
    if path is not None:
        storm.check_locks(path)
    missed = set(range(storm.first + 1, storm.store.last_position() + 1)) - set(storm.heard)
    if path is None:  # else others write as well, of whom this store's listeners are not told
        assert missed <= storm.excused, f"nobody was told of {sorted(missed - storm.excused)[:5]}"
    storm.store.close()
    print(
        json.dumps(
            {
                "by signals": len(storm.workers[0].sent),
                "into other threads": sum(len(worker.sent) for worker in storm.workers[1:]),
                "unraisable": len(storm.unraisable),
                "charges": sum(worker.made for worker in storm.workers),
                "places": len(storm.places),
            }
        )
    )
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)  # whatever still runs or hangs
