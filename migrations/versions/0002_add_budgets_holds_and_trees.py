"""Add budgets of cost, calls and time, deadlines, prices, holds, claims, and goals under goals.

Revision: 0002
Follows: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import CreateIndex, CreateTable

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATUSES = "('active', 'paused', 'blocked', 'usage_limited', 'budget_limited', 'complete')"
_KINDS = "'created', 'usage_accounted', 'status_changed', 'cleared'"
_NEW_KINDS = "'budget_changed', 'threshold_crossed'"
# A STRICT table of SQLite has one type for integers of every size.
_INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_OLD_BUDGET = "status <> 'active' OR token_budget IS NULL OR tokens_used < token_budget"
_NEW_BUDGETS = (
    "status <> 'active'"
    " OR ((token_budget IS NULL OR tokens_used < token_budget)"
    " AND (cost_budget_nanos IS NULL OR cost_used_nanos < cost_budget_nanos)"
    " AND (call_budget IS NULL OR calls_used < call_budget)"
    " AND (time_budget_ms IS NULL OR time_used_ms < time_budget_ms)"
    " AND (deadline_ms IS NULL OR updated_at_ms < deadline_ms))"
)
_OLD_USAGE = (
    "tokens_delta >= 0 AND time_delta_ms >= 0"
    " AND (kind = 'usage_accounted') = (cumulative_tokens IS NOT NULL)"
    " AND (kind = 'usage_accounted') = (cumulative_time_ms IS NOT NULL)"
    " AND (kind = 'usage_accounted' OR (tokens_delta = 0 AND time_delta_ms = 0))"
)
_NEW_USAGE = (
    "tokens_delta >= 0 AND time_delta_ms >= 0 AND cost_delta_nanos >= 0 AND calls_delta >= 0"
    " AND unpriced_tokens_delta >= 0"
    " AND (kind = 'usage_accounted') = (cumulative_tokens IS NOT NULL)"
    " AND (kind = 'usage_accounted') = (cumulative_time_ms IS NOT NULL)"
    " AND (kind = 'usage_accounted') = (cumulative_cost_nanos IS NOT NULL)"
    " AND (kind = 'usage_accounted') = (cumulative_calls IS NOT NULL)"
    " AND (kind = 'usage_accounted' OR (tokens_delta = 0 AND time_delta_ms = 0"
    " AND cost_delta_nanos = 0 AND calls_delta = 0 AND unpriced_tokens_delta = 0"
    " AND estimated_tokens_delta = 0))"
)
_OLD_SUMS = "tokens >= 0 AND time_ms >= 0"
_NEW_SUMS = (
    "tokens >= 0 AND time_ms >= 0 AND cost_nanos >= 0 AND calls >= 0 AND unpriced_tokens >= 0"
)
_POSITIVE_BUDGETS = " AND ".join(
    f"({name} IS NULL OR {name} > 0)"
    for name in ("token_budget", "cost_budget_nanos", "call_budget", "time_budget_ms")
)


def _where(condition: str) -> dict[str, sa.TextClause]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, _INT64, server_default=sa.text("0"), nullable=False)


# -- the tables as they are rebuilt in SQLite, which can change no constraint of one that is there ----


def _goals(*, with_budgets: bool) -> sa.Table:
    table = sa.Table(
        "goal_state_goals",
        sa.MetaData(),
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("objective", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("token_budget", _INT64),
        sa.Column("tokens_used", _INT64, nullable=False),
        sa.Column("time_used_ms", _INT64, nullable=False),
        sa.Column("created_at_ms", _INT64, nullable=False),
        sa.Column("updated_at_ms", _INT64, nullable=False),
        sa.Column("resume_at_ms", _INT64),
        sa.Column("blocked_reason", sa.Text()),
        *(_new_goal_columns() if with_budgets else ()),
        sa.PrimaryKeyConstraint("goal_id", name="pk_goal_state_goals"),
        sa.UniqueConstraint("thread_id", name="uq_goal_state_goals_thread_id"),
        *(
            sa.CheckConstraint(condition, name=f"ck_goal_state_goals_{name}")
            for name, condition in (
                ("thread_id", "length(thread_id) BETWEEN 1 AND 256"),
                ("goal_id", "length(goal_id) = 36"),
                (
                    "objective",
                    "length(objective) BETWEEN 1 AND 4000 AND objective = trim(objective)",
                ),
                # Rebuilt in SQLite alone; PostgreSQL's text holds no NUL.
                ("objective_without_nul", "instr(objective, char(0)) = 0"),
                ("status", f"status IN {_STATUSES}"),
                *(_NEW_GOAL_CHECKS if with_budgets else _OLD_GOAL_CHECKS),
                ("resume_at_ms", "resume_at_ms IS NULL OR status = 'usage_limited'"),
                (
                    "blocked_reason",
                    (
                        "blocked_reason IS NULL OR (status = 'blocked'"
                        " AND length(blocked_reason) BETWEEN 1 AND 4000)"
                    ),
                ),
            )
        ),
        sqlite_strict=True,
    )
    if with_budgets:
        sa.Index(
            "ix_goal_state_goals_parent",
            table.c.parent_goal_id,
            table.c.goal_id,
            **_where(_HAS_PARENT),
        )
        sa.Index("ix_goal_state_goals_resume_at", table.c.resume_at_ms, **_where(_RESUMES))
    return table


_HAS_PARENT = "parent_goal_id IS NOT NULL"
_RESUMES = "resume_at_ms IS NOT NULL"
_OLD_GOAL_CHECKS = (
    ("token_budget", "token_budget > 0"),
    ("tokens_used", "tokens_used >= 0"),
    ("time_used_ms", "time_used_ms >= 0"),
    ("updated_at_ms", "updated_at_ms >= created_at_ms"),
    ("active_within_budget", _OLD_BUDGET),
)
_NEW_GOAL_CHECKS = (
    ("budgets", _POSITIVE_BUDGETS),
    (
        "tokens_used",
        "tokens_used >= 0 AND time_used_ms >= 0 AND unpriced_tokens BETWEEN 0 AND tokens_used",
    ),
    ("cost_used", "cost_used_nanos >= 0 AND calls_used >= 0 AND estimated_tokens >= 0"),
    ("updated_at_ms", "updated_at_ms >= created_at_ms"),
    ("active_within_budget", _NEW_BUDGETS),
    ("parent_goal_id", "(parent_goal_id IS NULL) = (ancestor_goal_ids IS NULL)"),
    ("held", "live_holds >= 0 AND held_tokens >= 0 AND held_cost_nanos >= 0 AND held_calls >= 0"),
    ("claim", "claim_number >= 0 AND (claim_owner IS NULL) = (claim_expires_at_ms IS NULL)"),
)


def _new_goal_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("cost_budget_nanos", _INT64),
        _number("cost_used_nanos"),
        sa.Column("call_budget", _INT64),
        _number("calls_used"),
        sa.Column("time_budget_ms", _INT64),
        sa.Column("deadline_ms", _INT64),
        sa.Column("warn_fractions", sa.Text()),
        _number("unpriced_tokens"),
        _number("estimated_tokens"),
        sa.Column("parent_goal_id", sa.Text()),
        sa.Column("ancestor_goal_ids", sa.Text()),
        _number("live_holds"),
        _number("held_tokens"),
        _number("held_cost_nanos"),
        _number("held_calls"),
        _number("claim_number"),
        sa.Column("claim_owner", sa.Text()),
        sa.Column("claim_expires_at_ms", _INT64),
    ]


def _events(*, with_budgets: bool) -> sa.Table:
    kinds = f"{_KINDS}, {_NEW_KINDS}" if with_budgets else _KINDS
    table = sa.Table(
        "goal_state_events",
        sa.MetaData(),
        sa.Column("position", _INT64, autoincrement=True, nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("turn_id", sa.Text()),
        sa.Column("goal_status", sa.Text(), nullable=False),
        sa.Column("previous_status", sa.Text()),
        sa.Column("token_budget", _INT64),
        sa.Column("tokens_delta", _INT64, nullable=False),
        sa.Column("time_delta_ms", _INT64, nullable=False),
        sa.Column("cumulative_tokens", _INT64),
        sa.Column("cumulative_time_ms", _INT64),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("replaced_goal_id", sa.Text()),
        sa.Column("occurred_at_ms", _INT64, nullable=False),
        *(_new_event_columns() if with_budgets else ()),
        sa.PrimaryKeyConstraint("position", name="pk_goal_state_events"),
        *(
            sa.CheckConstraint(condition, name=f"ck_goal_state_events_{name}")
            for name, condition in (
                ("kind", f"kind IN ({kinds})"),
                ("goal_status", f"goal_status IN {_STATUSES}"),
                *(_NEW_EVENT_CHECKS if with_budgets else (("usage", _OLD_USAGE),)),
            )
        ),
        sqlite_autoincrement=True,
        sqlite_strict=True,
    )
    sa.Index("ix_goal_state_events_goal_id", table.c.goal_id)
    sa.Index("ix_goal_state_events_created", table.c.thread_id, **_where("kind = 'created'"))
    sa.Index(
        "uq_goal_state_events_idempotency_key",
        table.c.thread_id,
        table.c.idempotency_key,
        unique=True,
        **_where("idempotency_key IS NOT NULL"),
    )
    return table


_NEW_EVENT_CHECKS = (
    ("usage", _NEW_USAGE),
    ("estimate", "estimate IS NULL OR estimate IN ('made', 'resolved')"),
    ("origin_goal_id", "(origin_goal_id IS NULL) = (via_goal_id IS NULL)"),
)


def _new_event_columns() -> list[sa.Column[object]]:
    return [
        _number("cost_delta_nanos"),
        _number("calls_delta"),
        _number("unpriced_tokens_delta"),
        _number("estimated_tokens_delta"),
        sa.Column("cumulative_cost_nanos", _INT64),
        sa.Column("cumulative_calls", _INT64),
        sa.Column("model", sa.Text()),
        sa.Column("estimate", sa.Text()),
        sa.Column("origin_goal_id", sa.Text()),
        sa.Column("via_goal_id", sa.Text()),
        sa.Column("hold_id", sa.Text()),
        sa.Column("tags_json", sa.Text()),
        sa.Column("details_json", sa.Text()),
    ]


def _balances(*, with_budgets: bool) -> sa.Table:
    return sa.Table(
        "goal_state_balances",
        sa.MetaData(),
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("through_position", _INT64, nullable=False),
        sa.Column("tokens", _INT64, nullable=False),
        sa.Column("time_ms", _INT64, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        *(map(_number, _NEW_BALANCES) if with_budgets else ()),
        sa.PrimaryKeyConstraint("goal_id", name="pk_goal_state_balances"),
        sa.CheckConstraint(
            _NEW_SUMS if with_budgets else _OLD_SUMS, name="ck_goal_state_balances_sums"
        ),
        sa.CheckConstraint("through_position > 0", name="ck_goal_state_balances_through_position"),
        sqlite_strict=True,
    )


_NEW_BALANCES = ("cost_nanos", "calls", "unpriced_tokens", "estimated_tokens")


# What was charged before has cost something that nobody knows, in calls that nobody counted.
_GOAL_VALUES = {"unpriced_tokens": "tokens_used"}
_EVENT_VALUES = {
    "unpriced_tokens_delta": "tokens_delta",
    "cumulative_cost_nanos": "CASE kind WHEN 'usage_accounted' THEN 0 END",
    "cumulative_calls": "CASE kind WHEN 'usage_accounted' THEN 0 END",
}
_BALANCE_VALUES = {"unpriced_tokens": "tokens"}


def upgrade() -> None:
    change = _rebuild if op.get_context().dialect.name == "sqlite" else _alter
    change(_goals(with_budgets=False), _goals(with_budgets=True), _GOAL_VALUES)
    change(_events(with_budgets=False), _events(with_budgets=True), _EVENT_VALUES)
    change(_balances(with_budgets=False), _balances(with_budgets=True), _BALANCE_VALUES)
    _create_holds()
    _create_parts()
    op.add_column(
        "goal_state_database",
        sa.Column(
            "currency",
            sa.Text(),
            sa.CheckConstraint(
                "length(currency) BETWEEN 1 AND 256", name=op.f("ck_goal_state_database_currency")
            ),
        ),
    )


def _create_holds() -> None:
    op.create_table(
        "goal_state_holds",
        sa.Column("hold_id", sa.Text(), nullable=False),
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("root_goal_id", sa.Text(), nullable=False),
        sa.Column("ancestor_goal_ids", sa.Text()),
        sa.Column("hold_key", sa.Text()),
        sa.Column("tokens", _INT64, nullable=False),
        sa.Column("cost_nanos", _INT64),
        sa.Column("calls", _INT64, nullable=False),
        sa.Column("observed_tokens", _INT64),
        sa.Column("observed_cost_nanos", _INT64),
        sa.Column("observed_unpriced_tokens", _INT64),
        sa.Column("model", sa.Text()),
        sa.Column("turn_id", sa.Text()),
        sa.Column("tags_json", sa.Text()),
        sa.Column("on_unknown", sa.Text(), nullable=False),
        sa.Column("is_dispatched", _INT64, nullable=False),
        sa.Column("created_at_ms", _INT64, nullable=False),
        sa.Column("expires_at_ms", _INT64, nullable=False),
        sa.Column("ended_at_ms", _INT64),
        sa.Column("outcome", sa.Text()),
        sa.Column("charged_tokens", _INT64),
        sa.Column("charged_cost_nanos", _INT64),
        sa.Column("charged_calls", _INT64),
        sa.PrimaryKeyConstraint("hold_id", name=op.f("pk_goal_state_holds")),
        *(
            sa.CheckConstraint(condition, name=op.f(f"ck_goal_state_holds_{name}"))
            for name, condition in (
                ("thread_id", "length(thread_id) BETWEEN 1 AND 256"),
                ("amounts", "tokens >= 0 AND cost_nanos >= 0 AND calls >= 0"),
                ("on_unknown", "on_unknown IN ('charge', 'release')"),
                ("is_dispatched", "is_dispatched IN (0, 1)"),
                ("outcome", "outcome IS NULL OR outcome IN ('settled', 'released', 'unknown')"),
                ("ended_at_ms", "(ended_at_ms IS NULL) = (outcome IS NULL)"),
            )
        ),
        sqlite_strict=True,
    )
    for name, columns, condition in (
        ("ix_goal_state_holds_live", ["root_goal_id", "expires_at_ms"], "ended_at_ms IS NULL"),
        ("ix_goal_state_holds_thread_id", ["thread_id", "hold_id"], "ended_at_ms IS NULL"),
        ("ix_goal_state_holds_ended_at_ms", ["ended_at_ms"], "ended_at_ms IS NOT NULL"),
        ("uq_goal_state_holds_hold_key", ["thread_id", "hold_key"], "hold_key IS NOT NULL"),
    ):
        op.create_index(
            op.f(name),
            "goal_state_holds",
            columns,
            unique=name.startswith("uq"),
            **_where(condition),
        )


def _create_parts() -> None:
    op.create_table(
        "goal_state_parts",
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("via_goal_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        *map(_number, ("tokens", "time_ms", *_NEW_BALANCES)),
        sa.PrimaryKeyConstraint(
            "goal_id", "via_goal_id", "model", name=op.f("pk_goal_state_parts")
        ),
        sqlite_strict=True,
    )
    # What was pruned before has come from no child, by models that nobody named.
    op.execute(
        "INSERT INTO goal_state_parts (goal_id, via_goal_id, model, tokens, time_ms, unpriced_tokens)"
        " SELECT goal_id, '', '', tokens, time_ms, tokens FROM goal_state_balances"
    )


def downgrade() -> None:
    op.drop_table("goal_state_parts")
    op.drop_table("goal_state_holds")
    change = _rebuild if op.get_context().dialect.name == "sqlite" else _alter
    op.execute(f"DELETE FROM goal_state_events WHERE kind IN ({_NEW_KINDS})")
    change(_balances(with_budgets=True), _balances(with_budgets=False), {})
    change(_events(with_budgets=True), _events(with_budgets=False), {})
    change(_goals(with_budgets=True), _goals(with_budgets=False), {})
    op.drop_column("goal_state_database", "currency")


def _rebuild(old: sa.Table, new: sa.Table, values: dict[str, str]) -> None:
    """Makes a table anew with the rows of the old one; what that lacks is one of the values, or NULL or 0."""
    name, before = new.name, f"{new.name}_before"
    for index in sorted(old.indexes, key=str):
        op.drop_index(index.name, table_name=name)
    op.rename_table(name, before)
    op.execute(CreateTable(new))
    kept = [column.name for column in new.columns if column.name in old.columns]
    op.execute(
        f"INSERT INTO {name} ({', '.join((*kept, *values))})"
        f" SELECT {', '.join((*kept, *values.values()))} FROM {before}"
    )
    if old.dialect_options["sqlite"]["autoincrement"]:
        # Positions of rows that were deleted are not given out again.
        op.execute(f"DELETE FROM sqlite_sequence WHERE name = '{name}'")
        op.execute(
            f"INSERT INTO sqlite_sequence (name, seq) SELECT '{name}', seq FROM sqlite_sequence"
            f" WHERE name = '{before}'"
        )
    op.drop_table(before)
    for index in sorted(new.indexes, key=str):
        op.execute(CreateIndex(index))


def _alter(old: sa.Table, new: sa.Table, values: dict[str, str]) -> None:
    """Changes a table in place."""
    name = new.name
    old_checks, new_checks = _checks(old), _checks(new)
    for check in sorted(old_checks.keys() - new_checks.keys()):
        op.drop_constraint(op.f(check), name, type_="check")
    changed = {key for key in new_checks if old_checks.get(key) != new_checks[key]}
    for check in sorted(changed & old_checks.keys()):
        op.drop_constraint(op.f(check), name, type_="check")
    for index in sorted(old.indexes, key=str):
        if index.name not in {each.name for each in new.indexes}:
            op.drop_index(index.name, table_name=name)
    for column in old.columns:
        if column.name not in new.columns:
            op.drop_column(name, column.name)
    for column in new.columns:
        if column.name not in old.columns:
            op.add_column(name, column.copy())
    if values:
        changes = ", ".join(f"{column} = {value}" for column, value in values.items())
        op.execute(f"UPDATE {name} SET {changes}")
    for check in sorted(changed):
        op.create_check_constraint(op.f(check), name, new_checks[check])
    for index in sorted(new.indexes, key=str):
        if index.name not in {each.name for each in old.indexes}:
            op.execute(CreateIndex(index))


def _checks(table: sa.Table) -> dict[str, str]:
    return {
        str(each.name): str(each.sqltext)
        for each in table.constraints
        if isinstance(each, sa.CheckConstraint)
    }
