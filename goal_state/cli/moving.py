"""`goal-state backup|restore|export|import`: copies of a whole database."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TextIO

import click
from rich.progress import BarColumn, Progress, TextColumn

from goal_state import migrate
from goal_state.cli.confirming import confirm
from goal_state.cli.opening import locate, open_existing, open_store
from goal_state.cli.options import database_option, json_option
from goal_state.cli.output import out, write_json
from goal_state.errors import DatabaseLocationError
from goal_state.storage import transfer
from goal_state.storage.sqlite import restoring

__all__ = ["backup", "export", "import_export", "restore"]


@click.command()
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@database_option
@json_option
def backup(target: Path, database: str, as_json: bool) -> None:
    """Copy the database to a new FILE, while others go on writing."""
    with open_existing(database) as store, _copying(quiet=as_json) as progress:
        store.backup(target, progress=progress)
    size = target.stat().st_size
    if as_json:
        write_json({"backup": str(target), "bytes": size})
    else:
        click.echo(f"{target}: {size:,} bytes")


@click.command()
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask.")
@database_option
@json_option
def restore(source: Path, yes: bool, database: str, as_json: bool) -> None:
    """Restore the backup FILE, even while others have the database open.

    The database becomes what it was when the backup was made. Never move or copy a backup over a database.
    """
    migrate.refuse_newer(restoring.check_backup(source))  # before a new database is made for it
    location = locate(database)
    if location.path.exists() and not yes:
        confirm(f"What was written to {location.path} since the backup will be lost. Go on?")
    counted_tokens = restoring.counted_tokens_of(source)
    with (
        open_store(location.path, counted_tokens=counted_tokens) as store,
        _copying(quiet=as_json) as progress,
    ):
        store.restore(source, progress=progress)
        goals = store.count()
    if as_json:
        write_json({"restored": str(source), "goals": goals})
    else:
        click.echo(f"{location.path}: restored from {source}, {goals:,} goals")


@contextmanager
def _copying(*, quiet: bool) -> Generator[Callable[[int, int], None]]:
    """A progress bar of the copied pages, on a terminal."""
    console = out(err=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} pages"),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    ) as bar:
        task = bar.add_task("Copying", total=1)
        yield lambda left, total: bar.update(task, completed=total - left, total=total)


@click.command()
@database_option
def export(database: str) -> None:
    """Write everything in the database as JSON lines to stdout; `import` reads them."""
    with open_existing(database) as store:
        for line in store.export_lines():
            click.echo(line)


@click.command("import")
@click.argument(
    "source",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
)
@database_option
@json_option
def import_export(source: Path, database: str, as_json: bool) -> None:
    """Import FILE (- for stdin), written by `export`, into a new or empty database."""
    location = locate(database)
    with _opened(source) as file:
        lines = _lines(file)
        header = next(lines, "")
        counted_tokens = transfer.counted_tokens_of(header)
        lines = chain([header] if header else [], lines)
        if location.path.exists():
            with open_store(location.path, counted_tokens=counted_tokens) as store:
                rows = store.import_lines(lines)
        else:
            rows = _import_into_new(location.path.resolve(), lines, counted_tokens)
    if as_json:
        write_json({"imported_rows": rows})
    else:
        click.echo(f"{rows:,} rows imported")


def _opened(source: Path) -> TextIO:
    # Bytes that are not UTF-8 become surrogates, which the checks refuse with the number of the line.
    stdin = 0
    if str(source) == "-":
        return open(stdin, encoding="utf-8", errors="surrogateescape", closefd=False)
    return source.open(encoding="utf-8", errors="surrogateescape")


def _lines(file: TextIO) -> Iterator[str]:
    """The lines of a file; of a line that is too long, only enough to see that it is."""
    while line := file.readline(transfer.MAX_LINE_CHARACTERS + 2):
        yield line


def _import_into_new(path: Path, lines: Iterator[str], counted_tokens: str) -> int:
    """Makes the database in a temporary folder beside its path: no process sees a half-imported one, and a
    failed import, its log included, is deleted with the folder.
    """
    _check_nothing_left(path)
    with tempfile.TemporaryDirectory(prefix=".goal-state-import-", dir=path.parent) as folder:
        made = Path(folder, path.name)
        with open_store(made, counted_tokens=counted_tokens) as store:
            rows = store.import_lines(lines)
        _check_nothing_left(path)
        try:
            os.link(made, path)
        except FileExistsError:
            raise DatabaseLocationError(
                f"{str(path)!r} was made meanwhile, and nothing was imported; name a new file"
            ) from None
    return rows


def _check_nothing_left(path: Path) -> None:
    """Refuses a path with a leftover log: SQLite would replay the log onto the new database."""
    for suffix in ("-wal", "-journal"):
        log = path.with_name(f"{path.name}{suffix}")
        if log.exists():
            raise DatabaseLocationError(
                f"{str(log)!r} is the log of a database that is missing; put that database back, or"
                " name a new file"
            )
