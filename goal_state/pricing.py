"""What usage costs by the prices of the host, who may be wrong: a price function is not ours."""

from __future__ import annotations

import logging

from goal_state.domain.counting import CountedTokens, Counting
from goal_state.domain.prices import Prices, check_cost
from goal_state.domain.tariff import Tariff
from goal_state.domain.usage import TokenUsage
from goal_state.domain.values import MAX_INTEGER, check_optional_name
from goal_state.errors import InvalidValueError

__all__ = ["HostPricing", "most_price_of", "price_of", "tariff_of"]

_logger = logging.getLogger(__name__)


def tariff_of(counted_tokens: Counting | CountedTokens, prices: Prices | None) -> Tariff:
    """The tariff that a host states.

    Raises:
        InvalidValueError: `counted_tokens` is malformed, `prices` cannot be called, or its `currency` is no
            name.
    """
    pricing = None if prices is None else HostPricing(prices)
    return Tariff(CountedTokens.of(counted_tokens), pricing)


class HostPricing:
    """The prices of a host's function; see `goal_state.domain.tariff.Pricing`."""

    __slots__ = ("_prices", "currency")

    def __init__(self, prices: Prices) -> None:
        if not callable(prices):
            raise InvalidValueError(
                "prices",
                "must be a function of a TokenUsage and a model's name that returns a Decimal or None, not"
                f" {type(prices).__name__}",
            )
        self._prices = prices
        self.currency: str | None = check_optional_name(
            "currency", getattr(prices, "currency", None)
        )

    def cost_nanos(self, usage: TokenUsage, model: str | None) -> int | None:
        """What one response costs; see `price_of`."""
        return price_of(self._prices, usage, model)

    def most_cost_nanos(self, tokens: int, model: str | None) -> int | None:
        """The most that so many tokens can cost; see `most_price_of`."""
        return most_price_of(self._prices, tokens, model)


def price_of(prices: Prices, usage: TokenUsage, model: str | None) -> int | None:
    """What the usage of one response costs, in nanos; None where the price is not known.

    A price function that raises an `Exception` does not know the price either. That is logged as a
    warning with the model's name and the exception, and nothing of the usage.

    Raises:
        InvalidValueError: the function returned no cost (a float, a negative one, NaN …); it is named.
    """
    try:
        cost = prices(usage, model)
    except Exception:
        _logger.warning(
            "%s() raised, so the price of a response of model %r is not known",
            _name(prices),
            model,
            exc_info=True,
        )
        return None
    if cost is None:
        return None
    try:
        return check_cost("prices", cost)
    except InvalidValueError as error:
        raise InvalidValueError(
            "prices", f"{_name(prices)}() returned a cost that {error.problem}"
        ) from None


def most_price_of(prices: Prices, tokens: int, model: str | None) -> int | None:
    """The most that so many tokens of one response can cost, in nanos, however they are divided into
    input and output, as long as a token costs no less in a longer response; None where the price is not
    known. `tokens` is an int from 0 to 2^63-1.

    Output counts at the rate that it has beside as much input: the length of the input decides its rate.

    Raises:
        InvalidValueError: the function returned no cost; it is named.
    """
    costs: list[int] = []
    for input_tokens, written, output_tokens in (
        (0, 0, 0),
        (tokens, 0, 0),
        (tokens, tokens, 0),
        (0, 0, tokens),
        (tokens, 0, tokens),
    ):
        cost = price_of(prices, _usage(input_tokens, written, output_tokens), model)
        if cost is None:
            return None
        costs.append(cost)
    nothing, as_input, as_written, as_output, as_both = costs
    return max(as_input, as_written, as_output, as_both - as_input + nothing)


def _usage(input_tokens: int, written: int, output_tokens: int) -> TokenUsage:
    total = min(input_tokens + output_tokens, MAX_INTEGER)
    return TokenUsage.of_valid(input_tokens, 0, written, output_tokens, 0, total)


def _name(prices: Prices) -> str:
    name: object = getattr(prices, "__name__", None)
    return name if isinstance(name, str) else type(prices).__name__
