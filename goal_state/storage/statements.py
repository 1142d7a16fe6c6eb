"""Statements that SQLAlchemy compiles once for each dialect, each with its parameters in one order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, TypeAlias, cast

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Dialect,
    Select,
    Table,
    bindparam,
    insert,
    literal_column,
)
from sqlalchemy.sql import Executable
from sqlalchemy.sql.elements import ClauseElement

__all__ = ["Parameter", "Statement", "Upsert", "insert_into", "limited"]

Parameter: TypeAlias = BindParameter[Any]

_PREFIX: Final = "p_"
"""Before the names of parameters: SQLAlchemy keeps the names of columns for parameters of its own."""


@dataclass(frozen=True, slots=True)
class Upsert:
    """An INSERT that changes the row which has the key already.

    Attributes:
        table: where to.
        values: what is inserted, by column, or a query that is inserted with its columns' names.
        key: the columns of the primary key.
        change: what is set where the row is there, by column; it is given what was to be inserted.
    """

    table: Table
    values: Mapping[str, Parameter] | Select[*tuple[Any, ...]]
    key: Sequence[str]
    change: Callable[[Mapping[str, ColumnElement[Any]]], Mapping[str, ColumnElement[Any]]]

    def expression(self, dialect: Dialect) -> Executable:
        """The statement in a dialect: each has an `insert` of its own that knows of conflicts."""
        statement: Any = import_module(f"sqlalchemy.dialects.{dialect.name}").insert(self.table)
        if isinstance(self.values, Select):
            names = [column.name for column in self.values.selected_columns]
            statement = statement.from_select(names, self.values)
        else:
            statement = statement.values(dict(self.values))
        return statement.on_conflict_do_update(
            index_elements=self.key, set_=self.change(statement.excluded)
        )


_Built: TypeAlias = Executable | Upsert
_Build: TypeAlias = (
    Callable[[], _Built]
    | Callable[[Parameter], _Built]
    | Callable[[Parameter, Parameter], _Built]
    | Callable[[Parameter, Parameter, Parameter], _Built]
    | Callable[[Parameter, Parameter, Parameter, Parameter], _Built]
    | Callable[[Parameter, Parameter, Parameter, Parameter, Parameter], _Built]
    | Callable[[Parameter, Parameter, Parameter, Parameter, Parameter, Parameter], _Built]
)


class Statement:
    """SQL that SQLAlchemy builds from the schema at its first use and whose text is kept from then on.

    Building and compiling an expression costs ten times what SQLite needs to run it.

    The parameters of `build` that have no default are the statement's, and values are handed in in their
    order. It has to be the order in which the text names them, in every dialect: `compile` makes sure of
    that, and so values go to the driver as they are.
    """

    def __init__(self, build: _Build, parameters: Sequence[str] | None = None) -> None:
        """
        Args:
            build: makes the expression from its parameters, with aliases and joins of its own: SQLAlchemy
                completes them at their first use, and an asynchronous exception there leaves them half made.
            parameters: their names, where `build` takes any number of them.
        """
        self._build = cast("Callable[..., _Built]", build)
        self._parameters = parameters
        self.texts: dict[str, str] = {}

    @property
    def parameters(self) -> Sequence[str]:
        """The names of the parameters, in the order in which values are handed in."""
        if self._parameters is None:
            return [
                each.name
                for each in inspect.signature(self._build).parameters.values()
                if each.kind is each.POSITIONAL_OR_KEYWORD and each.default is each.empty
            ]
        return self._parameters

    def compile(self, dialect: Dialect) -> str:
        """The SQL text for a dialect, from now on in `texts`."""
        names = [_PREFIX + name for name in self.parameters]
        expression = self._build(*map(bindparam, names))
        if isinstance(expression, Upsert):
            expression = expression.expression(dialect)
        compiled = cast(ClauseElement, expression).compile(dialect=dialect)
        order: Sequence[str] = getattr(compiled, "positiontup", None) or ()
        if list(order) != names:
            raise AssertionError(
                f"the text names its parameters in the order {list(order)}, values come in the order {names}"
            )
        self.texts[dialect.name] = text = str(compiled)
        return text


def insert_into(table: Table, columns: Sequence[str]) -> Statement:
    """An INSERT of a row, with a parameter for each of the columns, which are in the table's order."""

    def build(*values: Parameter) -> Executable:
        return insert(table).values(dict(zip(columns, values, strict=True)))

    return Statement(build, columns)


def limited(query: Select[Any], limit: Parameter) -> Select[Any]:
    """The query with a bound on its rows, the last parameter."""
    # Without an offset of ours SQLAlchemy binds one of its own.
    return query.limit(limit).offset(literal_column("0"))
