"""The connections for reading, when a read is struck half-way."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from goal_state import GoalStore
from goal_state.storage.repository import GoalRepository
from goal_state.storage.sqlite.readers import PooledReaders


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
            store._backend._readers.read(struck)
        store.charge("a", tokens=1)
        with closing(sqlite3.connect(path, timeout=0)) as raw:
            busy = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        assert not busy, "the log could never shrink"
        goal = store.get("a")
        assert goal is not None
        assert goal.tokens_used == 1


def test_a_fork_while_its_own_thread_connects_is_not_let_go_for_and_harms_nothing(
    tmp_path: Path,
) -> None:
    # A fork's hook runs on the thread that forks, from a signal handler in the midst of anything.
    with GoalStore.open(tmp_path / "goals.db") as store:
        readers = store._backend._readers
        assert isinstance(readers, PooledReaders)
        with readers._gate:
            assert not readers.let_go(time.monotonic() + 1)
            readers.go_on()
        assert readers.let_go(time.monotonic() + 1)
        readers.go_on()
        assert store.count() == 0
