"""Alembic's environment. Revisions in `versions/` are frozen in time and import nothing of the package.

Called from `goal_state.migrate` it finds a connection whose transaction has begun; called by the plain
`alembic` command it opens the database of `-x url=…`, of GOAL_STATE_URL or of `alembic.ini`.
"""

import os
from typing import Any

from alembic import context
from sqlalchemy import Connection

from goal_state import migrate
from goal_state.storage import schema as tables
from goal_state.storage.sqlite.connections import create_engine

_config = context.config
_OPTIONS: dict[str, Any] = {
    "target_metadata": tables.metadata,
    "version_table": tables.VERSION_TABLE,
    "transactional_ddl": True,
    "render_as_batch": True,
    # A host's database has tables of its own, which are none of our business.
    "include_name": lambda name, kind, _: kind != "table" or name in tables.metadata.tables,
}


def database_url() -> str:
    """The database that the plain `alembic` command works on."""
    return (
        context.get_x_argument(as_dictionary=True).get("url")
        or os.environ.get("GOAL_STATE_URL")
        or _config.get_main_option("sqlalchemy.url")
        or "sqlite:///goals.db"
    )


def run(connection: Connection) -> None:
    """Runs the migrations in the transaction of the connection."""
    context.configure(connection=connection, **_OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    context.configure(url=database_url(), literal_binds=True, **_OPTIONS)
    with context.begin_transaction():
        context.run_migrations()
elif (_given := _config.attributes.get("connection")) is not None:
    run(_given)
else:
    with migrate.transaction(create_engine(database_url())) as _opened:
        run(_opened)
