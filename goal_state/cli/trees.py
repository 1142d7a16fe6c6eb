"""`goal-state tree|breakdown`: what the goals under a goal have used, and what limits each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from goal_state.cli import figures
from goal_state.cli.figures import duration, moment, number, printable
from goal_state.cli.opening import open_existing
from goal_state.cli.options import database_option, json_option
from goal_state.cli.output import out, status_text, write_json
from goal_state.cli.threads import thread_argument
from goal_state.domain.breakdown import Breakdown
from goal_state.domain.budgets import BudgetKind
from goal_state.domain.goals import Goal
from goal_state.domain.holds import Headroom
from goal_state.errors import GoalNotFoundError
from goal_state.store import GoalStore

__all__ = ["breakdown", "tree"]


class _Node(NamedTuple):
    """A goal in its tree."""

    goal: Goal
    headroom: Headroom | None
    children: list[_Node]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "goal": self.goal.to_dict(),
            "headroom": None if self.headroom is None else self.headroom.to_dict(),
            "children": [child.to_dict() for child in self.children],
        }


@click.command()
@thread_argument()
@database_option
@json_option
def tree(thread: str, database: str, as_json: bool) -> None:
    """Show a goal and those under it.

    Of the goal of THREAD, its children and theirs: what each has used (its children's usage included), what
    is held of it, and how much is left of the tightest budget, its own or one above it.
    """
    with open_existing(database) as store:
        goal = store.get(thread)
        if goal is None:
            raise GoalNotFoundError(f"thread {thread!r} has no goal")
        root = _read(store, goal)
    if as_json:
        write_json(root.to_dict())
        return
    console = out()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("thread", overflow="fold")
    table.add_column("status", no_wrap=True)
    for name in ("tokens", "cost", "calls", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("held", overflow="fold")
    table.add_column("left", overflow="fold")
    for branch, node in _rows(console, root):
        goal = node.goal
        table.add_row(
            Text(branch + printable(goal.thread_id)),
            status_text(goal.status),
            figures.used_of(BudgetKind.TOKENS, goal.tokens_used, goal.token_budget) or "0",
            figures.used_of(BudgetKind.COST, goal.cost_used_nanos, goal.cost_budget_nanos),
            figures.used_of(BudgetKind.CALLS, goal.calls_used, goal.call_budget),
            figures.used_of(BudgetKind.TIME, goal.time_used_ms, goal.time_budget_ms),
            figures.held(goal),
            Text("" if node.headroom is None else figures.left(node.headroom, goal)),
        )
    console.print(table)


@click.command()
@thread_argument()
@click.option(
    "--by",
    default="child",
    show_default=True,
    metavar="WHAT",
    help="child, model, turn, or the name of a tag.",
)
@database_option
@json_option
def breakdown(thread: str, by: str, database: str, as_json: bool) -> None:
    """Show what a goal's usage is made up of.

    The usage of the goal of THREAD, by the goals under it, by model, by turn or by a tag; the largest part
    first.
    """
    with open_existing(database) as store:
        parts = store.breakdown(thread, by)
    if parts is None:
        raise GoalNotFoundError(f"thread {thread!r} has no goal")
    if as_json:
        write_json(parts.to_dict())
    else:
        _print_parts(out(), parts)


def _read(store: GoalStore, goal: Goal) -> _Node:
    """A goal with its headroom, and all goals under it. A tree is 16 goals deep at the most."""
    children = [_read(store, child) for child in store.children(goal.thread_id)]
    return _Node(goal, store.headroom(goal.thread_id), children)


def _rows(
    console: Console, node: _Node, own: str = "", below: str = ""
) -> Iterator[tuple[str, _Node]]:
    """The goals from the top, each with the branch that leads to it."""
    yield own, node
    ascii_only = console.options.ascii_only
    for number_, child in enumerate(node.children, 1):
        if number_ < len(node.children):
            branch, on = ("|- ", "|  ") if ascii_only else ("├─ ", "│  ")
        else:
            branch, on = ("`- " if ascii_only else "└─ "), "   "
        yield from _rows(console, child, below + branch, below + on)


def _print_parts(console: Console, parts: Breakdown) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(Text(printable(parts.by)), overflow="fold")
    for name in ("tokens", "cost", "calls", "time", "estimated", "unpriced"):
        table.add_column(name, justify="right", no_wrap=True)
    for part in parts.parts:
        table.add_row(
            Text("(none)", "dim") if part.name is None else Text(printable(part.name)),
            f"{part.tokens:,}",
            figures.cost(part.cost_nanos),
            f"{part.calls:,}",
            duration(part.time_ms),
            f"{part.estimated_tokens:,}",
            f"{part.unpriced_tokens:,}",
        )
    console.print(table)
    since = parts.complete_since
    pruned = (
        "" if since is None else f", complete from {moment(since)} UTC on: older events were pruned"
    )
    console.print(f"{number(len(parts.parts), 'part')}{pruned}", style="dim")
