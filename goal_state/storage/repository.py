"""The operations on goals, inside a transaction that its owner began."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sqlalchemy import Connection

from goal_state.domain.breakdown import Breakdown
from goal_state.domain.counting import Counting
from goal_state.domain.events import GoalEvent
from goal_state.domain.goals import (
    Accounting,
    Goal,
    GoalStatus,
    check_goal,
    check_status,
    goal_ids_above,
)
from goal_state.domain.hold_requests import (
    ClaimGoal,
    DispatchHold,
    EndHold,
    ExpireHolds,
    ExtendHold,
    ObserveHold,
    ReleaseHold,
    Reserve,
    ResumeDue,
)
from goal_state.domain.holds import Headroom, HoldRecord, headroom_of
from goal_state.domain.prices import Prices
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
from goal_state.domain.tariff import Tariff
from goal_state.domain.usage import ThreadUsage, UsageBaseline
from goal_state.domain.values import check_amount, check_name, check_optional_name
from goal_state.errors import (
    InvalidValueError,
    RequestError,
)
from goal_state.operations.goal_operations import GoalOperations
from goal_state.pricing import tariff_of
from goal_state.storage import wall_clock
from goal_state.storage.baselines import UsageLog
from goal_state.storage.breakdowns import breakdown
from goal_state.storage.charges import Charges
from goal_state.storage.executor import Executor
from goal_state.storage.goals import GoalTable
from goal_state.storage.holds import HoldTable
from goal_state.storage.known_goals import KnownGoals
from goal_state.storage.ledger import (
    EventLog,
)
from goal_state.storage.lifecycle import Lifecycle, expect, not_found
from goal_state.storage.reservations import Reservations
from goal_state.storage.settings import Settings
from goal_state.storage.sqlite.host_transaction import host_executor
from goal_state.storage.totals import Totals

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["GoalRepository", "RequestWork"]

Result = TypeVar("Result")


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
        prices: Prices | None = None,
        on_event: Callable[[GoalEvent], None] | None = None,
    ) -> None:
        """
        Args:
            connection: a SQLAlchemy connection to a database with our tables, or a session.
            counted_tokens: which tokens of a usage count, as for `GoalStore.open`. The first change makes
                sure that the database counts alike, or raises `SettingsConflictError`.
            prices: what usage costs, as for `GoalStore.open`.
            on_event: called with each event as it is written; it counts once the host has committed.

        Raises:
            TransactionError: the connection is closed or in autocommit mode.
            UnsupportedDatabaseError: it is no connection of Python's own `sqlite3`, or an async one.
            InvalidValueError: it is neither a connection nor a session, or `counted_tokens` is malformed.
        """
        self._set_up(host_executor(connection), tariff_of(counted_tokens, prices), on_event)

    @classmethod
    def with_executor(cls, executor: Executor, tariff: Tariff) -> Self:
        """A repository in the transactions of a store's own connection."""
        repository = cls.__new__(cls)
        repository._set_up(executor, tariff, None)
        return repository

    def _set_up(
        self,
        executor: Executor,
        tariff: Tariff,
        on_event: Callable[[GoalEvent], None] | None,
    ) -> None:
        self.executor: Executor = executor
        self.tariff: Tariff = tariff
        self.log: EventLog = EventLog(executor, on_event)
        self.usage_log: UsageLog = UsageLog(executor)
        self.settings: Settings = Settings(executor, tariff)
        self.known_goals: KnownGoals = KnownGoals()
        self._goals = GoalTable(executor, self.known_goals)
        self._holds = HoldTable(executor)
        self._reservations = Reservations(self._goals, self._holds, self.log)
        self._lifecycle = Lifecycle(self._goals, self.log, self.usage_log, self._reservations)
        self._charges = Charges(self._goals, self.log, self._reservations)
        self._totals = Totals(
            self._goals, self.log, self.usage_log, self._charges, tariff.counted_tokens, executor
        )
        self._handlers: dict[type[Request[Any]], Callable[[Any], Any]] = {
            CreateGoal: self._lifecycle.create,
            ChangeGoal: self._lifecycle.change,
            ResumeGoal: self._lifecycle.resume,
            ClearGoal: self._lifecycle.clear,
            Charge: self._charge,
            ChargeMany: self._charge_many,
            RecordTotal: self._record_total,
            SetBaseline: self._set_baseline,
            Reconcile: self._reconcile,
            Reserve: self._reserve,
            ReleaseHold: lambda request: self._reservations.release(
                request.hold_id, wall_clock.now_ms()
            ),
            EndHold: lambda request: self._reservations.end_unknown(
                request.hold_id, wall_clock.now_ms()
            ),
            DispatchHold: lambda request: self._reservations.dispatch(
                request.hold_id, wall_clock.now_ms()
            ),
            ExtendHold: lambda request: self._reservations.extend(request, wall_clock.now_ms()),
            ObserveHold: lambda request: self._reservations.observe(
                request.rated(self.tariff), wall_clock.now_ms()
            ),
            ExpireHolds: lambda _: self._reservations.expire_all(wall_clock.now_ms()),
            ClaimGoal: self._lifecycle.claim,
            ResumeDue: self._lifecycle.resume_due,
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

    def children(self, thread_id: str) -> list[Goal]:
        """The goals that were made under the thread's, in the order in which they were made."""
        goal = self.get(thread_id)
        return [] if goal is None else self._goals.children(goal.goal_id)

    def above(self, goal: Goal) -> list[Goal]:
        """The goals above one that are there still, the nearest first."""
        found = map(self._goals.by_id, goal_ids_above(goal.ancestor_goal_ids))
        return [ancestor for ancestor in found if ancestor is not None]

    def holds(self, thread_id: str) -> list[HoldRecord]:
        """The holds of a thread that have not ended, in the order in which they were made."""
        return self._holds.live_of_thread(check_name("thread_id", thread_id))

    def all_holds(self) -> Iterator[HoldRecord]:
        """All holds that have not ended, in the order in which they were made."""
        return self._holds.all_live()

    def headroom(self, thread_id: str) -> Headroom | None:
        """What the thread's goal may still use, or None; a hold that expired unsent counts no more."""
        with self.executor.snapshot():
            goal = self.get(thread_id)
            if goal is None:
                return None
            chain = [goal, *self.above(goal)]
            return headroom_of(self._reservations.without_unsent(chain, wall_clock.now_ms()))

    def breakdown(self, thread_id: str, by: str) -> Breakdown | None:
        """What the usage of the thread's goal is made up of, or None."""
        goal = self.get(thread_id)
        return (
            None if goal is None else breakdown(self.executor, self.log, goal, check_name("by", by))
        )

    def next_resume_at_ms(self) -> int | None:
        """The earliest `resume_at_ms` of all goals, or None."""
        return self._goals.next_resume_at_ms()

    # -- changing ----------------------------------------------------------------------------------

    def apply(self, request: Request[Result]) -> Result:
        """Carries out a request in the host's transaction and returns its result."""
        handler = self._handlers.get(type(request))
        if handler is None:
            raise InvalidValueError("request", f"must be a request, not {type(request).__name__}")
        self.executor.join_transaction()
        if not self.settings.are_agreed:
            self.settings.agree()
        self._reservations.overdue_thread_id = None
        try:
            return handler(request)
        except RequestError as error:
            error.overdue_thread_id = self._reservations.overdue_thread_id
            raise

    def charge_each(self, requests: Sequence[Charge]) -> list[Accounting | RequestError]:
        """Carries out charges of several callers as `apply` would one after the other, but faster. None of
        them settles a hold, and each is rated. The error of one that is refused stands in its place; what
        time alone had made true of its goal is written.
        """
        self.executor.join_transaction()
        if not self.settings.are_agreed:
            self.settings.agree()
        return self._charges.charge_each(requests, wall_clock.now_ms())

    def notice(self, thread_id: str) -> None:
        """Writes what time alone has made true of the thread's goal and of those above it: that deadlines
        have passed, and that holds have expired.
        """
        self.executor.join_transaction()
        now_ms = wall_clock.now_ms()
        self._reservations.expire_thread(thread_id, now_ms)
        goal = self._lifecycle.lock(thread_id, now_ms)
        if goal is not None:
            self._reservations.above(goal, now_ms)

    def import_goal(self, goal: Goal) -> Goal:
        """Takes over a goal from another store as it is: its id, status, budgets, usage and times.

        Its history is not known, so its ledger is the shortest that leads there: it was made active,
        took all its usage as one charge, and then got its status. (`goals()` goes by ids: an id that is
        not time-ordered finds its place among them by its text.)

        Raises:
            GoalExistsError: the thread has a goal, or there was a goal of that id before.
            InvalidValueError: a value is out of its bounds, or the goal is active with a budget used up.
        """
        goal = check_goal(goal)
        self.executor.join_transaction()
        return self._lifecycle.take_over(goal)

    # -- charges and holds --------------------------------------------------------------------------

    def _reserve(self, request: Reserve) -> tuple[HoldRecord, bool]:
        request, now_ms = request.rated(self.tariff), wall_clock.now_ms()
        goal = self._lifecycle.lock(request.thread_id, now_ms)
        expect(request, goal, request.expected_goal_id, request.claim)
        found = self._reservations.find(request, now_ms)
        if found is not None:
            return found, True
        if goal is None:
            raise not_found(request)
        return self._reservations.reserve(request, goal, now_ms), False

    def _charge(self, request: Charge) -> Accounting:
        if request.usage is not None:
            request = request.rated(self.tariff)
        return self._charges.charge(request, wall_clock.now_ms())

    def _charge_many(self, request: ChargeMany) -> list[Accounting]:
        return self._charges.charge_many(request.rated(self.tariff), wall_clock.now_ms())

    def _record_total(self, request: RecordTotal) -> Accounting:
        return self._totals.record(request, wall_clock.now_ms())

    def _set_baseline(self, request: SetBaseline) -> None:
        self._totals.set_baseline(request, wall_clock.now_ms())

    def _reconcile(self, request: Reconcile) -> Accounting:
        return self._totals.reconcile(request, wall_clock.now_ms())


class RequestWork:
    """What carries out a request in a transaction."""

    __slots__ = ("request",)

    def __init__(self, request: Request[Any]) -> None:
        """
        Args:
            request: rated already.
        """
        self.request: Request[Any] = request

    def __call__(self, repository: GoalRepository) -> Any:
        """Carries it out and returns its result."""
        return repository.apply(self.request)
