"""Taking over a Codex data directory: what comes of it, what is left out, and that nothing in it changes."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from goal_state import (
    DatabaseBusyError,
    DatabaseCorruptError,
    DatabaseLocationError,
    EventKind,
    Goal,
    GoalExistsError,
    GoalStatus,
    GoalStore,
    InvalidValueError,
    NotADatabaseError,
    TokenUsage,
)
from goal_state.codex import ThreadHub, database_copy, importer
from goal_state.codex.builders import USAGE, rollout, rollout_with_token_usage
from goal_state.codex.importer import (
    CodexHome,
    ImportReport,
    Skipped,
    import_codex,
)
from goal_state.codex.rollout import find_rollout, find_rollouts
from goal_state.errors import CodexSchemaError
from goal_state.meter import GoalMeter
from tests.codex.clients import PATIENCE_SECONDS, Client
from tests.databases import contents, execute, fingerprints

RECORDED = Path(__file__).parents[1] / "data" / "home"
SCHEMA = """
    CREATE TABLE thread_goals (
        thread_id TEXT PRIMARY KEY NOT NULL, goal_id TEXT NOT NULL, objective TEXT NOT NULL,
        status TEXT NOT NULL, token_budget INTEGER, tokens_used INTEGER NOT NULL DEFAULT 0,
        time_used_seconds INTEGER NOT NULL DEFAULT 0, created_at_ms INTEGER NOT NULL,
        updated_at_ms INTEGER NOT NULL
    )
"""

Row = dict[str, Any]


def goal_id(number: int) -> str:
    return f"05986a4d-436c-4c38-8991-{number:012d}"


def row(number: int = 1, **values: Any) -> Row:
    return {
        "thread_id": f"thread-{number}",
        "goal_id": goal_id(number),
        "objective": f"Objective {number}",
        "status": "active",
        "token_budget": 1_000,
        "tokens_used": 10 * number,
        "time_used_seconds": 3 * number,
        "created_at_ms": 1_700_000_000_000 + number,
        "updated_at_ms": 1_700_000_900_000 + number,
    } | values


def imported(home: Path, store: GoalStore, **options: Any) -> ImportReport:
    return import_codex(CodexHome.read(home), store, **options)


def make_home(home: Path, *rows: Row, journal_mode: str = "DELETE") -> Path:
    home.mkdir(exist_ok=True)
    with closing(sqlite3.connect(home / "goals_1.sqlite", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute(SCHEMA)
        connection.execute("BEGIN")
        for one in rows:
            insert(connection, one)
        connection.execute("COMMIT")
    return home


def insert(connection: sqlite3.Connection, one: Row) -> None:
    marks = ", ".join("?" * len(one))
    connection.execute(f"INSERT INTO thread_goals VALUES ({marks})", list(one.values()))


def source_rows() -> list[tuple[Any, ...]]:
    with closing(
        sqlite3.connect(f"{RECORDED.as_uri()}/goals_1.sqlite?immutable=1", uri=True)
    ) as db:
        return db.execute("SELECT * FROM thread_goals ORDER BY thread_id").fetchall()


def only(store: GoalStore) -> Goal:
    [goal] = store.goals()
    return goal


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A copy of a recorded data directory."""
    return Path(shutil.copytree(RECORDED, tmp_path / "home"))


# -- the recorded directory --------------------------------------------------------------------------


def test_goals_keep_their_ids_values_and_times(store: GoalStore, home: Path) -> None:
    report = imported(home, store)
    goals = sorted(store.goals(), key=lambda goal: goal.thread_id)
    assert report.goals == len(goals) == 6
    for goal, source in zip(goals, source_rows(), strict=True):
        thread, id_, objective, status, budget, tokens, seconds, created, updated = source
        assert goal == Goal(
            thread, id_, objective, status, budget, tokens, seconds * 1000, created, updated
        )
    assert {goal.status for goal in goals} == set(GoalStatus)
    assert store.verify() == []


def test_the_ledger_leads_to_the_goal(store: GoalStore, home: Path) -> None:
    imported(home, store)
    for goal in store.goals():
        first, *rest = store.events(goal_id=goal.goal_id)
        assert (first.kind, first.occurred_at_ms) == (EventKind.CREATED, goal.created_at_ms)
        charges = [event for event in rest if event.kind is EventKind.USAGE_ACCOUNTED]
        has_used = goal.tokens_used > 0 or goal.time_used_ms > 0
        assert len(charges) == has_used
        for charge in charges:
            assert (charge.tokens_delta, charge.cumulative_tokens) == (goal.tokens_used,) * 2
            assert (charge.time_delta_ms, charge.cumulative_time_ms) == (goal.time_used_ms,) * 2
        assert [first, *rest][-1].goal_status is goal.status
        assert {event.turn_id for event in rest} <= {None}


def test_real_rollouts_give_the_totals_that_the_recorded_runs_had(
    store: GoalStore, home: Path
) -> None:
    report = imported(home, store)
    rollouts = list(find_rollouts(home))
    assert report.baselines == len(rollouts) == 7
    assert report.skipped == ()
    totals: list[int] = []
    for found in rollouts:
        # What each response of the model used, added up, is what the run used.
        records = [
            line["payload"]
            for line in map(json.loads, found.path.read_text(encoding="utf-8").splitlines())
            if line["type"] == "token_usage_record"
        ]
        used = TokenUsage()
        for record in records:
            used += TokenUsage.of(record["usage"])
        known = store.usage(found.thread_id)
        assert known is not None
        assert (known.total, known.turn_id) == (used, records[-1]["turn_id"])
        assert known.last == TokenUsage.of(records[-1]["usage"])
        hub, client = ThreadHub(store, home=home), Client()
        restored = hub.resume(found.thread_id, client, request_id=1)
        assert hub.flush(PATIENCE_SECONDS)
        assert restored is not None
        assert restored.usage == known
        totals.append(used.total_tokens)
    assert sorted(totals) == [3_208, 5_224, 7_346, 9_376, 9_566, 12_136, 12_954]


def test_the_directory_is_left_as_it_was(store: GoalStore, home: Path) -> None:
    before = fingerprints(home)
    imported(home, store)
    assert fingerprints(home) == before


def test_a_second_import_changes_nothing(store: GoalStore, database: Path, home: Path) -> None:
    imported(home, store)
    before = contents(database)
    report = imported(home, store)
    assert contents(database) == before
    assert (report.goals, report.baselines, report.budget_limited) == (0, 0, ())
    assert {skipped.reason for skipped in report.skipped} == {
        "was imported already",
        "its usage was imported already",
    }
    assert len(report.skipped) == 13


def test_resuming_what_was_imported_charges_nothing(store: GoalStore, home: Path) -> None:
    imported(home, store)
    goals, events = list(store.goals()), list(store.events())
    hub, client = ThreadHub(store, home=home), Client()
    for number, goal in enumerate(goals):
        hub.resume(goal.thread_id, client, request_id=number)
    assert hub.flush(PATIENCE_SECONDS)
    assert list(store.goals()) == goals
    assert list(store.events()) == events


def test_an_imported_goal_pays_from_here_on(store: GoalStore, home: Path) -> None:
    imported(home, store)
    [goal] = store.goals("active")
    known = store.usage(goal.thread_id)
    assert known is not None
    store.record_total(goal.thread_id, known.total + TokenUsage(30, 10, 0, 5), turn_id="next")
    charged = store.get(goal.thread_id)
    assert charged is not None
    assert charged.tokens_used == goal.tokens_used + 25
    assert store.verify() == []


def test_a_dry_run_says_the_same_and_writes_nothing(
    store: GoalStore, database: Path, home: Path
) -> None:
    store.create(source_rows()[0][0], "A goal of its own")
    before, files = contents(database), fingerprints(home)
    planned = imported(home, store, dry_run=True)
    assert contents(database) == before
    assert fingerprints(home) == files
    assert planned.goals == 5
    assert imported(home, store) == planned


def test_progress_is_told_step_by_step(store: GoalStore, home: Path) -> None:
    steps: list[tuple[int, int]] = []
    imported(home, store, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 13) for done in range(1, 14)]


# -- goals -------------------------------------------------------------------------------------------


def test_import_without_rollouts_takes_the_goals(store: GoalStore, tmp_path: Path) -> None:
    report = imported(make_home(tmp_path / "home", row()), store)
    assert (report.goals, report.baselines, report.skipped) == (1, 0, ())
    assert only(store).tokens_used == 10
    assert only(store).time_used_ms == 3_000
    assert store.usage("thread-1") is None


@pytest.mark.parametrize("used", [1_000, 1_001])
def test_an_active_goal_that_has_spent_its_budget_is_budget_limited(
    store: GoalStore, tmp_path: Path, used: int
) -> None:
    home = make_home(tmp_path / "home", row(1, tokens_used=used), row(2, tokens_used=999))
    report = imported(home, store)
    assert report.goals == 2
    assert report.budget_limited == ("thread-1",)
    assert [goal.status for goal in store.goals()] == ["budget_limited", "active"]
    told = [(event.kind, event.goal_status) for event in store.events(thread_id="thread-1")]
    assert told == [
        (EventKind.CREATED, GoalStatus.ACTIVE),
        (EventKind.USAGE_ACCOUNTED, GoalStatus.BUDGET_LIMITED),
        (EventKind.STATUS_CHANGED, GoalStatus.BUDGET_LIMITED),
    ]
    assert store.verify() == []


@pytest.mark.parametrize("status", [status.value for status in GoalStatus if status != "active"])
@pytest.mark.parametrize("used", [0, 10, 5_000])
def test_every_other_status_is_kept(
    store: GoalStore, tmp_path: Path, status: str, used: int
) -> None:
    home = make_home(tmp_path / "home", row(1, status=status, tokens_used=used))
    report = imported(home, store)
    assert (report.goals, report.budget_limited, report.skipped) == (1, (), ())
    assert (only(store).status, only(store).tokens_used) == (status, used)
    assert store.verify() == []


def test_a_goal_of_its_own_is_kept(store: GoalStore, tmp_path: Path) -> None:
    own = store.create("thread-1", "Mine")
    report = imported(make_home(tmp_path / "home", row(1), row(2)), store)
    assert report.goals == 1
    assert report.skipped == (
        Skipped("goal", "thread-1", "the thread has a goal of its own in the store"),
    )
    assert store.get("thread-1") == own


def test_a_goal_that_was_cleared_since_does_not_come_back(store: GoalStore, tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", row())
    imported(home, store)
    store.clear("thread-1")
    for dry_run in (True, False):
        report = imported(home, store, dry_run=dry_run)
        [skipped] = report.skipped
        assert skipped.reason == "was imported already, and cleared or replaced since"
        assert store.count() == 0
    assert store.verify() == []


def test_an_id_that_two_goals_have_is_taken_once(store: GoalStore, tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", row(1), row(2, goal_id=goal_id(1)))
    expected = (Skipped("goal", "thread-2", "another thread has, or had, a goal of the same id"),)
    planned = imported(home, store, dry_run=True)
    assert planned.skipped == expected
    assert imported(home, store) == planned
    assert only(store).thread_id == "thread-1"
    assert expected[0] in imported(home, store).skipped


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"objective": " \n"}, "objective: must have 1 to 4000 characters"),
        ({"objective": "x" * 4001}, "objective: must have 1 to 4000 characters"),
        ({"objective": "a\0b"}, "objective: must not contain a NUL"),
        ({"status": "someday"}, "status: must be one of active, paused"),
        ({"token_budget": 0}, "token_budget: must be more than 0"),
        ({"token_budget": "lots"}, "token_budget: must be an int"),
        ({"tokens_used": -1}, "tokens_used: must be 0 or more"),
        ({"tokens_used": 1.5}, "tokens_used: must be an int"),
        ({"time_used_seconds": -1}, "time_used_seconds: must be 0 or more"),
        ({"time_used_seconds": 2**62}, "time_used_seconds: must be below"),
        ({"created_at_ms": 2**60, "updated_at_ms": 2**60}, "created_at_ms: must be a time"),
        ({"updated_at_ms": 5}, "updated_at_ms: must not be before created_at_ms"),
        ({"goal_id": "short"}, "goal_id: must be a UUID of 36 characters"),
        ({"thread_id": ""}, "thread_id: must have 1 to 256 characters"),
    ],
)
def test_what_cannot_be_a_goal_is_left_out_and_the_rest_taken(
    store: GoalStore, tmp_path: Path, values: Row, reason: str
) -> None:
    home = make_home(tmp_path / "home", row(1, **values), row(2))
    planned = imported(home, store, dry_run=True)
    report = imported(home, store)
    assert report == planned
    [skipped] = report.skipped
    assert skipped.kind == "goal"
    assert skipped.reason.startswith(reason)
    assert only(store).thread_id == "thread-2"


def test_text_that_is_not_utf8_is_left_out_and_the_rest_taken(
    store: GoalStore, tmp_path: Path
) -> None:
    home = make_home(tmp_path / "home", row(1), row(2))
    execute(
        home / "goals_1.sqlite",
        "UPDATE thread_goals SET objective = CAST(x'ff41' AS TEXT) WHERE thread_id = 'thread-1'",
    )
    report = imported(home, store)
    assert report.skipped == (
        Skipped("goal", "thread-1", "objective: must not contain a lone surrogate"),
    )
    assert only(store).thread_id == "thread-2"


def test_whitespace_around_an_objective_goes(store: GoalStore, tmp_path: Path) -> None:
    imported(make_home(tmp_path / "home", row(objective="  Ship it\n")), store)
    assert only(store).objective == "Ship it"


def test_columns_and_tables_that_are_not_known_are_no_matter(
    store: GoalStore, tmp_path: Path
) -> None:
    home = make_home(tmp_path / "home", row())
    execute(
        home / "goals_1.sqlite",
        "ALTER TABLE thread_goals ADD COLUMN mood TEXT",
        "CREATE TABLE more (a)",
    )
    assert imported(home, store).goals == 1


def test_a_goal_that_came_meanwhile_is_left_alone(
    store: GoalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and writing, another process makes a goal."""
    home = make_home(tmp_path / "home", row())
    check = importer._Import._check_new

    def check_and_lose(self: Any, goal: Goal) -> None:
        check(self, goal)
        store.create("thread-1", "Quicker")

    monkeypatch.setattr(importer._Import, "_check_new", check_and_lose)
    report = imported(home, store)
    assert report.goals == 0
    assert len(report.skipped) == 1
    assert only(store).objective == "Quicker"


def test_a_budget_that_was_used_up_before_the_import_is_announced_once(
    store: GoalStore, tmp_path: Path
) -> None:
    imported(make_home(tmp_path / "home", row(tokens_used=1_000)), store)
    store.resume("thread-1", token_budget=1_010)
    meter = GoalMeter(store, "thread-1")
    meter.start_turn("turn-1")
    reading = meter.record_total(TokenUsage(20))
    assert reading.charged
    assert only(store).status is GoalStatus.BUDGET_LIMITED
    assert reading.budget_exhausted  # whether the other program has said so is not known
    assert not meter.record_total(TokenUsage(30)).budget_exhausted


# -- rollouts ----------------------------------------------------------------------------------------


def test_import_without_goals_takes_the_baselines(store: GoalStore, tmp_path: Path) -> None:
    used, silent = rollout_with_token_usage(tmp_path), rollout(tmp_path)
    report = imported(tmp_path, store)
    assert (report.goals, report.baselines) == (0, 1)
    assert store.usage(used) == USAGE
    assert store.usage(silent) is None
    [skipped] = report.skipped
    assert (skipped.kind, skipped.reason) == ("rollout", "states no usage")
    assert silent in skipped.name
    assert list(store.events()) == []


def test_a_baseline_that_is_there_stays(store: GoalStore, tmp_path: Path) -> None:
    """Also a lower one: the difference is charged when the thread is resumed, and not lost here."""
    lower, higher = (rollout_with_token_usage(tmp_path) for _ in range(2))
    for thread_id, tokens in ((lower, 1), (higher, 1_000_000)):
        store.create(thread_id, "Ship it")
        store.set_baseline(thread_id, TokenUsage(tokens), turn_id="mine")
    events = list(store.events())
    report = imported(tmp_path, store)
    assert report.baselines == 0
    reasons = {Path(skipped.name).stem[-36:]: skipped.reason for skipped in report.skipped}
    assert "the difference is charged" in reasons[lower]
    assert reasons[higher] == "the store knows more of the thread"
    assert list(store.events()) == events
    hub = ThreadHub(store, home=tmp_path)
    hub.resume(lower, Client(), request_id=1)
    assert hub.flush(PATIENCE_SECONDS)
    goal = store.get(lower)
    assert goal is not None
    assert goal.tokens_used == USAGE.total.goal_tokens - 1


def test_a_baseline_that_came_meanwhile_is_left_alone(
    store: GoalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread_id = rollout_with_token_usage(tmp_path)
    look = store.usage

    def look_and_lose(asked: str) -> Any:
        known = look(asked)
        store.set_baseline(thread_id, TokenUsage(7))
        return known

    with monkeypatch.context() as patched:
        patched.setattr(store, "usage", look_and_lose)
        report = imported(tmp_path, store)
    assert report.baselines == 0
    assert len(report.skipped) == 1
    known = store.usage(thread_id)
    assert known is not None
    assert known.total == TokenUsage(7)


def test_of_several_rollouts_of_a_thread_the_newest_counts(
    store: GoalStore, tmp_path: Path
) -> None:
    thread_id = rollout_with_token_usage(tmp_path)
    newest = find_rollout(tmp_path, thread_id)
    assert newest is not None
    older = newest.parent.parent.parent.parent / "2001" / "02" / "03"
    older.mkdir(parents=True)
    old = older / f"rollout-2001-02-03T04-05-06-{thread_id}.jsonl"
    old.write_text(newest.read_text().replace("1200", "900"))
    report = imported(tmp_path, store)
    assert report.baselines == 1
    assert store.usage(thread_id) == USAGE
    assert report.skipped == (Skipped("rollout", str(old), "the thread has a newer rollout"),)


def test_a_rollout_that_cannot_be_read_is_left_out_and_the_rest_taken(
    store: GoalStore, tmp_path: Path
) -> None:
    broken, used = rollout_with_token_usage(tmp_path), rollout_with_token_usage(tmp_path)
    path = find_rollout(tmp_path, broken)
    assert path is not None
    path.write_bytes(b"\x7fELF\0\0\0" * 100)
    report = imported(tmp_path, store)
    assert report.baselines == 1
    assert store.usage(used) is not None
    [skipped] = report.skipped
    assert skipped.name == str(path)
    assert skipped.reason.startswith("cannot be read: ")


def test_a_fork_begins_with_what_it_inherited(store: GoalStore, tmp_path: Path) -> None:
    cases = Path(__file__).parents[1] / "data" / "replay-cases" / "rejoin_mid_turn"
    day = tmp_path / "sessions" / "2026" / "11" / "20"
    shutil.copytree(cases, day)
    parent, fork = sorted(day.iterdir())
    assert imported(tmp_path, store).baselines == 2
    of_parent, of_fork = (store.usage(path.stem[-36:]) for path in (parent, fork))
    assert of_parent is not None
    assert of_fork is not None
    assert of_fork.total == of_parent.total
    assert of_fork.total.total_tokens == 276


# -- the write-ahead log, and that nothing is touched ------------------------------------------------

CRASHING = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("PRAGMA wal_autocheckpoint = 0")
connection.execute("UPDATE thread_goals SET tokens_used = 777")
os._exit(0)
"""


def crash(home: Path) -> None:
    """Leaves a change in the write-ahead log alone, as a process does that dies."""
    done = subprocess.run(
        [sys.executable, "-c", CRASHING, str(home / "goals_1.sqlite")], check=False, timeout=60
    )
    assert done.returncode == 0
    assert (home / "goals_1.sqlite-wal").stat().st_size > 0
    main_alone = home.parent / "main-alone.sqlite"
    shutil.copy(home / "goals_1.sqlite", main_alone)
    with closing(sqlite3.connect(main_alone)) as connection:
        assert connection.execute("SELECT tokens_used FROM thread_goals").fetchall() == [(10,)]


@pytest.mark.parametrize("has_shared_memory", [True, False])
def test_what_stands_in_the_write_ahead_log_alone_is_read_and_no_file_touched(
    store: GoalStore, tmp_path: Path, has_shared_memory: bool
) -> None:
    home = make_home(tmp_path / "home", row(), journal_mode="WAL")
    crash(home)
    if not has_shared_memory:
        (home / "goals_1.sqlite-shm").unlink()
    before = fingerprints(home)
    assert imported(home, store).goals == 1
    assert only(store).tokens_used == 777
    assert fingerprints(home) == before


def test_a_database_in_use_is_read_as_it_is_now(store: GoalStore, tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", row(), journal_mode="WAL")
    with closing(sqlite3.connect(home / "goals_1.sqlite", isolation_level=None)) as connection:
        insert(connection, row(2))
        connection.execute("BEGIN IMMEDIATE")
        insert(connection, row(3))  # not committed
        before = fingerprints(home)
        assert imported(home, store).goals == 2
        assert fingerprints(home) == before
        connection.execute("COMMIT")
        assert imported(home, store).goals == 1
    assert store.count() == 3


def test_a_hot_journal_is_rolled_back_in_the_copy_alone(store: GoalStore, tmp_path: Path) -> None:
    live = make_home(tmp_path / "live", *(row(number) for number in range(1, 200)))
    home = tmp_path / "home"
    with closing(sqlite3.connect(live / "goals_1.sqlite", isolation_level=None)) as connection:
        connection.execute(
            "PRAGMA cache_size = 1"
        )  # so that what is not committed reaches the file
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE thread_goals SET tokens_used = 5, objective = objective || '!'")
        shutil.copytree(live, home)
        connection.execute("ROLLBACK")
    assert (home / "goals_1.sqlite-journal").stat().st_size > 0
    before = fingerprints(home)
    assert imported(home, store).goals == 199
    assert {goal.tokens_used % 10 for goal in store.goals()} == {0}
    assert fingerprints(home) == before


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Path]:
    """A data directory in which nothing can be made or changed, with a write-ahead log."""
    home = make_home(tmp_path / "home", row(), journal_mode="WAL")
    crash(home)
    for path in home.iterdir():
        path.chmod(0o400)
    home.chmod(0o500)
    yield home
    home.chmod(0o700)


def test_a_directory_that_cannot_be_written_to(store: GoalStore, sealed: Path) -> None:
    names = sorted(path.name for path in sealed.iterdir())
    assert imported(sealed, store).goals == 1
    assert only(store).tokens_used == 777
    assert sorted(path.name for path in sealed.iterdir()) == names


def test_a_database_that_is_a_symlink_is_read_with_the_log_beside_its_target(
    store: GoalStore, tmp_path: Path
) -> None:
    elsewhere = make_home(tmp_path / "elsewhere", row(), journal_mode="WAL")
    crash(elsewhere)
    home = tmp_path / "home"
    home.mkdir()
    (home / "goals_1.sqlite").symlink_to(elsewhere / "goals_1.sqlite")
    assert imported(home, store).goals == 1
    assert only(store).tokens_used == 777


def test_a_database_that_is_written_to_while_it_is_copied_is_copied_again(
    store: GoalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(tmp_path / "home", row(), journal_mode="WAL")
    copy, copied = database_copy._copy_file, []
    with closing(sqlite3.connect(home / "goals_1.sqlite", isolation_level=None)) as connection:
        insert(connection, row(2))

        def copy_and_write(source: Path, target: Path, bytes_left: int) -> int:
            size = copy(source, target, bytes_left)
            copied.append(source.name)
            if len(copied) == 1:  # the log is not copied yet
                insert(connection, row(3))
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                insert(connection, row(4))
            return size

        monkeypatch.setattr(database_copy, "_copy_file", copy_and_write)
        assert imported(home, store).goals == 4
    assert copied == ["goals_1.sqlite", "goals_1.sqlite-wal"] * 2


def test_a_database_that_is_written_to_all_the_time_is_refused(
    store: GoalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(tmp_path / "home", row())
    copy = database_copy._copy_file

    def copy_and_write(source: Path, target: Path, bytes_left: int) -> int:
        size = copy(source, target, bytes_left)
        with source.open("ab") as file:
            file.write(b"\0")
        return size

    monkeypatch.setattr(database_copy, "_copy_file", copy_and_write)
    monkeypatch.setattr(database_copy, "_COPY_PAUSE_SECONDS", 0)
    with pytest.raises(DatabaseBusyError, match="try again"):
        imported(home, store)


def test_imports_that_race_take_each_goal_and_each_baseline_once(
    database: Path, home: Path
) -> None:
    reports: list[Any] = []

    def run() -> None:
        with GoalStore.open(database, durability="normal") as store:
            reports.append(imported(home, store))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(reports) == 4
    assert sum(report.goals for report in reports) == 6
    with GoalStore.open(database) as store:
        assert store.verify() == []
        assert store.count() == 6


# -- refusals ----------------------------------------------------------------------------------------


def test_what_is_no_data_directory_is_refused(store: GoalStore, tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(
            DatabaseLocationError, match=r"neither 'goals_1\.sqlite' nor 'sessions'"
        ):
            imported(folder, store)


def test_what_is_no_database_is_refused(store: GoalStore, tmp_path: Path) -> None:
    for content in (b"", b"{}" * 500):
        (tmp_path / "goals_1.sqlite").write_bytes(content)
        with pytest.raises(NotADatabaseError, match=r"goals_1\.sqlite"):
            imported(tmp_path, store)


def test_a_damaged_database_is_refused(store: GoalStore, tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", *(row(number) for number in range(1, 100)))
    path = home / "goals_1.sqlite"
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(DatabaseCorruptError):
        imported(home, store)
    assert store.count() == 0


def test_another_schema_is_refused(store: GoalStore, tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", row())
    path = home / "goals_1.sqlite"
    execute(path, "ALTER TABLE thread_goals RENAME COLUMN tokens_used TO spent")
    with pytest.raises(CodexSchemaError, match="'thread_goals' has no column 'tokens_used'"):
        imported(home, store)
    execute(path, "DROP TABLE thread_goals")
    with pytest.raises(CodexSchemaError, match="has no table 'thread_goals'"):
        imported(home, store)
    assert store.count() == 0


# -- the repository's part ---------------------------------------------------------------------------


def a_goal(**values: Any) -> Goal:
    one = row(1, **values)
    time_used_ms = one.pop("time_used_seconds") * 1000
    return Goal(time_used_ms=time_used_ms, **one)


def test_a_goal_is_imported_with_why_it_waits(store: GoalStore) -> None:
    base = a_goal(status=GoalStatus.BLOCKED)
    blocked = Goal(*astuple(base)[:9], resume_at_ms=None, blocked_reason="an answer")
    assert store.transact(lambda repository: repository.import_goal(blocked)) == blocked
    assert store.get("thread-1") == blocked
    [created, charge, change] = store.events()
    assert (created.goal_status, charge.goal_status) == (GoalStatus.ACTIVE, GoalStatus.ACTIVE)
    assert (change.previous_status, change.goal_status) == (GoalStatus.ACTIVE, GoalStatus.BLOCKED)
    assert (charge.occurred_at_ms, change.occurred_at_ms) == (blocked.updated_at_ms,) * 2


def test_listeners_hear_of_an_imported_goal(store: GoalStore) -> None:
    heard: list[EventKind] = []
    with store.subscribe(lambda event: heard.append(event.kind)):
        store.transact(lambda repository: repository.import_goal(a_goal()))
    assert heard == [EventKind.CREATED, EventKind.USAGE_ACCOUNTED]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"tokens_used": 1_000}, "status"),
        ({"token_budget": True}, "token_budget"),
        ({"objective": ""}, "objective"),
        ({"goal_id": goal_id(1) + "0"}, "goal_id"),
        ({"created_at_ms": -1}, "created_at_ms"),
    ],
)
def test_a_goal_that_cannot_be_is_refused(store: GoalStore, values: Row, field: str) -> None:
    with pytest.raises(InvalidValueError) as refusal:
        store.transact(lambda repository: repository.import_goal(a_goal(**values)))
    assert refusal.value.field == field
    assert store.count() == 0
    assert list(store.events()) == []


def test_why_it_waits_must_fit_the_status(store: GoalStore) -> None:
    base = astuple(a_goal())[:9]
    for more in ((5, None), (None, "why"), (-5, None)):
        with pytest.raises(InvalidValueError):
            store.transact(lambda repository, more=more: repository.import_goal(Goal(*base, *more)))
    assert store.count() == 0


def test_a_goal_is_not_imported_over_another_nor_twice(store: GoalStore) -> None:
    first = store.transact(lambda repository: repository.import_goal(a_goal()))
    events = list(store.events())
    for again in (a_goal(), a_goal(goal_id=goal_id(2)), a_goal(thread_id="other")):
        with pytest.raises(GoalExistsError):
            store.transact(lambda repository, again=again: repository.import_goal(again))
    assert list(store.events()) == events
    assert only(store) == first
