"""Which tokens of a usage a goal pays for. Pure: no I/O, no SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias, cast

from goal_state.domain.usage import TokenUsage
from goal_state.domain.values import check_amount, check_name
from goal_state.errors import InvalidValueError

__all__ = ["CountedTokens", "Counting", "CountingFunction"]

CountingFunction: TypeAlias = Callable[[TokenUsage], int]
"""How many tokens of a usage count: an int of 0 or more, the same for the same usage in every process."""


def _all_tokens(usage: TokenUsage) -> int:
    return usage.input_tokens + usage.output_tokens


def _uncached_tokens(usage: TokenUsage) -> int:
    return usage.goal_tokens


_OURS: Final[dict[str, CountingFunction]] = {"uncached": _uncached_tokens, "all": _all_tokens}


class CountedTokens:
    """Counts the tokens of a usage that a goal pays for; called with a usage, it returns how many.

    Attributes:
        name: `"uncached"`, `"all"`, or the name of the host's own function: what the database keeps.
    """

    __slots__ = ("_count", "name")

    def __init__(self, name: str, count: CountingFunction) -> None:
        """Use `CountedTokens.of`, which checks."""
        self.name: str = name
        self._count = count

    @classmethod
    def of(cls, value: object) -> CountedTokens:
        """From what a host says: `"uncached"` (input without cached, plus output), `"all"` (input, cached
        included, plus output), or a named function of a `TokenUsage`, which keeps its name for good.

        Raises:
            InvalidValueError: it is none of them, a lambda, or a function without a name or with one of ours.
        """
        if isinstance(value, CountedTokens):
            return value
        if isinstance(value, str) and value in _OURS:
            return cls(value, _OURS[value])
        names = " or ".join(map(repr, _OURS))
        if not callable(value):
            raise InvalidValueError(
                "counted_tokens",
                f"must be {names}, or a named function of a TokenUsage, not {value!r:.80}",
            )
        name: object = getattr(value, "__name__", None)
        if not isinstance(name, str) or name == "<lambda>":
            raise InvalidValueError(
                "counted_tokens",
                "must be a function with a name, for the database keeps it so that all who charge there"
                " count alike: define it with def",
            )
        if name in _OURS:
            raise InvalidValueError(
                "counted_tokens",
                f"is a function named {name!r}, which stands for one of ours: give it another name",
            )
        return cls(check_name("counted_tokens", name), cast("CountingFunction", value))

    @classmethod
    def as_stored(cls, name: str) -> CountedTokens:
        """From the name that a database keeps, for whoever has not the host's function at hand: then
        everything works but counting.
        """

        def refuse(_usage: TokenUsage) -> int:
            raise InvalidValueError(
                "counted_tokens",
                f"is the function {name!r}, which only the program has that owns the goals",
            )

        return cls(name, _OURS.get(name, refuse))

    def __call__(self, usage: TokenUsage) -> int:
        """How many tokens of a usage count. They may be 2^63 or more: the goal that is to pay refuses that.

        Raises:
            InvalidValueError: the host's function returned no int of 0 or more.
        """
        count = self._count(usage)
        if type(count) is int and count >= 0:
            return count
        try:
            return check_amount("counted_tokens", count)
        except InvalidValueError as error:
            raise InvalidValueError(
                "counted_tokens", f"{self.name}() returned a count that {error.problem}"
            ) from None

    def __repr__(self) -> str:
        return f"CountedTokens({self.name!r})"


Counting: TypeAlias = Literal["uncached", "all"] | CountingFunction
"""What a host says for `counted_tokens`."""
