"""Whoever opens a connection closes it, on every Python: only some of them would tell."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from goal_state import GoalStateError, GoalStore, migrate
from goal_state.storage.schema import VERSION_TABLE
from goal_state.storage.sqlite.connections import create_engine, vacuum
from tests import next_schema
from tests.cli.program import run
from tests.databases import execute
from tests.processes import PATIENCE_SECONDS


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """Every connection to SQLite that is made from now on."""
    made: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def remember(*arguments: object, **options: object) -> sqlite3.Connection:
        made.append(connect(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", remember)
    monkeypatch.setattr(sqlite3.dbapi2, "connect", remember)
    return made


def is_open(connection: sqlite3.Connection) -> bool:
    try:
        connection.total_changes  # noqa: B018
    except sqlite3.ProgrammingError:
        return False
    return True


def read_in_threads(path: Path) -> None:
    """Several readers at once, so that there are several connections to read with."""
    at_once = threading.Barrier(3, timeout=PATIENCE_SECONDS)

    def read(store: GoalStore) -> None:
        goals = store.goals()
        next(goals)
        at_once.wait()
        list(goals)

    with GoalStore.open(path) as store:
        store.create("t", "Ship")
        threads = [threading.Thread(target=read, args=(store,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def use(target: str | Path) -> None:
    with GoalStore.open(target) as store:
        store.create("t", "Ship")
        store.charge("t", tokens=1)
        assert store.verify() == []
        with store.consume("c", lambda _: None) as consumer:
            consumer.drain(PATIENCE_SECONDS)
        list(store.export_lines())


def copy(path: Path) -> None:
    with GoalStore.open(path) as store:
        store.backup(path.with_name("copy.db"))


def walk_the_schema(path: Path) -> None:
    engine = create_engine(path)
    migrate.upgrade(engine)
    migrate.check(engine)
    migrate.downgrade(engine, "base")
    migrate.upgrade(engine)
    migrate.current(engine)
    vacuum(engine)


def open_what_is_newer(path: Path) -> None:
    GoalStore.open(path).close()
    execute(path, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    GoalStore.open(path)


def open_what_is_foreign(path: Path) -> None:
    execute(path, "CREATE TABLE theirs (id)")
    GoalStore.open(path)


def open_what_is_damaged(path: Path) -> None:
    GoalStore.open(path).close()
    image = path.read_bytes()
    path.write_bytes(image[:100] + b"\xa5" * (len(image) - 100))
    GoalStore.open(path)


def open_what_is_older(path: Path) -> None:
    GoalStore.open(path).close()
    next_schema.write(path.parent / "migrations")
    undo = next_schema.use(path.parent / "migrations")
    try:
        GoalStore.open(path, migrate=False)
    finally:
        undo()


def command(*words: str) -> Callable[[Path], None]:
    def call(path: Path) -> None:
        use(path)
        run(*words, "--db", path)

    return call


@pytest.mark.slow
@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda _: use(":memory:"), id="a store in memory"),
        pytest.param(use, id="a store in a file"),
        read_in_threads,
        copy,
        walk_the_schema,
        open_what_is_newer,
        open_what_is_foreign,
        open_what_is_damaged,
        open_what_is_older,
        *(
            pytest.param(command(*words), id=" ".join(words))
            for words in (["list"], ["show", "t"], ["events"], ["verify"], ["db", "current"])
        ),
    ],
)
def test_every_connection_that_was_made_is_closed_at_the_end(
    path: Path, made: list[sqlite3.Connection], work: Callable[[Path], None]
) -> None:
    with suppress(GoalStateError):
        work(path)
    assert made
    assert [connection for connection in made if is_open(connection)] == []
