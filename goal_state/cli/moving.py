"""`goal-state backup|export|import`: everything that a database holds, elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import click
from rich.progress import BarColumn, Progress, TextColumn

from goal_state.cli.opening import open_existing
from goal_state.cli.options import database_option, json_option
from goal_state.cli.output import out, write_json
from goal_state.store import GoalStore

__all__ = ["backup", "export", "import_export"]


@click.command()
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@database_option
@json_option
def backup(target: Path, database: str, as_json: bool) -> None:
    """Copy the database to FILE, a new one, while others go on writing."""
    console = out(err=True)
    with (
        open_existing(database) as store,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f} pages"),
            console=console,
            transient=True,
            disable=as_json or not console.is_terminal,
        ) as bar,
    ):
        task = bar.add_task("Copying", total=1)
        store.backup(
            target,
            progress=lambda left, total: bar.update(task, completed=total - left, total=total),
        )
    size = target.stat().st_size
    if as_json:
        write_json({"backup": str(target), "bytes": size})
    else:
        click.echo(f"{target}: {size:,} bytes")


@click.command()
@database_option
def export(database: str) -> None:
    """Write everything in the database as JSON lines to stdout; `import` reads them."""
    with open_existing(database) as store:
        for line in store.export_lines():
            click.echo(line)


@click.command("import")
@click.argument(
    "source", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@database_option
@json_option
def import_export(source: Path, database: str, as_json: bool) -> None:
    """Put what `export` wrote to FILE into a database that is new, or empty."""
    with (
        source.open(encoding="utf-8", errors="surrogateescape") as lines,
        GoalStore.open(database) as store,
    ):
        rows = store.import_lines(lambda: _from_the_first(lines))
    if as_json:
        write_json({"imported_rows": rows})
    else:
        click.echo(f"{rows:,} rows imported")


def _from_the_first(lines: TextIO) -> TextIO:
    lines.seek(0)
    return lines
