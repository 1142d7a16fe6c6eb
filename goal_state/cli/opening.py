"""Opens the database that `--db` names."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import click
from sqlalchemy import Engine

from goal_state.domain.counting import CountedTokens
from goal_state.errors import DatabaseLocationError, SettingsConflictError
from goal_state.storage.sqlite.connections import create_engine
from goal_state.storage.sqlite.location import database_path, inspect_file
from goal_state.store import GoalStore

__all__ = ["Location", "locate", "locate_existing", "open_existing", "open_store"]


class Location(NamedTuple):
    """A database file; `revision` is None where it has no schema yet."""

    engine: Engine
    path: Path
    revision: str | None


def locate(database: str) -> Location:
    """Locates a database, which may be missing; nothing is made or changed.

    Raises:
        RequestError, DatabaseReadOnlyError: it cannot hold our database.
    """
    engine = create_engine(database)
    path = database_path(engine)
    if path is None:
        raise DatabaseLocationError(
            f"{database!r} is in memory and would be gone when the command ends; name a file"
        )
    try:
        return Location(engine, path, inspect_file(path))
    except OSError as error:
        raise click.BadParameter(
            f"{str(path)!r}: {error.strerror or error}", param_hint="'--db'"
        ) from error


def locate_existing(database: str) -> Location:
    """Locates an existing database.

    Raises:
        DatabaseLocationError: it does not exist.
        RequestError, DatabaseReadOnlyError: it cannot hold our database.
    """
    location = locate(database)
    if not location.path.exists():
        raise DatabaseLocationError(
            f"there is no database {str(location.path)!r}; to make one, run: goal-state db upgrade"
            f" --db {location.path}"
        )
    return location


def open_existing(database: str) -> GoalStore:
    """A store on an existing, current database: a command that reads makes and migrates nothing."""
    return open_store(locate_existing(database).path, migrate=False)


def open_store(
    database: str | Path, *, migrate: bool = True, counted_tokens: str = "uncached"
) -> GoalStore:
    """A store with the `counted_tokens` of the database, or, for a new one, with those named."""
    wanted = CountedTokens.as_stored(counted_tokens)
    try:
        return GoalStore.open(database, migrate=migrate, counted_tokens=wanted)
    except SettingsConflictError as conflict:
        stored = CountedTokens.as_stored(conflict.stored)
        return GoalStore.open(database, migrate=migrate, counted_tokens=stored)
