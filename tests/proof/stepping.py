"""Interrupts one call after the other at every bytecode of the library, and checks the store after each.

A program: a scenario, the kind of interruption (`raise` or `call`), a folder, a seed, and the seconds to run
(0: until every bytecode was interrupted twice). It prints its figures as JSON. A watchdog ends what hangs and
reports where.
"""

from __future__ import annotations

import contextvars
import faulthandler
import gc
import json
import logging
import os
import queue
import random
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from goal_state import GoalEvent, GoalStateError, GoalStore, StoreClosedError
from tests.proof.strikes import (
    SIGNAL,
    Strike,
    Struck,
    arriving_signal,
    asynchronous,
    chain,
    collect_unraisable,
    count_steps,
    frames,
    strike_class,
    struck_at,
    take_unraisable,
)

__all__ = ["CALLED", "SCENARIOS"]

PATIENCE_SECONDS: Final = 20.0
"""For one call: whoever waits longer hangs."""

LEAST: Final = 8
"""Strikes, however slow the machine is."""


class Helper:
    """Another thread, that makes one call when it is asked to."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, call: Callable[[], Any]) -> Any:
        self._asked.put(call)
        result, error = self._answers.get(timeout=PATIENCE_SECONDS)
        if error is not None:
            raise AssertionError(f"another thread's call failed: {error!r}") from error
        return result

    def _run(self) -> None:
        while True:
            call = self._asked.get()
            try:
                self._answers.put((call(), None))
            except BaseException as error:
                self._answers.put((None, error))


class Ground:
    """A store with two goals, another connection to its file, and another thread."""

    def __init__(self, folder: Path, *, in_memory: bool = False) -> None:
        self.folder = folder
        self.path = folder / "goals.db"
        self.store = GoalStore.open(":memory:" if in_memory else self.path, durability="normal")
        self.store.create("mine", "Ship")
        self.store.create("other", "Ship")
        self.helper = Helper()
        self.others = 0
        self.raw: sqlite3.Connection | None = None
        if not in_memory:
            self.raw = sqlite3.connect(self.path, isolation_level=None, timeout=0)
            self.raw.execute("PRAGMA synchronous = OFF")

    def tokens(self, thread_id: str) -> int:
        goal = self.store.get(thread_id)
        assert goal is not None
        return goal.tokens_used

    def check(self, *, is_busy: bool = False) -> None:
        """Nothing is left behind: other threads write, reads are of now, nobody else is locked out.

        Args:
            is_busy: others are writing just now.
        """
        self.helper.ask(lambda: self.store.charge("other", tokens=1))
        self.others += 1
        assert self.tokens("other") == self.others, "a read of the past, or a charge too many"
        assert self.helper.ask(lambda: self.tokens("other")) == self.others
        if self.raw is not None and not is_busy:
            self.raw.execute("BEGIN IMMEDIATE")
            self.raw.execute("ROLLBACK")
            busy = self.raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            assert not busy, "somebody is left inside a snapshot"


def connections() -> int:
    """How many of SQLite's connections this process keeps. (SQLite itself closes descriptors late.)"""
    gc.collect()
    return sum(isinstance(one, sqlite3.Connection) for one in gc.get_objects())


class Scenario:
    """A call to be struck. Each is made once for each strike, and then looked at."""

    in_memory = False
    is_busy = False

    def __init__(self, folder: Path) -> None:
        self.ground = Ground(folder, in_memory=self.in_memory)
        self.number = 0
        """Of the strike."""

    @property
    def store(self) -> GoalStore:
        return self.ground.store

    def prepare(self) -> None:
        """Before the call; not struck."""

    def call(self) -> object:
        """What is struck."""
        raise NotImplementedError

    def check(self, strikes: Sequence[BaseException]) -> None:
        """After the call, whatever became of it.

        Args:
            strikes: what kept it from coming to its end, if anything did.
        """

    def end(self) -> None:
        """After the last one."""
        assert self.store.verify() == []
        self.store.close()


class Charging(Scenario):
    """One charge; repeated with its key it changes nothing more."""

    def call(self) -> object:
        return self.store.charge("mine", tokens=1, idempotency_key=f"k{self.number}")

    def check(self, strikes: Sequence[BaseException]) -> None:
        self.call()
        assert self.ground.tokens("mine") == self.number


class ChargingInMemory(Charging):
    """The same in memory, where readers and the writer share one connection."""

    in_memory = True


class ChargingMany(Charging):
    """Many charges in one request."""

    def call(self) -> object:
        from goal_state import Charge

        return self.store.charge_many(
            [Charge("mine", tokens=1, idempotency_key=f"k{self.number}"), Charge("other")]
        )


class ChargingBesideWriters(Charging):
    """A charge that leads others, or follows them."""

    is_busy = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stopping = False
        self.made = [0, 0]
        self.failed: list[BaseException] = []
        for writer in range(2):
            self.store.create(f"writer-{writer}", "Ship")
        self.threads = [
            threading.Thread(target=self._write, args=(n,), daemon=True) for n in (0, 1)
        ]
        for thread in self.threads:
            thread.start()

    def _write(self, writer: int) -> None:
        try:
            while not self.stopping:
                self.store.charge(f"writer-{writer}", tokens=1)
                self.made[writer] += 1
        except BaseException as error:
            self.failed.append(error)

    def check(self, strikes: Sequence[BaseException]) -> None:
        assert self.failed == [], "raised in a thread that nothing struck"
        before = list(self.made)
        super().check(strikes)
        until = time.monotonic() + PATIENCE_SECONDS
        while any(now == then for now, then in zip(self.made, before, strict=True)):
            assert self.failed == [], "raised in a thread that nothing struck"
            assert time.monotonic() < until, "another writer goes on no more"
            time.sleep(0.0001)

    def end(self) -> None:
        self.stopping = True
        for thread in self.threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
        for writer, made in enumerate(self.made):
            assert self.ground.tokens(f"writer-{writer}") == made
        super().end()


class Transacting(Scenario):
    """A host's work: run at most once for a call, on its caller's thread and in its context."""

    mark: contextvars.ContextVar[int] = contextvars.ContextVar("mark")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ran: list[tuple[int, int]] = []

    def call(self) -> object:
        self.ran.clear()
        self.mark.set(self.number)
        return self.store.transact(self.work)

    def work(self, repository: Any) -> object:
        self.ran.append((threading.get_ident(), self.mark.get()))
        repository.charge("mine", tokens=1, idempotency_key=f"a{self.number}")
        return repository.charge("mine", tokens=1, idempotency_key=f"b{self.number}")

    def check(self, strikes: Sequence[BaseException]) -> None:
        here = (threading.get_ident(), self.number)
        assert self.ran in ([], [here])
        assert self.ran or strikes
        assert self.ground.tokens("mine") in (2 * self.number - 2, 2 * self.number), "half of it"
        self.call()
        assert self.ran == [here]
        assert self.ground.tokens("mine") == 2 * self.number


class TransactingInABlock(Scenario):
    """A host's work in a block: all of it or nothing, and the transaction ends with the block."""

    def call(self) -> object:
        with self.store.transaction() as tx:
            tx.charge("mine", tokens=1, idempotency_key=f"a{self.number}")
            tx.charge("mine", tokens=1, idempotency_key=f"b{self.number}")
        return None

    def check(self, strikes: Sequence[BaseException]) -> None:
        assert self.ground.tokens("mine") in (2 * self.number - 2, 2 * self.number), "half of it"
        assert strikes or self.ground.tokens("mine") == 2 * self.number
        self.call()
        assert self.ground.tokens("mine") == 2 * self.number


class TransactingInABlockInMemory(TransactingInABlock):
    """The same in memory, where readers and the writer share one connection."""

    in_memory = True


class Reading(Scenario):
    """Reads: the connections that they use come back fit for use."""

    def prepare(self) -> None:
        self.store.charge("mine", tokens=1)

    def call(self) -> object:
        goal = self.store.get("mine")
        assert goal is not None
        assert goal.tokens_used == self.number
        assert [goal.thread_id for goal in self.store.goals()] == ["mine", "other"]
        list(self.store.events(after=max(0, self.store.last_position() - 3)))
        return self.store.count()

    def check(self, strikes: Sequence[BaseException]) -> None:
        assert self.ground.tokens("mine") == self.number


class ReadingInMemory(Reading):
    """The same in memory."""

    in_memory = True


class Listening(Charging):
    """A listener is told of everything, in order, now and later."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.heard: list[int] = []
        self.logged: list[BaseException] = []
        self.first = self.store.last_position()
        self.excused: set[int] = set()
        handler = logging.Handler()
        handler.emit = self._note  # type: ignore[method-assign]
        logging.getLogger("goal_state").addHandler(handler)
        self.store.subscribe(self.listen)

    def listen(self, event: GoalEvent) -> None:
        self.heard.append(event.position)

    def _note(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.logged.append(record.exc_info[1])

    def check(self, strikes: Sequence[BaseException]) -> None:
        for strike in strikes:
            for frame in frames(strike):
                if frame.f_code is Listening.listen.__code__ and "event" in frame.f_locals:
                    self.excused.add(frame.f_locals["event"].position)
        super().check(strikes)
        self.ground.check()
        last = self.store.last_position()
        assert self.heard == sorted(self.heard), "told out of order"
        missing = set(range(self.first + 1, last + 1)) - set(self.heard) - self.excused
        assert not missing, f"nobody was told of {missing}"
        self.first = last
        self.heard.clear()


class ListeningInMemory(Listening):
    """The same in memory."""

    in_memory = True


class Subscribing(Scenario):
    """To begin listening, and to end it."""

    def call(self) -> object:
        with self.store.subscribe(lambda event: None):
            pass
        return None

    def check(self, strikes: Sequence[BaseException]) -> None:
        heard: list[GoalEvent] = []
        with self.store.subscribe(heard.append):
            self.store.charge("mine", tokens=1)
        assert len(heard) == 1
        assert self.ground.tokens("mine") == self.number


class Closing(Scenario):
    """A store that is closed, by a second call if need be, holds nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.own: GoalStore | None = None
        self.ground.check()
        self.before = connections()

    def prepare(self) -> None:
        self.own = GoalStore.open(self.ground.path, durability="normal", migrate=False)
        self.own.charge("mine", tokens=1)
        self.own.get("mine")

    def call(self) -> object:
        assert self.own is not None
        return self.own.close()

    def check(self, strikes: Sequence[BaseException]) -> None:
        assert self.own is not None
        self.own.close()
        self.own.close()
        try:
            self.own.get("mine")
        except StoreClosedError:
            pass
        else:
            raise AssertionError("it can be read after it was closed")
        assert self.ground.tokens("mine") == self.number
        self.own = None

    def end(self) -> None:
        assert connections() <= self.before, "connections are left open"
        super().end()


class Opening(Scenario):
    """A store that is opened, or was not: then it holds nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.opened: GoalStore | None = None
        self.ground.check()
        self.before = connections()

    def path(self) -> Path:
        return self.ground.path

    def call(self) -> object:
        self.opened = GoalStore.open(self.path(), durability="normal")
        return self.opened

    def check(self, strikes: Sequence[BaseException]) -> None:
        if self.opened is not None:
            self.opened.close()
        with GoalStore.open(self.path(), durability="normal") as store:
            store.replace("new", "Ship")
            assert store.verify() == []
        self.opened = None

    def end(self) -> None:
        assert connections() <= self.before, "connections are left open"
        super().end()


class OpeningNew(Opening):
    """A new file: there and whole, or to be made by the next one."""

    def path(self) -> Path:
        return self.ground.folder / f"new-{self.number}.db"

    def check(self, strikes: Sequence[BaseException]) -> None:
        super().check(strikes)
        for left in self.ground.folder.glob("*new-*"):
            left.unlink()


class BackingUp(Scenario):
    """A copy is whole, or is not there."""

    def copy(self) -> Path:
        return self.ground.folder / f"copy-{self.number}.db"

    def prepare(self) -> None:
        self.store.charge("mine", tokens=1)

    def call(self) -> object:
        return self.store.backup(self.copy())

    def check(self, strikes: Sequence[BaseException]) -> None:
        if self.copy().exists():
            with GoalStore.open(self.copy(), migrate=False) as store:
                goal = store.get("mine")
                assert goal is not None
                assert goal.tokens_used == self.number
        else:
            assert strikes
        for left in self.ground.folder.glob("*copy-*"):
            left.unlink()


class Exporting(Scenario):
    """An export that is cut leaves no snapshot behind."""

    def call(self) -> object:
        lines = list(self.store.export_lines())
        assert len(lines) > 2
        return lines


class Restoring(Scenario):
    """A backup is put in place, or is not: nothing between the two."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.copy = folder / "copy.db"
        self.store.charge("mine", tokens=7)
        self.store.backup(self.copy)

    def prepare(self) -> None:
        self.store.charge("mine", tokens=1)

    def call(self) -> object:
        return self.store.restore(self.copy)  # type: ignore[attr-defined]

    def check(self, strikes: Sequence[BaseException]) -> None:
        tokens = self.ground.tokens("mine")
        assert tokens == 7 or (strikes and tokens == 8), tokens
        self.call()
        assert self.ground.tokens("mine") == 7
        self.ground.others = 0  # as in the copy


SCENARIOS: Final[dict[str, type[Scenario]]] = {
    kind.__name__: kind
    for kind in (
        *(Charging, ChargingInMemory, ChargingMany, ChargingBesideWriters, Transacting),
        *(TransactingInABlock, TransactingInABlockInMemory),
        *(Reading, ReadingInMemory, Listening, ListeningInMemory, Subscribing),
        *(Closing, Opening, OpeningNew, BackingUp, Exporting, Restoring),
    )
}


# -- calls from a signal's handler -------------------------------------------------------------------


def _handled_close(scenario: Scenario) -> None:
    scenario.store.close()


def _handled_charge(scenario: Scenario) -> None:
    scenario.store.charge("other", tokens=1)
    scenario.ground.others += 1


def _handled_get(scenario: Scenario) -> None:
    scenario.store.get("other")


def _handled_subscription(scenario: Scenario) -> None:
    with scenario.store.subscribe(lambda event: None):
        pass


def _handled_events(scenario: Scenario) -> None:
    list(scenario.store.events(limit=3))
    list(scenario.store.goals())


CALLED: Final[dict[str, Callable[[Scenario], None]]] = {
    "close": _handled_close,
    "charge": _handled_charge,
    "get": _handled_get,
    "events": _handled_events,
    "subscribe": _handled_subscription,
}


# -- the program -------------------------------------------------------------------------------------


class Stepper:
    """Strikes a scenario, again and again."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.random = random.Random(seed)
        self.figures: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.strikes = 0

    def raise_at(self, steps: int) -> None:
        """One call, in which an exception (or one and then another) is raised."""
        is_signal = self.random.random() < 0.5
        second = self.random.randint(1, 60) if is_signal and self.random.random() < 0.4 else 0
        due = [self._class()] + ([self._class()] if second else [])
        to_raise = list(due)

        def handle(_signal: int, frame: Any) -> None:
            error = to_raise.pop(0)
            if to_raise:
                strike.again(second, arriving_signal(), frame)
            raise error

        signal.signal(SIGNAL, handle)
        strike = Strike(steps, arriving_signal() if is_signal else asynchronous(due[0]))
        caught: list[Struck] = []
        try:
            self._attempt(strike, caught)
        except Struck as error:
            caught.append(error)
        sys.settrace(None)
        if is_signal:
            due = due[: len(due) - len(to_raise)]
        elif not strike.armed:
            due = []
        self._check_strikes(due, caught)
        self.scenario.check(caught)
        caught.clear()  # with the frames that they came through, and what those have open
        self.scenario.ground.check(is_busy=self.scenario.is_busy)

    def call_at(self, steps: int, name: str) -> None:
        """One call, in which a signal's handler makes another call of the same store."""
        failed: list[BaseException] = []
        handled = 0

        def handle(_signal: int, _frame: Any) -> None:
            nonlocal handled
            sys.settrace(None)
            handled += 1
            try:
                CALLED[name](self.scenario)
            except GoalStateError as error:
                self.figures[f"refused: {type(error).__name__}"] += 1
                if type(error).__name__ != "NestedCallError" or name == "close":
                    failed.append(error)
            except BaseException as error:
                failed.append(error)

        signal.signal(SIGNAL, handle)
        refused: list[StoreClosedError] = []
        try:
            with Strike(steps, arriving_signal()):
                self.scenario.call()
        except StoreClosedError as error:  # it came before the call had really begun
            refused.append(error)
        assert failed == [], f"the handler's call failed: {failed[0]!r}"
        self.figures["handled"] += handled
        if name == "close" and handled:
            self._check_closed()
        else:
            assert refused == []
        self.scenario.check(refused)
        self.scenario.ground.check(is_busy=self.scenario.is_busy)

    def _check_closed(self) -> None:
        """Every call is refused once `close` was called. What there was is looked at through a new store."""
        ground = self.scenario.ground
        try:
            ground.store.charge("mine", tokens=1)
        except StoreClosedError:
            pass
        else:
            raise AssertionError("a handler closed the store, and yet it is open")
        ground.store = GoalStore.open(ground.path, durability="normal", migrate=False)

    def _class(self) -> type[Struck]:
        self.strikes += 1
        return strike_class(self.strikes)

    def _attempt(self, strike: Strike, caught: list[Struck]) -> None:
        try:
            with strike:
                self.scenario.call()
            for _ in range(3):  # what is still pending comes now
                _nothing()
        except Struck as error:
            caught.append(error)

    def _check_strikes(self, due: list[type[Struck]], caught: list[Struck]) -> None:
        logged = getattr(self.scenario, "logged", [])
        unraisable = take_unraisable()
        for error in logged:  # a listener's own error: then the strike came inside of the listener
            passed = [frame.f_code for frame in frames(error)]
            assert Listening.listen.__code__ in passed, f"swallowed at {struck_at(error)}"
        at_all = {
            type(strike) for error in (*caught, *unraisable, *logged) for strike in chain(error)
        }
        assert at_all == set(due), f"due {due}, caught {caught}"
        assert len(caught) == len({type(error) for error in caught}), "raised twice"
        self.figures["raised"] += len(due)
        self.figures["calls struck twice"] += len(due) == 2
        self.figures["reported as unraisable"] += len(unraisable)
        self.figures["taken for a listener's own error"] += len(logged)
        caught += logged
        for error in caught:
            self.places[struck_at(error) or "the caller"] += 1
        logged.clear()


def _nothing() -> None:
    """A call: here the interpreter looks whether anything is pending."""


def watch() -> None:
    """Until the next time: whoever does not come back to call it again hangs."""
    faulthandler.dump_traceback_later(PATIENCE_SECONDS + 10, exit=True)


def run(
    name: str, called: str | None, folder: Path, seed: int, seconds: float
) -> tuple[Counter[str], Counter[str]]:
    """Steps through a scenario; the figures and the places that were struck."""
    watch()
    kind = SCENARIOS[name]
    scenario = kind(folder)
    stepper = Stepper(scenario, seed)
    most = 0
    for _ in range(2):  # the first one imports and compiles
        scenario.number += 1
        scenario.prepare()
        most = count_steps(scenario.call)
        scenario.check([])
        scenario.ground.check(is_busy=scenario.is_busy)
    order = list(range(1, most + 1)) * 2
    stepper.random.shuffle(order)
    until = time.monotonic() + (seconds or 1e9)
    for count, steps in enumerate(order):
        if count >= LEAST and time.monotonic() > until:
            break
        watch()
        scenario.number += 1
        scenario.prepare()
        if called is None:
            stepper.raise_at(steps)
        else:
            stepper.call_at(steps, called)
    scenario.end()
    faulthandler.cancel_dump_traceback_later()
    stepper.figures["bytecodes in a call"] = most
    return stepper.figures, stepper.places


def main() -> None:
    name, called, folder, seed, seconds = sys.argv[1:]
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    collect_unraisable()
    figures, places = run(
        name, None if called == "raise" else called, place, int(seed), float(seconds)
    )
    print(json.dumps({"figures": figures, "places": len(places)}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
