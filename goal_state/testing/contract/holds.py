"""Holds from the call that makes them to the last that their owner does before they end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from goal_state import Goal, GoalNotFoundError, InvalidValueError, StaleGoalError, TokenUsage
from goal_state.domain.holds import HoldOutcome
from goal_state.errors import (
    BudgetExceededError,
    ClaimOvertakenError,
    HoldEndedError,
    HoldNotFoundError,
    UnknownPriceError,
)
from goal_state.testing.contract.subjects import (
    ACTIVE,
    BLOCKED,
    BUDGET_LIMITED,
    COMPLETE,
    NO_GOAL,
    PAUSED,
    USAGE_LIMITED,
    Subject,
)
from goal_state.testing.contract.wall_time import Timed, WallTime

__all__ = ["Holds", "goal_of", "held", "used"]

BUDGETS = {"tokens": "token_budget", "cost": "cost_budget", "calls": "call_budget"}


def goal_of(subject: Subject, thread_id: str) -> Goal:
    """The thread's goal, which is there."""
    goal = subject.get(thread_id)
    assert goal is not None
    return goal


def used(subject: Subject, thread_id: str) -> tuple[int, Decimal, int]:
    """The tokens, cost and calls that the thread's goal has used."""
    goal = goal_of(subject, thread_id)
    return goal.tokens_used, goal.cost_used, goal.calls_used


def held(subject: Subject, thread_id: str) -> tuple[int, int, Decimal, int]:
    """How many holds there are on the thread's goal, and the tokens, cost and calls that they set aside."""
    goal = goal_of(subject, thread_id)
    return (
        goal.live_holds,
        goal.held_tokens,
        Decimal(goal.held_cost_nanos) / 10**9,
        goal.held_calls,
    )


def bound(kind: str, number: int) -> dict[str, Any]:
    """The argument that makes a budget of one kind."""
    return {BUDGETS[kind]: number}


def amount(kind: str, number: int) -> dict[str, Any]:
    """The arguments that reserve so much of one kind and nothing else."""
    return {"calls": 0} | {kind: number}


class Holds(Timed):
    """`reserve`, and what is done with a hold while it is live."""

    def test_reserve_sets_a_part_of_each_budget_aside_and_uses_none(self, subject: Subject) -> None:
        subject.create("t", "Ship", token_budget=100, cost_budget=5, call_budget=3)
        events = subject.events()
        hold = subject.reserve("t", tokens=60, cost="1.5", calls=2, turn_id="turn-1", model="m")

        assert used(subject, "t") == (0, 0, 0)
        assert held(subject, "t") == (1, 60, Decimal("1.5"), 2)
        assert (hold.thread_id, hold.tokens, hold.cost, hold.calls, hold.was_found) == (
            "t",
            60,
            Decimal("1.5"),
            2,
            False,
        )
        assert hold.record.goal_id == goal_of(subject, "t").goal_id
        assert subject.holds("t") == subject.holds() == [hold.record]
        assert subject.holds("u") == []
        headroom = subject.headroom("t")
        assert headroom is not None
        assert (headroom.tokens, headroom.cost, headroom.calls) == (40, Decimal("3.5"), 1)
        assert subject.events() == events

    def test_reserve_of_nothing_but_a_call_is_one_call(self, subject: Subject) -> None:
        subject.create("t", "Ship", call_budget=2)
        subject.reserve("t")
        assert held(subject, "t") == (1, 0, 0, 1)

    def test_reserve_with_a_usage_sets_the_tokens_aside_that_count(self, subject: Subject) -> None:
        subject.create("t", "Ship", token_budget=100)
        assert subject.reserve("t", usage=TokenUsage(80, 30, 0, 20)).tokens == 70

    @pytest.mark.parametrize("kind", BUDGETS)
    def test_reserve_takes_the_last_of_a_budget_and_not_one_more(
        self, subject: Subject, kind: str
    ) -> None:
        goal = subject.create("t", "Ship", **bound(kind, 100))
        first = subject.reserve("t", **amount(kind, 30))
        first.settle(tokens=first.tokens, cost=first.cost)
        subject.reserve("t", **amount(kind, 50))
        subject.reserve("t", **amount(kind, 20))
        tables = subject.tables()
        with pytest.raises(BudgetExceededError) as caught:
            subject.reserve("t", **amount(kind, 1))
        error, scale = caught.value, 10**9 if kind == "cost" else 1
        assert (error.thread_id, error.goal_id, error.kind) == ("t", goal.goal_id, kind)
        assert (error.budget, error.used, error.held, error.asked) == (
            100 * scale,
            30 * scale,
            70 * scale,
            scale,
        )
        assert error.waiting_helps
        assert "100, 30 are used and 70 held: 0 left, 1 needed" in str(error)
        assert "wait for them" in str(error)
        assert subject.tables() == tables

    def test_reserve_of_more_than_the_unused_is_not_helped_by_waiting(
        self, subject: Subject
    ) -> None:
        subject.create("t", "Ship", token_budget=100)
        subject.charge("t", tokens=30)
        subject.reserve("t", tokens=50)
        for asked, helps in ((70, True), (71, False)):
            with pytest.raises(BudgetExceededError) as caught:
                subject.reserve("t", tokens=asked)
            assert (caught.value.asked, caught.value.waiting_helps) == (asked, helps)
            assert ("raise it with resume()" in str(caught.value)) is not helps

    @pytest.mark.parametrize("status", [PAUSED, BLOCKED, USAGE_LIMITED, COMPLETE])
    def test_reserve_of_a_goal_that_is_not_active_is_refused(
        self, subject: Subject, status: Any
    ) -> None:
        goal = subject.create("t", "Ship", status=status)
        tables = subject.tables()
        with pytest.raises(BudgetExceededError, match=f"is {status}.*resume") as caught:
            subject.reserve("t", tokens=1)
        error = caught.value
        assert (error.goal_id, error.kind, error.waiting_helps) == (goal.goal_id, None, False)
        assert subject.tables() == tables

    def test_reserve_of_a_goal_whose_budget_was_raised_says_to_resume_it(
        self, subject: Subject
    ) -> None:
        subject.create("t", "Ship", token_budget=100)
        subject.charge("t", tokens=100)
        with pytest.raises(BudgetExceededError, match="tokens is used up: raise it"):
            subject.reserve("t", tokens=1)
        subject.set("t", token_budget=200)
        with pytest.raises(BudgetExceededError, match="were raised: resume it"):
            subject.reserve("t", tokens=1)
        subject.resume("t")
        assert subject.reserve("t", tokens=100).tokens == 100

    def test_reserve_is_bound_by_every_goal_above(self, subject: Subject) -> None:
        subject.create("root", "Ship", token_budget=100)
        subject.create("middle", "Ship", parent="root", call_budget=3)
        subject.create("leaf", "Ship", parent="middle", token_budget=1000)
        subject.create("other", "Ship", parent="root")
        subject.reserve("other", tokens=30, calls=2)
        subject.reserve("leaf", tokens=60, calls=3)
        for thread_id, count, tokens, calls in (
            ("root", 2, 90, 5),
            ("middle", 1, 60, 3),
            ("leaf", 1, 60, 3),
        ):
            assert held(subject, thread_id) == (count, tokens, 0, calls)
        tables = subject.tables()
        with pytest.raises(BudgetExceededError) as caught:
            subject.reserve("leaf", tokens=11, calls=0)
        assert (caught.value.thread_id, caught.value.kind, caught.value.held) == (
            "root",
            "tokens",
            90,
        )
        with pytest.raises(BudgetExceededError) as caught:
            subject.reserve("leaf", calls=1)
        assert (caught.value.thread_id, caught.value.kind) == ("middle", "calls")
        assert subject.tables() == tables
        headroom = subject.headroom("leaf")
        assert headroom is not None
        assert [(limit.thread_id, limit.left) for limit in headroom.limits] == [
            ("root", 10),
            ("middle", 0),
        ]

    def test_reserve_under_a_goal_that_is_not_active_names_it(self, subject: Subject) -> None:
        subject.create("root", "Ship")
        subject.create("leaf", "Ship", parent="root")
        subject.set("root", status=PAUSED)
        with pytest.raises(BudgetExceededError, match="'root' is paused") as caught:
            subject.reserve("leaf", tokens=1)
        assert caught.value.thread_id == "root"
        assert held(subject, "leaf") == (0, 0, 0, 0)
        headroom = subject.headroom("leaf")
        assert headroom is not None
        assert headroom.stopped_by == "root"

    # -- at_least ----------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("budgets", "granted"),
        [
            ({"token_budget": 100}, (100, Decimal(8))),
            ({"token_budget": 60}, (60, Decimal("4.8"))),
            ({"cost_budget": 2}, (25, Decimal(2))),
            ({"token_budget": 60, "cost_budget": "2.4"}, (30, Decimal("2.4"))),
            ({"token_budget": 20, "cost_budget": 4}, (20, Decimal("1.6"))),
        ],
    )
    def test_at_least_shrinks_tokens_and_cost_together(
        self, subject: Subject, budgets: dict[str, Any], granted: tuple[int, Decimal]
    ) -> None:
        subject.create("root", "Ship", **budgets)
        subject.create("leaf", "Ship", parent="root")
        hold = subject.reserve("leaf", tokens=100, cost=8, at_least=20)
        assert (hold.tokens, hold.cost, hold.calls) == (*granted, 1)
        assert held(subject, "root") == held(subject, "leaf") == (1, *granted, 1)

    def test_at_least_rounds_the_cost_up(self, subject: Subject) -> None:
        subject.create("t", "Ship", token_budget=2)
        hold = subject.reserve("t", tokens=3, cost="0.00000001", at_least=1)
        assert (hold.tokens, hold.cost) == (2, Decimal("7E-9"))

    @pytest.mark.parametrize("kind", ["tokens", "cost"])
    @pytest.mark.parametrize(("taken", "helps"), [(50, True), (90, False)])
    def test_at_least_that_is_not_left_is_refused(
        self, subject: Subject, kind: str, taken: int, helps: bool
    ) -> None:
        subject.create("t", "Ship", **bound(kind, 100))
        subject.charge("t", tokens=taken, cost=taken)
        subject.reserve("t", tokens=5, cost=5)
        assert subject.reserve("t", tokens=100, cost=100, at_least=3, key="fits").tokens > 0
        tables = subject.tables()
        with pytest.raises(BudgetExceededError) as caught:
            subject.reserve("t", tokens=100, cost=100, at_least=20)
        assert caught.value.waiting_helps is helps
        assert subject.tables() == tables

    def test_at_least_does_not_shrink_calls(self, subject: Subject) -> None:
        subject.create("t", "Ship", call_budget=1)
        with pytest.raises(BudgetExceededError) as caught:
            subject.reserve("t", tokens=10, calls=2, at_least=1)
        assert caught.value.kind == "calls"

    # -- bad input ---------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            ({"thread_id": ""}, "thread_id"),
            ({"tokens": -1}, "tokens"),
            ({"tokens": True}, "tokens"),
            ({"tokens": 1.0}, "tokens"),
            ({"tokens": 2**63}, "tokens"),
            ({"tokens": 5, "usage": TokenUsage(5)}, "tokens"),
            ({"calls": 0}, "tokens"),
            ({"calls": -1}, "calls"),
            ({"calls": True}, "calls"),
            ({"cost": -1}, "cost"),
            ({"cost": 1.5}, "cost"),
            ({"cost": Decimal("NaN")}, "cost"),
            ({"cost": Decimal("Infinity")}, "cost"),
            ({"cost": 10**10}, "cost"),
            ({"cost": True}, "cost"),
            ({"tokens": 5, "at_least": 6}, "at_least"),
            ({"tokens": 5, "at_least": 0}, "at_least"),
            ({"tokens": 5, "at_least": -1}, "at_least"),
            ({"tokens": 5, "at_least": True}, "at_least"),
            ({"cost": 5, "at_least": 1}, "at_least"),
            ({"usage": TokenUsage(5), "at_least": 6}, "at_least"),
            ({"key": ""}, "key"),
            ({"key": "k" * 257}, "key"),
            ({"expires_in": 0}, "expires_in"),
            ({"expires_in": -1}, "expires_in"),
            ({"expires_in": float("nan")}, "expires_in"),
            ({"expires_in": float("inf")}, "expires_in"),
            ({"expires_in": True}, "expires_in"),
            ({"expires_in": 367 * 86_400}, "expires_in"),
            ({"unknown": "keep"}, "unknown"),
            ({"unknown": None}, "unknown"),
            ({"dispatched": 1}, "dispatched"),
            ({"tags": {"a": 1}}, "tags"),
            ({"turn_id": ""}, "turn_id"),
            ({"model": ""}, "model"),
            ({"expected_goal_id": 7}, "expected_goal_id"),
            ({"claim": True}, "claim"),
            ({"claim": -1}, "claim"),
        ],
    )
    def test_reserve_of_a_malformed_value_is_refused_by_name(
        self, subject: Subject, arguments: dict[str, Any], field: str
    ) -> None:
        subject.create("t", "Ship", token_budget=100)
        tables = subject.tables()
        arguments = {"thread_id": "t"} | arguments
        with pytest.raises(InvalidValueError) as caught:
            subject.reserve(**arguments)
        assert caught.value.field == field
        assert subject.tables() == tables

    def test_reserve_without_its_goal_is_refused(self, subject: Subject) -> None:
        goal = subject.create("t", "Ship")
        tables = subject.tables()
        with pytest.raises(GoalNotFoundError):
            subject.reserve("u", tokens=1)
        with pytest.raises(StaleGoalError):
            subject.reserve("t", tokens=1, expected_goal_id=NO_GOAL)
        with pytest.raises(ClaimOvertakenError):
            subject.reserve("t", tokens=1, claim=1)
        assert subject.tables() == tables
        assert subject.reserve("t", tokens=1, expected_goal_id=goal.goal_id).tokens == 1

    def test_reserve_beyond_what_a_column_holds_is_refused(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        subject.reserve("t", tokens=2**63 - 1)
        tables = subject.tables()
        with pytest.raises(InvalidValueError, match="2\\^63"):
            subject.reserve("t", tokens=1)
        assert subject.tables() == tables

    def test_reserve_of_an_unknown_price_is_refused_under_a_cost_budget_alone(
        self, subject: Subject
    ) -> None:
        subject.create("root", "Ship", cost_budget=5)
        subject.create("leaf", "Ship", parent="root")
        subject.create("free", "Ship")
        tables = subject.tables()
        usages: list[dict[str, Any]] = [{"tokens": 10}, {"usage": TokenUsage(10)}, {}]
        for usage in usages:
            with pytest.raises(UnknownPriceError, match=r"'root'.*'m-1'.*name the cost"):
                subject.reserve("leaf", model="m-1", **usage)
        assert subject.tables() == tables
        assert subject.reserve("leaf", tokens=10, cost=1).cost == 1
        assert subject.reserve("free", tokens=10).tokens == 10

    def test_a_hold_that_is_not_there_is_named(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        subject.create("u", "Ship")
        subject.charge("u", TokenUsage(5), response_id="r1")
        hold = subject.reserve("t", tokens=10)
        tables = subject.tables()
        with pytest.raises(HoldNotFoundError, match="no hold"):
            subject.charge("t", tokens=5, settles=NO_GOAL)
        for key in (None, "r1"):
            with pytest.raises(HoldNotFoundError, match="one of thread 't', not of 'u'"):
                subject.charge("u", TokenUsage(5), response_id=key, settles=hold)
        assert subject.tables() == tables

    # -- keys --------------------------------------------------------------------------------------

    def test_the_same_key_finds_the_same_live_hold(self, subject: Subject) -> None:
        subject.create("t", "Ship", token_budget=100)
        subject.create("u", "Ship")
        first = subject.reserve("t", tokens=60, key="k")
        tables = subject.tables()
        again = subject.reserve("t", tokens=60, key="k")
        assert (again.was_found, again.record) == (True, first.record)
        assert subject.tables() == tables
        assert not subject.reserve("u", tokens=60, key="k").was_found
        assert not subject.reserve("t", tokens=20, key="l").was_found
        subject.charge("t", TokenUsage(1), response_id="k")  # the keys of charges are others
        assert subject.reserve("t", tokens=60, key="k").was_found

    @pytest.mark.parametrize("end", ["settle", "release", "cut", "expire"])
    def test_the_key_of_a_hold_that_has_ended_is_refused(
        self, subject: Subject, wall_time: WallTime, end: str
    ) -> None:
        subject.create("t", "Ship")
        hold = subject.reserve("t", tokens=60, key="k", expires_in=10)
        if end == "expire":
            wall_time.tick(10)
            subject.expire_holds()
        else:
            getattr(hold, end)()
        tables = subject.tables()
        with pytest.raises(HoldEndedError, match=r"'k'.*has ended.*needs a new key"):
            subject.reserve("t", tokens=60, key="k")
        assert subject.tables() == tables

    def test_the_key_of_a_hold_whose_goal_is_gone_finds_it(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        first = subject.reserve("t", tokens=60, key="k")
        subject.clear("t")
        assert subject.reserve("t", tokens=60, key="k").hold_id == first.hold_id
        subject.create("t", "Another")
        assert subject.reserve("t", tokens=60, key="k").hold_id == first.hold_id
        assert held(subject, "t") == (0, 0, 0, 0)

    # -- under way ---------------------------------------------------------------------------------

    def test_extend_counts_from_now(self, subject: Subject, wall_time: WallTime) -> None:
        subject.create("t", "Ship", token_budget=100)
        hold = subject.reserve("t", tokens=60, expires_in=10)
        begun = datetime.fromtimestamp(wall_time.now_ms / 1000, UTC)
        assert hold.expires_at == begun + timedelta(seconds=10)
        wall_time.tick(8)
        hold.extend(5)
        assert hold.expires_at == begun + timedelta(seconds=13)
        wall_time.tick(4.999)
        assert subject.expire_holds() == 0
        wall_time.tick(0.001)
        assert subject.expire_holds() == 1
        for seconds in (0, -1, float("nan"), True, 367 * 86_400):
            with pytest.raises(InvalidValueError, match=r"^seconds: "):
                hold.extend(seconds)

    def test_observed_keeps_the_newest_figures(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        hold = subject.reserve("t", tokens=60, cost=6, dispatched=False)
        hold.observed(TokenUsage(10, 4, 0, 3), cost="0.5")
        [kept] = subject.holds("t")
        assert (kept.observed_tokens, kept.observed_cost_nanos, kept.is_dispatched) == (
            9,
            500_000_000,
            1,
        )
        assert held(subject, "t") == (1, 60, 6, 1)
        assert used(subject, "t") == (0, 0, 0)
        bad: list[dict[str, Any]] = [{"tokens": -1}, {"tokens": True}, {"cost": Decimal("NaN")}]
        for malformed in bad:
            with pytest.raises(InvalidValueError):
                hold.observed(**malformed)

    @pytest.mark.parametrize("end", ["settle", "release", "cut"])
    def test_what_is_done_with_a_hold_that_has_ended_is_refused(
        self, subject: Subject, end: str
    ) -> None:
        subject.create("t", "Ship", token_budget=100)
        hold = subject.reserve("t", tokens=60, dispatched=False)
        getattr(hold, end)()
        tables = subject.tables()
        for call in (hold.dispatched, lambda: hold.extend(5), lambda: hold.observed(tokens=5)):
            with pytest.raises(HoldEndedError):
                call()
        assert subject.tables() == tables

    def test_a_goal_with_a_hold_is_charged_and_changed_as_any_other(self, subject: Subject) -> None:
        subject.create("t", "Ship", token_budget=100)
        hold = subject.reserve("t", tokens=60)
        assert subject.charge("t", tokens=90).applied  # only holds are bound by holds
        assert subject.set("t", token_budget=95).status is ACTIVE
        assert subject.set("t", token_budget=90).status is BUDGET_LIMITED
        assert held(subject, "t") == (1, 60, 0, 1)
        hold.release()
        assert goal_of(subject, "t").status is BUDGET_LIMITED

    def test_only_some_ends_of_a_hold_have_an_outcome_of_their_own(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        for end, outcome in (
            ("release", HoldOutcome.RELEASED),
            ("cut", HoldOutcome.UNKNOWN),
        ):
            hold = subject.reserve("t", tokens=5)
            getattr(hold, end)()
            assert hold.record.outcome is outcome
        assert subject.holds() == []
