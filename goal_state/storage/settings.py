"""The database's own row: its identity, and what all who charge there must agree on."""

from __future__ import annotations

from typing import Final

from sqlalchemy import literal_column, select

from goal_state.domain.counting import CountedTokens
from goal_state.errors import SettingsConflictError
from goal_state.storage.executor import Executor
from goal_state.storage.identifiers import new_id
from goal_state.storage.schema import database
from goal_state.storage.statements import Statement, insert_into

__all__ = ["Settings", "check_counted_tokens"]

_D = database.c

_READ: Final = Statement(
    lambda: select(_D.identity, _D.counted_tokens).where(_D.number == literal_column("1"))
)
_WRITE: Final = insert_into(database, ["identity", "counted_tokens"])


def check_counted_tokens(stored: str, asked: str) -> None:
    """Makes sure that a database counts as it is asked to.

    Raises:
        SettingsConflictError: it does not.
    """
    if stored != asked:
        raise SettingsConflictError("counted_tokens", stored, asked)


class Settings:
    """Reads and keeps the row inside a transaction that its owner began."""

    def __init__(self, executor: Executor, counted_tokens: CountedTokens) -> None:
        self._executor = executor
        self._counted_tokens = counted_tokens
        self._are_agreed = False

    def identity(self) -> str | None:
        """What tells the database from its copies; None where nothing was kept yet."""
        row = self._executor.run(_READ).fetchone()
        return None if row is None else row[0]

    def check(self) -> None:
        """Makes sure that what the database keeps, if anything, is what we were asked for.

        Raises:
            SettingsConflictError: it is not.
        """
        row = self._executor.run(_READ).fetchone()
        if row is not None:
            check_counted_tokens(row[1], self._counted_tokens.name)

    def agree(self) -> None:
        """Keeps what we were asked for, or makes sure that what is kept is the same.

        Once the row was found, this costs nothing.

        Raises:
            SettingsConflictError: it is not the same.
        """
        if self._are_agreed:
            return
        row = self._executor.run(_READ).fetchone()
        if row is None:  # it may be undone with the transaction, so the next one looks again
            self._executor.run(_WRITE, (new_id(), self._counted_tokens.name))
        else:
            check_counted_tokens(row[1], self._counted_tokens.name)
            self._are_agreed = True
