"""Creates and upgrades the schema with alembic, from code.

Alembic is imported only for a migration: opening a current database costs one query.
"""

from __future__ import annotations

import io
import logging
import shlex
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import Connection, Engine

from goal_state.errors import (
    InvalidValueError,
    SchemaError,
    SchemaOutOfDateError,
    SchemaTooNewError,
)
from goal_state.storage.schema import HEAD_REVISION, VERSION_TABLE, check_tables, metadata
from goal_state.storage.sqlite.connections import (
    detached_connection,
    driver_connection,
    enable_wal,
)
from goal_state.storage.sqlite.errors import translating
from goal_state.storage.sqlite.location import database_path, read_schema

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

__all__ = [
    "Revision",
    "check",
    "current",
    "downgrade",
    "ensure_current",
    "history",
    "include_name",
    "refuse_newer",
    "stamp",
    "transaction",
    "upgrade",
]

_logger = logging.getLogger(__name__)

_PACKAGE: Final = Path(__file__).parent


class Revision(NamedTuple):
    """One migration of the schema."""

    revision: str
    follows: str | None
    message: str


def current(engine: Engine) -> str | None:
    """The revision of the database's schema; None where there is no schema of ours.

    Raises:
        SchemaIncompleteError: some of our tables exist and others do not.
    """
    with detached_connection(engine) as connection, translating():
        tables, revision = read_schema(driver_connection(connection))
    check_tables(tables, revision)
    return revision


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """For the `env.py` of a host whose database holds our tables too: `context.configure(…,
    include_name=include_name)` keeps `alembic revision --autogenerate` from dropping them.

    A host that has such a hook already calls this one from it, and excludes whatever this one excludes.

    Args:
        name: the name of an object that alembic found in the database.
        type_: its kind: `"schema"`, `"table"`, `"column"`, `"index"`, …
        parent_names: the names of the objects that it belongs to, by `"table_name"` and so on.

    Returns:
        False for our tables, including the one with the schema's revision, and for objects of theirs.
    """
    table = name if type_ == "table" else parent_names.get("table_name")
    return table != VERSION_TABLE and table not in metadata.tables


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Upgrades the schema to a revision, creating it where there is none; in one transaction.

    Several processes may call this at once: one of them migrates, the others find it done.

    Raises:
        SchemaTooNewError: the database was made by a newer version of the library.
        SchemaIncompleteError: some of our tables exist and others do not.
        InvalidValueError: there is no such revision.
        DatabaseError: the database failed; nothing was changed.
    """
    started = time.monotonic()
    before = current(engine)
    refuse_newer(before)
    _require_known(_scripts(_config()), revision)
    with detached_connection(engine) as connection:
        enable_wal(driver_connection(connection))
    _run(engine, "upgrade", revision)
    if before != (after := current(engine)):
        seconds = time.monotonic() - started
        _logger.info("migrated the schema from %s to %s in %.2f s", before, after, seconds)


def downgrade(engine: Engine, revision: str) -> None:
    """Downgrades the schema to an older revision (`base`: no schema), dropping data that it cannot hold.

    Raises:
        SchemaTooNewError, SchemaIncompleteError, InvalidValueError, DatabaseError: as for `upgrade`.
    """
    before = current(engine)
    refuse_newer(before)
    _run(engine, "downgrade", revision)
    _logger.info("downgraded the schema from %s to %s", before, current(engine))


def stamp(engine: Engine, revision: str) -> None:
    """Records a revision as the schema's without changing anything else.

    Raises:
        InvalidValueError: there is no such revision.
        DatabaseError: the database failed; nothing was changed.
    """
    _run(engine, "stamp", revision)


def history() -> list[Revision]:
    """The revisions that the library knows, the oldest first."""
    return [
        Revision(script.revision, _one(script.down_revision), script.doc)
        for script in reversed(list(_scripts(_config()).walk_revisions()))
    ]


def check(engine: Engine) -> None:
    """Compares the tables of a current database with what the library expects.

    Raises:
        SchemaOutOfDateError: the schema is older than the library.
        SchemaTooNewError: it is newer.
        SchemaIncompleteError: some of our tables exist and others do not.
        SchemaError: its revision is current, but its tables differ.
    """
    from alembic.util.exc import AutogenerateDiffsDetected

    _require_current(engine, current(engine))
    try:
        _run(engine, "check")
    except AutogenerateDiffsDetected as error:
        raise SchemaError(
            f"the tables are not those of revision {HEAD_REVISION}: {error}"
        ) from error


def ensure_current(engine: Callable[[], Engine], revision: str | None, *, migrate: bool) -> None:
    """Upgrades a database whose schema is at `revision`, or only checks it where `migrate` is False.

    Args:
        engine: makes an engine on the database; called only if it is not current.
        revision: the revision of its schema.
        migrate: whether to upgrade it.

    Raises:
        SchemaOutOfDateError: it is older (or empty) and `migrate` is False.
        SchemaTooNewError: it was made by a newer version of the library.
    """
    if revision == HEAD_REVISION:
        return
    if migrate:
        upgrade(engine())
    else:
        _require_current(engine(), revision)


@contextmanager
def transaction(engine: Engine) -> Generator[Connection]:
    """A connection in a transaction that may change the schema: it has the write lock, and rebuilding a table
    of ours deletes no row of a host's table.
    """
    connection = detached_connection(engine)
    driver = driver_connection(connection)
    foreign_keys = driver.execute("PRAGMA foreign_keys").fetchone()[0]
    try:
        with translating():
            # Rebuilding a parent table with foreign keys on would delete the child rows. Inside a transaction
            # this pragma has no effect.
            driver.execute("PRAGMA foreign_keys = OFF")
            connection.begin()
            if not driver.in_transaction:  # a host's engine, which lacks our "begin" listener
                driver.execute("BEGIN IMMEDIATE")
            broken_before = driver.execute("PRAGMA foreign_key_check").fetchall()
            yield connection
            if len(driver.execute("PRAGMA foreign_key_check").fetchall()) > len(broken_before):
                raise SchemaError(
                    "the migration would leave foreign keys without a parent row; it was rolled back"
                )
            connection.commit()
            if driver.in_transaction:  # a host's engine, whose driver does not commit by itself
                driver.execute("COMMIT")
    finally:
        if driver.in_transaction:
            driver.execute("ROLLBACK")
        driver.execute(f"PRAGMA foreign_keys = {foreign_keys:d}")
        connection.close()


def _run(engine: Engine, command: str, *revisions: str) -> None:
    from alembic import command as commands
    from alembic.util.exc import AutogenerateDiffsDetected, CommandError

    config = _config()
    for revision in revisions:
        _require_known(_scripts(config), revision)
    with transaction(engine) as connection:
        config.attributes["connection"] = connection
        try:
            getattr(commands, command)(config, *revisions)
        except AutogenerateDiffsDetected:
            raise
        except CommandError as error:
            raise SchemaError(str(error)) from error


def _config() -> Config:
    from alembic.config import Config

    config = Config(stdout=io.StringIO())
    config.set_main_option("script_location", str(_script_location()).replace("%", "%%"))
    return config


def _scripts(config: Config) -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(config)


def _script_location() -> Path:
    """`migrations/`: inside the package where that is installed, beside it in a checkout."""
    installed = _PACKAGE / "migrations"
    if (installed / "env.py").is_file():
        return installed
    checkout = _PACKAGE.parent / "migrations"
    if (checkout / "env.py").is_file() and (_PACKAGE.parent / "pyproject.toml").is_file():
        return checkout
    raise SchemaError("the package was installed without its migrations; install it again")


def _require_known(scripts: ScriptDirectory, revision: object) -> None:
    # Alembic itself would accept abbreviations, and steps such as `+1`.
    known = [script.revision for script in scripts.walk_revisions()]
    if revision not in ("head", "base", *known):
        raise InvalidValueError(
            "revision",
            f"must be head, base or one of {', '.join(known)}, is {ascii(revision)[:80]}"
            if isinstance(revision, str)
            else f"must be text, not {type(revision).__name__}",
        )


def _require_current(engine: Engine, revision: str | None) -> None:
    if revision == HEAD_REVISION:
        return
    refuse_newer(revision)
    path = shlex.quote(str(database_path(engine)))
    found = "has no tables of ours" if revision is None else f"is at revision {revision}"
    raise SchemaOutOfDateError(
        f"the database {found}, the library needs {HEAD_REVISION}; run: goal-state db upgrade --db {path}"
    )


def refuse_newer(revision: str | None) -> None:
    """Refuses a schema that the library does not know.

    Raises:
        SchemaTooNewError: it was made by a newer version of the library.
    """
    if revision is None or revision == HEAD_REVISION:
        return
    if revision not in {known.revision for known in history()}:
        raise SchemaTooNewError(
            f"the database is at revision {revision}, which this version of goal-state does not know"
            f" (it goes up to {HEAD_REVISION}); upgrade goal-state. The database was left as it was"
        )


def _one(revisions: str | tuple[str, ...] | list[str] | None) -> str | None:
    return revisions if isinstance(revisions, str) else None
