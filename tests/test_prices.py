"""What models cost by genai-prices. The figures are those of its own tests and of providers' pages; each is
of a model whose price has no date, in the version that the lock holds.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from decimal import Context, Decimal, FloatOperation, Inexact, InvalidOperation, localcontext
from importlib.util import find_spec
from typing import Any

import pytest

from goal_state import InvalidValueError, MissingGenaiPricesError, TokenUsage
from goal_state.prices import GenaiPrices
from goal_state.pricing import most_price_of, price_of

needs_genai_prices = pytest.mark.skipif(
    find_spec("genai_prices") is None, reason="needs genai-prices: pip install 'goal-state[prices]'"
)

USAGE = TokenUsage(1000, 0, 0, 100)


def cost(usage: TokenUsage, model: str | None, provider: str | None = None) -> Decimal | None:
    return GenaiPrices(provider)(usage, model)


# -- figures -----------------------------------------------------------------------------------------


@needs_genai_prices
@pytest.mark.parametrize(
    ("model", "usage", "dollars"),
    [
        # Plain, input written to the cache, and input read from it.
        ("gpt-4o", USAGE, "0.0035"),
        ("claude-3-7-sonnet-20250219", TokenUsage(144_222, 0, 0, 197), "0.435621"),
        ("claude-3-7-sonnet-20250219", TokenUsage(144_222, 0, 144_211, 197), "0.54377925"),
        ("claude-3-7-sonnet-20250219", TokenUsage(144_222, 144_211, 0, 197), "0.0462513"),
        ("gpt-4.1-2025-04-14", TokenUsage(131_609, 0, 0, 610), "0.268098"),
        ("gpt-4.1-2025-04-14", TokenUsage(131_609, 131_584, 0, 610), "0.070722"),
        # Tiers: above its bound the dearer rate is that of every token, of output too.
        ("gemini-1.5-flash", TokenUsage(100_000), "0.0075"),
        ("gemini-1.5-flash", TokenUsage(500_000), "0.075"),
        ("gpt-5.4", TokenUsage(200_000), "0.5"),
        ("gpt-5.4", TokenUsage(500_000), "2.5"),
        ("gpt-5.4", TokenUsage(300_000, 0, 0, 100_000), "3.75"),
        ("gpt-5.4", TokenUsage(100_000, 100_000), "0.025"),
        # A price for each request.
        ("perplexity/sonar", TokenUsage(), "0.012"),
    ],
)
def test_price_of_a_usage_is_that_of_genai_prices_own_tests(
    model: str, usage: TokenUsage, dollars: str
) -> None:
    assert cost(usage, model) == Decimal(dollars)


@needs_genai_prices
@pytest.mark.parametrize(
    ("model", "usage", "dollars"),
    [
        # Anthropic, "Pricing", Managed Agents, worked example: an hour's session, without its runtime.
        ("claude-opus-5", TokenUsage(50_000, 0, 0, 15_000), "0.625"),
        # The same with a part of the input read from the cache.
        ("claude-opus-5", TokenUsage(50_000, 40_000, 0, 15_000), "0.445"),
        # Amazon, "Bedrock pricing", pricing examples, on demand: Claude summarizes a text.
        ("anthropic/claude-2", TokenUsage(11_000, 0, 0, 4_000), "0.184"),
        # OpenAI's rates for o1-preview and a response in its developer forum, "How to correct compute the
        # cost of an o1 model API call?": input partly cached, output mostly reasoning.
        ("o1-preview-2024-09-12", TokenUsage(2_385, 2_305, 0, 2_535, 2_241), "0.1705875"),
    ],
)
def test_price_of_a_providers_published_example_is_the_published_one(
    model: str, usage: TokenUsage, dollars: str
) -> None:
    assert cost(usage, model) == Decimal(dollars)


@needs_genai_prices
def test_price_of_reasoning_is_that_of_output_unless_it_has_one_of_its_own() -> None:
    reasoned = TokenUsage(0, 0, 0, 1_000_000, 400_000)
    assert cost(reasoned, "o1-preview") == Decimal(60)
    deep_research = cost(reasoned, "perplexity/sonar-deep-research")
    assert deep_research == Decimal("0.6") * 8 + Decimal("0.4") * 3


@needs_genai_prices
def test_price_of_cache_writes_that_have_no_rate_is_that_of_input() -> None:
    assert cost(TokenUsage(1_000_000, 0, 1_000_000), "gpt-4o") == Decimal("2.5")


@needs_genai_prices
@pytest.mark.parametrize(
    "context",
    [Context(prec=3), Context(prec=3, traps=[FloatOperation, Inexact, InvalidOperation])],
)
def test_price_in_any_decimal_context_of_the_host_is_exact(context: Context) -> None:
    with localcontext(context):
        price = cost(TokenUsage(144_222, 0, 144_211, 197), "claude-3-7-sonnet-20250219")
        huge = cost(TokenUsage(0, 0, 0, 2**62), "gpt-4o")
    assert price == Decimal("0.54377925")
    assert huge == Decimal("46116860184273.87904")


# -- whose model it is -------------------------------------------------------------------------------


@needs_genai_prices
@pytest.mark.parametrize(
    "model",
    [
        "gpt-4o",
        "GPT-4o",
        "gpt-4o-2024-08-06",
        "openai/gpt-4o",
        "openai:gpt-4o",
        "openai-chat:gpt-4o",
        "azure/gpt-4o",
    ],
)
def test_price_of_a_model_with_or_without_its_provider_is_the_same(model: str) -> None:
    assert cost(USAGE, model) == Decimal("0.0035")


@needs_genai_prices
def test_price_of_a_model_whose_name_has_a_colon_is_found() -> None:
    model = "us.anthropic.claude-3-5-sonnet-20241022-v2:0"
    assert cost(USAGE, model, "aws") == Decimal("0.0045")
    assert cost(USAGE, f"bedrock:{model}") == Decimal("0.0045")


@needs_genai_prices
def test_provider_of_the_function_prices_models_that_look_like_another_providers() -> None:
    million = TokenUsage(1_000_000)
    assert cost(million, "openai/gpt-oss-120b", "groq") == Decimal("0.15")
    assert cost(million, "openai/gpt-oss-120b") != Decimal("0.15")


@needs_genai_prices
def test_provider_that_a_model_names_is_asked_where_that_of_the_function_does_not_know_it() -> None:
    assert cost(USAGE, "openai/gpt-4o", "anthropic") == Decimal("0.0035")
    assert cost(USAGE, "nobody/gpt-4o", "anthropic") is None


@needs_genai_prices
@pytest.mark.parametrize(
    "model",
    [
        None,
        "",
        "/",
        "gpt-99",
        "openai/gpt-99",
        "groq/gpt-4o",
        "groq/claude-3-opus",
        "nobody/gpt-4o",
        "ollama:llama3",
        "ft:gpt-4o-mini-2024-07-18:org::id",
    ],
)
def test_price_of_a_model_that_is_not_known_is_none(model: str | None) -> None:
    assert cost(USAGE, model) is None
    assert price_of(GenaiPrices(), USAGE, model) is None


@needs_genai_prices
@pytest.mark.parametrize(
    ("model", "usage"),
    [
        ("cerebras/qwen-3-coder-480b", USAGE),  # known, without any price
        ("groq/whisper-large-v3", USAGE),  # priced by the hour
        ("openai/text-embedding-3-small", USAGE),  # has no output
    ],
)
def test_price_of_tokens_that_have_no_rate_is_none_and_not_zero(
    model: str, usage: TokenUsage
) -> None:
    assert cost(usage, model) is None


@needs_genai_prices
def test_price_of_an_embedding_is_that_of_its_input() -> None:
    assert cost(TokenUsage(1_000_000), "openai/text-embedding-3-small") == Decimal("0.02")


@needs_genai_prices
@pytest.mark.parametrize(
    "usage",
    [TokenUsage(10, 11), TokenUsage(10, 6, 5), TokenUsage(10, 0, 11), TokenUsage(0, 0, 0, 5, 6)],
)
def test_price_of_a_usage_that_contradicts_itself_is_none(usage: TokenUsage) -> None:
    assert cost(usage, "gpt-4o") is None


@needs_genai_prices
@pytest.mark.parametrize("provider", ["nobody", "", 5, "x" * 1000])
def test_provider_that_is_not_known_is_refused(provider: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        GenaiPrices(provider)
    assert caught.value.field == "provider"


@needs_genai_prices
def test_function_is_shown_and_pickled_with_its_provider() -> None:
    prices = pickle.loads(pickle.dumps(GenaiPrices("groq")))
    assert repr(prices) == "GenaiPrices('groq')"
    assert repr(GenaiPrices()) == "GenaiPrices()"


# -- the most that tokens can cost -------------------------------------------------------------------


@needs_genai_prices
@pytest.mark.parametrize(
    ("model", "tokens", "dollars"),
    [
        ("gpt-4o", 1_000_000, 10),  # output
        ("gemini-2.5-pro", 200_000, 2),  # output, below the tier's bound
        ("gemini-2.5-pro", 1_000_000, 15),  # output, in the dearer tier: the input may be long
        ("claude-3-7-sonnet-20250219", 1_000_000, 15),
        ("openai/text-embedding-3-small", 1_000_000, None),  # what has no output has no such price
    ],
)
def test_most_price_of_tokens_is_that_at_the_models_dearest_rate(
    model: str, tokens: int, dollars: int | None
) -> None:
    most = most_price_of(GenaiPrices(), tokens, model)
    assert most == (None if dollars is None else dollars * 10**9)


# -- the package -------------------------------------------------------------------------------------


def test_function_without_the_package_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    with pytest.raises(MissingGenaiPricesError, match=r"pip install 'goal-state\[prices\]'"):
        GenaiPrices()


_OFFLINE = """
import sys

used = []
def note(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        used.append((event, args))
sys.addaudithook(note)

import goal_state, goal_state.prices
assert "genai_prices" not in sys.modules, "imported before it is used"

import threading
from goal_state import TokenUsage
from goal_state.pricing import most_price_of
prices = goal_state.prices.GenaiPrices()
assert prices(TokenUsage(1000, 0, 0, 100), "gpt-4o") is not None
assert prices(TokenUsage(1000), "gpt-99") is None
assert most_price_of(prices, 1000, "openai/gpt-4o") is not None
assert threading.active_count() == 1, "a thread was started"
assert not used, used
"""


@needs_genai_prices
@pytest.mark.slow
def test_prices_never_use_the_network_and_are_loaded_when_they_are_used() -> None:
    subprocess.run([sys.executable, "-c", _OFFLINE], check=True, timeout=60)
