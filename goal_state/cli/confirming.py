"""Asks for confirmation before data is deleted."""

from __future__ import annotations

import click

__all__ = ["confirm"]


def confirm(question: str) -> None:
    """Returns if the answer is yes.

    Raises:
        UsageError: it is not, or there is no terminal to ask on.
    """
    try:
        confirmed = click.confirm(question, err=True)
    except click.Abort:  # no terminal, no answer
        click.echo(err=True)
        confirmed = False
    if not confirmed:
        raise click.UsageError("it was not confirmed, so nothing was changed; --yes answers yes")
