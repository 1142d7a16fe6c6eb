"""The turnstile: turns are kept, and whoever sleeps, dies or is struck in one keeps nobody else out."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from goal_state import DatabaseBusyError
from goal_state.storage.sqlite import turnstile
from goal_state.storage.sqlite.turnstile import Turnstile
from tests.processes import PATIENCE_SECONDS, finish, python, running

pytestmark = pytest.mark.timeout(2 * PATIENCE_SECONDS)

SLICE, IDLE = turnstile._SLICE_NS, turnstile._IDLE_NS


class Writer:
    """A gate and the connection that it guards."""

    def __init__(self, path: Path, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        self.connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        self.gate = Turnstile(path, timeout_seconds)

    def begin(self) -> None:
        try:
            self.connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise DatabaseBusyError(str(error)) from error

    def write(self) -> None:
        """One transaction."""
        try:
            self.gate.enter(self.begin)
            self.connection.execute("INSERT INTO written DEFAULT VALUES")
            self.connection.execute("COMMIT")
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            self.gate.leave()

    def meet(self, other: Writer) -> None:
        """Finds another one writing."""
        other.connection.execute("BEGIN IMMEDIATE")
        patient, self.gate._timeout_seconds = self.gate._timeout_seconds, 0.0
        with pytest.raises(DatabaseBusyError):
            self.write()
        self.gate._timeout_seconds = patient
        other.connection.execute("ROLLBACK")

    def close(self) -> None:
        self.gate.close()
        self.connection.close()


class Clock:
    """Stands still but for those who wait, so that a slice is as long on a busy machine."""

    def __init__(self) -> None:
        self.now = 10**12
        self.slept: list[int] = []

    def monotonic_ns(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds * 1e9))
        self.now += self.slept[-1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(turnstile, "time", clock)
    return clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE written (id INTEGER PRIMARY KEY)")
    return path


@pytest.fixture
def queue(path: Path) -> Path:
    return path.with_name(f"{path.name}-queue")


@contextmanager
def two_that_met(path: Path) -> Iterator[tuple[Writer, Writer]]:
    with closing(Writer(path)) as one, closing(Writer(path)) as other:
        one.meet(other)
        other.meet(one)
        yield one, other


def is_free(queue: Path) -> bool:
    """Whether nobody holds the lock of the queue."""
    descriptor = os.open(queue, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def descriptors(file: Path) -> int:
    """How many descriptors of the file this process has."""
    found = 0
    for entry in Path("/dev/fd").iterdir():
        with suppress(OSError):
            found += os.path.samestat(os.fstat(int(entry.name)), file.stat())
    return found


# -- turns -------------------------------------------------------------------------------------------


def test_a_writer_that_met_nobody_makes_no_file(path: Path, queue: Path) -> None:
    with closing(Writer(path)) as writer:
        writer.write()
        writer.write()
    assert not queue.exists()


def test_a_turn_is_kept_from_one_transaction_to_the_next(path: Path, clock: Clock) -> None:
    with two_that_met(path) as (one, other):
        one.write()
        one.write()  # at once after the one before
        other.gate._timeout_seconds = IDLE / 2e9
        with pytest.raises(DatabaseBusyError):
            other.write()
        one.gate._timeout_seconds = 0
        one.write()


def test_a_turn_ends_with_its_slice(path: Path, clock: Clock) -> None:
    with two_that_met(path) as (one, other):
        clock.slept.clear()
        one.write()
        one.write()
        one.gate.enter(one.begin)
        clock.now += SLICE
        one.connection.execute("COMMIT")
        one.gate.leave()
        other.write()
        assert clock.slept == []


def test_who_waits_comes_before_the_next_turn_of_who_had_one(path: Path, clock: Clock) -> None:
    order: list[str] = []
    with two_that_met(path) as (one, other):
        one.write()
        one.write()

        def sleep(seconds: float) -> None:  # the other one waits, at the head of the queue
            clock.now += round(seconds * 1e9)
            one.gate._timeout_seconds = 0
            clock.sleep = lambda _: None  # type: ignore[method-assign]
            try:
                one.write()
                order.append("one")
            except DatabaseBusyError:
                order.append("one has to wait")
            clock.sleep = sleep  # type: ignore[method-assign]

        clock.sleep = sleep  # type: ignore[method-assign]
        other.write()
    assert order[-1] == "one has to wait"
    assert 10 <= len(order) <= 1.5 * SLICE / turnstile._HEAD_PAUSE_NS


def test_who_comes_now_and_then_keeps_no_turn(path: Path, clock: Clock) -> None:
    with two_that_met(path) as (one, other):
        clock.slept.clear()
        for _ in range(5):
            clock.now += 2 * IDLE
            one.write()
            other.write()
    assert clock.slept == []


def test_who_idles_in_its_turn_is_waited_for_once(path: Path, clock: Clock) -> None:
    with two_that_met(path) as (one, other):
        clock.slept.clear()
        one.write()
        one.write()
        other.write()
        assert 0 < sum(clock.slept) <= 1.5 * SLICE
        clock.slept.clear()
        for _ in range(20):
            clock.now += 10 * IDLE
            other.write()
        assert clock.slept == []


def test_a_turn_that_is_prolonged_for_ever_is_waited_for_one_and_a_half_slices(
    path: Path, queue: Path, clock: Clock
) -> None:
    def prolong(seconds: float) -> None:
        Clock.sleep(clock, seconds)
        with queue.open("r+b") as file:
            file.seek(8)
            file.write((clock.now + IDLE).to_bytes(8, "little"))

    with two_that_met(path) as (one, _):
        clock.sleep = prolong  # type: ignore[method-assign]
        prolong(0)
        clock.slept.clear()
        one.write()
    assert SLICE < sum(clock.slept) < 1.6 * SLICE


@pytest.mark.parametrize("written", [0, 1 << 62, (1 << 64) - 1])
def test_times_of_another_boot_hold_nobody_up(
    path: Path, queue: Path, clock: Clock, written: int
) -> None:
    with two_that_met(path) as (one, _):
        clock.slept.clear()
        queue.write_bytes(written.to_bytes(8, "little") * 2)
        one.write()
    assert clock.slept == []


# -- the file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_of_somebody_else_is_left_as_it_is(path: Path, queue: Path, is_link: bool) -> None:
    notes = queue.with_name("notes") if is_link else queue
    notes.write_bytes(b"")
    if is_link:
        queue.symlink_to(notes)
    else:
        notes.write_bytes(b"seventeen letters")
    before = notes.read_bytes()
    with two_that_met(path) as (one, other):
        for _ in range(5):
            one.write()
            other.write()
        assert descriptors(notes) == 0
    assert notes.read_bytes() == before


# -- stopped, killed ---------------------------------------------------------------------------------

_CHILD = """
import os, signal, sys
from contextlib import closing
from pathlib import Path
from goal_state.storage.sqlite import turnstile
from tests.test_turnstile import two_that_met

path, how, where = Path(sys.argv[1]), getattr(signal, sys.argv[2]), sys.argv[3]

def halt():
    print("there", flush=True)
    os.kill(os.getpid(), how)

with two_that_met(path) as (one, _):
    if where == "in its turn":
        turnstile._IDLE_NS = turnstile._SLICE_NS  # however slow the machine is
        one.write()
        one.write()
        halt()
    else:
        begin = one.begin
        one.begin = lambda: (halt(), begin())
    one.write()
print("written", flush=True)
"""


@contextmanager
def halted(path: Path, how: str, where: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, that was stopped or killed there."""
    with running(_CHILD, path, how, where) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        if how == "SIGSTOP":
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
        else:
            process.wait(PATIENCE_SECONDS)
        yield process


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in its turn", "at the head of the queue"])
def test_beside_a_stopped_process_others_write_and_wait_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with halted(path, "SIGSTOP", where) as process:
        with two_that_met(path) as (one, other):
            clock = Clock()
            clock.now = turnstile.time.monotonic_ns()
            monkeypatch.setattr(turnstile, "time", clock)
            one.write()
            assert sum(clock.slept) < turnstile._HEAD_TIMEOUT_NS + 2 * SLICE
            clock.slept.clear()
            clock.now += 2 * IDLE
            for _ in range(50):
                other.write()
                clock.now += 2 * IDLE
                one.write()
                clock.now += 2 * IDLE
            assert clock.slept == []
        os.kill(process.pid, signal.SIGCONT)
        assert finish(process) == "written\n"


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in its turn", "at the head of the queue"])
def test_a_killed_process_leaves_nothing_behind_that_others_wait_for(
    path: Path, queue: Path, where: str
) -> None:
    with halted(path, "SIGKILL", where):
        assert is_free(queue)
        with two_that_met(path) as (one, other):
            for _ in range(50):
                one.write()
                other.write()


# -- struck by exceptions ------------------------------------------------------------------------------


class Struck(BaseException):
    """What a signal handler might raise."""


def strike(instructions: set[int], work: Callable[[], object]) -> int:
    """Runs work and raises before its n-th instructions inside of the turnstile; how many it ran."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != turnstile.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count in instructions:
                raise Struck
        return trace

    # Else a strike may hit the finaliser of a queue that an earlier test left: its exceptions reach nobody.
    gc.disable()
    before = sys.gettrace()
    # CPython 3.12 traces opcodes only if some frame asked for it before.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        with suppress(Struck):
            work()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def write_struck(writer: Writer, instructions: set[int]) -> int:
    """A transaction whose gate is struck; its owner undoes it and leaves, as it always does."""
    count = 0
    try:
        count = strike(instructions, lambda: writer.gate.enter(writer.begin))
    finally:
        if writer.connection.in_transaction:
            writer.connection.execute("ROLLBACK")
        writer.gate.leave()
    return count


@pytest.mark.slow
@pytest.mark.parametrize("again_after", [None, 1, 2, 5])
def test_an_exception_anywhere_in_enter_leaves_no_lock_and_one_descriptor(
    path: Path, queue: Path, again_after: int | None
) -> None:
    with two_that_met(path) as (one, other):
        place = ran = 0
        while ran >= place:
            place += 1
            one.gate.let_go()
            other.gate.let_go()
            struck_at = {place} if again_after is None else {place, place + again_after}
            one.gate._contended_at = turnstile.time.monotonic_ns()
            ran = write_struck(one, struck_at)
            assert is_free(queue), place
            assert descriptors(queue) <= 1, place
            other.write()
            one.write()
        assert place > 100
        one.gate.close()
        other.gate.close()
        assert descriptors(queue) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["leave", "let_go", "close"])
def test_an_exception_anywhere_in_leaving_is_put_right_by_the_next_call(
    path: Path, queue: Path, method: str
) -> None:
    with two_that_met(path) as (one, other):
        place = ran = 0
        while ran >= place:
            place += 1
            one.write()
            one.write()
            one.gate.enter(one.begin)
            one.connection.execute("ROLLBACK")
            # As if an exception had kept `enter` from giving up the queue.
            one.gate._queue.try_lock()
            ran = strike({place}, getattr(one.gate, method))
            assert descriptors(queue) <= 2, place
            one.gate.leave()
            assert is_free(queue), place
            other.write()
        assert place > 20


def test_an_exception_while_one_waits_leaves_no_lock(path: Path, queue: Path) -> None:
    with two_that_met(path) as (one, other):
        other.connection.execute("BEGIN IMMEDIATE")
        for place in range(1, 600, 7):
            one.gate._contended_at = turnstile.time.monotonic_ns()
            write_struck(one, {place})
            assert is_free(queue), place
        other.connection.execute("ROLLBACK")
        one.write()


# -- forks -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_after_letting_go_parent_and_child_queue_up_apart(path: Path) -> None:
    printed = python(
        """
import os, sys
from pathlib import Path
from tests.test_turnstile import Writer, descriptors, is_free, two_that_met

path = Path(sys.argv[1])
queue = path.with_name(f"{path.name}-queue")
with two_that_met(path) as (one, other):
    one.write()
    one.write()
    one.gate.let_go()
    other.gate.let_go()
    assert descriptors(queue) == 0
    one.connection.close()
    other.connection.close()
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(readable, 1)
        mine = Writer(path)
        one.connection = mine.connection
        one.gate._queue.try_lock()
        one.gate.leave()
        os._exit(descriptors(queue))
    one.gate._queue.try_lock()
    os.write(writable, b"!")
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), is_free(queue))
    one.gate.leave()
    print(is_free(queue))
""",
        path,
    )
    assert printed == "1 False\nTrue\n"


def test_who_let_go_queues_up_again_by_itself(path: Path, queue: Path) -> None:
    with two_that_met(path) as (one, other):
        for _ in range(3):
            one.write()
            one.gate.let_go()
            other.gate.let_go()
            assert descriptors(queue) == 0
            other.write()
            assert descriptors(queue) == 1


@pytest.mark.slow
def test_a_gate_that_is_dropped_without_having_been_closed_leaves_no_descriptor(
    path: Path, queue: Path
) -> None:
    with closing(Writer(path)) as one:
        dropped = Writer(path)
        dropped.meet(one)
        dropped.write()
        assert descriptors(queue) == 1
        dropped.connection.close()
        del dropped
        gc.collect()
        assert descriptors(queue) == 0


# -- outside of the turnstile --------------------------------------------------------------------------

_SATURATING = """
import sys
from pathlib import Path
from goal_state import GoalStore

with GoalStore.open(sys.argv[1]) as store:
    thread = f"thread {sys.argv[2]}"
    store.create(thread, "Ship")
    print("ready", flush=True)
    while not Path(sys.argv[3]).exists():
        store.charge(thread, tokens=1)
"""


@pytest.mark.slow
def test_a_connection_of_the_hosts_own_gets_in_beside_four_processes(
    database: Path, tmp_path: Path
) -> None:
    """With the busy timeout that most have: 5 s."""
    stop = tmp_path / "stop"
    children = [running(_SATURATING, database, number, stop) for number in range(4)]
    with children[0] as a, children[1] as b, children[2] as c, children[3] as d:
        for child in (a, b, c, d):
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        with closing(sqlite3.connect(database, timeout=5, isolation_level=None)) as raw:
            for _ in range(20):
                raw.execute("BEGIN IMMEDIATE")
                raw.execute("COMMIT")
        stop.touch()
        for child in (a, b, c, d):
            finish(child)
