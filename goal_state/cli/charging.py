"""`goal-state charge`: adds usage to a goal."""

from __future__ import annotations

import json

import click

from goal_state.cli.opening import locate_existing, open_store
from goal_state.cli.options import database_option, json_option, turn_option
from goal_state.cli.output import out, print_goal, write_json
from goal_state.cli.threads import thread_argument
from goal_state.domain.goals import Accounting
from goal_state.domain.requests import Charge
from goal_state.errors import GoalNotFoundError, RequestError

__all__ = ["charge"]


def _document(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> object:
    if value is None:
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise click.BadParameter(
            "must be JSON, as the provider reports what a response used"
        ) from None


def _named_values(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    named: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE")
        if name in named:
            raise click.BadParameter(f"names {name!r} twice")
        named[name] = text
    return named


@click.command()
@thread_argument()
@click.option("--tokens", type=int, default=0, metavar="N", help="How many tokens were used.")
@click.option(
    "--usage",
    callback=_document,
    metavar="JSON",
    help="Instead: what a response used, as its provider reports it.",
)
@click.option("--cost", metavar="C", help="What it cost, such as 0.25.")
@click.option("--model", metavar="M", help="The model that answered.")
@click.option("--seconds", type=float, default=0.0, metavar="S", help="The active time.")
@click.option(
    "--response-id", metavar="ID", help="The response's id: a repeat of it charges nothing."
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    callback=_named_values,
    metavar="NAME=VALUE",
    help="What to add it up by later; several times for several.",
)
@turn_option
@database_option
@json_option
def charge(
    thread: str,
    tokens: int,
    usage: object,
    cost: str | None,
    model: str | None,
    seconds: float,
    response_id: str | None,
    tags: dict[str, str],
    turn: str | None,
    database: str,
    as_json: bool,
) -> None:
    """Charge a goal with usage.

    What was used is added to the goal of THREAD, and to those above it. A budget that this fills makes the
    goal budget_limited. A charge that the goal does not take (it is paused, say) is an error.
    """
    if usage is None and cost is None and not tokens and not seconds:
        raise click.UsageError("name what to charge: --tokens, --usage, --cost or --seconds")
    # Made before the database is opened, so that a malformed charge says so first.
    request = Charge(
        thread,
        usage,
        tokens=tokens,
        cost=cost,
        seconds=seconds,
        model=model,
        turn_id=turn,
        response_id=response_id,
        tags=tags,
    )
    with open_store(locate_existing(database).path) as store:
        accounting = store.apply(request)
    _require_applied(thread, accounting)
    if as_json:
        write_json(accounting.to_dict())
        return
    if accounting.duplicate:
        click.echo("This response was charged before, and nothing was added; it left:")
    if accounting.goal is not None:
        print_goal(out(), accounting.goal)


def _require_applied(thread: str, accounting: Accounting) -> None:
    if accounting.goal is None:
        raise GoalNotFoundError(f"thread {thread!r} has no goal, so nothing was charged")
    if not accounting.applied:
        raise RequestError(
            f"nothing was charged to the goal of thread {thread!r}: it is {accounting.goal.status}, or the"
            " charge is of nothing"
        )
