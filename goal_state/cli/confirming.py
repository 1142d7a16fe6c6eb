"""Asking before something is lost."""

from __future__ import annotations

import click

__all__ = ["confirm"]


def confirm(question: str) -> None:
    """Goes on if the answer is yes.

    Raises:
        UsageError: it is not, or nobody is there to give one.
    """
    try:
        confirmed = click.confirm(question, err=True)
    except click.Abort:  # no terminal, no answer
        click.echo(err=True)
        confirmed = False
    if not confirmed:
        raise click.UsageError("it was not confirmed, so nothing was changed; --yes answers yes")
