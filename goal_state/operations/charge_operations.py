"""The calls that charge usage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import TypeVar

from goal_state.domain.goals import Accounting, AccountingMode
from goal_state.domain.requests import (
    Charge,
    ChargeMany,
    Reconcile,
    RecordTotal,
    Request,
    SetBaseline,
)
from goal_state.domain.usage import ThreadUsage, TokenUsage
from goal_state.operations.calls import call
from goal_state.operations.hold import HoldHandle

__all__ = ["ChargeOperations"]

Result = TypeVar("Result")


class ChargeOperations(ABC):
    """What adds usage to a goal."""

    @abstractmethod
    def apply(self, request: Request[Result]) -> Result:
        """Carries out a request and returns its result."""

    @call
    def charge(
        self,
        thread_id: str,
        usage: object = None,
        *,
        tokens: int = 0,
        cost: Decimal | int | str | None = None,
        seconds: float = 0,
        model: str | None = None,
        mode: AccountingMode | str = AccountingMode.ACTIVE_ONLY,
        expected_goal_id: str | None = None,
        turn_id: str | None = None,
        response_id: str | None = None,
        idempotency_key: str | None = None,
        tags: Mapping[str, str] | None = None,
        claim: int | None = None,
        settles: HoldHandle | str | None = None,
    ) -> Accounting:
        """Adds usage to the thread's goal; a charge that fills a budget makes it `budget_limited`.

            store.charge("thread-1", response.usage, response_id=response.id)
            store.charge("thread-1", tokens=1_250, seconds=3.2, turn_id="turn-1")

        A charge that no status accepts, that finds no goal or another one than expected, or that is of
        nothing (without a key), changes nothing; `applied` is False then. One of nothing with a key is
        recorded, so that the key is taken.

        Args:
            thread_id: the conversation.
            usage: what one model response used: a `TokenUsage`, or the usage of a provider or an SDK that
                `TokenUsage.of` knows. How many of its tokens count is the store's `counted_tokens`.
            tokens: instead of a usage, how many tokens, from 0.
            cost: what it cost, in the currency of the prices: an int, a `Decimal` or text such as `"0.25"`.
                Where it is left out, the store's `prices` tell what a usage cost; else its tokens count as
                `unpriced_tokens`.
            seconds: active time, a finite number from 0, kept to the millisecond.
            model: the model that answered: what `prices` go by, and kept in the log.
            mode: which statuses take the charge; see `AccountingMode`.
            expected_goal_id: charge only this goal, so that an old turn never pays into a new goal.
            turn_id: the turn that used it.
            response_id: the provider's id of the response. It is a key, as an `idempotency_key` is, and a
                usage or tokens must come with it.
            idempotency_key: a key of your own for what is no response. A key is unique within its thread.
                A repeat with the same usage or tokens, and the same cost if one is named, charges nothing
                and returns the first result, with `duplicate` set, whatever its seconds or today's price.
            tags: up to 8 short texts by short names, such as `{"tool": "search"}`, to add up by later; see
                `breakdown`.
            claim: the number of the caller's claim; see `claim()`.
            settles: the hold (or its id) that this ends; it is charged as `Hold.settle` charges, whatever
                the mode.

        Raises:
            IdempotencyConflictError: the key was used before with other tokens, or another cost. That charge
                stands, and nothing was added to it.
            ClaimOvertakenError: another owner has claimed the goal since.
            HoldEndedError: the hold was settled with other figures, or released.
            HoldNotFoundError: there is no such hold of this thread.
            UsageOverflowError: a figure of the goal, or of one above it, would reach 2^63.
            InvalidValueError: a value is out of its bounds; the usage is of no source that is known, or has a
                field that would be overlooked; usage and tokens, or two different keys, were given at once.
        """
        return self.apply(
            Charge(
                thread_id,
                usage,
                tokens=tokens,
                cost=cost,
                seconds=seconds,
                model=settles.record.model
                if model is None and isinstance(settles, HoldHandle)
                else model,
                mode=mode,
                expected_goal_id=expected_goal_id,
                turn_id=turn_id,
                response_id=response_id,
                idempotency_key=idempotency_key,
                tags=tags,
                claim=claim,
                settles=settles.hold_id if isinstance(settles, HoldHandle) else settles,
            )
        )

    @call
    def charge_many(self, charges: Iterable[Charge]) -> list[Accounting]:
        """Makes many charges in one transaction, as `charge` would one after the other: all or none.

        Args:
            charges: in the order in which they are to be made.

        Returns:
            What became of each, in their order.

        Raises:
            InvalidValueError: something among them is no `Charge`.
            IdempotencyConflictError, UsageOverflowError: as for `charge`; none of them was made.
        """
        return self.apply(ChargeMany(charges))

    @call
    def record_total(
        self,
        thread_id: str,
        total: TokenUsage | ThreadUsage,
        *,
        seconds: float = 0,
        turn_id: str | None = None,
        count_id: str | None = None,
        calls: int = 0,
        cost: Decimal | int | str | None = None,
        model: str | None = None,
        mode: AccountingMode | str = AccountingMode.ACTIVE_ONLY,
        expected_goal_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        claim: int | None = None,
        settles: HoldHandle | str | None = None,
    ) -> Accounting:
        """Takes what a thread has used *since it began*, charges what is new in it and moves the stored
        baseline, in one transaction: repeated, or repeated after a crash, it charges once.

        The first total of a thread is its baseline and charges nothing. The baseline moves also when no
        goal took the charge, so that a later goal does not pay for it.

        A total below the baseline is the first of a new count if its turn has reported none before: it
        becomes the baseline, charges nothing and refunds nothing. In a turn that has, or without a turn,
        it is late, and changes nothing. With a `count_id` nothing is guessed: each count has a baseline of
        its own, on which what falls is late; the first count of a thread begins with its first total, and
        every further one at zero, so that its first total is charged whole.

        This is for totals alone. Most providers and SDKs report what *one response* used: charge that with
        `charge(thread_id, usage, response_id=…)`, for taken as totals most of it would charge nothing.

        Args:
            thread_id: the conversation.
            total: its cumulative usage; with a `ThreadUsage` the last response's part and the size of the
                context window are kept too.
            seconds: active time to charge with it, as for `charge`; where the total is not new (a repeat,
                a late one, or the first of a thread) neither is the time.
            turn_id: the turn that used it; by default the one that a `ThreadUsage` names.
            count_id: what the total is counted in, where a thread's usage is counted from zero more than
                once: by each process, session, or attempt at a turn.
            calls: how many model calls are new in it; like the time, they count only where the total is new.
            cost: what that which is new cost, as for `charge`; nobody else can tell, since prices are those
                of responses.
            model: the model that used it.
            mode: which statuses take the charge; see `AccountingMode`.
            expected_goal_id: charge only this goal.
            tags: as for `charge`.
            claim: likewise.
            settles: likewise.

        Raises:
            UsageOverflowError: the goal's usage would reach 2^63.
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(
            RecordTotal(
                thread_id,
                total,
                seconds,
                mode,
                expected_goal_id,
                turn_id,
                count_id,
                calls=calls,
                cost=cost,
                model=model,
                tags=tags,
                claim=claim,
                settles=settles.hold_id if isinstance(settles, HoldHandle) else settles,
            )
        )

    @call
    def set_baseline(
        self,
        thread_id: str,
        total: TokenUsage | ThreadUsage,
        *,
        turn_id: str | None = None,
        count_id: str | None = None,
    ) -> None:
        """States what a thread has used so far (`TokenUsage()` for a new one); charges nothing. Also a
        lower total than the stored one is taken at its word.

        Args:
            thread_id: the conversation.
            total: its cumulative usage.
            turn_id: the turn that used it last; by default the one that a `ThreadUsage` names.
            count_id: the count that it is of, as for `record_total`.

        Raises:
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(SetBaseline(thread_id, total, turn_id, count_id))

    @call
    def reconcile(
        self,
        thread_id: str,
        total: TokenUsage | ThreadUsage,
        *,
        turn_id: str | None = None,
        count_id: str | None = None,
    ) -> Accounting:
        """Brings the baseline up to a cumulative total that is known from elsewhere (a rollout, a host),
        for use when a thread starts again: a crash may have come between using tokens and charging them.

        The higher total wins. Where that is the given one, the difference is charged, once, to the goal
        in whose time the baseline was recorded if the thread still has it; a later goal never pays for
        it. On a thread (or a count) without a baseline the total becomes it, and nothing is charged.

        Args:
            thread_id: the conversation.
            total: its cumulative usage.
            turn_id: the turn that used it; by default the one that a `ThreadUsage` names, else the one
                that used the baseline.
            count_id: the count that it is of, as for `record_total`.

        Raises:
            UsageOverflowError: the goal's usage would reach 2^63.
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(Reconcile(thread_id, total, turn_id, count_id))
