"""The calls that set budgets aside, claim goals and wake them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from goal_state.domain.goals import Goal
from goal_state.domain.hold_requests import ClaimGoal, ExpireHolds, Reserve, ResumeDue
from goal_state.domain.requests import Request
from goal_state.domain.values import check_time_ms
from goal_state.operations.hold import Hold

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["HoldOperations"]

Result = TypeVar("Result")

_RESUMED_AT_ONCE: Final = 100


class HoldOperations(ABC):
    """What goes before a charge: setting budgets aside, claiming a goal, and waking one whose limit ended."""

    @abstractmethod
    def apply(self, request: Request[Result]) -> Result:
        """Carries out a request and returns its result."""

    def reserve(
        self,
        thread_id: str,
        *,
        tokens: int = 0,
        usage: object = None,
        model: str | None = None,
        cost: Decimal | int | str | None = None,
        calls: int = 1,
        at_least: int | None = None,
        key: str | None = None,
        expires_in: float = 600.0,
        unknown: Literal["charge", "release"] = "charge",
        dispatched: bool = True,
        tags: Mapping[str, str] | None = None,
        turn_id: str | None = None,
        expected_goal_id: str | None = None,
        claim: int | None = None,
    ) -> Hold:
        """Sets a part of the goal's budgets, and of those above it, aside for a call that is to be made.

            with store.reserve("thread-1", tokens=12_000, at_least=4_000) as hold:
                reply = client.messages.create(max_tokens=hold.tokens - prompt_tokens, …)
                hold.settle(reply.usage, model=reply.model)

        However many calls run side by side, what is used and what is set aside never exceed a budget; only a
        settlement above its hold, a charge without one, or lowering the budget can.

        Args:
            thread_id: the conversation.
            tokens: the most that the call can use, input and output together.
            usage: instead of that, the most as a usage, so that input and output have their own prices.
            model: the model that will be called; what prices go by.
            cost: the most that it can cost, in the currency of the prices. Where it is left out they tell:
                of a usage by its parts, of tokens each at the model's dearest rate.
            calls: how many calls it is.
            at_least: how many tokens will do where not all are left; the cost shrinks with them.
            key: finds the same live hold again, after a crash too.
            expires_in: seconds after which it ends by itself, if nothing else ended it; up to 366 days. A
                settlement that comes later, but before anything else ended it, still charges what it says.
            unknown: what is charged of a call whose usage never becomes known: `"charge"`, all of it as an
                estimate, or `"release"`, nothing.
            dispatched: False where the call is not to be sent before `hold.dispatched()`: until then the hold
                of a process that died is free when it expires.
            tags: of its charge, as for `charge`.
            turn_id: the turn that will use it.
            expected_goal_id: reserve only of this goal.
            claim: the number of the caller's claim; it is refused once another owner has taken over.

        Returns:
            The hold. `was_found` tells that it had been reserved before, under its key.

        Raises:
            BudgetExceededError: so much is not left, or the goal or one above it is not active. It says whose
                budget it is, and whether waiting for other calls would help.
            UnknownPriceError: a cost budget bounds the call, and nobody knows its price.
            HoldEndedError: the hold of this key has ended.
            GoalNotFoundError: there is no goal.
            StaleGoalError: the goal is not the expected one.
            ClaimOvertakenError: another owner has claimed the goal since.
            InvalidValueError: a value is out of its bounds.
        """
        record, was_found = self.apply(
            Reserve(
                thread_id,
                tokens=tokens,
                usage=usage,
                model=model,
                cost=cost,
                calls=calls,
                at_least=at_least,
                key=key,
                expires_in=expires_in,
                unknown=unknown,
                dispatched=dispatched,
                tags=tags,
                turn_id=turn_id,
                expected_goal_id=expected_goal_id,
                claim=claim,
            )
        )
        return Hold(self.apply, record, was_found=was_found)

    def expire_holds(self) -> int:
        """Ends every hold that has expired, as the next change of its goal would: a call that may have been
        sent is charged with what was observed of it, else in full as an estimate.

        Returns:
            How many there were.
        """
        count = 0
        while some := self.apply(ExpireHolds()):
            count += some
        return count

    def claim(self, thread_id: str, owner: str, seconds: float) -> Goal:
        """Makes an owner the only one who runs the goal, for so many seconds from now; again, to go on.

        Its number, `goal.claim_number`, rises each time that another owner takes over, or the same one after
        its time, also from one goal of the thread to the next. Name it with what you do (`claim=`): what
        comes from an owner that was overtaken, as after a long pause, is refused.

        Args:
            thread_id: the conversation.
            owner: who runs it: 1 to 256 characters, the same in all its calls.
            seconds: from a millisecond to 366 days.

        Raises:
            ClaimHeldError: another owner has it.
            GoalNotFoundError: there is no goal.
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(ClaimGoal(thread_id, owner, seconds))

    def resume_due(self, now: datetime | None = None) -> list[Goal]:
        """Makes the `usage_limited` goals active again whose `resume_at` has come; `budget_limited` where a
        budget is reached. Of many who call it each goal is given to exactly one.

        Args:
            now: an aware datetime, by default the time of the call.

        Returns:
            The goals as they are now.

        Raises:
            InvalidValueError: the time has no time zone.
        """
        now_ms = None if now is None else check_time_ms("now", now)
        resumed: list[Goal] = []
        while some := self.apply(ResumeDue(now_ms, _RESUMED_AT_ONCE)):
            resumed += some
        return resumed
