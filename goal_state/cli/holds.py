"""`goal-state holds|expire-holds`: parts of budgets that are set aside."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from goal_state.cli import figures
from goal_state.cli.figures import moment, number, printable
from goal_state.cli.opening import locate_existing, open_existing, open_store
from goal_state.cli.options import database_option, json_option
from goal_state.cli.output import out, write_json
from goal_state.cli.threads import thread_argument
from goal_state.domain.holds import HoldRecord

__all__ = ["expire_holds", "holds"]


@click.command()
@thread_argument(required=False)
@database_option
@json_option
def holds(thread: str | None, database: str, as_json: bool) -> None:
    """List the holds.

    Those (of THREAD) that have not ended, in the order in which they were made; with --json, one per line.
    One that has expired is listed until a change of its goal, or expire-holds, ends it.
    """
    with open_existing(database) as store:
        found = store.holds(thread)
    if as_json:
        for hold in found:
            write_json(hold.to_dict())
        return
    console = out()
    if found:
        console.print(_table(found))
    console.print(number(len(found), "hold"), style="dim")


@click.command("expire-holds")
@database_option
@json_option
def expire_holds(database: str, as_json: bool) -> None:
    """End the holds that have expired.

    What of them may have been sent is charged: what was observed of it, else all of it, as an estimate. The
    next change of a goal does the same for its holds.
    """
    with open_store(locate_existing(database).path) as store:
        expired = store.expire_holds()
    if as_json:
        write_json({"expired": expired})
    else:
        click.echo(f"Ended {number(expired, 'hold')} that had expired.")


def _table(found: list[HoldRecord]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("hold", no_wrap=True)
    table.add_column("thread", overflow="fold")
    for name in ("tokens", "cost", "calls"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("sent", no_wrap=True)
    table.add_column("expires", no_wrap=True)
    table.add_column("model", overflow="fold")
    for hold in found:
        table.add_row(
            hold.hold_id,
            Text(printable(hold.thread_id)),
            f"{hold.tokens:,}",
            "" if hold.cost_nanos is None else figures.cost(hold.cost_nanos),
            f"{hold.calls:,}",
            "perhaps" if hold.is_dispatched else "no",
            f"{moment(hold.expires_at)} UTC",
            Text(printable(hold.model or "")),
        )
    return table
