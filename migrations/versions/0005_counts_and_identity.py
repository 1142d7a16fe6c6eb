"""A baseline for each count of a thread, the turns that paid nothing, and a database's identity.

Revision: 0005
Follows: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_COUNTS = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_input_tokens",
    "output_tokens",
    "reasoning_output_tokens",
    "total_tokens",
)
_KEPT = ", ".join(
    (
        "thread_id",
        "turn_id",
        *_COUNTS,
        *(f"last_{name}" for name in _COUNTS),
        "model_context_window",
        "updated_at_ms",
        "goal_id",
        "count_number",
        "warned_goal_id",
    )
)
_NO_COUNT_IS_NEGATIVE = " AND ".join(f"{name} >= 0 AND last_{name} >= 0" for name in _COUNTS)


def upgrade() -> None:
    # SQLite gives a table no other primary key: it is made anew, and takes over the rows.
    op.rename_table("thread_usage", "thread_usage_before")
    op.create_table(
        "thread_usage",
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("count_id", sa.Text(), nullable=False),
        sa.Column("turn_id", sa.Text()),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in _COUNTS),
        *(sa.Column(f"last_{name}", sa.Integer(), nullable=False) for name in _COUNTS),
        sa.Column("model_context_window", sa.Integer()),
        sa.Column("updated_at_ms", sa.Integer(), nullable=False),
        sa.Column("goal_id", sa.Text()),
        sa.Column(
            "count_number",
            sa.Integer(),
            sa.CheckConstraint("count_number >= 0", name=op.f("ck_thread_usage_count_number")),
            nullable=False,
            server_default=sa.text("0"),
        ),
        sa.Column("warned_goal_id", sa.Text()),
        sa.Column("unpaid_turn_ids", sa.Text()),
        sa.CheckConstraint(
            "length(thread_id) BETWEEN 1 AND 256", name=op.f("ck_thread_usage_thread_id")
        ),
        sa.CheckConstraint("length(count_id) <= 256", name=op.f("ck_thread_usage_count_id")),
        sa.CheckConstraint(_NO_COUNT_IS_NEGATIVE, name=op.f("ck_thread_usage_counts")),
        sa.PrimaryKeyConstraint("thread_id", "count_id", name=op.f("pk_thread_usage")),
        sqlite_strict=True,
    )
    op.execute(
        f"INSERT INTO thread_usage ({_KEPT}, count_id)"  # noqa: S608
        f" SELECT {_KEPT}, '' FROM thread_usage_before"
    )
    op.drop_table("thread_usage_before")
    op.create_table(
        "database_identity",
        sa.Column("identity", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("identity", name=op.f("pk_database_identity")),
        sqlite_strict=True,
    )


def downgrade() -> None:
    op.drop_table("database_identity")
    op.rename_table("thread_usage", "thread_usage_after")
    # To the letter what the older revisions left, which added columns one by one.
    counts = "".join(f"\t{name} INTEGER NOT NULL, \n" for name in _COUNTS)
    last_counts = "".join(f"\tlast_{name} INTEGER NOT NULL, \n" for name in _COUNTS)
    op.execute(
        "CREATE TABLE thread_usage (\n\tthread_id TEXT NOT NULL, \n\tturn_id TEXT, \n"
        f"{counts}{last_counts}"
        "\tmodel_context_window INTEGER, \n"
        "\tupdated_at_ms INTEGER NOT NULL, goal_id TEXT,"
        " count_number INTEGER DEFAULT 0 NOT NULL"
        " CONSTRAINT ck_thread_usage_count_number CHECK (count_number >= 0),"
        " warned_goal_id TEXT, \n"
        "\tCONSTRAINT pk_thread_usage PRIMARY KEY (thread_id), \n"
        "\tCONSTRAINT ck_thread_usage_thread_id CHECK (length(thread_id) BETWEEN 1 AND 256), \n"
        f"\tCONSTRAINT ck_thread_usage_counts CHECK ({_NO_COUNT_IS_NEGATIVE})\n)\n STRICT\n\n"
    )
    # It knows one count of a thread: the one without a name, else the one that was reported last.
    op.execute(
        f"INSERT INTO thread_usage ({_KEPT})"  # noqa: S608
        f" SELECT {_KEPT} FROM thread_usage_after AS kept"
        " WHERE count_id = (SELECT count_id FROM thread_usage_after AS one"
        " WHERE one.thread_id = kept.thread_id"
        " ORDER BY count_id <> '', updated_at_ms DESC, count_id LIMIT 1)"
    )
    op.drop_table("thread_usage_after")
