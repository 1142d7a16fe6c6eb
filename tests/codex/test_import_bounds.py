"""A database that a stranger made takes no more memory, disk or time than one that holds goals."""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from goal_state import NotADatabaseError
from goal_state.codex import database_copy
from goal_state.codex.importer import CodexHome
from goal_state.errors import CodexSchemaError
from tests.codex.test_import import RECORDED, SCHEMA, insert, make_home, row
from tests.processes import python

_READ = """
import resource, sys, tempfile
from goal_state.codex.importer import CodexHome
from goal_state.errors import CodexSchemaError
from tests.processes import peak_memory_mib
resource.setrlimit(resource.RLIMIT_FSIZE, (2**29, 2**29))
tempfile.tempdir = sys.argv[2]
try:
    print(len(CodexHome.read(sys.argv[1]).goals), "goals")
except CodexSchemaError as error:
    print(error)
assert peak_memory_mib() < 500
"""
_COLUMNS = (
    "thread_id, goal_id, objective, status, token_budget, tokens_used, time_used_seconds,"
    " created_at_ms, updated_at_ms"
)
_SOURCE = """(WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)
    SELECT 't' || x AS thread_id, 'g' AS goal_id, printf('%.10000c', 'x') AS objective,
    'active' AS status, 1 AS token_budget, 0 AS tokens_used, 0 AS time_used_seconds,
    x AS created_at_ms, x AS updated_at_ms FROM n)"""


def read(home: Path) -> str:
    """What reading a directory says, in a process that is ended where it does not come to an end. Nothing
    is left of its copies.
    """
    folder = home.with_name("copies")
    folder.mkdir(exist_ok=True)
    said = python(_READ, home, folder).strip()
    assert list(folder.iterdir()) == []
    return said


def crafted(home: Path, *statements: str) -> Path:
    home.mkdir(exist_ok=True)
    with closing(sqlite3.connect(home / "goals_1.sqlite", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.mark.slow
def test_an_endless_view_is_refused(home: Path) -> None:
    crafted(home, f"CREATE VIEW thread_goals AS SELECT * FROM {_SOURCE}")
    assert read(home).endswith("has a view 'thread_goals', not a table")


@pytest.mark.slow
def test_a_virtual_table_is_refused(home: Path) -> None:
    try:
        crafted(home, f"CREATE VIRTUAL TABLE thread_goals USING fts5({_COLUMNS})")
    except sqlite3.OperationalError:
        pytest.skip("this SQLite has no fts5")
    assert read(home).endswith("has a virtual 'thread_goals', not a table")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["VIRTUAL", "STORED"])
def test_a_generated_column_is_refused(home: Path, kind: str) -> None:
    made = f"objective TEXT GENERATED ALWAYS AS (printf('%.*c', 900000000, 'x')) {kind}"
    crafted(home, SCHEMA.replace("objective TEXT NOT NULL", made))
    assert read(home).endswith("the column 'objective' of 'thread_goals' is a generated one")


@pytest.mark.slow
def test_triggers_indexes_and_other_tables_are_left_alone(home: Path) -> None:
    make_home(home, row(1), row(2))
    crafted(
        home,
        "CREATE INDEX by_time ON thread_goals (created_at_ms, thread_id, abs(tokens_used))",
        f"CREATE VIEW endless AS SELECT * FROM {_SOURCE}",
        "CREATE TRIGGER again AFTER INSERT ON thread_goals BEGIN SELECT 1; END",
        *(f"CREATE TABLE other_{number} (x)" for number in range(200)),
    )
    assert read(home) == "2 goals"


@pytest.mark.slow
def test_a_schema_of_thousands_of_tables_is_refused(home: Path) -> None:
    make_home(home, row(1))
    crafted(home, "BEGIN", *(f"CREATE TABLE other_{n} (x)" for n in range(4_000)), "COMMIT")
    assert "takes too many steps to read" in read(home)


@pytest.mark.slow
def test_a_value_of_megabytes_and_many_of_them_are_refused(home: Path) -> None:
    make_home(home, row(1), row(2, objective="x" * 900_000))
    assert read(home) == "2 goals"
    crafted(home, "UPDATE thread_goals SET objective = printf('%.1100000c', 'x')")
    assert "too big" in read(home)
    crafted(home, "UPDATE thread_goals SET objective = zeroblob(900000)")
    assert read(home) == "2 goals"
    with closing(sqlite3.connect(home / "goals_1.sqlite")) as connection, connection:
        for number in range(3, 100):
            insert(connection, row(number, objective="x" * 900_000))
    assert "has more than 100000 goals, or 67108864 bytes of them" in read(home)


def interior_pages(database: bytearray, size: int, root: int) -> Iterator[int]:
    """The pages of a table, from its root on, that have only pages below them."""
    pages = [root]
    while pages:
        page = pages.pop()
        at = (page - 1) * size
        if database[at] == 5:
            yield page
            pages += [child for child, _ in children(database, size, page)]


def children(database: bytearray, size: int, page: int) -> Iterator[tuple[int, int]]:
    """The pages right below one, and where in the file each is named."""
    at = (page - 1) * size
    (cells,) = struct.unpack_from(">H", database, at + 3)
    for number in range(cells):
        (cell,) = struct.unpack_from(">H", database, at + 12 + 2 * number)
        yield struct.unpack_from(">I", database, at + cell)[0], at + cell
    yield struct.unpack_from(">I", database, at + 8)[0], at + 8


@pytest.mark.slow
def test_billions_of_rows_on_a_few_pages_are_refused(home: Path) -> None:
    home.mkdir()
    path = home / "goals_1.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA page_size = 512")
        connection.execute(SCHEMA)
        with connection:
            for number in range(3_000):
                insert(connection, row(number))
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'thread_goals'"
        ).fetchone()
    database = bytearray(path.read_bytes())
    inner = list(interior_pages(database, 512, root))
    assert len(inner) > 8
    rows = 1
    for page, below in pairwise(inner[:9]):
        named = list(children(database, 512, page))
        rows *= len(named)
        for _, at in named:
            struct.pack_into(">I", database, at, below)
    assert rows > 10**9
    path.write_bytes(database)
    assert "has more than 100000 goals" in read(home)


# -- files -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["goals_1.sqlite", "goals_1.sqlite-wal", "goals_1.sqlite-journal"])
def test_a_file_of_ten_terabytes_is_not_copied(home: Path, name: str) -> None:
    make_home(home, row(1))
    with (home / name).open("ab") as file:
        file.truncate(10**13)
    assert "the database has more than 268435456 bytes" in read(home)


def test_a_log_that_grows_while_it_is_copied_is_not_run_after(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_home(home, row(1))
    monkeypatch.setattr(database_copy, "_MAX_FILE_BYTES", 2**20)
    monkeypatch.setattr(database_copy, "_BLOCK_BYTES", 2**12)
    log = home / "goals_1.sqlite-wal"
    log.write_bytes(bytes(2**14))
    real, written = os.fstat, [0]

    def grow(descriptor: int) -> os.stat_result:
        with log.open("ab") as file:
            written[0] += file.write(bytes(2**15))
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", grow)
    with pytest.raises(CodexSchemaError, match="more than 1048576 bytes"):
        CodexHome.read(home)
    assert written[0] < 2**22


@pytest.mark.parametrize("name", ["goals_1.sqlite", "goals_1.sqlite-wal", "goals_1.sqlite-journal"])
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_is_not_opened(home: Path, name: str, kind: str) -> None:
    make_home(home, row(1))
    (home / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(home / name)
    else:
        (home / name).symlink_to("/dev/zero")
    with pytest.raises(NotADatabaseError, match="is no regular file"):
        CodexHome.read(home)


def test_a_journal_that_names_another_file_deletes_none(home: Path, tmp_path: Path) -> None:
    make_home(home, row(1))
    victim = tmp_path / "precious"
    name = os.fsencode(victim)
    pages = (home / "goals_1.sqlite").stat().st_size // 4096
    magic = bytes.fromhex("d9d505f920a163d7")
    header = magic + struct.pack(">5I", 0, 0, pages, 512, 4096)
    end = name + struct.pack(">II", len(name), sum(name)) + magic
    (home / "goals_1.sqlite-journal").write_bytes(header.ljust(512, b"\0") + bytes(4) + end)
    before = (home / "goals_1.sqlite").read_bytes(), (home / "goals_1.sqlite-journal").read_bytes()
    victim.write_text("precious")
    with pytest.raises(CodexSchemaError, match="its journal is of a change to several databases"):
        CodexHome.read(home)
    assert victim.read_text() == "precious"
    assert before == (
        (home / "goals_1.sqlite").read_bytes(),
        (home / "goals_1.sqlite-journal").read_bytes(),
    )
    with closing(sqlite3.connect(home / "goals_1.sqlite")) as connection:
        connection.execute("SELECT * FROM thread_goals").fetchall()
    assert not victim.exists(), "SQLite by itself does it: the test is one"


def test_rows_come_in_the_order_of_sql(home: Path) -> None:
    make_home(home)
    crafted(
        home,
        "DROP TABLE thread_goals",
        f"CREATE TABLE thread_goals ({_COLUMNS})",
        "INSERT INTO thread_goals (thread_id, created_at_ms) VALUES ('b', 2), ('a', 2), ('c', 1.5),"
        " ('d', NULL), ('e', '1'), ('f', x'00'), ('\U00010000', 1), ('\uffff', 1), (7, 1)",
    )
    with closing(sqlite3.connect(home / "goals_1.sqlite")) as connection:
        ordered = connection.execute(
            f"SELECT {_COLUMNS} FROM thread_goals ORDER BY created_at_ms, thread_id"
        ).fetchall()
    assert list(CodexHome.read(home).goals) == ordered
    assert len(CodexHome.read(RECORDED).goals) == 6
