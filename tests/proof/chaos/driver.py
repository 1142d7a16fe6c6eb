"""Drives the workers through a plan and compares the database with the model.

python -m tests.proof.chaos.driver SEED STEPS [--only STEP,…] [--without STEP,…] [--fault NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

from goal_state import GoalStore
from tests.processes import CHECKOUT
from tests.proof.chaos.channel import Message
from tests.proof.chaos.charges import BUDGETS
from tests.proof.chaos.model import Found, Model
from tests.proof.chaos.plan import Plan, Step

__all__ = ["LIMIT_SECONDS", "Done", "run"]

LIMIT_SECONDS: Final = 40.0
"""For one step: longer than anything takes that goes on."""

_MOST_BURSTS: Final = 3
_SHOWN_STEPS: Final = 30


class Done(NamedTuple):
    """What a run did."""

    steps: Counter[str]
    charges: int
    seconds: float


class _Hand:
    """The driver's end of one worker."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.number: int | None = None
        self.pid = 0
        self.rest = b""
        self.replies: dict[int, Message] = {}
        self.bursts: set[int] = set()
        self.is_gone = False


class Machine:
    """One database and the processes that use it."""

    def __init__(
        self, folder: Path, seed: int, *, fault: str = "", limit: float = LIMIT_SECONDS
    ) -> None:
        self.folder, self.seed, self.fault, self.limit = folder, seed, fault, limit
        self.path = folder / "goals.db"
        self.model = Model(seed)
        self.recent: deque[Step] = deque(maxlen=_SHOWN_STEPS)
        self.steps: Counter[str] = Counter()
        self._hands: dict[int, _Hand] = {}
        self._others: list[_Hand] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._groups: list[int] = []
        """The processes that were ever started, each with all that it has forked or started."""
        self._orders = 0
        self._quiet_ms = 0
        self._restores = 0
        self._listening: set[str] = set()
        self._due: dict[str, set[int]] = {}
        self._heard: dict[str, set[int]] = {}
        self._struck: dict[str, dict[int, float]] = {}
        """Charges of which it is not known whether they are there, and when they had ended."""
        self._failed: set[int] = set()
        self._last_heard: dict[str, tuple[int, int]] = {}
        """For each listener: the last position, and how many restores have explained an earlier one."""
        self._took: dict[tuple[int | None, str], set[int]] = {}
        """Positions, by worker and name."""
        self._place = folder / "socket"
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(self._place))
        self._server.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ, None)
        self._errors = folder / "stderr"

    # -- a run -------------------------------------------------------------------------------------

    def run(self, plan: Plan, count: int) -> None:
        try:
            self._prepare()
            for step in plan.steps(count):
                self.recent.append(step)
                self.perform(step)
                self.steps[step.name] += step.count
            self._end()
        except Found as found:
            told = Found(self._report(found))
            told.steps = sum(self.steps.values())
            raise told from None

    def _report(self, found: Found) -> str:
        done = sum(self.steps.values())
        steps = "\n".join(f"  {s.worker} {s.name} {s.arguments}" for s in self.recent)
        said = self._errors.read_text(errors="replace")[-12_000:] if self._errors.exists() else ""
        return (
            f"{found}\nseed {self.seed}, in step {done}: {self.recent[-1] if self.recent else None}"
            f"\nthe last steps:\n{steps}\nstderr of the workers:\n{said}"
        )

    def _prepare(self) -> None:
        with GoalStore.open(self.path, durability="normal") as store:
            for thread, budget in BUDGETS.items():
                store.create(thread, "Ship", token_budget=budget)
        with contextlib.closing(sqlite3.connect(self.path)) as raw, raw:
            raw.execute(
                "CREATE TABLE host_rows (number INTEGER PRIMARY KEY, is_autocommit INTEGER)"
            )
        self._start(0)

    def close(self) -> None:
        """Ends every process that there is, also children of which nobody has said anything yet."""
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        ends = time.monotonic() + 1  # where nobody reaps orphans, they stay
        while any(map(_has_members, self._groups)) and time.monotonic() < ends:
            time.sleep(0.01)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        for hand in (*self._hands.values(), *self._others):
            hand.connection.close()
        self._selector.close()

    def _end(self) -> None:
        """Every worker leaves as a program does; then all is as it must be."""
        for worker in [number for number in self._hands if number]:
            self._leave(worker)
        self.model.check(self.path, is_quiet=True)

    # -- processes ---------------------------------------------------------------------------------

    def _start(self, number: int) -> None:
        """A process of its own: a worker, or (0) the nursery."""
        with self._errors.open("ab") as errors:
            arguments = (self._place, number, self.path, self.seed, self.fault)
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.proof.chaos.worker", *map(str, arguments)],
                cwd=CHECKOUT,
                env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                process_group=0,
            )
        self._processes.append(process)
        self._groups.append(process.pid)
        self._wait(
            lambda: number in self._hands or process.poll() is not None,
            f"worker {number} does not come",
        )
        if number not in self._hands:
            raise Found(f"worker {number} ended with {process.poll()} before it had begun")

    def _pump(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                connection, _ = self._server.accept()
                hand = _Hand(connection)
                self._selector.register(connection, selectors.EVENT_READ, hand)
                continue
            hand = key.data
            try:
                data = hand.connection.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                self._selector.unregister(hand.connection)
                hand.is_gone = True
                continue
            *lines, hand.rest = (hand.rest + data).split(b"\n")
            for line in lines:
                self._take(hand, json.loads(line))

    def _take(self, hand: _Hand, message: Message) -> None:
        if "charge" in message:
            number, by = message["charge"], message.get("by")
            began, ended = message["at"]
            is_there = self.model.outcome(
                number, message["became"], (began, ended), message["tokens"], message.get("host")
            )
            if by in self._listening:
                self._expect_heard(by, number, (began, ended), is_there=is_there)
        elif "failed" in message:
            self._failed.add(message["failed"])
        elif "n" in message:
            hand.replies[message["n"]] = message
        elif "burst" in message:
            hand.bursts.discard(message["burst"])
        elif "took" in message:
            self.model.took(message["of"], message["took"])
            positions = [position for position, _ in message["took"]]
            self._took.setdefault((hand.number, message["of"]), set()).update(positions)
        elif "heard" in message:
            self._hear(message["by"], message["heard"])
        elif "worker" in message:
            hand.number, hand.pid = message["worker"], message["pid"]
            if hand.number is None:
                self._others.append(hand)
            else:
                self._hands[hand.number] = hand
        else:
            raise Found(message["surprise"])

    def _expect_heard(
        self, by: str, number: int, span: tuple[float, float], *, is_there: bool
    ) -> None:
        """A charge that was made is heard of; one that was struck, if it is there, once another was made."""
        struck = self._struck.setdefault(by, {})
        if not is_there:
            struck[number] = span[1]
            return
        due = self._due.setdefault(by, set())
        due.add(number)
        told = [one for one, ended in struck.items() if ended < span[0]]
        due.update(told)
        for one in told:
            del struck[one]

    def _hear(self, by: str, heard: list[tuple[int, int | None]]) -> None:
        last, restores = self._last_heard.get(by, (0, 0))
        for position, number in heard:
            if position < last:  # as it may be once for each restore
                restores += 1
                if restores > self._restores:
                    raise Found(f"the listener of {by} heard of {position} after {last}")
            last = position
            if number is not None:
                self._heard.setdefault(by, set()).add(number)
        self._last_heard[by] = last, restores

    def _wait(self, is_done: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + self.limit
        while not is_done():
            if time.monotonic() > deadline:
                self._dump_stacks()
                raise Found(f"hang: {otherwise}")
            self._pump(0.5)

    def _dump_stacks(self) -> None:
        for number, hand in self._hands.items():
            if number and not hand.is_gone:
                with self._errors.open("a") as errors:
                    errors.write(f"\n-- the stacks of worker {number}\n")
                os.kill(hand.pid, signal.SIGUSR2)
                time.sleep(0.3)

    # -- orders ------------------------------------------------------------------------------------

    def _order(self, worker: int, what: str, /, **arguments: Any) -> Any:
        """Tells a worker something and waits until it is done."""
        number = self._send(worker, what, **arguments)
        hand = self._hands[worker]
        self._wait(
            lambda: number in hand.replies or hand.is_gone, f"worker {worker} does not end {what}"
        )
        if number not in hand.replies:
            raise Found(f"worker {worker} died of {what}")
        reply = hand.replies.pop(number)
        if "error" in reply:
            raise Found(f"{what}: {reply['trace']}")
        return reply["said"]

    def _send(self, worker: int, what: str, /, **arguments: Any) -> int:
        self._orders += 1
        hand = self._hands[worker]
        line = json.dumps({"n": self._orders, "do": what, "with": arguments}).encode() + b"\n"
        try:
            hand.connection.sendall(line)
        except BrokenPipeError:
            raise Found(f"worker {worker} has died") from None
        return self._orders

    def _settle(self, worker: int) -> None:
        """Waits until a worker's bursts have ended."""
        hand = self._hands[worker]
        self._wait(lambda: not hand.bursts or hand.is_gone, f"the charges of {worker} do not end")

    # -- steps -------------------------------------------------------------------------------------

    def perform(self, step: Step) -> None:
        own = getattr(self, f"_{step.name}", None)
        arguments = step.arguments
        numbers = _numbers(arguments)
        self.model.sent(numbers, step.worker)
        if own is not None:
            own(step.worker, **arguments)
        else:
            self._order(step.worker, step.name, **arguments)

    def _fresh(self, worker: int) -> None:
        self._order(0, "fresh", worker=worker)
        self._wait(lambda: worker in self._hands, f"worker {worker} does not come")

    def _spawn(self, worker: int) -> None:
        self._start(worker)

    def _fork(self, worker: int, child: int) -> None:
        self._order(worker, "fork", child=child)
        self._wait(lambda: child in self._hands, f"the forked worker {child} does not come")

    def _fork_briefly(self, worker: int, **arguments: Any) -> None:
        self._order(worker, "fork_briefly", **arguments)
        numbers = arguments["numbers"]
        self._wait(lambda: not self.model.under_way(numbers), "a forked child said nothing")

    def _fork_in_work(self, worker: int, **arguments: Any) -> None:
        # Another store of the process would wait for the transaction, and the fork for that store.
        self._settle(worker)
        self._order(worker, "fork_in_work", **arguments)

    def _charge(self, worker: int, **arguments: Any) -> None:
        self._burst(worker, "charge", **arguments)

    def _strike(self, worker: int, **arguments: Any) -> None:
        self._burst(worker, "strike", **arguments)
        self._look(worker, store=arguments["store"], thread="here")

    def _burst(self, worker: int, what: str, /, *, burst: int, **arguments: Any) -> None:
        """An order whose charges go on after it was answered."""
        hand = self._hands[worker]
        self._wait(
            lambda: len(hand.bursts) < _MOST_BURSTS, f"the charges of worker {worker} do not end"
        )
        hand.bursts.add(burst)
        self._order(worker, what, burst=burst, **arguments)

    def _kill(self, worker: int, after: float) -> None:
        self._pump(min(after, 0.02))
        hand = self._hands[worker]
        os.kill(hand.pid, signal.SIGKILL)
        self._gone(worker)

    def _leave(self, worker: int) -> None:
        self._send(worker, "leave")
        self._gone(worker)

    def _gone(self, worker: int) -> None:
        hand = self._hands[worker]
        self._wait(lambda: hand.is_gone, f"worker {worker} does not end")
        del self._hands[worker]
        hand.connection.close()
        self.model.died(worker)
        for by in [by for by in self._due if by.startswith(f"{worker}/")]:
            del self._due[by]  # what its listeners heard is gone with it
        for process in self._processes[1:]:
            if process.pid == hand.pid:
                process.wait(self.limit)
                self._processes.remove(process)

    def _stop(self, worker: int, seconds: float) -> None:
        pid = self._hands[worker].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            ends = time.monotonic() + seconds
            while (left := ends - time.monotonic()) > 0:
                self._pump(left)
        finally:
            os.kill(pid, signal.SIGCONT)

    def _backup(self, worker: int, store: int, to: str, how: str) -> None:
        path = self.folder / to
        began, _ = self._order(worker, "backup", store=store, to=str(path), how=how)
        self.model.backed_up(path, began)

    def _restore(self, worker: int, store: int, source: str, how: str) -> None:
        path = self.folder / source
        self._restores += 1
        span = self._order(worker, "restore", store=store, source=str(path), how=how)
        self._due.clear()
        self._struck.clear()
        self.model.restored(path, tuple(span))

    def _export(self, worker: int, folder: str, **arguments: Any) -> None:
        self._order(worker, "export", folder=str(self.folder / folder), **arguments)

    def _aside(self, worker: int, folder: str, what: str, backup: str) -> None:
        place, source = self.folder / folder, self.folder / backup
        self._order(worker, "aside", folder=str(place), what=what, backup=str(source))

    def _prune(self, worker: int, store: int) -> None:
        if self._quiet_ms:
            self.model.pruned(self._quiet_ms)
            self._order(worker, "prune", store=store, before_ms=self._quiet_ms)

    def _listen(self, worker: int, store: int, calls: bool) -> None:
        self._settle(worker)
        self._last_heard[f"{worker}/{store}"] = 0, self._restores
        self._order(worker, "listen", store=store, calls=calls)
        self._listening.add(f"{worker}/{store}")

    def _meter(self, worker: int, **arguments: Any) -> None:
        said = self._order(worker, "meter", **arguments)
        if said["found"] != said["due"]:
            raise Found(
                f"a meter charged tokens, seconds, notices {said['found']}, due {said['due']}"
            )

    def _drain(self, worker: int, store: int, name: str) -> None:
        position = self._order(worker, "drain", store=store, name=name)
        if position is not None:
            self.model.check_taken(name, position, self.path)

    def _overtake(
        self, worker: int, store: int, other: int, its_store: int, name: str, numbers: list[int]
    ) -> None:
        """Stops the holder of a name until another one has taken over, and lets it go on."""
        pair = (worker, store), (other, its_store)
        for (holder, held), (waiting, open_) in (pair, pair[::-1]):
            self._settle(holder)
            if self._order(holder, "holds", store=held, name=name):
                self._stop_holder(holder, held, waiting, open_, name, numbers)
                return
        self._order(other, "charge_here", store=its_store, numbers=numbers)

    def _stop_holder(
        self, holder: int, held: int, waiting: int, store: int, name: str, numbers: list[int]
    ) -> None:
        pid = self._hands[holder].pid
        while True:
            os.kill(pid, signal.SIGSTOP)
            self._wait_until_stopped(pid)
            if self._can_be_written_to():
                break
            os.kill(pid, signal.SIGCONT)
            self._pump(0.01)
        try:
            before = self._order(waiting, "last_position", store=store)
            self._order(waiting, "charge_here", store=store, numbers=numbers)
            self._took.clear()
            ends = time.monotonic() + self.limit / 2
            position = None
            while position is None and time.monotonic() < ends:
                self._pump(0.05)
                position = self._order(waiting, "drain", store=store, name=name)
        finally:
            os.kill(pid, signal.SIGCONT)
        self._order(holder, "drain", store=held, name=name)
        again = [
            one for one in self._took.get((holder, name), ()) if before < one <= (position or 0)
        ]
        if again:
            raise Found(f"{name} was handed {again} by one whose name another had taken over")

    def _wait_until_stopped(self, pid: int) -> None:
        """A thread in the kernel, or one that waits for a processor, stops later and may get a lock first."""
        ends = time.monotonic() + self.limit
        while time.monotonic() < ends:
            states: list[str] = []
            for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    states.append(stat.read_text().rpartition(")")[2].split()[0])
            if all(state in "TtZX" for state in states):
                return
            time.sleep(0.001)

    def _can_be_written_to(self) -> bool:
        with contextlib.closing(sqlite3.connect(self.path, timeout=1)) as raw:
            try:
                raw.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            return True

    def _look(self, worker: int, **arguments: Any) -> None:
        said = self._order(worker, "look", **arguments)
        try:
            self.model.looked(said["at"], said["tokens"])
        except Found as found:
            self.model.check(self.path, is_quiet=False)
            again = self._order(worker, "look", **arguments)
            raise Found(
                f"{found}; in the database it is; looking again: {again['tokens']}"
            ) from None

    def _checkpoint(self, _worker: int, is_quiet: bool) -> None:
        workers = [number for number in self._hands if number]
        if is_quiet:
            for worker in workers:
                self._settle(worker)
            for worker in workers:
                self._order(worker, "ready")
            self._wait(lambda: not self.model.under_way(), "charges of which nothing is known")
            self._quiet_ms = time.time_ns() // 1_000_000
        for worker in workers:
            self._order(worker, "reap")
        self.model.check(self.path, is_quiet=is_quiet)
        if is_quiet:
            self._check_heard()

    def _check_heard(self) -> None:
        for by, due in self._due.items():
            there = self.model.kept(due, not_at=self._failed)
            if missing := there - self._heard.get(by, set()):
                raise Found(
                    f"the listener of {by} never heard of the charges {sorted(missing)[:10]}"
                )
        self._due.clear()
        self._struck.clear()
        self._failed.clear()
        self._heard.clear()


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _numbers(arguments: dict[str, Any]) -> list[int]:
    """The charges that a step makes."""
    numbers = [number for lane in arguments.get("lanes", ()) for number in lane]
    numbers += [number for number in arguments.get("numbers", ()) if number]
    numbers += [arguments[name] for name in ("number", "extra") if arguments.get(name)]
    return numbers


def run(
    seed: int,
    count: int,
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
    fault: str = "",
    limit: float = LIMIT_SECONDS,
) -> Done:
    """Runs so many steps of the plan of a seed on a new database.

    Raises:
        Found: something was not as it must be.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        machine = Machine(Path(folder), seed, fault=fault, limit=limit)
        try:
            machine.run(Plan(seed, only=only, without=without), count)
        finally:
            machine.close()
    return Done(machine.steps, machine.model.made, time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--without", default="")
    parser.add_argument("--fault", default="")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS)
    options = parser.parse_args()
    try:
        done = run(
            options.seed,
            options.steps,
            only=tuple(filter(None, options.only.split(","))),
            without=tuple(filter(None, options.without.split(","))),
            fault=options.fault,
            limit=options.limit,
        )
    except Found as found:
        sys.exit(str(found))
    total = sum(done.steps.values())
    print(f"{total} steps, {done.charges} charges made, {total / done.seconds:.0f} steps a second")
    print(json.dumps(dict(done.steps.most_common())))


if __name__ == "__main__":
    main()
