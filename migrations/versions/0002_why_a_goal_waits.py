"""Why a goal waits (when a usage limit ends, what blocks it), and whose time a baseline is of.

Revision: 0002
Follows: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Written out: SQLite adds a column with its CHECK in place, whatever the size of the table, where
    # alembic would copy the table.
    op.execute(
        "ALTER TABLE goals ADD COLUMN resume_at_ms INTEGER"
        " CONSTRAINT ck_goals_resume_at_ms CHECK (resume_at_ms IS NULL OR status = 'usage_limited')"
    )
    op.execute(
        "ALTER TABLE goals ADD COLUMN blocked_reason TEXT"
        " CONSTRAINT ck_goals_blocked_reason CHECK (blocked_reason IS NULL"
        " OR (status = 'blocked' AND length(blocked_reason) BETWEEN 1 AND 4000))"
    )
    op.execute("ALTER TABLE thread_usage ADD COLUMN goal_id TEXT")


def downgrade() -> None:
    op.execute("ALTER TABLE thread_usage DROP COLUMN goal_id")
    op.execute("ALTER TABLE goals DROP COLUMN blocked_reason")
    op.execute("ALTER TABLE goals DROP COLUMN resume_at_ms")
