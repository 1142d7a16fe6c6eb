"""The contract, for every way of running on SQLite: a store on a file or in memory, and a `GoalRepository`
in a transaction of its host's, which commits it or first rolls it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import Engine, text

from goal_state import GoalRepository, GoalStore
from goal_state.storage.sqlite.connections import create_engine
from goal_state.testing.contract import (
    CommittingHost,
    HesitantHost,
    RepositoryContract,
    StoreContract,
    Subject,
)
from tests.in_memory import open_in_memory


def _plain_engine(path: Path) -> Engine:
    """As any host makes one: the driver begins transactions by itself, and late."""
    return sqlalchemy.create_engine(f"sqlite:///{path}")


SUBJECTS: dict[str, Callable[..., Subject]] = {
    "file": lambda path, **options: Subject(GoalStore.open(path, durability="normal", **options)),
    "memory": lambda _, **options: Subject(open_in_memory(**options)),
    "host": lambda path, **options: CommittingHost(create_engine(path), **options),
    "host-with-plain-engine": lambda path, **options: CommittingHost(
        _plain_engine(path), **options
    ),
    "host-rolls-back": lambda path, **options: HesitantHost(create_engine(path), **options),
    "host-with-plain-engine-rolls-back": lambda path, **options: HesitantHost(
        _plain_engine(path), **options
    ),
}


class TestStore(StoreContract):
    @pytest.fixture(
        params=[
            name if name == "file" else pytest.param(name, marks=pytest.mark.slow)
            for name in SUBJECTS
        ]
    )
    def make_subject(
        self, request: pytest.FixtureRequest, database: Path
    ) -> Callable[..., Subject]:
        return lambda **options: SUBJECTS[request.param](database, **options)


class TestRepository(RepositoryContract):
    @pytest.fixture(params=["ours", pytest.param("plain", marks=pytest.mark.slow)])
    def engine(self, request: pytest.FixtureRequest, database: Path) -> Iterator[Engine]:
        engine = create_engine(database) if request.param == "ours" else _plain_engine(database)
        yield engine
        engine.dispose()


def test_a_plain_engine_in_memory_stays_its_hosts() -> None:
    """The one connection there is has the host's transactions on it, before and after."""
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE host_notes (id INTEGER PRIMARY KEY)"))
    with GoalStore.open(engine) as store:
        store.create("t", "Ship")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO host_notes DEFAULT VALUES"))
        GoalRepository(connection).charge("t", tokens=5)
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO host_notes DEFAULT VALUES"))
        connection.rollback()
        assert connection.execute(text("SELECT count(*) FROM host_notes")).scalar_one() == 1
        GoalRepository(connection).charge("t", tokens=5)
        connection.rollback()
        assert [goal.tokens_used for goal in GoalRepository(connection).goals_page()] == [5]
    engine.dispose()
