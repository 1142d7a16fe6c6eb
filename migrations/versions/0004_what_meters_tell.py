"""What meters tell one another: the number of a thread's count, and whose exhausted budget was told.

Revision: 0004
Follows: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Written out: SQLite adds a column with its CHECK in place, where alembic would copy the table.
    op.execute(
        "ALTER TABLE thread_usage ADD COLUMN count_number INTEGER DEFAULT 0 NOT NULL"
        " CONSTRAINT ck_thread_usage_count_number CHECK (count_number >= 0)"
    )
    op.execute("ALTER TABLE thread_usage ADD COLUMN warned_goal_id TEXT")


def downgrade() -> None:
    op.execute("ALTER TABLE thread_usage DROP COLUMN warned_goal_id")
    op.execute("ALTER TABLE thread_usage DROP COLUMN count_number")
