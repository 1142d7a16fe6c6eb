"""The rows of an export, each value through the domain's own checks. Pure: no I/O, no SQL.

The schema's CHECKs come too late for what a stranger may have changed: they know neither texts that are
no Unicode nor times that no calendar has, and what they raise speaks of no line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

from goal_state.domain.events import EventKind
from goal_state.domain.goals import Goal, GoalStatus, check_goal, check_goal_id, check_status
from goal_state.domain.values import (
    check_amount,
    check_name,
    check_optional_name,
    check_stored_time_ms,
    check_token_budget,
)
from goal_state.errors import InvalidValueError

__all__ = ["CHECKED_COLUMNS", "MAX_COUNTER", "check_row"]

MAX_COUNTER: Final = 2**62
"""The largest number that later writes count on from (a position, the number of a count): no store gets
there, and it leaves room for more than any will write."""

_Check: TypeAlias = Callable[[str, object], object]


def _optional(check: _Check) -> _Check:
    return lambda field, value: None if value is None else check(field, value)


def _budget(_field: str, value: object) -> object:
    return check_token_budget(value)


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


def _kind(field: str, value: object) -> object:
    if value not in _KINDS:
        raise InvalidValueError(field, f"must be one of {', '.join(_KINDS)}")
    return value


def _status(field: str, value: object) -> object:
    return value if value in _STATUSES else check_status(value, field)


def _last_status(field: str, value: object) -> object:
    return value if value == EventKind.CLEARED else check_status(value, field)


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


def _nothing(field: str, value: object) -> None:
    if value is not None:
        raise InvalidValueError(field, "must be null: leases are not moved")


def _as_it_is(_field: str, value: object) -> object:
    """A value that `check_goal` checks together with those that it must agree with."""
    return value


_PLAIN: Final = frozenset((str, int, type(None)))
_STATUSES: Final = frozenset(status.value for status in GoalStatus)
_KINDS: Final = frozenset(kind.value for kind in EventKind)

_COUNTS: Final = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_input_tokens",
    "output_tokens",
    "reasoning_output_tokens",
    "total_tokens",
)

CHECKED_COLUMNS: Final[Mapping[str, Mapping[str, _Check]]] = {
    "goal_state_goals": dict.fromkeys(Goal.__dataclass_fields__, _as_it_is),
    "goal_state_events": {
        "position": _position,
        "event_id": check_name,
        "kind": _kind,
        "thread_id": check_name,
        "goal_id": check_goal_id,
        "turn_id": check_optional_name,
        "goal_status": _status,
        "previous_status": _optional(_status),
        "token_budget": _budget,
        "tokens_delta": check_amount,
        "time_delta_ms": check_amount,
        "cumulative_tokens": _optional(check_amount),
        "cumulative_time_ms": _optional(check_amount),
        "idempotency_key": check_optional_name,
        "replaced_goal_id": _optional(check_goal_id),
        "occurred_at_ms": check_stored_time_ms,
    },
    "goal_state_balances": {
        "goal_id": check_goal_id,
        "through_position": _position,
        "tokens": check_amount,
        "time_ms": check_amount,
        "status": _last_status,
    },
    "goal_state_baselines": {
        "thread_id": check_name,
        "count_id": _count_id,
        "turn_id": check_optional_name,
        **dict.fromkeys(_COUNTS, check_amount),
        **dict.fromkeys((f"last_{name}" for name in _COUNTS), check_amount),
        "model_context_window": _optional(check_amount),
        "updated_at_ms": check_stored_time_ms,
        "goal_id": _optional(check_goal_id),
        "count_number": _counter,
        "warned_goal_id": _optional(check_goal_id),
        "unpaid_turn_ids": _optional(_names),
    },
    "goal_state_cursors": {
        "name": check_name,
        "position": _counter,
        "holder": _nothing,
        "lease_expires_at_ms": _nothing,
        "updated_at_ms": check_stored_time_ms,
    },
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
    if table == "goal_state_goals":
        _check_goal(row)
    elif table == "goal_state_events":
        _check_event(row)


def _check_goal(row: Mapping[str, object]) -> None:
    goal = Goal(**cast("dict[str, Any]", row))
    checked = check_goal(goal)
    for column in ("objective", "blocked_reason"):
        if getattr(checked, column) != getattr(goal, column):
            raise InvalidValueError(column, "must be stripped of blanks")


def _check_event(row: Mapping[str, object]) -> None:
    kind = row["kind"]
    if kind == EventKind.USAGE_ACCOUNTED:
        for delta, sum_ in _SUMS:
            if row[sum_] is None:
                raise InvalidValueError(sum_, f"must be there, as the event is {kind}")
            if cast("int", row[sum_]) < cast("int", row[delta]):
                raise InvalidValueError(sum_, f"must not be less than {delta}")
    else:
        for column in ("tokens_delta", "time_delta_ms"):
            if row[column] != 0:
                raise InvalidValueError(column, f"must be 0, as the event is {kind}")
        for column in ("cumulative_tokens", "cumulative_time_ms", "idempotency_key"):
            if row[column] is not None:
                raise InvalidValueError(column, f"must be null, as the event is {kind}")
    previous, replaced = row["previous_status"], row["replaced_goal_id"]
    if (previous is None) != (kind == EventKind.CREATED):
        raise InvalidValueError("previous_status", "must be there but for created, and only then")
    if kind == EventKind.STATUS_CHANGED and previous == row["goal_status"]:
        raise InvalidValueError("previous_status", "must be another one than goal_status")
    if replaced is not None and (kind != EventKind.CREATED or replaced == row["goal_id"]):
        raise InvalidValueError("replaced_goal_id", "must be another goal's, and on created alone")


_SUMS: Final = (("tokens_delta", "cumulative_tokens"), ("time_delta_ms", "cumulative_time_ms"))
