"""Finds the library's statements by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping

import goal_state.storage
from goal_state.storage.rows import Write
from goal_state.storage.statements import Statement


def find_statements() -> dict[str, Statement]:
    """Every statement of `goal_state.storage` by its module and name, such as `goals._CHARGE`."""
    package = goal_state.storage
    return {
        f"{module.name.removeprefix(package.__name__ + '.')}.{name}": statement
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        for variable, value in vars(importlib.import_module(module.name)).items()
        for name, statement in _within(variable, value)
    }


def _within(name: str, value: object) -> Iterator[tuple[str, Statement]]:
    if isinstance(value, Statement):
        yield name, value
    elif isinstance(value, Write):
        yield name, value.statement
    elif isinstance(value, Mapping):
        for key, member in list(value.items()):  # some change meanwhile
            yield from _within(f"{name}[{key}]", member)
