"""The forms of usage: which fields of which source are which of our counts.

A form is a source's way to report usage, told apart by the names of its fields. No SDK is imported.
Pure: no I/O, no SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

__all__ = ["ANTHROPIC", "CODEX", "FORMS", "Count", "Fields", "Form", "camel_case"]


class Count(IntEnum):
    """What a field says. Fields of one usage that say the same are added up; those that are named
    "again" repeat what another one says, so that the largest holds.
    """

    INPUT = 0
    CACHED = 1
    WRITTEN = 2
    OUTPUT = 3
    REASONING = 4
    TOTAL = 5
    CACHED_AGAIN = 6
    WRITTEN_AGAIN = 7
    WRITTEN_BY_LIFETIME = 8
    """The parts of what was written to the cache; they may stand for it, or beside it."""
    REASONING_BESIDE_OUTPUT = 9
    KNOWN = 10
    """Nothing that we count: a part of a figure that we have whole, or no tokens."""


_INPUT: Final = Count.INPUT
_CACHED: Final = Count.CACHED
_WRITTEN: Final = Count.WRITTEN
_OUTPUT: Final = Count.OUTPUT
_REASONING: Final = Count.REASONING
_TOTAL: Final = Count.TOTAL
_CACHED_AGAIN: Final = Count.CACHED_AGAIN
_WRITTEN_AGAIN: Final = Count.WRITTEN_AGAIN
_WRITTEN_BY_LIFETIME: Final = Count.WRITTEN_BY_LIFETIME
_REASONING_BESIDE_OUTPUT: Final = Count.REASONING_BESIDE_OUTPUT
_KNOWN: Final = Count.KNOWN

Fields: TypeAlias = Mapping[str, Count | Mapping[str, Count]]


class Form(NamedTuple):
    """How some sources report usage."""

    sources: str
    telling: str
    """The fields that tell it from others, as an error shows them."""
    fields: Fields
    input_has_cached: bool = True
    """Whether its input contains what was read from and written to the cache."""


def camel_case(name: str) -> str:
    """A name in snake_case as JSON writes it: `input_tokens` is `inputTokens`."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _in_camel_case(fields: Fields) -> Fields:
    return {
        camel_case(name): count
        if isinstance(count, Count)
        else {camel_case(n): c for n, c in count.items()}
        for name, count in fields.items()
    }


_LIFETIMES: Final = {
    "ephemeral_5m_input_tokens": _WRITTEN_BY_LIFETIME,
    "ephemeral_1h_input_tokens": _WRITTEN_BY_LIFETIME,
}
_GEMINI: Final[Fields] = {
    "prompt_token_count": _INPUT,
    "tool_use_prompt_token_count": _INPUT,
    "cached_content_token_count": _CACHED,
    "candidates_token_count": _OUTPUT,
    "response_token_count": _OUTPUT,  # a live session's name for it
    "thoughts_token_count": _REASONING_BESIDE_OUTPUT,
    "total_token_count": _TOTAL,
    "prompt_tokens_details": _KNOWN,
    "cache_tokens_details": _KNOWN,
    "candidates_tokens_details": _KNOWN,
    "response_tokens_details": _KNOWN,
    "tool_use_prompt_tokens_details": _KNOWN,
}
CODEX: Final[Fields] = {
    "input_tokens": _INPUT,
    "cached_input_tokens": _CACHED,
    "cache_write_input_tokens": _WRITTEN,
    "output_tokens": _OUTPUT,
    "reasoning_output_tokens": _REASONING,
    "total_tokens": _TOTAL,
}
ANTHROPIC: Final = Form(
    "Anthropic and the Claude SDK",
    "input_tokens without cached, cache_read_input_tokens, cache_creation_input_tokens",
    {
        "input_tokens": _INPUT,
        "cache_read_input_tokens": _CACHED,
        "cache_creation_input_tokens": _WRITTEN,
        "cache_creation": _LIFETIMES,
        "output_tokens": _OUTPUT,
        "output_tokens_details": {"thinking_tokens": _REASONING},
        "server_tool_use": _KNOWN,
        "iterations": _KNOWN,
        "fallback_credit": _KNOWN,
    },
    input_has_cached=False,
)
FORMS: Final = (
    Form(
        "OpenAI Responses and openai-agents",
        "input_tokens, input_tokens_details.cached_tokens",
        {
            "input_tokens": _INPUT,
            "input_tokens_details": {
                "cached_tokens": _CACHED,
                "cache_write_tokens": _WRITTEN,
                "cache_write_tokens_details": _KNOWN,
            },
            "output_tokens": _OUTPUT,
            "output_tokens_details": {"reasoning_tokens": _REASONING},
            "total_tokens": _TOTAL,
            "requests": _KNOWN,
            "request_usage_entries": _KNOWN,
        },
    ),
    ANTHROPIC,
    Form(
        "OpenAI Chat, litellm and DeepSeek",
        "prompt_tokens, prompt_tokens_details.cached_tokens or prompt_cache_hit_tokens",
        {
            "prompt_tokens": _INPUT,
            "prompt_tokens_details": {
                "cached_tokens": _CACHED,
                "cached_tokens_details": _KNOWN,
                "cache_write_tokens": _WRITTEN,
                "cache_creation_tokens": _WRITTEN_AGAIN,
                "cache_creation_input_tokens": _WRITTEN_AGAIN,
                "cache_creation_token_details": _KNOWN,
            },
            "prompt_cache_hit_tokens": _CACHED_AGAIN,
            "prompt_cache_miss_tokens": _KNOWN,
            "cached_tokens": _CACHED_AGAIN,
            "cache_read_input_tokens": _CACHED_AGAIN,
            "cache_creation_input_tokens": _WRITTEN_AGAIN,
            "cache_creation": _KNOWN,
            "completion_tokens": _OUTPUT,
            "completion_tokens_details": {"reasoning_tokens": _REASONING},
            "total_tokens": _TOTAL,
            "server_tool_use": _KNOWN,
        },
    ),
    Form(
        "pydantic-ai",
        "input_tokens, cache_read_tokens, cache_write_tokens",
        {
            "input_tokens": _INPUT,
            "input_audio_tokens": _KNOWN,
            "cache_read_tokens": _CACHED,
            "cache_audio_read_tokens": _KNOWN,
            "cache_write_tokens": _WRITTEN,
            "cache_write_1h_tokens": _KNOWN,
            "output_tokens": _OUTPUT,
            "output_reasoning_tokens": _REASONING,
            "output_audio_tokens": _KNOWN,
            "total_tokens": _TOTAL,
            "requests": _KNOWN,
            "tool_calls": _KNOWN,
            "details": _KNOWN,
        },
    ),
    Form(
        "LangChain",
        "input_tokens, input_token_details.cache_read",
        {
            "input_tokens": _INPUT,
            "input_token_details": {
                "cache_read": _CACHED,
                "flex_cache_read": _CACHED,
                "priority_cache_read": _CACHED,
                "cache_creation": _WRITTEN,
                "flex_cache_creation": _WRITTEN,
                "priority_cache_creation": _WRITTEN,
                **_LIFETIMES,
            },
            "output_tokens": _OUTPUT,
            "output_token_details": {
                "reasoning": _REASONING,
                "flex_reasoning": _REASONING,
                "priority_reasoning": _REASONING,
            },
            "total_tokens": _TOTAL,
        },
    ),
    Form(
        "OpenAI Realtime",
        "input_tokens, input_token_details.cached_tokens",
        {
            "input_tokens": _INPUT,
            "input_token_details": {"cached_tokens": _CACHED, "cached_tokens_details": _KNOWN},
            "output_tokens": _OUTPUT,
            "output_token_details": {"reasoning_tokens": _REASONING},
            "total_tokens": _TOTAL,
        },
    ),
    Form("Gemini and ADK", "prompt_token_count, cached_content_token_count", _GEMINI),
    Form("Gemini's JSON", "promptTokenCount, cachedContentTokenCount", _in_camel_case(_GEMINI)),
    Form("Codex rollouts", "input_tokens, cached_input_tokens", CODEX),
    Form("Codex clients", "inputTokens, cachedInputTokens", _in_camel_case(CODEX)),
    Form(
        "the Claude SDK's model_usage",
        "inputTokens without cached, cacheReadInputTokens",
        {
            "inputTokens": _INPUT,
            "cacheReadInputTokens": _CACHED,
            "cacheCreationInputTokens": _WRITTEN,
            "outputTokens": _OUTPUT,
            "maxOutputTokens": _KNOWN,
        },
        input_has_cached=False,
    ),
)
