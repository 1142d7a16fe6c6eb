"""Balances carried forward, so that old events can be pruned and every goal still be verified.

Revision: 0003
Follows: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "goal_balances",
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("through_position", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("time_ms", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("goal_id", name=op.f("pk_goal_balances")),
        sa.CheckConstraint("tokens >= 0 AND time_ms >= 0", name=op.f("ck_goal_balances_sums")),
        sa.CheckConstraint("through_position > 0", name=op.f("ck_goal_balances_through_position")),
        sqlite_strict=True,
    )


def downgrade() -> None:
    # The older schema knows no balances: each becomes one event, in the place of the last that it sums up.
    op.execute(
        "INSERT INTO goal_events (position, event_id, kind, thread_id, goal_id, goal_status,"
        " previous_status, token_budget, tokens_delta, time_delta_ms, cumulative_tokens,"
        " cumulative_time_ms, occurred_at_ms)"
        " SELECT b.through_position, lower(hex(randomblob(16))),"
        " CASE b.status WHEN 'cleared' THEN 'cleared' ELSE 'usage_accounted' END,"
        " c.thread_id, c.goal_id, CASE b.status WHEN 'cleared' THEN c.goal_status ELSE b.status END,"
        " c.goal_status, c.token_budget,"
        " CASE b.status WHEN 'cleared' THEN 0 ELSE b.tokens END,"
        " CASE b.status WHEN 'cleared' THEN 0 ELSE b.time_ms END,"
        " CASE b.status WHEN 'cleared' THEN NULL ELSE b.tokens END,"
        " CASE b.status WHEN 'cleared' THEN NULL ELSE b.time_ms END,"
        " c.occurred_at_ms"
        " FROM goal_balances AS b JOIN goal_events AS c"
        " ON c.goal_id = b.goal_id AND c.kind = 'created'"
    )
    op.drop_table("goal_balances")
