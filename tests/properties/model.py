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

DEEPEST = 16
"""How many goals can be one under the other."""

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
    cost_budget_nanos: int | None = None
    cost_used_nanos: int = 0
    call_budget: int | None = None
    calls_used: int = 0
    unpriced_tokens: int = 0
    ancestors: tuple[str, ...] = ()

    @property
    def spent(self) -> bool:
        return any(
            budget is not None and used >= budget
            for budget, used in (
                (self.token_budget, self.tokens_used),
                (self.cost_budget_nanos, self.cost_used_nanos),
                (self.call_budget, self.calls_used),
            )
        )

    @property
    def budgets(self) -> tuple[int | None, ...]:
        return self.token_budget, self.cost_budget_nanos, self.call_budget


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
    cost_delta_nanos: int = 0
    calls_delta: int = 0
    unpriced_tokens_delta: int = 0
    cumulative_cost_nanos: int | None = None
    cumulative_calls: int | None = None
    origin_goal_id: str | None = None
    via_goal_id: str | None = None


class Amounts(NamedTuple):
    """What a charge adds; a cost that is None is not known."""

    tokens: int
    time_ms: int = 0
    cost_nanos: int | None = None
    calls: int = 0


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


def _check_charge(
    usage: Counts | None, tokens: int, response_id: str | None, idempotency_key: str | None
) -> None:
    """Usage and tokens exclude each other; a response used something, and has one key."""
    if usage is not None and tokens:
        raise Refused("InvalidValueError", "tokens")
    if response_id is not None and usage is None and not tokens:
        raise Refused("InvalidValueError", "usage")
    if response_id is not None and idempotency_key not in (None, response_id):
        raise Refused("InvalidValueError", "idempotency_key")


class _Paid(NamedTuple):
    """A charge that was made under an idempotency key."""

    amounts: Amounts
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
        if name in ("create", "ensure", "replace", "set"):
            return operation(**arguments, minted=minted)
        return operation(**arguments)

    # -- what hosts ask for ------------------------------------------------------------------------

    def create(self, *, thread_id: str, minted: str | None, **values: Any) -> Row:
        _check_parent(thread_id, values["parent"])
        old = self.goals.get(thread_id)
        if old is not None and old.status != "complete":
            raise Refused("GoalExistsError")
        return self.replace(thread_id=thread_id, minted=minted, **values)

    def ensure(self, *, thread_id: str, minted: str | None, **values: Any) -> Row:
        _check_parent(thread_id, values["parent"])
        old = self.goals.get(thread_id)
        if old is not None:
            return old
        return self.replace(thread_id=thread_id, minted=minted, **values)

    def replace(
        self,
        *,
        thread_id: str,
        objective: str,
        token_budget: int | None,
        cost_budget: Any,
        call_budget: int | None,
        status: str,
        turn_id: str | None,
        minted: str | None,
        parent: str | None = None,
        resume_at_ms: int | None = None,
        blocked_reason: str | None = None,
    ) -> Row:
        _check_parent(thread_id, parent)
        old = self.goals.get(thread_id)
        ancestors = () if parent is None else self._ancestors_under(parent, old)
        assert minted is not None, "a goal was expected to be made"
        assert minted not in self.minted, "a goal id was used again"
        new = Row(
            thread_id,
            minted,
            objective.strip(),
            status,
            token_budget,
            resume_at_ms=resume_at_ms,
            blocked_reason=blocked_reason,
            cost_budget_nanos=_nanos(cost_budget),
            call_budget=call_budget,
            ancestors=ancestors,
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
        cost_budget: Any,
        call_budget: int | str | None,
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
                cost_budget=None if cost_budget == KEPT else cost_budget,
                call_budget=None if call_budget == KEPT else call_budget,
                status="active" if status == KEPT else status,
                turn_id=turn_id,
                minted=minted,
                resume_at_ms=resume_at_ms,
                blocked_reason=reason,
            )
        new = goal._replace(
            objective=goal.objective if objective == KEPT else objective.strip(),
            **_new_budgets(goal, token_budget, cost_budget, call_budget),
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
        cost_budget: Any,
        call_budget: int | str | None,
        expected_goal_id: str | None,
        turn_id: str | None,
    ) -> Row:
        goal = self._expected(thread_id, expected_goal_id)
        if goal is None:
            raise Refused("GoalNotFoundError")
        new = goal._replace(
            status="active", **_new_budgets(goal, token_budget, cost_budget, call_budget)
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
        usage: Counts | None,
        tokens: int,
        cost: Any,
        seconds: float,
        mode: str,
        expected_goal_id: str | None,
        turn_id: str | None,
        response_id: str | None,
        idempotency_key: str | None,
    ) -> Settlement:
        _check_charge(usage, tokens, response_id, idempotency_key)
        if usage is not None:
            tokens = usage.payable
        key = idempotency_key if response_id is None else response_id
        calls = int(usage is not None or response_id is not None)
        amounts = Amounts(tokens, _milliseconds(seconds), _nanos(cost), calls)
        goal = self.goals.get(thread_id)
        if key is not None and (thread_id, key) in self.keys:
            first = self.keys[thread_id, key]
            if first.amounts.tokens != tokens:
                raise Refused("IdempotencyConflictError")
            if cost is not None and (first.amounts.cost_nanos or 0) != amounts.cost_nanos:
                raise Refused("IdempotencyConflictError")
            if goal is None or goal.goal_id != first.row.goal_id:
                return Settlement(None, applied=True, duplicate=True)
            # No text is kept with a charge, so those of now are shown, where they fit.
            was = first.row._replace(
                objective=goal.objective,
                resume_at_ms=goal.resume_at_ms,
                blocked_reason=goal.blocked_reason,
                cost_budget_nanos=goal.cost_budget_nanos,
                call_budget=goal.call_budget,
                unpriced_tokens=min(goal.unpriced_tokens, first.row.tokens_used),
            )
            return Settlement(_waiting(was), applied=True, duplicate=True)
        settled = self._charge(thread_id, amounts, mode, expected_goal_id, turn_id, key)
        if settled.applied and key is not None:
            assert settled.goal is not None
            self.keys[thread_id, key] = _Paid(amounts, settled.goal)
        return settled

    def charge_many(self, *, charges: list[dict[str, Any]]) -> list[Settlement]:
        for charge in charges:
            _check_charge(
                *(charge[name] for name in ("usage", "tokens", "response_id", "idempotency_key"))
            )
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
        cost: Any,
        calls: int,
        turn_id: str | None,
        mode: str,
        expected_goal_id: str | None,
    ) -> Settlement:
        old = self.baselines.get(thread_id)
        counts = total.total if isinstance(total, Baseline) else total
        turn_id = _turn_of(total, turn_id)
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
            amounts = Amounts(tokens, _milliseconds(seconds), _nanos(cost), calls)
            settled = self._charge(thread_id, amounts, mode, expected_goal_id, turn_id, None)
        self.set_baseline(thread_id=thread_id, total=total, turn_id=turn_id)
        return settled

    def set_baseline(
        self, *, thread_id: str, total: Counts | Baseline, turn_id: str | None
    ) -> None:
        turn_id = _turn_of(total, turn_id)
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
        turn_id = _turn_of(total, turn_id)
        settled = Settlement(goal, applied=False)
        if old is not None and counts.is_below(old.total):
            return settled
        if old is not None and goal is not None and self.recorded_for[thread_id] == goal.goal_id:
            amounts = Amounts(counts.since(old.total).payable)
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
        if new.budgets != old.budgets:
            self._note("budget_changed", new, turn_id, previous_status=old.status)
        if new.status != old.status:
            self._note("status_changed", new, turn_id, previous_status=old.status)
        return new

    def _charge(
        self,
        thread_id: str,
        amounts: Amounts,
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
            or (not any(amounts) and key is None)
        ):
            return Settlement(goal, applied=False)
        new = _charged(goal, amounts, mode)
        shared = amounts._replace(time_ms=0)
        above: list[tuple[Row, Row, str]] = []
        via = goal.goal_id
        for goal_id in reversed(goal.ancestors if any(shared) else ()):
            above += [
                (ancestor, _charged(ancestor, shared, "active_only"), via)
                for ancestor in self.goals.values()
                if ancestor.goal_id == goal_id
            ]
            via = goal_id
        self._note_charge(goal, new, amounts, turn_id, idempotency_key=key)
        for ancestor, charged, via in above:
            self._note_charge(
                ancestor, charged, shared, None, origin_goal_id=goal.goal_id, via_goal_id=via
            )
        return Settlement(new, applied=True)

    def _note_charge(
        self, old: Row, new: Row, amounts: Amounts, turn_id: str | None, **rest: Any
    ) -> None:
        self._note(
            "usage_accounted",
            new,
            turn_id,
            previous_status=old.status,
            tokens_delta=amounts.tokens,
            time_delta_ms=amounts.time_ms,
            cost_delta_nanos=amounts.cost_nanos or 0,
            calls_delta=amounts.calls,
            unpriced_tokens_delta=amounts.tokens if amounts.cost_nanos is None else 0,
            cumulative_tokens=new.tokens_used,
            cumulative_time_ms=new.time_used_ms,
            cumulative_cost_nanos=new.cost_used_nanos,
            cumulative_calls=new.calls_used,
            **rest,
        )
        self._change(old, new, turn_id)

    def _ancestors_under(self, parent: str, old: Row | None) -> tuple[str, ...]:
        above = self.goals.get(parent)
        if above is None:
            raise Refused("GoalNotFoundError")
        ancestors = (*above.ancestors, above.goal_id)
        if len(ancestors) >= DEEPEST or (old is not None and old.goal_id in ancestors):
            raise Refused("TreeError")
        return ancestors

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


def _turn_of(total: Counts | Baseline, turn_id: str | None) -> str | None:
    """The turn that a call names, else the one that its total does."""
    return total.turn_id if turn_id is None and isinstance(total, Baseline) else turn_id


def _check_parent(thread_id: str, parent: str | None) -> None:
    if parent == thread_id:
        raise Refused("InvalidValueError", "parent")


def _new_budgets(goal: Row, tokens: Any, cost: Any, calls: Any) -> dict[str, Any]:
    return {
        "token_budget": goal.token_budget if tokens == KEPT else tokens,
        "cost_budget_nanos": goal.cost_budget_nanos if cost == KEPT else _nanos(cost),
        "call_budget": goal.call_budget if calls == KEPT else calls,
    }


def _charged(goal: Row, amounts: Amounts, mode: str) -> Row:
    new = goal._replace(
        tokens_used=goal.tokens_used + amounts.tokens,
        time_used_ms=goal.time_used_ms + amounts.time_ms,
        cost_used_nanos=goal.cost_used_nanos + (amounts.cost_nanos or 0),
        calls_used=goal.calls_used + amounts.calls,
        unpriced_tokens=goal.unpriced_tokens
        + (amounts.tokens if amounts.cost_nanos is None else 0),
    )
    for field, used in (
        ("tokens", new.tokens_used),
        ("seconds", new.time_used_ms),
        ("calls", new.calls_used),
        ("cost", new.cost_used_nanos),
    ):
        if used > LARGEST:
            raise Refused("UsageOverflowError", field)
    if new.spent and (goal.status == "active" or mode == "active_or_stopped"):
        new = _waiting(new._replace(status="budget_limited"))
    return new


def _nanos(cost: Any) -> int | None:
    """Of a cost in units, exactly."""
    return None if cost is None else int(Fraction(cost) * 10**9)


def _waiting(goal: Row) -> Row:
    """Only who waits has a reason to: no other status keeps one."""
    if goal.status != "usage_limited":
        goal = goal._replace(resume_at_ms=None)
    return goal if goal.status == "blocked" else goal._replace(blocked_reason=None)


def _milliseconds(seconds: float) -> int:
    """To the nearest one, exactly."""
    return round(Fraction(seconds) * 1000)
