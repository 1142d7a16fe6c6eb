"""Bounds of the values that callers hand in, checked before anything is written.

Each function returns the value as it will be stored, or raises `InvalidValueError` with the name of the
field and the bound that it breaks.
"""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, cast

from goal_state.errors import InvalidValueError

__all__ = [
    "MAX_INTEGER",
    "MAX_NAME_CHARACTERS",
    "MAX_OBJECTIVE_CHARACTERS",
    "check_amount",
    "check_budget",
    "check_claim",
    "check_milliseconds",
    "check_name",
    "check_objective",
    "check_optional_name",
    "check_path",
    "check_stored_time_ms",
    "check_text",
    "check_time_ms",
]

MAX_INTEGER: Final = 2**63 - 1
"""The largest integer that SQLite keeps as one."""

MAX_NAME_CHARACTERS: Final = 256
"""Bound of thread ids, turn ids, goal ids, idempotency keys and consumer names."""

MAX_OBJECTIVE_CHARACTERS: Final = 4000
"""Bound of an objective, in Unicode characters, after stripping."""


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MIN_TIME_MS: Final = -62_135_596_800_000
_MAX_TIME_MS: Final = 253_402_300_799_999


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidValueError(field, f"must be text, not {type(value).__name__}")
    text = str.__str__(value)  # a subclass may carry a __str__ of its own
    if "\0" in text:
        raise InvalidValueError(field, "must not contain a NUL character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidValueError(field, "must not contain a lone surrogate") from None
    return text


def check_text(field: str, value: object) -> str:
    """Text of any length, without a NUL or a lone surrogate."""
    return _text(field, value)


def check_name(field: str, value: object) -> str:
    """A name given by the host (thread, turn, goal, key, consumer): 1 to 256 characters, kept as it is."""
    plain = (
        type(value) is str and value.isascii() and "\0" not in value and value
    )  # as nearly all are
    text = plain or _text(field, value)
    if not 1 <= len(text) <= MAX_NAME_CHARACTERS:
        raise InvalidValueError(
            field, f"must have 1 to {MAX_NAME_CHARACTERS} characters, has {len(text)}"
        )
    return text


def check_optional_name(field: str, value: object) -> str | None:
    """A name, or None."""
    return None if value is None else check_name(field, value)


def check_path(field: str, value: object) -> Path:
    """A path, as text or as an `os.PathLike` of text, that a file can be named by."""
    text: object = value
    if isinstance(value, os.PathLike):
        text = os.fspath(cast("os.PathLike[str]", value))
    if not isinstance(text, str):
        raise InvalidValueError(field, f"must be a path, not {type(text).__name__}")
    text = str.__str__(text)
    if "\0" in text:
        raise InvalidValueError(field, "must not contain a NUL character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise InvalidValueError(field, "must not contain a lone surrogate") from None
    return Path(text)


def check_objective(value: object, field: str = "objective") -> str:
    """An objective, or another text of that size: stripped, then 1 to 4000 characters."""
    text = _text(field, value).strip()
    if not 1 <= len(text) <= MAX_OBJECTIVE_CHARACTERS:
        raise InvalidValueError(
            field,
            f"must have 1 to {MAX_OBJECTIVE_CHARACTERS} characters after stripping, has {len(text)}",
        )
    return text


def _integer(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValueError(field, f"must be an int, not {type(value).__name__}")
    return int.__index__(value)


def check_amount(field: str, value: object) -> int:
    """A count of tokens: an int from 0 to 2^63-1."""
    if type(value) is int and 0 <= value <= MAX_INTEGER:
        return value
    amount = _integer(field, value)
    if amount < 0:
        raise InvalidValueError(field, f"must be 0 or more, is {_shown(amount)}")
    if amount > MAX_INTEGER:
        raise InvalidValueError(field, f"must be below 2^63, is {_shown(amount)}")
    return amount


def check_budget(field: str, value: object) -> int | None:
    """A budget of tokens or calls: None for none, else an int from 1 to 2^63-1."""
    if value is None:
        return None
    budget = _integer(field, value)
    if budget <= 0:
        raise InvalidValueError(field, f"must be more than 0, is {_shown(budget)}")
    if budget > MAX_INTEGER:
        raise InvalidValueError(field, f"must be below 2^63, is {_shown(budget)}")
    return budget


def check_claim(value: object) -> int | None:
    """The number of a claim, from 1; None where none is named."""
    if value is None:
        return None
    number = check_amount("claim", value)
    if number == 0:
        raise InvalidValueError("claim", "must be the number that claim() gave, from 1")
    return number


def check_milliseconds(field: str, value: object) -> int:
    """Seconds as a finite number of 0 or more, returned as whole milliseconds (rounded to the nearest)."""
    if type(value) is float and 0 <= value < 1e12:  # as nearly all are
        return round(value * 1000)
    if type(value) is int and value == 0:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidValueError(field, f"must be a number of seconds, not {type(value).__name__}")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidValueError(field, f"must be finite, is {float.__repr__(value)}")
        milliseconds = (
            round(float.__float__(value) * 1000) if abs(value) < MAX_INTEGER else int(value) * 1000
        )
    else:
        milliseconds = int.__index__(value) * 1000
    if value < 0:
        raise InvalidValueError(field, "must be 0 or more")
    if milliseconds > MAX_INTEGER:
        raise InvalidValueError(field, "must be below 2^63 milliseconds")
    return milliseconds


def check_time_ms(field: str, value: object) -> int:
    """An aware datetime, from the year 1 to 9999 in UTC, as a Unix time in whole milliseconds."""
    if not isinstance(value, datetime):
        raise InvalidValueError(field, f"must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidValueError(field, "must be aware: give its time zone")
    milliseconds = (value - _EPOCH) // timedelta(milliseconds=1)
    if (
        not _MIN_TIME_MS <= milliseconds <= _MAX_TIME_MS
    ):  # one of another zone's first or last hours
        raise InvalidValueError(field, "must be from the year 1 to 9999 in UTC")
    return milliseconds


def check_stored_time_ms(field: str, value: object) -> int:
    """A Unix time in milliseconds as `check_time_ms` returns it, so that a datetime can tell it."""
    milliseconds = _integer(field, value)
    if not _MIN_TIME_MS <= milliseconds <= _MAX_TIME_MS:
        raise InvalidValueError(
            field, f"must be a time from the year 1 to 9999, is {_shown(milliseconds)} ms"
        )
    return milliseconds


def _shown(number: int) -> str:
    """The number as text, or its size where it is too long to read (or to convert)."""
    bits = number.bit_length()
    return str(number) if bits <= 128 else f"an integer of {bits} bits"
