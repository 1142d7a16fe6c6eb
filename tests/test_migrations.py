"""The schema's history: up, down, half-way, newer than the library, inside a host's database."""

from __future__ import annotations

import logging
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from goal_state import (
    GoalRepository,
    GoalStore,
    InvalidValueError,
    SchemaError,
    SchemaOutOfDateError,
    SchemaTooNewError,
    TokenUsage,
    migrate,
)
from goal_state.storage.schema import HEAD_REVISION, VERSION_TABLE, metadata
from goal_state.storage.sqlite.connections import create_engine
from tests import next_schema
from tests.databases import contents, execute, fingerprints
from tests.next_schema import NEXT_REVISION
from tests.processes import CHECKOUT, PATIENCE_SECONDS, all_at_once, python

REVISIONS = [known.revision for known in migrate.history()]


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    engine = create_engine(path)
    yield engine
    engine.dispose()


def fill(store: GoalStore) -> None:
    """Something in every table and every column."""
    for status in ("active", "paused", "blocked", "usage_limited", "budget_limited", "complete"):
        store.create(status, f"Ship, {status}", token_budget=1000, turn_id="turn-1")
        store.record_total(status, TokenUsage(5), turn_id="turn-1")
        store.record_total(status, TokenUsage(75, 5, 1, 20, 10), seconds=1.5, turn_id="turn-2")
        store.charge(status, tokens=1, idempotency_key="k")
        store.set(status, status=status)
    store.replace("complete", "Ship more")
    store.create("gone", "Ship")
    store.clear("gone")
    with store.consume("audit", lambda _: None) as consumer:
        assert consumer.drain(PATIENCE_SECONDS)


Data = dict[str, list[dict[str, Any]]]


def data(path: Path) -> Data:
    """The rows of those of our tables that are there, by the names of their columns."""
    found: Data = {}
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        for table in there & set(metadata.tables):
            rows = connection.execute(f"SELECT * FROM {table} ORDER BY 1, rowid").fetchall()
            found[table] = [dict(row) for row in rows]
    return found


def only(older: Data, rows: Data) -> Data:
    """The rows in the tables and columns that some older ones have."""
    return {
        table: [{key: row[key] for key in older[table][0]} for row in rows[table]]
        if older[table]
        else rows[table]
        for table in older
    }


# -- up and down -------------------------------------------------------------------------------------


def test_the_history_is_one_line_that_ends_at_the_head() -> None:
    history = migrate.history()
    assert [known.follows for known in history] == [None, *REVISIONS[:-1]]
    assert REVISIONS[-1] == HEAD_REVISION
    assert all(known.message for known in history)
    config = Config()
    config.set_main_option("script_location", str(CHECKOUT / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD_REVISION]


@pytest.mark.usefixtures("next_revision")
def test_down_and_up_again_loses_nothing_that_the_older_schema_can_hold(
    path: Path, engine: Engine
) -> None:
    with GoalStore.open(path) as store:
        fill(store)
    newest = data(path)
    assert {table for table, rows in newest.items() if not rows} == {
        "goal_state_balances",
        "goal_state_holds",
        "goal_state_parts",
    }

    steps = [newest]
    for older in reversed(REVISIONS):
        migrate.downgrade(engine, older)
        assert migrate.current(engine) == older
        now = data(path)
        assert now == only(now, steps[-1])
        steps.append(now)
    oldest = steps[-1]
    assert oldest != newest
    for newer in [*REVISIONS[1:], NEXT_REVISION]:
        migrate.upgrade(engine, newer)
        assert migrate.current(engine) == newer
        assert only(oldest, data(path)) == oldest

    with GoalStore.open(path, migrate=False) as store:
        assert store.verify() == []
        assert store.count() == 6
        assert store.charge("active", tokens=1).applied
        assert store.charge("active", tokens=1, idempotency_key="k").duplicate


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.usefixtures("next_revision")
def test_opening_upgrades_a_database_of_each_older_revision(
    path: Path, engine: Engine, revision: str, caplog: pytest.LogCaptureFixture
) -> None:
    with GoalStore.open(path) as store:
        fill(store)
    migrate.downgrade(engine, revision)
    older = data(path)
    caplog.clear()
    with GoalStore.open(path) as store:
        assert store.verify() == []
        assert store.count() == 6
    assert only(older, data(path)) == older
    assert migrate.current(engine) == NEXT_REVISION
    [record] = [r for r in caplog.records if r.name == "goal_state.migrate"]
    assert record.levelno == logging.INFO
    assert re.fullmatch(
        rf"migrated the schema from {revision} to {NEXT_REVISION} in \d+\.\d+ s",
        record.getMessage(),
    )


def test_down_to_nothing_and_up_again(path: Path, engine: Engine) -> None:
    migrate.upgrade(engine)
    made = contents(path)
    migrate.downgrade(engine, "base")
    assert migrate.current(engine) is None
    left = {name for kind, name, *_ in contents(path)["sqlite_master"] if kind == "table"}
    assert left <= {VERSION_TABLE, "sqlite_sequence"}
    migrate.upgrade(engine)
    assert contents(path) == made


def test_upgrading_what_is_current_changes_nothing(database: Path) -> None:
    engine = create_engine(database)
    before = fingerprints(database.parent)
    migrate.upgrade(engine)
    assert fingerprints(database.parent) == before


@pytest.mark.usefixtures("next_revision")
def test_stamp_changes_the_number_alone(database: Path) -> None:
    engine = create_engine(database)
    before = contents(database)
    migrate.stamp(engine, "head")
    assert migrate.current(engine) == NEXT_REVISION
    migrate.stamp(engine, HEAD_REVISION)
    assert contents(database) == before


@pytest.mark.parametrize("call", [migrate.upgrade, migrate.downgrade, migrate.stamp])
def test_a_revision_that_is_none_is_refused(
    database: Path, call: Callable[[Engine, str], None]
) -> None:
    before = contents(database)
    with pytest.raises(InvalidValueError, match="revision: must be head, base or one of") as caught:
        call(create_engine(database), "nonsense")
    assert caught.value.field == "revision"
    assert contents(database) == before


# -- the schema itself -------------------------------------------------------------------------------


def _parts(sql: str) -> list[str]:
    """What stands between the outer brackets of a CREATE TABLE, and behind them, in no order."""
    body, _, options = sql.partition("(")[2].rpartition(")")
    parts, depth, begun = [], 0, 0
    for place, character in enumerate(body):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(body[begun:place])
            begun = place + 1
    parts.append(body[begun:])
    words = [" ".join(part.replace('"', "").split()) for part in [*parts, options]]
    # A column that was added has its constraint behind it, which is the table's all the same.
    return sorted(each for part in words for each in re.split(r"(?<=\S) (?=CONSTRAINT )", part))


def _described(path: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(
            "SELECT name, type, sql FROM sqlite_master WHERE sql IS NOT NULL"
        ).fetchall()
    return {
        name: _parts(sql) if kind == "table" else " ".join(sql.split())
        for name, kind, sql in found
        if name not in (VERSION_TABLE, "sqlite_sequence")
    }


def test_migrations_make_what_the_metadata_says(database: Path, tmp_path: Path) -> None:
    other = tmp_path / "by metadata.db"
    engine = create_engine(other)
    metadata.create_all(engine)
    engine.dispose()
    described = _described(database)
    assert described == _described(other)
    assert set(metadata.tables) < set(described)
    assert any("STRICT" in part for part in described["goal_state_goals"])


def test_check_tells_of_a_table_that_differs(database: Path) -> None:
    engine = create_engine(database)
    migrate.check(engine)
    execute(database, "ALTER TABLE goal_state_goals ADD COLUMN colour TEXT")
    with pytest.raises(SchemaError, match="colour"):
        migrate.check(engine)


def test_check_of_a_database_without_our_tables(engine: Engine) -> None:
    with pytest.raises(SchemaOutOfDateError):
        migrate.check(engine)


# -- opened without migrating, or newer than the library ---------------------------------------------


def test_without_migrating_a_new_file_is_refused_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "two words.db"
    with pytest.raises(SchemaOutOfDateError, match="has no tables of ours") as caught:
        GoalStore.open(path, migrate=False)
    command = str(caught.value).partition("run: ")[2]
    assert shlex.split(command) == ["goal-state", "db", "upgrade", "--db", str(path)]
    assert fingerprints(tmp_path) == {}


@pytest.mark.usefixtures("next_revision")
def test_without_migrating_an_older_file_is_refused_untouched(database: Path) -> None:
    before = fingerprints(database.parent)
    with pytest.raises(SchemaOutOfDateError, match=f"is at revision {HEAD_REVISION}") as caught:
        GoalStore.open(database, migrate=False)
    assert f"the library needs {NEXT_REVISION}" in str(caught.value)
    assert f"goal-state db upgrade --db {database}" in str(caught.value)
    assert fingerprints(database.parent) == before


def test_without_migrating_a_current_file_is_opened(database: Path) -> None:
    with GoalStore.open(database, migrate=False) as store:
        assert store.create("t", "Ship") == store.get("t")


@pytest.mark.parametrize("migrating", [True, False])
@pytest.mark.parametrize("by", ["path", "engine"])
def test_a_newer_database_is_refused_untouched(database: Path, migrating: bool, by: str) -> None:
    execute(database, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    before = fingerprints(database.parent)
    target = database if by == "path" else create_engine(database)
    with pytest.raises(SchemaTooNewError, match=r"at revision 9999, .* upgrade goal-state"):
        GoalStore.open(target, migrate=migrating)
    assert fingerprints(database.parent) == before


@pytest.mark.parametrize(
    "call",
    [migrate.upgrade, migrate.check, lambda engine: migrate.downgrade(engine, REVISIONS[0])],
    ids=["upgrade", "check", "downgrade"],
)
def test_a_newer_database_is_not_migrated(database: Path, call: Callable[[Engine], None]) -> None:
    execute(database, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    before = fingerprints(database.parent)
    with pytest.raises(SchemaTooNewError):
        call(create_engine(database))
    assert fingerprints(database.parent) == before


# -- a migration that does not get to its end --------------------------------------------------------

_REBUILDING = """
    op.create_table("colours", sa.Column("name", sa.Text(), primary_key=True))
    op.execute("INSERT INTO colours VALUES ('red')")
    with op.batch_alter_table("goal_state_goals", recreate="always") as batch:
        batch.add_column(sa.Column("colour", sa.Text()))
    op.execute("UPDATE goal_state_goals SET colour = 'red'")
"""


@pytest.fixture
def rebuilding(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a migration behind the newest one that rebuilds the goals, and ends as it is told to."""
    undo: list[Callable[[], None]] = []

    def make(last: str) -> Path:
        upgrade = f"{_REBUILDING}    {last}\n"
        script = next_schema.write(tmp_path / "migrations", upgrade=upgrade)
        undo.append(next_schema.use(tmp_path / "migrations"))
        return script

    yield make
    for step in undo:
        step()


@pytest.mark.slow
@pytest.mark.parametrize("fill_before", [True, False], ids=["data", "new file"])
@pytest.mark.parametrize(
    ("last", "error"),
    [
        ("raise RuntimeError('half-way')", RuntimeError),
        ("op.execute('INSERT INTO nowhere VALUES (1)')", sqlite3.OperationalError),
    ],
)
def test_a_migration_that_fails_leaves_nothing_behind(
    path: Path,
    engine: Engine,
    rebuilding: Callable[[str], Path],
    fill_before: bool,
    last: str,
    error: type[Exception],
) -> None:
    if fill_before:
        with GoalStore.open(path) as store:
            fill(store)
    else:
        sqlite3.connect(path).close()
    before = contents(path)
    script = rebuilding(last)
    with pytest.raises(error):
        migrate.upgrade(engine)
    assert contents(path) == before

    script.write_text(script.read_text().replace(last, "pass"))
    migrate.upgrade(engine)
    assert migrate.current(engine) == NEXT_REVISION
    assert contents(path)["colours"] == [("red",)]


def test_a_row_of_a_hosts_does_not_go_with_a_table_that_is_rebuilt(
    path: Path, engine: Engine, rebuilding: Callable[[str], Path]
) -> None:
    with GoalStore.open(path) as store:
        fill(store)
        execute(
            path,
            "CREATE TABLE host_notes (goal_id TEXT REFERENCES goal_state_goals (goal_id) ON DELETE CASCADE)",
            "INSERT INTO host_notes SELECT goal_id FROM goal_state_goals",
        )
        notes = contents(path)["host_notes"]
    rebuilding("pass")
    migrate.upgrade(engine)
    assert contents(path)["host_notes"] == notes
    assert len(notes) == 6
    with engine.begin() as connection:  # and it goes with its goal as before
        GoalRepository(connection).clear("active")
    assert len(contents(path)["host_notes"]) == 5


def test_a_migration_that_would_leave_rows_pointing_nowhere_is_undone(
    path: Path, engine: Engine, rebuilding: Callable[[str], Path]
) -> None:
    with GoalStore.open(path) as store:
        fill(store)
    execute(
        path,
        "CREATE TABLE host_notes (goal_id TEXT REFERENCES goal_state_goals (goal_id))",
        "INSERT INTO host_notes SELECT goal_id FROM goal_state_goals",
    )
    before = contents(path)
    rebuilding("op.execute(\"DELETE FROM goal_state_goals WHERE thread_id = 'paused'\")")
    with pytest.raises(SchemaError, match="foreign keys without a parent row"):
        migrate.upgrade(engine)
    assert contents(path) == before


# -- in PostgreSQL ------------------------------------------------------------------------------------

_POSTGRESQL_NAME_BYTES = 63
"""PostgreSQL cuts off what is longer."""


def _statements(sql: str) -> list[str]:
    found = [
        " ".join(line for line in statement.splitlines() if not line.startswith("--"))
        for statement in sql.split(";\n")
    ]
    return [" ".join(statement.replace('"', "").split()) for statement in found]


def _described_by(statements: list[str]) -> dict[str, Any]:
    """What statements of PostgreSQL make, one after the other."""
    tables: dict[str, list[str]] = {}
    indexes: dict[str, str] = {}
    for statement in statements:
        match statement.split(maxsplit=5):
            case ["CREATE", "TABLE", name, *_]:
                tables[name] = _parts(statement)
            case ["ALTER", "TABLE", name, "DROP", "CONSTRAINT", constraint]:
                [dropped] = [
                    part for part in tables[name] if part.startswith(f"CONSTRAINT {constraint} ")
                ]
                tables[name].remove(dropped)
            case ["ALTER", "TABLE", name, "ADD", "CONSTRAINT", constraint]:
                tables[name].append(f"CONSTRAINT {constraint}")
            case ["ALTER", "TABLE", name, "ADD", "COLUMN", column]:
                tables[name] += _parts(f"({column})")
            case ["CREATE", "INDEX", name, *_] | ["CREATE", "UNIQUE", "INDEX", name, *_]:
                indexes[name] = statement
            case [
                "BEGIN" | "COMMIT" | "COMMIT;" | "INSERT" | "UPDATE",
                *_,
            ] | []:
                pass
            case _:
                pytest.fail(f"what does {statement!r} do to a table?")
    tables.pop(VERSION_TABLE, None)
    return indexes | {name: sorted(filter(None, parts)) for name, parts in tables.items()}


@pytest.mark.slow
def test_migrations_for_postgresql_make_what_the_metadata_says() -> None:
    """SQLite's own words are known to nothing else: STRICT, AUTOINCREMENT, instr, char."""
    done = _alembic_at("postgresql://nobody@nowhere/nothing", "upgrade", "head", "--sql")
    assert done.returncode == 0, done.stderr
    written = _statements(done.stdout)
    dialect = postgresql.dialect()
    expected = [
        str(part.compile(dialect=dialect))
        for table in metadata.sorted_tables
        for part in (CreateTable(table), *map(CreateIndex, table.indexes))
    ]
    assert _described_by(written) == _described_by(_statements(";\n".join(expected)))
    assert not re.search(r"(?i)\b(strict|autoincrement|instr|char|rowid)\b", " ".join(written))
    [log] = [one for one in written if one.startswith("CREATE TABLE goal_state_events ")]
    assert "position BIGSERIAL NOT NULL" in log
    [idempotency] = [one for one in written if "UNIQUE INDEX uq_goal_state_events" in one]
    assert idempotency.endswith("WHERE idempotency_key IS NOT NULL")


def test_names_of_constraints_and_indexes_are_not_cut_by_postgresql() -> None:
    dialect = postgresql.dialect()
    named = [
        str(dialect.identifier_preparer.format_constraint(part))
        for table in metadata.tables.values()
        for part in (*table.constraints, *table.indexes)
    ]
    assert len(named) == len({*named}) > 30
    assert all(len(name.encode()) <= _POSTGRESQL_NAME_BYTES for name in named)
    assert all(re.match(r"(ck|pk|uq|ix)_goal_state_", name) for name in named)


def test_whole_numbers_are_of_64_bits_in_postgresql() -> None:
    dialect = postgresql.dialect()
    narrow = {
        str(column)
        for table in metadata.tables.values()
        for column in table.columns
        if column.type.compile(dialect) not in ("BIGINT", "TEXT")
    }
    assert narrow == {"goal_state_database.number"}


def test_database_has_one_row_of_its_own(database: Path) -> None:
    rows = contents(database)["goal_state_database"]
    assert [(number, *settings) for number, _, *settings in rows] == [(1, "uncached", None)]
    with pytest.raises(sqlite3.IntegrityError):
        execute(database, "INSERT INTO goal_state_database (identity) VALUES ('another')")


# -- inside a host's database ------------------------------------------------------------------------


def _host_engine(path: Path) -> Engine:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def _foreign_keys(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON")

    return engine


def test_in_a_hosts_database_its_own_tables_and_versions_stay(path: Path) -> None:
    execute(
        path,
        "CREATE TABLE alembic_version (version_num TEXT NOT NULL)",
        "INSERT INTO alembic_version VALUES ('of the host')",
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)",
        "INSERT INTO users VALUES (1, 'Ada')",
    )
    hosts = {name: rows for name, rows in contents(path).items() if name != "sqlite_master"}

    def hosts_now() -> dict[str, Any]:
        return {name: rows for name, rows in contents(path).items() if name in hosts}

    engine = _host_engine(path)
    with GoalStore.open(engine) as store:
        fill(store)
    migrate.check(engine)
    assert hosts_now() == hosts
    assert contents(path)[VERSION_TABLE] == [(HEAD_REVISION,)]

    with GoalStore.open(path) as store:  # now that it holds goals, by its path as well
        assert store.count() == 6
    migrate.downgrade(engine, "base")
    assert hosts_now() == hosts
    assert not {"goal_state_goals", "goal_state_events"} & set(contents(path))
    migrate.upgrade(engine)
    assert migrate.current(engine) == HEAD_REVISION
    assert hosts_now() == hosts
    engine.dispose()


def test_the_hosts_engine_is_given_back_as_it_was(path: Path) -> None:
    """Foreign keys, off while migrating, are on again; the driver begins transactions as before."""
    engine = _host_engine(path)
    GoalStore.open(engine).close()
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
        assert driver.isolation_level == ""
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()


# -- names, and many at once -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["100%.db", "two words.db", "%(here)s.db", "ünï#?&.db", "a'b;c.db"]
)
def test_any_file_name_can_be_migrated(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "50% of %s"
    folder.mkdir()
    path = folder / name
    with GoalStore.open(path) as store:
        store.create("t", "Ship")
    migrate.downgrade(create_engine(path), "base")
    migrate.upgrade(create_engine(path))
    with GoalStore.open(str(path), migrate=False) as store:
        assert store.count() == 0
    assert {file.name.removesuffix("-wal").removesuffix("-shm") for file in folder.iterdir()} == {
        name
    }


_OPENING = """
import sys
from goal_state import GoalStore

print("ready", flush=True)
sys.stdin.readline()
with GoalStore.open(sys.argv[1]) as store:
    store.create(f"t{sys.argv[2]}", "Ship")
"""


@pytest.mark.slow
def test_eight_processes_open_one_new_file_at_once(path: Path) -> None:
    all_at_once(_OPENING, path, processes=8)
    with GoalStore.open(path, migrate=False) as store:
        assert sorted(goal.thread_id for goal in store.goals()) == [f"t{n}" for n in range(8)]
        assert store.verify() == []
    assert contents(path)[VERSION_TABLE] == [(HEAD_REVISION,)]


@pytest.mark.slow
def test_opening_a_current_file_imports_no_alembic(database: Path) -> None:
    printed = python(
        """
import sys
from goal_state import GoalStore
with GoalStore.open(sys.argv[1]) as store:
    store.create("t", "Ship")
    store.clear("t")
print("alembic" in sys.modules, "sqlalchemy" in sys.modules)
""",
        database,
    )
    assert printed == "False True\n"


def _alembic(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _alembic_at(f"sqlite:///{path}", *arguments)


def _alembic_at(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alembic", "-x", f"url={url}", *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@pytest.mark.slow
def test_the_plain_alembic_command_in_a_checkout(path: Path) -> None:
    upgraded = _alembic(path, "upgrade", "head")
    assert upgraded.returncode == 0, upgraded.stderr
    checked = _alembic(path, "check")
    assert checked.returncode == 0, checked.stderr
    assert "No new upgrade operations detected" in checked.stdout
    with GoalStore.open(path, migrate=False) as store:
        store.create("t", "Ship")
    execute(path, "ALTER TABLE goal_state_goals ADD COLUMN colour TEXT")
    assert _alembic(path, "check").returncode != 0
