"""The settings row of a database: its identity, and what every store that charges there must agree on."""

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
    """Makes sure that the stored `counted_tokens` are those asked for.

    Raises:
        SettingsConflictError: they are not.
    """
    if stored != asked:
        raise SettingsConflictError("counted_tokens", stored, asked)


class Settings:
    """Reads and writes the settings row inside a transaction that its owner began."""

    def __init__(self, executor: Executor, counted_tokens: CountedTokens) -> None:
        self._executor = executor
        self._counted_tokens = counted_tokens
        self.are_agreed: bool = False
        """Whether the row was found, and is what we were asked for."""

    def identity(self) -> str | None:
        """The id that tells the database from its copies; None where there is no settings row yet."""
        row = self._executor.run(_READ).fetchone()
        return None if row is None else row[0]

    def check(self) -> None:
        """Makes sure that the stored settings, if there are any, are those asked for.

        Raises:
            SettingsConflictError: they are not.
        """
        row = self._executor.run(_READ).fetchone()
        if row is not None:
            check_counted_tokens(row[1], self._counted_tokens.name)

    def agree(self) -> None:
        """Stores the settings asked for, or makes sure that the stored ones are the same.

        Raises:
            SettingsConflictError: they are not the same.
        """
        row = self._executor.run(_READ).fetchone()
        if row is None:  # the transaction may be rolled back, so the next one reads again
            self._executor.run(_WRITE, (new_id(), self._counted_tokens.name))
        else:
            check_counted_tokens(row[1], self._counted_tokens.name)
            self.are_agreed = True
