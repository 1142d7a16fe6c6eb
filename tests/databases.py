"""Looking at a database, and at the folder it lies in, past the library."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from goal_state.storage.schema import database, metadata

__all__ = ["Rows", "contents", "execute", "fingerprints", "rows", "schema"]

Rows = dict[str, list[tuple[Any, ...]]]


def rows(connection: sqlite3.Connection) -> Rows:
    """Every row of every table of ours."""
    return {
        name: connection.execute(f"SELECT * FROM {name} ORDER BY 1, rowid").fetchall()
        for name in metadata.tables
        if name != database.name  # what tells a copy from its original
    }


def schema(path: Path) -> list[tuple[Any, ...]]:
    """Every table and index with its SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        ).fetchall()


def contents(path: Path) -> Rows:
    """Every row of every table in a file, whoever's it is, and the schema."""
    with closing(sqlite3.connect(path)) as connection:
        names = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
            ).fetchall()
        ]
        found = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}
    return found | {"sqlite_master": schema(path)}


def execute(path: Path, *statements: str) -> None:
    """Runs SQL on a file with the driver alone, in one transaction, and closes it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def fingerprints(folder: Path) -> dict[str, str]:
    """Every file in a folder and the hash of what is in it."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
