"""Stores in memory for tests that are not about migration, which takes longer than most tests."""

from __future__ import annotations

import functools
import sqlite3
from contextlib import closing
from typing import Any
from unittest.mock import patch

from sqlalchemy import Engine

from goal_state import GoalStore, migrate
from goal_state.storage.sqlite.connections import (
    create_engine,
    detached_connection,
    driver_connection,
)

__all__ = ["open_in_memory"]


def open_in_memory(target: str | Engine = ":memory:", **options: Any) -> GoalStore:
    """Opens a store on a new database in memory, of its own or of a host's engine, as it is always opened;
    only its tables are copied from a database that was migrated once."""
    migrated = _migrated()

    def copy_tables(engine: Engine) -> None:
        with (
            closing(sqlite3.connect(":memory:")) as original,
            detached_connection(engine) as connection,
        ):
            original.deserialize(migrated)
            original.backup(driver_connection(connection))

    with patch.object(migrate, "upgrade", copy_tables):
        return GoalStore.open(target, **options)


@functools.cache
def _migrated() -> bytes:
    engine = create_engine(":memory:")
    try:
        migrate.upgrade(engine)
        with detached_connection(engine) as connection:
            return driver_connection(connection).serialize()
    finally:
        engine.dispose()
