"""The life of a goal: how it begins, changes, is claimed, and ends."""

from __future__ import annotations

from typing import Any, Final

from goal_state.domain.amounts import Amounts
from goal_state.domain.budgets import BudgetKind, budget_uses, is_exhausted, shown_amount
from goal_state.domain.events import FIGURES, EventKind
from goal_state.domain.goals import (
    KEEP,
    MAX_DEPTH,
    Goal,
    GoalStatus,
    requested_status,
    status_by_budget,
)
from goal_state.domain.hold_requests import ClaimGoal, ResumeDue
from goal_state.domain.records import changed
from goal_state.domain.requests import (
    ChangeGoal,
    ClearGoal,
    CreateGoal,
    ResumeGoal,
    ThreadRequest,
)
from goal_state.errors import (
    BudgetExhaustedError,
    ClaimHeldError,
    GoalExistsError,
    GoalNotFoundError,
    StaleGoalError,
    TreeError,
)
from goal_state.storage import wall_clock
from goal_state.storage.baselines import UsageLog
from goal_state.storage.charges import check_claimed
from goal_state.storage.goals import GoalTable
from goal_state.storage.identifiers import new_id
from goal_state.storage.ledger import (
    EventDraft,
    EventLog,
    Purpose,
    budget_event,
    charge_events,
    new_draft,
    threshold_events,
)
from goal_state.storage.reservations import Reservations

__all__ = ["Lifecycle", "expect", "not_found"]


class Lifecycle:
    """Carries out what is asked of goals as a whole, inside a transaction that its owner began."""

    def __init__(
        self, goals: GoalTable, log: EventLog, usage_log: UsageLog, reservations: Reservations
    ) -> None:
        self._goals = goals
        self._log = log
        self._usage_log = usage_log
        self._reservations = reservations

    def lock(self, thread_id: str, now_ms: int) -> Goal | None:
        """The thread's goal, locked, as time has made it."""
        goal = self._goals.lock(thread_id)
        if goal is None:
            return None
        if self._reservations.expire_due(goal, now_ms):
            goal = self._goals.lock(thread_id)
        noticed = None if goal is None else self._reservations.noticed(goal, now_ms)
        if noticed is not goal:
            self._reservations.overdue_thread_id = thread_id
        return noticed

    def create(self, request: CreateGoal) -> Goal:
        """Makes a goal, where the request lets it."""
        now_ms = wall_clock.now_ms()
        old = self.lock(request.thread_id, now_ms)
        if old is not None and request.where == "missing":
            return old
        if old is not None and old.status is not GoalStatus.COMPLETE and request.where == "free":
            raise GoalExistsError(
                f"thread {request.thread_id!r} has a goal that is {old.status}; complete or clear it"
                " first, or use replace()"
            )
        goal = _new_goal(
            request.thread_id,
            request.objective,
            request.status,
            now_ms,
            **request.budgets._asdict(),
        )
        if request.parent is not None:
            goal = self._placed(goal, old, request.parent)
        return self._insert(
            goal, request.turn_id, replaced_goal_id=None if old is None else old.goal_id
        )

    def _placed(self, goal: Goal, old: Goal | None, parent_thread_id: str) -> Goal:
        """A new goal under the goal that a thread has now."""
        parent = self._goals.lock(parent_thread_id)
        if parent is None:
            raise GoalNotFoundError(
                f"the parent {parent_thread_id!r} has no goal here; create it first, in the same database"
            )
        ancestors = [*(parent.ancestor_goal_ids or "").split(), parent.goal_id]
        if old is not None and old.goal_id in ancestors:
            raise TreeError(
                f"the goal of {parent_thread_id!r} works for the one that thread {goal.thread_id!r} has, so"
                " it cannot be the parent of what takes its place"
            )
        if len(ancestors) >= MAX_DEPTH:
            raise TreeError(
                f"the goal of {parent_thread_id!r} is {len(ancestors)} deep, and {MAX_DEPTH} is the bound;"
                " give the new goal a parent higher up"
            )
        return changed(goal, parent_goal_id=parent.goal_id, ancestor_goal_ids=" ".join(ancestors))

    def change(self, request: ChangeGoal) -> Goal:
        """Changes a goal, or makes one where there is none."""
        now_ms = wall_clock.now_ms()
        goal = self.lock(request.thread_id, now_ms)
        expect(request, goal, request.expected_goal_id, request.claim)
        if goal is None:
            if request.objective is KEEP:
                raise not_found(request)
            goal = _new_goal(
                request.thread_id,
                request.objective,
                GoalStatus.ACTIVE if request.status is KEEP else request.status,
                now_ms,
                resume_at_ms=request.resume_at_ms,
                blocked_reason=request.blocked_reason,
                **request.budgets,
            )
            return self._insert(goal, request.turn_id)
        new = changed(goal, **request.budgets, updated_at_ms=max(now_ms, goal.updated_at_ms))
        status = requested_status(goal.status, request.status, exhausted=is_exhausted(new))
        new = changed(
            new,
            objective=goal.objective if request.objective is KEEP else request.objective,
            status=status,
        )
        if request.status is not KEEP or status is not goal.status:
            limited, blocked = status is GoalStatus.USAGE_LIMITED, status is GoalStatus.BLOCKED
            new = changed(
                new,
                resume_at_ms=request.resume_at_ms if limited else None,
                blocked_reason=request.blocked_reason if blocked else None,
            )
        return self._update(goal, new, request.turn_id, now_ms)

    def resume(self, request: ResumeGoal) -> Goal:
        """Makes a goal active again, with other budgets."""
        now_ms = wall_clock.now_ms()
        goal = self.lock(request.thread_id, now_ms)
        expect(request, goal, request.expected_goal_id, request.claim)
        if goal is None:
            raise not_found(request)
        new = changed(goal, **request.budgets, updated_at_ms=max(now_ms, goal.updated_at_ms))
        if is_exhausted(new):
            raise BudgetExhaustedError(_exhausted(new))
        new = changed(new, status=GoalStatus.ACTIVE, resume_at_ms=None, blocked_reason=None)
        return self._update(goal, new, request.turn_id, now_ms)

    def clear(self, request: ClearGoal) -> Goal | None:
        """Removes a goal, and returns it."""
        self.lock(request.thread_id, wall_clock.now_ms())
        goal = self._goals.clear(request.thread_id, request.expected_goal_id)
        if goal is None:
            return None
        self._log.append(
            EventKind.CLEARED,
            goal,
            turn_id=request.turn_id,
            previous_status=goal.status,
            now_ms=wall_clock.now_ms(),
        )
        return goal

    def claim(self, request: ClaimGoal) -> Goal:
        """Gives a goal to an owner, if no other has it."""
        now_ms = wall_clock.now_ms()
        goal = self.lock(request.thread_id, now_ms)
        if goal is None:
            raise not_found(request)
        is_live = goal.claim_expires_at_ms is not None and now_ms < goal.claim_expires_at_ms
        if is_live and goal.claim_owner != request.owner:
            raise ClaimHeldError(
                f"the goal of thread {request.thread_id!r} is run by {goal.claim_owner!r} for another"
                f" {((goal.claim_expires_at_ms or 0) - now_ms) / 1000:g} s; try again then"
            )
        renews = is_live and goal.claim_owner == request.owner
        claimed = changed(
            goal,
            claim_number=goal.claim_number if renews else max(goal.claim_number + 1, now_ms),
            claim_owner=request.owner,
            claim_expires_at_ms=now_ms + request.span_ms,
        )
        self._goals.update(claimed)
        return claimed

    def resume_due(self, request: ResumeDue) -> list[Goal]:
        """Makes some of the goals active again whose provider's limit has ended."""
        now_ms = wall_clock.now_ms()
        due_ms = now_ms if request.now_ms is None else request.now_ms
        resumed: list[Goal] = []
        for goal in self._goals.due_to_resume(due_ms, request.limit):
            new = changed(goal, updated_at_ms=max(now_ms, goal.updated_at_ms))
            new = changed(new, status=status_by_budget(new), resume_at_ms=None)
            resumed.append(self._update(goal, new, None, now_ms))
        return resumed

    def take_over(self, goal: Goal) -> Goal:
        """Writes a goal that was checked, with the shortest ledger that leads to it."""
        old = self._goals.lock(goal.thread_id)
        if old is not None:
            raise GoalExistsError(f"thread {goal.thread_id!r} has goal {old.goal_id} already")
        if self._log.page_of_goal(goal.goal_id, 0, 1):
            raise GoalExistsError(
                f"there was a goal {goal.goal_id} before; an id is never used again"
            )
        # Holds are no part of what is taken over: those who made them settle them where they are.
        goal = changed(goal, live_holds=0, held_tokens=0, held_cost_nanos=0, held_calls=0)
        self._goals.insert(goal)
        begun = charged = changed(goal, status=GoalStatus.ACTIVE)
        self._log.append(EventKind.CREATED, begun, turn_id=None, now_ms=goal.created_at_ms)
        amounts = Amounts(*(getattr(goal, figure.used) for figure in FIGURES))
        if any(amounts):
            charged = changed(goal, status=status_by_budget(goal))
            self._log.add(charge_events(begun, charged, amounts, Purpose(), goal.updated_at_ms))
        if goal.status is not charged.status:
            self._log.append(
                EventKind.STATUS_CHANGED,
                goal,
                turn_id=None,
                previous_status=charged.status,
                now_ms=goal.updated_at_ms,
            )
        return goal

    def _insert(
        self, goal: Goal, turn_id: str | None, *, replaced_goal_id: str | None = None
    ) -> Goal:
        if replaced_goal_id is not None:
            self._goals.delete(replaced_goal_id)
        self._goals.insert(goal)
        self._log.append(
            EventKind.CREATED,
            goal,
            turn_id=turn_id,
            replaced_goal_id=replaced_goal_id,
            now_ms=goal.created_at_ms,
        )
        return goal

    def _update(self, goal: Goal, new: Goal, turn_id: str | None, now_ms: int) -> Goal:
        if changed(new, updated_at_ms=goal.updated_at_ms) == goal:
            return goal
        new = changed(new, updated_at_ms=max(now_ms, goal.updated_at_ms))
        if is_exhausted(goal) and not is_exhausted(new):
            self._usage_log.forget_warning(goal.thread_id, goal.goal_id)
        self._goals.update(new)
        drafts: list[EventDraft] = []
        if new.budgets != goal.budgets:
            drafts.append(budget_event(goal, new, turn_id, now_ms))
        if new.status is not goal.status:
            drafts.append(new_draft(EventKind.STATUS_CHANGED, new, turn_id, goal.status, now_ms))
        if new.warn_fractions is not None:
            drafts += threshold_events(goal, new, turn_id, now_ms)
        if drafts:
            self._log.add(drafts)
        return new


def _new_goal(
    thread_id: str, objective: str, status: GoalStatus, now_ms: int, **fields: Any
) -> Goal:
    goal = Goal(
        thread_id=thread_id,
        goal_id=new_id(),
        objective=objective,
        status=status,
        token_budget=None,
        tokens_used=0,
        time_used_ms=0,
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
    )
    goal = changed(goal, **fields)
    if status is GoalStatus.ACTIVE:
        return changed(goal, status=status_by_budget(goal))  # its deadline may have passed
    return goal


def _exhausted(goal: Goal) -> str:
    """What is said where a goal would be at or over its budgets."""
    reached = goal.exhausted
    used = [
        f"{shown_amount(use.kind, use.used)} of {shown_amount(use.kind, use.budget)} {_UNITS[use.kind]}"
        for use in budget_uses(goal)
        if use.kind in reached
    ]
    told = [f"has used {', '.join(used)}"] if used else []
    if BudgetKind.DEADLINE in reached:
        told.append("is past its deadline")
    return (
        f"the goal of thread {goal.thread_id!r} {' and '.join(told)}; give resume() more of"
        f" {', '.join(kind.argument for kind in reached)}, or None for no bound"
    )


_UNITS: Final = {
    BudgetKind.TOKENS: "tokens",
    BudgetKind.COST: "in cost",
    BudgetKind.CALLS: "calls",
    BudgetKind.TIME: "of active time",
}


def not_found(request: ThreadRequest[Any]) -> GoalNotFoundError:
    """The error of a request that needs a goal."""
    return GoalNotFoundError(f"thread {request.thread_id!r} has no goal; create one first")


def expect(
    request: ThreadRequest[Any], goal: Goal | None, expected: str | None, claim: int | None
) -> None:
    """Makes sure that a goal is the expected one, and that a claim is still its own.

    Raises:
        StaleGoalError: it is another goal, or there is none.
        ClaimOvertakenError: another owner has claimed it since.
    """
    if claim is not None:
        check_claimed(request.thread_id, goal, claim)
    if expected is not None and (goal is None or goal.goal_id != expected):
        found = "no goal" if goal is None else f"goal {goal.goal_id}"
        raise StaleGoalError(
            f"thread {request.thread_id!r} has {found}, expected goal {expected}; read it again"
        )
