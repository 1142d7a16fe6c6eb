"""What `TokenUsage.of` makes of the usage of each source: recorded as mappings, and as objects like theirs.

The classes themselves are in `tests/sdks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final

import pytest

from goal_state import InvalidValueError, TokenUsage
from goal_state.domain.usage_forms import FORMS, Count

RESPONSES: Final = {
    "input_tokens": 120,
    "input_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 5},
    "output_tokens": 30,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 150,
}
CHAT: Final = {
    "prompt_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 100, "audio_tokens": 7, "cache_write_tokens": 5},
    "completion_tokens": 30,
    "completion_tokens_details": {"reasoning_tokens": 20, "accepted_prediction_tokens": 3},
    "total_tokens": 150,
}
AGENTS: Final = {**RESPONSES, "requests": 2, "request_usage_entries": [RESPONSES]}
ANTHROPIC: Final = {
    "input_tokens": 15,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 5,
    "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 30,
    "output_tokens_details": {"thinking_tokens": 20},
    "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
    "service_tier": "standard",
    "inference_geo": "not_available",
    "speed": "standard",
}
PYDANTIC_AI: Final = {
    "requests": 2,
    "tool_calls": 3,
    "input_tokens": 120,
    "cache_read_tokens": 100,
    "cache_write_tokens": 5,
    "cache_write_1h_tokens": 1,
    "input_audio_tokens": 7,
    "cache_audio_read_tokens": 4,
    "output_tokens": 30,
    "output_reasoning_tokens": 20,
    "output_audio_tokens": 2,
    "audio_seconds": 1.5,
    "details": {"cache_creation_input_tokens": 5, "reasoning_tokens": 20},
}
LANGCHAIN: Final = {
    "input_tokens": 120,
    "input_token_details": {"cache_read": 100, "cache_creation": 5, "audio": 7},
    "output_tokens": 30,
    "output_token_details": {"reasoning": 20, "audio": 2},
    "total_tokens": 150,
}
LITELLM: Final = {
    "prompt_tokens": 120,
    "prompt_tokens_details": {
        "cached_tokens": 100,
        "cache_write_tokens": 5,
        "cache_creation_tokens": 5,
        "cache_creation_token_details": {"ephemeral_5m_input_tokens": 5},
        "text_tokens": 15,
    },
    "completion_tokens": 30,
    "completion_tokens_details": {"reasoning_tokens": 20, "text_tokens": 10},
    "total_tokens": 150,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 5,
    "cost": 0.25,
}
DEEPSEEK: Final = {
    "prompt_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 100},
    "prompt_cache_hit_tokens": 100,
    "prompt_cache_miss_tokens": 20,
    "completion_tokens": 30,
    "completion_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 150,
}
GEMINI: Final = {
    "prompt_token_count": 90,
    "tool_use_prompt_token_count": 30,
    "cached_content_token_count": 100,
    "candidates_token_count": 10,
    "thoughts_token_count": 20,
    "total_token_count": 150,
    "prompt_tokens_details": [{"modality": "TEXT", "token_count": 90}],
    "cache_tokens_details": [{"modality": "TEXT", "token_count": 100}],
    "traffic_type": "ON_DEMAND",
}
GEMINI_JSON: Final = {
    "promptTokenCount": 90,
    "toolUsePromptTokenCount": 30,
    "cachedContentTokenCount": 100,
    "candidatesTokenCount": 10,
    "thoughtsTokenCount": 20,
    "totalTokenCount": 150,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 90}],
    "trafficType": "ON_DEMAND",
}
CODEX: Final = {
    "input_tokens": 120,
    "cached_input_tokens": 100,
    "cache_write_input_tokens": 5,
    "output_tokens": 30,
    "reasoning_output_tokens": 20,
    "total_tokens": 150,
}
MODEL_USAGE: Final = {
    "inputTokens": 15,
    "cacheReadInputTokens": 100,
    "cacheCreationInputTokens": 5,
    "outputTokens": 30,
    "webSearchRequests": 2,
    "costUSD": 0.25,
    "contextWindow": 200_000,
    "maxOutputTokens": 32_000,
}

ALL: Final = TokenUsage(120, 100, 5, 30, 20, 150)
WITHOUT_WRITES: Final = TokenUsage(120, 100, 0, 30, 20, 150)
SOURCES: Final = {
    "Responses": (RESPONSES, ALL),
    "Chat": (CHAT, ALL),
    "openai-agents": (AGENTS, ALL),
    "Anthropic": (ANTHROPIC, ALL),
    "pydantic-ai": (PYDANTIC_AI, ALL),
    "LangChain": (LANGCHAIN, ALL),
    "litellm": (LITELLM, ALL),
    "DeepSeek": (DEEPSEEK, WITHOUT_WRITES),
    "Gemini": (GEMINI, WITHOUT_WRITES),
    "Gemini's JSON": (GEMINI_JSON, WITHOUT_WRITES),
    "Codex rollout": (CODEX, ALL),
    "Codex client": (ALL.to_mapping(), ALL),
    "Claude's model_usage": (MODEL_USAGE, TokenUsage(120, 100, 5, 30, 0, 150)),
}
BARE: Final = {"input_tokens": 10, "output_tokens": 5}


def as_object(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{key: as_object(part) for key, part in value.items()})
    return [as_object(part) for part in value] if isinstance(value, list) else value


def refused(usage: object) -> str:
    with pytest.raises(InvalidValueError) as caught:
        TokenUsage.of(usage)
    assert caught.value.field == "usage"
    return caught.value.problem


# -- what is taken -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [dict, MappingProxyType, as_object])
@pytest.mark.parametrize("source", SOURCES)
def test_usage_of_a_known_source_is_read_by_its_fields(
    source: str, form: Callable[[Any], Any]
) -> None:
    usage, expected = SOURCES[source]
    assert TokenUsage.of(form(usage)) == expected


def test_a_token_usage_comes_back_as_it_is() -> None:
    assert TokenUsage.of(ALL) is ALL


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (BARE, TokenUsage(10, 0, 0, 5)),
        ({**BARE, "total_tokens": 15}, TokenUsage(10, 0, 0, 5)),
        ({"input_tokens": 10, "output_tokens": None}, TokenUsage(10)),
        ({"prompt_tokens": 0, "completion_tokens": None}, TokenUsage()),
        ({"prompt_tokens": 8, "total_tokens": 8}, TokenUsage(8)),
        (
            {**BARE, "input_tokens_details": None, "output_tokens_details": {}},
            TokenUsage(10, 0, 0, 5),
        ),
        ({**BARE, "input_tokens_details": {"cached_tokens": None}}, TokenUsage(10, 0, 0, 5)),
        ({**BARE, "cache_read_input_tokens": None}, TokenUsage(10, 0, 0, 5)),
        ({**BARE, "cache_read_input_tokens": 90}, TokenUsage(100, 90, 0, 5)),
        ({**BARE, "input_tokens_details": {"cached_tokens": 9}}, TokenUsage(10, 9, 0, 5)),
        ({**BARE, "cache_read_tokens": 9}, TokenUsage(10, 9, 0, 5)),
        ({**BARE, "input_token_details": {"cache_read": 9}}, TokenUsage(10, 9, 0, 5)),
        ({**BARE, "input_token_details": {"cached_tokens": 9}}, TokenUsage(10, 9, 0, 5)),
        ({**BARE, "cached_input_tokens": 9}, TokenUsage(10, 9, 0, 5)),
        ({"prompt_tokens": 10, "prompt_cache_hit_tokens": 9}, TokenUsage(10, 9)),
        ({"prompt_tokens": 10, "cached_tokens": 9}, TokenUsage(10, 9)),
        ({"candidates_token_count": 3, "thoughts_token_count": 4}, TokenUsage(0, 0, 0, 7, 4)),
    ],
)
def test_usage_with_parts_missing_is_what_is_there(
    usage: dict[str, Any], expected: TokenUsage
) -> None:
    assert TokenUsage.of(usage) == expected
    assert TokenUsage.of(as_object(usage)) == expected


def test_anthropics_cache_writes_without_their_sum_are_added_up() -> None:
    lifetimes = {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4}
    assert TokenUsage.of({**BARE, "cache_creation": lifetimes}) == TokenUsage(17, 0, 7, 5)


def test_langchains_cache_writes_by_lifetime_stand_beside_the_general_ones() -> None:
    details = {"cache_creation": 1, "ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 3}
    assert TokenUsage.of({**BARE, "input_token_details": details}) == TokenUsage(10, 0, 6, 5)


def test_langchains_figures_of_several_service_tiers_are_added_up() -> None:
    details = {"cache_read": 1, "flex_cache_read": 2, "flex": 3}
    assert TokenUsage.of({**BARE, "input_token_details": details}) == TokenUsage(10, 3, 0, 5)


def test_what_several_fields_repeat_is_counted_once() -> None:
    usage = {
        "prompt_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_creation_tokens": 7},
        "cache_creation_input_tokens": 7,
        "prompt_cache_hit_tokens": 60,
        "cache_read_input_tokens": 60,
    }
    assert TokenUsage.of(usage) == TokenUsage(100, 60, 7)


def test_anthropics_compactions_and_advisors_are_paid_for_too() -> None:
    message = {"type": "message", "input_tokens": 15, "output_tokens": 30}
    compaction = {
        "type": "compaction",
        "input_tokens": 1000,
        "cache_read_input_tokens": 200,
        "cache_creation_input_tokens": 0,
        "output_tokens": 50,
    }
    advisor = {"type": "advisor_message", "model": "m", "input_tokens": 7, "output_tokens": 3}
    usage = {**ANTHROPIC, "iterations": [message, compaction, advisor]}
    assert TokenUsage.of(usage) == TokenUsage(1327, 300, 5, 83, 20, 1410)
    assert TokenUsage.of(as_object(usage)) == TokenUsage(1327, 300, 5, 83, 20, 1410)


def test_a_dataclass_that_keeps_only_what_it_was_given_has_its_defaults_too() -> None:
    @dataclass(init=False)
    class Usage:
        input_tokens: int = 0
        output_tokens: int = 0

    assert TokenUsage.of(Usage()) == TokenUsage()


def test_an_object_with_slots_is_read() -> None:
    @dataclass(slots=True)
    class Usage:
        input_tokens: int
        output_tokens: int
        cache_read_tokens: int

    assert TokenUsage.of(Usage(10, 5, 9)) == TokenUsage(10, 9, 0, 5)


# -- what is left ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"service_tier": "priority", "is_byok": True, "cost": 0.25, "speed": None},
        {"duration_ms": 812, "num_search_queries": 3, "timings": {"queued_ms": 4}},
        {"cache_future_tokens": 0, "future_token_details": {"a_tokens": 0, "b": [0]}},
        {"future_tokens": None, "_raw": {"input_tokens": 99}},
        {"input_tokens_details": {"video_tokens": 5, "cached_tokens": 0}},
    ],
)
def test_a_field_that_cannot_change_the_charge_is_left(more: dict[str, Any]) -> None:
    assert TokenUsage.of({**BARE, **more}) == TokenUsage(10, 0, 0, 5)
    assert TokenUsage.of(as_object({**BARE, **more})) == TokenUsage(10, 0, 0, 5)


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "named"),
    [
        ({**BARE, "cache_read_token": 9}, "cache_read_token"),
        ({**BARE, "cacheRead": 9}, "cacheRead"),
        ({**BARE, "input_tokens_detail": {"cached": 9}}, "input_tokens_detail.cached"),
        ({**BARE, "future": {"cache": [{"hits": 9}]}}, "future.cache.0.hits"),
        (
            {**BARE, "input_tokens_details": {"cached_token": 9}},
            "input_tokens_details.cached_token",
        ),
        (
            {**BARE, "input_tokens_details": {"cahced_tokens": 9}},
            "input_tokens_details.cahced_tokens",
        ),
        ({**BARE, "input_token_details": {"cache_reads": 9}}, "input_token_details.cache_reads"),
        ({"prompt_tokens": 9, "completion_token": 5}, "completion_token"),
        ({"input_tokens": 9, "ouput": 5}, "ouput"),
        ({"input_tokens": 0, "output_tokens": 0, "unmeasured_requests": 1}, "unmeasured_requests"),
        ({"prompt_tokens": 9, "completion_tokens": 1, "reasoning_tokens": 7}, "reasoning_tokens"),
    ],
)
def test_a_count_that_would_be_overlooked_is_refused_by_name(
    usage: dict[str, Any], named: str
) -> None:
    assert f" {named} would be overlooked" in refused(usage)
    assert f" {named} would be overlooked" in refused(as_object(usage))


@pytest.mark.parametrize(
    "usage",
    [
        {**BARE, "cache_read_input_tokens": 9, "input_tokens_details": {"cached_tokens": 9}},
        {**BARE, "cache_read_input_tokens": 9, "cache_read_tokens": 9},
        {**BARE, "cache_read_input_tokens": 0, "total_tokens": 15},
        {**BARE, "prompt_tokens": 10},
        {**BARE, "inputTokens": 10},
        {**BARE, "input_token_details": {"cache_read": 1, "cached_tokens": 1}},
        {**BARE, "output_tokens_details": {"thinking_tokens": 1, "reasoning_tokens": 1}},
        {**BARE, "input_tokens_details": 9},
        {"prompt_tokens": 10, "prompt_tokens_details": [{"cached_tokens": 9}]},
        {"inputTokens": 1, "cacheReadInputTokens": 2, "cacheWriteInputTokens": 3},
    ],
)
def test_fields_of_two_sources_in_one_usage_are_refused(usage: dict[str, Any]) -> None:
    assert "means nothing" in refused(usage)


def test_what_does_not_fit_is_named_with_the_source_that_fits_best() -> None:
    problem = refused({**ANTHROPIC, "input_tokens_details": {"cached_tokens": 9}})
    assert "looks like Anthropic and the Claude SDK, where input_tokens_details" in problem


@pytest.mark.parametrize(
    "usage",
    [{}, {"tokens": 5}, {"input_tokens": None}, {"total_tokens": 5}, {"requests": 1}, object(), 5, True,
     "10", b"10", [], [BARE], TokenUsage, SimpleNamespace(), {"cache_read_input_tokens": 5}],
)  # fmt: skip
def test_what_is_no_usage_is_told_what_is_taken(usage: object) -> None:
    problem = refused(usage)
    assert problem.startswith("must be one that we know: ")
    for form in FORMS:
        assert f"{form.sources} ({form.telling})" in problem


def test_none_is_told_that_the_response_has_no_usage() -> None:
    assert "a response without one, such as a stream" in refused(None)


@pytest.mark.parametrize(
    ("response", "advice"),
    [
        (SimpleNamespace(id="r", usage=as_object(ANTHROPIC)), "pass response.usage."),
        ({"id": "r", "usage": RESPONSES}, "pass response.usage."),
        (SimpleNamespace(usage_metadata=LANGCHAIN), "pass response.usage_metadata."),
        ({"candidates": [], "usageMetadata": GEMINI_JSON}, "pass response.usageMetadata."),
        (SimpleNamespace(usage=lambda: PYDANTIC_AI), "pass response.usage()."),
    ],
)
def test_a_response_instead_of_its_usage_is_told_what_to_pass(
    response: object, advice: str
) -> None:
    assert advice in refused(response)


@pytest.mark.parametrize("value", [-1, 1.5, "5", True, 2**63])
@pytest.mark.parametrize(
    ("usage", "field"),
    [
        ({"input_tokens": "?"}, "input_tokens"),
        ({"input_tokens": 5, "output_tokens": "?"}, "output_tokens"),
        ({**BARE, "cache_read_input_tokens": "?"}, "cache_read_input_tokens"),
        (
            {**BARE, "input_tokens_details": {"cached_tokens": "?"}},
            "input_tokens_details.cached_tokens",
        ),
        ({"prompt_tokens": 5, "prompt_cache_hit_tokens": "?"}, "prompt_cache_hit_tokens"),
    ],
)
def test_a_malformed_count_is_refused_by_name(
    usage: dict[str, Any], field: str, value: object
) -> None:
    def given(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: given(inner) for key, inner in part.items()}
        return value if part == "?" else part

    with pytest.raises(InvalidValueError) as caught:
        TokenUsage.of(given(usage))
    assert caught.value.field == field


def test_figures_that_add_up_to_2_to_the_63_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="total_tokens: must be below"):
        TokenUsage.of({**BARE, "cache_read_input_tokens": 2**63 - 1})


@pytest.mark.parametrize("iterations", [5, "x", [5], [{"type": "dream"}], [{"type": "compaction"}]])
def test_iterations_that_are_not_understood_are_refused(iterations: object) -> None:
    assert "iteration" in refused({**ANTHROPIC, "iterations": iterations})


# -- the table ---------------------------------------------------------------------------------------


def test_forms_that_share_a_side_mean_the_same_by_all_that_they_share() -> None:
    """So that a usage that fits several is read alike by each, whichever is taken."""
    for one in FORMS:
        for other in FORMS:
            shared = one.fields.keys() & other.fields.keys()
            meanings = [(one.fields[name], other.fields[name]) for name in shared]
            if not {Count.INPUT, Count.OUTPUT} & {
                mine for mine, _ in meanings if isinstance(mine, Count)
            }:
                continue
            for mine, its in meanings:
                if isinstance(mine, Count) or isinstance(its, Count):
                    assert mine is its
                else:
                    assert all(mine[part] is its[part] for part in mine.keys() & its.keys())
