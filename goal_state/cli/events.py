"""`goal-state events`: the log."""

from __future__ import annotations

import time
from typing import Final

import click

from goal_state.cli.opening import open_existing
from goal_state.cli.options import database_option, json_option
from goal_state.cli.output import event_json, out, print_event, write_json

__all__ = ["events"]

_POLL_SECONDS: Final = 0.2


@click.command()
@click.option("--follow", is_flag=True, help="Then print new events as they happen, until Ctrl-C.")
@click.option("--after", type=int, default=0, metavar="N", help="Begin after position N.")
@click.option("--thread", metavar="ID", help="Only events of this thread.")
@click.option("--goal", metavar="ID", help="Only events of this goal.")
@click.option("--limit", type=int, metavar="N", help="No more than N events.")
@database_option
@json_option
def events(
    follow: bool,
    after: int,
    thread: str | None,
    goal: str | None,
    limit: int | None,
    database: str,
    as_json: bool,
) -> None:
    """Print the log of events.

    They are printed in the order in which they happened; with --json, one per line.
    """
    console = out()
    left = limit
    with open_existing(database) as store:
        try:
            while True:
                for event in store.events(after=after, thread_id=thread, goal_id=goal, limit=left):
                    if as_json:
                        write_json(event_json(event))
                    else:
                        print_event(console, event, of_many=goal is None and thread is None)
                    after = event.position
                    left = None if left is None else left - 1
                if not follow or left == 0:
                    return
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            if not follow:
                raise
