"""The output of commands: text for people, JSON for programs.

Text from users (objectives, ids) is never interpreted as markup, and its control characters are escaped, so
that it cannot control the terminal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from goal_state.analytics import goal_event
from goal_state.domain.events import EventKind, GoalEvent
from goal_state.domain.goals import Goal, GoalStatus
from goal_state.domain.usage import ThreadUsage

__all__ = [
    "budget_bar",
    "event_json",
    "goal_json",
    "goal_table",
    "iso",
    "out",
    "print_event",
    "print_goal",
    "printable",
    "usage_json",
    "write_json",
]

_BAR_CELLS: Final = 40
_NAME_CELLS: Final = 11
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


def printable(text: str, *, keep: str = "") -> str:
    """The text with every unprintable character as its escape sequence."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode()
        for character in text
    )


# -- for programs ------------------------------------------------------------------------------------


def write_json(document: object) -> None:
    """One JSON document on a line of its own, on stdout."""
    click.echo(json.dumps(document))


def iso(moment: datetime) -> str:
    """A UTC time as ISO 8601 with milliseconds: `2026-01-31T12:00:00.000Z`."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def goal_json(goal: Goal) -> dict[str, Any]:
    """A goal with every field, raw (`time_used_ms`) and as people read it (`created_at`)."""
    return asdict(goal) | {
        "remaining_tokens": goal.remaining_tokens,
        "time_used_seconds": goal.time_used_seconds,
        "created_at": iso(goal.created_at),
        "updated_at": iso(goal.updated_at),
        "resume_at": None if goal.resume_at is None else iso(goal.resume_at),
    }


def event_json(event: GoalEvent) -> dict[str, Any]:
    """An event as it is sent, and the idempotency key, which is not."""
    return goal_event(event) | {"idempotency_key": event.idempotency_key}


def usage_json(usage: ThreadUsage | None) -> dict[str, Any] | None:
    """What a thread has used so far, and by which turn last."""
    return None if usage is None else asdict(usage.info) | {"turn_id": usage.turn_id}


# -- for people --------------------------------------------------------------------------------------


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S") + f".{moment.microsecond // 1000:03d}"


def _status(status: GoalStatus) -> Text:
    return Text(status.value, _COLOURS[status])


def _duration(time_ms: int) -> str:
    return f"{time_ms / 1000:,.1f} s"


def _tokens(goal: Goal) -> str:
    if goal.token_budget is None:
        return f"{goal.tokens_used:,} used, no budget"
    return (
        f"{goal.tokens_used:,} of {goal.token_budget:,} used, {goal.remaining_tokens:,} remaining"
    )


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


def print_goal(console: Console, goal: Goal, usage: ThreadUsage | None = None) -> None:
    """A goal, a line for each thing to be said of it; with what its thread has used, if that is known."""
    lines: list[tuple[str, str | Text]] = [
        ("thread", printable(goal.thread_id)),
        ("goal", goal.goal_id),
        ("objective", _paragraph(goal.objective)),
        ("status", _status(goal.status)),
    ]
    if goal.blocked_reason is not None:
        lines.append(("blocked", _paragraph(goal.blocked_reason)))
    if goal.resume_at is not None:
        lines.append(("limited", f"until {_moment(goal.resume_at)} UTC"))
    lines += [
        ("tokens", _tokens(goal)),
        ("budget", budget_bar(console, goal)),
        ("time", _duration(goal.time_used_ms)),
        ("created", f"{_moment(goal.created_at)} UTC"),
        ("updated", f"{_moment(goal.updated_at)} UTC"),
    ]
    if usage is not None:
        total = usage.info.total
        said = f"{total.total_tokens:,} tokens in the whole thread"
        if total.cached_input_tokens:
            said += f", {total.cached_input_tokens:,} of them cached and free"
        if usage.turn_id is not None:
            said += f", last by turn {printable(usage.turn_id)}"
        lines.append(("baseline", said))
    for name, text in lines:
        console.print(Text.assemble((f"{name:<{_NAME_CELLS}}", "bold"), text), soft_wrap=True)


def _paragraph(text: str) -> str:
    """A text of several lines, indented beside a name."""
    return printable(text, keep="\n").replace("\n", "\n" + " " * _NAME_CELLS)


def goal_table(console: Console, goals: Iterable[Goal]) -> Table:
    """A table of goals, one per row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("thread", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("budget", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("objective", no_wrap=True, overflow="ellipsis", max_width=60)
    for goal in goals:
        table.add_row(
            Text(printable(goal.thread_id)),
            _status(goal.status),
            f"{goal.tokens_used:,}",
            "" if goal.token_budget is None else f"{goal.token_budget:,}",
            "" if goal.token_budget is None else budget_bar(console, goal, 10),
            Text(printable(goal.objective)),
        )
    return table


def print_event(console: Console, event: GoalEvent, *, of_many: bool) -> None:
    """An event in one line, with its thread where the events are of many goals."""
    line = Text.assemble(
        (f"{event.position:>6}  {_moment(event.occurred_at)}  ", "dim"),
        f"{event.kind.value:<17}",
        _status(event.goal_status),
    )
    if event.kind is EventKind.USAGE_ACCOUNTED:
        budget = "" if event.token_budget is None else f" of {event.token_budget:,}"
        line.append(f"  +{event.tokens_delta:,} tokens = {event.cumulative_tokens:,}{budget}")
        if event.time_delta_ms:
            line.append(f"  +{_duration(event.time_delta_ms)}")
    elif event.kind is EventKind.STATUS_CHANGED and event.previous_status is not None:
        line.append(f"  was {event.previous_status.value}")
    elif event.replaced_goal_id is not None:
        line.append(f"  in place of {event.replaced_goal_id}")
    if of_many:
        line.append(f"  thread {printable(event.thread_id)}")
    if event.turn_id is not None:
        line.append(f"  turn {printable(event.turn_id)}", "dim")
    console.print(line, soft_wrap=True)
