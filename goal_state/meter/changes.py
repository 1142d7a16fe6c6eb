"""Changes of a metered goal: each first charges what is due."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeVar

from goal_state.domain.goals import KEEP, Goal, GoalStatus, Keep
from goal_state.operations.calls import call
from goal_state.storage.repository import GoalRepository

__all__ = ["GoalChanges"]

Result = TypeVar("Result")


class GoalChanges(ABC):
    """The calls of a meter that change its thread's goal."""

    thread_id: str
    """The conversation whose goal is metered."""

    @abstractmethod
    def _change(self, change: Callable[[GoalRepository, str | None], Result]) -> Result:
        """Makes a change of the goal, given the turn that runs, after what is due was charged."""

    # -- changes caused by the turn ----------------------------------------------------------------

    @call
    def create_goal(
        self,
        objective: str,
        *,
        token_budget: int | None = None,
        cost_budget: Decimal | int | str | None = None,
        call_budget: int | None = None,
        time_budget: float | None = None,
        deadline: datetime | None = None,
        warn_at: Iterable[float | Decimal] | None = None,
        parent: str | None = None,
    ) -> Goal:
        """The model makes a goal; it pays from now on. As `GoalStore.create`."""
        return self._change(
            lambda repository, turn_id: repository.create(
                self.thread_id,
                objective,
                token_budget=token_budget,
                cost_budget=cost_budget,
                call_budget=call_budget,
                time_budget=time_budget,
                deadline=deadline,
                warn_at=warn_at,
                parent=parent,
                turn_id=turn_id,
            )
        )

    @call
    def complete_goal(self) -> Goal:
        """The model has reached the goal, which takes its last charge first.

        Raises:
            GoalNotFoundError: there is no goal.
        """
        return self._change(
            lambda repository, turn_id: repository.set(
                self.thread_id, status=GoalStatus.COMPLETE, turn_id=turn_id
            )
        )

    @call
    def block_goal(self, reason: str | None = None) -> Goal:
        """The turn failed, or waits for somebody; the goal is blocked.

        Args:
            reason: kept on the goal while it is blocked, 1 to 4000 characters; never in an event.

        Raises:
            GoalNotFoundError: there is no goal.
            InvalidValueError: the reason is out of its bounds.
        """
        return self._change(
            lambda repository, turn_id: repository.set(
                self.thread_id, status=GoalStatus.BLOCKED, blocked_reason=reason, turn_id=turn_id
            )
        )

    @call
    def usage_limited(self, resume_at: datetime | None = None) -> Goal:
        """The provider refuses more usage for now.

        Args:
            resume_at: when it will take it again, if it said so; kept on the goal meanwhile.

        Raises:
            GoalNotFoundError: there is no goal.
            InvalidValueError: the time has no time zone.
        """
        return self._change(
            lambda repository, turn_id: repository.set(
                self.thread_id,
                status=GoalStatus.USAGE_LIMITED,
                resume_at=resume_at,
                turn_id=turn_id,
            )
        )

    # -- changes from outside ----------------------------------------------------------------------

    @call
    def set_goal(
        self,
        *,
        objective: str | Literal[Keep.KEEP] = KEEP,
        status: GoalStatus | str | Literal[Keep.KEEP] = KEEP,
        token_budget: int | Literal[Keep.KEEP] | None = KEEP,
        cost_budget: Decimal | int | str | Literal[Keep.KEEP] | None = KEEP,
        call_budget: int | Literal[Keep.KEEP] | None = KEEP,
        time_budget: float | Literal[Keep.KEEP] | None = KEEP,
        deadline: datetime | Literal[Keep.KEEP] | None = KEEP,
        warn_at: Iterable[float | Decimal] | Literal[Keep.KEEP] | None = KEEP,
        turn_id: str | None = None,
    ) -> Goal:
        """Somebody changes the goal, or makes one. As `GoalStore.set`; charges what is due first."""
        return self._change(
            lambda repository, _: repository.set(
                self.thread_id,
                objective=objective,
                status=status,
                token_budget=token_budget,
                cost_budget=cost_budget,
                call_budget=call_budget,
                time_budget=time_budget,
                deadline=deadline,
                warn_at=warn_at,
                turn_id=turn_id,
            )
        )

    @call
    def clear_goal(self, *, turn_id: str | None = None) -> Goal | None:
        """Somebody removes the goal. As `GoalStore.clear`; charges what is due first."""
        return self._change(lambda repository, _: repository.clear(self.thread_id, turn_id=turn_id))
