"""Conversations that a provider keeps: a request names what it goes on from, and does not send it."""

from __future__ import annotations

from typing import Final

__all__ = ["Contexts"]

_MOST_REMEMBERED: Final = 4_096


class Contexts:
    """How many tokens a response had together with its prompt, by its id or its conversation's."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}

    def tokens(self, *names: str | None) -> int:
        """The tokens of what goes by these names."""
        return sum(self._tokens.get(name, 0) for name in names if name)

    def remember(self, tokens: int, *names: str | None) -> None:
        """Notes the tokens of what goes by these names from now on."""
        if len(self._tokens) >= _MOST_REMEMBERED:
            self._tokens.clear()  # other threads use it meanwhile; it is only an expectation
        self._tokens.update({name: tokens for name in names if name})
