"""Chooses the backend of a database."""

from __future__ import annotations

import os
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.engine import URL

from goal_state.domain.tariff import Tariff
from goal_state.storage.backend import Backend, Migrations
from goal_state.storage.options import Durability
from goal_state.storage.sqlite.backend import SqliteBackend

__all__ = ["open_backend"]


def open_backend(
    target: str | os.PathLike[str] | URL | Engine,
    *,
    tariff: Tariff,
    durability: Durability,
    busy_timeout_seconds: float,
    migrations: Migrations,
    migrate: bool,
    on_begin: Callable[[], None],
    on_end: Callable[[list[object]], None],
) -> Backend:
    """Opens the database that a path, a URL or an engine leads to; see `GoalStore.open`."""
    return SqliteBackend.open(
        target,
        tariff=tariff,
        durability=durability,
        busy_timeout_seconds=busy_timeout_seconds,
        migrations=migrations,
        migrate=migrate,
        on_begin=on_begin,
        on_end=on_end,
    )
