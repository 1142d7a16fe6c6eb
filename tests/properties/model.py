"""What a goal store does, in plain Python: rules over a dict of goals, a list of events, baselines and keys.

It is written from the description of the store, not from its code, and shares nothing with it: statuses,
modes and errors are texts here, usage is six numbers, time is whole milliseconds.
"""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction
from typing import Any, NamedTuple

__all__ = [
    "KEPT",
    "LARGEST",
    "MODES",
    "STATUSES",
    "Baseline",
    "Counts",
    "Model",
    "Recorded",
    "Refused",
    "Row",
    "Settlement",
]

LARGEST = 2**63 - 1

STATUSES = ("active", "paused", "blocked", "usage_limited", "budget_limited", "complete")

KEPT = "KEPT"
"""In place of a new value: the old one stays."""

MODES = {
    "active_status_only": {"active"},
    "active_only": {"active", "budget_limited"},
    "active_or_complete": {"active", "budget_limited", "complete"},
    "active_or_stopped": {"active", "paused", "blocked", "usage_limited", "budget_limited"},
}
"""Which statuses take a charge."""


class Row(NamedTuple):
    """A goal, without its times of day."""

    thread_id: str
    goal_id: str
    objective: str
    status: str
    token_budget: int | None
    tokens_used: int = 0
    time_used_ms: int = 0
    resume_at_ms: int | None = None
    blocked_reason: str | None = None

    @property
    def spent(self) -> bool:
        return self.token_budget is not None and self.tokens_used >= self.token_budget


class Recorded(NamedTuple):
    """An event, without what the database gives it: position, id and time of day."""

    kind: str
    thread_id: str
    goal_id: str
    turn_id: str | None
    goal_status: str
    previous_status: str | None
    token_budget: int | None
    tokens_delta: int = 0
    time_delta_ms: int = 0
    cumulative_tokens: int | None = None
    cumulative_time_ms: int | None = None
    idempotency_key: str | None = None
    replaced_goal_id: str | None = None


class Counts(NamedTuple):
    """Cumulative or single usage."""

    input: int = 0
    cached: int = 0
    written: int = 0
    output: int = 0
    reasoning: int = 0
    total: int = 0

    def since(self, before: Counts) -> Counts:
        return Counts(*(max(a - b, 0) for a, b in zip(self, before, strict=True)))

    def is_below(self, other: Counts) -> bool:
        """Whether less went in and out."""
        return self.input + self.output < other.input + other.output

    @property
    def payable(self) -> int:
        """Cached input is free."""
        return max(self.input - self.cached, 0) + self.output


class Baseline(NamedTuple):
    """What a thread has used: in all, by its last response, and in which turn."""

    total: Counts
    last: Counts = Counts()
    window: int | None = None
    turn_id: str | None = None


class Settlement(NamedTuple):
    """What became of a charge."""

    goal: Row | None
    applied: bool
    duplicate: bool = False


class Refused(Exception):  # noqa: N818
    """The call must fail with the error of this name."""

    def __init__(self, error: str, field: str | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.field = field


class _Paid(NamedTuple):
    """A charge that was made under an idempotency key."""

    amounts: tuple[int, int]
    row: Row


class Model:
    """Every operation takes the store's arguments, all of them; what makes a goal takes its id as well.

    `operation` raises `Refused` where the call must fail. It decides before it changes anything.
    """

    def __init__(self) -> None:
        self.goals: dict[str, Row] = {}
        self.events: list[Recorded] = []
        self.baselines: dict[str, Baseline] = {}
        self.recorded_for: dict[str, str | None] = {}
        """The goal in whose time each thread's baseline was recorded."""
        self.reported: dict[str, set[str | None]] = {}
        """The turns that reported totals of each thread."""
        self.keys: dict[tuple[str, str], _Paid] = {}
        self.minted: dict[str, str] = {}
        """Every goal that ever was, and its thread."""

    def copy(self) -> Model:
        twin = Model()
        twin.goals = dict(self.goals)
        twin.events = list(self.events)
        twin.baselines = dict(self.baselines)
        twin.recorded_for = dict(self.recorded_for)
        twin.reported = {thread: set(turns) for thread, turns in self.reported.items()}
        twin.keys = dict(self.keys)
        twin.minted = dict(self.minted)
        return twin

    def apply(self, name: str, arguments: dict[str, Any], minted: str | None) -> Any:
        """Carries out an operation by its name; `minted` is the id of the goal that it makes, if any."""
        operation = getattr(self, name)
        if name in ("create", "replace", "set"):
            return operation(**arguments, minted=minted)
        return operation(**arguments)

    # -- what hosts ask for ------------------------------------------------------------------------

    def create(self, *, thread_id: str, minted: str | None, **values: Any) -> Row:
        old = self.goals.get(thread_id)
        if old is not None and old.status != "complete":
            raise Refused("GoalExistsError")
        return self.replace(thread_id=thread_id, minted=minted, **values)

    def replace(
        self,
        *,
        thread_id: str,
        objective: str,
        token_budget: int | None,
        status: str,
        turn_id: str | None,
        minted: str | None,
        resume_at_ms: int | None = None,
        blocked_reason: str | None = None,
    ) -> Row:
        assert minted is not None, "a goal was expected to be made"
        assert minted not in self.minted, "a goal id was used again"
        old = self.goals.get(thread_id)
        new = Row(
            thread_id,
            minted,
            objective.strip(),
            status,
            token_budget,
            resume_at_ms=resume_at_ms,
            blocked_reason=blocked_reason,
        )
        self.minted[minted] = thread_id
        self.goals[thread_id] = new
        self._note("created", new, turn_id, replaced_goal_id=old and old.goal_id)
        return new

    def set(
        self,
        *,
        thread_id: str,
        objective: str,
        status: str,
        token_budget: int | str | None,
        resume_at: datetime | None,
        blocked_reason: str | None,
        expected_goal_id: str | None,
        turn_id: str | None,
        minted: str | None,
    ) -> Row:
        if resume_at is not None and status != "usage_limited":
            raise Refused("InvalidValueError", "resume_at")
        if blocked_reason is not None and status != "blocked":
            raise Refused("InvalidValueError", "blocked_reason")
        resume_at_ms = None if resume_at is None else round(resume_at.timestamp() * 1000)
        reason = None if blocked_reason is None else blocked_reason.strip()
        goal = self._expected(thread_id, expected_goal_id)
        if goal is None:
            if objective == KEPT:
                raise Refused("GoalNotFoundError")
            return self.replace(
                thread_id=thread_id,
                objective=objective,
                token_budget=None if token_budget == KEPT else token_budget,
                status="active" if status == KEPT else status,
                turn_id=turn_id,
                minted=minted,
                resume_at_ms=resume_at_ms,
                blocked_reason=reason,
            )
        new = goal._replace(
            objective=goal.objective if objective == KEPT else objective.strip(),
            token_budget=goal.token_budget if token_budget == KEPT else token_budget,
        )
        asked = goal.status if status == KEPT else status
        kept_limited = goal.status == "budget_limited" and asked in ("paused", "blocked")
        if kept_limited or (asked == "active" and new.spent):
            asked = "budget_limited"
        if asked == "usage_limited" and status != KEPT:
            new = new._replace(resume_at_ms=resume_at_ms)
        if asked == "blocked" and status != KEPT:
            new = new._replace(blocked_reason=reason)
        return self._change(goal, _waiting(new._replace(status=asked)), turn_id)

    def resume(
        self,
        *,
        thread_id: str,
        token_budget: int | str | None,
        expected_goal_id: str | None,
        turn_id: str | None,
    ) -> Row:
        goal = self._expected(thread_id, expected_goal_id)
        if goal is None:
            raise Refused("GoalNotFoundError")
        new = goal._replace(
            status="active",
            token_budget=goal.token_budget if token_budget == KEPT else token_budget,
        )
        if new.spent:
            raise Refused("BudgetExhaustedError")
        return self._change(goal, _waiting(new), turn_id)

    def clear(
        self, *, thread_id: str, expected_goal_id: str | None, turn_id: str | None
    ) -> Row | None:
        goal = self.goals.get(thread_id)
        if goal is None or expected_goal_id not in (None, goal.goal_id):
            return None
        del self.goals[thread_id]
        self._note("cleared", goal, turn_id, previous_status=goal.status)
        return goal

    # -- usage -------------------------------------------------------------------------------------

    def charge(
        self,
        *,
        thread_id: str,
        tokens: int,
        seconds: float,
        mode: str,
        expected_goal_id: str | None,
        turn_id: str | None,
        idempotency_key: str | None,
    ) -> Settlement:
        amounts = (tokens, _milliseconds(seconds))
        goal = self.goals.get(thread_id)
        if idempotency_key is not None and (thread_id, idempotency_key) in self.keys:
            first = self.keys[thread_id, idempotency_key]
            if first.amounts[0] != tokens:
                raise Refused("IdempotencyConflictError")
            if goal is None or goal.goal_id != first.row.goal_id:
                return Settlement(None, applied=True, duplicate=True)
            # No text is kept with a charge, so those of now are shown, where they fit.
            was = first.row._replace(
                objective=goal.objective,
                resume_at_ms=goal.resume_at_ms,
                blocked_reason=goal.blocked_reason,
            )
            return Settlement(_waiting(was), applied=True, duplicate=True)
        settled = self._charge(thread_id, amounts, mode, expected_goal_id, turn_id, idempotency_key)
        if settled.applied and idempotency_key is not None:
            assert settled.goal is not None
            self.keys[thread_id, idempotency_key] = _Paid(amounts, settled.goal)
        return settled

    def charge_many(self, *, charges: list[dict[str, Any]]) -> list[Settlement]:
        trial = self.copy()
        settled = [trial.charge(**charge) for charge in charges]
        vars(self).update(vars(trial))
        return settled

    def record_total(
        self,
        *,
        thread_id: str,
        total: Counts | Baseline,
        seconds: float,
        turn_id: str | None,
        mode: str,
        expected_goal_id: str | None,
    ) -> Settlement:
        old = self.baselines.get(thread_id)
        counts = total.total if isinstance(total, Baseline) else total
        if (
            old is not None
            and counts.is_below(old.total)
            and self._has_reported(thread_id, turn_id)
        ):
            return Settlement(self.goals.get(thread_id), applied=False)
        is_growth = old is not None and not counts.is_below(old.total)
        tokens = counts.since(old.total).payable if is_growth else 0
        if old is None or counts == old.total:
            # Neither the first total of a thread nor a repeated one brings anything new.
            settled = Settlement(self.goals.get(thread_id), applied=False)
        else:
            amounts = (tokens, _milliseconds(seconds))
            settled = self._charge(thread_id, amounts, mode, expected_goal_id, turn_id, None)
        self.set_baseline(thread_id=thread_id, total=total, turn_id=turn_id)
        return settled

    def set_baseline(
        self, *, thread_id: str, total: Counts | Baseline, turn_id: str | None
    ) -> None:
        self._see(thread_id, total, turn_id)
        self.reported.setdefault(thread_id, set()).add(turn_id)
        if turn_id is not None:
            self.baselines[thread_id] = self.baselines[thread_id]._replace(turn_id=turn_id)
        self.recorded_for[thread_id] = self._goal_id(thread_id)

    def reconcile(
        self, *, thread_id: str, total: Counts | Baseline, turn_id: str | None
    ) -> Settlement:
        old, goal = self.baselines.get(thread_id), self.goals.get(thread_id)
        counts = total.total if isinstance(total, Baseline) else total
        settled = Settlement(goal, applied=False)
        if old is not None and counts.is_below(old.total):
            return settled
        if old is not None and goal is not None and self.recorded_for[thread_id] == goal.goal_id:
            amounts = (counts.since(old.total).payable, 0)
            payer = old.turn_id if turn_id is None else turn_id
            settled = self._charge(thread_id, amounts, "active_only", None, payer, None)
        self.set_baseline(thread_id=thread_id, total=total, turn_id=turn_id)
        return settled

    # -- shared steps ------------------------------------------------------------------------------

    def _see(self, thread_id: str, total: Counts | Baseline, turn_id: str | None) -> None:
        """Takes a total as the thread's baseline. What is not told of it is found out, or stays."""
        old = self.baselines.get(thread_id)
        if old is not None and total == old.total:
            return  # a repeat tells nothing new, not even of its turn
        self.recorded_for[thread_id] = self._goal_id(thread_id)
        turn_id = old.turn_id if turn_id is None and old is not None else turn_id
        if isinstance(total, Baseline):
            self.baselines[thread_id] = total._replace(turn_id=turn_id)
        elif old is None:
            self.baselines[thread_id] = Baseline(total, turn_id=turn_id)
        else:
            last = total.since(old.total)
            self.baselines[thread_id] = Baseline(total, last, old.window, turn_id)

    def _has_reported(self, thread_id: str, turn_id: str | None) -> bool:
        """Whether a total that falls is late. Without a turn it is not known to be of a new count."""
        return (
            turn_id is None
            or turn_id == self.baselines[thread_id].turn_id
            or turn_id in self.reported[thread_id]
            or any(
                event.thread_id == thread_id and event.turn_id == turn_id and event.tokens_delta
                for event in self.events
            )
        )

    def _goal_id(self, thread_id: str) -> str | None:
        return self.goals[thread_id].goal_id if thread_id in self.goals else None

    def _expected(self, thread_id: str, expected_goal_id: str | None) -> Row | None:
        goal = self.goals.get(thread_id)
        if expected_goal_id is not None and (goal is None or goal.goal_id != expected_goal_id):
            raise Refused("StaleGoalError")
        return goal

    def _change(self, old: Row, new: Row, turn_id: str | None) -> Row:
        self.goals[old.thread_id] = new
        if new.status != old.status:
            self._note("status_changed", new, turn_id, previous_status=old.status)
        return new

    def _charge(
        self,
        thread_id: str,
        amounts: tuple[int, int],
        mode: str,
        expected_goal_id: str | None,
        turn_id: str | None,
        key: str | None,
    ) -> Settlement:
        goal = self.goals.get(thread_id)
        if (
            goal is None
            or expected_goal_id not in (None, goal.goal_id)
            or goal.status not in MODES[mode]
            or (amounts == (0, 0) and key is None)
        ):
            return Settlement(goal, applied=False)
        tokens, time_ms = amounts
        new = goal._replace(
            tokens_used=goal.tokens_used + tokens, time_used_ms=goal.time_used_ms + time_ms
        )
        if new.tokens_used > LARGEST:
            raise Refused("UsageOverflowError", "tokens")
        if new.time_used_ms > LARGEST:
            raise Refused("UsageOverflowError", "seconds")
        if new.spent and (goal.status == "active" or mode == "active_or_stopped"):
            new = _waiting(new._replace(status="budget_limited"))
        self._note(
            "usage_accounted",
            new,
            turn_id,
            previous_status=goal.status,
            tokens_delta=tokens,
            time_delta_ms=time_ms,
            cumulative_tokens=new.tokens_used,
            cumulative_time_ms=new.time_used_ms,
            idempotency_key=key,
        )
        return Settlement(self._change(goal, new, turn_id), applied=True)

    def _note(self, kind: str, goal: Row, turn_id: str | None, **rest: Any) -> None:
        rest.setdefault("previous_status", None)
        self.events.append(
            Recorded(
                kind,
                goal.thread_id,
                goal.goal_id,
                turn_id,
                goal.status,
                token_budget=goal.token_budget,
                **rest,
            )
        )


def _waiting(goal: Row) -> Row:
    """Only who waits has a reason to: no other status keeps one."""
    if goal.status != "usage_limited":
        goal = goal._replace(resume_at_ms=None)
    return goal if goal.status == "blocked" else goal._replace(blocked_reason=None)


def _milliseconds(seconds: float) -> int:
    """To the nearest one, exactly."""
    return round(Fraction(seconds) * 1000)
