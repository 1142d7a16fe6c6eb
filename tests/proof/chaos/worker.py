"""A process of the chaos machine: does what it is told, and says what became of it.

    python -m tests.proof.chaos.worker SOCKET NUMBER DATABASE SEED [FAULT]

What was acknowledged is said once the call has returned, so that after a kill only the charge that was
being made is unknown. A worker that is a `nursery` opens nothing: it forks workers that inherit nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from click.testing import CliRunner
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy import create_engine as make_engine

from goal_state import (
    DatabaseBusyError,
    GoalEvent,
    GoalMeter,
    GoalRepository,
    GoalStateError,
    GoalStore,
    RequestError,
    StoreClosedError,
    TokenUsage,
    consumers,
    errors,
    retention,  # noqa: F401  what is imported late must not be struck half-way in
    transfer,  # noqa: F401
    verification,  # noqa: F401
)
from goal_state.cli.main import program
from goal_state.consumers import Consumer
from tests.proof.chaos import faults, strikes
from tests.proof.chaos.channel import Channel, Message
from tests.proof.chaos.charges import charge_of, make, make_in, number_of
from tests.proof.chaos.strikes import Guard, Strike, counted, on_timer

LEASE_SECONDS: Final = 1.0
JOIN_SECONDS: Final = 60.0
REFUSALS: Final[tuple[type[Exception], ...]] = (
    (errors.NestedCallError,) if hasattr(errors, "NestedCallError") else ()
)
"""Of a call that is made where none can be carried out."""


class Surprise(Exception):  # noqa: N818
    """Something is not as it must be."""


class Reborn(BaseException):
    """Unwinds a forked child, which goes on as a worker of its own."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker


class Leave(BaseException):
    """The process ends as a program does that came to its end."""


class ShortLease(Consumer):
    """A consumer whose name is soon free after its process was killed."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named, lease_seconds=LEASE_SECONDS)


class Held:
    """A store that is open, or was."""

    def __init__(self, store: GoalStore, name: str | None = None) -> None:
        self.store = store
        self.name = name
        self.process = os.getpid()
        self.is_closing = False
        self.telling = threading.Lock()
        self.heard: deque[tuple[int, int | None]] = deque()
        self.consumers: dict[str, Consumer] = {}
        self.engine: Any = None


class Worker:
    """What one process knows, and does."""

    def __init__(self, place: Path, number: int, path: Path, seed: int) -> None:
        self.place, self.number, self.path, self.seed = place, number, path, seed
        self.channel = Channel(place)
        self.held: dict[int, Held] = {}
        self.children: list[int] = []
        self.bursts: list[threading.Thread] = []
        self.channel.say({"worker": number, "pid": os.getpid()})

    # -- what it is told ---------------------------------------------------------------------------

    def serve(self) -> None:
        while (order := self.channel.hear()) is not None:
            try:
                said = getattr(self, f"do_{order['do']}")(**order["with"])
            except (Reborn, Leave):
                raise
            except BaseException as error:
                self.channel.say(
                    {"n": order["n"], "error": type(error).__name__, "trace": _trace(error)}
                )
            else:
                self.channel.say({"n": order["n"], "said": said})
        os._exit(3)  # the driver is gone

    def say_surprise(self, error: BaseException) -> None:
        self.channel.say({"surprise": _trace(error)})

    # -- stores ------------------------------------------------------------------------------------

    def do_open(self, store: int, how: str, durability: Any) -> None:
        held = _on_thread(how, lambda: self._open(how, durability))
        held.name = f"{self.number}/{store}"
        self.held[store] = held

    def _open(self, how: str, durability: Any = "normal") -> Held:
        if how == "engine":
            engine = make_engine(f"sqlite:///{self.path}")
            held = Held(GoalStore.open(engine, durability=durability))
            held.engine = engine
            return held
        return Held(GoalStore.open(self.path, durability=durability))

    def do_close(self, store: int, how: str) -> None:
        held = self.held.pop(store)
        held.is_closing = True
        _on_thread(how, held.store.close)
        if held.engine is not None:
            held.engine.dispose()
        try:
            held.store.get("thread-0")
        except StoreClosedError:
            return
        raise Surprise("a closed store reads")

    def do_abandon(self, store: int) -> None:
        """The store is collected without having been closed."""
        del self.held[store]
        gc.collect()

    def do_open_close(self, number: int, how: str) -> None:
        """As a web server does that opens a store for each request."""

        def request() -> None:
            with GoalStore.open(self.path, durability="normal") as store:
                self.charge(Held(store), number)

        _on_thread(how, request)

    # -- charges -----------------------------------------------------------------------------------

    def do_charge(
        self, store: int, burst: int, lanes: list[list[int]], strikes: list[str], pause: float
    ) -> None:
        """Begins to charge on threads, one for each lane, and goes on; they may be struck meanwhile."""
        held = self.held[store]
        guards: list[Guard] = []
        ended = threading.Semaphore(0)

        def charge_lane(numbers: list[int]) -> None:
            try:
                guard = Guard()
                guards.append(guard)
                for number in numbers:
                    self.charge(held, number, guard.call if strikes else _plainly)
                    if pause:
                        time.sleep(pause)
            except BaseException as error:
                self.say_surprise(error)
            finally:
                ended.release()

        threads = [
            threading.Thread(target=charge_lane, args=(numbers,), daemon=True) for numbers in lanes
        ]

        def see_it_through() -> None:
            draw = random.Random(burst)
            try:
                for name in strikes:
                    time.sleep(draw.expovariate(1 / 0.001))
                    for _ in range(20):
                        if guards and draw.choice(guards).strike(_strike(name)):
                            break
                        time.sleep(0.0001)
                for _ in lanes:
                    ended.acquire()
                self.say_heard(held)
            except BaseException as error:
                self.say_surprise(error)
            self.channel.say({"burst": burst})

        for thread in threads:
            thread.start()
        watcher = threading.Thread(target=see_it_through, daemon=True)
        watcher.start()
        self.bursts = [thread for thread in self.bursts if thread.is_alive()] + [watcher]

    def do_charge_here(self, store: int, numbers: list[int]) -> None:
        """Charges on the main thread."""
        held = self.held[store]
        for number in numbers:
            self.charge(held, number)
        self.say_heard(held)

    def charge(
        self,
        held: Held,
        number: int,
        struck_in: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> None:
        """Makes one charge and says what became of it. What was struck is tried again, where it can be."""
        charge = charge_of(self.seed, number)
        began = time.monotonic()
        became = "unknown"
        tokens: int | None = None
        thread = threading.get_ident()
        may_repeat = charge.key is not None and charge.tokens % 2 == 0

        def call() -> Any:
            if charge.way != "work":
                return make(held.store, charge)

            def work(repository: GoalRepository) -> Any:
                if threading.get_ident() != thread:
                    raise Surprise("a host's work ran on another thread")
                repository.get(charge.thread_id)
                return make_in(repository, charge)

            return held.store.transact(work)

        try:
            try:
                accounting = (struck_in or _plainly)(call)
            except Strike:
                if not may_repeat:
                    raise
                accounting = call()
            if not accounting.applied:
                raise Surprise(f"charge {number} was not applied")
            became, tokens = "made", accounting.goal.tokens_used
        except Strike:
            pass
        except StoreClosedError:
            if not held.is_closing:
                raise
            became = "refused"
        at = [began, time.monotonic()]
        self.channel.say(
            {"charge": number, "became": became, "at": at, "tokens": tokens, "by": held.name}
        )

    # -- strikes -----------------------------------------------------------------------------------

    def do_strike(
        self,
        store: int,
        what: str,
        numbers: list[int],
        how: str,
        when: list[float],
        kinds: list[str],
        burst: int,
        lanes: list[list[int]],
    ) -> None:
        """Does one thing again and again on the main thread, and is struck in it; other threads charge."""
        held = self.held[store]
        self.do_charge(store, burst, lanes, [], 0)
        for index, number in enumerate(numbers):
            kind = kinds[index]
            raised = 0

            def act(kind: str = kind) -> None:
                nonlocal raised
                raised += 1
                raise _strike(kind)

            def struck(
                work: Callable[[], Any], act: Callable[[], None] = act, index: int = index
            ) -> Any:
                return self._at(how, when[index], act, work)

            came = 0
            strikes.was_unraisable()
            if what == "charge":

                def counting(work: Callable[[], Any]) -> Any:
                    nonlocal came
                    try:
                        return struck(work)
                    except Strike:
                        came += 1
                        raise

                self.charge(held, number, counting)
            else:
                try:
                    struck(lambda: self._touch(held, what))
                except Strike:
                    came += 1
            came = came or strikes.was_unraisable()
            if raised != came:
                raise Surprise(f"{kind} was raised {raised} times and came {came} times, in {what}")
        self.say_heard(held)

    def _at(self, how: str, when: float, act: Callable[[], None], work: Callable[[], Any]) -> Any:
        if how == "counted":
            return counted(act, int(when), work)
        return on_timer(act, when / 50_000, work)

    def _touch(self, held: Held, what: str) -> None:
        store = held.store
        if what == "get":
            store.get("thread-0")
        elif what == "verify":
            _expect_none(store.verify("thread-1"))
        elif what == "goals":
            list(store.goals())
        elif what == "events":
            list(store.events(after=0, limit=20))
        elif what == "export":
            for _, _line in zip(range(5), store.export_lines(), strict=False):
                pass
        elif what == "open":
            GoalStore.open(self.path, durability="normal").close()
        elif what == "listen":
            store.subscribe(lambda event: None).close()
        else:
            raise AssertionError(what)

    def do_handler(
        self,
        store: int,
        other: int,
        numbers: list[int],
        extra: int,
        how: str,
        when: float,
        what: str,
    ) -> None:
        """Charges on the main thread; once, in the middle of a call, a handler calls the store."""
        held, called = self.held[store], self.held[other]
        has_acted = False

        def act() -> None:
            nonlocal has_acted
            has_acted = True
            if what == "charge":
                said.append(self._charge_quietly(called, extra))
            elif what == "get":
                with contextlib.suppress(*REFUSALS):
                    called.store.get("thread-0")
            else:
                called.is_closing = True
                called.store.close()

        said: list[Message] = []
        for number in numbers:
            if has_acted:
                self.charge(held, number)
            else:
                self.charge(held, number, lambda work: self._at(how, when, act, work))
        if what == "charge" and not said:
            said.append(self._charge_quietly(called, extra))
        for message in said:
            self.channel.say(message)
        self.say_heard(held)
        if what == "close":
            if not has_acted:
                act()
            del self.held[other]
            try:
                called.store.get("thread-0")
            except StoreClosedError:
                return
            raise Surprise("a store that a handler closed reads")

    def _charge_quietly(self, held: Held, number: int) -> Message:
        began = time.monotonic()
        charge = charge_of(self.seed, number)
        became = "made"
        tokens: int | None = None
        try:
            tokens = _goal(make(held.store, charge)).tokens_used
        except REFUSALS:
            became = "refused"
        at = [began, time.monotonic()]
        return {"charge": number, "became": became, "at": at, "tokens": tokens, "by": held.name}

    def do_nested(self, store: int, what: str) -> None:
        """A call of the store inside its own transaction is refused at once."""
        held = self.held[store]

        def work(repository: GoalRepository) -> None:
            repository.get("thread-0")
            if what == "get":
                held.store.get("thread-0")
            elif what == "charge":
                held.store.account("thread-0", tokens=1)
            else:
                held.store.transact(lambda inner: inner.get("thread-0"))

        try:
            held.store.transact(work)
        except REFUSALS:
            return
        raise Surprise(f"a {what} inside transact was not refused")

    # -- processes ---------------------------------------------------------------------------------

    def do_fork(self, child: int) -> int:
        """A child that goes on as a worker, with the stores that were open."""
        pid = _fork()
        if pid == 0:
            self.channel.close()
            reborn = Worker(self.place, child, self.path, self.seed)
            reborn.check_inherited()
            for number, held in self.held.items():
                reborn.held[number] = Held(held.store, f"{child}/{number}")
            raise Reborn(reborn)
        self.children.append(pid)
        return pid

    def check_inherited(self) -> None:
        """A forked child has nothing of the database open: SQLite would take the parent's locks for its own.
        Where the system does not tell, the loss of what is charged shows it, sooner or later.
        """
        files = Path("/proc/self/fd")
        if not files.is_dir():
            return
        for file in files.iterdir():
            with contextlib.suppress(OSError):
                if file.readlink().name in (self.path.name, f"{self.path.name}-wal"):
                    self.channel.say({"surprise": f"a forked child inherits {file.readlink()}"})
                    return

    def do_fork_briefly(
        self, store: int, numbers: list[int], how: str, end: str, beside: str
    ) -> None:
        """A child that charges, by the store that it inherited or by one of its own, and ends."""
        held = self.held[store]
        is_over = threading.Event()

        def keep_busy() -> None:
            try:
                while not is_over.is_set():
                    if beside == "open":
                        self._open("here").store.close()
                    else:
                        held.store.verify("thread-0")
            except BaseException as error:
                self.say_surprise(error)

        def live() -> None:
            child = _fork()
            if child:
                _wait_for(child)
                return
            status = 1
            try:
                self.channel.close()
                self.channel = Channel(self.place)
                self.channel.say({"worker": None, "pid": os.getpid()})
                self.check_inherited()
                mine = Held(held.store) if how == "inherited" else self._open("here")
                for number in numbers:
                    self.charge(mine, number)
                if end != "exit":
                    mine.store.close()
                status = 0
            except BaseException as error:
                self.say_surprise(error)
            finally:
                os._exit(status)

        busy = threading.Thread(target=keep_busy, daemon=True)
        if beside:
            busy.start()
            time.sleep(0.002)
        try:
            _on_thread("thread" if end == "thread" else "here", live)
        finally:
            is_over.set()
        if beside:
            busy.join(JOIN_SECONDS)

    def do_fork_in_work(self, store: int, number: int) -> None:
        """A fork from inside a transaction: the child is refused, the parent unharmed."""
        held = self.held[store]
        charge = charge_of(self.seed, number)
        began = time.monotonic()

        def work(repository: GoalRepository) -> Any:
            accounting = make_in(repository, charge)
            child = _fork()
            if child == 0:
                status = 1
                try:
                    held.store.get("thread-0")
                except errors.ForkedStoreError:
                    status = 0
                finally:
                    os._exit(status)
            _wait_for(child)
            return accounting

        tokens = _goal(held.store.transact(work)).tokens_used
        at = [began, time.monotonic()]
        self.channel.say({"charge": number, "became": "made", "at": at, "tokens": tokens})

    def do_leave(self) -> None:
        """Ends as a program does, with whatever is open."""
        raise Leave

    def do_reap(self) -> None:
        for child in list(self.children):
            if os.waitpid(child, os.WNOHANG)[0]:
                self.children.remove(child)

    # -- copies ------------------------------------------------------------------------------------

    def do_backup(self, store: int, to: str, how: str) -> list[float]:
        began = time.monotonic()
        if how == "call":
            self.held[store].store.backup(to)
        else:
            self._run_cli(how, "backup", to)
        return [began, time.monotonic()]

    def do_restore(self, store: int, source: str, how: str) -> list[float]:
        began = time.monotonic()
        if how == "call":
            self.held[store].store.restore(source)  # type: ignore[attr-defined]
        else:
            self._run_cli(how, "restore", source, "--yes")
        return [began, time.monotonic()]

    def do_export(self, store: int, folder: str, cut: float) -> list[float]:
        """Exports, and imports that elsewhere; cut off, or with a value changed, it is refused."""
        place = Path(folder)
        place.mkdir()
        began = time.monotonic()
        lines = list(self.held[store].store.export_lines())
        at = [began, time.monotonic()]
        with GoalStore.open(place / "whole.db", durability="normal") as whole:
            whole.import_lines(lines)
            _expect_none(whole.verify())
        kept = lines[: 1 + int(cut * (len(lines) - 1))]
        with GoalStore.open(place / "cut.db", durability="normal") as store_of_cut:
            try:
                store_of_cut.import_lines(kept)
            except RequestError:
                pass
            else:
                raise Surprise(f"{len(kept)} of {len(lines)} lines were imported")
        changed = _changed(lines, random.Random(cut))
        with GoalStore.open(place / "changed.db", durability="normal") as store_of_changed:
            try:
                store_of_changed.import_lines(changed)
            except RequestError:
                pass
            else:
                raise Surprise("an export with a changed value was imported")
        return at

    def do_aside(self, folder: str, what: str, backup: str) -> None:
        """What nobody should do is refused in words: in a folder of its own, with copies."""
        place = Path(folder)
        place.mkdir()
        copy = place / "goals.db"
        copy.write_bytes(Path(backup).read_bytes())
        if what == "replaced":
            for file in self.path.parent.glob(f"{self.path.name}-*"):
                if not file.name.endswith(("-shm", "-door", "-room")):
                    copy.with_name(file.name).write_bytes(file.read_bytes())
        else:
            with contextlib.closing(sqlite3.connect(copy)) as raw, raw:
                raw.execute("DROP TABLE goal_state_alembic_version")
        try:
            with GoalStore.open(copy, durability="normal") as store:
                found = [event.event_id for event in store.events()]
        except GoalStateError:
            return
        with GoalStore.open(backup) as store:
            due = [event.event_id for event in store.events()]
        if what != "replaced" or found != due:
            raise Surprise(f"a database was opened although it was {what}")

    def do_prune(self, store: int, before_ms: int) -> int:
        before = datetime.fromtimestamp(before_ms / 1000, UTC)
        return self.held[store].store.prune_events(before=before)

    def do_cli(self, how: str, command: list[str]) -> None:
        self._run_cli(how, *command)

    def _run_cli(self, how: str, *arguments: str) -> None:
        line = [*arguments, "--db", str(self.path)]
        if how == "process":
            done = subprocess.run(
                [sys.executable, "-m", "goal_state", *line],
                capture_output=True,
                text=True,
                timeout=JOIN_SECONDS,
                check=False,
            )
            status, out = done.returncode, done.stdout + done.stderr
        else:
            result = CliRunner().invoke(program, line)
            status, out = result.exit_code, result.output
        if status != 0 and not ("vacuum" in arguments and "busy" in out.lower()):
            raise Surprise(f"goal-state {' '.join(line)} ended with {status}: {out[-2000:]}")

    # -- hosts -------------------------------------------------------------------------------------

    def do_host(self, number: int, how: str) -> None:
        """A charge in a host's own transaction, beside a row of the host's."""
        charge = charge_of(self.seed, number)
        engine = make_engine(f"sqlite:///{self.path}", connect_args={"timeout": 20})
        if how == "savepoint":
            _let_sqlalchemy_begin(engine)
        began = time.monotonic()
        became, tokens = "refused", None
        try:
            if how == "autocommit":
                with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as host:
                    try:
                        tokens = _goal(make_in(GoalRepository(host), charge)).tokens_used
                        became = "made"
                    except RequestError:
                        pass
                    host.execute(text("INSERT INTO host_rows VALUES (:n, 1)"), {"n": number})
            else:
                with engine.connect() as host:
                    host.execute(text("INSERT INTO host_rows VALUES (:n, 0)"), {"n": number})
                    if how == "savepoint":
                        with contextlib.suppress(Undone), host.begin_nested():
                            make_in(GoalRepository(host), charge._replace(key=None, tokens=7))
                            raise Undone
                    tokens = _goal(make_in(GoalRepository(host), charge)).tokens_used
                    if how == "rollback":
                        host.rollback()
                    else:
                        host.commit()
                        became = "made"
        finally:
            engine.dispose()
        at = [began, time.monotonic()]
        self.channel.say(
            {"charge": number, "became": became, "at": at, "tokens": tokens, "host": how}
        )

    # -- who is told -------------------------------------------------------------------------------

    def do_listen(self, store: int, calls: bool) -> None:
        """A listener that, at times, calls the store which is just telling it."""
        held = self.held[store]

        def hear(event: GoalEvent) -> None:
            if os.getpid() != held.process:
                self.channel.say({"surprise": "a listener was called in a forked child"})
            held.heard.append((event.position, number_of(event.turn_id)))
            if calls and event.position % 3 == 0:
                with contextlib.suppress(*REFUSALS, StoreClosedError):
                    held.store.get(event.thread_id)

        held.store.subscribe(hear)

    def say_heard(self, held: Held) -> None:
        with held.telling:
            heard: list[tuple[int, int | None]] = []
            with contextlib.suppress(IndexError):
                while True:
                    heard.append(held.heard.popleft())
            if not heard:
                return
            self.channel.say({"heard": heard, "by": held.name})

    def do_consume(self, store: int, name: str, fails: dict[str, str]) -> None:
        """A consumer whose sink fails at some batches, each time in another way."""
        held = self.held[store]
        batches = 0

        def sink(events: Sequence[GoalEvent]) -> None:
            nonlocal batches
            batches += 1
            if (kind := fails.get(str(batches))) is not None:
                raise FAILURES[kind]()  # noqa: RSE102
            took = [[event.position, event.event_id] for event in events]
            self.channel.say({"took": took, "of": name})

        held.consumers[name] = held.store.consume(name, sink, batch_size=20)

    def do_drain(self, store: int, name: str) -> int | None:
        """The position up to which everything was handed over; None where another one has the name."""
        consumer = self.held[store].consumers[name]
        deadline = time.monotonic() + JOIN_SECONDS / 3
        while not consumer.drain(0.5):
            if consumer._waits_its_turn:
                return None
            if time.monotonic() > deadline:
                raise Surprise(f"a consumer came no further than {consumer.position}")
        return consumer.position

    def do_unconsume(self, store: int, name: str) -> None:
        self.held[store].consumers.pop(name).close()

    # -- the meter ---------------------------------------------------------------------------------

    def do_meter(
        self, store: int, thread_id: str, how: str, when: list[float], kinds: list[str]
    ) -> Message:
        """A turn that is metered and struck; what was struck is reported again, as hosts do.

        The clock is the test's own, in whole seconds, so that what is due is known.
        """
        held = self.held[store]
        began = time.monotonic()
        now_ns = 0
        budget = 300
        held.store.create(thread_id, "Ship", token_budget=budget)
        meter = GoalMeter(held.store, thread_id, clock_ns=lambda: now_ns)
        notices = 0

        def report(index: int, work: Callable[[], Any], is_done: Callable[[], bool]) -> None:
            nonlocal notices

            def act() -> None:
                raise _strike(kinds[index])

            try:
                reading = self._at(how, when[index], act, work)
            except Strike:
                if is_done():
                    return
                reading = work()
            notices += reading.budget_exhausted

        total = 0
        zero = TokenUsage()
        report(0, lambda: meter.start_turn("turn-1", total=zero), lambda: meter.turn_id is not None)
        for index in range(1, len(when) - 1):
            now_ns += 2_000_000_000
            total += 100
            usage = TokenUsage(input_tokens=total)
            report(index, lambda usage=usage: meter.observe(usage), lambda: False)
        now_ns += 2_000_000_000
        report(len(when) - 1, meter.finish_turn, lambda: meter.turn_id is None)
        goal = _goal_of(held.store, thread_id)
        found = [goal.tokens_used, round(goal.time_used_seconds), notices]
        due = [total, now_ns // 1_000_000_000, 1 if total >= budget else 0]
        return {"at": [began, time.monotonic()], "found": found, "due": due}

    # -- looking -----------------------------------------------------------------------------------

    def do_look(self, store: int, thread: str) -> Message:
        """What a store reads now."""
        held = self.held[store]
        began = time.monotonic()

        def look() -> dict[str, int]:
            return {
                goal.thread_id: goal.tokens_used
                for goal in (held.store.get(f"thread-{n}") for n in range(4))
                if goal is not None
            }

        tokens = _on_thread(thread, look)
        self.say_heard(held)
        return {"at": began, "tokens": tokens}

    def do_verify(self, store: int) -> None:
        _expect_none(self.held[store].store.verify())

    def do_ready(self) -> None:
        """Every burst has come to its end."""
        for thread in self.bursts:
            thread.join(JOIN_SECONDS)
            if thread.is_alive():
                raise Surprise("a burst of charges does not end")
        self.bursts.clear()
        for held in self.held.values():
            self.say_heard(held)


class Undone(Exception):  # noqa: N818
    """Ends a savepoint."""


class _SinkError(Exception):
    pass


FAILURES: Final[dict[str, Callable[[], BaseException]]] = {
    "error": lambda: _SinkError("a sink failed"),
    "cancelled": asyncio.CancelledError,
    "exit": SystemExit,
    "interrupt": KeyboardInterrupt,
    "request": lambda: StoreClosedError("another store's"),
    "database": lambda: DatabaseBusyError("another store's"),
}
"""What a sink raises."""


def _let_sqlalchemy_begin(engine: Engine) -> None:
    """As SQLAlchemy's documentation tells those who use savepoints."""

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _plainly(work: Callable[[], Any]) -> Any:
    return work()


def _strike(name: str) -> Any:
    return strikes.of_kind(name)


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-6000:]


def _on_thread(how: str, work: Callable[[], Any]) -> Any:
    """Does the work here or on a thread of its own."""
    if how != "thread":
        return work()
    became: list[Any] = []

    def run() -> None:
        try:
            became.append((work(), None))
        except BaseException as error:
            became.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(JOIN_SECONDS)
    if not became:
        raise Surprise("a thread does not come to its end")
    result, error = became[0]
    if error is not None:
        raise error
    return result


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        strikes.forget_other_threads()
    return child


def _wait_for(child: int) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise Surprise(f"a forked child ended with {status}")


def _goal(accounting: Any) -> Any:
    if not accounting.applied:
        raise Surprise("a charge was not applied")
    return accounting.goal


def _goal_of(store: GoalStore, thread_id: str) -> Any:
    goal = store.get(thread_id)
    if goal is None:
        raise Surprise(f"the goal of {thread_id} is gone")
    return goal


def _expect_none(differences: list[Any]) -> None:
    if differences:
        raise Surprise(f"verify found {differences[:5]}")


def _changed(lines: list[str], draw: random.Random) -> list[str]:
    """The lines of an export with one value changed."""
    places = [index for index, line in enumerate(lines) if '"row"' in line]
    index = draw.choice(places)
    record = json.loads(lines[index])
    row = record["row"]
    name = draw.choice([name for name, value in row.items() if value is not None])
    old = row[name]
    row[name] = old + draw.choice((1, -1, 2**62)) if isinstance(old, int) else old + "\ud800"
    return [*lines[:index], json.dumps(record), *lines[index + 1 :]]


# -- the process ---------------------------------------------------------------------------------------


class Nursery:
    """A process that opens nothing and forks workers that inherit nothing."""

    def __init__(self, place: Path, path: Path, seed: int) -> None:
        self.place, self.path, self.seed = place, path, seed
        self.channel = Channel(place)
        self.channel.say({"worker": 0, "pid": os.getpid()})
        self.children: list[int] = []

    def serve(self) -> None:
        while (order := self.channel.hear()) is not None:
            for child in list(self.children):
                if os.waitpid(child, os.WNOHANG)[0]:
                    self.children.remove(child)
            child = _fork()
            if child == 0:
                self.channel.close()
                raise Reborn(Worker(self.place, order["with"]["worker"], self.path, self.seed))
            self.children.append(child)
            self.channel.say({"n": order["n"], "said": child})
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        os._exit(0)


def main(place: str, number: str, path: str, seed: str, fault: str = "") -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    strikes.prepare()
    consumers.Consumer = ShortLease  # type: ignore[misc]
    if fault:
        faults.FAULTS[fault].put_back()
    here: Worker | Nursery
    if int(number) == 0:
        here = Nursery(Path(place), Path(path), int(seed))
    else:
        here = Worker(Path(place), int(number), Path(path), int(seed))
    while True:
        try:
            here.serve()
        except Reborn as reborn:
            here = reborn.worker
        except Leave:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
