"""The sequence of steps: random, and determined by the seed alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tests.proof.chaos.strikes import STRIKES

__all__ = ["Plan", "Step"]

MOST_WORKERS: Final = 4
MOST_STORES: Final = 3
CONSUMERS: Final = ("audit", "billing")
FAILURES: Final = ("error", "cancelled", "exit", "interrupt", "request", "database")


class Step(NamedTuple):
    """One step. One that charges counts as many steps as it makes charges."""

    name: str
    worker: int = 0
    arguments: dict[str, Any] = {}
    count: int = 1


@dataclass(slots=True)
class _Store:
    is_on_engine: bool = False
    listens: bool = False
    consumes: set[str] = field(default_factory=set[str])


class Plan:
    """Draws steps, keeping in mind which workers and stores there are by then."""

    def __init__(
        self, seed: int, *, only: Collection[str] = (), without: Collection[str] = ()
    ) -> None:
        """
        Args:
            seed: it determines everything.
            only: draw only these steps, and those that make workers and stores.
            without: never draw these.
        """
        self._draw = random.Random(seed)
        self._workers: dict[int, dict[int, _Store]] = {}
        self._last = {"worker": 0, "store": 0, "charge": 0, "burst": 0, "file": 0, "thread": 0}
        self._backups: list[str] = []
        self._worker = 0
        self._follows: tuple[str, int] | None = None
        self._weights = {
            name: weight
            for name, weight in _WEIGHTS.items()
            if (not only or name in only or name in _NEEDED) and name not in without
        }

    def steps(self, count: int) -> Iterator[Step]:
        """Steps without end until so many were drawn, counting charges."""
        done = since_checkpoint = 0
        while done < count:
            if not self._workers:
                step = self._fresh()
            else:
                step = self._next()
                if step is None:
                    continue
            yield step
            done += step.count
            since_checkpoint += 1
            if since_checkpoint >= self._draw.randint(15, 60):
                since_checkpoint = 0
                is_quiet = self._draw.random() < 0.5
                yield Step("checkpoint", 0, {"is_quiet": is_quiet})
                done += 1
        yield Step("checkpoint", 0, {"is_quiet": True})

    def _next(self) -> Step | None:
        (name,) = self._draw.choices(list(self._weights), self._weights.values())
        self._worker = self._draw.choice(list(self._workers))
        if self._follows is not None:
            (name, self._worker), self._follows = self._follows, None
        if not self._stores and name not in ("fresh", "spawn", "leave", "kill"):
            return self._open()
        make: Callable[[], Step | None] = getattr(self, f"_{name}")
        return make()

    # -- what there is -----------------------------------------------------------------------------

    @property
    def _stores(self) -> dict[int, _Store]:
        return self._workers[self._worker]

    def _store(self) -> int:
        return self._draw.choice(list(self._stores))

    def _struck_store(self) -> int | None:
        """A store of our own: a host's pool of connections may lose count when it is struck."""
        own = [number for number, store in self._stores.items() if not store.is_on_engine]
        heard = [number for number in own if self._stores[number].listens]
        if heard and self._chance(0.7):
            own = heard  # more can go wrong there
        return self._draw.choice(own) if own else None

    def _number(self, of: str) -> int:
        self._last[of] += 1
        return self._last[of]

    def _charges(self, count: int) -> list[int]:
        return [self._number("charge") for _ in range(count)]

    def _one_of(self, *values: str) -> str:
        return self._draw.choice(values)

    def _chance(self, probability: float) -> bool:
        return self._draw.random() < probability

    def _tell(self, what: str, /, *, count: int = 1, **arguments: Any) -> Step:
        return Step(what, self._worker, arguments, count)

    # -- workers -----------------------------------------------------------------------------------

    def _fresh(self) -> Step | None:
        if len(self._workers) >= MOST_WORKERS:
            return None
        self._worker = self._number("worker")
        self._workers[self._worker] = {}
        return Step("fresh", self._worker)

    def _spawn(self) -> Step | None:
        step = self._fresh()
        return step and step._replace(name="spawn")

    def _fork(self) -> Step | None:
        if len(self._workers) >= MOST_WORKERS:
            return None
        child = self._number("worker")
        self._workers[child] = {
            number: _Store(store.is_on_engine) for number, store in self._stores.items()
        }
        return self._tell("fork", child=child)

    def _kill(self) -> Step:
        del self._workers[self._worker]
        return self._tell("kill", after=self._draw.expovariate(200))

    def _leave(self) -> Step:
        del self._workers[self._worker]
        return self._tell("leave")

    def _stop(self) -> Step:
        return self._tell("stop", seconds=self._draw.uniform(0.001, 0.03))

    def _fork_briefly(self) -> Step:
        count = self._draw.randint(1, 5)
        return self._tell(
            "fork_briefly",
            count=count,
            store=self._store(),
            numbers=self._charges(count),
            how=self._one_of("own", "inherited"),
            end=self._one_of("close", "exit", "thread"),
            beside=self._one_of("", "open", "read"),
        )

    def _fork_in_work(self) -> Step | None:
        store = self._store()
        if any(state.consumes for other, state in self._stores.items() if other != store):
            return None  # the consumer waits for the transaction, the fork for the consumer
        return self._tell("fork_in_work", store=store, number=self._number("charge"))

    # -- stores ------------------------------------------------------------------------------------

    def _open(self) -> Step | None:
        if len(self._stores) >= MOST_STORES:
            return None
        store = self._number("store")
        how = self._one_of("here", "here", "thread", "engine")
        self._stores[store] = _Store(how == "engine")
        return self._tell(
            "open",
            store=store,
            how=how,
            durability="full" if self._chance(0.1) else "normal",
        )

    def _open_close(self) -> Step:
        return self._tell(
            "open_close", number=self._number("charge"), how=self._one_of("here", "thread")
        )

    def _close(self) -> Step:
        store = self._store()
        del self._stores[store]
        return self._tell("close", store=store, how=self._one_of("here", "thread"))

    def _abandon(self) -> Step | None:
        store = self._store()
        if self._stores[store].consumes:
            return None
        del self._stores[store]
        return self._tell("abandon", store=store)

    # -- charges -----------------------------------------------------------------------------------

    def _lanes(self) -> tuple[list[list[int]], int]:
        lanes = [
            self._charges(self._draw.randint(1, 6)) for _ in range(self._draw.choice((1, 1, 2, 4)))
        ]
        return lanes, sum(map(len, lanes))

    def _charge(self) -> Step:
        lanes, count = self._lanes()
        return self._tell(
            "charge",
            count=count,
            store=self._store(),
            burst=self._number("burst"),
            lanes=lanes,
            kinds=[],
            pause=self._draw.choice((0, 0, 0, 0.001)),
        )

    def _charge_struck(self) -> Step | None:
        if (store := self._struck_store()) is None:
            return None
        lanes, count = self._lanes()
        return self._tell(
            "charge",
            count=count,
            store=store,
            burst=self._number("burst"),
            lanes=lanes,
            kinds=self._kinds(self._draw.randint(1, 5)),
            pause=0,
        )

    def _charge_here(self) -> Step:
        count = self._draw.randint(1, 6)
        return self._tell(
            "charge_here", count=count, store=self._store(), numbers=self._charges(count)
        )

    # -- strikes -----------------------------------------------------------------------------------

    def _kinds(self, count: int) -> list[str]:
        return [self._one_of(*STRIKES) for _ in range(count)]

    def _whens(self, count: int, what: str) -> list[float]:
        """Points of a call, or (over 50,000) the seconds until a signal: as often at its beginning, and at
        its end, as anywhere.
        """
        most = _POINTS.get(what, 100)
        uniform = self._draw.uniform
        return [
            self._draw.choice((uniform(1, most), uniform(1, 30), uniform(0.8 * most, most)))
            for _ in range(count)
        ]

    def _strike(self) -> Step | None:
        if (store := self._struck_store()) is None:
            return None
        what = self._one_of(
            *("charge",) * 8,
            *("verify",) * 2,
            *("open",) * 2,
            *("get", "goals", "events", "export", "listen", "backup"),
        )
        if what == "open" and "fork_briefly" in self._weights:
            self._follows = "fork_briefly", self._worker  # what was lost of it shows there
        if what == "charge":
            count = self._draw.randint(1, 10)
            numbers = self._charges(count)
        else:
            count = self._draw.randint(5, 20 if what in ("open", "backup") else 50)
            numbers = [0] * count
        how = self._one_of("counted", "counted", "committed", "timer")
        if self._stores[store].listens and self._chance(0.6):
            how = "committed"  # where listeners are told
        lanes = [self._charges(self._draw.randint(3, 10)) for _ in range(self._draw.choice((0, 3)))]
        return self._tell(
            "strike",
            count=max(count * (what == "charge"), 1) + sum(map(len, lanes)),
            store=store,
            what=what,
            numbers=numbers,
            how=how,
            when=self._whens(count, what),
            kinds=self._kinds(count),
            burst=self._number("burst"),
            lanes=lanes,
        )

    def _handler(self) -> Step | None:
        if (store := self._struck_store()) is None:
            return None
        count = self._draw.randint(1, 5)
        other = store
        what = self._one_of("charge", "get", "close")
        if what == "get":
            other = self._store()  # a change by another store would wait for this one's transaction
        if what == "close":
            del self._stores[other]
        return self._tell(
            "handler",
            count=count + (what == "charge"),
            store=store,
            other=other,
            numbers=self._charges(count),
            extra=self._number("charge") if what == "charge" else 0,
            how=self._one_of("counted", "counted", "timer"),
            when=self._whens(1, "charge")[0],
            what=what,
        )

    def _nested(self) -> Step:
        return self._tell(
            "nested", store=self._store(), what=self._one_of("get", "charge", "transact")
        )

    # -- copies ------------------------------------------------------------------------------------

    def _backup(self) -> Step:
        name = f"backup-{self._number('file')}.db"
        self._backups.append(name)
        how = self._one_of("call", "call", "inside")
        return self._tell("backup", store=self._store(), to=name, how=how)

    def _restore(self) -> Step:
        if not self._backups:
            return self._backup()
        source = self._draw.choice(self._backups[-3:])
        how = self._one_of("call", "call", "inside")
        return self._tell("restore", store=self._store(), source=source, how=how)

    def _export(self) -> Step:
        folder = f"export-{self._number('file')}"
        return self._tell("export", store=self._store(), folder=folder, cut=self._draw.random())

    def _aside(self) -> Step:
        if not self._backups:
            return self._backup()
        what = self._one_of("replaced", "replaced", "without its version", "autogenerated")
        folder = f"aside-{self._number('file')}"
        return self._tell(
            "aside", folder=folder, what=what, backup=self._draw.choice(self._backups)
        )

    def _prune(self) -> Step:
        return self._tell("prune", store=self._store())

    def _cli(self) -> Step:
        return self._tell("cli", how="inside", command=self._command())

    def _cli_process(self) -> Step:
        return self._tell("cli", how="process", command=self._command())

    def _command(self) -> list[str]:
        return self._draw.choice((["list"], ["verify"], ["events"], ["show", "thread-0"]))

    def _vacuum(self) -> Step:
        return self._tell("vacuum")

    # -- hosts, and who is told --------------------------------------------------------------------

    def _host(self) -> Step:
        how = self._one_of("commit", "commit", "rollback", "savepoint", "autocommit", "kept")
        return self._tell("host", number=self._number("charge"), how=how)

    def _listen(self) -> Step | None:
        store = self._store()
        if self._stores[store].listens:
            return None
        self._stores[store].listens = True
        return self._tell("listen", store=store, calls=self._chance(0.5))

    def _consume(self) -> Step | None:
        store, name = self._store(), self._one_of(*CONSUMERS)
        consumes = self._stores[store].consumes
        if name in consumes:
            consumes.remove(name)
            return self._tell("unconsume", store=store, name=name)
        consumes.add(name)
        fails = {str(n): self._one_of(*FAILURES) for n in range(1, 9) if self._chance(0.2)}
        return self._tell("consume", store=store, name=name, fails=fails)

    def _consuming(self) -> list[tuple[int, int, str]]:
        return [
            (worker, store, name)
            for worker, stores in self._workers.items()
            for store, state in stores.items()
            for name in sorted(state.consumes)
        ]

    def _drain(self) -> Step | None:
        if not (consuming := self._consuming()):
            return self._consume()
        self._worker, store, name = self._draw.choice(consuming)
        return self._tell("drain", store=store, name=name)

    def _overtake(self) -> Step | None:
        """One who holds a name is stopped for longer than its lease, beside one who waits for it."""
        if not (consuming := self._consuming()):
            return self._consume()
        self._worker, store, name = self._draw.choice(consuming)
        waiting = [one for one in consuming if one[0] != self._worker and one[2] == name]
        if waiting:
            other, its_store, _ = self._draw.choice(waiting)
            return self._tell(
                "overtake",
                count=4,
                store=store,
                other=other,
                its_store=its_store,
                name=name,
                numbers=self._charges(3),
            )
        others = [number for number, stores in self._workers.items() if stores]
        self._worker = self._draw.choice(others)
        store = self._store()
        if name in self._stores[store].consumes:
            return None
        self._stores[store].consumes.add(name)
        return self._tell("consume", store=store, name=name, fails={})

    def _meter(self) -> Step | None:
        if (store := self._struck_store()) is None:
            return None
        count = self._draw.randint(3, 8)
        return self._tell(
            "meter",
            count=count,
            store=store,
            thread_id=f"metered-{self._number('thread')}",
            how=self._one_of("counted", "counted", "committed", "timer"),
            when=self._whens(count, "meter"),
            kinds=self._kinds(count),
        )

    def _look(self) -> Step:
        return self._tell("look", store=self._store(), thread=self._one_of("here", "thread"))

    def _verify(self) -> Step:
        return self._tell("verify", store=self._store())


_POINTS: Final = {"charge": 105, "meter": 200, "open": 300, "export": 190, "backup": 150}
"""So many points are there in a call, about, at which an exception can strike."""

_NEEDED: Final = {"fresh", "open", "charge", "look"}

_WEIGHTS: Final[dict[str, float]] = {
    "charge": 20,
    "charge_here": 6,
    "charge_struck": 6,
    "strike": 14,
    "handler": 6,
    "nested": 1,
    "fresh": 4,
    "spawn": 0.4,
    "fork": 3,
    "fork_briefly": 3,
    "fork_in_work": 1,
    "kill": 2,
    "leave": 1,
    "stop": 2,
    "open": 5,
    "open_close": 4,
    "close": 3,
    "abandon": 2,
    "backup": 1.5,
    "restore": 2,
    "export": 2,
    "aside": 2.5,
    "prune": 1,
    "vacuum": 0.7,
    "cli": 2.5,
    "cli_process": 0.2,
    "host": 4,
    "listen": 6,
    "consume": 2,
    "drain": 4,
    "overtake": 1.5,
    "meter": 3,
    "look": 6,
    "verify": 2,
}
