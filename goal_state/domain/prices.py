"""What usage costs, kept in exact integers: 10^-9 of the one currency of a store's prices ("nanos").

No figure here depends on the caller's decimal context: its precision, rounding and traps are the host's.
Pure: no I/O, no SQL.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import (
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
)
from typing import Final, TypeAlias

from goal_state.domain.usage import TokenUsage
from goal_state.domain.values import MAX_INTEGER
from goal_state.errors import InvalidValueError

__all__ = [
    "EXACT",
    "NANOS",
    "Prices",
    "check_cost",
    "check_cost_budget",
    "decimal_cost",
]

Prices: TypeAlias = Callable[[TokenUsage, str | None], Decimal | None]
"""Called with the usage of one model response and the model's name (None if it was not named); returns
what that response costs, 0 or more, in the one currency of the prices, or None if its price is not known.
"""

NANOS: Final = 10**9
"""How many nanos one unit of the currency has."""

EXACT: Final = Context(
    prec=64,
    rounding=ROUND_HALF_EVEN,
    Emin=-999_999,
    Emax=999_999,
    capitals=1,
    clamp=0,
    flags=[],
    traps=[DivisionByZero, InvalidOperation, Overflow],
)
"""In which prices are computed: 2^63 tokens at any rate have fewer digits. Use it by `localcontext`."""

_ONE_NANO: Final = Decimal("1e-9")
_MAX_UNITS_DIGITS: Final = len(str(MAX_INTEGER // NANOS))


def check_cost(field: str, value: object) -> int:
    """A cost in units of the currency, as nanos from 0 to 2^63-1. Taken are an int, a `Decimal`, and text
    that spells a number (`"0.25"`). What is finer than a nano is rounded to the nearest one, halves to the
    even one.

    Raises:
        InvalidValueError: it is a float (which is not exact), a bool or of another type, is no number, not
            finite, negative, or comes to 2^63 nanos or more.
    """
    if isinstance(value, Decimal):
        return _nanos(field, Decimal(value))
    if isinstance(value, str):
        text = str.__str__(value)
        try:
            return _nanos(field, Decimal(text, EXACT))
        except InvalidOperation:
            raise InvalidValueError(
                field, f"must be a number, such as '0.25', is {text!r:.80}"
            ) from None
    if isinstance(value, float):
        raise InvalidValueError(
            field, "must be exact: give a Decimal or text, such as '0.25', not a float"
        )
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValueError(
            field, f"must be an int, a Decimal or text, not {type(value).__name__}"
        )
    nanos = int.__index__(value) * NANOS
    if nanos < 0:
        raise _negative(field)
    if nanos > MAX_INTEGER:
        raise _too_much(field)
    return nanos


def check_cost_budget(field: str, value: object) -> int | None:
    """A cost budget: None for no bound, else a cost as `check_cost` takes it, as nanos from 1 to 2^63-1.

    Raises:
        InvalidValueError: it is no cost, or 0 when rounded to whole nanos.
    """
    if value is None:
        return None
    nanos = check_cost(field, value)
    if nanos == 0:
        raise InvalidValueError(field, "must be at least 0.000000001; for no bound give None")
    return nanos


def decimal_cost(nanos: int) -> Decimal:
    """A cost in units of the currency, exactly, without zeros that say nothing: `Decimal("1.5")`."""
    units, rest = divmod(abs(nanos), NANOS)
    sign = "-" if nanos < 0 else ""
    return Decimal(f"{sign}{units}.{rest:09d}".rstrip("0"))


def _nanos(field: str, cost: Decimal) -> int:
    if not cost.is_finite():
        raise InvalidValueError(field, f"must be finite, is {'NaN' if cost.is_nan() else cost}")
    if not cost:
        return 0
    if cost.is_signed():
        raise _negative(field)
    if cost.adjusted() >= _MAX_UNITS_DIGITS:  # before its digits are written out
        raise _too_much(field)
    rounded = cost.quantize(_ONE_NANO, context=EXACT)
    nanos = int(rounded.scaleb(9, EXACT))
    if nanos > MAX_INTEGER:
        raise _too_much(field)
    return nanos


def _negative(field: str) -> InvalidValueError:
    return InvalidValueError(field, "must be 0 or more, is negative")


def _too_much(field: str) -> InvalidValueError:
    return InvalidValueError(
        field, f"must be below 2^63 nanos, {decimal_cost(MAX_INTEGER + 1)} units of the currency"
    )
