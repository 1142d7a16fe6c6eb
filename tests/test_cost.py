"""Costs in exact integers, and what is made of a price function that may be wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from decimal import (
    ROUND_UP,
    Clamped,
    Context,
    Decimal,
    FloatOperation,
    Inexact,
    InvalidOperation,
    Rounded,
    Subnormal,
    localcontext,
)
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goal_state import InvalidValueError, TokenUsage
from goal_state.domain.prices import NANOS, check_cost, check_cost_budget, decimal_cost
from goal_state.pricing import most_price_of, price_of

MOST = 2**63 - 1
USAGE = TokenUsage(1_234_567, 0, 0, 7_654_321)


class Coins(IntEnum):
    TWO = 2


class Money(Decimal):
    """A host's own kind, which shows itself in its own way."""

    def __str__(self) -> str:
        return "much"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "99"


@pytest.fixture(params=["own", "coarse", "trapping", "lenient"])
def host_context(request: pytest.FixtureRequest) -> Iterator[None]:
    """The decimal contexts that hosts may run us in."""
    contexts = {
        "own": Context(),
        "coarse": Context(prec=4, rounding=ROUND_UP, Emin=-3, Emax=3),
        "trapping": Context(
            prec=4, traps=[Clamped, FloatOperation, Inexact, InvalidOperation, Rounded, Subnormal]
        ),
        "lenient": Context(prec=2, traps=[]),
    }
    with localcontext(contexts[request.param]):
        yield


# -- costs -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("host_context")
@pytest.mark.parametrize(
    ("value", "nanos"),
    [
        (0, 0),
        (3, 3 * NANOS),
        (Coins.TWO, 2 * NANOS),
        (Decimal("0.25"), 250_000_000),
        (Decimal("-0"), 0),
        (Decimal("1E+3"), 1000 * NANOS),
        (Money("1.5"), 1_500_000_000),
        ("0.000000001", 1),
        ("12345678.987654321", 12_345_678_987_654_321),
        (Text("7"), 7 * NANOS),
        ("9223372036.854775807", MOST),
        (Decimal("9223372036.8547758074999"), MOST),
        (9_223_372_036, 9_223_372_036 * NANOS),
    ],
)
def test_cost_of_an_exact_number_is_kept_in_nanos(value: Any, nanos: int) -> None:
    checked = check_cost("cost", value)
    assert (checked, type(checked)) == (nanos, int)


@pytest.mark.usefixtures("host_context")
@pytest.mark.parametrize(
    ("value", "nanos"),
    [
        ("0.0000000005", 0),
        ("0.0000000015", 2),
        ("0.0000000025", 2),
        ("0.00000000250000000000000000000000000000000000000000000000000000000000000001", 3),
        ("0.0000000024999999999999999999999999999999999999999999999999999999999999999", 2),
        ("1e-99999999", 0),
        (Decimal("1e-999999999"), 0),
        pytest.param("0." + "3" * 100_000, 333_333_333, id="long"),
    ],
)
def test_cost_finer_than_a_nano_is_rounded_half_even(value: Any, nanos: int) -> None:
    assert check_cost("cost", value) == nanos


@pytest.mark.usefixtures("host_context")
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (0.25, "must be exact: give a Decimal or text, such as '0.25', not a float"),
        (float("nan"), "not a float"),
        (True, "must be an int, a Decimal or text, not bool"),
        (None, "must be an int, a Decimal or text, not NoneType"),
        (Fraction(1, 4), "not Fraction"),
        ("", "must be a number, such as '0.25', is ''"),
        ("ten", "must be a number, such as '0.25', is 'ten'"),
        pytest.param("x" * 1000, "is '" + "x" * 79, id="long"),
        ("1e" + "9" * 40, "must be a number"),
        ("NaN", "must be finite, is NaN"),
        (Decimal("sNaN"), "must be finite, is NaN"),
        (Decimal("Infinity"), "must be finite, is Infinity"),
        ("-inf", "must be finite, is -Infinity"),
        (-1, "must be 0 or more"),
        ("-1e-30", "must be 0 or more"),
        ("9223372036.854775808", "must be below 2^63 nanos, 9223372036.854775808 units"),
        (Decimal("9223372036.8547758075"), "must be below 2^63 nanos"),
        (Decimal("1e999999999"), "must be below 2^63 nanos"),
        (10**10, "must be below 2^63 nanos"),
        pytest.param(10**10_000, "must be below 2^63 nanos", id="huge"),
    ],
)
def test_cost_of_what_is_no_cost_is_refused_in_words(value: Any, problem: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        check_cost("cost", value)
    assert caught.value.field == "cost"
    assert problem in caught.value.problem
    assert len(caught.value.problem) < 150


def test_cost_budget_of_none_is_no_bound() -> None:
    assert check_cost_budget("cost_budget", None) is None


@pytest.mark.parametrize(
    ("value", "nanos"), [("0.000000001", 1), ("5", 5 * NANOS), ("9223372036.854775807", MOST)]
)
def test_cost_budget_from_one_nano_up_is_taken(value: Any, nanos: int) -> None:
    assert check_cost_budget("cost_budget", value) == nanos


@pytest.mark.parametrize("value", [0, "0.00", Decimal("0.0000000004"), Decimal("-0")])
def test_cost_budget_of_nothing_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        check_cost_budget("cost_budget", value)
    assert str(caught.value) == (
        "cost_budget: must be at least 0.000000001; for no bound give None"
    )


@pytest.mark.parametrize("value", [1.5, "-1", "NaN", True])
def test_cost_budget_of_what_is_no_cost_is_refused_by_its_field(value: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        check_cost_budget("cost_budget", value)
    assert caught.value.field == "cost_budget"


@pytest.mark.usefixtures("host_context")
@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "0"),
        (NANOS, "1"),
        (10 * NANOS, "10"),
        (1_500_000_000, "1.5"),
        (250_000_000, "0.25"),
        (-250_000_000, "-0.25"),
        (1, "1E-9"),
        (12_345_678_987_654_321, "12345678.987654321"),
        (MOST, "9223372036.854775807"),
    ],
)
def test_decimal_cost_is_exact_and_says_no_more_than_it_knows(nanos: int, text: str) -> None:
    assert str(decimal_cost(nanos)) == text


@given(st.integers(0, MOST))
def test_decimal_cost_is_taken_back_as_the_same_nanos(nanos: int) -> None:
    assert check_cost("cost", decimal_cost(nanos)) == nanos
    assert check_cost("cost", str(decimal_cost(nanos))) == nanos
    assert Fraction(decimal_cost(nanos)) == Fraction(nanos, NANOS)


# -- the host's price function -----------------------------------------------------------------------


class Table:
    """A price function that is an object: a rate for each token."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __call__(self, usage: TokenUsage, model: str | None) -> Any:
        return self.result


def returning(result: Any) -> Callable[[TokenUsage, str | None], Any]:
    def list_price(usage: TokenUsage, model: str | None) -> Any:
        return result

    return list_price


def test_price_of_a_usage_is_asked_once_with_its_model() -> None:
    asked: list[tuple[TokenUsage, str | None]] = []

    def prices(usage: TokenUsage, model: str | None) -> Decimal:
        asked.append((usage, model))
        return Decimal("0.5")

    assert price_of(prices, USAGE, "gpt-4o") == 500_000_000
    assert asked == [(USAGE, "gpt-4o")]


def test_price_of_what_the_function_does_not_know_is_none_and_zero_is_zero() -> None:
    assert price_of(returning(None), USAGE, None) is None
    assert price_of(returning(Decimal(0)), USAGE, None) == 0


def test_price_of_a_function_that_raises_is_unknown_and_logged_without_the_usage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(usage: TokenUsage, model: str | None) -> Decimal:
        raise KeyError("no such table")

    assert price_of(broken, USAGE, "gpt-99") is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("goal_state.pricing", logging.WARNING)
    assert record.getMessage() == (
        "broken() raised, so the price of a response of model 'gpt-99' is not known"
    )
    assert "no such table" in caplog.text
    assert "1234567" not in caplog.text
    assert "7654321" not in caplog.text


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_price_of_a_function_that_is_interrupted_lets_the_interruption_through(
    interruption: type[BaseException],
) -> None:
    def interrupted(usage: TokenUsage, model: str | None) -> Decimal:
        raise interruption

    with pytest.raises(interruption):
        price_of(interrupted, USAGE, None)


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (0.5, "must be exact"),
        (Decimal("-0.1"), "must be 0 or more"),
        (Decimal("NaN"), "must be finite"),
        (Decimal("1e10"), "must be below 2^63 nanos"),
        (True, "not bool"),
        ((), "not tuple"),
    ],
)
def test_price_of_a_function_that_returns_no_cost_is_refused_by_its_name(
    result: Any, problem: str
) -> None:
    for prices, name in ((returning(result), "list_price"), (Table(result), "Table")):
        with pytest.raises(InvalidValueError) as caught:
            price_of(prices, USAGE, None)
        assert caught.value.field == "prices"
        assert caught.value.problem.startswith(f"{name}() returned a cost that must be ")
        assert problem in caught.value.problem


def tiered(usage: TokenUsage, model: str | None) -> Decimal | None:
    """1 for each token of input and 3 of output, twice as much above 100 tokens of input, 7 a call."""
    if model != "tiered":
        return None
    factor = 2 if usage.input_tokens > 100 else 1
    written = usage.cache_write_input_tokens
    return Decimal(7 + factor * (usage.input_tokens + 3 * usage.output_tokens) + written)


@pytest.mark.parametrize("tokens", [0, 1, 100, 101, 102, 150, 1000])
def test_most_price_of_tokens_is_never_below_that_of_any_division(tokens: int) -> None:
    most = most_price_of(tiered, tokens, "tiered")
    assert most is not None
    for input_tokens in range(tokens + 1):
        for written in (0, input_tokens):
            usage = TokenUsage(input_tokens, 0, written, tokens - input_tokens)
            price = price_of(tiered, usage, "tiered")
            assert price is not None
            assert price <= most
    dearest_rate = 6 if tokens > 100 else 3
    assert most == (7 + dearest_rate * tokens) * NANOS


@pytest.mark.parametrize(
    ("rates", "most"),
    [
        ((9, 0, 1), 45),  # input
        ((1, 9, 1), 45),  # input that is written to the cache
        ((1, 0, 9), 45),  # output
    ],
)
def test_most_price_of_tokens_is_that_of_the_dearest_kind(
    rates: tuple[int, int, int], most: int
) -> None:
    plain, write, out = rates

    def prices(usage: TokenUsage, model: str | None) -> Decimal:
        written = usage.cache_write_input_tokens
        read = usage.input_tokens - written
        return Decimal(plain * read + write * written + out * usage.output_tokens)

    assert most_price_of(prices, 5, None) == most * NANOS


def test_most_price_of_tokens_where_output_alone_is_dearest_is_that() -> None:
    def prices(usage: TokenUsage, model: str | None) -> Decimal:
        return Decimal(usage.output_tokens * (1 if usage.input_tokens else 4))

    assert most_price_of(prices, 5, None) == 20 * NANOS


def test_most_price_of_tokens_is_asked_for_with_usages_that_add_up() -> None:
    def prices(usage: TokenUsage, model: str | None) -> Decimal:
        plain = TokenUsage(
            usage.input_tokens, 0, usage.cache_write_input_tokens, usage.output_tokens
        )
        assert usage == plain
        return Decimal(1)

    assert most_price_of(prices, 5, None) == NANOS


def test_most_price_of_a_model_that_is_not_known_is_none() -> None:
    assert most_price_of(tiered, 10, "other") is None


def test_most_price_of_a_model_with_one_price_missing_is_none() -> None:
    def prices(usage: TokenUsage, model: str | None) -> Decimal | None:
        return None if usage.output_tokens else Decimal(1)

    assert most_price_of(prices, 10, None) is None


def test_most_price_of_as_many_tokens_as_there_can_be_is_asked_for_with_counts_in_bounds() -> None:
    def prices(usage: TokenUsage, model: str | None) -> Decimal:
        assert max(usage.counts()) <= MOST
        return Decimal(1)

    assert most_price_of(prices, MOST, None) == NANOS
