"""The first schema: goals, their event log, usage baselines and the cursors of consumers.

Revision: 0001
Follows: nothing
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "goals",
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("objective", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("token_budget", sa.Integer()),
        sa.Column("tokens_used", sa.Integer(), nullable=False),
        sa.Column("time_used_ms", sa.Integer(), nullable=False),
        sa.Column("created_at_ms", sa.Integer(), nullable=False),
        sa.Column("updated_at_ms", sa.Integer(), nullable=False),
        sa.UniqueConstraint("thread_id", name=op.f("uq_goals_thread_id")),
        sa.CheckConstraint("length(thread_id) BETWEEN 1 AND 256", name=op.f("ck_goals_thread_id")),
        sa.CheckConstraint("length(goal_id) = 36", name=op.f("ck_goals_goal_id")),
        sa.CheckConstraint(
            "length(objective) BETWEEN 1 AND 4000 AND objective = trim(objective) AND instr(objective, char(0)) = 0",
            name=op.f("ck_goals_objective"),
        ),
        sa.CheckConstraint(
            "status IN ('active', 'paused', 'blocked', 'usage_limited', 'budget_limited', 'complete')",
            name=op.f("ck_goals_status"),
        ),
        sa.CheckConstraint("token_budget > 0", name=op.f("ck_goals_token_budget")),
        sa.CheckConstraint("tokens_used >= 0", name=op.f("ck_goals_tokens_used")),
        sa.CheckConstraint("time_used_ms >= 0", name=op.f("ck_goals_time_used_ms")),
        sa.CheckConstraint("updated_at_ms >= created_at_ms", name=op.f("ck_goals_updated_at_ms")),
        sa.CheckConstraint(
            "status <> 'active' OR token_budget IS NULL OR tokens_used < token_budget",
            name=op.f("ck_goals_active_within_budget"),
        ),
        sa.PrimaryKeyConstraint("goal_id", name=op.f("pk_goals")),
        sqlite_strict=True,
    )
    op.create_table(
        "goal_events",
        sa.Column("position", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("turn_id", sa.Text()),
        sa.Column("goal_status", sa.Text(), nullable=False),
        sa.Column("previous_status", sa.Text()),
        sa.Column("token_budget", sa.Integer()),
        sa.Column("tokens_delta", sa.Integer(), nullable=False),
        sa.Column("time_delta_ms", sa.Integer(), nullable=False),
        sa.Column("cumulative_tokens", sa.Integer()),
        sa.Column("cumulative_time_ms", sa.Integer()),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("replaced_goal_id", sa.Text()),
        sa.Column("occurred_at_ms", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('created', 'usage_accounted', 'status_changed', 'cleared')",
            name=op.f("ck_goal_events_kind"),
        ),
        sa.CheckConstraint(
            "goal_status IN ('active', 'paused', 'blocked', 'usage_limited', 'budget_limited', 'complete')",
            name=op.f("ck_goal_events_goal_status"),
        ),
        sa.CheckConstraint(
            "tokens_delta >= 0 AND time_delta_ms >= 0 AND (kind = 'usage_accounted') = (cumulative_tokens IS NOT NULL) AND (kind = 'usage_accounted') = (cumulative_time_ms IS NOT NULL) AND (kind = 'usage_accounted' OR (tokens_delta = 0 AND time_delta_ms = 0))",
            name=op.f("ck_goal_events_usage"),
        ),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_goal_events")),
        sqlite_autoincrement=True,
        sqlite_strict=True,
    )
    op.create_table(
        "thread_usage",
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("turn_id", sa.Text()),
        sa.Column("input_tokens", sa.Integer(), nullable=False),
        sa.Column("cached_input_tokens", sa.Integer(), nullable=False),
        sa.Column("cache_write_input_tokens", sa.Integer(), nullable=False),
        sa.Column("output_tokens", sa.Integer(), nullable=False),
        sa.Column("reasoning_output_tokens", sa.Integer(), nullable=False),
        sa.Column("total_tokens", sa.Integer(), nullable=False),
        sa.Column("last_input_tokens", sa.Integer(), nullable=False),
        sa.Column("last_cached_input_tokens", sa.Integer(), nullable=False),
        sa.Column("last_cache_write_input_tokens", sa.Integer(), nullable=False),
        sa.Column("last_output_tokens", sa.Integer(), nullable=False),
        sa.Column("last_reasoning_output_tokens", sa.Integer(), nullable=False),
        sa.Column("last_total_tokens", sa.Integer(), nullable=False),
        sa.Column("model_context_window", sa.Integer()),
        sa.Column("updated_at_ms", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "length(thread_id) BETWEEN 1 AND 256", name=op.f("ck_thread_usage_thread_id")
        ),
        sa.CheckConstraint(
            "input_tokens >= 0 AND last_input_tokens >= 0 AND cached_input_tokens >= 0 AND last_cached_input_tokens >= 0 AND cache_write_input_tokens >= 0 AND last_cache_write_input_tokens >= 0 AND output_tokens >= 0 AND last_output_tokens >= 0 AND reasoning_output_tokens >= 0 AND last_reasoning_output_tokens >= 0 AND total_tokens >= 0 AND last_total_tokens >= 0",
            name=op.f("ck_thread_usage_counts"),
        ),
        sa.PrimaryKeyConstraint("thread_id", name=op.f("pk_thread_usage")),
        sqlite_strict=True,
    )
    op.create_table(
        "event_cursors",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("holder", sa.Text()),
        sa.Column("lease_expires_at_ms", sa.Integer()),
        sa.Column("updated_at_ms", sa.Integer(), nullable=False),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 256", name=op.f("ck_event_cursors_name")),
        sa.CheckConstraint("position >= 0", name=op.f("ck_event_cursors_position")),
        sa.CheckConstraint(
            "(holder IS NULL) = (lease_expires_at_ms IS NULL)", name=op.f("ck_event_cursors_holder")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_event_cursors")),
        sqlite_strict=True,
    )

    op.create_index(op.f("ix_goal_events_goal_id"), "goal_events", ["goal_id"])
    op.create_index(
        op.f("ix_goal_events_created"),
        "goal_events",
        ["thread_id"],
        sqlite_where=sa.text("kind = 'created'"),
    )
    op.create_index(
        op.f("uq_goal_events_idempotency_key"),
        "goal_events",
        ["thread_id", "idempotency_key"],
        unique=True,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("event_cursors")
    op.drop_table("thread_usage")
    op.drop_table("goal_events")
    op.drop_table("goals")
