"""A number for each count of a thread's tokens, so that meters know which one a lower total is of.

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
        "ALTER TABLE thread_usage ADD COLUMN count_number INTEGER"
        " CONSTRAINT ck_thread_usage_count_number CHECK (count_number >= 0) DEFAULT 0 NOT NULL"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE thread_usage DROP COLUMN count_number")
