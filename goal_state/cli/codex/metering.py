"""`goal-state codex meter`: charges a goal with the usage of a recorded thread."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from goal_state.cli.figures import number, printable
from goal_state.cli.opening import locate, open_store
from goal_state.cli.options import json_option
from goal_state.cli.output import (
    out,
    print_event,
    print_goal,
    write_json,
)
from goal_state.codex.rollout import RolloutReader
from goal_state.domain.events import GoalEvent
from goal_state.domain.goals import Goal
from goal_state.domain.usage import TokenUsage
from goal_state.domain.values import check_budget
from goal_state.errors import NotARolloutError
from goal_state.storage.repository import GoalRepository
from goal_state.store import GoalStore

__all__ = ["meter"]

_SHOWN_AT_EACH_END: Final = 10
"""How many of the first and of the last events are printed for a long rollout."""


@click.command()
@click.argument("rollout", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--budget", type=int, required=True, metavar="N", help="The goal's token budget, from 1."
)
@click.option(
    "--db",
    "database",
    metavar="FILE",
    help="Keep the goal and its events in this database. Without it nothing is kept.",
)
@click.option(
    "--events",
    "events_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write the events to this file, one JSON document per line.",
)
@json_option
def meter(
    rollout: Path, budget: int, database: str | None, events_file: Path | None, as_json: bool
) -> None:
    """Charge a goal for a recorded thread.

    A goal is made for the thread of ROLLOUT and charged with each token count of that thread, in order. The
    thread's baseline is zero, so that the goal pays for all of its usage; a fork's baseline is the usage that
    it inherited, which its parent paid for.
    """
    check_budget("token_budget", budget)
    database_file = None if database is None else locate(database).path
    _check_events_file(events_file, (rollout, database_file))
    reader = RolloutReader(rollout)
    with _progress(as_json=as_json) as progress:
        contents = _survey(reader, progress)
        with open_store(":memory:" if database is None else database) as store:
            goal = _make_goal(store, contents, rollout.name, budget)
            charges = 0
            for usage in progress.track(
                reader.usages(), total=contents.token_counts, description="Charging the goal"
            ):
                charges += store.record_total(
                    goal.thread_id,
                    usage,
                    expected_goal_id=goal.goal_id,
                ).applied
            # Another process may have cleared it.
            goal = store.get(goal.thread_id) or goal
            usage = store.usage(goal.thread_id)
            events = list(store.events(goal_id=goal.goal_id))
    skipped = reader.skipped
    if events_file is not None:
        events_file.touch(0o600)
        with events_file.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(event.to_dict())}\n" for event in events)
    if as_json:
        write_json(
            {
                "database": None if database_file is None else str(database_file),
                "goal": goal.to_dict(),
                "usage": None if usage is None else usage.to_dict(),
                "token_counts": contents.token_counts,
                "charges": charges,
                "skipped_lines": {
                    "count": skipped.count,
                    "noted": [
                        {"offset": line.offset, "reason": line.reason} for line in skipped.noted
                    ],
                },
                "events": [event.to_dict() for event in events],
            }
        )
        return
    console = out()
    print_goal(console, goal, usage)
    console.print()
    _print_events(console, events)
    console.print()
    click.echo(f"{number(contents.token_counts, 'token count')}, {number(charges, 'charge')}.")
    if skipped.count:
        first = skipped.noted[0]
        click.echo(
            f"{number(skipped.count, 'line')} of the rollout could not be used and were skipped,"
            f" the first at byte {first.offset:,}: {first.reason}."
        )
    if database_file is None:
        click.echo("Metered in memory: nothing was kept. --db FILE keeps it.")
    else:
        click.echo(f"Kept in {printable(str(database_file))}.")


@dataclass(frozen=True, slots=True)
class _Contents:
    """What the first pass over a rollout finds.

    Attributes:
        thread_id: the thread.
        token_counts: how many token counts it has.
        baseline: what the thread had used before the first line.
    """

    thread_id: str
    token_counts: int
    baseline: TokenUsage


def _check_events_file(events_file: Path | None, others: tuple[Path | None, ...]) -> None:
    if events_file is None:
        return
    if not events_file.parent.is_dir():
        problem = f"the folder {str(events_file.parent)!r} does not exist; make it first"
    elif events_file.resolve() in {other.resolve() for other in others if other is not None}:
        problem = f"{str(events_file)!r} is the rollout or the database itself; name another file"
    else:
        return
    raise click.BadParameter(problem, param_hint="'--events'")


def _progress(*, as_json: bool) -> Progress:
    console = out(err=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=as_json and not console.is_terminal,
    )


def _survey(reader: RolloutReader, progress: Progress) -> _Contents:
    """Reads the whole rollout once before anything is made, to give the progress bar its total."""
    meta = reader.meta
    if meta is None:
        raise NotARolloutError(f"{reader.path}: none of its first lines names a thread")
    token_counts, baseline = 0, TokenUsage()
    task = progress.add_task("Reading the rollout", total=None)
    for usage in progress.track(reader.usages(), task_id=task):
        if token_counts == 0 and meta.history_base is not None:
            baseline = usage.total - usage.last
        token_counts += 1
    progress.update(task, total=token_counts)
    return _Contents(meta.thread_id, token_counts, baseline)


def _make_goal(store: GoalStore, contents: _Contents, name: str, budget: int) -> Goal:
    objective = f"Metered from {name.encode(errors='replace').decode()}"

    def make(repository: GoalRepository) -> Goal:
        goal = repository.create(contents.thread_id, objective, token_budget=budget)
        repository.set_baseline(contents.thread_id, contents.baseline)
        return goal

    return store.transact(make)


def _print_events(console: Console, events: list[GoalEvent]) -> None:
    left_out = len(events) - 2 * _SHOWN_AT_EACH_END
    shown = events if left_out <= 0 else events[:_SHOWN_AT_EACH_END]
    for event in shown:
        print_event(console, event, of_many=False)
    if left_out > 0:
        console.print(f"        … {left_out:,} more; --events FILE writes all of them", style="dim")
        for event in events[-_SHOWN_AT_EACH_END:]:
            print_event(console, event, of_many=False)
