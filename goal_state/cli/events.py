"""`goal-state events`: the log."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

import click

from goal_state.cli.opening import open_existing
from goal_state.cli.options import database_option, json_option
from goal_state.cli.output import out, print_event, write_json
from goal_state.domain.events import GoalEvent
from goal_state.store import GoalStore

__all__ = ["events", "last_events"]

_POLL_SECONDS: Final = 0.2
_FIRST_LOOK_BACK: Final = 64


@click.command()
@click.option("--follow", is_flag=True, help="Then print new events as they happen, until Ctrl-C.")
@click.option("--after", type=int, default=0, metavar="N", help="Begin after position N.")
@click.option(
    "--tail", type=click.IntRange(min=0), metavar="N", help="Begin with the last N events."
)
@click.option("--thread", metavar="ID", help="Only events of this thread.")
@click.option("--goal", metavar="ID", help="Only events of this goal.")
@click.option("--limit", type=int, metavar="N", help="No more than N events.")
@database_option
@json_option
def events(
    follow: bool,
    after: int,
    tail: int | None,
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
            if tail is not None:
                after = _position_before(store, tail, after, thread, goal)
            while True:
                for event in store.events(after=after, thread_id=thread, goal_id=goal, limit=left):
                    if as_json:
                        write_json(event.to_dict())
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


def last_events(
    store: GoalStore,
    count: int,
    *,
    after: int = 0,
    thread_id: str | None = None,
    goal_id: str | None = None,
) -> list[GoalEvent]:
    """The last few events behind a position, searched for in ever larger parts of the end of the log."""
    end, look_back = store.last_position(), _FIRST_LOOK_BACK
    while True:
        begin = max(end - look_back, after)
        found: deque[GoalEvent] = deque(
            store.events(after=begin, thread_id=thread_id, goal_id=goal_id), maxlen=count
        )
        if len(found) == count or begin == after:
            return list(found)
        look_back *= 16


def _position_before(
    store: GoalStore, tail: int, after: int, thread_id: str | None, goal_id: str | None
) -> int:
    """The position behind which so many events are left."""
    end = max(store.last_position(), after)
    last = last_events(store, tail, after=after, thread_id=thread_id, goal_id=goal_id)
    return last[0].position - 1 if last else end
