"""What holds, claims and limits that end come to, reckoned plainly: no database, nothing of the library."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["BEGUN_MS", "PARENTS", "HoldModel", "ModelGoal", "ModelHold", "RefusedError"]

BEGUN_MS: Final = 1_900_000_000_000

PARENTS: dict[str, str | None] = {"root": None, "middle": "root", "leaf": "middle", "side": "root"}


class RefusedError(Exception):
    """A call that must be refused, with the name of its error."""


@dataclass
class ModelGoal:
    """A goal, and those above it, root first, by their numbers."""

    number: int
    thread_id: str
    above: list[int]
    token_budget: int
    call_budget: int
    status: str = "active"
    tokens: int = 0
    calls: int = 0
    estimated: int = 0
    live: int = 0
    held: int = 0
    held_calls: int = 0
    claim: int = 0
    owner: str | None = None
    claimed_until: int = 0
    resume_at: int | None = None

    @property
    def is_reached(self) -> bool:
        return self.tokens >= self.token_budget or self.calls >= self.call_budget


@dataclass
class ModelHold:
    """A hold of so many tokens and one call."""

    thread_id: str
    goals: list[int]
    """Its own goal, then those above it, the nearest first."""
    key: str | None
    tokens: int
    expires_at: int
    is_dispatched: bool
    charges_unknown: bool
    observed: int | None = None
    outcome: str | None = None
    charged: int = 0
    charged_calls: int = 0

    def unknown(self) -> tuple[int, int, int]:
        """The tokens, calls and estimated tokens where its usage never became known."""
        if not self.is_dispatched:
            return 0, 0, 0
        if self.observed is not None:
            return self.observed, 1, 0
        return (self.tokens, 1, self.tokens) if self.charges_unknown else (0, 0, 0)


@dataclass
class HoldModel:
    """All of a database."""

    now: int = 0
    """Seconds."""
    goals: dict[int, ModelGoal] = field(default_factory=dict[int, ModelGoal])
    holds: list[ModelHold] = field(default_factory=list[ModelHold])
    keys: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """The number of the hold that a response settled."""
    minted: int = 0
    overdue: str | None = None

    def apply(self, name: str, *arguments: Any) -> Any:
        """Carries a call out. A refused one changes only what time had made true.

        Raises:
            RefusedError: it must be refused.
        """
        before = deepcopy(self)
        self.overdue = None
        try:
            return getattr(self, name)(*arguments)
        except RefusedError:
            overdue = self.overdue
            self.__dict__.update(before.__dict__)
            if overdue is not None:
                self.notice(overdue)
            raise

    def notice(self, thread_id: str) -> None:
        for hold in self.holds:
            if hold.thread_id == thread_id and self._is_due(hold):
                self._end_unknown(hold)
        self._lock(thread_id)

    @property
    def now_ms(self) -> int:
        """The Unix time in milliseconds."""
        return BEGUN_MS + self.now * 1000

    # -- calls -------------------------------------------------------------------------------------

    def create(self, thread_id: str, token_budget: int, call_budget: int) -> None:
        if self._lock(thread_id) is not None:
            raise RefusedError("GoalExistsError")
        parent_thread = PARENTS[thread_id]
        parent = None if parent_thread is None else self.of(parent_thread)
        if parent_thread is not None and parent is None:
            raise RefusedError("GoalNotFoundError")
        above = [] if parent is None else [*parent.above, parent.number]
        self.minted += 1
        goal = ModelGoal(self.minted, thread_id, above, token_budget, call_budget)
        self.goals[self.minted] = goal

    def clear(self, thread_id: str) -> None:
        goal = self._lock(thread_id)
        if goal is not None:
            del self.goals[goal.number]

    def resume(self, thread_id: str, token_budget: int, call_budget: int) -> None:
        goal = self._lock_there(thread_id)
        goal.token_budget, goal.call_budget = token_budget, call_budget
        if goal.is_reached:
            raise RefusedError("BudgetExhaustedError")
        goal.status, goal.resume_at = "active", None

    def limit(self, thread_id: str, resume_at: int) -> None:
        goal = self._lock_there(thread_id)
        goal.status, goal.resume_at = "usage_limited", resume_at

    def charge(self, thread_id: str, tokens: int) -> bool:
        goal = self._lock(thread_id)
        if goal is None or not tokens or goal.status not in ("active", "budget_limited"):
            return False
        self._pay([goal.number, *goal.above], tokens, 0, 0)
        return True

    def claim_(self, thread_id: str, owner: str, span: int) -> int:
        goal = self._lock_there(thread_id)
        is_live = goal.owner is not None and self.now < goal.claimed_until
        if is_live and goal.owner != owner:
            raise RefusedError("ClaimHeldError")
        if not is_live:
            goal.claim = max(goal.claim + 1, self.now_ms)
        goal.owner, goal.claimed_until = owner, self.now + span
        return goal.claim

    def resume_due(self) -> set[str]:
        due = [
            goal
            for goal in self.goals.values()
            if goal.resume_at is not None and goal.resume_at <= self.now
        ]
        for goal in due:
            goal.status = "budget_limited" if goal.is_reached else "active"
            goal.resume_at = None
        return {goal.thread_id for goal in due}

    def reserve(
        self,
        thread_id: str,
        tokens: int,
        at_least: int | None,
        key: str | None,
        span: int,
        is_dispatched: bool,
        charges_unknown: bool,
    ) -> int:
        """The number of the hold."""
        goal = self._lock(thread_id)
        found = self._find(thread_id, key)
        if found is not None:
            return found
        if goal is None:
            raise RefusedError("GoalNotFoundError")
        chain = [goal, *self._there(reversed(goal.above))]
        granted = tokens
        for each in chain:
            if each.status != "active":
                raise RefusedError("BudgetExceededError")
        for each in chain:
            left = each.token_budget - each.tokens - each.held
            if granted > left:
                if at_least is None or left < at_least:
                    raise RefusedError("BudgetExceededError")
                granted = left
            if each.calls + each.held_calls + 1 > each.call_budget:
                raise RefusedError("BudgetExceededError")
        for each in chain:
            each.live += 1
            each.held += granted
            each.held_calls += 1
            assert each.tokens + each.held <= each.token_budget
            assert each.calls + each.held_calls <= each.call_budget
        self.holds.append(
            ModelHold(
                thread_id,
                [goal.number, *reversed(goal.above)],
                key,
                granted,
                self.now + span,
                is_dispatched,
                charges_unknown,
            )
        )
        return len(self.holds) - 1

    def dispatch(self, number: int) -> None:
        self._live(number).is_dispatched = True

    def extend(self, number: int, span: int) -> None:
        self._live(number).expires_at = self.now + span

    def observe(self, number: int, tokens: int) -> None:
        hold = self._live(number)
        hold.observed, hold.is_dispatched = tokens, True

    def release(self, number: int) -> None:
        hold = self.holds[number]
        if hold.outcome == "released" or (hold.outcome == "unknown" and not hold.is_dispatched):
            return
        if hold.outcome is not None or hold.is_dispatched:
            self._live(number)
        self._end(hold, "released", 0, 0, 0)

    def cut(self, number: int) -> None:
        if self.holds[number].outcome is None:
            self._end_unknown(self.holds[number])

    def settle(self, number: int, tokens: int, key: str | None) -> tuple[bool, bool]:
        """Whether it is charged, and whether it was before."""
        hold = self.holds[number]
        self._lock(hold.thread_id, keep=hold)
        if key is not None and (hold.thread_id, key) in self.keys:
            if self.holds[self.keys[hold.thread_id, key]].charged != tokens:
                raise RefusedError("IdempotencyConflictError")
            return True, True
        is_there = hold.goals[0] in self.goals
        if hold.outcome is None:
            pays = any(goal in self.goals for goal in hold.goals)
            self._end(hold, "settled", tokens, 1, 0)
            applied = pays
        elif hold.outcome == "unknown":
            estimated = hold.unknown()[2]
            more = max(tokens - hold.charged, 0), max(1 - hold.charged_calls, 0), -estimated
            self._pay(hold.goals, *more)
            hold.outcome, hold.charged, hold.charged_calls = "settled", tokens, 1
            applied = True
        elif hold.outcome == "released" or hold.charged != tokens:
            raise RefusedError("HoldEndedError")
        else:
            return True, True
        if key is not None and is_there:
            self.keys[hold.thread_id, key] = number
        return applied, False

    def expire_holds(self) -> int:
        due = [hold for hold in self.holds if self._is_due(hold)]
        for hold in due:
            self._end_unknown(hold)
        return len(due)

    # -- what they are made of ---------------------------------------------------------------------

    def of(self, thread_id: str) -> ModelGoal | None:
        return next((goal for goal in self.goals.values() if goal.thread_id == thread_id), None)

    def tokens_left(self, thread_id: str) -> int | None:
        """The headroom, without what has expired unsent."""
        goal = self.of(thread_id)
        if goal is None:
            return None
        chain = [goal, *self._there(reversed(goal.above))]
        free = [hold for hold in self.holds if self._is_due(hold) and not hold.is_dispatched]
        return min(
            max(
                each.token_budget
                - each.tokens
                - each.held
                + sum(hold.tokens for hold in free if each.number in hold.goals),
                0,
            )
            for each in chain
        )

    def _there(self, numbers: Any) -> Iterator[ModelGoal]:
        return (self.goals[number] for number in numbers if number in self.goals)

    def _is_due(self, hold: ModelHold) -> bool:
        return hold.outcome is None and hold.expires_at <= self.now

    def _lock(self, thread_id: str, keep: ModelHold | None = None) -> ModelGoal | None:
        goal = self.of(thread_id)
        if goal is None:
            return None
        root = goal.above[0] if goal.above else goal.number
        for hold in self.holds:
            if self._is_due(hold) and hold.goals[-1] == root and hold is not keep:
                self._end_unknown(hold)
                self.overdue = thread_id
        return goal

    def _lock_there(self, thread_id: str) -> ModelGoal:
        goal = self._lock(thread_id)
        if goal is None:
            raise RefusedError("GoalNotFoundError")
        return goal

    def _find(self, thread_id: str, key: str | None) -> int | None:
        for number, hold in enumerate(self.holds):
            if key is not None and (hold.thread_id, hold.key) == (thread_id, key):
                if self._is_due(hold):
                    self.overdue = thread_id
                    raise RefusedError("HoldEndedError")
                if hold.outcome is not None:
                    raise RefusedError("HoldEndedError")
                return number
        return None

    def _live(self, number: int) -> ModelHold:
        hold = self.holds[number]
        if self._is_due(hold):
            self.overdue = hold.thread_id
            raise RefusedError("HoldEndedError")
        if hold.outcome is not None:
            raise RefusedError("HoldEndedError")
        return hold

    def _end_unknown(self, hold: ModelHold) -> None:
        self._end(hold, "unknown", *hold.unknown())

    def _end(self, hold: ModelHold, outcome: str, tokens: int, calls: int, estimated: int) -> None:
        for goal in self._there(hold.goals):
            goal.live -= 1
            goal.held -= hold.tokens
            goal.held_calls -= 1
        self._pay(hold.goals, tokens, calls, estimated)
        hold.outcome, hold.charged, hold.charged_calls = outcome, tokens, calls

    def _pay(self, numbers: list[int], tokens: int, calls: int, estimated: int) -> None:
        for goal in self._there(numbers):
            goal.tokens += tokens
            goal.calls += calls
            goal.estimated += estimated
            if goal.status == "active" and goal.is_reached:
                goal.status = "budget_limited"
