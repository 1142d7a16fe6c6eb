"""What a user would take instead, each recording one charge durably in a file, in its own way.

Every connection that they open is tuned as ours is (WAL, `synchronous=NORMAL`, the same checkpoints): that
is more than most of them do by themselves, and it leaves what they cost, not what a sync costs.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import sqlite3
import sqlite3.dbapi2
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks import peer_charges
from benchmarks.by_hand import new_file
from benchmarks.measure import Figure, Scale, Spread, interleaved, ratios
from benchmarks.peer_charges import THREADS, Charge
from goal_state import GoalStore, TokenUsage

__all__ = ["run"]

GROUP = "peers"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another library, and how it is used for a charge."""

    name: str
    package: str
    """As it is called where packages are installed from."""
    call: str
    less: str
    """What its call does less than `charge`."""
    set_up: Callable[[Path, ExitStack], Charge]
    shares: Literal["charge", "part of charge", "set_baseline"]
    """Which of our calls does the work that it shares. One that keeps a ledger, an event or a status rule
    does what `charge` does; one that overwrites a row, and no more, does what `set_baseline` does.
    """


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    # A process for each: some keep threads running or change what the whole process uses.
    context = multiprocessing.get_context("spawn")
    for number, peer in enumerate(PEERS):
        place = directory / str(number)
        place.mkdir()
        try:
            version(peer.package)
            with ProcessPoolExecutor(1, mp_context=context) as process:
                taken = process.submit(_measure, number, place, scale).result()
        except PackageNotFoundError:
            yield Figure(GROUP, peer.name, [], note="not installed")
        except Exception as error:  # a peer that breaks is a line of the report, not its end
            yield Figure(GROUP, peer.name, [], note=f"failed: {type(error).__name__}: {error}")
        else:
            yield from _figures(peer, taken)


def _measure(number: int, place: Path, scale: Scale) -> dict[str, list[float]]:
    """Seconds per call of one peer and of our calls, side by side."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    peer = PEERS[number]
    with ExitStack() as stack:
        store = stack.enter_context(
            GoalStore.open(new_file(place / "ours.db", THREADS), durability="normal")
        )
        theirs = place / "theirs"
        theirs.mkdir()
        # For as long as it runs: some open their connections thread by thread.
        stack.enter_context(_tuned_connections())
        charge = peer.set_up(theirs, stack)
        charged, ours, overwritten = (itertools.cycle(THREADS) for _ in range(3))
        totals = itertools.count(1)
        return interleaved(
            {
                peer.name: lambda: charge(next(charged)),
                "charge": lambda: store.charge(
                    next(ours), tokens=100, seconds=0.25, turn_id="turn-1"
                ),
                "set_baseline": lambda: store.set_baseline(
                    next(overwritten), TokenUsage(next(totals)), turn_id="turn-1"
                ),
            },
            rounds=scale.rounds,
            turns=max(scale.turns // 2, 1),
            calls=max(scale.calls // 2, 1),
        )


def _figures(peer: Peer, taken: dict[str, list[float]]) -> Iterator[Figure]:
    median = {name: Spread.of(seconds).median * 1e6 for name, seconds in taken.items()}
    targets = {
        "charge": {"charge": 3.0},
        "part of charge": {"charge": 1.0},
        "set_baseline": {"set_baseline": 1.0, "charge": None},
    }
    for ours, target in targets[peer.shares].items():
        yield Figure(
            GROUP,
            f"{peer.name} {version(peer.package)}: {peer.call}",
            ratios(taken[peer.name], taken[ours]),
            reference=f"{ours}, NORMAL",
            target=target,
            sense="at least",
            behind=f"{median[peer.name]:.0f} / {median[ours]:.0f} µs",
            note=peer.less,
        )


@contextmanager
def _tuned_connections() -> Iterator[None]:
    """Whoever opens a connection of `sqlite3` meanwhile gets one that is set up as ours are."""
    plain = sqlite3.connect

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = plain(*args, **kwargs)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "wal_autocheckpoint = 4000"):
            connection.execute(f"PRAGMA {pragma}").close()
        return connection

    sqlite3.connect = sqlite3.dbapi2.connect = connect
    try:
        yield
    finally:
        sqlite3.connect = sqlite3.dbapi2.connect = plain


PEERS: Final = (
    Peer(
        "eventsourcing",
        "eventsourcing",
        "Repository.get (cached), aggregate event, Application.save",
        "no row of the present state, no idempotency key; its aggregate cache is on",
        peer_charges.eventsourcing,
        "charge",
    ),
    Peer(
        "openai-agents",
        "openai-agents",
        "AdvancedSQLiteSession.store_run_usage",
        "no event, no status rule; replaces the turn's counters instead of adding; swallows errors",
        peer_charges.openai_agents,
        "charge",
    ),
    Peer(
        "langgraph SqliteSaver",
        "langgraph-checkpoint-sqlite",
        "SqliteSaver.put",
        "a blind write of the whole state: no read, no rule; the caller adds up",
        peer_charges.langgraph_saver,
        "set_baseline",
    ),
    Peer(
        "langgraph SqliteStore",
        "langgraph-checkpoint-sqlite",
        "SqliteStore.put",
        "a blind overwrite: no read, no ledger, no rule; the caller adds up",
        peer_charges.langgraph_store,
        "set_baseline",
    ),
    Peer(
        "dbos",
        "dbos",
        "workflow of one datasource transaction (SELECT, UPDATE, INSERT)",
        "no idempotency key of the caller's; it notes its workflow and step durably besides",
        peer_charges.dbos,
        "charge",
    ),
    Peer(
        "SQLAlchemy ORM",
        "sqlalchemy",
        "a plain repository: Session, select, change, add event, commit",
        "transactions begin deferred: two writers can lose one with an error",
        peer_charges.orm,
        "charge",
    ),
    Peer(
        "peewee",
        "peewee",
        "atomic: get, save, create event",
        "nothing of the charge; no idempotency key",
        peer_charges.peewee,
        "charge",
    ),
    Peer(
        "sqlite-utils",
        "sqlite-utils",
        "get, update, get",
        "no event, and three transactions: another writer's charge can be lost between them",
        peer_charges.sqlite_utils,
        "part of charge",
    ),
    Peer(
        "diskcache",
        "diskcache",
        "Cache.incr",
        "a counter: no goal, no event, no status rule, no time",
        peer_charges.diskcache,
        "set_baseline",
    ),
)
