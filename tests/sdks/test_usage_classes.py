"""What `TokenUsage.of` makes of the SDKs' own classes, each skipped where its SDK is not installed.

`make test-sdks` has them all. `tests/test_usage_forms.py` has copies of their usage, run by `make test`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from typing import Any, Final, get_type_hints

import pytest

from goal_state import InvalidValueError, TokenUsage
from goal_state.domain.usage_forms import FORMS

if find_spec("openai") is None:
    pytest.skip("needs the agent SDKs: make test-sdks", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # the SDKs' own

ALL: Final = TokenUsage(120, 100, 5, 30, 20, 150)
WITHOUT_WRITES: Final = TokenUsage(120, 100, 0, 30, 20, 150)
RESPONSES: Final = {
    "input_tokens": 120,
    "input_tokens_details": {
        "cached_tokens": 100,
        "cache_write_tokens": 5,
        "cache_write_tokens_details": {"ttl_12h_tokens": 2, "ttl_30m_tokens": 3},
    },
    "output_tokens": 30,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 150,
}
CHAT: Final = {
    "prompt_tokens": 120,
    "prompt_tokens_details": {
        "cached_tokens": 100,
        "cache_write_tokens": 5,
        "audio_tokens": 1,
        "image_tokens": 2,
        "text_tokens": 117,
    },
    "completion_tokens": 30,
    "completion_tokens_details": {
        "reasoning_tokens": 20,
        "accepted_prediction_tokens": 3,
        "rejected_prediction_tokens": 2,
        "audio_tokens": 1,
        "text_tokens": 9,
    },
    "total_tokens": 150,
}
ANTHROPIC: Final = {
    "input_tokens": 15,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 5,
    "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 3},
    "output_tokens": 30,
    "output_tokens_details": {"thinking_tokens": 20},
    "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
    "service_tier": "standard",
    "inference_geo": "us",
}
GEMINI: Final = {
    "prompt_token_count": 90,
    "tool_use_prompt_token_count": 30,
    "cached_content_token_count": 100,
    "thoughts_token_count": 20,
    "total_token_count": 150,
    "prompt_tokens_details": [{"modality": "TEXT", "token_count": 90}],
    "cache_tokens_details": [{"modality": "TEXT", "token_count": 100}],
}


def openai_responses() -> Any:
    module = pytest.importorskip("openai.types.responses")
    return module.ResponseUsage.model_validate(RESPONSES)


def openai_chat() -> Any:
    return pytest.importorskip("openai.types").CompletionUsage.model_validate(CHAT)


def deepseek_over_chat() -> Any:
    usage = {
        **CHAT,
        "prompt_tokens_details": None,
        "prompt_cache_hit_tokens": 100,
        "prompt_cache_miss_tokens": 20,
    }
    return pytest.importorskip("openai.types").CompletionUsage.model_validate(usage)


def openai_realtime() -> Any:
    module = pytest.importorskip("openai.types.realtime")
    usage = {
        "input_tokens": 120,
        "input_token_details": {
            "cached_tokens": 100,
            "cached_tokens_details": {"audio_tokens": 100},
            "audio_tokens": 120,
        },
        "output_tokens": 30,
        "output_token_details": {"audio_tokens": 30},
        "total_tokens": 150,
    }
    return module.RealtimeResponseUsage.model_validate(usage)


def agents_run() -> Any:
    agents = pytest.importorskip("agents")
    run = agents.Usage()
    for _ in range(2):
        one = openai_responses()
        run.add(
            agents.Usage(
                requests=1,
                input_tokens=one.input_tokens,
                input_tokens_details=one.input_tokens_details,
                output_tokens=one.output_tokens,
                output_tokens_details=one.output_tokens_details,
                total_tokens=one.total_tokens,
            )
        )
    assert len(run.request_usage_entries) == 2
    return run


def anthropic_message() -> Any:
    return pytest.importorskip("anthropic.types").Usage.model_validate(ANTHROPIC)


def anthropic_delta() -> Any:
    usage = {name: ANTHROPIC[name] for name in ANTHROPIC if name != "cache_creation"}
    return pytest.importorskip("anthropic.types").MessageDeltaUsage.model_validate(usage)


def anthropic_beta() -> Any:
    beta = pytest.importorskip("anthropic.types.beta")
    figures = {
        "input_tokens": 10,
        "cache_read_input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "output_tokens": 2,
    }
    iterations = [
        {**ANTHROPIC, "type": "message"},
        {**figures, "type": "compaction"},
        {**figures, "type": "advisor_message", "model": "m"},
    ]
    return beta.BetaUsage.model_validate({**ANTHROPIC, "iterations": iterations})


def pydantic_ai_request() -> Any:
    return pytest.importorskip("pydantic_ai.usage").RequestUsage(
        input_tokens=120,
        cache_read_tokens=100,
        cache_write_tokens=5,
        cache_write_1h_tokens=2,
        output_tokens=30,
        output_reasoning_tokens=20,
        details={"reasoning_tokens": 20, "cache_read_input_tokens": 100},
    )


def pydantic_ai_run() -> Any:
    run = pytest.importorskip("pydantic_ai.usage").RunUsage(requests=1, tool_calls=2)
    run.incr(pydantic_ai_request())
    run.incr(pydantic_ai_request())
    return run


def pydantic_ai_without_anything() -> Any:
    return pytest.importorskip("pydantic_ai.usage").RunUsage()


def langchain_message() -> Any:
    messages = pytest.importorskip("langchain_core.messages")
    usage = {
        "input_tokens": 120,
        "output_tokens": 30,
        "total_tokens": 150,
        "input_token_details": {"cache_read": 100, "cache_creation": 5, "audio": 1},
        "output_token_details": {"reasoning": 20, "audio": 1},
    }
    return messages.AIMessage("hello", usage_metadata=usage).usage_metadata


def langchain_chunks() -> Any:
    module = pytest.importorskip("langchain_core.messages.ai")
    return module.add_usage(langchain_message(), langchain_message())


def gemini_response() -> Any:
    types = pytest.importorskip("google.genai.types")
    return types.GenerateContentResponseUsageMetadata.model_validate(
        {**GEMINI, "candidates_token_count": 10, "traffic_type": "ON_DEMAND"}
    )


def gemini_live() -> Any:
    types = pytest.importorskip("google.genai.types")
    return types.UsageMetadata.model_validate({**GEMINI, "response_token_count": 10})


def gemini_as_json() -> Any:
    return gemini_response().model_dump(mode="json", by_alias=True)


TWICE: Final = TokenUsage(240, 200, 10, 60, 40, 300)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (openai_responses, ALL),
        (openai_chat, ALL),
        (deepseek_over_chat, WITHOUT_WRITES),
        (openai_realtime, TokenUsage(120, 100, 0, 30, 0, 150)),
        (agents_run, TWICE),
        (anthropic_message, ALL),
        (anthropic_delta, ALL),
        (anthropic_beta, TokenUsage(150, 110, 5, 34, 20, 184)),
        (pydantic_ai_request, ALL),
        (pydantic_ai_run, TWICE),
        (pydantic_ai_without_anything, TokenUsage()),
        (langchain_message, ALL),
        (langchain_chunks, TWICE),
        (gemini_response, WITHOUT_WRITES),
        (gemini_live, WITHOUT_WRITES),
        (gemini_as_json, WITHOUT_WRITES),
    ],
)
def test_a_usage_of_the_sdks_class_is_read(build: Callable[[], Any], expected: TokenUsage) -> None:
    usage = build()
    assert TokenUsage.of(usage) == expected
    if hasattr(usage, "model_dump"):
        assert TokenUsage.of(usage.model_dump()) == expected
        assert TokenUsage.of(usage.model_dump(mode="json", exclude_none=True)) == expected


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("openai.types.responses", "ResponseUsage"),
        ("openai.types", "CompletionUsage"),
        ("openai.types.realtime", "RealtimeResponseUsage"),
        ("agents", "Usage"),
        ("anthropic.types", "Usage"),
        ("anthropic.types", "MessageDeltaUsage"),
        ("anthropic.types.beta", "BetaUsage"),
        ("pydantic_ai.usage", "RequestUsage"),
        ("pydantic_ai.usage", "RunUsage"),
        ("langchain_core.messages.ai", "UsageMetadata"),
        ("google.genai.types", "GenerateContentResponseUsageMetadata"),
        ("google.genai.types", "UsageMetadata"),
    ],
)
def test_every_count_of_the_sdks_class_is_known(module: str, name: str) -> None:
    """So that a release that adds one is noticed here before it is refused in a charge."""
    kind = getattr(pytest.importorskip(module), name)
    if hasattr(kind, "model_fields"):
        names = set(kind.model_fields)
    elif hasattr(kind, "__dataclass_fields__"):
        names = {field.name for field in fields(kind)}
    else:
        names = set(get_type_hints(kind))
    counts = {each for each in names if "token" in each or "cach" in each}
    assert counts
    assert any(counts <= form.fields.keys() for form in FORMS), counts


def test_an_anthropic_message_instead_of_its_usage_is_refused() -> None:
    types = pytest.importorskip("anthropic.types")
    message = types.Message.model_construct(id="m", usage=anthropic_message())
    with pytest.raises(InvalidValueError, match=r"Message is a response .* pass response\.usage\."):
        TokenUsage.of(message)


def test_a_langchain_message_instead_of_its_usage_is_refused() -> None:
    messages = pytest.importorskip("langchain_core.messages")
    message = messages.AIMessage("hello", usage_metadata=langchain_message())
    with pytest.raises(InvalidValueError, match=r"pass response\.usage_metadata\."):
        TokenUsage.of(message)


def test_a_pydantic_ai_response_without_usage_is_refused() -> None:
    usage = pytest.importorskip("pydantic_ai.usage").RequestUsage(unmeasured_requests=1)
    with pytest.raises(InvalidValueError, match="unmeasured_requests would be overlooked"):
        TokenUsage.of(usage)
