"""Options that a host chooses when it opens a store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias, cast, get_args

from goal_state.errors import InvalidValueError

__all__ = ["Durability", "Progress", "check_busy_timeout", "check_durability"]

Durability: TypeAlias = Literal["full", "normal"]
"""`full`: committed changes survive a power cut. `normal`: they survive a crash of the process, but the last
commits may be missing after a power cut; the database stays consistent."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called now and then with the number of pages left and of pages in all."""

_LONGEST_TIMEOUT_SECONDS: Final = 86_400


def check_durability(value: object) -> Durability:
    """The durability of that name, or `InvalidValueError` with the names there are."""
    if value not in get_args(Durability):
        shown = ascii(value) if isinstance(value, str) else type(value).__name__
        raise InvalidValueError(
            "durability",
            f"must be one of {', '.join(get_args(Durability))}, is {shown[:80]}",
        )
    return cast(Durability, value)


def check_busy_timeout(value: object) -> int:
    """A time-out in seconds as whole milliseconds; from 0 to a day."""
    seconds: float = -1
    if isinstance(value, float):
        seconds = float.__float__(value)  # the value itself, whatever a subclass makes of it
    elif isinstance(value, int) and not isinstance(value, bool):
        seconds = int.__index__(value)
    if not 0 <= seconds <= _LONGEST_TIMEOUT_SECONDS:
        raise InvalidValueError("busy_timeout_seconds", "must be a number from 0 to 86400")
    return round(seconds * 1000)
