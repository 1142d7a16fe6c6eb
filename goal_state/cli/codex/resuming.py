"""`goal-state codex resume`: the messages that a client would get when it attaches to a thread."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from goal_state.cli.opening import locate, open_existing
from goal_state.cli.options import database_option, json_option
from goal_state.cli.output import write_json
from goal_state.codex import Message, ThreadHub
from goal_state.codex.rollout import RolloutReader
from goal_state.errors import NotARolloutError
from goal_state.storage.repository import GoalRepository
from goal_state.store import GoalStore

__all__ = ["resume"]

_SESSIONS_DEPTH: Final = 3
"""How many folders lie between `sessions` and a rollout: year, month, day."""


@dataclass(slots=True)
class _Client:
    told: list[Message] = field(default_factory=list[Message])

    def send(self, message: Message, /) -> None:
        self.told.append(message)


@click.command()
@click.argument("rollout_or_thread")
@click.option(
    "--home",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="CODEX_HOME",
    show_envvar=True,
    help="The data directory in which rollouts are looked for.",
)
@database_option
@json_option
def resume(rollout_or_thread: str, home: Path | None, database: str, as_json: bool) -> None:
    """Print what a client would be sent.

    The messages to a client that resumes a thread, in order: the response, the thread's usage, its goal. The
    thread is named by its id or by its rollout. Nothing is charged or written; with --json, one message per
    line.
    """
    rollout = Path(rollout_or_thread)
    if rollout.is_file():
        thread_id = _thread_of(rollout)
        home = home or _home_of(rollout)
    else:
        thread_id, rollout = rollout_or_thread, None
    client = _Client()
    with GoalStore.open(":memory:") as copy:
        _copy_thread(database, copy, thread_id)
        hub = ThreadHub(copy, home=home)
        hub.resume(thread_id, client, request_id=1, rollout=rollout)
        hub.flush()
        hub.detach(client)
    for message in client.told:
        if as_json:
            write_json(message)
        else:
            click.echo(json.dumps(message, indent=2))


def _thread_of(rollout: Path) -> str:
    meta = RolloutReader(rollout).meta
    if meta is None:
        raise NotARolloutError(f"{rollout}: none of its first lines names a thread")
    return meta.thread_id


def _home_of(rollout: Path) -> Path | None:
    """The data directory that a rollout lies in, where a fork's parent lies too."""
    above = rollout.absolute().parents[_SESSIONS_DEPTH:]
    return above[1] if len(above) > 1 and above[0].name == "sessions" else None


def _copy_thread(database: str, copy: GoalStore, thread_id: str) -> None:
    """Copies the goal and usage of a thread into a store in memory, where resuming changes nothing."""
    if locate(database).revision is None:  # there is none yet
        return
    with open_existing(database) as store:
        goal, usage, baseline = store.transact(
            lambda found: (
                found.get(thread_id),
                found.usage(thread_id),
                found.baseline(thread_id),
            )
        )
    goal_id = None if baseline is None else baseline.goal_id

    def write(repository: GoalRepository) -> None:
        # A baseline belongs to the goal that exists when it is set.
        if goal is not None and goal.goal_id == goal_id:
            repository.import_goal(goal)
        if usage is not None:
            repository.set_baseline(thread_id, usage)
        if goal is not None and goal.goal_id != goal_id:
            repository.import_goal(goal)

    copy.transact(write)
