"""The options that bound a goal: its budgets, and what it warns at."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

import click

__all__ = ["budget_options", "chosen_budgets"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _moment(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a time such as 2026-12-24T18:00:00Z") from None


class _Bound(NamedTuple):
    """A bound: the option that sets it, and the argument of the library."""

    option: str
    argument: str
    metavar: str
    type: type[int | float | str]
    help: str

    @property
    def name(self) -> str:
        """Under which the option's value reaches the command."""
        return self.option.replace("-", "_")


_BOUNDS: Final = (
    _Bound("budget", "token_budget", "N", int, "How many tokens it may use, from 1."),
    _Bound("cost-budget", "cost_budget", "C", str, "What it may cost, such as 2.50."),
    _Bound("call-budget", "call_budget", "N", int, "How many model calls it may make, from 1."),
    _Bound("time-budget", "time_budget", "SECONDS", float, "How much active time it may take."),
    _Bound(
        "deadline", "deadline", "TIME", str, "When it must be done: ISO 8601, with a time zone."
    ),
    _Bound(
        "warn-at",
        "warn_at",
        "F",
        float,
        "A fraction of the budgets, such as 0.8, at which an event warns; several times for several.",
    ),
)


def budget_options(command: Decorated) -> Decorated:
    """`--budget N`, `--no-budget` and the like, which reach a command as `**bounds` for `chosen_budgets`."""
    for bound in reversed(_BOUNDS):
        command = click.option(
            f"--no-{bound.option}", f"no_{bound.name}", is_flag=True, help=f"No {bound.option}."
        )(command)
        command = click.option(
            f"--{bound.option}",
            bound.name,
            type=bound.type,
            metavar=bound.metavar,
            multiple=bound.argument == "warn_at",
            callback=_moment if bound.argument == "deadline" else None,
            help=bound.help,
        )(command)
    return command


def chosen_budgets(bounds: dict[str, Any]) -> dict[str, Any]:
    """Those that were named, as arguments of the library; None for what shall have no bound.

    Raises:
        UsageError: a budget was both given and taken away.
    """
    chosen: dict[str, Any] = {}
    for bound in _BOUNDS:
        value, is_taken_away = bounds[bound.name], bounds[f"no_{bound.name}"]
        is_given = value not in (None, ())
        if is_given and is_taken_away:
            raise click.UsageError(f"--{bound.option} and --no-{bound.option} exclude each other")
        if is_given or is_taken_away:
            chosen[bound.argument] = value if is_given else None
    return chosen
