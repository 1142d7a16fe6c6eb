"""Statements: built from the schema, compiled once for each database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from sqlalchemy import Dialect, Select, bindparam, literal_column
from sqlalchemy.sql import Executable
from sqlalchemy.sql.elements import ClauseElement

__all__ = ["Statement", "limited"]


class Statement:
    """SQL that SQLAlchemy builds from the schema at its first use and whose text is kept from then on.

    Building and compiling an expression costs ten times what SQLite needs to run it.
    """

    def __init__(self, build: Callable[[], Executable], parameters: str = "") -> None:
        """
        Args:
            build: makes the expression.
            parameters: the names of its bound parameters, in the order in which values are handed in.
        """
        self._build = build
        self._parameters = parameters.split()
        self.texts: dict[str, str] = {}

    def compile(self, dialect: Dialect) -> str:
        """The SQL text for a dialect, from now on in `texts`."""
        compiled = cast(ClauseElement, self._build()).compile(dialect=dialect)
        names: Sequence[str] = getattr(compiled, "positiontup", None) or ()
        if list(names) != self._parameters:
            raise AssertionError(f"bound parameters are {names}, expected {self._parameters}")
        self.texts[dialect.name] = text = str(compiled)
        return text


def limited(query: Select[Any]) -> Select[Any]:
    """The query with a bound parameter `limit`, the last one."""
    # Without an offset of ours SQLAlchemy binds one of its own.
    return query.limit(bindparam("limit")).offset(literal_column("0"))
