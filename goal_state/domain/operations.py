"""The calls that change goals: one description for the store and for a host's own transaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, TypeVar

from goal_state.domain.goals import KEEP, Accounting, AccountingMode, Goal, GoalStatus, Keep
from goal_state.domain.requests import (
    ChangeGoal,
    Charge,
    ChargeMany,
    ClearGoal,
    CreateGoal,
    Reconcile,
    RecordTotal,
    Request,
    ResumeGoal,
    SetBaseline,
)
from goal_state.domain.usage import TokenUsage, TokenUsageInfo

__all__ = ["GoalOperations"]

Result = TypeVar("Result")


class GoalOperations(ABC):
    """Everything that changes goals. `GoalStore` runs each call in a transaction of its own;
    `GoalRepository` runs it in its host's.

    Common to all of them: a `RequestError` means that nothing was written; a `DatabaseError` means that
    the transaction was rolled back. `thread_id`, `turn_id`, `expected_goal_id` and `idempotency_key`
    are texts of 1 to 256 characters.
    """

    @abstractmethod
    def apply(self, request: Request[Result]) -> Result:
        """Carries out a request and returns its result."""

    def create(
        self,
        thread_id: str,
        objective: str,
        *,
        token_budget: int | None = None,
        status: GoalStatus | str = GoalStatus.ACTIVE,
        turn_id: str | None = None,
    ) -> Goal:
        """Makes a goal, where the thread has none or only a complete one.

        Args:
            thread_id: the conversation.
            objective: 1 to 4000 characters after stripping.
            token_budget: the tokens that it may use, from 1; None for no bound.
            status: the status to begin with.
            turn_id: the turn that caused it, None if it came from outside.

        Raises:
            GoalExistsError: the thread has a goal that is not complete.
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(
            CreateGoal(thread_id, objective, token_budget, status, turn_id, replace=False)
        )

    def replace(
        self,
        thread_id: str,
        objective: str,
        *,
        token_budget: int | None = None,
        status: GoalStatus | str = GoalStatus.ACTIVE,
        turn_id: str | None = None,
    ) -> Goal:
        """Makes a goal in any case: a new `goal_id`, no usage. The one that was there is gone.

        Arguments as for `create`.

        Raises:
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(
            CreateGoal(thread_id, objective, token_budget, status, turn_id, replace=True)
        )

    def set(
        self,
        thread_id: str,
        *,
        objective: str | Literal[Keep.KEEP] = KEEP,
        status: GoalStatus | str | Literal[Keep.KEEP] = KEEP,
        token_budget: int | Literal[Keep.KEEP] | None = KEEP,
        resume_at: datetime | None = None,
        blocked_reason: str | None = None,
        expected_goal_id: str | None = None,
        turn_id: str | None = None,
    ) -> Goal:
        """Changes a goal in place, keeping its `goal_id` and its usage; makes one where there is none.

        What is left out stays. The status that is stored can differ from the one asked for: a goal whose
        budget is spent becomes `budget_limited` instead of active, and one that is `budget_limited` does
        not become paused or blocked. A new budget alone never lifts `budget_limited`; see `resume`.

        Args:
            thread_id: the conversation.
            objective: a new objective; needed where there is no goal yet.
            status: the status asked for.
            token_budget: a new budget; None removes it.
            resume_at: with status `usage_limited`, when the limit ends (an aware datetime).
            blocked_reason: with status `blocked`, what the goal waits for, 1 to 4000 characters.
            expected_goal_id: change only this goal.
            turn_id: the turn that caused it, None if it came from outside.

        Raises:
            GoalNotFoundError: there is no goal, and no objective to make one.
            StaleGoalError: the goal is not the expected one.
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(
            ChangeGoal(
                thread_id,
                objective,
                status,
                token_budget,
                resume_at,
                blocked_reason,
                expected_goal_id,
                turn_id,
            )
        )

    def resume(
        self,
        thread_id: str,
        *,
        token_budget: int | Literal[Keep.KEEP] | None = KEEP,
        expected_goal_id: str | None = None,
        turn_id: str | None = None,
    ) -> Goal:
        """Makes a goal active again, raising (or removing) its budget in the same transaction.

        Arguments as for `set`.

        Raises:
            BudgetExhaustedError: it would still be at or over its budget.
            GoalNotFoundError: there is no goal.
            StaleGoalError: the goal is not the expected one.
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(ResumeGoal(thread_id, token_budget, expected_goal_id, turn_id))

    def charge(
        self,
        thread_id: str,
        *,
        tokens: int = 0,
        seconds: float = 0,
        mode: AccountingMode | str = AccountingMode.ACTIVE_ONLY,
        expected_goal_id: str | None = None,
        turn_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Accounting:
        """Adds usage to the thread's goal; a charge that fills the budget makes it `budget_limited`.

        A charge that no status accepts, that finds no goal or another one than expected, or that is of
        nothing (without a key), changes nothing; `applied` is False then. One of nothing with a key is
        recorded, so that the key is taken.

        Args:
            thread_id: the conversation.
            tokens: how many, from 0.
            seconds: active time, a finite number from 0, kept to the millisecond.
            mode: which statuses take the charge; see `AccountingMode`.
            expected_goal_id: charge only this goal, so that an old turn never pays into a new goal.
            turn_id: the turn that used it.
            idempotency_key: unique within the thread. A repeat with the same tokens charges nothing and
                returns the first result, with `duplicate` set, whatever its seconds.

        Raises:
            IdempotencyConflictError: the key was used before with other tokens. That charge stands, and
                nothing was added to it.
            UsageOverflowError: the goal's usage would reach 2^63.
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(
            Charge(
                thread_id,
                tokens=tokens,
                seconds=seconds,
                mode=mode,
                expected_goal_id=expected_goal_id,
                turn_id=turn_id,
                idempotency_key=idempotency_key,
            )
        )

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

    def record_total(
        self,
        thread_id: str,
        total: TokenUsage | TokenUsageInfo,
        *,
        seconds: float = 0,
        turn_id: str | None = None,
        count_id: str | None = None,
        mode: AccountingMode | str = AccountingMode.ACTIVE_ONLY,
        expected_goal_id: str | None = None,
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

        This is for totals. What one response used is charged with `charge`.

        Args:
            thread_id: the conversation.
            total: its cumulative usage; with a `TokenUsageInfo` the last response's part and the size of
                the context window are kept too.
            seconds: active time to charge with it, as for `charge`; where the total is not new (a repeat,
                a late one, or the first of a thread) neither is the time.
            turn_id: the turn that used it.
            count_id: what the total is counted in, where a thread's usage is counted from zero more than
                once: by each process, session, or attempt at a turn.
            mode: which statuses take the charge; see `AccountingMode`.
            expected_goal_id: charge only this goal.

        Raises:
            UsageOverflowError: the goal's usage would reach 2^63.
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(
            RecordTotal(thread_id, total, seconds, mode, expected_goal_id, turn_id, count_id)
        )

    def set_baseline(
        self,
        thread_id: str,
        total: TokenUsage | TokenUsageInfo,
        *,
        turn_id: str | None = None,
        count_id: str | None = None,
    ) -> None:
        """States what a thread has used so far (`TokenUsage()` for a new one); charges nothing. Also a
        lower total than the stored one is taken at its word.

        Args:
            thread_id: the conversation.
            total: its cumulative usage.
            turn_id: the turn that used it last.
            count_id: the count that it is of, as for `record_total`.

        Raises:
            InvalidValueError: a value is out of its bounds.
        """
        self.apply(SetBaseline(thread_id, total, turn_id, count_id))

    def reconcile(
        self,
        thread_id: str,
        total: TokenUsage | TokenUsageInfo,
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
            turn_id: the turn that used it; by default the one that used the baseline.
            count_id: the count that it is of, as for `record_total`.

        Raises:
            UsageOverflowError: the goal's usage would reach 2^63.
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(Reconcile(thread_id, total, turn_id, count_id))

    def clear(
        self, thread_id: str, *, expected_goal_id: str | None = None, turn_id: str | None = None
    ) -> Goal | None:
        """Removes the thread's goal.

        Args:
            thread_id: the conversation.
            expected_goal_id: remove only this goal.
            turn_id: the turn that caused it, None if it came from outside.

        Returns:
            The goal as it was; None if there was none, or another one than expected. Of many who clear
            at once exactly one gets it.

        Raises:
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(ClearGoal(thread_id, expected_goal_id, turn_id))
