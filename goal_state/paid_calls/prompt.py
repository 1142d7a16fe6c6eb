"""How many tokens a prompt may have, told from its size: no tokenizer is at hand for every model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

__all__ = ["prompt_tokens"]

# English has about four bytes a token, code and JSON about three, Chinese and Japanese three (one character).
_BYTES_PER_TOKEN: Final = 3
_TOKENS_PER_MEDIUM: Final = 2_000
"""An image, a sound or a file: providers count them by their size on the screen, not by their bytes."""
_LONGEST_WORD: Final = 4_096
"""A longer text without a blank is encoded bytes."""
_DEEPEST: Final = 64


def prompt_tokens(*parts: object) -> int:
    """An estimate, rather too high than too low, of the input tokens of what is sent: messages, tools and
    whatever else they hold, as an SDK has them: texts, mappings, lists, data classes, pydantic models.

    A text counts a token for every three bytes; an image or a file as a whole 2,000.
    """
    return sum(_tokens(part, ()) for part in parts)


def _tokens(value: Any, inside: tuple[object, ...]) -> int:
    """The tokens of a value inside of others, none of which it is itself."""
    if value is None or len(inside) > _DEEPEST or any(value is outer for outer in inside):
        return 0
    if isinstance(value, str):
        return _text_tokens(value)
    if isinstance(value, (bool, int, float)):
        return 1
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _TOKENS_PER_MEDIUM
    inside = (*inside, value)
    if isinstance(value, Mapping):
        return sum(
            _tokens(name, inside) + _tokens(item, inside)
            for name, item in cast("Mapping[Any, Any]", value).items()
        )
    if isinstance(value, (list, tuple, set, frozenset)):
        return sum(_tokens(item, inside) for item in cast("Iterable[Any]", value))
    if dataclasses.is_dataclass(value):
        return sum(
            _tokens(getattr(value, field.name), inside) for field in dataclasses.fields(value)
        )
    if callable(dump := getattr(value, "model_dump", None)):
        return _tokens(dump(exclude_none=True), inside)
    return 0


def _text_tokens(text: str) -> int:
    if text.startswith("data:") or (
        len(text) > _LONGEST_WORD and " " not in text[:_LONGEST_WORD] and text.isascii()
    ):
        return _TOKENS_PER_MEDIUM
    return -(-len(text.encode(errors="replace")) // _BYTES_PER_TOKEN)
