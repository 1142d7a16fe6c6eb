"""Databases that cannot be used: a sentence for each, the exit code that tells whose fault it is, and the
file as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from goal_state import GoalStore
from goal_state.storage.schema import HEAD_REVISION, VERSION_TABLE
from tests.cli.program import SMALL, finish, refused, start
from tests.databases import execute, fingerprints
from tests.processes import python

OTHER_APPLICATIONS = Path(__file__).parents[1] / "data/other-applications"

READING = [["list"], ["show", "t"], ["events"], ["events", "--follow"], ["verify"]]
CHANGING = [
    ["set", "t", "--status", "paused"],
    ["clear", "t"],
    ["db", "current"],
    ["db", "check"],
    ["db", "stamp", "head"],
    ["db", "downgrade", "base", "--yes"],
]
MAKING = [
    ["set", "t", "--objective", "x"],
    ["db", "upgrade"],
    ["codex", "meter", str(SMALL), "--budget", "5"],
]


def every(commands: list[list[str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("command", commands, ids=" ".join)


@every(READING + CHANGING)
def test_a_missing_file_is_not_made(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "missing.db"
    sentence = refused(*command, "--db", path)
    assert sentence == (
        f"there is no database {str(path)!r}; to make one, run: goal-state db upgrade --db {path}"
    )
    assert list(tmp_path.iterdir()) == []


@every(READING + CHANGING + MAKING)
def test_a_missing_folder_is_not_made(tmp_path: Path, command: list[str]) -> None:
    sentence = refused(*command, "--db", tmp_path / "nowhere" / "goals.db")
    assert sentence == f"the folder {str(tmp_path / 'nowhere')!r} does not exist; make it first"
    assert list(tmp_path.iterdir()) == []


@every(READING + CHANGING + MAKING)
def test_a_directory_is_refused(tmp_path: Path, command: list[str]) -> None:
    assert refused(*command, "--db", tmp_path) == (
        f"{str(tmp_path)!r} is a directory; name a file in it"
    )
    assert list(tmp_path.iterdir()) == []


@every(READING + CHANGING + MAKING)
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Buy milk.\n" * 1000)
    before = fingerprints(tmp_path)
    assert refused(*command, "--db", path) == (
        f"{str(path)!r} is not a SQLite database; name another file, or restore a backup if it was one"
    )
    assert fingerprints(tmp_path) == before


@every(READING + CHANGING + MAKING)
def test_the_database_of_another_application_is_refused(tmp_path: Path, command: list[str]) -> None:
    path = shutil.copyfile(OTHER_APPLICATIONS / "goals_1.sqlite", tmp_path / "theirs.db")
    before = fingerprints(tmp_path)
    assert refused(*command, "--db", path).startswith(
        f"{str(path)!r} belongs to another application (it has a table "
    )
    assert fingerprints(tmp_path) == before


@every(READING)
def test_an_empty_file_is_left_empty(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "goals.db"
    path.touch()
    assert refused(*command, "--db", path).endswith(f"run: goal-state db upgrade --db {path}")
    assert [(file.name, file.stat().st_size) for file in tmp_path.iterdir()] == [("goals.db", 0)]


@pytest.mark.slow
@every([*READING, ["clear", "t"], *MAKING, ["db", "check"], ["db", "downgrade", "base", "--yes"]])
def test_a_database_of_a_newer_version(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "goals.db"
    GoalStore.open(path).close()
    execute(path, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    before = path.read_bytes()
    assert refused(*command, "--db", path).startswith(
        "the database is at revision 9999, which this version of goal-state does not know"
        f" (it goes up to {HEAD_REVISION})"
    )
    assert path.read_bytes() == before


@every([*READING, ["clear", "t"], *MAKING])
def test_a_damaged_database_is_refused_and_left_as_it_was(
    tmp_path: Path, command: list[str]
) -> None:
    path = tmp_path / "goals.db"
    GoalStore.open(path).close()
    image = bytearray(path.read_bytes())
    image[100:] = b"\xa5" * (len(image) - 100)
    path.write_bytes(image)
    before = path.read_bytes()
    assert refused(*command, "--db", path, code=1).startswith("the database file is damaged")
    assert path.read_bytes() == before


@every(READING + MAKING)
def test_a_database_in_memory_is_none_for_a_command(command: list[str]) -> None:
    assert "is in memory and would be gone" in refused(*command, "--db", ":memory:")


@every(READING + MAKING)
def test_another_kind_of_database_is_refused(command: list[str]) -> None:
    sentence = refused(*command, "--db", "postgresql://host/goals")
    assert sentence == "goals are kept in SQLite; 'postgresql' is not supported yet"


def test_a_path_that_the_system_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    assert "File name too long" in refused("list", "--db", tmp_path / ("x" * 300) / "goals.db")


def test_an_empty_name_is_refused() -> None:
    assert refused("list", "--db", "").endswith("must name a file")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["list", "--db", "/"], 2),
        (["list", "--sideways"], 2),
        (["set", "t", "--budget", "0"], 2),
        (["show"], 2),
        (["dance"], 2),
        (["verify", "--db", "damaged.db"], 1),
    ],
)
def test_a_process_ends_with_a_sentence_and_the_code(
    tmp_path: Path, words: list[str], code: int
) -> None:
    damaged = tmp_path / "damaged.db"
    GoalStore.open(damaged).close()
    header = damaged.read_bytes()[:100]
    damaged.write_bytes(header + b"\xa5" * (damaged.stat().st_size - len(header)))
    stdout, stderr = finish(start(*words, cwd=tmp_path), code=code)
    assert stdout == ""
    assert stderr.splitlines()[-1].startswith("Error: ")


# -- what may not be written to ----------------------------------------------------------------------

WITHOUT_PRIVILEGES = """
import json, os, sys, tempfile
from goal_state.cli import main
from tests.permissions import obey_permissions

obey_permissions()
ends = []
for words in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = os.fork()
        if process == 0:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            sys.argv[1:] = words
            main()  # which exits
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        stdout.seek(0)
        stderr.seek(0)
        ends.append((code, stdout.read(), stderr.read()))
print(json.dumps(ends))
"""

COMMANDS = [*READING, ["clear", "t"], ["db", "upgrade"], ["set", "t", "--objective", "x"]]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with a database that may only be read."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    with GoalStore.open(folder / "goals.db") as store:
        store.create("t", "x")
    (folder / "goals.db").chmod(0o444)
    yield folder
    folder.chmod(0o700)


def ends_without_privileges(path: Path) -> list[tuple[int, str, str]]:
    """Runs each command on the path, in a process of its own, where permissions count; root's privilege
    is to ignore them. The code that each ended with, and what it wrote to stdout and stderr."""
    commands = [[*command, "--db", str(path)] for command in COMMANDS]
    return [tuple(end) for end in json.loads(python(WITHOUT_PRIVILEGES, json.dumps(commands)))]


@pytest.mark.slow
def test_a_read_only_file_is_refused(read_only: Path) -> None:
    read_only.chmod(0o777)
    path, before = read_only / "goals.db", fingerprints(read_only)
    sentence = f"Error: {str(path)!r} is read-only for this user; allow writing to it\n"
    assert ends_without_privileges(path) == [(1, "", sentence)] * len(COMMANDS)
    assert fingerprints(read_only) == before


@pytest.mark.slow
def test_a_read_only_folder_is_refused(read_only: Path) -> None:
    read_only.chmod(0o555)
    before = fingerprints(read_only)
    ends = ends_without_privileges(read_only / "goals.db")
    assert [end[:2] for end in ends] == [(1, "")] * len(COMMANDS)
    for _, _, stderr in ends:
        assert stderr.startswith(f"Error: the folder {str(read_only)!r} is read-only")
    assert fingerprints(read_only) == before
