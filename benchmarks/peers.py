"""What a user would take instead, each recording one charge durably in a file, in its own way.

Every connection that they open is tuned as ours is (WAL, `synchronous=NORMAL`, the same checkpoints): that
is more than most of them do by themselves, and it leaves what they cost, not what a sync costs.
"""

# No `from __future__ import annotations` here: SQLAlchemy reads the annotations of a mapped class, and
# would not find names that are imported inside of a function.

import asyncio
import itertools
import logging
import multiprocessing
import os
import sqlite3
import sqlite3.dbapi2
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Literal

from benchmarks.by_hand import BUDGET, OBJECTIVE, new_file
from benchmarks.measure import Figure, Scale, Spread, interleaved, ratios
from goal_state import GoalStore, TokenUsage

__all__ = ["run"]

GROUP = "peers"
THREADS: Final = [f"thread-{number:04d}" for number in range(20)]

Charge = Callable[[str], object]


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


# -- the peers ---------------------------------------------------------------------------------------


def _eventsourcing(place: Path, stack: ExitStack) -> Charge:
    from eventsourcing.application import Application
    from eventsourcing.domain import Aggregate, event

    class Goal(Aggregate):
        @event("Started")
        def __init__(self, objective: str, token_budget: int) -> None:
            self.objective = objective
            self.token_budget = token_budget
            self.tokens_used = 0
            self.time_used_ms = 0
            self.status = "active"

        @event("Charged")
        def charge(self, tokens: int, time_ms: int, turn_id: str) -> None:
            self.tokens_used += tokens
            self.time_used_ms += time_ms
            self.turn_id = turn_id
            if self.tokens_used >= self.token_budget:
                self.status = "budget_limited"

    application = Application[uuid.UUID](
        env={
            "PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "SQLITE_DBNAME": str(place / "events.db"),
            "AGGREGATE_CACHE_MAXSIZE": "1000",
        }
    )
    stack.callback(application.close)
    ids: dict[str, uuid.UUID] = {}
    for thread in THREADS:
        goal = Goal(objective=OBJECTIVE, token_budget=BUDGET)
        application.save(goal)
        ids[thread] = goal.id

    def charge(thread: str) -> object:
        goal: Goal = application.repository.get(ids[thread])
        goal.charge(tokens=100, time_ms=250, turn_id="turn-1")
        application.save(goal)
        return goal

    return charge


def _openai_agents(place: Path, stack: ExitStack) -> Charge:
    os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")
    from agents.extensions.memory import AdvancedSQLiteSession
    from agents.usage import Usage

    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    sessions: dict[str, Any] = {}
    for number, thread in enumerate(THREADS):
        session = AdvancedSQLiteSession(
            session_id=thread, db_path=place / "sessions.db", create_tables=number == 0
        )
        loop.run_until_complete(session.add_items([{"role": "user", "content": OBJECTIVE}]))
        stack.callback(session.close)
        sessions[thread] = session
    stack.callback(lambda: loop.run_until_complete(loop.shutdown_default_executor()))
    usage = Usage(requests=1, input_tokens=80, output_tokens=20, total_tokens=100)
    result: Any = SimpleNamespace(context_wrapper=SimpleNamespace(usage=usage))

    def charge(thread: str) -> object:
        return loop.run_until_complete(sessions[thread].store_run_usage(result))

    charge(THREADS[0])
    # It swallows its errors: see that something was stored.
    if not loop.run_until_complete(sessions[THREADS[0]].get_turn_usage(1)):
        raise AssertionError("no usage was stored")
    return charge


def _langgraph_saver(place: Path, stack: ExitStack) -> Charge:
    from langgraph.checkpoint.base import empty_checkpoint
    from langgraph.checkpoint.sqlite import SqliteSaver

    connection = sqlite3.connect(place / "checkpoints.db", check_same_thread=False)
    stack.callback(connection.close)
    saver = SqliteSaver(connection)
    used = dict.fromkeys(THREADS, 0)

    def charge(thread: str) -> object:
        used[thread] += 100
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {
            "objective": OBJECTIVE,
            "status": "active",
            "tokens_used": used[thread],
        }
        config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
        return saver.put(config, checkpoint, {"source": "loop", "step": 1}, {})

    return charge


def _langgraph_store(place: Path, stack: ExitStack) -> Charge:
    from langgraph.store.sqlite import SqliteStore

    connection = sqlite3.connect(place / "store.db", check_same_thread=False, isolation_level=None)
    stack.callback(connection.close)
    store = SqliteStore(connection)
    store.setup()
    used = dict.fromkeys(THREADS, 0)

    def charge(thread: str) -> object:
        used[thread] += 100
        value = {"objective": OBJECTIVE, "status": "active", "tokens_used": used[thread]}
        return store.put(("goals",), thread, value)

    return charge


def _dbos(place: Path, stack: ExitStack) -> Charge:
    import sqlalchemy as sa
    from dbos import DBOS, SQLAlchemyDatasource

    DBOS(
        config={
            "name": "goals",
            "system_database_url": f"sqlite:///{place / 'system.db'}",
            "log_level": "ERROR",
            "console_log_level": "ERROR",
        }
    )
    source = SQLAlchemyDatasource.create(f"sqlite:///{place / 'goals.db'}")
    with source.engine.begin() as connection:
        for statement in _TABLES:
            connection.execute(sa.text(statement))
        for thread in THREADS:
            connection.execute(
                sa.text("INSERT INTO goals VALUES (:thread, :objective, 'active', :budget, 0, 0)"),
                {"thread": thread, "objective": OBJECTIVE, "budget": BUDGET},
            )

    read = sa.text(
        "SELECT status, token_budget, tokens_used, time_used_ms FROM goals WHERE thread_id = :t"
    )
    write = sa.text(
        "UPDATE goals SET status = :s, tokens_used = :u, time_used_ms = :m WHERE thread_id = :t"
    )
    append = sa.text(
        "INSERT INTO events (thread_id, kind, tokens, cumulative_tokens, occurred_at_ms)"
        " VALUES (:t, 'usage_accounted', :n, :u, :o)"
    )

    @source.transaction
    def charge_in_transaction(thread: str, tokens: int, time_ms: int) -> int:
        session = source.sql_session()
        status, budget, used, time_used = session.execute(read, {"t": thread}).one()
        used += tokens
        status = "budget_limited" if used >= budget else status
        session.execute(write, {"s": status, "u": used, "m": time_used + time_ms, "t": thread})
        session.execute(
            append, {"t": thread, "n": tokens, "u": used, "o": time.time_ns() // 1_000_000}
        )
        return used

    @DBOS.workflow(name="charge")
    def charge(thread: str) -> int:
        return charge_in_transaction(thread, 100, 250)

    DBOS.launch()
    stack.callback(DBOS.destroy, destroy_registry=True)
    return charge


_TABLES = (
    """
    CREATE TABLE goals (
        thread_id TEXT PRIMARY KEY, objective TEXT NOT NULL, status TEXT NOT NULL,
        token_budget INTEGER, tokens_used INTEGER NOT NULL, time_used_ms INTEGER NOT NULL)
    """,
    """
    CREATE TABLE events (
        position INTEGER PRIMARY KEY, thread_id TEXT NOT NULL, kind TEXT NOT NULL,
        tokens INTEGER NOT NULL, cumulative_tokens INTEGER NOT NULL, occurred_at_ms INTEGER NOT NULL)
    """,
)


def _orm(place: Path, stack: ExitStack) -> Charge:
    from sqlalchemy import create_engine, select
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

    class Base(DeclarativeBase):
        pass

    class Goal(Base):
        __tablename__ = "goals"
        goal_id: Mapped[str] = mapped_column(primary_key=True)
        thread_id: Mapped[str] = mapped_column(unique=True)
        objective: Mapped[str]
        status: Mapped[str]
        token_budget: Mapped[int | None]
        tokens_used: Mapped[int] = mapped_column(default=0)
        time_used_ms: Mapped[int] = mapped_column(default=0)
        updated_at: Mapped[datetime]

    class Event(Base):
        __tablename__ = "events"
        position: Mapped[int] = mapped_column(primary_key=True)
        event_id: Mapped[str]
        kind: Mapped[str]
        thread_id: Mapped[str]
        goal_id: Mapped[str] = mapped_column(index=True)
        turn_id: Mapped[str | None]
        goal_status: Mapped[str]
        tokens_delta: Mapped[int]
        time_delta_ms: Mapped[int]
        cumulative_tokens: Mapped[int]
        occurred_at: Mapped[datetime]

    engine = create_engine(f"sqlite:///{place / 'orm.db'}")
    stack.callback(engine.dispose)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for thread in THREADS:
            session.add(
                Goal(
                    goal_id=str(uuid.uuid4()),
                    thread_id=thread,
                    objective=OBJECTIVE,
                    status="active",
                    token_budget=BUDGET,
                    updated_at=datetime.now(UTC),
                )
            )

    def charge(thread: str) -> object:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            goal = session.scalars(select(Goal).where(Goal.thread_id == thread)).one()
            goal.tokens_used += 100
            goal.time_used_ms += 250
            goal.updated_at = now = datetime.now(UTC)
            if goal.token_budget is not None and goal.tokens_used >= goal.token_budget:
                goal.status = "budget_limited"
            session.add(
                Event(
                    event_id=str(uuid.uuid4()),
                    kind="usage_accounted",
                    thread_id=thread,
                    goal_id=goal.goal_id,
                    turn_id="turn-1",
                    goal_status=goal.status,
                    tokens_delta=100,
                    time_delta_ms=250,
                    cumulative_tokens=goal.tokens_used,
                    occurred_at=now,
                )
            )
        return goal

    return charge


def _peewee(place: Path, stack: ExitStack) -> Charge:
    import peewee as pw

    database = pw.SqliteDatabase(place / "peewee.db")
    stack.callback(database.close)

    class Goal(pw.Model):
        goal_id = pw.TextField(primary_key=True)
        thread_id = pw.TextField(unique=True)
        objective = pw.TextField()
        status = pw.TextField()
        token_budget = pw.BigIntegerField(null=True)
        tokens_used = pw.BigIntegerField(default=0)
        time_used_ms = pw.BigIntegerField(default=0)

    class Event(pw.Model):
        event_id = pw.TextField()
        kind = pw.TextField()
        thread_id = pw.TextField()
        goal_id = pw.TextField(index=True)
        turn_id = pw.TextField(null=True)
        goal_status = pw.TextField()
        tokens_delta = pw.BigIntegerField()
        time_delta_ms = pw.BigIntegerField()
        cumulative_tokens = pw.BigIntegerField()
        occurred_at_ms = pw.BigIntegerField()

    database.bind([Goal, Event])
    database.connect()
    database.create_tables([Goal, Event])
    for thread in THREADS:
        Goal.create(
            goal_id=str(uuid.uuid4()),
            thread_id=thread,
            objective=OBJECTIVE,
            status="active",
            token_budget=BUDGET,
        )

    def charge(thread: str) -> object:
        with database.atomic("IMMEDIATE"):
            goal: Any = Goal.get(Goal.thread_id == thread)
            goal.tokens_used += 100
            goal.time_used_ms += 250
            if goal.token_budget is not None and goal.tokens_used >= goal.token_budget:
                goal.status = "budget_limited"
            goal.save(only=[Goal.tokens_used, Goal.time_used_ms, Goal.status])
            Event.create(
                event_id=str(uuid.uuid4()),
                kind="usage_accounted",
                thread_id=thread,
                goal_id=goal.goal_id,
                turn_id="turn-1",
                goal_status=goal.status,
                tokens_delta=100,
                time_delta_ms=250,
                cumulative_tokens=goal.tokens_used,
                occurred_at_ms=time.time_ns() // 1_000_000,
            )
        return goal

    return charge


def _sqlite_utils(place: Path, stack: ExitStack) -> Charge:
    from sqlite_utils import Database

    database = Database(place / "utils.db")
    stack.callback(database.close)
    for thread in THREADS:
        database["goals"].insert(
            {
                "thread_id": thread,
                "objective": OBJECTIVE,
                "status": "active",
                "token_budget": BUDGET,
                "tokens_used": 0,
                "time_used_ms": 0,
            },
            pk="thread_id",
        )

    def charge(thread: str) -> object:
        goals: Any = database["goals"]
        goal = goals.get(thread)
        used = goal["tokens_used"] + 100
        changes = {"tokens_used": used, "time_used_ms": goal["time_used_ms"] + 250}
        if used >= goal["token_budget"]:
            changes["status"] = "budget_limited"
        goals.update(thread, changes)
        return goals.get(thread)

    return charge


def _diskcache(place: Path, stack: ExitStack) -> Charge:
    from diskcache import Cache

    cache = Cache(str(place))
    stack.callback(cache.close)
    return lambda thread: cache.incr(thread, 100)


PEERS: Final = (
    Peer(
        "eventsourcing",
        "eventsourcing",
        "Repository.get (cached), aggregate event, Application.save",
        "no row of the present state, no idempotency key; its aggregate cache is on",
        _eventsourcing,
        "charge",
    ),
    Peer(
        "openai-agents",
        "openai-agents",
        "AdvancedSQLiteSession.store_run_usage",
        "no event, no status rule; replaces the turn's counters instead of adding; swallows errors",
        _openai_agents,
        "charge",
    ),
    Peer(
        "langgraph SqliteSaver",
        "langgraph-checkpoint-sqlite",
        "SqliteSaver.put",
        "a blind write of the whole state: no read, no rule; the caller adds up",
        _langgraph_saver,
        "set_baseline",
    ),
    Peer(
        "langgraph SqliteStore",
        "langgraph-checkpoint-sqlite",
        "SqliteStore.put",
        "a blind overwrite: no read, no ledger, no rule; the caller adds up",
        _langgraph_store,
        "set_baseline",
    ),
    Peer(
        "dbos",
        "dbos",
        "workflow of one datasource transaction (SELECT, UPDATE, INSERT)",
        "no idempotency key of the caller's; it notes its workflow and step durably besides",
        _dbos,
        "charge",
    ),
    Peer(
        "SQLAlchemy ORM",
        "sqlalchemy",
        "a plain repository: Session, select, change, add event, commit",
        "transactions begin deferred: two writers can lose one with an error",
        _orm,
        "charge",
    ),
    Peer(
        "peewee",
        "peewee",
        "atomic: get, save, create event",
        "nothing of the charge; no idempotency key",
        _peewee,
        "charge",
    ),
    Peer(
        "sqlite-utils",
        "sqlite-utils",
        "get, update, get",
        "no event, and three transactions: another writer's charge can be lost between them",
        _sqlite_utils,
        "part of charge",
    ),
    Peer(
        "diskcache",
        "diskcache",
        "Cache.incr",
        "a counter: no goal, no event, no status rule, no time",
        _diskcache,
        "set_baseline",
    ),
)
