"""Who pays for a model call, and how much is set aside for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final, NamedTuple

from goal_state.aio.store import AsyncGoalStore
from goal_state.domain.counting import CountedTokens
from goal_state.domain.goals import Goal
from goal_state.domain.usage import TokenUsage
from goal_state.domain.values import check_amount, check_optional_name
from goal_state.errors import InvalidValueError
from goal_state.operations.spending import current_spending
from goal_state.paid_calls.call import EXPIRES_IN_SECONDS, AsyncPaidCall, PaidCall
from goal_state.storage.repository import GoalRepository
from goal_state.store import GoalStore

__all__ = ["Payer"]

_LEAST_OUTPUT_TOKENS: Final = 256
"""An answer that is cut shorter than this is worth nothing: the call is refused instead."""
_MOST_REMEMBERED: Final = 4_096


class _Asked(NamedTuple):
    """What is to be set aside for a call."""

    counted: CountedTokens
    prompt_tokens: int
    cached_tokens: int
    """What of the prompt came from the provider's cache the last time, and will again unless that is late."""
    output_tokens: int
    least_output_tokens: int

    @property
    def most(self) -> TokenUsage:
        """The most that it can use: nothing comes from the cache."""
        return TokenUsage(self.prompt_tokens, output_tokens=self.output_tokens)

    @property
    def at_least(self) -> int | None:
        """How many tokens will do; None where it takes them all."""
        least = self._tokens(self.cached_tokens, self.least_output_tokens)
        return least if 0 < least < self.counted(self.most) else None

    def granted_output_tokens(self, granted: int) -> int:
        """The cap of the output that stays within what was granted."""
        if granted >= self.counted(self.most):
            return self.output_tokens
        cached = 0 if self._tokens(0, self.least_output_tokens) <= granted else self.cached_tokens
        least, most = min(1, self.output_tokens), self.output_tokens
        while least < most:  # how tokens count is the host's choice: more never count less
            middle = (least + most + 1) // 2
            if self._tokens(cached, middle) <= granted:
                least = middle
            else:
                most = middle - 1
        return least

    def _tokens(self, cached: int, output: int) -> int:
        return self.counted(TokenUsage(self.prompt_tokens, cached, output_tokens=output))


class _Paying(NamedTuple):
    """Who pays for a call."""

    thread_id: str
    parent: str | None
    """The thread of the goal that it is a child's of; None where it is nobody's."""
    turn_id: str | None
    tags: Mapping[str, str] | None

    def ensure_child(self, repository: GoalRepository) -> None:
        """Makes the child's goal where there is none, or one that was begun for an earlier goal of its
        parent's thread.

        Raises:
            GoalNotFoundError: the parent's thread has no goal.
        """
        if self.parent is not None and not _is_childs(
            repository.get(self.thread_id), repository.get(self.parent)
        ):
            objective = self.thread_id.removeprefix(f"{self.parent}/")
            repository.replace(self.thread_id, objective, parent=self.parent)

    def reservation(self, model: str | None, asked: _Asked) -> dict[str, Any]:
        """The arguments of `reserve`."""
        return {
            "thread_id": self.thread_id,
            "usage": asked.most,
            "model": model,
            "at_least": asked.at_least,
            "expires_in": EXPIRES_IN_SECONDS,
            "turn_id": self.turn_id,
            "tags": self.tags,
        }


def _is_childs(goal: Goal | None, parent: Goal | None) -> bool:
    """Whether a goal may pay for the child: one that was begun for an earlier goal of its parent's thread
    may not. What a host made itself, below another goal or none, may.
    """
    if goal is None or parent is None:
        return False
    return goal.parent_goal_id in (None, parent.goal_id) or goal.goal_id > parent.goal_id


class Payer:
    """Sets aside what model calls may use, on behalf of whoever is to pay for them.

    That is the thread of the argument; without one, that of the `store.spending` block around the call; else
    the one that the SDK names. With `child` it is a sub-agent's own goal below that thread's: the goal that
    you have made for it, with budgets of its own, or one without.

    Args:
        store: a `GoalStore` or an `AsyncGoalStore`; either serves calls of both kinds.
        thread_id: the thread whose goal pays.
        child: the name of a sub-agent. Its calls are paid by the goal of the thread `<thread>/<child>`. Where
            there is none, or it belongs to an earlier goal of the thread, one is made as a child of the
            thread's goal.
        output_tokens: the cap of the output of a call that names none itself.

    Raises:
        InvalidValueError: an argument is out of its bounds.
    """

    def __init__(
        self,
        store: GoalStore | AsyncGoalStore,
        *,
        thread_id: str | None = None,
        child: str | None = None,
        output_tokens: int = 4_096,
    ) -> None:
        if not isinstance(store, (GoalStore, AsyncGoalStore)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError(
                "store", f"must be a GoalStore or an AsyncGoalStore, not {type(store).__name__}"
            )
        self._given = store
        self._thread_id = check_optional_name("thread_id", thread_id)
        self._child = check_optional_name("child", child)
        self._output_tokens = check_amount("output_tokens", output_tokens)
        self._cached: dict[tuple[str, str | None], int] = {}

    @cached_property
    def _store(self) -> GoalStore:
        given = self._given
        return given if isinstance(given, GoalStore) else given.blocking

    @cached_property
    def _awaited(self) -> AsyncGoalStore:
        given = self._given
        return given if isinstance(given, AsyncGoalStore) else AsyncGoalStore(given)

    def begin(
        self,
        prompt_tokens: int,
        *,
        model: str | None,
        output_tokens: int | None = None,
        least_output_tokens: int = _LEAST_OUTPUT_TOKENS,
        thread_id: str | None = None,
    ) -> PaidCall:
        """Sets aside what a call may use: its prompt and its output. To be entered as a block.

        Args:
            prompt_tokens: about how many tokens the prompt has; see `goal_state.paid_calls.prompt_tokens`.
            model: the model that is called, as the prices know it.
            output_tokens: the cap of the output that the call names; the payer's where it names none.
            least_output_tokens: how short the output may be cut where little is left of the budget.
            thread_id: the thread that the SDK names, for where nobody else names one.

        Raises:
            BudgetExceededError: not even the shortest answer is left of a budget. Nothing was sent.
            UnknownPriceError, GoalNotFoundError: as for `GoalStore.reserve`.
            InvalidValueError: no thread is named, or a value is out of its bounds.
        """
        paying = self._paying(thread_id)
        if paying.parent is not None and not _is_childs(
            self._store.get(paying.thread_id), self._store.get(paying.parent)
        ):
            self._store.transact(paying.ensure_child)
        asked = self._asked(paying, model, prompt_tokens, output_tokens, least_output_tokens)
        hold = self._store.reserve(**paying.reservation(model, asked))
        return PaidCall(
            hold, asked.granted_output_tokens(hold.tokens), self._note(paying.thread_id, model)
        )

    async def begin_awaited(
        self,
        prompt_tokens: int,
        *,
        model: str | None,
        output_tokens: int | None = None,
        least_output_tokens: int = _LEAST_OUTPUT_TOKENS,
        thread_id: str | None = None,
    ) -> AsyncPaidCall:
        """As `begin`, for asyncio: `async with await payer.begin_awaited(…) as paid: …`."""
        paying = self._paying(thread_id)
        if paying.parent is not None and not _is_childs(
            await self._awaited.get(paying.thread_id), await self._awaited.get(paying.parent)
        ):
            await self._awaited.transact(paying.ensure_child)
        asked = self._asked(paying, model, prompt_tokens, output_tokens, least_output_tokens)
        hold = await self._awaited.reserve(**paying.reservation(model, asked))
        return AsyncPaidCall(
            hold, asked.granted_output_tokens(hold.tokens), self._note(paying.thread_id, model)
        )

    def _paying(self, sdk_thread_id: str | None) -> _Paying:
        spending = current_spending()
        thread_id = self._thread_id
        if thread_id is None and spending is not None:
            thread_id = spending.thread_id
        if thread_id is None:
            thread_id = sdk_thread_id
        if thread_id is None:
            raise InvalidValueError(
                "thread_id",
                "is not named, so that nobody would pay for the call: give the adapter a thread_id, or make"
                ' the call inside `with store.spending("…"):`',
            )
        turn_id, tags = (None, None) if spending is None else spending[1:]
        if self._child is None:
            return _Paying(thread_id, None, turn_id, tags)
        return _Paying(f"{thread_id}/{self._child}", thread_id, turn_id, tags)

    def _asked(
        self,
        paying: _Paying,
        model: str | None,
        prompt_tokens: int,
        output_tokens: int | None,
        least_output_tokens: int,
    ) -> _Asked:
        cap = self._output_tokens if output_tokens is None else output_tokens
        return _Asked(
            self._given.counted_tokens,
            prompt_tokens,
            min(prompt_tokens, self._cached.get((paying.thread_id, model), 0)),
            cap,
            min(cap, least_output_tokens),
        )

    def _note(self, thread_id: str, model: str | None) -> Callable[[TokenUsage], None]:
        def note(usage: TokenUsage) -> None:
            cached = usage.cached_input_tokens + usage.cache_write_input_tokens
            if len(self._cached) >= _MOST_REMEMBERED:
                self._cached.clear()  # other threads use it meanwhile; it is only an expectation
            self._cached[thread_id, model] = cached

        return note
