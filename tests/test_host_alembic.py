"""A host's own alembic beside our tables, and what is said once something has dropped some of them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from click.testing import CliRunner
from sqlalchemy import Engine

from goal_state import ForeignDatabaseError, GoalStore, SchemaError, SchemaIncompleteError, migrate
from goal_state.migrate import include_name
from goal_state.storage.schema import VERSION_TABLE, metadata
from goal_state.storage.sqlite.connections import create_engine
from tests.databases import contents, execute, fingerprints, schema
from tests.next_schema import NEXT_REVISION
from tests.processes import CHECKOUT, PATIENCE_SECONDS

OURS = {*metadata.tables, VERSION_TABLE}

# -- a host's project --------------------------------------------------------------------------------

_INI = """
[alembic]
script_location = %(here)s/alembic
prepend_sys_path = %(here)s
"""
_ENV = """
from alembic import context
from sqlalchemy import create_engine

import models
{hook}

engine = create_engine("sqlite:///{path}")
with engine.begin() as connection:
    context.configure(connection=connection, target_metadata=models.metadata, {options})
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
"""
_HOOKS = {
    "ours alone": ("from goal_state.migrate import include_name", "include_name=include_name"),
    "in the host's own": (
        """
from goal_state import migrate

def include_name(name, type_, parent_names):
    if type_ == "table" and name == "left_alone":
        return False
    return migrate.include_name(name, type_, parent_names)
""",
        "include_name=include_name",
    ),
}
_MAKO = '''"""${message}"""
import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade():
    ${upgrades if upgrades else "pass"}


def downgrade():
    ${downgrades if downgrades else "pass"}
'''
_MODELS = """
from sqlalchemy import Column, Integer, MetaData, Table, Text

metadata = MetaData()
Table("messages", metadata, Column("id", Integer, primary_key=True), Column("body", Text, index=True))
"""
_MODELS_LATER = """
from sqlalchemy import Column, Integer, MetaData, Table, Text

metadata = MetaData()
Table("goal_notes", metadata, Column("id", Integer, primary_key=True), Column("note", Text))
"""


class Project:
    """A host with a database, models and migrations of its own, made by alembic."""

    def __init__(self, folder: Path, hook: str, options: str) -> None:
        self.folder, self.path = folder, folder / "host.db"
        (folder / "alembic" / "versions").mkdir(parents=True)
        (folder / "alembic.ini").write_text(_INI)
        env = _ENV.format(hook=hook, options=options, path=self.path)
        (folder / "alembic" / "env.py").write_text(env)
        (folder / "alembic" / "script.py.mako").write_text(_MAKO)
        (folder / "models.py").write_text(_MODELS)

    def alembic(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def migrate(self) -> str:
        """Has a revision generated, carries it out, and returns what it says."""
        known = set((self.folder / "alembic" / "versions").glob("*.py"))
        self.alembic("revision", "--autogenerate", "-m", "next")
        (new,) = set((self.folder / "alembic" / "versions").glob("*.py")) - known
        self.alembic("upgrade", "head")
        return new.read_text()

    def tables(self) -> set[str]:
        return {name for kind, name, *_ in schema(self.path) if kind == "table"}


def ours(path: Path) -> list[tuple[Any, ...]]:
    """Our tables and indexes with their SQL."""
    return [row for row in schema(path) if row[2] in OURS]


def with_goals(path: Path) -> None:
    with GoalStore.open(create_engine(path)) as store:
        store.create("t", "Ship")
        store.charge("t", tokens=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "options"),
    [
        ("ours alone", ""),
        ("in the host's own", ", render_as_batch=True, include_schemas=True"),
    ],
)
def test_a_hosts_generated_migrations_leave_our_tables(
    tmp_path: Path, hook: str, options: str
) -> None:
    code, option = _HOOKS[hook]
    project = Project(tmp_path, code, option + options)
    with_goals(project.path)
    execute(
        project.path,
        "CREATE TABLE left_alone (goal_id TEXT REFERENCES goal_state_goals (goal_id))",
        "INSERT INTO left_alone SELECT goal_id FROM goal_state_goals",
    )
    before = ours(project.path)
    assert {row[2] for row in before} == OURS

    first = project.migrate()
    assert "create_table('messages'" in first
    (tmp_path / "models.py").write_text(_MODELS_LATER)
    second = project.migrate()
    assert "drop_table('messages'" in second
    assert "create_table('goal_notes'" in second
    for name in OURS:
        assert name not in first.replace("goal_state_goals.goal_id", "").replace(
            "['goal_state_goals']", ""
        )
        assert name not in second
    own = {"alembic_version", "goal_notes"}
    if hook == "in the host's own":
        own.add("left_alone")
    assert project.tables() - {"sqlite_sequence"} == OURS | own
    assert ours(project.path) == before

    with GoalStore.open(create_engine(project.path), migrate=False) as store:
        assert store.charge("t", tokens=5).applied
        assert store.verify() == []
        assert len(list(store.events())) == 3
    migrate.check(create_engine(project.path))
    project.alembic("check")  # the host's sees nothing to do
    project.alembic("downgrade", "base")
    assert ours(project.path) == before


@pytest.mark.slow
def test_without_the_hook_a_hosts_migration_drops_them_all(tmp_path: Path) -> None:
    """What `include_name` is for. Nothing is left then by which a store could know that there were any."""
    project = Project(tmp_path, "", "")
    with_goals(project.path)
    project.migrate()
    assert not project.tables() & OURS
    with GoalStore.open(create_engine(project.path)) as store:
        assert store.count() == 0


@pytest.mark.parametrize(
    ("name", "kind", "parents", "expected"),
    [
        *((name, "table", {"schema_name": None}, False) for name in sorted(OURS)),
        ("goals", "table", {"schema_name": None}, True),
        ("goal_state_notes", "table", {"schema_name": None}, True),
        ("messages", "table", {"schema_name": None}, True),
        ("goal_notes", "table", {"schema_name": None}, True),
        ("alembic_version", "table", {"schema_name": None}, True),
        (None, "schema", {}, True),
        ("goal_state_goals", "schema", {}, True),
        ("ix_goal_state_events_goal_id", "index", {"table_name": "goal_state_events"}, False),
        ("version_num", "column", {"table_name": VERSION_TABLE}, False),
        (None, "unique_constraint", {"table_name": "goal_state_goals"}, False),
        (None, "foreign_key_constraint", {"table_name": "messages"}, True),
        ("goal_state_goals", "column", {"table_name": "messages"}, True),
        ("goal_state_goals", "index", {"table_name": "messages"}, True),
    ],
)
def test_include_name_leaves_out_what_is_ours_alone(
    name: str | None, kind: str, parents: dict[str, str | None], expected: bool
) -> None:
    assert include_name(name, kind, parents) is expected


_COMMON = ("goals", "events", "goal_events", "baselines", "cursors", "alembic_version")

# -- some of our tables, not all ---------------------------------------------------------------------

REVISIONS = [known.revision for known in migrate.history()]

DAMAGE = {
    "no version table": [f"DROP TABLE {VERSION_TABLE}"],
    "no version": [f"DELETE FROM {VERSION_TABLE}"],
    **{f"no {name}": [f"DROP TABLE {name}"] for name in metadata.tables},
    "the version table alone": [f"DROP TABLE {name}" for name in metadata.tables],
}
OPENINGS: dict[str, Callable[[Path, Engine], Any]] = {
    "path": lambda path, engine: GoalStore.open(path),
    "path, not migrating": lambda path, engine: GoalStore.open(path, migrate=False),
    "engine": lambda path, engine: GoalStore.open(engine),
    "engine, not migrating": lambda path, engine: GoalStore.open(engine, migrate=False),
    "upgrade": lambda path, engine: migrate.upgrade(engine),
    "downgrade": lambda path, engine: migrate.downgrade(engine, "base"),
    "current": lambda path, engine: migrate.current(engine),
    "check": lambda path, engine: migrate.check(engine),
}


@pytest.fixture(params=["our engine", "a host's engine"])
def engine(request: pytest.FixtureRequest, path: Path) -> Iterator[Engine]:
    made = request.param == "our engine"
    engine = create_engine(path) if made else sqlalchemy.create_engine(f"sqlite:///{path}")
    yield engine
    engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("statements", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_database_with_some_of_our_tables_is_refused_untouched(
    database: Path, engine: Engine, statements: list[str]
) -> None:
    with GoalStore.open(database) as store:
        store.create("t", "Ship")
    execute(database, *statements)
    before, files = contents(database), fingerprints(database.parent)
    for name, opening in OPENINGS.items():
        with pytest.raises(
            SchemaIncompleteError, match=r"estore a backup .* left as it was"
        ) as caught:
            opening(database, engine)
        assert "stamp" not in str(caught.value)
        assert contents(database) == before, name
    engine.dispose()
    assert fingerprints(database.parent) == files


@pytest.mark.slow
@pytest.mark.parametrize("revision", REVISIONS)
def test_the_tables_of_every_revision_are_known(
    database: Path, engine: Engine, revision: str
) -> None:
    """Else an older database would be refused, or one that lacks a table be taken."""
    if revision != REVISIONS[-1]:
        migrate.downgrade(engine, revision)
    assert migrate.current(engine) == revision
    for name in [name for kind, name, *_ in schema(database) if kind == "table"]:
        if name not in metadata.tables:
            continue
        copy = database.with_name("copy.db")
        shutil.copy(database, copy)
        execute(copy, f"DROP TABLE {name}")
        with pytest.raises(SchemaIncompleteError, match=f"lacks the table {name};"):
            migrate.current(create_engine(copy))
    migrate.upgrade(engine)
    assert migrate.current(engine) == REVISIONS[-1]


def test_after_going_back_to_no_schema_at_all_one_can_be_made_anew(
    database: Path, engine: Engine
) -> None:
    """The version table stays, and is empty."""
    migrate.downgrade(engine, "base")
    assert migrate.current(engine) is None
    with GoalStore.open(engine) as store:
        store.create("t", "Ship")


@pytest.mark.parametrize("name", ["goal_state_goals", "Goal_State_Goals"])
def test_a_hosts_own_table_of_one_of_our_names_is_refused_in_words(
    path: Path, engine: Engine, name: str
) -> None:
    execute(path, f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, match TEXT, minute INTEGER)")
    before = contents(path)
    for way, opening in OPENINGS.items():
        error, words = (
            SchemaError,
            r"has the table goal_state_goals.* If that is of your own .* another file",
        )
        if way.startswith("path") and name != "goal_state_goals":
            error, words = (
                ForeignDatabaseError,
                "belongs to another application .*'Goal_State_Goals'",
            )
        with pytest.raises(error, match=words):
            opening(path, engine)
        assert contents(path) == before


def test_a_hosts_own_tables_of_common_names_live_beside_ours(path: Path) -> None:
    execute(
        path,
        *(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, match TEXT)" for name in _COMMON),
        *(f"INSERT INTO {name} (match) VALUES ('final')" for name in _COMMON),
        "CREATE INDEX ix_goals_match ON goals (match)",
    )
    with pytest.raises(ForeignDatabaseError):
        GoalStore.open(path)
    engine = create_engine(path)
    with GoalStore.open(engine) as store:
        goal = store.create("t", "Ship")
        assert store.charge("t", tokens=5).applied
        assert store.verify() == []
    migrate.check(engine)
    with GoalStore.open(
        path, migrate=False
    ) as store:  # now that it holds goals, by its path as well
        assert store.get("t") == store.transact(lambda repository: repository.get("t"))
        store.clear("t", expected_goal_id=goal.goal_id)
    migrate.downgrade(engine, "base")
    left = contents(path)
    assert all(left[name] == [(1, "final")] for name in _COMMON)
    engine.dispose()


def test_a_lost_version_table_is_refused_on_the_command_line(database: Path) -> None:
    from goal_state.cli.main import program

    execute(database, f"DROP TABLE {VERSION_TABLE}")
    for words in (["list"], ["db", "current"], ["db", "upgrade"], ["db", "check"], ["verify"]):
        result = CliRunner().invoke(program, [*words, "--db", str(database)])
        assert result.exit_code == 2, words
        assert "restore a backup" in " ".join(result.output.split()), words


@pytest.mark.usefixtures("next_revision")
def test_a_migration_meanwhile_is_not_taken_for_damage(database: Path) -> None:
    """The tables and the revision are read as of one moment."""
    engine = create_engine(database)
    other = sqlalchemy.create_engine(f"sqlite:///{database}")
    done: list[str] = []

    def tell(statement: str) -> None:
        if "version_num" in statement and not done:
            done.append("upgraded")
            migrate.upgrade(engine)

    @sqlalchemy.event.listens_for(other, "connect")
    def _connect(connection: sqlite3.Connection, _: object) -> None:
        connection.set_trace_callback(tell)

    assert migrate.current(other) in (REVISIONS[-1], NEXT_REVISION)
    assert done
    other.dispose()
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute(f"SELECT * FROM {VERSION_TABLE}").fetchone() == (NEXT_REVISION,)
