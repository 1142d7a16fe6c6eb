"""The operations on goals, inside a transaction that its owner began."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine

from goal_state.domain.charging import charge_goal
from goal_state.domain.events import EventKind, GoalEvent
from goal_state.domain.goals import (
    KEEP,
    Accounting,
    Goal,
    GoalStatus,
    check_goal,
    check_status,
    requested_status,
    status_by_budget,
)
from goal_state.domain.operations import GoalOperations
from goal_state.domain.records import changed
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
    ThreadRequest,
)
from goal_state.domain.totals import (
    beginning,
    cumulative,
    is_late,
    names_turn,
    next_baseline,
    with_turn,
)
from goal_state.domain.usage import ThreadUsage, UsageBaseline
from goal_state.domain.values import check_amount, check_name, check_optional_name
from goal_state.errors import (
    BudgetExhaustedError,
    GoalExistsError,
    GoalNotFoundError,
    IdempotencyConflictError,
    InvalidValueError,
    StaleGoalError,
)
from goal_state.storage.baselines import StoredBaseline, UsageLog
from goal_state.storage.falling_totals import FallingTotals
from goal_state.storage.goals import GoalTable
from goal_state.storage.identifiers import new_id
from goal_state.storage.ledger import EventDraft, EventLog, charge_events
from goal_state.storage.sqlite.executor import Executor
from goal_state.storage.sqlite.host_transaction import host_executor

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["GoalRepository", "wall_clock_ms"]

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_falling_totals: Final[WeakKeyDictionary[Engine, FallingTotals]] = WeakKeyDictionary()
"""Of each database, also where a host makes a repository for each of its transactions."""


def wall_clock_ms() -> int:
    """Now, as a Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


class GoalRepository(GoalOperations):
    """The operations on goals for a host that owns the transaction.

    Every change joins the transaction that is open on the connection (or begins one, as SQLAlchemy does
    with any statement); the host commits or rolls back. With a session it is the session's transaction,
    and after its end the session's next one. Live listeners of a `GoalStore` do not hear of what is
    written here; durable consumers do, once it is committed.

    The calls that change goals are described in `GoalOperations`. Each of them, and each that reads,
    raises `TransactionError` where the connection cannot carry a transaction that its owner ends: in
    autocommit mode, once it was closed, or after its transaction was undone.
    """

    def __init__(
        self,
        connection: Connection | Session | Executor,
        *,
        on_event: Callable[[GoalEvent], None] | None = None,
    ) -> None:
        """
        Args:
            connection: a SQLAlchemy connection to a database with our tables, or a session; a store
                hands in what it runs its own transactions with.
            on_event: called with each event as it is written; it counts once the host has committed.

        Raises:
            TransactionError: the connection is closed or in autocommit mode.
            UnsupportedDatabaseError: it is no connection of Python's own `sqlite3`, or an async one.
            InvalidValueError: it is neither a connection nor a session.
        """
        self.executor: Final = (
            connection if isinstance(connection, Executor) else host_executor(connection)
        )
        self._goals: Final = GoalTable(self.executor)
        self.log: Final = EventLog(self.executor, on_event)
        self.usage_log: Final = UsageLog(self.executor)
        self._handlers: dict[type[Request[Any]], Callable[[Any], Any]] = {
            CreateGoal: self._create,
            ChangeGoal: self._change,
            ResumeGoal: self._resume,
            ClearGoal: self._clear,
            Charge: self._charge,
            ChargeMany: self._charge_many,
            RecordTotal: self._record_total,
            SetBaseline: self._set_baseline,
            Reconcile: self._reconcile,
        }

    # -- reading -----------------------------------------------------------------------------------

    def get(self, thread_id: str) -> Goal | None:
        """The thread's goal, or None."""
        return self._goals.get(check_name("thread_id", thread_id))

    def goals_page(
        self, *, after: str = "", status: GoalStatus | str | None = None, limit: int = 500
    ) -> list[Goal]:
        """Up to `limit` goals with a `goal_id` behind `after`, in the order in which they were made.

        Raises:
            InvalidValueError: an argument is out of its bounds.
        """
        if after != "":
            after = check_name("after", after)
        limit = check_amount("limit", limit)
        known = None if status is None else check_status(status)
        return self._goals.page(after, known, limit)

    def count(self, status: GoalStatus | str | None = None) -> int:
        """How many goals there are (of a status)."""
        return self._goals.count(None if status is None else check_status(status))

    def usage(self, thread_id: str) -> ThreadUsage | None:
        """What a thread has used, all its counts together, and the turn that reported last; or None."""
        return self.usage_log.read(check_name("thread_id", thread_id))

    def baseline(self, thread_id: str, count_id: str | None = None) -> UsageBaseline | None:
        """What a charge needs of a count: the total, whose it is, how often it began anew; or None."""
        stored = self.usage_log.baseline(
            check_name("thread_id", thread_id), check_optional_name("count_id", count_id)
        )
        return None if stored is None else stored.baseline

    # -- changing ----------------------------------------------------------------------------------

    def apply(self, request: Request[Result]) -> Result:
        """Carries out a request in the host's transaction and returns its result."""
        handler = self._handlers.get(type(request))
        if handler is None:
            raise InvalidValueError("request", f"must be a request, not {type(request).__name__}")
        self.executor.join_transaction()
        return handler(request)

    def _create(self, request: CreateGoal) -> Goal:
        old = self._goals.lock(request.thread_id)
        if old is not None and old.status is not GoalStatus.COMPLETE and not request.replace:
            raise GoalExistsError(
                f"thread {request.thread_id!r} has a goal that is {old.status}; complete or clear it"
                " first, or use replace()"
            )
        goal = _new_goal(request.thread_id, request.objective, request.status, request.token_budget)
        return self._insert(
            goal, request.turn_id, replaced_goal_id=None if old is None else old.goal_id
        )

    def _change(self, request: ChangeGoal) -> Goal:
        goal = self._goals.lock(request.thread_id)
        _expect(request, goal, request.expected_goal_id)
        if goal is None:
            if request.objective is KEEP:
                raise _not_found(request)
            goal = _new_goal(
                request.thread_id,
                request.objective,
                GoalStatus.ACTIVE if request.status is KEEP else request.status,
                None if request.token_budget is KEEP else request.token_budget,
                request.resume_at_ms,
                request.blocked_reason,
            )
            return self._insert(goal, request.turn_id)
        budget = goal.token_budget if request.token_budget is KEEP else request.token_budget
        status = requested_status(
            goal.status, request.status, tokens_used=goal.tokens_used, token_budget=budget
        )
        new = changed(
            goal,
            objective=goal.objective if request.objective is KEEP else request.objective,
            status=status,
            token_budget=budget,
        )
        if request.status is not KEEP or status is not goal.status:
            limited, blocked = status is GoalStatus.USAGE_LIMITED, status is GoalStatus.BLOCKED
            new = changed(
                new,
                resume_at_ms=request.resume_at_ms if limited else None,
                blocked_reason=request.blocked_reason if blocked else None,
            )
        return self._update(goal, new, request.turn_id)

    def _resume(self, request: ResumeGoal) -> Goal:
        goal = self._goals.lock(request.thread_id)
        _expect(request, goal, request.expected_goal_id)
        if goal is None:
            raise _not_found(request)
        budget = goal.token_budget if request.token_budget is KEEP else request.token_budget
        status = requested_status(
            goal.status, GoalStatus.ACTIVE, tokens_used=goal.tokens_used, token_budget=budget
        )
        if status is not GoalStatus.ACTIVE:
            raise BudgetExhaustedError(
                f"the goal of thread {request.thread_id!r} has used {goal.tokens_used} of {budget}"
                f" tokens; give a token_budget above {goal.tokens_used}, or None for no bound"
            )
        new = changed(
            goal, status=status, token_budget=budget, resume_at_ms=None, blocked_reason=None
        )
        return self._update(goal, new, request.turn_id)

    def _clear(self, request: ClearGoal) -> Goal | None:
        goal = self._goals.clear(request.thread_id, request.expected_goal_id)
        if goal is None:
            return None
        self.log.append(
            EventKind.CLEARED,
            goal,
            turn_id=request.turn_id,
            previous_status=goal.status,
            now_ms=wall_clock_ms(),
        )
        return goal

    def import_goal(self, goal: Goal) -> Goal:
        """Takes over a goal from another store as it is: its id, status, budget, usage and times.

        Its history is not known, so its ledger is the shortest that leads there: it was made active,
        took all its usage as one charge, and then got its status. (`goals()` goes by ids: an id that is
        not time-ordered finds its place among them by its text.)

        Raises:
            GoalExistsError: the thread has a goal, or there was a goal of that id before.
            InvalidValueError: a value is out of its bounds, or the goal is active with its budget spent.
        """
        goal = check_goal(goal)
        self.executor.join_transaction()
        old = self._goals.lock(goal.thread_id)
        if old is not None:
            raise GoalExistsError(f"thread {goal.thread_id!r} has goal {old.goal_id} already")
        if self.log.page_of_goal(goal.goal_id, 0, 1):
            raise GoalExistsError(
                f"there was a goal {goal.goal_id} before; an id is never used again"
            )
        self._goals.insert(goal)
        begun = charged = changed(goal, status=GoalStatus.ACTIVE)
        self.log.append(EventKind.CREATED, begun, turn_id=None, now_ms=goal.created_at_ms)
        if goal.tokens_used or goal.time_used_ms:
            charged = changed(goal, status=status_by_budget(goal))
            self.log.add(
                charge_events(
                    charged,
                    tokens=goal.tokens_used,
                    time_ms=goal.time_used_ms,
                    previous_status=begun.status,
                    turn_id=None,
                    idempotency_key=None,
                    now_ms=goal.updated_at_ms,
                )
            )
        if goal.status is not charged.status:
            self.log.append(
                EventKind.STATUS_CHANGED,
                goal,
                turn_id=None,
                previous_status=charged.status,
                now_ms=goal.updated_at_ms,
            )
        return goal

    # -- charging ----------------------------------------------------------------------------------

    def _charge(self, request: Charge) -> Accounting:
        goal = self._goals.lock(request.thread_id)
        key = request.idempotency_key
        if key is not None and (first := self.log.charge_by_key(request.thread_id, key)):
            return _repeated(request, first, goal)
        return self._write_charge(request, goal, request.tokens, request.time_ms, key)

    def _charge_many(self, request: ChargeMany) -> list[Accounting]:
        """As `_charge` for each, but each goal is read and written once and the log in one go."""
        before: dict[str, Goal | None] = {}
        after: dict[str, Goal | None] = {}
        firsts: dict[tuple[str, str], GoalEvent] = {}
        drafts: list[EventDraft] = []
        results: list[Accounting] = []
        now_ms = wall_clock_ms()
        for charge in request.charges:
            thread_id, key = charge.thread_id, charge.idempotency_key
            if thread_id not in after:
                before[thread_id] = after[thread_id] = self._goals.lock(thread_id)
            goal = after[thread_id]
            if key is not None:
                first = firsts.get((thread_id, key)) or self.log.charge_by_key(thread_id, key)
                if first is not None:
                    results.append(_repeated(charge, first, goal))
                    continue
            accounting = charge_goal(charge, goal, charge.tokens, charge.time_ms, key, now_ms)
            results.append(accounting)
            charged = accounting.goal
            if goal is None or charged is None or not accounting.applied:
                if charge.tokens or charge.time_ms:
                    _log_unpaid(charge, accounting)
                continue
            after[thread_id] = charged
            new = _events(charge, goal, charged, charge.tokens, charge.time_ms, key)
            drafts += new
            if key is not None:
                firsts[thread_id, key] = new[0]
        if drafts:
            pairs = ((before[thread_id], goal) for thread_id, goal in after.items())
            self._goals.charge_many(
                (old, new)
                for old, new in pairs
                if old is not None and new is not None and new is not old
            )
            self.log.add(drafts)
        return results

    def _record_total(self, request: RecordTotal) -> Accounting:
        stored = self.usage_log.baseline(request.thread_id, request.count_id)
        goal = self._goals.lock(request.thread_id)
        before = None if stored is None else stored.baseline
        if before is None and request.count_id is not None:
            before = beginning() if self.usage_log.knows(request.thread_id) else None
        late = self._comes_late(request, stored)
        after, tokens = (None, 0) if late else next_baseline(before, request.total, request.turn_id)
        least_ms = request.least_time_alone_ms
        if least_ms is not None:
            counts = tokens > 0 or request.time_ms >= least_ms
        else:  # a first total, a repeated or a late one: neither its tokens nor its time are new
            counts = not late and before is not None and cumulative(request.total) != before.total
        time_ms = request.time_ms if counts else 0
        accounting = self._write_charge(request, goal, tokens, time_ms, None)
        if not late:
            # The tokens were used, whoever pays: the baseline moves also when no goal took the charge,
            # so that the next goal does not pay for them.
            paid = accounting.applied and tokens > 0
            self._write_baseline(request, stored, after, goal, paid=paid)
        return accounting

    def _set_baseline(self, request: SetBaseline) -> None:
        stored = self.usage_log.baseline(request.thread_id, request.count_id)
        if not request.is_stated and self._comes_late(request, stored):
            return
        before = None if stored is None else stored.baseline
        after, _ = next_baseline(before, request.total, request.turn_id)
        goal = self._goals.lock(request.thread_id)
        self._write_baseline(request, stored, after, goal, paid=False)

    def _comes_late(
        self, request: RecordTotal | SetBaseline, stored: StoredBaseline | None
    ) -> bool:
        """Whether a total was overtaken. Says in the log if this thread's totals seem to be none."""
        if stored is None or not cumulative(request.total).is_below(stored.baseline.total):
            return False
        thread_id, turn_id = request.thread_id, request.turn_id
        late = is_late(
            stored.baseline,
            request.total,
            count_id=request.count_id,
            turn_id=turn_id,
            has_reported=lambda turn: (
                names_turn(stored.unpaid_turn_ids, turn)
                or self.log.turn_has_charged(thread_id, turn)
            ),
        )
        falling = _falling_totals.setdefault(self.executor.engine, FallingTotals())
        if request.count_id is None and falling.note(thread_id, turn_id, within_turn=late):
            _logger.warning(
                "the totals of thread %r fall in turn after turn, so they are no totals, and most of"
                " them charge nothing: charge what one response used with charge(), or give"
                " record_total() and the meter a count_id for each time that counting begins at zero",
                thread_id,
            )
        return late

    def _write_baseline(
        self,
        request: RecordTotal | SetBaseline,
        stored: StoredBaseline | None,
        usage: ThreadUsage | None,
        goal: Goal | None,
        *,
        paid: bool,
    ) -> None:
        """Keeps a usage (None: the one that there is) as the baseline, in the time of a goal."""
        goal_id = None if goal is None else goal.goal_id
        before, unpaid = (None, None) if stored is None else stored
        if (
            request.count_id is None
            and request.turn_id is not None
            and not paid
            and (before is None or request.turn_id != before.turn_id)
        ):
            unpaid = with_turn(unpaid, request.turn_id)
        if before is None and usage is None:  # a further count whose first total is zero
            usage, _ = next_baseline(None, request.total, request.turn_id)
        if usage is not None:
            number = 0 if before is None else before.count_number
            falls = before is not None and usage.info.total.is_below(before.total)
            self.usage_log.write(
                request.thread_id,
                request.count_id,
                usage,
                goal_id=goal_id,
                count_number=number + falls,
                unpaid_turn_ids=unpaid,
                now_ms=wall_clock_ms(),
            )
        elif stored is not None and before is not None:
            turn_id = before.turn_id if request.turn_id is None else request.turn_id
            if (turn_id, goal_id, unpaid) != (before.turn_id, before.goal_id, stored[1]):
                self.usage_log.set_owners(
                    request.thread_id,
                    request.count_id,
                    turn_id=turn_id,
                    goal_id=goal_id,
                    unpaid_turn_ids=unpaid,
                    now_ms=wall_clock_ms(),
                )

    def _reconcile(self, request: Reconcile) -> Accounting:
        thread_id, total, count_id = request.thread_id, request.total, request.count_id
        stored = self.baseline(thread_id, count_id)
        goal = self._goals.lock(thread_id)
        if stored is not None and cumulative(total).is_below(stored.total):
            return Accounting(goal, applied=False)
        turn_id = request.turn_id or (None if stored is None else stored.turn_id)
        accounting = Accounting(goal, applied=False)
        if goal is not None and stored is not None and stored.goal_id == goal.goal_id:
            accounting = self.record_total(thread_id, total, turn_id=turn_id, count_id=count_id)
        # Also where nothing is new: what comes on top of it from now on is used in this goal's time.
        self.set_baseline(thread_id, total, turn_id=turn_id, count_id=count_id)
        return accounting

    # -- shared steps ------------------------------------------------------------------------------

    def _insert(
        self, goal: Goal, turn_id: str | None, *, replaced_goal_id: str | None = None
    ) -> Goal:
        if replaced_goal_id is not None:
            self._goals.delete(replaced_goal_id)
        self._goals.insert(goal)
        self.log.append(
            EventKind.CREATED,
            goal,
            turn_id=turn_id,
            replaced_goal_id=replaced_goal_id,
            now_ms=goal.created_at_ms,
        )
        return goal

    def _update(self, goal: Goal, new: Goal, turn_id: str | None) -> Goal:
        if new == goal:
            return goal
        now_ms = wall_clock_ms()
        new = changed(new, updated_at_ms=max(now_ms, goal.updated_at_ms))
        if goal.remaining_tokens == 0 and new.remaining_tokens != 0:
            self.usage_log.forget_warning(goal.thread_id, goal.goal_id)
        self._goals.update(new)
        if new.status is not goal.status:
            self.log.append(
                EventKind.STATUS_CHANGED,
                new,
                turn_id=turn_id,
                previous_status=goal.status,
                now_ms=now_ms,
            )
        return new

    def _write_charge(
        self,
        request: Charge | RecordTotal,
        goal: Goal | None,
        tokens: int,
        time_ms: int,
        key: str | None,
    ) -> Accounting:
        accounting = charge_goal(request, goal, tokens, time_ms, key, wall_clock_ms())
        charged = accounting.goal
        if goal is None or charged is None or not accounting.applied:
            if tokens or time_ms:
                _log_unpaid(request, accounting)
            return accounting
        self._goals.charge(goal, charged)
        self.log.add(_events(request, goal, charged, tokens, time_ms, key))
        return accounting


def _log_unpaid(request: Charge | RecordTotal, accounting: Accounting) -> None:
    goal = accounting.goal
    if goal is None or request.expected_goal_id not in (None, goal.goal_id):
        _logger.debug("a charge of turn %r found no goal to pay it", request.turn_id)
    else:
        _logger.debug("goal %s is %s and takes no charge", goal.goal_id, goal.status)


def _new_goal(
    thread_id: str,
    objective: str,
    status: GoalStatus,
    token_budget: int | None,
    resume_at_ms: int | None = None,
    blocked_reason: str | None = None,
) -> Goal:
    now_ms = wall_clock_ms()
    return Goal(
        thread_id=thread_id,
        goal_id=new_id(),
        objective=objective,
        status=status,
        token_budget=token_budget,
        tokens_used=0,
        time_used_ms=0,
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
        resume_at_ms=resume_at_ms,
        blocked_reason=blocked_reason,
    )


def _not_found(request: ThreadRequest[Goal]) -> GoalNotFoundError:
    return GoalNotFoundError(f"thread {request.thread_id!r} has no goal; create one first")


def _expect(request: ThreadRequest[Goal], goal: Goal | None, expected: str | None) -> None:
    if expected is not None and (goal is None or goal.goal_id != expected):
        found = "no goal" if goal is None else f"goal {goal.goal_id}"
        raise StaleGoalError(
            f"thread {request.thread_id!r} has {found}, expected goal {expected}; read it again"
        )


def _events(
    request: Charge | RecordTotal,
    goal: Goal,
    charged: Goal,
    tokens: int,
    time_ms: int,
    key: str | None,
) -> list[EventDraft]:
    return charge_events(
        charged,
        tokens=tokens,
        time_ms=time_ms,
        previous_status=goal.status,
        turn_id=request.turn_id,
        idempotency_key=key,
        now_ms=charged.updated_at_ms,
    )


def _repeated(request: Charge, first: GoalEvent, goal: Goal | None) -> Accounting:
    """The result of the charge that used this key before. Its seconds are measured anew for each try, so
    they tell nothing.
    """
    if first.tokens_delta != request.tokens:
        raise IdempotencyConflictError(
            f"idempotency_key {request.idempotency_key!r} has charged {first.tokens_delta} tokens in thread"
            f" {request.thread_id!r}, and that stands; the {request.tokens} of this call were not charged:"
            " repeat a charge with the tokens of its first try"
        )
    if goal is None or goal.goal_id != first.goal_id:
        return Accounting(None, applied=True, duplicate=True)
    is_same = first.goal_status is goal.status
    as_it_was = changed(
        goal,
        status=first.goal_status,
        token_budget=first.token_budget,
        tokens_used=first.cumulative_tokens,
        time_used_ms=first.cumulative_time_ms,
        updated_at_ms=max(first.occurred_at_ms, goal.created_at_ms),
        resume_at_ms=goal.resume_at_ms if is_same else None,
        blocked_reason=goal.blocked_reason if is_same else None,
    )
    return Accounting(as_it_was, applied=True, duplicate=True)
