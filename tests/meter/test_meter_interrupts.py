"""An exception from outside strikes a call of a meter, anywhere: repeated, it charges and tells once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import FrameType
from typing import Any, TypeVar

import pytest

from goal_state import EventKind, GoalStore, TokenUsage
from goal_state.errors import TurnError
from goal_state.meter import GoalMeter, Reading
from goal_state.testing.clock import Clock
from tests.meter.figures import THREAD, paid

Result = TypeVar("Result")

WHERE = tuple(
    f"goal_state.{name}"
    for name in (
        *("meter.goal_meter", "meter.calls", "meter.changes", "meter.settling", "meter.state"),
        *("storage.repository", "storage.charges", "storage.totals"),
        *("storage.goals", "storage.baselines", "storage.ledger"),
        *("domain.charging", "domain.totals", "domain.requests"),
    )
)


class Struck(BaseException):
    """As `KeyboardInterrupt`, but nobody else's."""


def test_the_modules_to_be_struck_in_are_those_that_there_are() -> None:
    assert [name for name in WHERE if find_spec(name) is None] == []


class Strikes:
    """Strikes a call as the n-th function of it begins, or on its way back after the commit."""

    def __init__(self, store: GoalStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.after_commit = False
        transact = store.transact

        def struck(work: Callable[[Any], Result]) -> Result:
            result = transact(work)
            if self.after_commit:
                self.after_commit = False
                raise Struck
            return result

        monkeypatch.setattr(store, "transact", struck)

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_globals.get("__name__") in WHERE:
            self.left -= 1
            if self.left == 0:
                raise Struck

    def insist(self, call: Callable[[], Result], place: int | None) -> tuple[Result, bool]:
        """The call's result, once it came, and whether it was struck before: there, or (0) after it was
        committed.
        """
        if place is None:
            return call(), False
        self.left, self.after_commit = place, place == 0
        before = sys.gettrace()  # coverage's
        try:
            sys.settrace(self if place else None)
            try:
                return call(), False
            finally:
                sys.settrace(before)
        except Struck:
            return call(), True


CALLS = ("start", "record_total", "flush", "finish", "start again", "complete")


def played(store: GoalStore, strikes: Strikes, struck_call: str, place: int) -> bool:
    """Plays two turns on a thread, one call of which is struck; whether it was."""
    clock, thread_id = Clock(), f"struck at {place}"
    store.create(thread_id, "work", token_budget=100)
    meter = GoalMeter(store, thread_id, clock_ns=clock)
    hit = False
    readings: list[Reading] = []

    def make(name: str, call: Callable[[], Result]) -> Result:
        nonlocal hit
        clock.tick(seconds=1.5)
        result, was_struck = strikes.insist(call, place if name == struck_call else None)
        hit = hit or was_struck
        if isinstance(result, Reading):
            readings.append(result)
        return result

    make("start", lambda: meter.start_turn("turn-1", total=TokenUsage()))
    make("record_total", lambda: meter.record_total(TokenUsage(120)))
    make("flush", meter.flush)
    make("finish", meter.finish_turn)
    assert meter.turn_id is None
    store.resume(thread_id, token_budget=150)
    make("start again", lambda: meter.start_turn("turn-2", total=TokenUsage(130)))
    assert meter.turn_id == "turn-2"
    readings.append(meter.record_total(TokenUsage(160)))
    make("complete", meter.complete_goal)
    assert [reading.budget_exhausted for reading in readings].count(True) == 2
    ledger = store.events(thread_id=thread_id)
    charges = [e for e in ledger if e.kind is EventKind.USAGE_ACCOUNTED]
    assert sum(e.tokens_delta for e in charges) == 160
    assert sum(e.time_delta_ms for e in charges) == 4 * 1_500
    assert store.verify(thread_id) == []
    return hit


@pytest.mark.parametrize("call", CALLS)
def test_struck_after_its_commit_a_call_is_repeated_and_charges_once(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    assert played(store, Strikes(store, monkeypatch), call, 0)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_struck_anywhere_a_call_is_repeated_and_charges_once(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    strikes, place = Strikes(store, monkeypatch), 1
    while played(store, strikes, call, place):
        place += 1
    assert place > 5


def test_struck_several_times_in_a_row(
    store: GoalStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create(THREAD, "work", token_budget=100)
    meter = GoalMeter(store, THREAD, clock_ns=clock)
    meter.start_turn("turn-1")
    strikes = Strikes(store, monkeypatch)
    clock.tick(seconds=1.5)
    for _ in range(3):
        strikes.after_commit = True
        with pytest.raises(Struck):
            meter.record_total(TokenUsage(120))
        with pytest.raises(TurnError, match="is not running"):
            meter.record_total(TokenUsage(120), turn_id="another")
        strikes.left = 12
        before = sys.gettrace()
        sys.settrace(strikes)
        with pytest.raises(Struck):
            meter.flush()
        sys.settrace(before)
    reading = meter.flush()
    assert reading.budget_exhausted
    assert reading.goal is not None
    assert (reading.goal.tokens_used, reading.goal.time_used_ms) == (120, 1_500)
    assert not meter.record_total(TokenUsage(130)).budget_exhausted


def test_a_goal_that_was_made_by_a_struck_call_pays_from_then_on(
    store: GoalStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = GoalMeter(store, THREAD, clock_ns=clock)
    meter.start_turn("turn-1")
    Strikes(store, monkeypatch).after_commit = True
    with pytest.raises(Struck):
        meter.create_goal("work")
    clock.tick(seconds=2)
    reading = meter.record_total(TokenUsage(10))
    assert reading.goal is not None
    assert (reading.goal.tokens_used, reading.goal.time_used_ms) == (10, 2_000)


def test_what_was_rolled_back_is_due_still(
    store: GoalStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another's event has come to the place of the one that was undone."""
    store.create(THREAD, "work")
    store.create("other", "work")
    meter = GoalMeter(store, THREAD, clock_ns=clock)
    meter.start_turn("turn-1")
    clock.tick(seconds=1.5)
    transact = store.transact

    def undone(work: Callable[[Any], Result]) -> Result:
        def undone_work(repository: Any) -> Result:
            work(repository)
            raise Struck

        return transact(undone_work)

    with monkeypatch.context() as patch:
        patch.setattr(store, "transact", undone)
        with pytest.raises(Struck):
            meter.record_total(TokenUsage(20))
    store.charge("other", tokens=20, seconds=1.5)
    meter.record_total(TokenUsage(20))
    assert paid(store.get(THREAD)) == (20, 1_500)


def test_a_notice_that_was_not_heard_is_of_no_other_goal(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create(THREAD, "work", token_budget=100)
    meter = GoalMeter(store, THREAD)
    meter.start_turn("turn-1")
    Strikes(store, monkeypatch).after_commit = True
    with pytest.raises(Struck):
        meter.record_total(TokenUsage(120))
    meter.complete_goal()
    meter.create_goal("other work", token_budget=10)
    assert not meter.flush().budget_exhausted
    assert meter.record_total(TokenUsage(130)).budget_exhausted
