"""Token counts as providers report them, and what of them a goal pays for. Pure: no I/O, no SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple, Self

from goal_state.domain.plain import plain_fields
from goal_state.domain.usage_reading import read_codex_usage, read_usage
from goal_state.domain.values import check_amount, check_name
from goal_state.errors import InvalidValueError

__all__ = ["ThreadUsage", "TokenUsage", "UsageBaseline"]


class _Derived(int):
    """The type of the default of `total_tokens`, told apart from any number by identity."""


_DERIVED: Final = _Derived(-1)


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one model response, or of many added up. Every count is an int from 0 to 2^63-1.

    Attributes:
        input_tokens: all input, the cached part included.
        cached_input_tokens: input that was read from the provider's cache.
        cache_write_input_tokens: input that was written to the provider's cache.
        output_tokens: all output, reasoning included.
        reasoning_output_tokens: output that was reasoning.
        total_tokens: the provider's own total; input plus output where it is left out.

    Raises:
        InvalidValueError: a count is no int, negative or 2^63 and more.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_output_tokens: int = 0
    total_tokens: int = _DERIVED

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if (value := getattr(self, name)) is not _DERIVED:
                object.__setattr__(self, name, check_amount(name, value))
        if self.total_tokens is _DERIVED:
            total = self.input_tokens + self.output_tokens
            object.__setattr__(self, "total_tokens", check_amount("total_tokens", total))

    @property
    def goal_tokens(self) -> int:
        """What a goal pays for by default (`counted_tokens="uncached"`): input that was not cached, and
        output.
        """
        return max(self.input_tokens - self.cached_input_tokens, 0) + max(self.output_tokens, 0)

    def is_below(self, other: TokenUsage) -> bool:
        """Whether fewer tokens went in and out than in another total."""
        return self.input_tokens + self.output_tokens < other.input_tokens + other.output_tokens

    @classmethod
    def of_valid(
        cls,
        input_tokens: int,
        cached_input_tokens: int,
        cache_write_input_tokens: int,
        output_tokens: int,
        reasoning_output_tokens: int,
        total_tokens: int,
    ) -> Self:
        """A usage from counts that are known to be within their bounds: those of rows, and differences."""
        usage = cls.__new__(cls)
        put = object.__setattr__
        put(usage, "input_tokens", input_tokens)
        put(usage, "cached_input_tokens", cached_input_tokens)
        put(usage, "cache_write_input_tokens", cache_write_input_tokens)
        put(usage, "output_tokens", output_tokens)
        put(usage, "reasoning_output_tokens", reasoning_output_tokens)
        put(usage, "total_tokens", total_tokens)
        return usage

    def counts(self) -> tuple[int, int, int, int, int, int]:
        """The counts in the order of the fields."""
        return (
            self.input_tokens,
            self.cached_input_tokens,
            self.cache_write_input_tokens,
            self.output_tokens,
            self.reasoning_output_tokens,
            self.total_tokens,
        )

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(*map(int.__add__, self.counts(), other.counts()))

    def __sub__(self, other: TokenUsage) -> TokenUsage:
        """The difference, field by field, never below 0."""
        a, b, c, d, e, f = map(int.__sub__, self.counts(), other.counts())
        return TokenUsage.of_valid(
            max(0, a),
            max(0, b),
            max(0, c),
            max(0, d),
            max(0, e),
            max(0, f),
        )

    @classmethod
    def of(cls, usage: object) -> TokenUsage:
        """From what a provider or an agent SDK reports, told apart by its own fields.

        Known are, as objects and as mappings, the usage of OpenAI (Responses, Chat, Realtime), openai-agents
        (a run's total), Anthropic and the Claude SDK, pydantic-ai, LangChain, litellm, DeepSeek, Gemini with
        ADK, and Codex; a `TokenUsage` comes back as it is. A count that is None or missing is 0.

        A field that none of them has is left as long as it cannot change what is charged: text, flags,
        prices, None, 0, and numbers of things that are not tokens. Refused are a number whose name speaks
        of tokens or a cache, any number at all where input or output is missing or 0, inside details one
        that speaks of a cache or is nearly one of those we read, and the fields of two sources in one usage.

        Raises:
            InvalidValueError: it is None, a response instead of its usage, of no known source or of several,
                has a field that would be overlooked (it is named, and so are the sources that are known), or
                a count is no int, negative or 2^63 and more.
        """
        return usage if isinstance(usage, TokenUsage) else TokenUsage.of_valid(*read_usage(usage))

    @classmethod
    def from_codex(cls, usage: object) -> TokenUsage:
        """From what Codex wrote, in snake_case or camelCase, maybe a newer one: as Codex itself does, it
        leaves every name that it does not know. `of` is for usage that is new.

        Raises:
            InvalidValueError: it is no mapping, has none of the names, or a count is malformed.
        """
        return TokenUsage.of_valid(*read_codex_usage(usage))

    def to_dict(self) -> dict[str, int]:
        """Ready for JSON: the counts by the names of the fields."""
        return plain_fields(self)

    def to_mapping(self) -> dict[str, int]:
        """The counts by their names in camelCase, as they are sent to clients."""
        return {
            "totalTokens": self.total_tokens,
            "inputTokens": self.input_tokens,
            "cachedInputTokens": self.cached_input_tokens,
            "cacheWriteInputTokens": self.cache_write_input_tokens,
            "outputTokens": self.output_tokens,
            "reasoningOutputTokens": self.reasoning_output_tokens,
        }


_COUNTS: Final = tuple(field.name for field in fields(TokenUsage))


@dataclass(frozen=True, slots=True)
class ThreadUsage:
    """What a thread has used.

    Attributes:
        total: since the thread began, as its provider counts it.
        last: by the last model response alone.
        model_context_window: the size of the model's context in tokens, or None if not known.
        turn_id: the turn that used it last, or None where none was named.

    Raises:
        InvalidValueError: a value is of another type, or out of its bounds.
    """

    total: TokenUsage
    last: TokenUsage = TokenUsage()
    model_context_window: int | None = None
    turn_id: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.total, TokenUsage):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError("total", "must be a TokenUsage")
        if not isinstance(self.last, TokenUsage):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError("last", "must be a TokenUsage")
        if (window := self.model_context_window) is not None:
            object.__setattr__(
                self, "model_context_window", check_amount("model_context_window", window)
            )
        if (turn_id := self.turn_id) is not None:
            object.__setattr__(self, "turn_id", check_name("turn_id", turn_id))

    @classmethod
    def from_mapping(cls, usage: Mapping[str, Any]) -> Self:
        """From `{total, last, modelContextWindow}` (sent to clients) or from
        `{total_token_usage, last_token_usage, model_context_window}` (as rollouts keep it). Neither names
        the turn.

        Raises:
            InvalidValueError: it is no mapping, has no total, or a count is malformed.
        """
        if not isinstance(usage, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError("usage", f"must be a mapping, not {type(usage).__name__}")
        total, last = (
            usage.get(f"{name}_token_usage", usage.get(f"{name}TokenUsage", usage.get(name)))
            for name in ("total", "last")
        )
        if total is None:
            raise InvalidValueError("usage", "must have total_token_usage or total")
        window = usage.get("model_context_window", usage.get("modelContextWindow"))
        return cls(
            TokenUsage.from_codex(total),
            TokenUsage() if last is None else TokenUsage.from_codex(last),
            window,
        )

    def of_turn(self, turn_id: str | None) -> ThreadUsage:
        """The same usage, of another turn.

        Raises:
            InvalidValueError: the turn id is out of its bounds.
        """
        if turn_id == self.turn_id:
            return self
        # This is on the way of a charge: what was checked once is not checked again.
        usage = ThreadUsage.__new__(ThreadUsage)
        put = object.__setattr__
        put(usage, "total", self.total)
        put(usage, "last", self.last)
        put(usage, "model_context_window", self.model_context_window)
        put(usage, "turn_id", None if turn_id is None else check_name("turn_id", turn_id))
        return usage

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return plain_fields(self)

    def to_mapping(self) -> dict[str, Any]:
        """`{total, last, modelContextWindow}`, as it is sent to clients, who are told the turn beside it."""
        return {
            "total": self.total.to_mapping(),
            "last": self.last.to_mapping(),
            "modelContextWindow": self.model_context_window,
        }


class UsageBaseline(NamedTuple):
    """What a count of a thread had come to when it was last reported: what of it a charge needs to know."""

    total: TokenUsage
    model_context_window: int | None
    turn_id: str | None
    goal_id: str | None
    """The goal that the thread had then, which owes what was used since, if it still takes charges."""
    epoch: int
    """How often the count has begun anew: each time that a lower total took its place."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return self._asdict() | {"total": self.total.to_dict()}
