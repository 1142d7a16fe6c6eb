"""Prices of models, in US dollars, from the data that the package genai-prices carries (extra `prices`)."""

from __future__ import annotations

import importlib
import re
from decimal import Decimal, localcontext
from typing import Final

from goal_state.domain.prices import EXACT
from goal_state.domain.usage import TokenUsage
from goal_state.domain.values import check_name
from goal_state.errors import InvalidValueError, MissingGenaiPricesError

__all__ = ["GenaiPrices"]

# Model names have dots and colons of their own (`anthropic.claude-…-v1:0`): what has a dot names no provider.
_WITH_PROVIDER: Final = re.compile(r"([A-Za-z0-9_-]+)[/:](.+)", re.DOTALL)


class GenaiPrices:
    """A price function for `GoalStore.open(…, prices=GenaiPrices())`: what a response costs in US dollars.

    Prices come with the installed version of genai-prices: nothing is fetched, and newer prices come with
    a newer version. (Whoever runs its `UpdatePrices` in this process gets what that has fetched.)

    They are the provider's standard rates at the time of the call. Tiers by the length of the input, input
    read from the cache and written to it, reasoning and a price for each request are as the provider has
    them. What a usage does not tell is priced as if it were not there: batches and service tiers, a cache
    that is kept for longer than is usual, audio and images, the provider's tools.

    Args:
        provider: whose prices they are, for models whose names do not say (`"openrouter"`, `"azure"`). A
            model's name may say itself, `"openai/gpt-4o"` or `"openai:gpt-4o"`; else it is told by the name.

    Raises:
        MissingGenaiPricesError: the package genai-prices is not installed.
        InvalidValueError: the provider is none that it knows.
    """

    __slots__ = ("provider",)

    def __init__(self, provider: str | None = None) -> None:
        try:
            importlib.import_module("genai_prices")
        except ModuleNotFoundError as error:
            if error.name != "genai_prices":
                raise
            raise MissingGenaiPricesError(
                "prices of models need the package genai-prices; to have them:"
                " pip install 'goal-state[prices]'"
            ) from None
        if provider is not None and not _is_provider(check_name("provider", provider)):
            raise InvalidValueError(
                "provider", f"must be one that genai-prices knows, is {provider!r:.80}"
            )
        self.provider: str | None = provider

    def __call__(self, usage: TokenUsage, model: str | None) -> Decimal | None:
        """What one response costs; None where the model is not named or not known, a price is missing for
        some of its tokens, or the usage contradicts itself (more cached input than input).
        """
        if not model or _contradicts_itself(usage):
            return None
        named = _WITH_PROVIDER.fullmatch(model)
        if self.provider is not None:
            # First as it is: a provider's own names may look so (`openai/gpt-4o` at OpenRouter).
            cost = _cost(usage, model, self.provider)
            if cost is not None or named is None or not _is_provider(named[1]):
                return cost
            return _cost(usage, named[2], named[1])
        if named is not None and _is_provider(named[1]):
            return _cost(usage, named[2], named[1])
        return _cost(usage, model, None)

    def __repr__(self) -> str:
        return f"GenaiPrices({self.provider!r})" if self.provider else "GenaiPrices()"


def _is_provider(name: str) -> bool:
    from genai_prices.data_snapshot import get_snapshot

    try:
        get_snapshot().find_provider(None, name, None)
    except LookupError:
        return False
    return True


def _contradicts_itself(usage: TokenUsage) -> bool:
    return (
        usage.cached_input_tokens + usage.cache_write_input_tokens > usage.input_tokens
        or usage.reasoning_output_tokens > usage.output_tokens
    )


def _cost(usage: TokenUsage, model: str, provider: str | None) -> Decimal | None:
    from genai_prices import Usage, calc_price

    with localcontext(EXACT):  # genai-prices computes in the context that it finds
        try:
            price = calc_price(
                Usage(
                    input_tokens=usage.input_tokens,
                    cache_read_tokens=usage.cached_input_tokens,
                    cache_write_tokens=usage.cache_write_input_tokens,
                    output_tokens=usage.output_tokens,
                    output_reasoning_tokens=usage.reasoning_output_tokens,
                ),
                model,
                provider_id=provider,
            )
        except LookupError:
            return None
    # For a model without a price genai-prices adds up nothing, which is 0 and not known.
    rates = price.model_price
    if usage.input_tokens and rates.input_mtok is None:
        return None
    if usage.output_tokens and rates.output_mtok is None:
        return None
    return price.total_price
