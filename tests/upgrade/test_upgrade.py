"""A database of each released schema is upgraded whole, or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from goal_state import (
    EventKind,
    GoalEvent,
    GoalStateError,
    GoalStore,
    TokenUsage,
    migrate,
)
from goal_state.storage.schema import HEAD_REVISION, VERSION_TABLE
from goal_state.storage.sqlite.connections import create_engine
from tests import next_schema
from tests.databases import schema
from tests.next_schema import DOWNGRADE, NEXT_REVISION, UPGRADE
from tests.processes import PATIENCE_SECONDS, python
from tests.upgrade.make_fixtures import fixture

REVISIONS = [known.revision for known in migrate.history()]
_LAST_AUDITED = 3
"""How many events the fixtures' consumer `audit` has not taken yet."""

Row = dict[str, Any]
Data = dict[str, list[Row]]


def data(path: Path) -> Data:
    """Every row of every table (of ours, in the fixtures), by the names of its columns."""
    found: Data = {}
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        ).fetchall():
            rows = connection.execute(
                f"SELECT * FROM {name} ORDER BY 1, 2"
                if name == "goal_state_baselines"
                else f"SELECT * FROM {name} ORDER BY 1"
            ).fetchall()
            found[name] = [dict(row) for row in rows]
    return found


@pytest.fixture(params=REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    return request.param


_TOTAL = {field.name for field in dataclasses.fields(TokenUsage)}


@pytest.fixture
def older(revision: str, path: Path) -> Path:
    """A copy of the database of a revision."""
    shutil.copy(fixture(revision), path)
    return path


def test_fixture_of_each_revision_has_the_schema_that_it_makes(
    revision: str, tmp_path: Path
) -> None:
    """So it is told if a released migration is changed, or a new one comes without a fixture."""
    made = tmp_path / "made.db"
    migrate.upgrade(create_engine(made), revision)
    copy = Path(shutil.copy(fixture(revision), tmp_path))
    assert schema(copy) == schema(made)
    found = data(copy)
    assert found.pop(VERSION_TABLE) == [{"version_num": revision}]
    assert all(found.values())
    assert {goal["status"] for goal in found["goal_state_goals"]} == {
        *("active", "paused", "blocked", "usage_limited", "budget_limited", "complete")
    }
    assert {event["kind"] for event in found["goal_state_events"]} == _KINDS.get(
        revision, {*EventKind}
    )
    # Every column is filled somewhere.
    for table, rows in found.items():
        for column in rows[0]:
            assert any(row[column] is not None for row in rows), (table, column)


_KINDS = {"0001": {"created", "usage_accounted", "status_changed", "cleared"}}
"""Of the revisions that knew less than all."""

_BEFORE_BUDGETS: dict[str, Callable[[Row], Row]] = {
    # What was charged before prices were known cost nobody knows what, in calls that nobody counted.
    "goal_state_goals": lambda goal: {
        "cost_used_nanos": 0,
        "calls_used": 0,
        "unpriced_tokens": goal["tokens_used"],
        "estimated_tokens": 0,
        "live_holds": 0,
        "held_tokens": 0,
        "held_cost_nanos": 0,
        "held_calls": 0,
        "claim_number": 0,
    },
    "goal_state_events": lambda event: {
        "cost_delta_nanos": 0,
        "calls_delta": 0,
        "unpriced_tokens_delta": event["tokens_delta"],
        "estimated_tokens_delta": 0,
        "cumulative_cost_nanos": 0 if event["kind"] == "usage_accounted" else None,
        "cumulative_calls": 0 if event["kind"] == "usage_accounted" else None,
    },
    "goal_state_balances": lambda balance: {
        "cost_nanos": 0,
        "calls": 0,
        "unpriced_tokens": balance["tokens"],
        "estimated_tokens": 0,
    },
}


def upgraded(table: str, old: Row, columns: list[str]) -> Row:
    """What a row is in the newest schema."""
    known = _BEFORE_BUDGETS.get(table, lambda _: {})(old)
    return dict.fromkeys(columns) | known | old


def _parts_of(before: Data) -> list[Row]:
    """What was pruned before children and models were known came from none of them."""
    return [
        {
            "goal_id": balance["goal_id"],
            "via_goal_id": "",
            "model": "",
            "tokens": balance["tokens"],
            "time_ms": balance["time_ms"],
            "cost_nanos": 0,
            "calls": 0,
            "unpriced_tokens": balance["tokens"],
            "estimated_tokens": 0,
        }
        for balance in before["goal_state_balances"]
    ]


def upgrade_by_opening(path: Path) -> None:
    """Upgrades a database; fails if one of its fields is not what it was."""
    before = data(path)
    with GoalStore.open(path) as store:
        assert store.verify() == []
    after = data(path)
    before.pop(VERSION_TABLE)
    assert after.pop(VERSION_TABLE) == [{"version_num": migrate.history()[-1].revision}]
    for table, rows in before.items():
        assert len(after[table]) == len(rows), table
        for new, old in zip(after[table], rows, strict=True):
            # Nothing is made up: what an older schema did not know is not known.
            assert new == upgraded(table, old, [*new]), table
    for table in after.keys() - before.keys():
        made = _parts_of(before) if table == "goal_state_parts" else []
        assert after[table] == made, table


def walk_down_and_up(path: Path) -> None:
    """Upgrades a database, takes it back step by step, and up again; fails if it is not each time what it
    was.
    """
    engine = create_engine(path)
    start, revisions = migrate.current(engine), [known.revision for known in migrate.history()]
    assert start is not None
    before = data(path), schema(path)
    migrate.upgrade(engine)
    upgraded = data(path), schema(path)
    for step in reversed(revisions[revisions.index(start) : -1]):
        migrate.downgrade(engine, step)
    assert (data(path), schema(path)) == before
    for step in revisions[revisions.index(start) :]:
        migrate.upgrade(engine, step)
    assert (data(path), schema(path)) == upgraded


def test_upgrade_of_each_revision_keeps_every_field(older: Path) -> None:
    upgrade_by_opening(older)


def test_downgrade_to_each_revision_and_upgrade_restore_both_databases(older: Path) -> None:
    walk_down_and_up(older)


def test_upgrade_and_downgrade_keep_the_last_position_where_the_newest_events_are_gone(
    path: Path,
) -> None:
    shutil.copy(fixture("0001"), path)
    with closing(sqlite3.connect(path)) as connection, connection:
        [(last,)] = connection.execute("SELECT max(position) FROM goal_state_events").fetchall()
        connection.execute("DELETE FROM goal_state_events WHERE position > ?", (last - 5,))
    with GoalStore.open(path) as store:
        store.create("new after the upgrade", "Ship")
        [created] = store.events(after=last)
        assert created.position == last + 1
        store.create("gone after the upgrade", "Ship")
    engine = create_engine(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM goal_state_events WHERE position = ?", (last + 2,))
    migrate.downgrade(engine, "0001")
    migrate.upgrade(engine)
    with GoalStore.open(path) as store:
        store.create("new after the downgrade", "Ship")
        [created] = store.events(after=last + 1)
        assert created.position == last + 3


def test_downgrade_to_before_budgets_keeps_what_that_schema_can_hold(path: Path) -> None:
    with GoalStore.open(path) as store:
        store.create("parent", "Ship", cost_budget="1", call_budget=9, warn_at=(0.5,))
        store.create("t", "Ship", parent="parent", token_budget=100)
        store.charge("t", tokens=60, cost="0.75", response_id="r1", seconds=1.5, model="model-1")
        store.set("parent", cost_budget="0.5")
        before = {goal.thread_id: goal for goal in store.goals()}
        assert {event.kind for event in store.events()} == {*EventKind} - {EventKind.CLEARED}
        last = store.last_position()
    engine = create_engine(path)
    migrate.downgrade(engine, "0001")
    assert {row["kind"] for row in data(path)["goal_state_events"]} < _KINDS["0001"]
    with GoalStore.open(path) as store:
        assert store.verify() == []
        for thread_id, goal in before.items():
            again = store.get(thread_id)
            assert again is not None
            assert (again.goal_id, again.status) == (goal.goal_id, goal.status)
            assert (again.tokens_used, again.time_used_ms) == (60, goal.time_used_ms)
            assert (again.cost_budget, again.call_budget, again.warn_at) == (None, None, ())
            assert (again.cost_used, again.unpriced_tokens) == (0, 60)
        assert store.charge("t", tokens=60, response_id="r1").duplicate
        store.set("t", status="paused")
        assert store.last_position() == last + 1


# -- the checks themselves, on a revision that is made up ----------------------------------------------


def with_next_revision(folder: Path, check: Callable[[Path], None], **bodies: str) -> None:
    """Has a check look at the fixture of the newest revision in a library that knows one more."""
    next_schema.write(folder / "migrations", **bodies)
    path = Path(shutil.copy(fixture(HEAD_REVISION), folder))
    undo = next_schema.use(folder / "migrations")
    try:
        check(path)
        assert migrate.current(create_engine(path)) == NEXT_REVISION
    finally:
        undo()


@pytest.mark.parametrize("check", [upgrade_by_opening, walk_down_and_up])
def test_next_revision_without_a_fault_passes(
    tmp_path: Path, check: Callable[[Path], None]
) -> None:
    with_next_revision(tmp_path, check)


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE goal_state_goals SET blocked_reason = NULL",
        "UPDATE goal_state_baselines SET last_total_tokens = last_total_tokens + 1",
        "UPDATE goal_state_events SET replaced_goal_id = NULL",
        "UPDATE goal_state_database SET counted_tokens = 'all'",
        "UPDATE goal_state_goals SET colour = 'red'",
        "DELETE FROM goal_state_cursors WHERE name = 'new'",
        "INSERT INTO goal_state_colours VALUES ('red')",
        "DROP TABLE goal_state_balances",
    ],
)
def test_next_revision_that_changes_a_row_fails(tmp_path: Path, statement: str) -> None:
    upgrade = f'{UPGRADE}    op.execute("{statement}")\n'
    with pytest.raises((AssertionError, GoalStateError)):
        with_next_revision(tmp_path, upgrade_by_opening, upgrade=upgrade)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ('op.drop_table("goal_state_colours")', "pass"),
        ("ALTER TABLE goal_state_goals DROP COLUMN colour", "SELECT 1"),
        (
            "ALTER TABLE goal_state_goals DROP COLUMN colour",
            "UPDATE goal_state_goals SET objective = 'Ship'",
        ),
    ],
)
def test_next_revision_with_a_downgrade_that_leaves_something_fails(
    tmp_path: Path, part: str, instead: str
) -> None:
    assert part in DOWNGRADE
    downgrade = DOWNGRADE.replace(part, instead)
    with pytest.raises(AssertionError):
        with_next_revision(tmp_path, walk_down_and_up, downgrade=downgrade)


# -- going on --------------------------------------------------------------------------------------------


def test_store_on_each_revision_goes_on_where_the_older_one_stopped(older: Path) -> None:
    before = data(older)
    goals = {goal["thread_id"]: goal for goal in before["goal_state_goals"]}
    events = before["goal_state_events"]
    heard: list[GoalEvent] = []
    with GoalStore.open(older) as store:
        for thread_id, row in goals.items():
            goal = store.get(thread_id)
            assert goal is not None
            assert {field: getattr(goal, field) for field in row} == row
        assert store.count() == len(goals)
        for event, row in zip(store.events(), events, strict=True):
            assert {field: getattr(event, field) for field in row} == row
        named = {row["thread_id"] for row in before["goal_state_baselines"] if row.get("count_id")}
        for row in before["goal_state_baselines"]:
            if row["thread_id"] in named:  # whose counts are added up
                total = store.baseline(row["thread_id"], count_id=row["count_id"] or None)
                assert total is not None
                assert total.total.counts() == tuple(row[k] for k in row if k in _TOTAL)
                continue
            usage = store.usage(row["thread_id"])
            assert usage is not None
            counts = (*usage.total.counts(), *usage.last.counts())
            assert counts == tuple(v for k, v in row.items() if k.endswith("_tokens"))
            assert usage.turn_id == row["turn_id"]
            assert usage.model_context_window == row["model_context_window"]

        # A key is known, a total is charged from its baseline on, and a name from its position on.
        again = store.charge("active", tokens=250, seconds=1.5, idempotency_key="key")
        assert again.duplicate
        baseline = TokenUsage(1100, 1099, 1098, 1097, 1096, 1095)
        assert store.usage("active").total == baseline  # type: ignore[union-attr]
        new = store.record_total("active", TokenUsage(1107, 1099, 1098, 1100, 1096, 1105))
        assert new.goal is not None
        assert new.goal.tokens_used == goals["active"]["tokens_used"] + 10
        [charged] = store.events(after=events[-1]["position"])
        with store.consume("audit", heard.extend) as consumer:
            assert consumer.drain(PATIENCE_SECONDS)
        expected = [row["position"] for row in events[-_LAST_AUDITED:]] + [charged.position]
        assert [event.position for event in heard] == expected
        assert store.resume("paused").status == "active"
        assert store.verify() == []


# -- killed ------------------------------------------------------------------------------------------

# A child is forked for each statement and kills itself as that one begins: forking is a hundred times
# faster than another Python. What SQLite is told directly is traced as well (PRAGMA, BEGIN, COMMIT).
_KILLED = """
import json, os, re, shutil, signal, sqlite3, sys
from contextlib import closing
from pathlib import Path
import alembic.command, alembic.config, alembic.script, alembic.autogenerate
from goal_state import GoalStore, migrate
from goal_state.storage.sqlite.connections import create_engine
from tests import next_schema

fixture, folder, target, stride = sys.argv[1:]
if (migrations := Path(folder, "migrations")).exists():
    next_schema.use(migrations)
connect = sqlite3.connect


def contents(path):
    with closing(connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        # An event that a downgrade makes up has an id of its own each time; so has a database.
        return [
            re.sub("'[0-9a-f]{32}'", "'...'", line)
            for line in connection.iterdump()
            if not line.startswith('INSERT INTO "goal_state_database"')
        ]


def opened(path):
    GoalStore.open(path, durability="normal").close()


def migrated(path):
    if target == "open":
        opened(path)
    else:
        migrate.downgrade(create_engine(path), target)


def fresh(name):
    path = Path(folder, name)
    if fixture != "none":
        shutil.copy(fixture, path)
    return path


def killed_at(path, wanted):
    # Whether the child was killed; if not, the migration has fewer statements.
    child = os.fork()
    if child == 0:
        begun = 0

        def trace(statement):
            nonlocal begun
            begun += 1
            if begun == wanted:
                os.kill(os.getpid(), signal.SIGKILL)

        def traced(*arguments, **named):
            connection = connect(*arguments, **named)
            connection.set_trace_callback(trace)
            return connection

        sqlite3.connect = sqlite3.dbapi2.connect = traced
        try:
            migrated(path)
        except BaseException as error:
            sys.stderr.write(repr(error))
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0


untouched, done = fresh("untouched"), fresh("done")
sides = []
migrated(done)
for side in (untouched, done):
    sides.append(contents(side))
assert sides[0] != sides[1]
opened(untouched)
opened(done)
afterwards = contents(untouched), contents(done)

found, wanted = [], 1
path = fresh(str(wanted))
while killed_at(path, wanted):
    if wanted % int(stride) == 0:  # opened as the kill left it
        opened(path)
        assert contents(path) in afterwards
    else:
        left = contents(path)
        found.append(sides.index(left) if left in sides else left)
    wanted += 1
    path = fresh(str(wanted))
print(json.dumps(found))
"""


AT_LENGTH = os.environ.get("HYPOTHESIS_PROFILE") == "proof"
_STRIDE = 4
"""Every fourth time the library itself opens what the kill left, else it is looked at past it."""

_BRIEFLY = [(HEAD_REVISION, "open", True)]
_THE_REST = [
    ("none", "open", False),
    (HEAD_REVISION, "base", False),
    *((revision, "open", False) for revision in REVISIONS[:-1]),
    *((HEAD_REVISION, revision, False) for revision in REVISIONS[:-1]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("revision", "target", "is_ahead"),
    _BRIEFLY + (_THE_REST if AT_LENGTH else []),
)
def test_migration_killed_at_any_statement_leaves_the_old_database_or_the_new_one(
    tmp_path: Path, revision: str, target: str, is_ahead: bool
) -> None:
    """When it is opened for the first time, upgraded by opening it, and taken down to a revision."""
    if is_ahead:
        next_schema.write(tmp_path / "migrations")
    source = "none" if revision == "none" else fixture(revision)
    found = json.loads(python(_KILLED, source, tmp_path, target, _STRIDE))
    # From the old one it turns into the new one once, at the commit.
    assert found == sorted(found)
    assert {*found} == {0, 1}
    assert len(found) > 10
