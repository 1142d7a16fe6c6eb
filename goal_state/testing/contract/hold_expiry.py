"""Holds that end by themselves, settlements that come after that, and holds in trees."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from goal_state import (
    Accounting,
    Charge,
    IdempotencyConflictError,
    TokenUsage,
)
from goal_state.domain.events import Estimate
from goal_state.domain.holds import HoldOutcome
from goal_state.errors import BudgetExceededError, HoldEndedError
from goal_state.testing.contract.hold_ends import FREE, newest, with_hold
from goal_state.testing.contract.holds import goal_of, held, used
from goal_state.testing.contract.subjects import (
    ACTIVE,
    BUDGET_LIMITED,
    Subject,
)
from goal_state.testing.contract.wall_time import Timed, WallTime

__all__ = ["HoldExpiry"]


class HoldExpiry(Timed):
    """Expiry, late settlement, and ends of holds that are parts of several goals' budgets."""

    # -- expired -----------------------------------------------------------------------------------

    def test_reads_write_nothing_of_what_has_expired(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        with_hold(subject)
        subject.reserve("t", tokens=20, cost=1, dispatched=False, expires_in=10)
        wall_time.tick(9.999)
        headroom = subject.headroom("t")
        assert headroom is not None
        assert (headroom.tokens, headroom.cost, headroom.calls) == (20, 3, 3)
        tables = subject.tables()
        wall_time.tick(0.001)
        headroom = subject.headroom("t")
        assert headroom is not None  # what may have been sent counts until it is charged
        assert (headroom.tokens, headroom.cost, headroom.calls) == (40, 4, 4)
        assert len(subject.holds("t")) == len(subject.holds()) == 2
        subject.get("t")
        assert subject.tables() == tables

    def test_expire_holds_charges_what_may_have_been_sent(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        hold = with_hold(subject)
        subject.reserve("t", tokens=20, cost=1, dispatched=False, expires_in=10)
        subject.reserve("t", tokens=5, cost=1, expires_in=11)
        observed = subject.reserve("t", tokens=5, cost=1, expires_in=10)
        observed.observed(tokens=3, cost="0.5")
        subject.create("u", "Ship")
        subject.reserve("u", tokens=7, expires_in=9)
        wall_time.tick(10)
        assert subject.expire_holds() == 4
        assert subject.expire_holds() == 0
        assert used(subject, "t") == (63, Decimal("6.5"), 2)
        assert held(subject, "t") == (1, 5, 1, 1)
        assert goal_of(subject, "t").estimated_tokens == 60
        assert goal_of(subject, "u").estimated_tokens == 7
        made = [event for event in subject.events() if event.estimate is Estimate.MADE]
        assert {event.hold_id for event in made} >= {hold.hold_id}
        assert len(made) == 2

    @pytest.mark.parametrize(
        "write", ["charge", "charge_many", "record_total", "set", "resume", "reserve", "claim"]
    )
    @pytest.mark.parametrize("thread_id", ["t", "child"])
    def test_the_next_write_of_the_goal_or_below_ends_what_has_expired(
        self, subject: Subject, wall_time: WallTime, write: str, thread_id: str
    ) -> None:
        with_hold(subject)
        subject.create("child", "Ship", parent="t")
        wall_time.tick(10)
        calls: dict[str, Any] = {
            "charge": lambda: subject.charge(thread_id, seconds=1),
            "charge_many": lambda: subject.charge_many([Charge(thread_id, seconds=1)]),
            "record_total": lambda: subject.record_total(thread_id, TokenUsage(1)),
            "set": lambda: subject.set(thread_id, objective="Another"),
            "resume": lambda: subject.resume(thread_id),
            "reserve": lambda: subject.reserve(thread_id, tokens=40, cost=1),
            "claim": lambda: subject.claim(thread_id, "ada", 5),
        }
        calls[write]()
        assert used(subject, "t") == (60, 6, 1)
        assert held(subject, "t")[0] == (write == "reserve")

    def test_a_write_elsewhere_leaves_what_has_expired(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        with_hold(subject)
        subject.create("u", "Ship")
        wall_time.tick(10)
        subject.charge("u", tokens=1)
        assert held(subject, "t")[0] == 1

    def test_what_was_never_sent_is_free_for_the_next_call_once_it_has_expired(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        hold = with_hold(subject, dispatched=False)
        with pytest.raises(BudgetExceededError):
            subject.reserve("t", tokens=100, cost=1)
        wall_time.tick(10)
        assert subject.reserve("t", tokens=100, cost=1).tokens == 100
        with pytest.raises(HoldEndedError):
            hold.dispatched()
        hold.release()
        assert used(subject, "t") == (0, 0, 0)

    def test_what_expired_unsent_and_was_used_all_the_same_is_charged(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        hold = with_hold(subject, dispatched=False)
        wall_time.tick(10)
        for repeat in (False, True):
            assert hold.settle(tokens=20, cost=2).duplicate is repeat
            assert used(subject, "t") == (20, 2, 1)

    @pytest.mark.parametrize("call", ["dispatched", "extend", "observed", "release"])
    def test_a_call_that_comes_after_the_expiry_is_refused(
        self, subject: Subject, wall_time: WallTime, call: str
    ) -> None:
        hold = with_hold(subject)
        wall_time.tick(10)
        arguments: dict[str, Any] = {"extend": {"seconds": 5}, "observed": {"tokens": 5}}
        with pytest.raises(HoldEndedError, match="unknown"):
            getattr(hold, call)(**arguments.get(call, {}))
        if subject.keeps_what_time_made_true:
            assert used(subject, "t") == (60, 6, 1)
            assert held(subject, "t") == FREE

    def test_cut_after_the_expiry_is_the_expiry(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        with with_hold(subject) as hold:
            hold.observed(tokens=5)
            hold.observed(tokens=7)  # kept for the next second
            wall_time.tick(10)
        assert (goal_of(subject, "t").tokens_used, held(subject, "t")) in (
            (5, FREE),
            (7, FREE),
        )
        assert hold.record.outcome is HoldOutcome.UNKNOWN

    @pytest.mark.parametrize("refused", ["reserve", "charge"])
    def test_a_refused_call_commits_what_time_had_made_true(
        self, subject: Subject, wall_time: WallTime, refused: str
    ) -> None:
        subject.create("root", "Ship", token_budget=200)
        subject.create("t", "Ship", token_budget=100, parent="root")
        subject.charge("t", TokenUsage(1), response_id="r1")
        subject.reserve("t", tokens=60, expires_in=10)
        wall_time.tick(10)
        calls: dict[str, Any] = {
            "reserve": lambda: subject.reserve("t", tokens=60),
            "charge": lambda: subject.charge("t", TokenUsage(2), response_id="r1"),
        }
        with pytest.raises((BudgetExceededError, IdempotencyConflictError)):
            calls[refused]()
        if subject.keeps_what_time_made_true:
            for thread_id in ("root", "t"):
                assert used(subject, thread_id)[0] == 61
                assert held(subject, thread_id) == FREE

    # -- late --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("dispatched", [True, False])
    def test_a_settlement_after_the_expiry_that_nobody_noticed_charges_what_it_says(
        self, subject: Subject, wall_time: WallTime, dispatched: bool
    ) -> None:
        subject.create("root", "Ship", token_budget=200)
        subject.create("t", "Ship", token_budget=100, parent="root")
        hold = subject.reserve("t", tokens=60, expires_in=10, dispatched=dispatched)
        subject.reserve("t", tokens=5, expires_in=9)
        subject.reserve("root", tokens=7, expires_in=9)
        wall_time.tick(10)
        for repeat in (False, True):
            result = hold.settle(tokens=20, response_id="r1")
            assert (result.applied, result.duplicate) == (True, repeat)
            assert (used(subject, "t"), used(subject, "root")) == ((25, 0, 2), (32, 0, 3))
            assert held(subject, "t") == held(subject, "root") == FREE
        assert goal_of(subject, "t").estimated_tokens == 5
        assert subject.expire_holds() == 0

    def test_a_settlement_after_the_expiry_that_is_refused_leaves_the_hold_to_expire(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        hold = with_hold(subject)
        subject.charge("t", tokens=1, response_id="r1")
        wall_time.tick(10)
        with pytest.raises(IdempotencyConflictError):
            hold.settle(tokens=2, response_id="r1")
        assert subject.expire_holds() == 1
        assert (used(subject, "t")[0], held(subject, "t")) == (61, FREE)

    @pytest.mark.parametrize(
        ("figures", "total"),
        [
            ({"tokens": 20, "cost": 2}, (60, 6)),
            ({"tokens": 60, "cost": 6}, (60, 6)),
            ({"tokens": 70, "cost": 5}, (70, 6)),
            ({"tokens": 50, "cost": 8}, (60, 8)),
            ({"tokens": 90, "cost": 9}, (90, 9)),
        ],
    )
    @pytest.mark.parametrize("end", ["cut", "expire"])
    def test_a_late_settlement_adds_what_exceeds_the_estimate(
        self,
        subject: Subject,
        wall_time: WallTime,
        end: str,
        figures: dict[str, Any],
        total: tuple[int, int],
    ) -> None:
        hold = with_hold(subject)
        if end == "cut":
            hold.cut()
        else:
            wall_time.tick(10)
            subject.expire_holds()
        before = len(subject.events())
        for repeat in (False, True):
            result = hold.settle(**figures, seconds=1, response_id="r1")
            assert (result.applied, result.duplicate) == (True, repeat)
            assert used(subject, "t") == (*total, 1)
            goal = goal_of(subject, "t")
            assert (goal.estimated_tokens, goal.time_used_ms) == (0, 1000)
        [event] = subject.events()[before:]
        assert (event.estimate, event.tokens_delta, event.estimated_tokens_delta) == (
            Estimate.RESOLVED,
            total[0] - 60,
            -60,
        )
        assert subject.charge("t", **figures, response_id="r1").duplicate
        with pytest.raises((HoldEndedError, IdempotencyConflictError)):
            hold.settle(tokens=1)

    @pytest.mark.parametrize(("tokens", "unpriced"), [(20, 0), (60, 0), (65, 5)])
    def test_a_late_settlement_without_a_price_leaves_what_it_adds_unpriced(
        self, subject: Subject, tokens: int, unpriced: int
    ) -> None:
        hold = with_hold(subject)
        hold.cut()
        goal = hold.settle(tokens=tokens).goal
        assert goal is not None
        assert goal == goal_of(subject, "t")
        assert goal.unpriced_tokens == unpriced

    def test_a_late_settlement_that_adds_nothing_keeps_its_key(self, subject: Subject) -> None:
        hold = with_hold(subject)
        hold.observed(tokens=30, cost=3)
        hold.cut()
        before = subject.events()
        assert hold.settle(tokens=20, cost=2, response_id="r1").applied
        [event] = subject.events()[len(before) :]
        assert (event.idempotency_key, event.tokens_delta, event.estimated_tokens_delta) == (
            "r1",
            0,
            0,
        )
        assert subject.charge("t", tokens=20, cost=2, response_id="r1").duplicate
        assert used(subject, "t") == (30, 3, 1)

    def test_clear_charges_what_has_expired_first(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        subject.create("root", "Ship")
        subject.create("t", "Ship", parent="root")
        subject.reserve("t", tokens=60, expires_in=10)
        wall_time.tick(10)
        cleared = subject.clear("t")
        assert cleared is not None
        assert (cleared.tokens_used, cleared.live_holds) == (60, 0)
        assert (used(subject, "root")[0], held(subject, "root")) == (60, FREE)

    def test_a_late_settlement_of_an_observed_call_adds_the_rest(self, subject: Subject) -> None:
        hold = with_hold(subject)
        hold.observed(tokens=5, cost=1)
        hold.cut()
        hold.settle(tokens=20, cost=2)
        assert used(subject, "t") == (20, 2, 1)
        assert newest(subject).estimate is None
        assert newest(subject).tokens_delta == 15

    # -- trees -------------------------------------------------------------------------------------

    @pytest.mark.parametrize("end", ["settle", "release", "cut", "expire", "late"])
    def test_an_end_reaches_every_goal_above(
        self, subject: Subject, wall_time: WallTime, end: str
    ) -> None:
        for thread_id, parent in (("root", None), ("middle", "root"), ("leaf", "middle")):
            subject.create(thread_id, "Ship", token_budget=1000, parent=parent)
        hold = subject.reserve("leaf", tokens=60, cost=6, expires_in=10, model="m")
        begun = newest(subject).position
        if end == "expire":
            wall_time.tick(10)
            assert subject.expire_holds() == 1
        elif end == "settle":
            hold.settle(tokens=40, cost=4, seconds=1, response_id="r1")
        elif end == "release":
            hold.release()
        else:
            hold.cut()
        if end == "late":
            hold.settle(tokens=80, cost=5)
        due = {
            "settle": (40, 4, 1),
            "release": (0, 0, 0),
            "cut": (60, 6, 1),
            "expire": (60, 6, 1),
            "late": (80, 6, 1),
        }[end]
        estimated = 60 if end in ("cut", "expire") else 0
        for thread_id in ("root", "middle", "leaf"):
            assert used(subject, thread_id) == due
            assert held(subject, thread_id) == FREE
            assert goal_of(subject, thread_id).estimated_tokens == estimated
        leaf = goal_of(subject, "leaf").goal_id
        for event in subject.events(after=begun, thread_id="root"):
            assert (event.origin_goal_id, event.via_goal_id) == (
                leaf,
                goal_of(subject, "middle").goal_id,
            )
            assert (event.idempotency_key, event.turn_id, event.model) == (None, None, "m")
        assert goal_of(subject, "root").time_used_ms == 0

    @pytest.mark.parametrize("gone", ["clear", "replace"])
    @pytest.mark.parametrize("end", ["settle", "cut", "expire", "release"])
    def test_the_goals_above_pay_where_the_goal_of_a_hold_is_gone(
        self, subject: Subject, wall_time: WallTime, gone: str, end: str
    ) -> None:
        subject.create("root", "Ship", token_budget=1000)
        subject.create("t", "Ship", parent="root")
        hold = subject.reserve("t", tokens=60, cost=6, expires_in=10)
        if gone == "clear":
            subject.clear("t")
        else:
            subject.replace("t", "Another")
        assert held(subject, "root") == (1, 60, 6, 1)
        due: tuple[int, int, int] = (60, 6, 1)
        if end == "settle":
            due = (40, 4, 1)
            assert hold.settle(tokens=40, cost=4) == Accounting(None, applied=True)
            again = hold.settle(tokens=40, cost=4)
            assert (again.goal, again.applied, again.duplicate) == (None, True, True)
        elif end == "cut":
            hold.cut()
        elif end == "release":
            due = (0, 0, 0)
            hold.release()
        else:
            wall_time.tick(10)
            subject.charge("root", seconds=1)
        assert used(subject, "root") == due
        assert held(subject, "root") == FREE
        if gone == "replace":
            assert used(subject, "t") == (0, 0, 0)

    def test_nobody_pays_where_no_goal_of_a_hold_is_left(self, subject: Subject) -> None:
        hold = with_hold(subject)
        subject.clear("t")
        assert subject.holds("t") == [hold.record]
        assert hold.settle(tokens=40) == Accounting(None, applied=False)
        assert subject.holds() == []

    def test_a_goal_that_is_gone_leaves_the_ones_above_and_below(self, subject: Subject) -> None:
        for thread_id, parent in (("root", None), ("middle", "root"), ("leaf", "middle")):
            subject.create(thread_id, "Ship", parent=parent)
        hold = subject.reserve("leaf", tokens=60, cost=6)
        middle = goal_of(subject, "middle").goal_id
        subject.clear("middle")
        hold.settle(tokens=40, cost=4)
        for thread_id in ("root", "leaf"):
            assert (used(subject, thread_id), held(subject, thread_id)) == ((40, 4, 1), FREE)
        event = newest(subject)
        assert (event.thread_id, event.via_goal_id) in (
            ("root", middle),
            ("root", goal_of(subject, "leaf").goal_id),
        )

    def test_a_settlement_flips_the_goal_above_whose_budget_it_fills(
        self, subject: Subject
    ) -> None:
        subject.create("root", "Ship", token_budget=60)
        subject.create("t", "Ship", parent="root")
        subject.reserve("t", tokens=60).settle(tokens=60)
        assert goal_of(subject, "root").status is BUDGET_LIMITED
        assert goal_of(subject, "t").status is ACTIVE
        with pytest.raises(BudgetExceededError, match=r"'root'.*tokens is used up"):
            subject.reserve("t", tokens=1)
