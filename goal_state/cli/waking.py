"""`goal-state resume-due`: goals whose provider's limit has ended."""

from __future__ import annotations

import click

from goal_state.cli.figures import moment, number
from goal_state.cli.opening import locate_existing, open_store
from goal_state.cli.options import database_option, json_option
from goal_state.cli.output import goal_table, out, write_json

__all__ = ["resume_due"]


@click.command("resume-due")
@database_option
@json_option
def resume_due(database: str, as_json: bool) -> None:
    """Resume the goals whose limit has ended.

    Goals that are usage_limited until a time that has come are active again, or budget_limited where a budget
    is reached. Of many who ask at once, each goal is given to one. They are printed; with --json, one per
    line.
    """
    with open_store(locate_existing(database).path) as store:
        resumed = store.resume_due()
        following = store.next_resume_at()
    if as_json:
        for goal in resumed:
            write_json(goal.to_dict())
        return
    console = out()
    if resumed:
        console.print(goal_table(console, resumed))
    then = "" if following is None else f"; the next limit ends at {moment(following)} UTC"
    console.print(f"{number(len(resumed), 'goal')} resumed{then}", style="dim")
