"""How each of the peers is set up, and how it records a charge."""

# No `from __future__ import annotations` here: SQLAlchemy reads the annotations of a mapped class, and
# would not find names that are imported inside of a function.

import asyncio
import os
import sqlite3
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from benchmarks.by_hand import BUDGET, OBJECTIVE

__all__ = [
    "THREADS",
    "Charge",
    "dbos",
    "diskcache",
    "eventsourcing",
    "langgraph_saver",
    "langgraph_store",
    "openai_agents",
    "orm",
    "peewee",
    "sqlite_utils",
]

THREADS: Final = [f"thread-{number:04d}" for number in range(20)]

Charge = Callable[[str], object]


def eventsourcing(place: Path, stack: ExitStack) -> Charge:
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


def openai_agents(place: Path, stack: ExitStack) -> Charge:
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


def langgraph_saver(place: Path, stack: ExitStack) -> Charge:
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


def langgraph_store(place: Path, stack: ExitStack) -> Charge:
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


def dbos(place: Path, stack: ExitStack) -> Charge:
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


def orm(place: Path, stack: ExitStack) -> Charge:
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


def peewee(place: Path, stack: ExitStack) -> Charge:
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


def sqlite_utils(place: Path, stack: ExitStack) -> Charge:
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


def diskcache(place: Path, stack: ExitStack) -> Charge:
    from diskcache import Cache

    cache = Cache(str(place))
    stack.callback(cache.close)
    return lambda thread: cache.incr(thread, 100)
