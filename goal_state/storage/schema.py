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

from goal_state.domain.events import FIGURES, Estimate, EventKind
from goal_state.domain.goals import GoalStatus
from goal_state.domain.holds import HoldOutcome, OnUnknown
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
    "holds",
    "metadata",
    "parts",
]

VERSION_TABLE: Final = "goal_state_alembic_version"
"""Where alembic notes the schema's revision: a table of our own, so as to live in a host's database."""

HEAD_REVISION: Final = "0002"
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


def _number(name: str) -> Column[int]:
    """A number that is 0 where nothing was said."""
    return Column(name, _INT64, server_default=text("0"), nullable=False)


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
    Column("cost_budget_nanos", _INT64),
    _number("cost_used_nanos"),
    Column("call_budget", _INT64),
    _number("calls_used"),
    Column("time_budget_ms", _INT64),
    Column("deadline_ms", _INT64),
    Column("warn_fractions", Text),
    _number("unpriced_tokens"),
    _number("estimated_tokens"),
    Column("parent_goal_id", Text),
    Column("ancestor_goal_ids", Text),
    _number("live_holds"),
    _number("held_tokens"),
    _number("held_cost_nanos"),
    _number("held_calls"),
    _number("claim_number"),
    Column("claim_owner", Text),
    Column("claim_expires_at_ms", _INT64),
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
    CheckConstraint(
        " AND ".join(
            f"({name} IS NULL OR {name} > 0)"
            for name in ("token_budget", "cost_budget_nanos", "call_budget", "time_budget_ms")
        ),
        name="budgets",
    ),
    # Two of them, for SQLite checks the constraints of the columns that it sets: few charges set these.
    CheckConstraint(
        "tokens_used >= 0 AND time_used_ms >= 0 AND unpriced_tokens BETWEEN 0 AND tokens_used",
        name="tokens_used",
    ),
    CheckConstraint(
        "cost_used_nanos >= 0 AND calls_used >= 0 AND estimated_tokens >= 0", name="cost_used"
    ),
    CheckConstraint("updated_at_ms >= created_at_ms", name="updated_at_ms"),
    CheckConstraint(
        "status <> 'active'"
        " OR ((token_budget IS NULL OR tokens_used < token_budget)"
        " AND (cost_budget_nanos IS NULL OR cost_used_nanos < cost_budget_nanos)"
        " AND (call_budget IS NULL OR calls_used < call_budget)"
        " AND (time_budget_ms IS NULL OR time_used_ms < time_budget_ms)"
        " AND (deadline_ms IS NULL OR updated_at_ms < deadline_ms))",
        name="active_within_budget",
    ),
    CheckConstraint(
        "(parent_goal_id IS NULL) = (ancestor_goal_ids IS NULL)", name="parent_goal_id"
    ),
    CheckConstraint(
        "live_holds >= 0 AND held_tokens >= 0 AND held_cost_nanos >= 0 AND held_calls >= 0",
        name="held",
    ),
    CheckConstraint(
        "claim_number >= 0 AND (claim_owner IS NULL) = (claim_expires_at_ms IS NULL)",
        name="claim",
    ),
    Index(
        "ix_goal_state_goals_parent",
        "parent_goal_id",
        "goal_id",
        **_where("parent_goal_id IS NOT NULL"),
    ),
    Index(
        "ix_goal_state_goals_resume_at",
        "resume_at_ms",
        **_where("resume_at_ms IS NOT NULL"),
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
    _number("cost_delta_nanos"),
    _number("calls_delta"),
    _number("unpriced_tokens_delta"),
    _number("estimated_tokens_delta"),
    Column("cumulative_cost_nanos", _INT64),
    Column("cumulative_calls", _INT64),
    Column("model", Text),
    Column("estimate", Text),
    Column("origin_goal_id", Text),
    Column("via_goal_id", Text),
    Column("hold_id", Text),
    Column("tags_json", Text),
    Column("details_json", Text),
    CheckConstraint(f"kind {_one_of(EventKind)}", name="kind"),
    CheckConstraint(f"goal_status {_STATUSES}", name="goal_status"),
    CheckConstraint(
        "tokens_delta >= 0 AND time_delta_ms >= 0 AND cost_delta_nanos >= 0 AND calls_delta >= 0"
        " AND unpriced_tokens_delta >= 0"
        " AND (kind = 'usage_accounted') = (cumulative_tokens IS NOT NULL)"
        " AND (kind = 'usage_accounted') = (cumulative_time_ms IS NOT NULL)"
        " AND (kind = 'usage_accounted') = (cumulative_cost_nanos IS NOT NULL)"
        " AND (kind = 'usage_accounted') = (cumulative_calls IS NOT NULL)"
        " AND (kind = 'usage_accounted' OR (tokens_delta = 0 AND time_delta_ms = 0"
        " AND cost_delta_nanos = 0 AND calls_delta = 0 AND unpriced_tokens_delta = 0"
        " AND estimated_tokens_delta = 0))",
        name="usage",
    ),
    CheckConstraint(f"estimate IS NULL OR estimate {_one_of(Estimate)}", name="estimate"),
    CheckConstraint("(origin_goal_id IS NULL) = (via_goal_id IS NULL)", name="origin_goal_id"),
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
    *(_number(figure.balance) for figure in FIGURES[2:]),
    CheckConstraint(
        "tokens >= 0 AND time_ms >= 0 AND cost_nanos >= 0 AND calls >= 0 AND unpriced_tokens >= 0",
        name="sums",
    ),
    CheckConstraint("through_position > 0", name="through_position"),
    sqlite_strict=True,
)

parts: Final = Table(
    "goal_state_parts",
    metadata,
    Column("goal_id", Text, primary_key=True, nullable=False),
    # The child that charged, and the model; "" where there is none.
    Column("via_goal_id", Text, primary_key=True, nullable=False),
    Column("model", Text, primary_key=True, nullable=False),
    *(_number(figure.balance) for figure in FIGURES),
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

holds: Final = Table(
    "goal_state_holds",
    metadata,
    Column("hold_id", Text, primary_key=True, nullable=False),
    Column("thread_id", Text, nullable=False),
    Column("goal_id", Text, nullable=False),
    Column("root_goal_id", Text, nullable=False),
    Column("ancestor_goal_ids", Text),
    Column("hold_key", Text),
    Column("tokens", _INT64, nullable=False),
    Column("cost_nanos", _INT64),
    Column("calls", _INT64, nullable=False),
    Column("observed_tokens", _INT64),
    Column("observed_cost_nanos", _INT64),
    Column("observed_unpriced_tokens", _INT64),
    Column("model", Text),
    Column("turn_id", Text),
    Column("tags_json", Text),
    Column("on_unknown", Text, nullable=False),
    Column("is_dispatched", _INT64, nullable=False),
    Column("created_at_ms", _INT64, nullable=False),
    Column("expires_at_ms", _INT64, nullable=False),
    Column("ended_at_ms", _INT64),
    Column("outcome", Text),
    Column("charged_tokens", _INT64),
    Column("charged_cost_nanos", _INT64),
    Column("charged_calls", _INT64),
    CheckConstraint("length(thread_id) BETWEEN 1 AND 256", name="thread_id"),
    CheckConstraint("tokens >= 0 AND cost_nanos >= 0 AND calls >= 0", name="amounts"),
    CheckConstraint(f"on_unknown {_one_of(OnUnknown)}", name="on_unknown"),
    CheckConstraint("is_dispatched IN (0, 1)", name="is_dispatched"),
    CheckConstraint(f"outcome IS NULL OR outcome {_one_of(HoldOutcome)}", name="outcome"),
    CheckConstraint("(ended_at_ms IS NULL) = (outcome IS NULL)", name="ended_at_ms"),
    # What is due in a tree is found at each write in it.
    Index(
        "ix_goal_state_holds_live",
        "root_goal_id",
        "expires_at_ms",
        **_where("ended_at_ms IS NULL"),
    ),
    Index(
        "ix_goal_state_holds_thread_id",
        "thread_id",
        "hold_id",
        **_where("ended_at_ms IS NULL"),
    ),
    Index("ix_goal_state_holds_ended_at_ms", "ended_at_ms", **_where("ended_at_ms IS NOT NULL")),
    Index(
        "uq_goal_state_holds_hold_key",
        "thread_id",
        "hold_key",
        unique=True,
        **_where("hold_key IS NOT NULL"),
    ),
    sqlite_strict=True,
)

database: Final = Table(
    "goal_state_database",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False, server_default=text("1")),
    Column("identity", Text, nullable=False),  # tells a copy from its original
    # Which tokens of a usage count, for every process that charges.
    Column("counted_tokens", Text, nullable=False, server_default=text("'uncached'")),
    Column("currency", Text),  # of the prices, where they name it
    CheckConstraint("number = 1", name="one_row"),  # whoever inserts the second is refused
    CheckConstraint("length(counted_tokens) BETWEEN 1 AND 256", name="counted_tokens"),
    CheckConstraint("length(currency) BETWEEN 1 AND 256", name="currency"),
    sqlite_strict=True,
)


_ADDED_IN: Final = {holds.name: "0002", parts.name: "0002"}
"""The revisions that added tables; the others are as old as the schema."""


def check_tables(names: Collection[str], revision: str | None) -> None:
    """Makes sure that of our tables all are there that the revision has, or none.

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
    expected = {name for name in metadata.tables if _ADDED_IN.get(name, "") <= revision}
    missing = sorted(expected - there)
    if missing and revision <= HEAD_REVISION:
        raise SchemaIncompleteError(
            f"the database is at revision {revision} and lacks {_listed(missing)}; something else than"
            " goal-state dropped what was in it. Restore a backup from before that. (A migration that"
            " alembic generated for your application does so unless its env.py has"
            " goal_state.migrate.include_name.) The database was left as it was"
        )


def _listed(names: list[str]) -> str:
    return f"the table{'s' * (len(names) > 1)} {', '.join(names)}"
