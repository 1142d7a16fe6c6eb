"""A program that goes every way into the library which leads to a database file, and says which files
were opened meanwhile by anything but SQLite: `{name of the way: [who opened what]}`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, redirect_stdout, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine

from goal_state import GoalStateError, GoalStore
from goal_state import migrate as migrations
from goal_state.cli.main import program
from goal_state.codex.importer import CodexHome, import_codex
from goal_state.storage.schema import HEAD_REVISION
from goal_state.storage.sqlite.connections import create_engine
from tests import next_schema
from tests.opened_files import Watch
from tests.upgrade.make_fixtures import fixture

DATA: Final = Path(__file__).parent / "data"
SOON: Final = datetime(2100, 1, 1, tzinfo=UTC)

Way = Callable[[Path], Any]
WAYS: Final[dict[str, Way]] = {}


def way(function: Way) -> Way:
    """Each is called with the path of a database of its own, in a folder of its own."""
    WAYS[function.__name__.replace("_", " ")] = function
    return function


def made(path: Path) -> Path:
    """A database with a goal and two events in it, closed."""
    with GoalStore.open(path) as store:
        store.create("t", "Ship", token_budget=100)
        store.charge("t", tokens=1)
    return path


# -- opening -----------------------------------------------------------------------------------------


@way
def a_new_file(path: Path) -> None:
    made(path)


@way
def a_new_file_by_its_url(path: Path) -> None:
    GoalStore.open(f"sqlite:///{path}").close()


@way
def a_new_file_by_a_relative_name(path: Path) -> None:
    os.chdir(path.parent)
    made(Path(path.name))
    GoalStore.open(path.name).close()
    os.chdir("/")


@way
def a_new_file_behind_a_dangling_symlink(path: Path) -> None:
    link = path.parent / "link.db"
    link.symlink_to(path.name)
    made(link)


@way
def a_file_that_is_there(path: Path) -> None:
    made(path)
    GoalStore.open(path).close()
    GoalStore.open(path, migrate=False).close()


@way
def a_file_by_a_symlink_and_a_hard_link(path: Path) -> None:
    made(path)
    folder = path.parent / "elsewhere"
    folder.mkdir()
    (folder / "link").symlink_to(path)
    GoalStore.open(folder / "link").close()
    (folder / "hard").hardlink_to(path)
    with suppress(GoalStateError):  # may be refused: two names, two logs
        GoalStore.open(folder / "hard").close()


@way
def a_file_that_is_open_already(path: Path) -> None:
    with GoalStore.open(path) as first, GoalStore.open(path) as second:
        first.create("t", "Ship")
        second.charge("t", tokens=1)
        GoalStore.open(path).close()


@way
def an_empty_file(path: Path) -> None:
    with WATCH.paused():
        path.touch()
    made(path)


@way
def an_empty_file_without_migrating(path: Path) -> None:
    with WATCH.paused():
        path.touch()
    with suppress(GoalStateError):
        GoalStore.open(path, migrate=False)
    made(path)  # so that there is something to see


@way
def a_missing_file_without_migrating(path: Path) -> None:
    with suppress(GoalStateError):
        GoalStore.open(path, migrate=False)
    made(path)  # so that there is something to see


@way
def an_older_schema(path: Path) -> None:
    with WATCH.paused():
        shutil.copy(fixture(HEAD_REVISION), path)
        next_schema.write(path.parent / "migrations")
        undo = next_schema.use(path.parent / "migrations")
    GoalStore.open(path).close()
    undo()


@way
def a_newer_schema(path: Path) -> None:
    made(path)
    with closing(sqlite3.connect(path)) as raw, raw:
        (table,) = raw.execute(
            "SELECT name FROM sqlite_master WHERE name LIKE '%alembic_version'"
        ).fetchone()
        raw.execute(f"UPDATE {table} SET version_num = '9999'")
    refused(path)


@way
def another_applications_database(path: Path) -> None:
    foreign(path)
    refused(path)


@way
def another_applications_database_with_a_log(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("CREATE TABLE theirs (a)")
        refused(path)


@way
def no_database(path: Path) -> None:
    with WATCH.paused():
        path.write_bytes(b"some text, and long enough to be taken for a header of something" * 20)
    refused(path)
    path.unlink()
    made(path)  # so that there is something to see


@way
def a_truncated_database(path: Path) -> None:
    made(path)
    os.truncate(path, 1_000)
    refused(path)


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("CREATE TABLE theirs (a)")


def refused(path: Path) -> None:
    for migrate in (True, False):
        try:
            GoalStore.open(path, migrate=migrate).close()
        except GoalStateError:
            continue
        raise AssertionError("it was opened")


@way
def a_hosts_engine(path: Path) -> None:
    engine = create_engine(path)
    try:
        with GoalStore.open(engine) as store:
            everything(store, path)
    finally:
        engine.dispose()


@way
def a_database_in_memory(path: Path) -> None:
    with GoalStore.open(":memory:") as store:
        everything(store, path)
    made(path)  # so that there is something to see


# -- an open store -----------------------------------------------------------------------------------


@way
def every_call_of_a_store(path: Path) -> None:
    with GoalStore.open(path) as store:
        everything(store, path)


def everything(store: GoalStore, path: Path) -> None:
    folder = path.parent
    store.create("t", "Ship", token_budget=100)
    store.charge("t", tokens=1)
    store.get("t")
    list(store.goals())
    list(store.events())
    store.verify()
    heard: list[object] = []
    store.subscribe(heard.append)
    consumer = store.consume("audit", lambda events: None)
    store.transact(lambda repository: repository.charge("t", tokens=1))
    assert heard
    assert consumer.drain(30)
    consumer.close()
    store.prune_events(before=SOON)
    store.backup(folder / "copy.db")
    lines = list(store.export_lines())
    with GoalStore.open(folder / "imported.db") as imported:
        imported.import_lines(lines)
    store.clear("t")


@way
def a_file_that_was_replaced(path: Path) -> None:
    made(path)
    with GoalStore.open(path) as store:
        store.charge("t", tokens=1)
        away = path.with_name("away.db")
        subprocess.run(["mv", path, away], check=True)  # not by this process, which has it open
        with suppress(GoalStateError):
            store.charge("t", tokens=1)
        with suppress(GoalStateError):
            store.get("t")
        subprocess.run(["mv", away, path], check=True)
        store.charge("t", tokens=1)


@way
def a_restore(path: Path) -> None:
    made(path)
    with GoalStore.open(path) as store, GoalStore.open(path) as other:
        copy = path.parent / "copy.db"
        store.backup(copy)
        other.charge("t", tokens=5)
        store.restore(copy)
        other.charge("t", tokens=1)
        for goals in (store, other):
            goal = goals.get("t")
            assert goal is not None
            assert goal.tokens_used == 2, goal


@way
def a_restore_of_what_is_refused(path: Path) -> None:
    made(path)
    folder = path.parent
    (folder / "text").write_text("no database, but long enough to be looked at" * 100)
    foreign(folder / "foreign.db")
    with GoalStore.open(path) as store:
        for source in ("text", "foreign.db", "missing", "", path.name):
            try:
                store.restore(folder / source)
            except GoalStateError:
                continue
            raise AssertionError(f"{source!r} was restored")


@way
def a_fork(path: Path) -> None:
    if not hasattr(os, "fork"):
        return
    with GoalStore.open(path) as store:
        store.create("t", "Ship")
        store.get("t")
        process = os.fork()
        if process == 0:
            try:
                store.charge("t", tokens=1)
                os._exit(len(WATCH.reached) > 0)
            finally:
                os._exit(2)
        assert os.waitpid(process, 0)[1] == 0, "the child opened it, or failed"
        store.charge("t", tokens=1)


@way
def an_import_from_codex(path: Path) -> None:
    home = Path(shutil.copytree(DATA / "home", path.parent / "home"))
    with GoalStore.open(path) as store:
        import_codex(CodexHome.read(home), store)


@way
def migrating_by_itself(path: Path) -> None:
    engine: Engine = create_engine(path)
    try:
        migrations.upgrade(engine)
        migrations.current(engine)
        migrations.check(engine)
        with GoalStore.open(path) as store:
            store.create("t", "Ship")
            migrations.upgrade(engine)
    finally:
        engine.dispose()


# -- the command line --------------------------------------------------------------------------------

ROLLOUT: Final = next(iter(sorted((DATA / "rollouts").rglob("*.jsonl"))))

COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "db upgrade": (),
    "db downgrade": ("base", "--yes"),
    "db current": (),
    "db history": (),
    "db check": (),
    "db stamp": ("head",),
    "db vacuum": (),
    "db prune": ("--before", "2100-01-01"),
    "list": (),
    "show": ("t",),
    "set": ("t", "--status", "paused"),
    "clear": ("t",),
    "events": (),
    "verify": (),
    "codex meter": (str(ROLLOUT), "--budget", "1000"),
    "codex resume": (str(ROLLOUT),),
    "resume": ("t",),
    "codex import": ("{folder}/home",),
    "backup": ("{folder}/copy.db",),
    "export": (),
    "import": ("{folder}/export.jsonl",),
    "restore": ("{folder}/backup.db", "--yes"),
    "charge": ("t", "--tokens", "5"),
    "tree": ("t",),
    "breakdown": ("t", "--by", "model"),
    "holds": (),
    "expire-holds": (),
    "resume-due": (),
}
"""Every command, with what it needs beside `--db`."""


def commands() -> set[str]:
    """Every command that there is."""
    found: set[str] = set()
    for name, command in program.commands.items():
        inner = getattr(command, "commands", None)
        found |= {name} if inner is None else {f"{name} {one}" for one in inner}
    return found


def command(name: str, path: Path) -> None:
    folder = path.parent
    made(path)
    shutil.copytree(DATA / "home", folder / "home")
    with GoalStore.open(path) as store:
        store.backup(folder / "backup.db")
        (folder / "export.jsonl").write_text("".join(f"{line}\n" for line in store.export_lines()))
    database = path
    if name == "import":
        database = folder / "into.db"
    with (
        GoalStore.open(path) as store,  # open beside it, as in the process of a host
        redirect_stdout(io.StringIO()),
        WATCH_ALSO(folder, path, database),
    ):
        arguments = [argument.format(folder=folder) for argument in COMMANDS[name]]
        program.main([*name.split(), *arguments, "--db", str(database)], standalone_mode=False)
        if name != "db downgrade":
            store.count()
            store.create("after", "Ship")


def WATCH_ALSO(folder: Path, *databases: Path) -> Any:
    connected = WATCH.connected
    watching = WATCH.on(*databases)
    WATCH.connected = connected
    return watching


for _name in sorted(COMMANDS):
    WAYS[f"goal-state {_name}"] = lambda path, name=_name: command(name, path)


# -- the program -------------------------------------------------------------------------------------

WATCH: Final = Watch()


def main(folder: Path) -> None:
    """Goes every way and prints what was found on it."""
    found: dict[str, list[str]] = {}
    for number, (name, go) in enumerate(WAYS.items()):
        place = folder / str(number)
        place.mkdir()
        path = place / "goals.db"
        with WATCH.on(path):
            try:
                go(path)
            except Exception as error:
                WATCH.reached.append(f"failed: {type(error).__name__}: {error}")
            found[name] = WATCH.reached
            if WATCH.connected == 0:
                WATCH.reached.append("nothing was opened at all: this way leads nowhere")
    found["commands that are missing here"] = sorted(commands() ^ COMMANDS.keys())
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
