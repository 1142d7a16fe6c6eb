"""Create the tables of goals, events, baselines, balances, consumer cursors and database settings.

Revision: 0001
Follows: nothing
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATUSES = "('active', 'paused', 'blocked', 'usage_limited', 'budget_limited', 'complete')"
_COUNTS = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_input_tokens",
    "output_tokens",
    "reasoning_output_tokens",
    "total_tokens",
)
# A STRICT table of SQLite has one type for integers of every size.
_INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _where(condition: str) -> dict[str, sa.TextClause]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    op.create_table(
        "goal_state_goals",
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
        sa.PrimaryKeyConstraint("goal_id", name=op.f("pk_goal_state_goals")),
        sa.UniqueConstraint("thread_id", name=op.f("uq_goal_state_goals_thread_id")),
        sa.CheckConstraint(
            "length(thread_id) BETWEEN 1 AND 256", name=op.f("ck_goal_state_goals_thread_id")
        ),
        sa.CheckConstraint("length(goal_id) = 36", name=op.f("ck_goal_state_goals_goal_id")),
        sa.CheckConstraint(
            "length(objective) BETWEEN 1 AND 4000 AND objective = trim(objective)",
            name=op.f("ck_goal_state_goals_objective"),
        ),
        # PostgreSQL's text holds no NUL at all, and it has no such functions.
        sa.CheckConstraint(
            "instr(objective, char(0)) = 0",
            name=op.f("ck_goal_state_goals_objective_without_nul"),
        ).ddl_if(dialect="sqlite"),
        sa.CheckConstraint(f"status IN {_STATUSES}", name=op.f("ck_goal_state_goals_status")),
        sa.CheckConstraint("token_budget > 0", name=op.f("ck_goal_state_goals_token_budget")),
        sa.CheckConstraint("tokens_used >= 0", name=op.f("ck_goal_state_goals_tokens_used")),
        sa.CheckConstraint("time_used_ms >= 0", name=op.f("ck_goal_state_goals_time_used_ms")),
        sa.CheckConstraint(
            "updated_at_ms >= created_at_ms", name=op.f("ck_goal_state_goals_updated_at_ms")
        ),
        sa.CheckConstraint(
            "status <> 'active' OR token_budget IS NULL OR tokens_used < token_budget",
            name=op.f("ck_goal_state_goals_active_within_budget"),
        ),
        sa.CheckConstraint(
            "resume_at_ms IS NULL OR status = 'usage_limited'",
            name=op.f("ck_goal_state_goals_resume_at_ms"),
        ),
        sa.CheckConstraint(
            "blocked_reason IS NULL OR (status = 'blocked' AND length(blocked_reason) BETWEEN 1 AND 4000)",
            name=op.f("ck_goal_state_goals_blocked_reason"),
        ),
        sqlite_strict=True,
    )

    op.create_table(
        "goal_state_events",
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
        sa.PrimaryKeyConstraint("position", name=op.f("pk_goal_state_events")),
        sa.CheckConstraint(
            "kind IN ('created', 'usage_accounted', 'status_changed', 'cleared')",
            name=op.f("ck_goal_state_events_kind"),
        ),
        sa.CheckConstraint(
            f"goal_status IN {_STATUSES}", name=op.f("ck_goal_state_events_goal_status")
        ),
        sa.CheckConstraint(
            "tokens_delta >= 0 AND time_delta_ms >= 0"
            " AND (kind = 'usage_accounted') = (cumulative_tokens IS NOT NULL)"
            " AND (kind = 'usage_accounted') = (cumulative_time_ms IS NOT NULL)"
            " AND (kind = 'usage_accounted' OR (tokens_delta = 0 AND time_delta_ms = 0))",
            name=op.f("ck_goal_state_events_usage"),
        ),
        sqlite_autoincrement=True,
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_goal_state_events_goal_id"), "goal_state_events", ["goal_id"])
    op.create_index(
        op.f("ix_goal_state_events_created"),
        "goal_state_events",
        ["thread_id"],
        **_where("kind = 'created'"),
    )
    op.create_index(
        op.f("uq_goal_state_events_idempotency_key"),
        "goal_state_events",
        ["thread_id", "idempotency_key"],
        unique=True,
        **_where("idempotency_key IS NOT NULL"),
    )

    op.create_table(
        "goal_state_baselines",
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("count_id", sa.Text(), nullable=False),
        sa.Column("turn_id", sa.Text()),
        *(sa.Column(name, _INT64, nullable=False) for name in _COUNTS),
        *(sa.Column(f"last_{name}", _INT64, nullable=False) for name in _COUNTS),
        sa.Column("model_context_window", _INT64),
        sa.Column("updated_at_ms", _INT64, nullable=False),
        sa.Column("goal_id", sa.Text()),
        sa.Column("epoch", _INT64, nullable=False),
        sa.Column("warned_goal_id", sa.Text()),
        sa.Column("unpaid_turn_ids", sa.Text()),
        sa.PrimaryKeyConstraint("thread_id", "count_id", name=op.f("pk_goal_state_baselines")),
        sa.CheckConstraint(
            "length(thread_id) BETWEEN 1 AND 256", name=op.f("ck_goal_state_baselines_thread_id")
        ),
        sa.CheckConstraint(
            "length(count_id) <= 256", name=op.f("ck_goal_state_baselines_count_id")
        ),
        sa.CheckConstraint(
            " AND ".join(f"{name} >= 0 AND last_{name} >= 0" for name in _COUNTS),
            name=op.f("ck_goal_state_baselines_counts"),
        ),
        sa.CheckConstraint("epoch >= 0", name=op.f("ck_goal_state_baselines_epoch")),
        sqlite_strict=True,
    )

    op.create_table(
        "goal_state_balances",
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("through_position", _INT64, nullable=False),
        sa.Column("tokens", _INT64, nullable=False),
        sa.Column("time_ms", _INT64, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("goal_id", name=op.f("pk_goal_state_balances")),
        sa.CheckConstraint(
            "tokens >= 0 AND time_ms >= 0", name=op.f("ck_goal_state_balances_sums")
        ),
        sa.CheckConstraint(
            "through_position > 0", name=op.f("ck_goal_state_balances_through_position")
        ),
        sqlite_strict=True,
    )

    op.create_table(
        "goal_state_cursors",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", _INT64, nullable=False),
        sa.Column("holder", sa.Text()),
        sa.Column("lease_expires_at_ms", _INT64),
        sa.Column("updated_at_ms", _INT64, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_goal_state_cursors")),
        sa.CheckConstraint(
            "length(name) BETWEEN 1 AND 256", name=op.f("ck_goal_state_cursors_name")
        ),
        sa.CheckConstraint("position >= 0", name=op.f("ck_goal_state_cursors_position")),
        sa.CheckConstraint(
            "(holder IS NULL) = (lease_expires_at_ms IS NULL)",
            name=op.f("ck_goal_state_cursors_holder"),
        ),
        sqlite_strict=True,
    )

    op.create_table(
        "goal_state_database",
        sa.Column(
            "number", sa.Integer(), autoincrement=False, server_default=sa.text("1"), nullable=False
        ),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column(
            "counted_tokens", sa.Text(), server_default=sa.text("'uncached'"), nullable=False
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_goal_state_database")),
        sa.CheckConstraint("number = 1", name=op.f("ck_goal_state_database_one_row")),
        sa.CheckConstraint(
            "length(counted_tokens) BETWEEN 1 AND 256",
            name=op.f("ck_goal_state_database_counted_tokens"),
        ),
        sqlite_strict=True,
    )


def downgrade() -> None:
    op.drop_table("goal_state_database")
    op.drop_table("goal_state_cursors")
    op.drop_table("goal_state_balances")
    op.drop_table("goal_state_baselines")
    op.drop_table("goal_state_events")
    op.drop_table("goal_state_goals")
