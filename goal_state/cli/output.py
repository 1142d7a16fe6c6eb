"""The output of commands: text for people, JSON for programs.

Text from users (objectives, ids) is never interpreted as markup, and its control characters are escaped, so
that it cannot control the terminal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from goal_state.cli import figures
from goal_state.cli.figures import moment, printable
from goal_state.domain.budgets import BudgetKind
from goal_state.domain.events import EventKind, GoalEvent
from goal_state.domain.goals import Goal, GoalStatus
from goal_state.domain.holds import Headroom
from goal_state.domain.usage import ThreadUsage

__all__ = [
    "budget_bar",
    "goal_table",
    "out",
    "print_event",
    "print_goal",
    "status_text",
    "write_json",
]

_BAR_CELLS: Final = 40
_NAME_CELLS: Final = 11
_GAP_CELLS: Final = 2
"""Between two columns of a table."""
_THREAD_CELLS: Final = 40
"""A longer id may be folded to make room for figures."""
_OBJECTIVE_CELLS: Final = (12, 60)
_FEWEST_COLUMNS: Final = 3
"""Of a table of goals, however narrow: thread, status and tokens."""
_PIPE_CELLS: Final = 200
"""The width of a line where there is no terminal."""

_COLOURS: Final = {
    GoalStatus.ACTIVE: "green",
    GoalStatus.PAUSED: "yellow",
    GoalStatus.BLOCKED: "yellow",
    GoalStatus.USAGE_LIMITED: "magenta",
    GoalStatus.BUDGET_LIMITED: "red",
    GoalStatus.COMPLETE: "blue",
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves the handling of a broken pipe to the program."""
        raise BrokenPipeError


def out(*, err: bool = False) -> Console:
    """A console on stdout (or stderr) as it is now."""
    console = _Console(stderr=err, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_CELLS
    return console


# -- for programs ------------------------------------------------------------------------------------


def write_json(document: object) -> None:
    """One JSON document on a line of its own, on stdout."""
    click.echo(json.dumps(document))


# -- for people --------------------------------------------------------------------------------------


def status_text(status: GoalStatus) -> Text:
    """A status in its colour."""
    return Text(status.value, _COLOURS[status])


def budget_bar(console: Console, goal: Goal, cells: int = _BAR_CELLS) -> Text:
    """How much of the budget is used, as a bar and in percent; a budget that is overrun fills the bar."""
    if goal.token_budget is None:
        return Text("no budget", "dim")
    percent = goal.tokens_used * 100 // goal.token_budget
    filled = min(goal.tokens_used * cells // goal.token_budget, cells)
    colour = "red" if percent >= 100 else "yellow" if percent >= 80 else "green"
    full, empty = ("#", "-") if console.options.ascii_only else ("█", "░")
    return Text.assemble(
        (full * filled, colour), (empty * (cells - filled), "dim"), f" {percent:,} %"
    )


def print_goal(
    console: Console,
    goal: Goal,
    usage: ThreadUsage | None = None,
    *,
    parent_thread_id: str | None = None,
    headroom: Headroom | None = None,
) -> None:
    """A goal, a line for each thing to be said of it; with what is known besides: what its thread has used,
    whose goal it works for, and what it may still use.
    """
    lines: list[tuple[str, str | Text]] = [
        ("thread", printable(goal.thread_id)),
        ("goal", goal.goal_id),
        *_parent(goal, parent_thread_id),
        ("objective", _paragraph(goal.objective)),
        ("status", status_text(goal.status)),
    ]
    if goal.blocked_reason is not None:
        lines.append(("blocked", _paragraph(goal.blocked_reason)))
    if goal.resume_at is not None:
        lines.append(("limited", f"until {moment(goal.resume_at)} UTC"))
    lines += [
        ("tokens", figures.used(BudgetKind.TOKENS, goal.tokens_used, goal.token_budget)),
        ("budget", budget_bar(console, goal)),
        *figures.budget_lines(goal),
        *([] if headroom is None else [("headroom", figures.left(headroom, goal))]),
        ("created", f"{moment(goal.created_at)} UTC"),
        ("updated", f"{moment(goal.updated_at)} UTC"),
    ]
    if usage is not None:
        total = usage.total
        said = f"{total.total_tokens:,} tokens in the whole thread"
        if total.cached_input_tokens:
            said += f", {total.cached_input_tokens:,} of them cached and free"
        if usage.turn_id is not None:
            said += f", last by turn {printable(usage.turn_id)}"
        lines.append(("baseline", said))
    for name, text in lines:
        console.print(Text.assemble((f"{name:<{_NAME_CELLS}}", "bold"), text), soft_wrap=True)


def _parent(goal: Goal, thread_id: str | None) -> list[tuple[str, str]]:
    if goal.parent_goal_id is None:
        return []
    thread = "" if thread_id is None else f"thread {printable(thread_id)}, "
    return [("parent", f"{thread}goal {goal.parent_goal_id}")]


def _paragraph(text: str) -> str:
    """A text of several lines, indented beside a name."""
    return printable(text, keep="\n").replace("\n", "\n" + " " * _NAME_CELLS)


def goal_table(console: Console, goals: Sequence[Goal]) -> Table:
    """A table of goals, one per row. Of cost, calls and time there is a column where a goal has any.

    Where the console is narrow the objectives give way first, then the other columns from the right; a thread
    is always there, whole.
    """
    columns: list[tuple[str, list[Text], Literal["left", "right"]]] = [
        ("thread", [Text(printable(goal.thread_id)) for goal in goals], "left"),
        ("status", [status_text(goal.status) for goal in goals], "left"),
        ("tokens", [Text(f"{goal.tokens_used:,}") for goal in goals], "right"),
        ("budget", [_budget_cell(goal) for goal in goals], "right"),
        ("", [_bar_cell(console, goal) for goal in goals], "left"),
        *(
            (kind.value, cells, "right")
            for kind in (BudgetKind.COST, BudgetKind.CALLS, BudgetKind.TIME)
            if any(cells := [Text(_cell(goal, kind)) for goal in goals])
        ),
    ]
    widths = [
        max(len(name), *(cell.cell_len for cell in cells)) + _GAP_CELLS
        for name, cells, _ in columns
    ]
    widths[0] = min(widths[0], _THREAD_CELLS + _GAP_CELLS)
    while len(columns) > _FEWEST_COLUMNS and sum(widths) - _GAP_CELLS > console.width:
        del columns[-1], widths[-1]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, (name, _, justify) in enumerate(columns):
        table.add_column(
            name,
            justify=justify,
            no_wrap=number > 0,
            overflow="fold",
            min_width=None if number == 0 else widths[number] - _GAP_CELLS,
        )
    left = console.width - sum(widths)
    cells = [column for _, column, _ in columns]
    if left >= _OBJECTIVE_CELLS[0]:
        table.add_column(
            "objective", no_wrap=True, overflow="ellipsis", max_width=min(left, _OBJECTIVE_CELLS[1])
        )
        cells.append([Text(printable(goal.objective)) for goal in goals])
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    return table


def _budget_cell(goal: Goal) -> Text:
    return Text("" if goal.token_budget is None else f"{goal.token_budget:,}")


def _bar_cell(console: Console, goal: Goal) -> Text:
    return Text("") if goal.token_budget is None else budget_bar(console, goal, 10)


def _cell(goal: Goal, kind: BudgetKind) -> str:
    if kind is BudgetKind.COST:
        return figures.used_of(kind, goal.cost_used_nanos, goal.cost_budget_nanos)
    if kind is BudgetKind.CALLS:
        return figures.used_of(kind, goal.calls_used, goal.call_budget)
    return figures.used_of(kind, goal.time_used_ms, goal.time_budget_ms)


def print_event(console: Console, event: GoalEvent, *, of_many: bool) -> None:
    """An event in one line, with its thread where the events are of many goals."""
    line = Text.assemble(
        (f"{event.position:>6}  {moment(event.occurred_at)}  ", "dim"),
        f"{event.kind.value:<19}",
        status_text(event.goal_status),
    )
    line.append("".join(f"  {said}" for said in _said(event)))
    if of_many:
        line.append(f"  thread {printable(event.thread_id)}")
    if event.turn_id is not None:
        line.append(f"  turn {printable(event.turn_id)}", "dim")
    console.print(line, soft_wrap=True)


def _said(event: GoalEvent) -> Iterator[str]:
    """What there is to say of an event of its kind."""
    if event.kind is EventKind.USAGE_ACCOUNTED:
        budget = "" if event.token_budget is None else f" of {event.token_budget:,}"
        yield f"+{event.tokens_delta:,} tokens = {event.cumulative_tokens:,}{budget}"
        if event.cost_delta_nanos:
            total = figures.cost(event.cumulative_cost_nanos or 0)
            yield f"+{figures.cost(event.cost_delta_nanos)} cost = {total}"
        if event.time_delta_ms:
            yield f"+{figures.duration(event.time_delta_ms)}"
        if event.estimate is not None:
            yield f"estimate {event.estimate}"
        if event.origin_goal_id is not None:
            yield f"for goal {event.origin_goal_id}"
    elif event.kind is EventKind.THRESHOLD_CROSSED:
        crossed = event.details
        kind = BudgetKind(crossed["budget"])
        used, limit = (figures.amount(kind, crossed[name]) for name in ("used", "limit"))
        yield f"{crossed['fraction'] * 100:g} % of {kind}: {used} of {limit}"
    elif event.kind is EventKind.BUDGET_CHANGED:
        was, now = event.details["was"], event.details["now"]
        for name in now:
            yield figures.budget_change(name, was[name], now[name])
    elif event.kind is EventKind.STATUS_CHANGED and event.previous_status is not None:
        yield f"was {event.previous_status.value}"
    elif event.replaced_goal_id is not None:
        yield f"in place of {event.replaced_goal_id}"
