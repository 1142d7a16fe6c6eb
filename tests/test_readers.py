"""The connections for reading, when a read is struck half-way."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from goal_state import GoalStore
from goal_state.repository import GoalRepository


def test_a_read_that_is_struck_between_its_rows_leaves_no_snapshot_open(tmp_path: Path) -> None:
    path = tmp_path / "goals.db"

    def struck(repository: GoalRepository) -> None:
        cursor = repository.executor._cursor
        cursor.execute("SELECT thread_id FROM goal_state_goals")
        assert cursor.fetchone() is not None
        raise KeyboardInterrupt

    with GoalStore.open(path) as store:
        store.create("a", "Ship")
        store.create("b", "Ship")
        with pytest.raises(KeyboardInterrupt):
            store._readers.read(struck)
        store.account("a", tokens=1)
        with closing(sqlite3.connect(path, timeout=0)) as raw:
            busy = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        assert not busy, "the log could never shrink"
        goal = store.get("a")
        assert goal is not None
        assert goal.tokens_used == 1
