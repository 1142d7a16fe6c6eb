"""What a meter says, and what it knows besides the database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from goal_state.domain.budgets import BudgetKind
from goal_state.domain.goals import Goal
from goal_state.domain.plain import plain_fields
from goal_state.storage.ledger import EventLog

__all__ = ["Attempt", "ExhaustedBudget", "Reading", "State", "Turn", "exhausted_in"]


class ExhaustedBudget(NamedTuple):
    """A budget that is reached.

    Attributes:
        thread_id: whose: the goal's own thread, or that of one above it.
        kind: which of its budgets.
    """

    thread_id: str
    kind: BudgetKind


def exhausted_in(chain: Iterable[Goal]) -> tuple[ExhaustedBudget, ...]:
    """The budgets that are reached of a goal and of those above it."""
    return tuple(ExhaustedBudget(goal.thread_id, kind) for goal in chain for kind in goal.exhausted)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the meter did with a report.

    Attributes:
        goal: the thread's goal after it, or None.
        charged: whether the goal paid for something.
        budget_exhausted: True once for each time that a budget fills, with the first charge that a meter
            makes on the full budget: tell the model to wrap up. A goal that was resumed with a higher
            budget, and fills it, says so again.
        exhausted: the budgets that are reached, of the goal and of those above it, the goal's own first.
    """

    goal: Goal | None
    charged: bool
    budget_exhausted: bool
    exhausted: tuple[ExhaustedBudget, ...] = ()

    @property
    def over_budget(self) -> bool:
        """Whether any of these budgets is reached: True with every reading for as long as one is."""
        return bool(self.exhausted)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: every field, and `over_budget`."""
        return plain_fields(self) | {
            "exhausted": [each._asdict() for each in self.exhausted],
            "over_budget": self.over_budget,
        }


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn that runs, as it was started."""

    turn_id: str
    charge_tokens: bool
    count_id: str | None
    reports_totals: bool = False
    """Whether a total of it was recorded, which contains the responses before it."""


@dataclass(slots=True)
class State:
    """What a meter knows besides the database."""

    turn: Turn | None = None
    paying_goal_id: str | None = None
    """The goal that takes the charges of now: fixed when the turn starts or a goal becomes active."""
    marked_ns: int = 0
    """Up to here active time was charged, or is in the rest, or was nobody's."""
    rest_ns: int = 0
    """Active time that is still due."""
    rest_goal_id: str | None = None
    """The goal that owes it."""
    unheard_goal_id: str | None = None
    """A goal whose budget was found to be full by a call that did not come to tell it."""
    unpaid_keys: tuple[str, ...] = ()
    """Of responses for which no goal paid, so that no event tells that they were taken; the latest ones."""


@dataclass(slots=True)
class Attempt:
    """A call, and what it leaves. Whether it does is known once its transaction has ended, or (where an
    exception struck on the way back) once the log was asked.
    """

    state: State | None = None
    event_id: str | None = None
    """The last event that it wrote, if it wrote any."""
    position: int = 0
    exhausted_goal_id: str | None = None
    """The goal whose budget it found to be full."""
    is_committed: bool = False
    is_struck: bool = False

    def outcome(self, before: State, log: EventLog) -> State:
        """What the meter knows after the call, given what it knew before."""
        after = self.state
        if after is None:
            return before
        if not self.is_struck:
            return after if self.is_committed else before
        if self.is_committed or (
            self.event_id is not None and log.holds(self.event_id, self.position)
        ):
            # It charged, and its caller does not know: the time and the notice are not due again.
            # Its turn is left as it was, so that it can be repeated.
            return replace(
                after,
                turn=before.turn,
                paying_goal_id=after.paying_goal_id
                if (after.turn is None) is (before.turn is None)
                else before.paying_goal_id,
                unheard_goal_id=self.exhausted_goal_id or after.unheard_goal_id,
            )
        return before
