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
    op.drop_table("goal_balances")
