"""Rows to records and back, derived from the fields of the record's class.

A column of a table whose rows are records is a field of the same name; it is spelled there and in the schema.
What SQL does not know is text there and a member of its enum here. The functions are generated, as
`dataclasses` generates `__init__`, so that a row costs no more than if each were written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar, cast, get_args, get_type_hints

from sqlalchemy import Column, ColumnElement, Table, update

from goal_state.domain.records import draft_class, generated
from goal_state.storage.statements import Statement, insert_into

__all__ = [
    "Write",
    "arranged",
    "columns_of",
    "enums_of",
    "insert_of",
    "reader",
    "update_of",
    "values_of",
]

Record = TypeVar("Record")


class Write(NamedTuple, Generic[Record]):
    """A statement that writes a record, and what takes the values from it: one list of columns makes both."""

    statement: Statement
    values: Callable[[Record], tuple[Any, ...]]


def enums_of(cls: type[Any]) -> dict[str, type[StrEnum]]:
    """The fields of a class that are members of an enum (or None)."""
    found: dict[str, type[StrEnum]] = {}
    for name, hint in get_type_hints(cls).items():
        for kind in (hint, *get_args(hint)):
            if isinstance(kind, type) and issubclass(kind, StrEnum):
                found[name] = kind
    return found


def columns_of(cls: type[Any], table: Table) -> list[Column[Any]]:
    """The columns of a table in the order of the fields of its rows' class, as `reader` takes them.

    Raises:
        TypeError: a field has no column, or a column no field.
    """
    names = [field.name for field in fields(cls)]
    if set(names) != set(table.columns.keys()):
        odd = ", ".join(sorted(set(names) ^ set(table.columns.keys())))
        raise TypeError(f"{cls.__name__} and {table.name} must have the same fields, not so: {odd}")
    return [table.c[name] for name in names]


def reader(cls: type[Record]) -> Callable[[tuple[Any, ...]], Record]:
    """What makes a record of a row with a value for each of its fields, in their order."""
    members: dict[str, Any] = {
        f"members_of_{name}": {None: None, **{member.value: member for member in enum}}
        for name, enum in enums_of(cls).items()
    }
    targets = [
        name if f"members_of_{name}" in members else f"record.{name}"
        for name in (field.name for field in fields(cast("type[Any]", cls)))
    ]
    return generated(
        "row",
        [
            "record = new_draft()",
            f"({', '.join(targets)},) = row",
            *(f"record.{name} = members_of_{name}[{name}]" for name in enums_of(cls)),
            "record.__class__ = finished",
            "return record",
        ],
        members | {"new_draft": draft_class(cls), "finished": cls},
    )


def values_of(cls: type[Record], columns: Sequence[str]) -> Callable[[Record], tuple[Any, ...]]:
    """What takes the values of columns from a record's fields of these names."""
    hints, enums = get_type_hints(cls), enums_of(cls)

    def taken(column: str) -> str:
        if column not in enums:
            return f"record.{column}"
        # What `value` is, without the descriptor that makes it cost three times as much.
        text = f"record.{column}._value_"
        is_optional = type(None) in get_args(hints[column])
        return f"(None if record.{column} is None else {text})" if is_optional else text

    return generated("record", [f"return ({', '.join(map(taken, columns))},)"], {})


def arranged(columns: Sequence[str], **groups: Sequence[str]) -> Callable[..., tuple[Any, ...]]:
    """What puts values, which are handed in by keyword, in the order of columns.

    Args:
        columns: each is a keyword.
        groups: columns that are next to one another and whose values are handed in together.
    """
    text = f" {' '.join(columns)} "
    for name, members in groups.items():
        text = text.replace(f" {' '.join(members)} ", f" *{name} ")
    values = text.split()
    keywords = ", ".join(value.removeprefix("*") for value in values)
    return generated(keywords, [f"return ({', '.join(values)},)"], {})


def insert_of(
    cls: type[Record], table: Table, *, without: frozenset[str] = frozenset()
) -> Write[Record]:
    """The INSERT of a record; the database fills in what is left out."""
    columns = [column.name for column in table.columns if column.name not in without]
    return Write(insert_into(table, columns), values_of(cls, columns))


def update_of(
    cls: type[Record],
    table: Table,
    *,
    key: str,
    columns: Sequence[str],
    also: Mapping[str, ColumnElement[Any]] = {},
) -> Write[Record]:
    """The UPDATE of some columns of the row that has the record's key.

    Args:
        cls: the record's class.
        table: its table.
        key: the column by which the row is found.
        columns: those that are set to the record's values.
        also: further columns, with the SQL expressions that they are set to.
    """
    # SQLAlchemy sets columns in the order in which the table has them.
    names = [column.name for column in table.columns if column.name in columns]

    def build(*values: Any) -> Any:
        *new, found = values
        changes = dict(zip(names, new, strict=True)) | dict(also)
        return update(table).where(table.c[key] == found).values(changes)

    return Write(Statement(build, [*names, f"of_{key}"]), values_of(cls, [*names, key]))
