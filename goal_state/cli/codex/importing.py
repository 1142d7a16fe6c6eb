"""`goal-state codex import`: the goals and the usage of a Codex data directory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from goal_state.cli.figures import number, printable
from goal_state.cli.opening import locate, open_existing, open_store
from goal_state.cli.options import database_option, json_option
from goal_state.cli.output import out, write_json
from goal_state.codex.importer import CodexHome, ImportReport, import_codex
from goal_state.store import GoalStore

__all__ = ["import_home"]


@click.command("import")
@click.argument("home", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Print what would be imported, and write nothing.")
@database_option
@json_option
def import_home(home: Path, dry_run: bool, database: str, as_json: bool) -> None:
    """Import the goals and the usage of a Codex data directory.

    HOME holds goals_1.sqlite, sessions/ or both; nothing in it is changed. Goals keep their ids, usage
    and times. Goals and usage that the database has already are kept. What was skipped is listed.
    """
    console = out(err=True)
    # Read before the store is opened, so that a wrong directory leaves no new database behind.
    source = CodexHome.read(home)
    with (
        _store(database, dry_run=dry_run) as store,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=as_json or not console.is_terminal,
        ) as bar,
    ):
        task = bar.add_task("Importing", total=None)
        report = import_codex(
            source,
            store,
            dry_run=dry_run,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        write_json(asdict(report) | {"dry_run": dry_run})
    else:
        _print(report, dry_run=dry_run)


def _store(database: str, *, dry_run: bool) -> GoalStore:
    """The store to import into; for a dry run without a database, one in memory."""
    if not dry_run:
        return open_store(database)
    location = locate(database)
    if location.revision is None:
        return GoalStore.open(":memory:")
    return open_existing(database)


def _print(report: ImportReport, *, dry_run: bool) -> None:
    for thread_id in report.budget_limited:
        click.echo(
            f"goal {printable(thread_id)}: was active with its budget spent, is budget_limited now"
        )
    for skipped in report.skipped:
        click.echo(
            f"{skipped.kind} {printable(skipped.name)}: skipped: {printable(skipped.reason)}"
        )
    click.echo(
        f"{'Would import' if dry_run else 'Imported'} {number(report.goals, 'goal')} and the usage of"
        f" {number(report.baselines, 'thread')}; skipped {len(report.skipped):,}."
    )
