"""The schema: SQLAlchemy metadata of the tables. Rows are made and read by the modules above.

Every rule of the domain that SQL can express is a CHECK here as well, so that no other writer of the
database can break it either. The DDL is SQLite's and PostgreSQL's; in SQLite the tables are STRICT: an
integer overflow is an error, never a silent float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import fields
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from goal_state.domain.events import EventKind
from goal_state.domain.goals import GoalStatus
from goal_state.domain.usage import TokenUsage
from goal_state.errors import SchemaIncompleteError

__all__ = [
    "COUNTS",
    "HEAD_REVISION",
    "LAST_COUNTS",
    "VERSION_TABLE",
    "balances",
    "baselines",
    "check_tables",
    "cursors",
    "database",
    "events",
    "goals",
    "metadata",
]

VERSION_TABLE: Final = "goal_state_alembic_version"
"""Where alembic notes the schema's revision: a table of our own, so as to live in a host's database."""

HEAD_REVISION: Final = "0001"
"""The newest revision in `migrations/`. Known here so that opening a current file needs no alembic."""

_INT64: Final = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits; a STRICT table of SQLite knows them as INTEGER alone."""

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _where(condition: str) -> dict[str, Any]:
    """What makes an index a partial one."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


def _one_of(texts: Iterable[str]) -> str:
    return f"IN ({', '.join(map(repr, map(str, texts)))})"


_STATUSES: Final = _one_of(GoalStatus)

goals: Final = Table(
    "goal_state_goals",
    metadata,
    Column("thread_id", Text, nullable=False),
    Column("goal_id", Text, primary_key=True, nullable=False),
    Column("objective", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("token_budget", _INT64),
    Column("tokens_used", _INT64, nullable=False),
    Column("time_used_ms", _INT64, nullable=False),
    Column("created_at_ms", _INT64, nullable=False),
    Column("updated_at_ms", _INT64, nullable=False),
    Column("resume_at_ms", _INT64),
    Column("blocked_reason", Text),
    UniqueConstraint("thread_id"),
    CheckConstraint("length(thread_id) BETWEEN 1 AND 256", name="thread_id"),
    CheckConstraint("length(goal_id) = 36", name="goal_id"),
    CheckConstraint(
        "length(objective) BETWEEN 1 AND 4000 AND objective = trim(objective)", name="objective"
    ),
    # PostgreSQL's text holds no NUL at all, and has no such functions.
    CheckConstraint("instr(objective, char(0)) = 0", name="objective_without_nul").ddl_if(
        dialect="sqlite"
    ),
    CheckConstraint(f"status {_STATUSES}", name="status"),
    CheckConstraint("token_budget > 0", name="token_budget"),
    CheckConstraint("tokens_used >= 0", name="tokens_used"),
    CheckConstraint("time_used_ms >= 0", name="time_used_ms"),
    CheckConstraint("updated_at_ms >= created_at_ms", name="updated_at_ms"),
    CheckConstraint(
        "status <> 'active' OR token_budget IS NULL OR tokens_used < token_budget",
        name="active_within_budget",
    ),
    CheckConstraint("resume_at_ms IS NULL OR status = 'usage_limited'", name="resume_at_ms"),
    CheckConstraint(
        "blocked_reason IS NULL OR (status = 'blocked' AND length(blocked_reason) BETWEEN 1 AND 4000)",
        name="blocked_reason",
    ),
    sqlite_strict=True,
)

events: Final = Table(
    "goal_state_events",
    metadata,
    # No Identity(): on SQLite, which has none, alembic's check takes it for a change that is due.
    Column("position", _INT64, primary_key=True, autoincrement=True),
    Column("event_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("thread_id", Text, nullable=False),
    Column("goal_id", Text, nullable=False),
    Column("turn_id", Text),
    Column("goal_status", Text, nullable=False),
    Column("previous_status", Text),
    Column("token_budget", _INT64),
    Column("tokens_delta", _INT64, nullable=False),
    Column("time_delta_ms", _INT64, nullable=False),
    Column("cumulative_tokens", _INT64),
    Column("cumulative_time_ms", _INT64),
    Column("idempotency_key", Text),
    Column("replaced_goal_id", Text),
    Column("occurred_at_ms", _INT64, nullable=False),
    CheckConstraint(f"kind {_one_of(EventKind)}", name="kind"),
    CheckConstraint(f"goal_status {_STATUSES}", name="goal_status"),
    CheckConstraint(
        "tokens_delta >= 0 AND time_delta_ms >= 0"
        " AND (kind = 'usage_accounted') = (cumulative_tokens IS NOT NULL)"
        " AND (kind = 'usage_accounted') = (cumulative_time_ms IS NOT NULL)"
        " AND (kind = 'usage_accounted' OR (tokens_delta = 0 AND time_delta_ms = 0))",
        name="usage",
    ),
    # One full index only, on a key that rises with time: each one costs a fifth of a charge. The events
    # of a thread are found through its `created` events, since its goals follow one another.
    Index(None, "goal_id"),
    Index("ix_goal_state_events_created", "thread_id", **_where("kind = 'created'")),
    Index(
        "uq_goal_state_events_idempotency_key",
        "thread_id",
        "idempotency_key",
        unique=True,
        **_where("idempotency_key IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)

COUNTS: Final = tuple(field.name for field in fields(TokenUsage))
"""The columns of a thread's total, which are the fields of a `TokenUsage`."""

LAST_COUNTS: Final = tuple(f"last_{name}" for name in COUNTS)
"""The columns of what its last response used."""

baselines: Final = Table(
    "goal_state_baselines",
    metadata,
    Column("thread_id", Text, primary_key=True, nullable=False),
    # Which of its counts, as the host names them; "" for the one without a name.
    Column("count_id", Text, primary_key=True, nullable=False),
    Column("turn_id", Text),
    *(Column(name, _INT64, nullable=False) for name in (*COUNTS, *LAST_COUNTS)),
    Column("model_context_window", _INT64),
    Column("updated_at_ms", _INT64, nullable=False),
    Column("goal_id", Text),  # the thread's goal when this was recorded
    # How often the count began anew: each time that a lower total took its place.
    Column("epoch", _INT64, nullable=False),
    Column("warned_goal_id", Text),  # the goal that a meter has called exhausted, while it is so
    # Turns that reported totals and paid nothing, so that no event names them: a JSON list, latest last.
    Column("unpaid_turn_ids", Text),
    CheckConstraint("length(thread_id) BETWEEN 1 AND 256", name="thread_id"),
    CheckConstraint("length(count_id) <= 256", name="count_id"),
    CheckConstraint(
        " AND ".join(f"{name} >= 0 AND last_{name} >= 0" for name in COUNTS), name="counts"
    ),
    CheckConstraint("epoch >= 0", name="epoch"),
    sqlite_strict=True,
)

balances: Final = Table(
    "goal_state_balances",
    metadata,
    Column("goal_id", Text, primary_key=True, nullable=False),
    Column("through_position", _INT64, nullable=False),
    Column("tokens", _INT64, nullable=False),
    Column("time_ms", _INT64, nullable=False),
    Column("status", Text, nullable=False),  # or "cleared"
    CheckConstraint("tokens >= 0 AND time_ms >= 0", name="sums"),
    CheckConstraint("through_position > 0", name="through_position"),
    sqlite_strict=True,
)

cursors: Final = Table(
    "goal_state_cursors",
    metadata,
    Column("name", Text, primary_key=True, nullable=False),
    Column("position", _INT64, nullable=False),
    Column("holder", Text),
    Column("lease_expires_at_ms", _INT64),
    Column("updated_at_ms", _INT64, nullable=False),
    CheckConstraint("length(name) BETWEEN 1 AND 256", name="name"),
    CheckConstraint("position >= 0", name="position"),
    CheckConstraint("(holder IS NULL) = (lease_expires_at_ms IS NULL)", name="holder"),
    sqlite_strict=True,
)

database: Final = Table(
    "goal_state_database",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False, server_default=text("1")),
    Column("identity", Text, nullable=False),  # tells a copy from its original
    # Which tokens of a usage count, for every process that charges.
    Column("counted_tokens", Text, nullable=False, server_default=text("'uncached'")),
    CheckConstraint("number = 1", name="one_row"),  # whoever inserts the second is refused
    CheckConstraint("length(counted_tokens) BETWEEN 1 AND 256", name="counted_tokens"),
    sqlite_strict=True,
)


def check_tables(names: Collection[str], revision: str | None) -> None:
    """Makes sure that of our tables all are there, or none.

    Args:
        names: the tables of a database, whoever's they are.
        revision: what its version table says, as of the same snapshot; None if it says nothing.

    Raises:
        SchemaIncompleteError: some are there and others are not.
    """
    there = {name.lower() for name in names}  # as SQLite compares them
    found = sorted(there & metadata.tables.keys())
    if revision is None:
        if found:
            raise SchemaIncompleteError(
                f"the database has {_listed(found)}, but no revision in {VERSION_TABLE}. If that is of your"
                " own application, keep the goals in another file. If it is of goal-state, something else"
                f" dropped {VERSION_TABLE} or its row: restore a backup from before that. (A migration that"
                " alembic generated for your application does so unless its env.py has"
                " goal_state.migrate.include_name.) The database was left as it was"
            )
        return
    missing = sorted(metadata.tables.keys() - there)
    if missing and revision <= HEAD_REVISION:
        raise SchemaIncompleteError(
            f"the database is at revision {revision} and lacks {_listed(missing)}; something else than"
            " goal-state dropped what was in it. Restore a backup from before that. (A migration that"
            " alembic generated for your application does so unless its env.py has"
            " goal_state.migrate.include_name.) The database was left as it was"
        )


def _listed(names: list[str]) -> str:
    return f"the table{'s' * (len(names) > 1)} {', '.join(names)}"
