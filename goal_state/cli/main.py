"""The program: its commands, and its exit codes.

Exit codes: 0 success, 2 an error of the caller, 1 an error of the database or the operating system (or a
difference that `verify` found).
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import click

from goal_state.cli.charging import charge
from goal_state.cli.codex import codex
from goal_state.cli.events import events
from goal_state.cli.figures import printable
from goal_state.cli.goals import clear, list_goals, resume, set_goal, show, verify
from goal_state.cli.holds import expire_holds, holds
from goal_state.cli.moving import backup, export, import_export, restore
from goal_state.cli.schema import db
from goal_state.cli.trees import breakdown, tree
from goal_state.cli.waking import resume_due
from goal_state.errors import DatabaseError, RequestError

__all__ = ["main", "program"]


class Refusal(click.ClickException):
    """An error of the caller."""

    exit_code = 2


class Program(click.Group):
    """Runs a command and turns the library's errors into sentences and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that was named."""
        try:
            result = super().invoke(ctx)
            # Here and not when the interpreter exits, where its error could not be caught.
            sys.stdout.flush()
        except BrokenPipeError:
            _discard_output()
            ctx.exit(0)
        except RequestError as error:
            raise Refusal(printable(str(error))) from error
        except DatabaseError as error:
            raise click.ClickException(printable(str(error))) from error
        except OSError as error:
            where = "" if error.filename is None else f"{error.filename!r}: "
            raise click.ClickException(f"{where}{error.strerror or error}") from error
        else:
            return result


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="goal-state", message="%(package)s %(version)s")
def program() -> None:
    """Goals of AI agents: their budgets, their usage and their events.

    The database is ./goals.db; --db FILE or the environment variable GOAL_STATE_DB names another one.
    With --json, a command writes JSON for programs.
    """


for _command in (
    *(db, list_goals, show, set_goal, resume, clear, events, verify),
    *(charge, tree, breakdown, holds, expire_holds, resume_due),
    *(backup, restore, export, import_export, codex),
):
    program.add_command(_command)


def main() -> None:
    """Runs the program on the arguments of this process, and exits."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character shows its escape sequence.
            stream.reconfigure(errors="backslashreplace")
    program(prog_name="goal-state")


def _discard_output() -> None:
    """The reader of our output is gone; the rest of the buffer must not raise again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
