"""The calls that make, change and remove goals, and all that come with them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeVar

from goal_state.domain.goals import KEEP, Goal, GoalStatus, Keep
from goal_state.domain.requests import ChangeGoal, ClearGoal, CreateGoal, ResumeGoal
from goal_state.operations.calls import call
from goal_state.operations.charge_operations import ChargeOperations
from goal_state.operations.hold_operations import HoldOperations

__all__ = ["GoalOperations"]

Result = TypeVar("Result")


class GoalOperations(ChargeOperations, HoldOperations):
    """Everything that changes goals. `GoalStore` runs each call in a transaction of its own;
    `GoalRepository` runs it in its host's.

    Common to all of them: a `RequestError` means that nothing was written; a `DatabaseError` means that
    the transaction was rolled back. `thread_id`, `turn_id`, `expected_goal_id`, `response_id` and
    `idempotency_key` are texts of 1 to 256 characters.
    """

    @call
    def create(
        self,
        thread_id: str,
        objective: str,
        *,
        token_budget: int | None = None,
        cost_budget: Decimal | int | str | None = None,
        call_budget: int | None = None,
        time_budget: float | None = None,
        deadline: datetime | None = None,
        warn_at: Iterable[float | Decimal] | None = None,
        parent: str | None = None,
        status: GoalStatus | str = GoalStatus.ACTIVE,
        turn_id: str | None = None,
    ) -> Goal:
        """Makes a goal, where the thread has none or only a complete one.

        A budget that is reached makes the goal `budget_limited`; None stands for no bound.

        Args:
            thread_id: the conversation.
            objective: 1 to 4000 characters after stripping.
            token_budget: the tokens that it may use, from 1.
            cost_budget: what it may cost, in the currency of the prices: an int, a `Decimal` or text such as
                `"2.50"`.
            call_budget: the model calls that it may make, from 1.
            time_budget: the active time that it may take, in seconds.
            deadline: when it must be done (an aware datetime); the first change after it notices it.
            warn_at: fractions of these budgets, such as `(0.5, 0.8)`; an event tells when one is passed. Not
                for the deadline.
            parent: the thread of the goal that this one works for. That goal and those above it pay for
                this one's tokens, cost and calls, too. It is fixed for life.
            status: the status to begin with.
            turn_id: the turn that caused it, None if it came from outside.

        Raises:
            GoalExistsError: the thread has a goal that is not complete.
            GoalNotFoundError: the parent has no goal.
            TreeError: the parent is this thread or below it, or the tree would be more than 16 deep.
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(
            CreateGoal(
                thread_id,
                objective,
                status,
                parent,
                turn_id,
                where="free",
                token_budget=token_budget,
                cost_budget=cost_budget,
                call_budget=call_budget,
                time_budget=time_budget,
                deadline=deadline,
                warn_at=warn_at,
            )
        )

    @call
    def ensure(
        self,
        thread_id: str,
        objective: str,
        *,
        token_budget: int | None = None,
        cost_budget: Decimal | int | str | None = None,
        call_budget: int | None = None,
        time_budget: float | None = None,
        deadline: datetime | None = None,
        warn_at: Iterable[float | Decimal] | None = None,
        parent: str | None = None,
        status: GoalStatus | str = GoalStatus.ACTIVE,
        turn_id: str | None = None,
    ) -> Goal:
        """The goal that the thread has, a complete one too, as it is; else a new one.

        So a period or a tenant has a goal of its own, whoever asks first:
        `store.ensure("user:ada:2026-11", "November", cost_budget="20")`.

        Arguments and errors as for `create`; they count for a new goal alone.
        """
        return self.apply(
            CreateGoal(
                thread_id,
                objective,
                status,
                parent,
                turn_id,
                where="missing",
                token_budget=token_budget,
                cost_budget=cost_budget,
                call_budget=call_budget,
                time_budget=time_budget,
                deadline=deadline,
                warn_at=warn_at,
            )
        )

    @call
    def replace(
        self,
        thread_id: str,
        objective: str,
        *,
        token_budget: int | None = None,
        cost_budget: Decimal | int | str | None = None,
        call_budget: int | None = None,
        time_budget: float | None = None,
        deadline: datetime | None = None,
        warn_at: Iterable[float | Decimal] | None = None,
        parent: str | None = None,
        status: GoalStatus | str = GoalStatus.ACTIVE,
        turn_id: str | None = None,
    ) -> Goal:
        """Makes a goal in any case: a new `goal_id`, no usage. The one that was there is gone.

        Arguments and errors as for `create`, without `GoalExistsError`.
        """
        return self.apply(
            CreateGoal(
                thread_id,
                objective,
                status,
                parent,
                turn_id,
                where="anyway",
                token_budget=token_budget,
                cost_budget=cost_budget,
                call_budget=call_budget,
                time_budget=time_budget,
                deadline=deadline,
                warn_at=warn_at,
            )
        )

    @call
    def set(
        self,
        thread_id: str,
        *,
        objective: str | Literal[Keep.KEEP] = KEEP,
        status: GoalStatus | str | Literal[Keep.KEEP] = KEEP,
        token_budget: int | Literal[Keep.KEEP] | None = KEEP,
        cost_budget: Decimal | int | str | Literal[Keep.KEEP] | None = KEEP,
        call_budget: int | Literal[Keep.KEEP] | None = KEEP,
        time_budget: float | Literal[Keep.KEEP] | None = KEEP,
        deadline: datetime | Literal[Keep.KEEP] | None = KEEP,
        warn_at: Iterable[float | Decimal] | Literal[Keep.KEEP] | None = KEEP,
        resume_at: datetime | None = None,
        blocked_reason: str | None = None,
        expected_goal_id: str | None = None,
        turn_id: str | None = None,
        claim: int | None = None,
    ) -> Goal:
        """Changes a goal in place, keeping its `goal_id` and its usage; makes one where there is none.

        What is left out stays. The status that is stored can differ from the one asked for: a goal of which a
        budget is reached becomes `budget_limited` instead of active, and one that is `budget_limited` does
        not become paused or blocked. New budgets alone never lift `budget_limited`; see `resume`.

        Args:
            thread_id: the conversation.
            objective: a new objective; needed where there is no goal yet.
            status: the status asked for.
            token_budget: a new budget, as for `create`; None removes it.
            cost_budget: likewise.
            call_budget: likewise.
            time_budget: likewise.
            deadline: likewise.
            warn_at: likewise.
            resume_at: with status `usage_limited`, when the limit ends (an aware datetime).
            blocked_reason: with status `blocked`, what the goal waits for, 1 to 4000 characters.
            expected_goal_id: change only this goal.
            turn_id: the turn that caused it, None if it came from outside.
            claim: the number of the caller's claim; see `claim()`.

        Raises:
            GoalNotFoundError: there is no goal, and no objective to make one.
            StaleGoalError: the goal is not the expected one.
            ClaimOvertakenError: another owner has claimed the goal since.
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(
            ChangeGoal(
                thread_id,
                objective,
                status,
                resume_at,
                blocked_reason,
                expected_goal_id,
                turn_id,
                claim,
                token_budget=token_budget,
                cost_budget=cost_budget,
                call_budget=call_budget,
                time_budget=time_budget,
                deadline=deadline,
                warn_at=warn_at,
            )
        )

    @call
    def resume(
        self,
        thread_id: str,
        *,
        token_budget: int | Literal[Keep.KEEP] | None = KEEP,
        cost_budget: Decimal | int | str | Literal[Keep.KEEP] | None = KEEP,
        call_budget: int | Literal[Keep.KEEP] | None = KEEP,
        time_budget: float | Literal[Keep.KEEP] | None = KEEP,
        deadline: datetime | Literal[Keep.KEEP] | None = KEEP,
        warn_at: Iterable[float | Decimal] | Literal[Keep.KEEP] | None = KEEP,
        expected_goal_id: str | None = None,
        turn_id: str | None = None,
        claim: int | None = None,
    ) -> Goal:
        """Makes a goal active again, raising (or removing) any of its budgets in the same transaction.

        Arguments as for `set`.

        Raises:
            BudgetExhaustedError: one of its budgets would still be reached.
            GoalNotFoundError: there is no goal.
            StaleGoalError: the goal is not the expected one.
            ClaimOvertakenError: another owner has claimed the goal since.
            InvalidValueError: a value is out of its bounds.
        """
        return self.apply(
            ResumeGoal(
                thread_id,
                expected_goal_id,
                turn_id,
                claim,
                token_budget=token_budget,
                cost_budget=cost_budget,
                call_budget=call_budget,
                time_budget=time_budget,
                deadline=deadline,
                warn_at=warn_at,
            )
        )

    @call
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
