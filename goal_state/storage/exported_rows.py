"""The rows of an export, each value through the domain's own checks.

The schema's CHECKs come too late for what a stranger may have changed: they know neither texts that are
no Unicode nor times that no calendar has, and what they raise speaks of no line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, TypeAlias, cast

from sqlalchemy import Column, Text

from goal_state.domain.events import FIGURES, EventKind, GoalEvent
from goal_state.domain.goals import Goal, GoalStatus, check_goal, check_goal_id, goal_ids_above
from goal_state.domain.holds import HoldRecord
from goal_state.domain.tags import check_tags
from goal_state.domain.values import (
    check_amount,
    check_budget,
    check_name,
    check_stored_time_ms,
    check_text,
)
from goal_state.errors import InvalidValueError
from goal_state.storage.rows import enums_of
from goal_state.storage.schema import balances, baselines, cursors, events, goals, holds, parts

__all__ = ["CHECKED_COLUMNS", "MAX_COUNTER", "check_row"]

MAX_COUNTER: Final = 2**62
"""The largest number that later writes count on from (a position, the number of a count): no store gets
there, and it leaves room for more than any will write."""

_Check: TypeAlias = Callable[[str, object], object]


def _optional(check: _Check) -> _Check:
    return lambda field, value: None if value is None else check(field, value)


def _budget(_field: str, value: object) -> object:
    return check_budget("token_budget", value)


def _counter(field: str, value: object) -> int:
    number = check_amount(field, value)
    if number > MAX_COUNTER:
        raise InvalidValueError(field, "must leave room for later ones: 2^62 at most")
    return number


def _position(field: str, value: object) -> int:
    position = _counter(field, value)
    if position == 0:
        raise InvalidValueError(field, "must be 1 or more")
    return position


def _member(enum: type[StrEnum], *others: str) -> _Check:
    known = frozenset((*(member.value for member in enum), *others))

    def check(field: str, value: object) -> object:
        if value not in known:
            raise InvalidValueError(field, f"must be one of {', '.join(sorted(known))}")
        return value

    return check


def _count_id(field: str, value: object) -> object:
    return value if value == "" else check_name(field, value)


def _names(field: str, value: object) -> object:
    """A list of names as JSON."""
    try:
        names: object = json.loads(cast("str", value))
    except (TypeError, ValueError, RecursionError):
        names = None
    if not isinstance(names, list):
        raise InvalidValueError(field, "must be a JSON list of names")
    for name in cast("list[object]", names):
        check_name(field, name)
    return value


def _json_object(field: str, value: object) -> object:
    try:
        found: object = json.loads(cast("str", value))
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidValueError(field, "must be a JSON object")
    return value


def _tags(field: str, value: object) -> object:
    if check_tags(json.loads(cast("str", _json_object(field, value)))) != value:
        raise InvalidValueError(
            field, "must be tags as they are written, in the order of their names"
        )
    return value


def _any_amount(field: str, value: object) -> object:
    """A number that may be below 0."""
    if type(value) is not int or abs(value) > MAX_COUNTER:
        raise InvalidValueError(field, "must be an int between -2^62 and 2^62")
    return value


def _part(field: str, value: object) -> object:
    return value if value == "" else check_name(field, value)


def _flag(field: str, value: object) -> object:
    if value not in (0, 1):
        raise InvalidValueError(field, "must be 0 or 1")
    return value


def _goal_ids(field: str, value: object) -> object:
    for goal_id in check_text(field, value).split(" "):
        check_goal_id(field, goal_id)
    return value


def _nothing(field: str, value: object) -> None:
    if value is not None:
        raise InvalidValueError(field, "must be null: leases are not moved")


def _as_it_is(_field: str, value: object) -> object:
    """A value that `check_goal` checks together with those that it must agree with."""
    return value


_OF_CHARGES: Final = (
    "idempotency_key",
    "model",
    "estimate",
    "origin_goal_id",
    "hold_id",
    "tags_json",
)
_WITH_DETAILS: Final = (EventKind.BUDGET_CHANGED, EventKind.THRESHOLD_CROSSED)

_PLAIN: Final = frozenset((str, int, type(None)))
_BY_NAME: Final[Mapping[str, _Check]] = {
    "position": _position,
    "through_position": _position,
    "token_budget": _budget,
    "count_id": _count_id,
    "epoch": _counter,
    "unpaid_turn_ids": _names,
    "estimated_tokens_delta": _any_amount,
    "tags_json": _tags,
    "details_json": _json_object,
    "holder": _nothing,
    "lease_expires_at_ms": _nothing,
}
"""The columns whose name and type do not tell how they are checked."""

_IN_TABLE: Final[Mapping[str, Mapping[str, _Check]]] = {
    goals.name: dict.fromkeys(goals.columns.keys(), _as_it_is),
    events.name: {name: _member(enum) for name, enum in enums_of(GoalEvent).items()},
    balances.name: {"status": _member(GoalStatus, EventKind.CLEARED)},
    baselines.name: {},
    cursors.name: {"position": _counter},
    parts.name: {"via_goal_id": _part, "model": _part, "estimated_tokens": _any_amount},
    holds.name: {
        **{name: _member(enum) for name, enum in enums_of(HoldRecord).items()},
        "is_dispatched": _flag,
        "ancestor_goal_ids": _goal_ids,
    },
}
"""The columns that are checked in one table as in no other."""


def _check_of(column: Column[Any]) -> _Check:
    name = column.name
    known = _IN_TABLE[column.table.name].get(name) or _BY_NAME.get(name)
    if known is not None:
        return known if not column.nullable else _optional(known)
    check: _Check
    if name.endswith("goal_id"):
        check = check_goal_id
    elif name.endswith("_at_ms"):
        check = check_stored_time_ms
    else:
        check = check_name if isinstance(column.type, Text) else check_amount
    return _optional(check) if column.nullable else check


CHECKED_COLUMNS: Final[Mapping[str, Mapping[str, _Check]]] = {
    table.name: {column.name: _check_of(column) for column in table.columns}
    for table in (goals, events, balances, parts, baselines, cursors, holds)
}
"""How each column of each table is checked."""


def check_row(table: str, row: Mapping[str, object]) -> None:
    """Makes sure that a row is one that the library could have written.

    Args:
        table: its table, one of `CHECKED_COLUMNS`.
        row: its values by their columns, all of them.

    Raises:
        InvalidValueError: a value is out of its bounds, or contradicts another one of the row.
    """
    for column, check in CHECKED_COLUMNS[table].items():
        value = row[column]
        if type(value) not in _PLAIN:
            raise InvalidValueError(column, "is neither text nor an integer")
        check(column, value)
    if table == goals.name:
        _check_goal(row)
    elif table == events.name:
        _check_event(row)
    elif table == holds.name:
        _check_hold(row)


def _check_goal(row: Mapping[str, object]) -> None:
    goal = Goal(**cast("dict[str, Any]", row))
    checked = check_goal(goal)
    for column in ("objective", "blocked_reason"):
        if getattr(checked, column) != getattr(goal, column):
            raise InvalidValueError(column, "must be stripped of blanks")


def _check_event(row: Mapping[str, object]) -> None:
    kind = row["kind"]
    if kind == EventKind.USAGE_ACCOUNTED:
        for _, delta, sum_, _ in FIGURES:
            if sum_ is None:
                continue
            if row[sum_] is None:
                raise InvalidValueError(sum_, f"must be there, as the event is {kind}")
            if cast("int", row[sum_]) < cast("int", row[delta]):
                raise InvalidValueError(sum_, f"must not be less than {delta}")
    else:
        for column in (figure.delta for figure in FIGURES):
            if row[column] != 0:
                raise InvalidValueError(column, f"must be 0, as the event is {kind}")
        for column in (*filter(None, (figure.cumulative for figure in FIGURES)), *_OF_CHARGES):
            if row[column] is not None:
                raise InvalidValueError(column, f"must be null, as the event is {kind}")
    if (row["details_json"] is None) == (kind in _WITH_DETAILS):
        raise InvalidValueError(
            "details_json", "goes with budget_changed and threshold_crossed alone"
        )
    if (row["origin_goal_id"] is None) != (row["via_goal_id"] is None):
        raise InvalidValueError("via_goal_id", "goes with origin_goal_id")
    previous, replaced = row["previous_status"], row["replaced_goal_id"]
    if (previous is None) != (kind == EventKind.CREATED):
        raise InvalidValueError("previous_status", "must be there but for created, and only then")
    if kind == EventKind.STATUS_CHANGED and previous == row["goal_status"]:
        raise InvalidValueError("previous_status", "must be another one than goal_status")
    if replaced is not None and (kind != EventKind.CREATED or replaced == row["goal_id"]):
        raise InvalidValueError("replaced_goal_id", "must be another goal's, and on created alone")


def _check_hold(row: Mapping[str, object]) -> None:
    above = cast("str | None", row["ancestor_goal_ids"])
    if row["root_goal_id"] != [row["goal_id"], *goal_ids_above(above)][-1]:
        raise InvalidValueError(
            "root_goal_id", "must be the first of ancestor_goal_ids, or goal_id"
        )
    for column in ("outcome", "charged_tokens", "charged_cost_nanos", "charged_calls"):
        if (row[column] is None) != (row["ended_at_ms"] is None):
            raise InvalidValueError(column, "goes with ended_at_ms")
    for column in ("observed_cost_nanos", "observed_unpriced_tokens"):
        if (row[column] is None) != (row["observed_tokens"] is None):
            raise InvalidValueError(column, "goes with observed_tokens")
