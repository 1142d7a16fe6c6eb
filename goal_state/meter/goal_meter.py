"""GoalMeter: from what a live agent reports to charges on its thread's goal.

Rules that hold throughout, as recorded from a real program:

- A turn pays for the goal that is active when it starts, or that becomes active while it runs, from that
  moment on; never for another one. One that crosses the budget goes on paying to its end.
- Every change of the goal first charges what is due.
- Active time rides on the charges of tokens. Alone it is charged once a whole second is due; what is less
  is carried, from report to report and from turn to turn, for the goal that owes it.
- What was observed is durable: the usage baseline moves in the transaction of the charge, so that a
  process which dies at any point and starts again charges each token once.
- A call that an exception struck is repeated safely: what of it was committed is found in the log, and a
  response by its id.
- A response that was charged moves the baseline, too: a total that contains it pays for the rest alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from decimal import Decimal
from typing import Literal, NoReturn, TypeVar

from goal_state.domain.goals import Accounting, Goal
from goal_state.domain.requests import Charge, check_total
from goal_state.domain.usage import ThreadUsage, TokenUsage
from goal_state.domain.values import check_name, check_optional_name
from goal_state.errors import TurnError
from goal_state.meter.changes import GoalChanges
from goal_state.meter.settling import Settling, begins
from goal_state.meter.state import Attempt, Reading, State, Turn
from goal_state.operations.hold import Hold
from goal_state.storage.blocks import Block
from goal_state.storage.repository import GoalRepository
from goal_state.store import GoalStore

__all__ = ["GoalMeter"]

Result = TypeVar("Result")


class GoalMeter(GoalChanges):
    """Meters one thread. Safe to call from several threads; several meters may share a thread id, in one
    process or many, and never charge the same tokens twice, whichever of them hears of them first or late.
    They do so within one turn, or where their totals have one `count_id`: see `GoalStore.record_total` for
    how a late total is told from the first of a new count.

    Time is another matter: each meter measures its own, so that two that run in one turn charge it twice.
    Let one of them measure it, and give the others a clock that stands still (`clock_ns=lambda: 0`).

    A call that raises has charged nothing, unless an exception from outside (`KeyboardInterrupt`, one of a
    signal handler) struck after its commit. It may be repeated in any case, and then charges nothing again
    (a `charge` needs its `response_id` for that); until then its turn is the one from before it.

        meter = GoalMeter(store, "thread-1")
        with meter.turn("turn-1"):
            reading = meter.charge(response.usage, response_id=response.id)

    Charge each response, or record totals, whichever the provider reports. Where both come in one turn,
    charge a response before the total that contains it: the total then pays for the rest alone.
    """

    def __init__(
        self,
        store: GoalStore,
        thread_id: str,
        *,
        count_idle_time: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """
        Args:
            store: where the goal is kept. The meter does not close it.
            thread_id: the conversation.
            count_idle_time: whether the time between turns counts as active, while a goal is.
            clock_ns: a monotonic clock in nanoseconds.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        self.thread_id: str = check_name("thread_id", thread_id)
        self._store = store
        self._count_idle_time = count_idle_time
        self._clock_ns = clock_ns
        self._settling = Settling(self.thread_id, clock_ns, count_idle_time=count_idle_time)
        self._lock = threading.RLock()
        self._at_work = False
        self._state = State(marked_ns=clock_ns())
        self._last: Attempt | None = None
        """The last call, until the next one finds out what became of it and makes that the state."""
        if count_idle_time:
            self._settling.bind(self._state, store.get(self.thread_id))

    @property
    def turn_id(self) -> str | None:
        """The turn that runs, or None."""
        turn = self._turn
        return None if turn is None else turn.turn_id

    @property
    def goal(self) -> Goal | None:
        """The thread's goal as it is stored now, or None."""
        return self._store.get(self.thread_id)

    @property
    def remaining_tokens(self) -> int | None:
        """What is left of the goal's budget, from 0; None without a goal or without a budget."""
        goal = self.goal
        return None if goal is None else goal.remaining_tokens

    # -- turns -------------------------------------------------------------------------------------

    def start_turn(
        self,
        turn_id: str,
        *,
        total: TokenUsage | ThreadUsage | None = None,
        count_id: str | None = None,
        charge_tokens: bool = True,
    ) -> Reading:
        """A turn begins. It pays for the goal that is active now.

        Args:
            turn_id: the turn, as the host names it.
            total: what the thread has used so far, as far as the host knows. On a thread that was never
                seen this (or zero) becomes the baseline. Where it is above the stored one, tokens were
                lost in a crash: they are charged now, to the turn that used them (the one that a
                `ThreadUsage` names, else the stored baseline's), if the goal that is active was there at
                that time. One below the stored one is the first of a new count if this turn has not
                reported before, else it is late.
            count_id: what the turn's totals are counted in, where a thread's usage is counted from zero
                more than once; as for `GoalStore.record_total`. Without it, a turn that is tried again
                under its id with a count from zero pays nothing until that exceeds what it had reported.
            charge_tokens: False for a turn that pays nothing (planning).

        Raises:
            TurnError: a turn is running.
            InvalidValueError: a value is out of its bounds.
        """
        turn = Turn(
            check_name("turn_id", turn_id),
            charge_tokens,
            check_optional_name("count_id", count_id),
        )
        if total is not None:
            check_total(total)

        def check() -> None:
            if self._turn is not None:
                raise TurnError(
                    f"turn {turn_id!r} cannot start while turn {self._turn.turn_id!r} runs;"
                    " finish or abort that one first"
                )

        def work(repository: GoalRepository, state: State) -> Accounting:
            if self._count_idle_time:
                idle = self._settling.settle(repository, state).applied
            else:
                idle = False
                state.marked_ns = self._clock_ns()
            state.turn = turn
            caught_up = self._settling.catch_up(repository, turn, total)
            goal = repository.get(self.thread_id)
            self._settling.bind(state, goal)
            return Accounting(goal, applied=idle or caught_up)

        return self._report(check, work)

    def charge(
        self,
        usage: object = None,
        *,
        tokens: int = 0,
        cost: Decimal | int | str | None = None,
        model: str | None = None,
        response_id: str | None = None,
        idempotency_key: str | None = None,
        turn_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        settles: Hold | str | None = None,
    ) -> Reading:
        """One model response used this: charges it, and the active time. As `GoalStore.charge`; to be called
        after each response.

        A repeat with its `response_id` charges nothing, and its time stays due. While no goal pays, it is
        nobody's. A usage moves the baseline of the turn's count, so that a total of that count pays only for
        what no response was charged for; `tokens` leave it as it is. In a turn that has recorded a total
        there is no telling whether that contains the response, so that a usage is refused.

        Args:
            usage: what the response used: whatever `GoalStore.charge` takes.
            tokens: instead of a usage, how many tokens, from 0.
            response_id: the provider's id of the response, under which it is charged once.
            cost: what it cost, as for `GoalStore.charge`.
            model: the model that answered.
            idempotency_key: a key of your own for what is no response.
            turn_id: the turn that the report is of; it must be the one that runs.
            tags: as for `GoalStore.charge`.
            settles: the hold (or its id) that this ends; see `reserve`.

        Raises:
            TurnError: no turn runs, or another one, or it has recorded a total.
            HoldEndedError: the hold was settled with other figures, or released.
            IdempotencyConflictError: the response was charged before, with other tokens. That stands.
            InvalidValueError: a value is malformed; nothing was charged.
            UsageOverflowError: the goal's usage would reach 2^63.
        """
        named = check_optional_name("turn_id", turn_id)
        charge = Charge(
            self.thread_id,
            usage,
            tokens=tokens,
            cost=cost,
            model=model,
            response_id=response_id,
            idempotency_key=idempotency_key,
            tags=tags,
            settles=settles.hold_id if isinstance(settles, Hold) else settles,
        )
        used, charge = charge.usage, charge.rated(self._store.tariff)

        def check() -> None:
            self._check_running(named)
            if used is not None and self._turn is not None and self._turn.reports_totals:
                raise TurnError(
                    f"turn {self._turn.turn_id!r} reports totals, and they contain what each response used:"
                    " leave charge() out, or charge the responses of a turn instead of its totals"
                )

        def work(repository: GoalRepository, state: State) -> Accounting:
            return self._settling.settle_charge(repository, state, charge, used)

        return self._report(check, work)

    def reserve(
        self,
        *,
        tokens: int = 0,
        usage: object = None,
        model: str | None = None,
        cost: Decimal | int | str | None = None,
        calls: int = 1,
        at_least: int | None = None,
        key: str | None = None,
        expires_in: float = 600.0,
        unknown: Literal["charge", "release"] = "charge",
        dispatched: bool = True,
        tags: Mapping[str, str] | None = None,
    ) -> Hold:
        """Sets a part of the goal's budgets aside for a call of the running turn, as `GoalStore.reserve`.

            with meter.reserve(tokens=12_000) as hold:
                reply = client.messages.create(max_tokens=hold.tokens - prompt_tokens, …)
                meter.charge(reply.usage, response_id=reply.id, settles=hold)

        Settled by `charge`, its charge brings the active time; by `hold.settle`, the time stays due.

        Arguments as for `GoalStore.reserve`.

        Raises:
            TurnError: no turn runs.
            BudgetExceededError, UnknownPriceError, HoldEndedError, GoalNotFoundError, InvalidValueError: as
                for `GoalStore.reserve`.
        """
        self._check_running()
        return self._store.reserve(
            self.thread_id,
            tokens=tokens,
            usage=usage,
            model=model,
            cost=cost,
            calls=calls,
            at_least=at_least,
            key=key,
            expires_in=expires_in,
            unknown=unknown,
            dispatched=dispatched,
            tags=tags,
            turn_id=self.turn_id,
        )

    def record_total(
        self,
        total: TokenUsage | ThreadUsage,
        *,
        turn_id: str | None = None,
        count_id: str | None = None,
    ) -> Reading:
        """The thread's cumulative usage is this now: charges what is new in it, and the active time.

        A total that is lower than the stored one charges nothing: it is the first of a new count if the
        turn has not reported before, else it is late. Time that comes with nothing new is charged once it
        is a whole second.

        Args:
            total: what the thread has used since it began. Whatever turn a `ThreadUsage` names, it is the
                running turn that used what is new.
            turn_id: the turn that the report is of; it must be the one that runs.
            count_id: the count that the total is of, and the turn's from now on; by default the turn's.

        Raises:
            TurnError: no turn runs, or another one.
            InvalidValueError: a value is malformed; nothing was charged.
            UsageOverflowError: the goal's usage would reach 2^63.
        """
        check_total(total)
        named = check_optional_name("turn_id", turn_id)
        count = check_optional_name("count_id", count_id)

        def work(repository: GoalRepository, state: State) -> Accounting:
            if state.turn is not None:
                of_count = state.turn.count_id if count is None else count
                state.turn = replace(state.turn, count_id=of_count, reports_totals=True)
            return self._settling.settle(repository, state, total)

        return self._report(lambda: self._check_running(named), work)

    def flush(self) -> Reading:
        """Charges the active time so far, once it is a whole second; to be called after a tool has run.

        Raises:
            TurnError: no turn runs.
        """
        return self._report(self._check_running, self._settling.settle)

    def turn(
        self,
        turn_id: str,
        *,
        total: TokenUsage | ThreadUsage | None = None,
        count_id: str | None = None,
        charge_tokens: bool = True,
    ) -> AbstractContextManager[Reading]:
        """A turn, as long as the block of a `with` statement: `start_turn`, whose reading the block is
        handed, and at its end `finish_turn`, or `abort_turn` where an exception leaves the block. A turn that
        was ended inside the block stays ended.

        Arguments and errors as for `start_turn`.
        """
        return Block(self._run_turn(turn_id, total, count_id, charge_tokens=charge_tokens))

    def _run_turn(
        self,
        turn_id: str,
        total: TokenUsage | ThreadUsage | None,
        count_id: str | None,
        *,
        charge_tokens: bool,
    ) -> Generator[Reading, bool, None]:
        reading = self.start_turn(
            turn_id, total=total, count_id=count_id, charge_tokens=charge_tokens
        )
        end = self.abort_turn
        try:
            if not (yield reading):
                end = self.finish_turn
        finally:
            if self.turn_id == turn_id:
                end()

    def finish_turn(self) -> Reading:
        """The turn is over; charges what is due. Less than a second is carried to the next turn.

        Raises:
            TurnError: no turn runs.
        """
        return self._end_turn()

    def abort_turn(self) -> Reading:
        """The turn was interrupted; it pays for what it used.

        Raises:
            TurnError: no turn runs.
        """
        return self._end_turn()

    def __repr__(self) -> str:
        turn_id = self.turn_id
        turn = "" if turn_id is None else f", in turn {turn_id!r}"
        return f"<GoalMeter of thread {self.thread_id!r}{turn}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a GoalMeter cannot be pickled or copied, for it has a clock and a store of its process: make"
            " one of the same thread id where it is needed"
        )

    # -- calls -------------------------------------------------------------------------------------

    @property
    def _turn(self) -> Turn | None:
        """The turn that runs. A call that was struck has neither begun nor ended one."""
        last = self._last
        if last is not None and last.is_committed and not last.is_struck and last.state is not None:
            return last.state.turn
        return self._state.turn

    def _check_running(self, turn_id: str | None = None) -> None:
        turn = self._turn
        if turn is None:
            raise TurnError("no turn is running; start one first")
        if turn_id is not None and turn_id != turn.turn_id:
            raise TurnError(f"turn {turn_id!r} is not running; turn {turn.turn_id!r} is")

    def _end_turn(self) -> Reading:
        def work(repository: GoalRepository, state: State) -> Accounting:
            accounting = self._settling.settle(repository, state)
            state.turn = None
            self._settling.bind(state, accounting.goal)
            return accounting

        return self._report(self._check_running, work)

    def _report(
        self, check: Callable[[], None], work: Callable[[GoalRepository, State], Accounting]
    ) -> Reading:
        """Makes a report that is answered by a reading."""

        def attempt(repository: GoalRepository, state: State, call: Attempt) -> Reading:
            accounting = work(repository, state)
            self._settling.note_payer(repository, state, accounting.goal)
            reading = self._settling.reading(repository, state, accounting)
            if reading.goal is not None and reading.budget_exhausted:
                call.exhausted_goal_id = reading.goal.goal_id
            return reading

        return self._call(check, attempt)

    def _change(self, change: Callable[[GoalRepository, str | None], Result]) -> Result:
        """Makes a change of the goal, after what is due was charged."""

        def attempt(repository: GoalRepository, state: State, _: Attempt) -> Result:
            self._settling.settle(repository, state)
            before = repository.get(self.thread_id)
            result = change(repository, None if state.turn is None else state.turn.turn_id)
            goal = repository.get(self.thread_id)
            if state.turn is None or state.paying_goal_id is None or begins(goal, before):
                self._settling.bind(state, goal)
            self._settling.note_payer(repository, state, goal)
            return result

        return self._call(None, attempt)

    def _call(
        self,
        check: Callable[[], None] | None,
        attempt: Callable[[GoalRepository, State, Attempt], Result],
    ) -> Result:
        """One call at a time: runs an attempt on a copy of the state, in a transaction.

        A live listener is called while the call that caused its event is not finished yet, so it cannot
        make another.
        """
        call = Attempt()

        def work(repository: GoalRepository) -> Result:
            self._find_out(repository)
            state, newest_id = replace(self._state), repository.log.newest_id
            result = attempt(repository, state, call)
            if repository.log.newest_id != newest_id:
                call.event_id, call.position = (
                    repository.log.newest_id,
                    repository.log.last_position(),
                )
            call.state, self._last = state, call
            return result

        try:
            with self._lock:
                if self._at_work:
                    raise TurnError("the meter is at work; report after the listener has returned")
                self._at_work = True
                try:
                    if check is not None:
                        check()
                    result = self._store.transact(work)
                    call.is_committed = True
                    return result
                finally:
                    self._at_work = False
        except BaseException:
            call.is_struck = True
            raise

    def _find_out(self, repository: GoalRepository) -> None:
        """Makes what the last call left the state, if it was committed."""
        if self._last is not None:
            self._state = self._last.outcome(self._state, repository.log)
        self._last = None
