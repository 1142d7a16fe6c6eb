"""`goal-state list|show|set|resume|clear|verify`: reads and changes goals."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

import click

from goal_state.cli.budgets import budget_options, chosen_budgets
from goal_state.cli.events import last_events
from goal_state.cli.figures import number, printable
from goal_state.cli.opening import locate, locate_existing, open_existing, open_store
from goal_state.cli.options import (
    database_option,
    expected_goal_option,
    json_option,
    turn_option,
)
from goal_state.cli.output import (
    goal_table,
    out,
    print_event,
    print_goal,
    write_json,
)
from goal_state.cli.threads import thread_argument
from goal_state.domain.goals import KEEP, Goal, GoalStatus
from goal_state.domain.requests import ChangeGoal, CreateGoal, Request, ResumeGoal
from goal_state.errors import GoalNotFoundError
from goal_state.store import GoalStore

__all__ = ["clear", "list_goals", "resume", "set_goal", "show", "verify"]

_ROWS_AT_ONCE: Final = 500
_LAST_EVENTS: Final = 5
_STATUS: Final = click.Choice([status.value for status in GoalStatus])


@click.command("list")
@click.option("--status", type=_STATUS, help="Only goals of this status.")
@database_option
@json_option
def list_goals(status: str | None, database: str, as_json: bool) -> None:
    """List the goals.

    They are printed in the order in which they were made; with --json, one per line.
    """
    with open_existing(database) as store:
        goals = store.goals(status)
        if as_json:
            for goal in goals:
                write_json(goal.to_dict())
            return
        console, listed = out(), 0
        while rows := list(islice(goals, _ROWS_AT_ONCE)):
            console.print(goal_table(console, rows))
            listed += len(rows)
    console.print(number(listed, "goal"), style="dim")


@click.command()
@thread_argument()
@database_option
@json_option
def show(thread: str, database: str, as_json: bool) -> None:
    """Show a goal.

    The goal of THREAD, how much of its budgets is used and held, how much of the tightest is left, what the
    thread has used in all (the baseline of the next charge), and the goal's last events.
    """
    with open_existing(database) as store:
        goal = store.get(thread)
        if goal is None:
            raise GoalNotFoundError(f"thread {thread!r} has no goal")
        usage, headroom, holds = store.usage(thread), store.headroom(thread), store.holds(thread)
        parent_thread_id = _thread_of(store, goal.parent_goal_id)
        last = last_events(store, _LAST_EVENTS, goal_id=goal.goal_id)
    if as_json:
        write_json(
            {
                "goal": goal.to_dict(),
                "headroom": None if headroom is None else headroom.to_dict(),
                "holds": [hold.to_dict() for hold in holds],
                "usage": None if usage is None else usage.to_dict(),
                "last_events": [event.to_dict() for event in last],
            }
        )
        return
    console = out()
    print_goal(console, goal, usage, parent_thread_id=parent_thread_id, headroom=headroom)
    console.print()
    for event in last:
        print_event(console, event, of_many=False)


@click.command("set")
@thread_argument()
@click.option("--objective", metavar="TEXT", help="The objective; makes a goal if there is none.")
@click.option("--status", type=_STATUS, help="The status asked for.")
@budget_options
@click.option(
    "--parent", metavar="THREAD", help="Make a new goal, under the goal of this thread, for good."
)
@expected_goal_option
@turn_option
@database_option
@json_option
def set_goal(
    thread: str,
    objective: str | None,
    status: str | None,
    parent: str | None,
    expected_goal_id: str | None,
    turn: str | None,
    database: str,
    as_json: bool,
    **bounds: Any,
) -> None:
    """Change a goal, or make one.

    The goal of THREAD is changed in place and keeps its usage; what is not named stays as it is. If
    there is no goal, --objective makes one (and the database, if there is none).
    """
    budgets = chosen_budgets(bounds)
    if parent is not None and (objective is None or expected_goal_id is not None):
        raise click.UsageError(
            "--parent is for a new goal: give it an --objective, and no --expected-goal-id"
        )
    if not budgets and objective is status is None:
        raise click.UsageError("name what to set: --objective, --status or a budget")
    request: Request[Goal]
    # Made before the database, so that a value out of bounds leaves no new file behind.
    if parent is not None:
        begun = GoalStatus.ACTIVE if status is None else status
        request = CreateGoal(thread, objective, begun, parent, turn, where="free", **budgets)
    else:
        request = ChangeGoal(
            thread_id=thread,
            objective=KEEP if objective is None else objective,
            status=KEEP if status is None else status,
            resume_at=None,
            blocked_reason=None,
            expected_goal_id=expected_goal_id,
            turn_id=turn,
            claim=None,
            **budgets,
        )
    makes = objective is not None and expected_goal_id is None and parent is None
    location = locate(database) if makes else locate_existing(database)
    with open_store(location.path) as store:
        _show(store.apply(request), as_json=as_json)


@click.command()
@thread_argument()
@budget_options
@expected_goal_option
@turn_option
@database_option
@json_option
def resume(
    thread: str,
    expected_goal_id: str | None,
    turn: str | None,
    database: str,
    as_json: bool,
    **bounds: Any,
) -> None:
    """Make a goal active again.

    The goal of THREAD goes on, with the budgets that are named, all in one step. A budget that would still be
    reached is an error.
    """
    request = ResumeGoal(thread, expected_goal_id, turn, None, **chosen_budgets(bounds))
    with open_store(locate_existing(database).path) as store:
        _show(store.apply(request), as_json=as_json)


@click.command()
@thread_argument()
@expected_goal_option
@turn_option
@database_option
@json_option
def clear(
    thread: str, expected_goal_id: str | None, turn: str | None, database: str, as_json: bool
) -> None:
    """Remove a goal and print the deleted row.

    If THREAD has no goal, or not the expected one, this is printed (with --json: null) and is no error.
    """
    with open_store(locate_existing(database).path) as store:
        goal = store.clear(thread, expected_goal_id=expected_goal_id, turn_id=turn)
    if goal is not None:
        _show(goal, as_json=as_json)
    elif as_json:
        write_json(None)
    else:
        other = "" if expected_goal_id is None else f", or not goal {printable(expected_goal_id)}"
        click.echo(f"Nothing to clear: thread {printable(thread)} has no goal{other}.")


@click.command()
@thread_argument(required=False)
@database_option
@json_option
@click.pass_context
def verify(ctx: click.Context, thread: str | None, database: str, as_json: bool) -> None:
    """Recompute the goals from the log.

    Each goal (or that of THREAD alone) must equal the sum of its events. Each difference is printed; if there
    is one, the exit code is 1.
    """
    with (
        open_existing(database) as store,
        out(err=True).status("Recomputing from the log"),
    ):
        if thread is not None and not _is_known(store, thread):
            raise GoalNotFoundError(f"thread {thread!r} has no goal and no events")
        differences = store.verify(thread)
        recomputed = store.count() if thread is None else int(store.get(thread) is not None)
    if as_json:
        write_json(
            {
                "goals": recomputed,
                "differences": [difference.to_dict() for difference in differences],
            }
        )
    else:
        for difference in differences:
            click.echo(printable(str(difference)))
        goals = number(recomputed, "goal")
        if differences:
            click.echo(f"{goals} recomputed, {number(len(differences), 'difference')}.")
        else:
            click.echo(f"{goals} recomputed: all as the log says.")
    if differences:
        ctx.exit(1)


def _is_known(store: GoalStore, thread_id: str) -> bool:
    return (
        store.get(thread_id) is not None
        or next(store.events(thread_id=thread_id, limit=1), None) is not None
    )


def _show(goal: Goal, *, as_json: bool) -> None:
    if as_json:
        write_json(goal.to_dict())
    else:
        print_goal(out(), goal)


def _thread_of(store: GoalStore, goal_id: str | None) -> str | None:
    """The thread of a goal, as far as the log still knows that goal."""
    if goal_id is None:
        return None
    return next((event.thread_id for event in store.events(goal_id=goal_id, limit=1)), None)
