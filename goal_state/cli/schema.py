"""`goal-state db …`: works on the schema of a database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from goal_state import migrate
from goal_state.cli.confirming import confirm
from goal_state.cli.figures import printable
from goal_state.cli.opening import Location, locate, locate_existing, open_existing, open_store
from goal_state.cli.options import database_option, json_option
from goal_state.cli.output import out, write_json
from goal_state.storage.schema import HEAD_REVISION
from goal_state.storage.sqlite.connections import vacuum
from goal_state.storage.sqlite.location import create_file

__all__ = ["db"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _revision_argument(*names: str, default: str | None = None) -> Callable[[Decorated], Decorated]:
    """REVISION: a revision by its number, or by one of these names."""

    def check(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
        known = (*names, *(step.revision for step in migrate.history()))
        if value not in known:
            raise click.BadParameter(f"must be one of {', '.join(known)}, is {ascii(value)[:80]}")
        return value

    return click.argument("revision", default=default, required=default is None, callback=check)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def db() -> None:
    """Make, upgrade and inspect the schema of a database."""


@db.command()
@_revision_argument("head", default="head")
@database_option
@json_option
def upgrade(revision: str, database: str, as_json: bool) -> None:
    """Upgrade the schema to REVISION (head), making the database if there is none."""
    location = locate(database)
    if location.revision is None:
        create_file(location.path)
    migrate.upgrade(location.engine, revision)
    _report_change(location, as_json)


@db.command()
@_revision_argument("base")
@click.option("--yes", is_flag=True, help="Do not ask.")
@database_option
@json_option
def downgrade(revision: str, yes: bool, database: str, as_json: bool) -> None:
    """Downgrade the schema to REVISION (base: no schema). Data that it cannot hold is lost."""
    location = locate_existing(database)
    if not yes:
        confirm(f"{_loss(location, revision)} Go on?")
    migrate.downgrade(location.engine, revision)
    _report_change(location, as_json)


@db.command()
@database_option
@json_option
def current(database: str, as_json: bool) -> None:
    """Print the revision of the schema."""
    location = locate_existing(database)
    if as_json:
        write_json(_state(location, location.revision))
    elif location.revision is None:
        click.echo("no schema")
    else:
        head = " (head)" if location.revision == HEAD_REVISION else ""
        click.echo(f"{location.revision}{head}")


@db.command()
@database_option
@json_option
def history(database: str, as_json: bool) -> None:
    """List the revisions that this version knows, the oldest first, and mark the database's."""
    location = locate(database)
    for step in migrate.history():
        if as_json:
            write_json(step._asdict() | {"current": step.revision == location.revision})
        else:
            marks = [
                mark
                for mark, revision in (("head", HEAD_REVISION), ("current", location.revision))
                if revision == step.revision
            ]
            note = f" ({', '.join(marks)})" if marks else ""
            click.echo(f"{step.revision}  {step.message}{note}")


@db.command()
@database_option
@json_option
def check(database: str, as_json: bool) -> None:
    """Compare the tables with what this version of goal-state needs."""
    location = locate_existing(database)
    migrate.check(location.engine)
    if as_json:
        write_json(_state(location, location.revision))
    else:
        click.echo(f"The tables are those of revision {location.revision}, the newest.")


@db.command()
@_revision_argument("head", "base")
@database_option
@json_option
def stamp(revision: str, database: str, as_json: bool) -> None:
    """Record REVISION as the schema's without changing a table: for a schema repaired by hand."""
    location = locate_existing(database)
    migrate.stamp(location.engine, revision)
    _report_change(location, as_json)


@db.command("vacuum")
@database_option
@json_option
def vacuum_database(database: str, as_json: bool) -> None:
    """Return the space of deleted rows to the file system. Nobody can write meanwhile."""
    location = locate_existing(database)
    before = location.path.stat().st_size
    with out(err=True).status("Rewriting the database"):
        vacuum(location.engine)
    after = location.path.stat().st_size
    if as_json:
        write_json({"database": str(location.path), "bytes": after, "previous_bytes": before})
    else:
        click.echo(f"{_shown(location)}: {before:,} → {after:,} bytes")


@db.command()
@click.option(
    "--before",
    required=True,
    metavar="TIME",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Delete events from before this time, in UTC.",
)
@database_option
@json_option
def prune(before: datetime, database: str, as_json: bool) -> None:
    """Delete old events; every goal can still be verified. Events that a consumer has not taken yet are
    kept.
    """
    with open_existing(database) as store:
        pruned = store.prune_events(before=before.replace(tzinfo=UTC))
    if as_json:
        write_json({"pruned_events": pruned})
    else:
        click.echo(f"{pruned:,} events pruned")


def _shown(location: Location) -> str:
    return printable(str(location.path))


def _state(location: Location, revision: str | None) -> dict[str, Any]:
    return {"database": str(location.path), "revision": revision, "head": HEAD_REVISION}


def _report_change(location: Location, as_json: bool) -> None:
    revision = migrate.current(location.engine)
    if as_json:
        write_json(_state(location, revision) | {"previous_revision": location.revision})
        return
    before, after = location.revision or "no schema", revision or "no schema"
    click.echo(
        f"{_shown(location)}: {after}"
        if before == after
        else f"{_shown(location)}: {before} → {after}"
    )


def _loss(location: Location, revision: str) -> str:
    """What a downgrade deletes, as a sentence."""
    if revision != "base":
        return f"What revision {revision} cannot hold is lost from {_shown(location)}."
    if location.revision != HEAD_REVISION:
        return f"Every goal, event, baseline and consumer's position in {_shown(location)} is lost."
    with open_store(location.path, migrate=False) as store:
        goals, events = store.count(), store.last_position()
    return (
        f"Every goal ({goals:,} of them), event ({events:,}), baseline and consumer's position in"
        f" {_shown(location)} is lost."
    )
