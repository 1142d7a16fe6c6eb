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
from typing import Any, ParamSpec, TypeVar, cast

__all__ = ["changed", "copier", "draft_class", "drafter", "generated", "maker"]

Record = TypeVar("Record")
Parameters = ParamSpec("Parameters")


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


def drafter(cls: Callable[Parameters, object]) -> Callable[Parameters, Any]:
    """What makes drafts of a class; it is called like the class itself."""
    return _constructor(cls, ["return draft"])


def maker(cls: Callable[Parameters, Record]) -> Callable[Parameters, Record]:
    """What makes finished records of a class: as the class itself does, and without its checks, if any."""
    return _constructor(cls, ["draft.__class__ = finished", "return draft"])


def _constructor(cls: Callable[..., object], end: list[str]) -> Callable[..., Any]:
    finished = cast("type[Any]", cls)
    names: dict[str, Any] = {"new_draft": draft_class(finished), "finished": finished}
    parameters: list[str] = []
    body = ["draft = new_draft()"]
    for field in fields(finished):
        has_default = field.default is not MISSING
        parameters.append(field.name + f"=default_{field.name}" * has_default)
        names[f"default_{field.name}"] = field.default
        body.append(f"draft.{field.name} = {field.name}")
    return generated(", ".join(parameters), body + end, names)


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
