"""Backups, exports and imports lose nothing, change nothing and overwrite nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from goal_state import (
    DatabaseLocationError,
    GoalStore,
    InvalidValueError,
    ThreadUsage,
    TokenUsage,
    migrate,
)
from goal_state.cli.main import program
from goal_state.errors import NotAnExportError, StoreNotEmptyError
from goal_state.storage.schema import HEAD_REVISION, metadata
from goal_state.storage.sqlite.connections import create_engine
from goal_state.storage.transfer import MAX_LINE_CHARACTERS
from tests.cli.program import COMMAND, ENVIRONMENT, PATIENCE_SECONDS
from tests.in_memory import open_in_memory
from tests.upgrade.make_fixtures import fixture

# Without what tells a copy from its original.
TABLES = sorted(metadata.tables.keys() - {"goal_state_database"})


def fill(store: GoalStore) -> None:
    for number in range(30):
        thread = f"thread-{number}"
        store.create(thread, f"work \u2028 目標 {number} \x1b", token_budget=500)
        store.charge(thread, tokens=100 * number, seconds=0.25, idempotency_key="k")
        usage = TokenUsage(1000 + number, 3, 2, 70, 5)
        store.set_baseline(thread, ThreadUsage(usage, usage, 258_400), turn_id="turn")
    store.set("thread-1", status="blocked", blocked_reason="asks for a key")
    store.set("thread-2", status="usage_limited", resume_at=datetime(2030, 1, 1, tzinfo=UTC))
    store.clear("thread-3")
    with store.consume("sink", lambda _: None) as consumer:
        assert consumer.drain(10)
    store.prune_events(before=datetime.now(UTC) + timedelta(days=1))
    store.charge("thread-4", tokens=1)


@pytest.fixture(scope="session")
def filled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with rows of every kind in it, not to be opened."""
    path = tmp_path_factory.mktemp("filled") / "goals.db"
    with GoalStore.open(path) as store:
        fill(store)
    return path


@pytest.fixture
def database(filled_once: Path, path: Path) -> Path:
    """A database of its own for each test, with rows of every kind in it."""
    return Path(shutil.copy(filled_once, path))


@pytest.fixture
def empty() -> Iterator[GoalStore]:
    with open_in_memory() as store:
        yield store


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
        assert store.import_lines(lines) == len(lines) - 2
        assert store.verify() == []
        assert list(store.export_lines()) == lines
    assert dump(target) == dump(database)


def test_pruned_positions_are_not_given_out_again(database: Path) -> None:
    with GoalStore.open(database) as store, open_in_memory() as other:
        lines = list(store.export_lines())
        other.import_lines(lines)
        last = store.last_position()
        store.charge("thread-4", tokens=1)
        other.charge("thread-4", tokens=1)
        assert other.last_position() == store.last_position() > last


def _header(**changes: Any) -> str:
    header = {
        "format": 3,
        "revision": HEAD_REVISION,
        "last_position": 1,
        "counted_tokens": "uncached",
        "currency": None,
    }
    return json.dumps({**header, **changes})


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "line 1: is the last one and no trailer"),
        (["[]"], "is no JSON object"),
        (['{"format": 3}'], "is no header"),
        ([_header(format=2)], "is of format 2, this version"),
        ([_header(revision="0000")], "is of revision '0000'"),
        ([_header(counted_tokens=5)], "is no header"),
        ([_header(currency=5)], "is no header"),
        ([_header(currency="")], "line 1: currency: must have 1 to 256 characters"),
        (["HEADER", '{"table": "users", "row": {}}'], "line 2: is no row"),
        (
            ["HEADER", '{"table": "goal_state_goals", "row": {"goal_id": "x"}}'],
            "has not the columns of",
        ),
        (["HEADER", "{"], "line 2: is not JSON"),
    ],
)
def test_what_is_no_export_is_refused_whole(lines: list[str], problem: str) -> None:
    with open_in_memory() as store:
        header = next(iter(store.export_lines()))
        given = [header if line == "HEADER" else line for line in lines]
        with pytest.raises(NotAnExportError, match=problem):
            store.import_lines(given)
        assert store.last_position() == 0


def test_half_an_import_leaves_nothing(database: Path, tmp_path: Path) -> None:
    with GoalStore.open(database) as store:
        lines = [*store.export_lines(), "torn"]
    with GoalStore.open(tmp_path / "other.db") as store:
        with pytest.raises(NotAnExportError):
            store.import_lines(lines)
        assert store.count() == 0
        assert list(store.events()) == []


def test_only_an_empty_store_takes_an_import(database: Path) -> None:
    with GoalStore.open(database) as store:
        lines = list(store.export_lines())
        with pytest.raises(StoreNotEmptyError, match="goals already"):
            store.import_lines(lines)
        assert list(store.export_lines()) == lines


@pytest.mark.slow
def test_a_backup_is_whole_while_others_write(database: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    stop = threading.Event()
    calls: list[tuple[int, int]] = []
    with GoalStore.open(database, durability="normal") as store:

        def write() -> None:
            while not stop.is_set():
                store.transact(lambda r: [r.charge(f"thread-{n}", tokens=1) for n in (5, 6)])

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
    with open_in_memory() as store:
        store.create("t", "work")
        store.backup(tmp_path / "copy.db")
    with GoalStore.open(tmp_path / "copy.db") as copy:
        assert copy.count() == 1
        assert copy.verify() == []


@pytest.mark.slow
def test_the_commands_move_everything(database: Path, tmp_path: Path) -> None:
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


# -- whole, unchanged, and read once ---------------------------------------------------------------------


def refusal(store: GoalStore, lines: Iterable[str]) -> NotAnExportError:
    with pytest.raises(NotAnExportError) as caught:
        store.import_lines(lines)
    assert store.count() == 0
    assert store.last_position() == 0
    return caught.value


@pytest.mark.slow
def test_an_export_that_was_cut_off_anywhere_is_refused() -> None:
    with open_in_memory() as source:
        fill(source)
        lines = list(source.export_lines())
    with open_in_memory() as target:
        for length in range(len(lines)):
            assert refusal(target, lines[:length]).line == max(length, 1)
        for missing in range(1, len(lines) - 1):
            refusal(target, lines[:missing] + lines[missing + 1 :])
        assert target.import_lines(lines) == len(lines) - 2


def test_lines_that_are_added_moved_or_damaged_are_refused(empty: GoalStore) -> None:
    with open_in_memory() as source:
        fill(source)
        lines = list(source.export_lines())
    last = len(lines)
    first_event = next(n for n, line in enumerate(lines) if '"goal_state_events"' in line)
    moved = [*lines[:1], *lines[first_event:-1], *lines[1:first_event], lines[-1]]
    assert refusal(empty, moved).problem == "is out of order: goal_state_goals come before"
    swapped = [lines[0], lines[2], lines[1], *lines[3:]]
    assert refusal(empty, swapped).problem == "is out of order, or there twice"
    assert refusal(empty, [*lines, lines[-1]]).line == last + 1
    assert refusal(empty, [*lines, ""]).line == last + 1
    damaged = [line.replace("work ", "word ") for line in lines]
    assert "has not the checksum" in refusal(empty, damaged).problem
    assert refusal(empty, damaged).line == last
    blanks = [*lines[:2], lines[2].replace(", ", ",  "), *lines[3:]]
    assert "has not the checksum" in refusal(empty, blanks).problem
    for trailer in ("{}", '{"rows": 1}', '{"rows": true, "sha256": ""}', '{"sha256": null}'):
        refusal(empty, [*lines[:-1], trailer])
    assert empty.import_lines(lines) == last - 2


def test_lines_may_have_ends_and_come_from_a_generator(empty: GoalStore) -> None:
    with open_in_memory() as source:
        fill(source)
        lines = list(source.export_lines())
        for end in ("\n", "\r\n"):
            with open_in_memory() as target:
                assert target.import_lines(f"{line}{end}" for line in lines) == len(lines) - 2
        assert empty.import_lines(source.export_lines()) == len(lines) - 2


@pytest.mark.parametrize("lines", [None, 7, lambda: ["{}"]])
def test_what_has_no_lines_is_refused(empty: GoalStore, lines: Any) -> None:
    with pytest.raises(InvalidValueError, match="lines: must be iterable"):
        empty.import_lines(lines)


def test_a_line_without_an_end_is_refused_unparsed(empty: GoalStore) -> None:
    error = refusal(empty, ["[" * (MAX_LINE_CHARACTERS + 1)])
    assert error.problem == f"is longer than {MAX_LINE_CHARACTERS} characters"


def test_the_longest_line_of_an_export_is_no_tenth_of_what_is_taken(empty: GoalStore) -> None:
    with open_in_memory() as source:
        source.create("\U0001f600" * 256, "\U0001f600" * 4000)
        source.set("\U0001f600" * 256, status="blocked", blocked_reason="\U0001f600" * 4000)
        lines = list(source.export_lines())
        assert 90_000 < max(map(len, lines)) < MAX_LINE_CHARACTERS / 8
        assert empty.import_lines(lines) == len(lines) - 2


def test_an_error_of_the_iterable_is_raised_and_leaves_nothing(empty: GoalStore) -> None:
    def broken() -> Iterator[str]:
        with open_in_memory() as source:
            fill(source)
            yield from list(source.export_lines())[:-3]
        raise OSError("the line broke")

    with pytest.raises(OSError, match="the line broke"):
        empty.import_lines(broken())
    assert empty.count() == 0


@pytest.mark.usefixtures("next_revision")
def test_what_older_versions_wrote_can_be_moved(tmp_path: Path) -> None:
    path = tmp_path / "older.db"
    shutil.copy(fixture(HEAD_REVISION), path)
    with GoalStore.open(path) as store, open_in_memory() as target:
        lines = list(store.export_lines())
        target.import_lines(lines)
        assert list(target.export_lines()) == lines


@pytest.mark.slow
@pytest.mark.usefixtures("next_revision")
def test_a_store_that_was_downgraded_and_upgraded_can_be_moved(database: Path) -> None:
    engine = create_engine(database)
    migrate.downgrade(engine, HEAD_REVISION)
    migrate.upgrade(engine)
    with GoalStore.open(database) as store, open_in_memory() as target:
        assert target.import_lines(store.export_lines()) > 0
        assert target.verify() == []


def test_a_resume_time_before_1970_can_be_moved(empty: GoalStore) -> None:
    with open_in_memory() as source:
        source.create("t", "work")
        source.set("t", status="usage_limited", resume_at=datetime(1, 1, 1, tzinfo=UTC))
        empty.import_lines(source.export_lines())
    [goal] = empty.goals()
    assert goal.resume_at == datetime(1, 1, 1, tzinfo=UTC)


# -- the command -----------------------------------------------------------------------------------------


def run_import(source: Path | str, target: Path, stdin: Any = subprocess.DEVNULL) -> str | None:
    """What the command says of its failure; None where it succeeds."""
    done = subprocess.run(
        [*COMMAND, "import", str(source), "--db", str(target)],
        env=ENVIRONMENT,
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return None if done.returncode == 0 else done.stderr.splitlines()[-1]


@pytest.fixture
def exported(database: Path, tmp_path: Path) -> Path:
    path = tmp_path / "lines.jsonl"
    with GoalStore.open(database) as store:
        path.write_text("".join(f"{line}\n" for line in store.export_lines()))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stdin", "fifo", "process"])
def test_a_pipe_is_imported(way: str, exported: Path, database: Path, tmp_path: Path) -> None:
    target = tmp_path / "imported.db"
    if way == "stdin":
        with exported.open() as file:
            assert run_import("-", target, file) is None
    elif way == "process":
        with subprocess.Popen(
            [*COMMAND, "export", "--db", str(database)], env=ENVIRONMENT, stdout=subprocess.PIPE
        ) as source:
            assert run_import("-", target, source.stdout) is None
    else:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        writer = threading.Thread(target=lambda: fifo.write_text(exported.read_text()), daemon=True)
        writer.start()
        assert run_import(fifo, target) is None
        writer.join(PATIENCE_SECONDS)
    assert dump(target) == dump(database)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "tampered", "bytes", "endless"])
def test_an_import_that_fails_leaves_no_file(damage: str, exported: Path, tmp_path: Path) -> None:
    text = exported.read_bytes()
    lines = text.splitlines(keepends=True)
    exported.write_bytes(
        {
            "cut": b"".join(lines[:-1]),
            "tampered": text.replace(b'"work', b'"word'),
            "bytes": lines[0] + b"\xff\xfe" + b"".join(lines[1:]),
            "endless": lines[0] + b"[" * 2**22,
        }[damage]
    )
    folder = tmp_path / "new"
    folder.mkdir()
    error = run_import(exported, folder / "imported.db")
    assert error is not None
    assert "line " in error
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_an_import_that_is_terminated_leaves_no_database(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    with subprocess.Popen(
        [*COMMAND, "import", "-", "--db", str(folder / "imported.db")],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(b"".join(exported.read_bytes().splitlines(keepends=True)[:-1]))
            process.stdin.flush()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not any(folder.iterdir()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_database_that_was_there_stays_as_it_was(exported: Path, tmp_path: Path) -> None:
    target = tmp_path / "there.db"
    with GoalStore.open(target) as store:
        store.create("t", "work")
    before = dump(target)
    error = run_import(exported, target)
    assert error is not None
    assert "the store has rows in goal_state_goals already" in error
    assert dump(target) == before
    empty = tmp_path / "empty.db"
    GoalStore.open(empty).close()
    exported.write_text(exported.read_text()[:-1000])
    assert run_import(exported, empty) is not None
    with GoalStore.open(empty) as store:
        assert store.count() == 0


@pytest.mark.slow
def test_an_import_beside_the_log_of_a_database_that_is_gone_is_refused(
    exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "gone.db-wal").write_bytes(b"a log")
    error = run_import(exported, tmp_path / "gone.db")
    assert error is not None
    assert "the log of a database that is missing" in error
    assert not (tmp_path / "gone.db").exists()
    assert (tmp_path / "gone.db-wal").read_bytes() == b"a log"
