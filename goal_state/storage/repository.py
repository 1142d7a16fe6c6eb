"""The operations on goals, inside a transaction that its owner began."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sqlalchemy import Connection

from goal_state.domain.counting import CountedTokens, Counting
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
from goal_state.domain.usage import ThreadUsage, UsageBaseline
from goal_state.domain.values import check_amount, check_name, check_optional_name
from goal_state.errors import (
    BudgetExhaustedError,
    GoalExistsError,
    GoalNotFoundError,
    InvalidValueError,
    StaleGoalError,
)
from goal_state.storage.baselines import UsageLog
from goal_state.storage.charges import Charges
from goal_state.storage.executor import Executor
from goal_state.storage.goals import GoalTable
from goal_state.storage.identifiers import new_id
from goal_state.storage.ledger import EventLog, charge_events
from goal_state.storage.settings import Settings
from goal_state.storage.sqlite.host_transaction import host_executor
from goal_state.storage.totals import Totals

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["GoalRepository", "wall_clock_ms"]

Result = TypeVar("Result")


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
        connection: Connection | Session,
        *,
        counted_tokens: Counting = "uncached",
        on_event: Callable[[GoalEvent], None] | None = None,
    ) -> None:
        """
        Args:
            connection: a SQLAlchemy connection to a database with our tables, or a session.
            counted_tokens: which tokens of a usage count, as for `GoalStore.open`. The first change makes
                sure that the database counts alike, or raises `SettingsConflictError`.
            on_event: called with each event as it is written; it counts once the host has committed.

        Raises:
            TransactionError: the connection is closed or in autocommit mode.
            UnsupportedDatabaseError: it is no connection of Python's own `sqlite3`, or an async one.
            InvalidValueError: it is neither a connection nor a session, or `counted_tokens` is malformed.
        """
        self._set_up(host_executor(connection), CountedTokens.of(counted_tokens), on_event)

    @classmethod
    def with_executor(cls, executor: Executor, counted_tokens: CountedTokens) -> Self:
        """A repository in the transactions of a store's own connection."""
        repository = cls.__new__(cls)
        repository._set_up(executor, counted_tokens, None)
        return repository

    def _set_up(
        self,
        executor: Executor,
        counted_tokens: CountedTokens,
        on_event: Callable[[GoalEvent], None] | None,
    ) -> None:
        self.executor: Executor = executor
        self.counted_tokens: CountedTokens = counted_tokens
        self.log: EventLog = EventLog(executor, on_event)
        self.usage_log: UsageLog = UsageLog(executor)
        self.settings: Settings = Settings(executor, counted_tokens)
        self._goals = GoalTable(executor)
        self._charges = Charges(self._goals, self.log)
        self._totals = Totals(
            self._goals, self.log, self.usage_log, self._charges, counted_tokens, executor
        )
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
        if not self.settings.are_agreed:
            self.settings.agree()
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
        if request.usage is not None:
            request = request.counted(self.counted_tokens)
        return self._charges.charge(request, wall_clock_ms())

    def _charge_many(self, request: ChargeMany) -> list[Accounting]:
        return self._charges.charge_many(request.counted(self.counted_tokens), wall_clock_ms())

    def _record_total(self, request: RecordTotal) -> Accounting:
        return self._totals.record(request, wall_clock_ms())

    def _set_baseline(self, request: SetBaseline) -> None:
        self._totals.set_baseline(request, wall_clock_ms())

    def _reconcile(self, request: Reconcile) -> Accounting:
        return self._totals.reconcile(request, wall_clock_ms())

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
