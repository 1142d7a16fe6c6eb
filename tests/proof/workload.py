"""A random workload over every operation, and the state that is expected after each of its calls.

A workload has lanes. Each is a sequence of calls on threads of its own, made one after the other, whose n-th
call is determined by the seed and n alone. So the expected state of a lane after n calls is known without
looking at the store under test: it is what the same calls leave in a store in memory.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, cast

from goal_state import GoalEvent, GoalStore, RequestError, ThreadUsage, TokenUsage
from goal_state.delivery.consumers import Consumer
from goal_state.domain.requests import Charge
from goal_state.operations.goal_operations import GoalOperations
from goal_state.storage.sqlite.connections import create_engine
from tests.in_memory import open_in_memory
from tests.processes import PATIENCE_SECONDS

__all__ = [
    "CONSUMER",
    "Ack",
    "Acks",
    "Call",
    "Due",
    "State",
    "call",
    "perform",
    "read_state",
    "run",
    "shorten_leases",
]

CONSUMER: Final = "audit"
"""The name under which the log is consumed meanwhile."""

THREADS_OF_LANE: Final = 3
STATUSES: Final = ("active", "paused", "blocked", "usage_limited", "budget_limited", "complete")
MODES: Final = ("active_status_only", "active_only", "active_or_complete", "active_or_stopped")
NO_SUCH_GOAL: Final = "00000000-0000-7000-8000-000000000000"


# -- calls -------------------------------------------------------------------------------------------


class Undone(Exception):  # noqa: N818
    """Ends a transaction so that nothing of it stays."""


class Call(NamedTuple):
    """One call. Those of a transaction are in `parts`; `is_undone` if it fails after the last of them."""

    name: str
    arguments: dict[str, Any] = {}
    parts: tuple[Call, ...] = ()
    is_undone: bool = False


def call(seed: int, lane: int, number: int) -> Call:
    """The call of this number, from 1, of a lane."""
    draw = random.Random(f"{seed} {lane} {number}")
    if draw.random() < 0.12:
        parts = tuple(_single(draw, lane, number) for _ in range(draw.randint(2, 5)))
        return Call("transact", {}, parts, draw.random() < 0.3)
    return _single(draw, lane, number)


_WEIGHTS: Final = {
    "create": 4,
    "replace": 2,
    "set": 4,
    "resume": 3,
    "charge": 8,
    "charge_many": 2,
    "record_total": 5,
    "set_baseline": 1,
    "reconcile": 2,
    "clear": 2,
}


def _single(draw: random.Random, lane: int, number: int) -> Call:
    name = draw.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    arguments: dict[str, Any] = {"thread_id": _thread(draw, lane)}
    turn_id = draw.choice((None, f"turn-{number}"))
    budget = draw.choice((None, draw.randint(1, 60), draw.randint(100, 5_000)))
    match name:
        case "create" | "replace":
            arguments |= {
                # Some take pages of their own beside the row.
                "objective": f"Objective {number} " + "o" * draw.choice((0, 0, 200, 3_900)),
                "token_budget": budget,
                "status": draw.choice(("active", "active", *STATUSES)),
            }
        case "set":
            arguments |= draw.choice(
                (
                    {"objective": f"Objective {number}", "token_budget": budget},
                    {"status": draw.choice(STATUSES)},
                    {"token_budget": budget},
                    {"status": "blocked", "blocked_reason": f"waits for {number}"},
                    {"status": "usage_limited", "resume_at": datetime(2031, 5, 6, tzinfo=UTC)},
                )
            )
        case "resume":
            arguments |= draw.choice(({}, {"token_budget": budget}))
        case "charge":
            arguments |= _charge(draw)
        case "charge_many":
            charges = [_charge(draw) for _ in range(draw.randint(1, 12))]
            threads = [_thread(draw, lane) for _ in charges]
            return Call(name, {"charges": list(zip(threads, charges, strict=True))})
        case "record_total" | "set_baseline" | "reconcile":
            arguments["total"] = _total(draw, number)
        case _:
            pass
    if name in ("set", "resume", "charge", "record_total", "clear") and draw.random() < 0.3:
        arguments["expected_goal_id"] = draw.choice((CURRENT, CURRENT, NO_SUCH_GOAL))
    return Call(name, arguments | {"turn_id": turn_id})


CURRENT: Final = "the current one"


def _thread(draw: random.Random, lane: int) -> str:
    return f"{lane}-{draw.randrange(THREADS_OF_LANE)}"


def _charge(draw: random.Random) -> dict[str, Any]:
    charge: dict[str, Any] = {"mode": draw.choice(MODES)}
    if draw.random() < 0.4:
        key = draw.randrange(200)
        # Now and then the key of a charge of other amounts, which is refused.
        amount = key if draw.random() < 0.9 else key + 1
        charge |= {"tokens": amount, "seconds": amount / 10, "idempotency_key": f"key-{key}"}
    else:
        charge |= {"tokens": draw.randint(0, 40), "seconds": draw.choice((0, 1.5, 60))}
    return charge


def _total(draw: random.Random, number: int) -> TokenUsage | ThreadUsage:
    begun = draw.choice((number, number, number, number // 2))
    total = TokenUsage(begun * 11, begun * 3, begun, begun * 2, begun)
    return total if draw.random() < 0.5 else ThreadUsage(total, TokenUsage(1, 0, 0, 1), 272_000)


def perform(store: GoalStore, call: Call) -> None:
    """Makes the call. That it is refused is one way to answer it."""
    try:
        if call.name == "transact":
            store.transact(lambda repository: _perform_parts(repository, call))
        else:
            _perform(store, call)
    except (RequestError, Undone):
        pass


def _perform_parts(repository: GoalOperations, call: Call) -> None:
    for part in call.parts:
        _perform(repository, part)
    if call.is_undone:
        raise Undone


def _perform(target: GoalOperations, call: Call) -> None:
    arguments = dict(call.arguments)
    if call.name == "charge_many":
        target.charge_many(Charge(thread, **charge) for thread, charge in arguments["charges"])
        return
    if arguments.get("expected_goal_id") == CURRENT:
        goal = cast(Any, target).get(arguments["thread_id"])
        arguments["expected_goal_id"] = NO_SUCH_GOAL if goal is None else goal.goal_id
    getattr(target, call.name)(**arguments)


# -- the state that is due ---------------------------------------------------------------------------


class State(NamedTuple):
    """What a lane has left behind: ids by their order, and no times of day."""

    events: int
    digest_of_events: str
    goals: tuple[tuple[Any, ...], ...]
    usage: tuple[tuple[Any, ...], ...]


_TIMES: Final = {"created_at_ms", "updated_at_ms", "occurred_at_ms"}


class _Reader:
    """Reads a lane's state again and again, its events only once."""

    def __init__(self, connection: sqlite3.Connection, lane: int) -> None:
        self._connection = connection
        self._pattern = f"{lane}-*"
        self._position = 0
        self._events = 0
        self._digest = hashlib.sha256()
        self._goals: dict[str, int] = {}

    def read(self) -> State:
        for row in self._rows("goal_state_events", "position > ? AND", self._position):
            self._position = row.pop("position")
            del row["event_id"]
            self._events += 1
            self._goals.setdefault(row["goal_id"], len(self._goals) + 1)
            self._digest.update(repr(self._plain(row)).encode())
        return State(
            self._events,
            self._digest.hexdigest(),
            tuple(self._plain(row) for row in self._rows("goal_state_goals")),
            tuple(self._plain(row) for row in self._rows("goal_state_baselines")),
        )

    def _rows(self, table: str, condition: str = "", *values: int) -> list[dict[str, Any]]:
        cursor = self._connection.execute(
            f"SELECT * FROM {table} WHERE {condition} thread_id GLOB ? ORDER BY "
            + ("position" if table == "goal_state_events" else "thread_id"),
            (*values, self._pattern),
        )
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _plain(self, row: dict[str, Any]) -> tuple[Any, ...]:
        """The values of a row; a goal stands as the number that it has among the lane's."""
        return tuple(
            self._goals.get(value, value) if name in ("goal_id", "replaced_goal_id") else value
            for name, value in row.items()
            if name not in _TIMES
        )


def read_state(connection: sqlite3.Connection, lane: int) -> State:
    """What the lane has left behind in a database."""
    return _Reader(connection, lane).read()


class Due:
    """The states that are due after each call of a workload's lanes."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._engine = create_engine(":memory:")
        self._store = open_in_memory(self._engine)
        self._raw = self._engine.raw_connection()
        self._readers: dict[int, _Reader] = {}
        self._states: dict[int, list[State]] = {}

    def state(self, lane: int, number: int) -> State:
        """What the lane has left behind after so many calls."""
        if lane not in self._states:
            self._readers[lane] = _Reader(cast(Any, self._raw.driver_connection), lane)
            self._states[lane] = [self._readers[lane].read()]
        states = self._states[lane]
        while len(states) <= number:
            perform(self._store, call(self._seed, lane, len(states)))
            states.append(self._readers[lane].read())
        return states[number]

    def close(self) -> None:
        self._store.close()
        self._raw.close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- acknowledgements --------------------------------------------------------------------------------


class Ack(NamedTuple):
    """What the program under test said: `opened`, `done` (lane, number), `heard` or `took` (position, id)."""

    what: str
    number: int = 0
    detail: str = ""

    def line(self) -> bytes:
        return f"{self.what} {self.number} {self.detail}\n".encode()


class Acks:
    """What a program has said by a moment, taken apart."""

    def __init__(self) -> None:
        self.opened = False
        self.done: dict[int, int] = {}
        self.heard: list[tuple[int, str]] = []
        self.took: list[tuple[int, str]] = []

    def add(self, lines: bytes) -> None:
        """Takes whole lines."""
        for line in lines.decode().splitlines():
            what, number, detail = line.split(" ", 2)
            match what:
                case "opened":
                    self.opened = True
                case "done":
                    self.done[int(detail)] = int(number)
                case "heard":
                    self.heard.append((int(number), detail))
                case "took":
                    self.took.append((int(number), detail))
                case _:
                    raise AssertionError(line)


# -- the program under test --------------------------------------------------------------------------


def run(
    path: Path,
    acks: int,
    *,
    seed: int,
    done: dict[int, int],
    calls: int,
    durability: Any = "full",
    around_sink: Callable[[str], None] = lambda point: None,
) -> None:
    """Opens a store and makes the next calls of each lane, every lane on a thread of its own, with a
    listener and a consumer, and writes what was acknowledged to a file descriptor.

    `done` says how many calls of each lane were made before.
    """

    def acknowledge(*said: Ack) -> None:
        os.write(acks, b"".join(ack.line() for ack in said))

    def hear(event: GoalEvent) -> None:
        acknowledge(Ack("heard", event.position, event.event_id))

    def take(events: Sequence[GoalEvent]) -> None:
        around_sink("before the sink")
        acknowledge(*(Ack("took", event.position, event.event_id) for event in events))
        around_sink("after the sink")

    def follow(lane: int, made: int) -> None:
        for number in range(made + 1, made + calls + 1):
            perform(store, call(seed, lane, number))
            acknowledge(Ack("done", number, str(lane)))

    with GoalStore.open(path, durability=durability) as store:
        acknowledge(Ack("opened"))
        store.subscribe(hear)
        consumer = store.consume(CONSUMER, take, batch_size=7)
        with ThreadPoolExecutor(len(done)) as pool:
            for lane in [pool.submit(follow, *lane) for lane in done.items()]:
                lane.result()
        assert consumer.drain(PATIENCE_SECONDS)


def shorten_leases(seconds: float) -> None:
    """Lets the consumers of this process, which is killed, hold their names for less than they would."""
    Consumer.__init__ = functools.partialmethod(Consumer.__init__, lease_seconds=seconds)  # type: ignore[method-assign,assignment]
