"""The argument that names a thread, completed by the shell with those that have a goal."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from typing import Any, Final, TypeVar

import click

from goal_state.cli.opening import open_existing
from goal_state.errors import GoalStateError

__all__ = ["thread_argument"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_MOST_OFFERED: Final = 200


def thread_argument(*, required: bool = True) -> Callable[[Decorated], Decorated]:
    """THREAD: the id of a thread."""
    return click.argument("thread", required=required, shell_complete=_threads)


def _threads(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """The threads whose ids begin so; none where the database cannot be read: a shell shows no errors."""
    named = context.params.get("database") or os.environ.get("GOAL_STATE_DB") or "goals.db"
    try:
        with open_existing(named) as store:
            found = (goal.thread_id for goal in store.goals() if goal.thread_id.startswith(begun))
            return list(islice(found, _MOST_OFFERED))
    except (GoalStateError, OSError, click.ClickException):
        return []
