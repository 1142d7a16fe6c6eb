"""Who pays for the calls that adapters of agent SDKs make: a context variable that a host sets."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Final, NamedTuple, Self

from goal_state.domain.tags import check_tags
from goal_state.domain.values import check_name, check_optional_name

__all__ = ["NamesSpending", "Spending", "SpendingBlock", "current_spending"]


class Spending(NamedTuple):
    """What pays for the model calls that are made now.

    Attributes:
        thread_id: the thread whose goal pays.
        turn_id: its turn, or None.
        tags: what the charges are tagged with, or None.
    """

    thread_id: str
    turn_id: str | None
    tags: Mapping[str, str] | None


_SPENDING: Final[ContextVar[Spending | None]] = ContextVar("goal_state_spending", default=None)


def current_spending() -> Spending | None:
    """What the innermost `spending` block around the caller says."""
    return _SPENDING.get()


class SpendingBlock:
    """The block of `store.spending`."""

    def __init__(self, spending: Spending) -> None:
        """Use `store.spending`."""
        self._spending = spending
        self._before: list[Token[Spending | None]] = []

    def __enter__(self) -> Self:
        self._before.append(_SPENDING.set(self._spending))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _SPENDING.reset(self._before.pop())


class NamesSpending:
    """What a store, awaited or not, says to the adapters of agent SDKs."""

    def spending(
        self,
        thread_id: str,
        *,
        turn_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> SpendingBlock:
        """Names the thread that pays for the model calls which adapters make inside a `with` block.

            with store.spending("thread-1"):
                agent.run_sync("Ship the parser")

        It holds for this task or thread and for the tasks that are begun inside (a context variable), so that
        it reaches the sub-agents and tools that an SDK calls. An inner block takes the place of an outer one.
        It is a plain `with` also for asyncio, and reads and writes nothing.

        Args:
            thread_id: the conversation.
            turn_id: its turn; the charges are attributed to it.
            tags: of the charges, as for `charge`.

        Raises:
            InvalidValueError: a value is out of its bounds.
        """
        check_tags(tags)
        return SpendingBlock(
            Spending(
                check_name("thread_id", thread_id),
                check_optional_name("turn_id", turn_id),
                None if tags is None else dict(tags),
            )
        )
