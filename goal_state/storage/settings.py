"""The settings row of a database: its identity, and what every store that charges there must agree on."""

from __future__ import annotations

from typing import Final

from sqlalchemy import literal_column, select, update

from goal_state.domain.tariff import Tariff
from goal_state.errors import SettingsConflictError
from goal_state.storage.executor import Executor
from goal_state.storage.identifiers import new_id
from goal_state.storage.schema import database
from goal_state.storage.statements import Statement, insert_into

__all__ = ["Settings", "check_settings"]

_D = database.c

_READ: Final = Statement(
    lambda: select(_D.identity, _D.counted_tokens, _D.currency).where(
        _D.number == literal_column("1")
    )
)
_WRITE: Final = insert_into(database, ["identity", "counted_tokens", "currency"])
_SET_CURRENCY: Final = Statement(
    lambda currency: (
        update(database).where(_D.number == literal_column("1")).values(currency=currency)
    )
)


def check_settings(counted_tokens: str, currency: str | None, asked: Tariff) -> None:
    """Makes sure that the stored settings are those of a tariff. Where either names no currency, it is taken
    to be the other's.

    Raises:
        SettingsConflictError: they are not.
    """
    if counted_tokens != asked.counted_tokens.name:
        raise SettingsConflictError("counted_tokens", counted_tokens, asked.counted_tokens.name)
    asked_currency = asked.currency
    if currency is not None and asked_currency is not None and currency != asked_currency:
        raise SettingsConflictError("currency", currency, asked_currency)


class Settings:
    """Reads and writes the settings row inside a transaction that its owner began."""

    def __init__(self, executor: Executor, tariff: Tariff) -> None:
        self._executor = executor
        self._tariff = tariff
        self.are_agreed: bool = False
        """Whether the row was found, and is what we were asked for."""

    def identity(self) -> str | None:
        """The id that tells the database from its copies; None where there is no settings row yet."""
        row = self._executor.run(_READ).fetchone()
        return None if row is None else row[0]

    def check(self) -> str | None:
        """Makes sure that the stored settings, if there are any, are those asked for; returns the identity.

        Raises:
            SettingsConflictError: they are not.
        """
        row = self._executor.run(_READ).fetchone()
        if row is None:
            return None
        check_settings(row[1], row[2], self._tariff)
        return row[0]

    def agree(self) -> None:
        """Stores the settings asked for, or makes sure that the stored ones are the same.

        Raises:
            SettingsConflictError: they are not the same.
        """
        row = self._executor.run(_READ).fetchone()
        if row is None:  # the transaction may be rolled back, so the next one reads again
            tariff = self._tariff
            self._executor.run(_WRITE, (new_id(), tariff.counted_tokens.name, tariff.currency))
            return
        check_settings(row[1], row[2], self._tariff)
        if row[2] is None and self._tariff.currency is not None:
            self._executor.run(_SET_CURRENCY, (self._tariff.currency,))
        else:
            self.are_agreed = True

    def currency(self) -> str | None:
        """The currency of the stored costs; None where nobody has named one."""
        row = self._executor.run(_READ).fetchone()
        return self._tariff.currency if row is None else row[2]

    def agree_on_currency(self, currency: str | None) -> None:
        """Makes a currency that of the stored costs, or makes sure that it is; None is any.

        Raises:
            SettingsConflictError: they are in another one.
        """
        stored = self.currency()
        if currency is not None and stored is None:
            self._executor.run(_SET_CURRENCY, (currency,))
        elif currency is not None and currency != stored:
            raise SettingsConflictError("currency", str(stored), currency)
