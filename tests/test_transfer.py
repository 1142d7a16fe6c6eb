"""Backups, exports and imports lose nothing, change nothing and overwrite nothing."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from goal_state import DatabaseLocationError, GoalStore, TokenUsage, TokenUsageInfo
from goal_state.cli.main import program
from goal_state.tables import metadata
from goal_state.transfer import NotAnExportError, StoreNotEmptyError

TABLES = sorted(table.name for table in metadata.sorted_tables)


def fill(store: GoalStore) -> None:
    for number in range(30):
        thread = f"thread-{number}"
        store.create(thread, f"work \u2028 目標 {number} \x1b", token_budget=500)
        store.account(thread, tokens=100 * number, seconds=0.25, idempotency_key="k")
        usage = TokenUsage(1000 + number, 3, 2, 70, 5)
        store.set_baseline(thread, TokenUsageInfo(usage, usage, 258_400), turn_id="turn")
    store.set("thread-1", status="blocked", blocked_reason="asks for a key")
    store.set("thread-2", status="usage_limited", resume_at=datetime(2030, 1, 1, tzinfo=UTC))
    store.clear("thread-3")
    with store.consume("sink", lambda _: None) as consumer:
        assert consumer.drain(10)
    store.prune_events(before=datetime.now(UTC) + timedelta(days=1))
    store.account("thread-4", tokens=1)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "goals.db"
    with GoalStore.open(path) as store:
        fill(store)
    return path


def dump(path: Path) -> dict[str, list[tuple[object, ...]]]:
    connection = sqlite3.connect(path)
    try:
        tables = {
            name: connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()
            for name in TABLES
        }
        sequence = connection.execute("SELECT * FROM sqlite_sequence").fetchall()
    finally:
        connection.close()
    return tables | {"sqlite_sequence": sequence}


def test_a_round_trip_through_lines_is_lossless(database: Path, tmp_path: Path) -> None:
    with GoalStore.open(database) as store:
        lines = list(store.export_lines())
    target = tmp_path / "other.db"
    with GoalStore.open(target) as store:
        assert store.import_lines(lambda: lines) == len(lines) - 1
        assert store.verify() == []
        assert list(store.export_lines()) == lines
    assert dump(target) == dump(database)


def test_pruned_positions_are_not_given_out_again(database: Path) -> None:
    with GoalStore.open(database) as store, GoalStore.open(":memory:") as other:
        lines = list(store.export_lines())
        other.import_lines(lambda: lines)
        last = store.last_position()
        store.account("thread-4", tokens=1)
        other.account("thread-4", tokens=1)
        assert other.last_position() == store.last_position() > last


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "is not JSON"),
        (["[]"], "is no JSON object"),
        (['{"format": 2}'], "is no header"),
        (['{"format": 1, "revision": "0001", "last_position": 1}'], "is of revision '0001'"),
        (["HEADER", '{"table": "users", "row": {}}'], "line 2: is no row"),
        (["HEADER", '{"table": "goals", "row": {"goal_id": "x"}}'], "has not the columns of goals"),
        (["HEADER", "{"], "line 2: is not JSON"),
    ],
)
def test_what_is_no_export_is_refused_whole(lines: list[str], problem: str) -> None:
    with GoalStore.open(":memory:") as store:
        header = next(iter(store.export_lines()))
        given = [header if line == "HEADER" else line for line in lines]
        with pytest.raises(NotAnExportError, match=problem):
            store.import_lines(lambda: given)
        assert store.last_position() == 0


def test_half_an_import_leaves_nothing(database: Path, tmp_path: Path) -> None:
    with GoalStore.open(database) as store:
        lines = [*store.export_lines(), "torn"]
    with GoalStore.open(tmp_path / "other.db") as store:
        with pytest.raises(NotAnExportError):
            store.import_lines(lambda: lines)
        assert store.count() == 0
        assert list(store.events()) == []


def test_only_an_empty_store_takes_an_import(database: Path) -> None:
    with GoalStore.open(database) as store:
        lines = list(store.export_lines())
        with pytest.raises(StoreNotEmptyError, match="goals already"):
            store.import_lines(lambda: lines)
        assert list(store.export_lines()) == lines


def test_a_backup_is_whole_while_others_write(database: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    stop = threading.Event()
    calls: list[tuple[int, int]] = []
    with GoalStore.open(database, durability="normal") as store:

        def write() -> None:
            while not stop.is_set():
                store.transact(lambda r: [r.account(f"thread-{n}", tokens=1) for n in (5, 6)])

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(20):
                copy.unlink(missing_ok=True)
                store.backup(copy, progress=lambda left, total: calls.append((left, total)))
                with GoalStore.open(copy) as other:
                    assert other.verify() == []
                    five, six = other.get("thread-5"), other.get("thread-6")
                    assert five is not None
                    assert six is not None
                    assert six.tokens_used - five.tokens_used == 100
        finally:
            stop.set()
            writer.join()
    assert calls[-1][0] == 0
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert list(tmp_path.glob("*.partial")) == []


def test_a_backup_overwrites_nothing(database: Path, tmp_path: Path) -> None:
    other = tmp_path / "precious.txt"
    other.write_text("precious")
    with GoalStore.open(database) as store:
        with pytest.raises(DatabaseLocationError, match="exists"):
            store.backup(other)
        with pytest.raises(DatabaseLocationError, match="does not exist"):
            store.backup(tmp_path / "nowhere" / "copy.db")
    assert other.read_text() == "precious"


def test_a_store_in_memory_can_be_backed_up(tmp_path: Path) -> None:
    with GoalStore.open(":memory:") as store:
        store.create("t", "work")
        store.backup(tmp_path / "copy.db")
    with GoalStore.open(tmp_path / "copy.db") as copy:
        assert copy.count() == 1
        assert copy.verify() == []


def test_the_commands(database: Path, tmp_path: Path) -> None:
    runner = CliRunner()

    def run(*arguments: str | os.PathLike[str]) -> str:
        result = runner.invoke(program, [os.fspath(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    lines = tmp_path / "lines.jsonl"
    lines.write_text(run("export", "--db", database), encoding="utf-8")
    run("import", lines, "--db", tmp_path / "imported.db")
    assert dump(tmp_path / "imported.db") == dump(database)
    run("backup", tmp_path / "copy.db", "--db", database)
    assert dump(tmp_path / "copy.db") == dump(database)
    assert "events pruned" in run("db", "prune", "--before", "2100-01-01", "--db", database)
    assert "bytes" in run("db", "vacuum", "--db", database)
    assert "thread-4" in run("list", "--json", "--db", database)
    again = runner.invoke(program, ["backup", str(tmp_path / "copy.db"), "--db", str(database)])
    assert again.exit_code == 2
    assert "exists; name a new file" in again.stderr
