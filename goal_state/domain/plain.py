"""Records as plain values, ready for JSON. Pure: no I/O, no SQL."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["iso", "plain_fields"]


def iso(moment: datetime) -> str:
    """A UTC time as ISO 8601 with milliseconds: `2026-01-31T12:00:00.000Z`."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain_fields(record: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass by their names: of a member of an enum its value, of a record its own."""
    return {field.name: _plain(getattr(record, field.name)) for field in fields(record)}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return value.to_dict() if hasattr(value, "to_dict") else value
