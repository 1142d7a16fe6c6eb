"""A meter under everything that can happen to it, beside a model that knows what was truly used.

The model is written from the rules. For each call it says, as an interval, what the goals may have paid
afterwards: a single value wherever the rules leave no choice. They leave one where somebody changed a goal
without the meter, which learns of it with its next report.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from goal_state import (
    KEEP,
    BudgetExhaustedError,
    EventKind,
    Goal,
    GoalEvent,
    GoalExistsError,
    GoalNotFoundError,
    GoalStore,
    RequestError,
    TokenUsage,
)
from goal_state.meter import GoalMeter, Reading
from goal_state.testing.clock import NS_PER_MS, NS_PER_S, Clock
from tests.meter.figures import THREAD

PROOF = os.environ.get("HYPOTHESIS_PROFILE") == "proof"

Result = TypeVar("Result")


@dataclass
class Span:
    """A number that is known to lie between two bounds, both included."""

    low: int = 0
    high: int = 0

    def add(self, low: int, high: int) -> None:
        self.low += low
        self.high += high

    def narrow(self, low: int, high: int) -> None:
        """It was seen to lie between these."""
        assert self.low <= high, f"too much or too little: {low}..{high}, not {self}"
        assert low <= self.high, f"too much or too little: {low}..{high}, not {self}"
        self.low, self.high = max(self.low, low), min(self.high, high)


class Paid:
    """What a goal has paid, by the model; and what is known of it."""

    def __init__(self, goal_id: str, status: str, budget: int | None) -> None:
        self.goal_id = goal_id
        self.status = status
        self.budget = budget
        self.tokens = Span()
        self.time_ns = Span()
        self.warned = False

    @property
    def spent(self) -> bool:
        return self.budget is not None and self.tokens.low >= self.budget

    @property
    def pays(self) -> bool:
        """Whether it goes on paying for a turn that it paid for before."""
        return self.status in ("active", "budget_limited")


@dataclass
class Turn:
    turn_id: str
    charge_tokens: bool
    has_reported: bool = False


def usage_of(fresh: int, cached: int, output: int) -> TokenUsage:
    return TokenUsage(fresh + cached, cached, 0, output)


USAGE = st.builds(
    usage_of,
    st.integers(0, 40),
    st.integers(0, 100),
    st.integers(0, 40),
)
BUDGETS = st.none() | st.integers(1, 1_000)
# What stops the charging is drawn less often than what goes on: a machine that mostly stands still finds
# nothing.
STATUSES = st.sampled_from(
    ["active"] * 6 + ["paused", "blocked", "usage_limited", "budget_limited", "complete"]
)
CHANGES = [
    *["set", "set budget", "set both"] * 2,
    *["create", "complete", "blocked", "usage_limited", "clear"],
]
CHANGES_BEHIND = [*["set", "set both", "resume"] * 2, "replace", "clear"]
SHARES = st.sampled_from([0.0, 0.3, 0.9, 1.0])
TICKS_NS = st.sampled_from(
    [0, 1, 400_000, 999_999, NS_PER_MS, 1_700_000, NS_PER_S, 3 * NS_PER_S + 300_000, -NS_PER_S]
)


class MeterMachine(RuleBasedStateMachine):
    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "goals.db"
        shutil.copy(self.template, self.path)
        self.clock = Clock()
        self.turns = 0
        self.position = 0
        self.total = TokenUsage()
        self.first_seen = False
        self.turn: Turn | None = None
        self.goals: dict[str, Paid] = {}
        self.current: Paid | None = None
        # Who pays for what is used now, and whether it was stopped meanwhile without the meter.
        self.payer: Paid | None = None
        self.interrupted = False
        # Who pays for what was used and never reported, if the meter dies.
        self.noted: Paid | None = None
        self.noted_surely = True
        # What was reported last, and the last turn that reported something new.
        self.heard_total = TokenUsage()
        self.owner: str | None = None
        # Used, and not reported yet; the part of it that was used after the last change from behind.
        self.unheard = 0
        self.unheard_after = 0
        self.changed_ns = 0
        self.marked_ns = 0
        self.must_tell = False
        self.used = 0

    @initialize(
        idle=st.booleans(),
        history=USAGE,
        budget=BUDGETS | st.just(0),
        started=st.booleans(),
    )
    def begin(self, idle: bool, history: TokenUsage, budget: int | None, started: bool) -> None:
        """A thread with a history, and mostly with a goal; a budget of 0 stands for none."""
        self.idle = idle
        self.total = history
        self.must_tell = history != TokenUsage()
        self.store = GoalStore.open(self.path, durability="normal")
        self.make_meter()
        if budget != 0:
            self.behind(self.store.create(THREAD, "there from the start", token_budget=budget))
        if started:
            self.start_turn(0, tell=True, charge_tokens=True)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        self.folder.cleanup()

    def make_meter(self) -> None:
        self.meter = GoalMeter(self.store, THREAD, count_idle_time=self.idle, clock_ns=self.clock)
        self.marked_ns = self.clock.now_ns
        self.interrupted = False
        self.payer = self.bound()

    # -- the model ---------------------------------------------------------------------------------

    def bound(self) -> Paid | None:
        """The goal that begins to pay now."""
        works = self.turn.charge_tokens if self.turn is not None else self.idle
        active = self.current is not None and self.current.status == "active"
        return self.current if works and active else None

    def charge(self, tokens: int, *, certain: bool = True) -> None:
        """A report of the meter: time, and tokens, are due."""
        elapsed_ns = max(self.clock.now_ns - self.marked_ns, 0)
        self.marked_ns = self.clock.now_ns
        goal = self.current
        if self.payer is None:
            begins = self.bound()
            if begins is not None:
                # Somebody else made it or woke it: it pays from now on at the latest.
                since_ns = max(self.clock.now_ns - self.changed_ns, 0)
                begins.tokens.add(0, min(self.unheard_after, tokens))
                begins.time_ns.add(0, min(since_ns, elapsed_ns))
            self.payer = begins
        elif goal is self.payer and goal.pays:
            sure = certain and not self.interrupted
            if self.turn is None and goal.status != "active":
                sure = False
            goal.tokens.add(tokens if sure else 0, tokens)
            goal.time_ns.add(elapsed_ns if sure else 0, elapsed_ns)
        self.interrupted = False

    def heard(self, turn_id: str) -> None:
        self.unheard = self.unheard_after = 0
        if self.total != self.heard_total:
            self.heard_total, self.owner = self.total, turn_id

    def note_payer(self) -> None:
        if self.turn is not None:
            self.noted = self.payer if self.payer is self.current else None
            if self.noted is not None and not self.noted.pays:
                self.noted = None

    def requested(self, goal: Paid, status: Any, budget: Any) -> tuple[str, int | None]:
        """What becomes of a request to change a goal."""
        budget = goal.budget if budget is KEEP else budget
        wanted = goal.status if status is KEEP else status
        spent = budget is not None and goal.tokens.low >= budget
        hides = goal.status == "budget_limited" and wanted in ("paused", "blocked")
        if hides or (wanted == "active" and spent):
            wanted = "budget_limited"
        return wanted, budget

    # -- making calls and looking at what came of them ----------------------------------------------

    def call(
        self,
        report: Callable[[], Result],
        *,
        charged_to: set[str | None],
        change_turn: str | None = None,
    ) -> Result:
        """Makes a call of the meter and looks at what it wrote, and which turn each event names."""
        result = report()
        events = list(self.store.events(after=self.position))
        self.look(events)
        charges = [event for event in events if event.kind is EventKind.USAGE_ACCOUNTED]
        crossing = None
        for event in events:
            if event.kind is EventKind.USAGE_ACCOUNTED:
                assert event.turn_id in charged_to
                if event.goal_status is not event.previous_status:
                    crossing = event
            elif crossing is not None and event.position == crossing.position + 1:
                assert event.turn_id == crossing.turn_id
            else:
                assert event.turn_id == change_turn
        if isinstance(result, Reading):
            assert result.goal == self.store.get(THREAD)
            assert result.charged == bool(charges)
            assert result.budget_exhausted == (bool(charges) and self.is_news_that_it_is_full())
            assert result.over_budget == (
                result.goal is not None and result.goal.remaining_tokens == 0
            )
        assert all(event.tokens_delta or event.time_delta_ms >= 1_000 for event in charges)
        return result

    def is_news_that_it_is_full(self) -> bool:
        goal = self.current
        if goal is None or not goal.spent or goal.warned:
            return False
        goal.warned = True
        return True

    def look(self, events: list[GoalEvent]) -> None:
        """Holds what the log says beside the model, which learns what the rules left open."""
        if events:
            self.position = events[-1].position
        for goal_id in {e.goal_id for e in events} & self.goals.keys() | self.at_hand():
            goal = self.goals[goal_id]
            ledger = list(self.store.events(goal_id=goal_id))
            tokens = sum(event.tokens_delta for event in ledger)
            time_ns = sum(event.time_delta_ms for event in ledger) * NS_PER_MS
            goal.tokens.narrow(tokens, tokens)
            # Less than a second may be due still.
            goal.time_ns.narrow(time_ns, time_ns + NS_PER_S - 1)
        for event in events:
            if event.kind is EventKind.USAGE_ACCOUNTED:
                # The charges of a call come before what it changes.
                goal = self.goals[event.goal_id]
                if goal.status == "active" and goal.spent:
                    goal.status = "budget_limited"

    def at_hand(self) -> set[str]:
        return {goal.goal_id for goal in (self.current, self.payer) if goal is not None}

    def adopt(self, goal: Goal) -> None:
        self.current = Paid(goal.goal_id, goal.status.value, goal.token_budget)
        assert goal.goal_id not in self.goals
        self.goals[goal.goal_id] = self.current

    # -- turns -------------------------------------------------------------------------------------

    @precondition(lambda self: self.turn is None)
    @rule(ns=TICKS_NS, tell=st.booleans(), charge_tokens=st.sampled_from([True] * 3 + [False]))
    def start_turn(self, ns: int, tell: bool, charge_tokens: bool) -> None:
        self.clock.tick(ns=ns)
        tell = tell or self.must_tell or self.unheard > 0
        self.turns += 1
        self.charge(0)
        goal = self.current
        if self.first_seen and goal is not None and goal is self.noted and goal.pays:
            # What the last turn used and nobody reported; surely its own unless it was stopped then.
            goal.tokens.add(self.unheard if self.noted_surely else 0, self.unheard)
        turn_id = f"turn-{self.turns}"
        owner, stored = self.owner, self.store.usage(THREAD)
        falls = tell and stored is not None and self.total.is_below(stored.total)
        self.call(
            lambda: self.meter.start_turn(
                turn_id, total=self.total if tell else None, charge_tokens=charge_tokens
            ),
            # The first report of a count is its turn's, even of nothing.
            charged_to={None, owner, None if stored is None else stored.turn_id},
        )
        self.turn = Turn(turn_id, charge_tokens, has_reported=falls)
        if falls:
            self.owner = turn_id
        self.unheard = self.unheard_after = 0
        if tell:
            self.heard_total = self.total
        self.first_seen = True
        self.must_tell = False
        self.payer = self.bound()
        self.note_payer()

    @precondition(lambda self: self.turn is not None)
    @rule()
    def repeat(self) -> None:
        self.record_total()

    @precondition(lambda self: self.turn is not None)
    @rule(usage=USAGE)
    def use(self, usage: TokenUsage) -> None:
        """Tokens are used and the meter does not hear of it."""
        self.total += usage
        self.used += usage.goal_tokens
        self.unheard += usage.goal_tokens
        self.unheard_after += usage.goal_tokens

    def record_total(self) -> None:
        assert self.turn is not None
        turn_id = self.turn.turn_id
        self.turn.has_reported = True
        self.charge(self.unheard)
        self.heard(turn_id)
        before, payer = self.position, self.payer
        self.call(
            lambda: self.meter.record_total(self.total, turn_id=turn_id), charged_to={turn_id}
        )
        for event in self.store.events(after=before):
            if event.tokens_delta and payer is not None:  # and took along what time was due
                time_ns = event.cumulative_time_ms * NS_PER_MS
                payer.time_ns.narrow(time_ns, time_ns + NS_PER_MS - 1)
        self.note_payer()

    def begin_anew(self, share: float) -> bool:
        """The provider counts from anew, up to less than was last reported; that part is nobody's."""
        stored = self.store.usage(THREAD)
        heard = TokenUsage() if stored is None else stored.total
        size = heard.input_tokens + heard.output_tokens
        if size == 0:
            return False
        left = min(int(size * share), size - 1)
        self.total = TokenUsage(left // 2, 0, 0, left - left // 2)
        self.unheard = self.unheard_after = 0
        return True

    @precondition(lambda self: self.turn is not None and not self.turn.has_reported)
    @rule(share=SHARES)
    def begin_a_new_count(self, share: float) -> None:
        if self.begin_anew(share):
            self.record_total()

    @precondition(lambda self: self.turn is not None and self.turn.has_reported)
    @rule(share=SHARES)
    def repeat_an_earlier_total(self, share: float) -> None:
        """A retry that comes late: nothing but its time is new."""
        assert self.turn is not None
        stored, turn_id = self.store.usage(THREAD), self.turn.turn_id
        assert stored is not None
        size = stored.total.input_tokens + stored.total.output_tokens
        if size == 0:
            return
        self.charge(0)
        total = TokenUsage(min(int(size * share), size - 1))
        self.call(lambda: self.meter.record_total(total, turn_id=turn_id), charged_to={turn_id})
        assert self.store.usage(THREAD) == stored
        self.note_payer()

    @precondition(lambda self: self.turn is None)
    @rule(share=SHARES)
    def begin_a_new_count_between_turns(self, share: float) -> None:
        if self.begin_anew(share):
            self.must_tell = True

    @precondition(lambda self: self.turn is not None and self.unheard == 0)
    @rule(ns=TICKS_NS)
    def run_a_tool(self, ns: int) -> None:
        assert self.turn is not None
        self.clock.tick(ns=ns)
        self.charge(0)
        self.call(self.meter.flush, charged_to={self.turn.turn_id})
        self.note_payer()

    @precondition(lambda self: self.turn is not None)
    @rule(ns=TICKS_NS, aborted=st.booleans())
    def end_turn(self, ns: int, aborted: bool) -> None:
        assert self.turn is not None
        self.clock.tick(ns=ns)
        turn_id = self.turn.turn_id
        self.noted_surely = not self.interrupted
        self.charge(0)
        self.call(
            self.meter.abort_turn if aborted else self.meter.finish_turn, charged_to={turn_id}
        )
        self.turn = None
        self.payer = self.bound()

    @precondition(lambda self: self.turn is not None)
    @rule(work=st.lists(st.tuples(USAGE, TICKS_NS), min_size=1, max_size=4))
    def respond(self, work: list[tuple[TokenUsage, int]]) -> None:
        for usage, ns in work:
            self.clock.tick(ns=ns)
            self.use(usage)
            self.record_total()

    @rule(ns=TICKS_NS)
    def crash(self, ns: int) -> None:
        """The process dies without a word: its meter is gone, and time that was not reported."""
        self.clock.tick(ns=ns)
        if self.turn is not None:
            self.noted_surely = not self.interrupted
        self.turn = None
        self.store.close()
        self.store = GoalStore.open(self.path, durability="normal")
        if self.current is not None:
            ledger = self.store.events(goal_id=self.current.goal_id)
            time_ns = sum(event.time_delta_ms for event in ledger) * NS_PER_MS
            self.current.time_ns = Span(time_ns, time_ns)
        self.make_meter()

    # -- changes through the meter -----------------------------------------------------------------

    def change(
        self,
        action: Callable[[], Any],
        becomes: Callable[[], None],
        *,
        refused: type[RequestError] | None,
        change_turn: str | None,
    ) -> None:
        """Charges what is due and then changes the goal; or, refused, does neither."""
        if refused is not None:
            with pytest.raises(refused):
                action()
            assert self.store.last_position() == self.position
            return
        turn_id = None if self.turn is None else self.turn.turn_id
        before = self.current
        was_active = before is not None and before.status == "active"
        self.charge(0)
        result = self.call(action, charged_to={turn_id}, change_turn=change_turn)
        if isinstance(result, Goal) and (before is None or result.goal_id != before.goal_id):
            self.adopt(result)
        else:
            becomes()
        after = self.current
        woken = after is not None and after.status == "active" and not was_active
        if self.turn is None or self.payer is None or after is not before or woken:
            self.payer = self.bound()
        self.note_payer()

    def modify(self, status: Any, budget: Any = KEEP) -> Callable[[], None]:
        def becomes() -> None:
            assert self.current is not None
            self.current.status, self.current.budget = self.requested(self.current, status, budget)
            self.current.warned = self.current.warned and self.current.spent

        return becomes

    def remove(self) -> None:
        self.current = None

    @precondition(lambda self: self.turn is None or self.unheard == 0)
    @rule(ns=TICKS_NS, what=st.sampled_from(CHANGES), status=STATUSES, budget=BUDGETS)
    def change_goal(self, ns: int, what: str, status: str, budget: int | None) -> None:
        """A host reports what was used before it changes the goal: only then the meter can tell."""
        self.clock.tick(ns=ns)
        turn_id = self.meter.turn_id
        missing = GoalNotFoundError if self.current is None else None
        if what == "create" or self.current is None:
            exists = self.current is not None and self.current.status != "complete"
            self.change(
                lambda: self.meter.create_goal("made by the model", token_budget=budget),
                self.remove,
                refused=GoalExistsError if exists else None,
                change_turn=turn_id,
            )
        elif what == "clear":
            self.change(self.meter.clear_goal, self.remove, refused=None, change_turn=None)
        elif what == "set":
            self.set_goal(status, KEEP)
        elif what == "set budget":
            self.set_goal(KEEP, budget)
        elif what == "set both":
            self.set_goal(status, budget)
        else:
            calls = {
                "complete": self.meter.complete_goal,
                "blocked": self.meter.block_goal,
                "usage_limited": self.meter.usage_limited,
            }
            self.change(calls[what], self.modify(what), refused=missing, change_turn=turn_id)

    def set_goal(self, status: Any, budget: Any) -> None:
        self.change(
            lambda: self.meter.set_goal(status=status, token_budget=budget),
            self.modify(status, budget),
            refused=None,
            change_turn=None,
        )

    @precondition(lambda self: self.current is None)
    @rule(status=st.just(KEEP) | STATUSES)
    def change_no_goal(self, status: Any) -> None:
        for action in (
            self.meter.complete_goal,
            self.meter.block_goal,
            self.meter.usage_limited,
            lambda: self.meter.set_goal(status=status),
        ):
            self.change(action, self.remove, refused=GoalNotFoundError, change_turn=None)

    # -- changes without the meter -----------------------------------------------------------------

    def behind(self, made: Goal | None) -> None:
        """Somebody changed the goal by the store; `made` if it is a new one."""
        if made is not None:
            self.adopt(made)
        if self.payer is not None and (self.payer is not self.current or not self.payer.pays):
            self.interrupted = True
        self.changed_ns = self.clock.now_ns
        self.unheard_after = 0
        self.look(list(self.store.events(after=self.position)))

    @rule(ns=TICKS_NS, what=st.sampled_from(CHANGES_BEHIND), status=STATUSES, budget=BUDGETS)
    def change_behind(self, ns: int, what: str, status: str, budget: int | None) -> None:
        self.clock.tick(ns=ns)
        if what == "replace" or self.current is None:
            self.behind(self.store.replace(THREAD, "another", token_budget=budget, status=status))
        elif what == "clear":
            self.store.clear(THREAD)
            self.current = None
            self.behind(None)
        elif what == "resume":
            self.resume_behind(budget)
        else:
            new = budget if what == "set both" else KEEP
            self.store.set(THREAD, status=status, token_budget=new)
            self.modify(status, new)()
            self.behind(None)

    def resume_behind(self, budget: int | None) -> None:
        assert self.current is not None
        status, _ = self.requested(self.current, "active", budget)
        if status != "active":
            with pytest.raises(BudgetExhaustedError):
                self.store.resume(THREAD, token_budget=budget)
            return
        self.store.resume(THREAD, token_budget=budget)
        self.modify("active", budget)()
        self.behind(None)

    # -- what holds at every step ------------------------------------------------------------------

    @invariant()
    def goal_is_as_the_model_has_it(self) -> None:
        if not hasattr(self, "store"):
            return
        goal = self.store.get(THREAD)
        if self.current is None:
            assert goal is None
            return
        assert goal is not None
        assert goal.goal_id == self.current.goal_id
        assert goal.status == self.current.status
        assert goal.token_budget == self.current.budget
        tokens, time_ns = self.current.tokens, self.current.time_ns
        assert tokens.low <= goal.tokens_used <= tokens.high
        assert time_ns.low < goal.time_used_ms * NS_PER_MS + NS_PER_S
        assert goal.time_used_ms <= time_ns.high // NS_PER_MS
        assert self.meter.goal == goal
        assert self.meter.remaining_tokens == goal.remaining_tokens

    @invariant()
    def ledgers_add_up(self) -> None:
        """Invariants 1 and 2, from the rows themselves."""
        if not hasattr(self, "store"):
            return
        assert self.store.verify() == []
        goal = self.store.get(THREAD)
        for goal_id in self.goals:
            tokens = time_ms = 0
            for event in self.store.events(goal_id=goal_id):
                tokens += event.tokens_delta
                time_ms += event.time_delta_ms
                if event.kind is EventKind.USAGE_ACCOUNTED:
                    assert event.cumulative_tokens == tokens
                    assert event.cumulative_time_ms == time_ms
            if goal is not None and goal.goal_id == goal_id:
                assert (goal.tokens_used, goal.time_used_ms) == (tokens, time_ms)
        if goal is not None and goal.remaining_tokens == 0:
            assert goal.status != "active"

    @invariant()
    def no_token_is_paid_twice(self) -> None:
        """Invariants 4 and 7, over all goals that ever were."""
        if not hasattr(self, "store"):
            return
        events = list(self.store.events(thread_id=THREAD))
        assert sum(event.tokens_delta for event in events) <= self.used


@pytest.fixture(autouse=True)
def _template(made_once: Path) -> None:
    MeterMachine.template = made_once


TestMeterMachine = MeterMachine.TestCase
TestMeterMachine.settings = settings(stateful_step_count=60 if PROOF else 50)
TestMeterMachine.pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200 if PROOF else 120),
]
