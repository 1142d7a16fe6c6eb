"""`goal-state codex …`: works with the threads and the data of Codex."""

from __future__ import annotations

import click

from goal_state.cli.codex.importing import import_home
from goal_state.cli.codex.metering import meter
from goal_state.cli.codex.resuming import resume

__all__ = ["codex"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def codex() -> None:
    """Meter, resume and import the threads of Codex."""


for _command in (meter, resume, import_home):
    codex.add_command(_command)
