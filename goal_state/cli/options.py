"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["database_option", "expected_goal_option", "json_option", "turn_option"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _named(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not value:
        raise click.BadParameter("must name a file")
    return value


def database_option(command: Decorated) -> Decorated:
    """`--db FILE`: the database to work on."""
    return click.option(
        "--db",
        "database",
        metavar="FILE",
        envvar="GOAL_STATE_DB",
        default="goals.db",
        show_default=True,
        show_envvar=True,
        callback=_named,
        help="The database.",
    )(command)


def json_option(command: Decorated) -> Decorated:
    """`--json`: output for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Write JSON.")(command)


def expected_goal_option(command: Decorated) -> Decorated:
    """`--expected-goal-id ID`: change no other goal."""
    return click.option(
        "--expected-goal-id", metavar="ID", help="Do it only if this is the thread's goal."
    )(command)


def turn_option(command: Decorated) -> Decorated:
    """`--turn ID`: the turn that caused the change."""
    return click.option("--turn", metavar="ID", help="The turn that causes it.")(command)
