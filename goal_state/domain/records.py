"""Frozen dataclasses, filled in as fast as plain ones. Pure: no I/O, no clock, no SQL.

Whoever holds a `Goal` or a `GoalEvent` knows that it does not change: they are frozen dataclasses with slots.
Their own `__init__` pays for that with a call of `object.__setattr__` for each field, four times the cost of
a plain assignment, and a charge makes three of them. So a *draft* is filled in instead: an object of a twin
class that has the same slots and is not frozen. Setting its `__class__` to the frozen class finishes it;
CPython allows that between classes of one layout, and it copies nothing.

The functions are generated from the fields, as `dataclasses` generates `__init__`: a field that is added to
a class needs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, TypeVar

__all__ = ["blank", "changed", "copier", "draft_class", "generated"]

Record = TypeVar("Record")


def generated(parameters: str, body: Iterable[str], names: dict[str, Any]) -> Callable[..., Any]:
    """A function made from the text of its parameters and of its body, in which the names are known."""
    text = "\n    ".join((f"def function({parameters}):", *body))
    known = dict(names)
    exec(text, known)  # noqa: S102 - the text is made of the names of fields alone
    return known["function"]


@cache
def draft_class(cls: type[Any]) -> type[Any]:
    """The twin of a frozen dataclass: the same slots, and not frozen."""
    return type(f"_{cls.__name__}Draft", (), {"__slots__": cls.__slots__})


def blank(cls: type[Any]) -> Callable[[], Any]:
    """What makes drafts in which only the fields with a default are filled in."""
    defaults = {field.name: field.default for field in fields(cls) if field.default is not MISSING}
    return generated(
        "",
        [
            "draft = new_draft()",
            *(f"draft.{name} = default_{name}" for name in defaults),
            "return draft",
        ],
        {"new_draft": draft_class(cls)}
        | {f"default_{name}": value for name, value in defaults.items()},
    )


@cache
def copier(cls: type[Record]) -> Callable[[Record], Any]:
    """What makes a draft with the values of a record."""
    body = [f"draft.{name} = record.{name}" for name in draft_class(cls).__slots__]
    return generated(
        "record",
        ["draft = new_draft()", *body, "return draft"],
        {"new_draft": draft_class(cls)},
    )


def changed(record: Record, **changes: Any) -> Record:
    """A copy of a record in which some fields have other values, as `dataclasses.replace` makes it.

    Raises:
        AttributeError: there is no such field.
    """
    draft = copier(type(record))(record)
    for name, value in changes.items():
        setattr(draft, name, value)
    draft.__class__ = type(record)
    return draft
