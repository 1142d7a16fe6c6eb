"""The five budgets: when each is reached, by whatever call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple

import pytest

from goal_state import (
    BudgetExhaustedError,
    Charge,
    Goal,
    GoalEvent,
    GoalStatus,
    IdempotencyConflictError,
    InvalidValueError,
    TokenUsage,
    UsageOverflowError,
)
from goal_state.testing.contract.subjects import (
    ACCOUNTED,
    ACTIVE,
    BLOCKED,
    BUDGET_CHANGED,
    BUDGET_LIMITED,
    COMPLETE,
    CREATED,
    PAUSED,
    STATUS_CHANGED,
    USAGE_LIMITED,
    Subject,
    kinds,
    set_clock,
)

__all__ = ["Budgets"]


class Kind(NamedTuple):
    """One kind of budget: how it is given, and how it is stored."""

    argument: str
    column: str
    scale: int


KINDS: Final = {
    "tokens": Kind("token_budget", "token_budget", 1),
    "cost": Kind("cost_budget", "cost_budget_nanos", 10**9),
    "calls": Kind("call_budget", "call_budget", 1),
    "time": Kind("time_budget", "time_budget_ms", 1000),
}


def budget(kind: str, amount: int | None) -> dict[str, Any]:
    """The argument that gives a budget of so many tokens, units of cost, calls or seconds."""
    return {KINDS[kind].argument: amount}


def spend(subject: Subject, kind: str, amount: int) -> Goal:
    """The thread's goal after it has used so much more of a kind, and of no other one that has a budget."""
    if kind == "calls":
        goal = subject.get("t")
        begun = 0 if goal is None else goal.calls_used
        responses = [f"response-{number}" for number in range(begun, begun + amount)]
        subject.charge_many([Charge("t", TokenUsage(), response_id=one) for one in responses])
    elif kind == "tokens":
        subject.charge("t", tokens=amount)
    elif kind == "cost":
        subject.charge("t", cost=amount)
    else:
        subject.charge("t", seconds=amount)
    goal = subject.get("t")
    assert goal is not None
    return goal


def used(goal: Goal) -> tuple[int, Decimal, int, int]:
    """What a goal has used: tokens, cost, calls, milliseconds."""
    return goal.tokens_used, goal.cost_used, goal.calls_used, goal.time_used_ms


def _all_kinds(events: list[GoalEvent]) -> list[tuple[Any, GoalStatus]]:
    return [(event.kind, event.goal_status) for event in events]


each_kind: pytest.MarkDecorator = pytest.mark.parametrize("kind", KINDS)


class Budgets:
    """The five budgets of a goal."""

    @each_kind
    def test_a_new_goal_has_the_budget_that_it_was_given(self, subject: Subject, kind: str) -> None:
        its = KINDS[kind]
        goal = subject.create("t", "Ship", **budget(kind, 10))
        assert goal == subject.get("t")
        assert getattr(goal, its.argument) == 10
        assert getattr(goal, its.column) == 10 * its.scale
        assert (goal.status, goal.exhausted) == (ACTIVE, ())
        others = {one.column for one in KINDS.values()} - {its.column}
        assert {getattr(goal, column) for column in others} == {None}

    @each_kind
    @pytest.mark.parametrize("amount", [9, 10, 11])
    def test_a_budget_is_reached_at_and_over_it_and_not_before(
        self, subject: Subject, kind: str, amount: int
    ) -> None:
        subject.create("t", "Ship", **budget(kind, 10))
        goal = spend(subject, kind, amount)
        reached = amount >= 10
        assert goal.status is (BUDGET_LIMITED if reached else ACTIVE)
        assert goal.exhausted == ((kind,) if reached else ())
        events = _all_kinds(subject.events())
        assert events.count((STATUS_CHANGED, BUDGET_LIMITED)) == reached
        if reached:
            crossed = events.index((ACCOUNTED, BUDGET_LIMITED))
            assert events[crossed + 1] == (STATUS_CHANGED, BUDGET_LIMITED)
            assert (ACCOUNTED, ACTIVE) not in events[crossed:]

    @each_kind
    @pytest.mark.parametrize("amount", [9, 10])
    def test_a_budget_set_to_or_under_its_use_limits_an_active_goal(
        self, subject: Subject, kind: str, amount: int
    ) -> None:
        subject.create("t", "Ship")
        spend(subject, kind, 10)
        begun = subject.events()[-1].position
        goal = subject.set("t", **budget(kind, amount), turn_id="turn-1")
        assert goal == subject.get("t")
        assert (goal.status, goal.exhausted) == (BUDGET_LIMITED, (kind,))
        changed, limited = subject.events(after=begun)
        its = KINDS[kind]
        assert changed.details == {
            "was": {its.column: None},
            "now": {its.column: amount * its.scale},
        }
        assert [(e.kind, e.goal_status, e.previous_status) for e in (changed, limited)] == [
            (BUDGET_CHANGED, BUDGET_LIMITED, ACTIVE),
            (STATUS_CHANGED, BUDGET_LIMITED, ACTIVE),
        ]
        assert changed.turn_id == limited.turn_id == "turn-1"

    @each_kind
    @pytest.mark.parametrize("amount", [11, None])
    def test_a_budget_raised_or_removed_lifts_no_limit_by_itself(
        self, subject: Subject, kind: str, amount: int | None
    ) -> None:
        subject.create("t", "Ship", **budget(kind, 10))
        spend(subject, kind, 10)
        goal = subject.set("t", **budget(kind, amount))
        assert (goal.status, goal.exhausted) == (BUDGET_LIMITED, ())
        assert subject.set("t", status=ACTIVE).status is ACTIVE

    @each_kind
    @pytest.mark.parametrize("status", [PAUSED, BLOCKED, USAGE_LIMITED, COMPLETE])
    def test_a_stopped_goal_keeps_its_status_at_its_budget_and_cannot_be_activated(
        self, subject: Subject, kind: str, status: GoalStatus
    ) -> None:
        subject.create("t", "Ship", **budget(kind, 20))
        spend(subject, kind, 10)
        subject.set("t", status=status)
        assert subject.set("t", **budget(kind, 10)).status is status
        assert subject.set("t", status=ACTIVE).status is BUDGET_LIMITED

    @each_kind
    @pytest.mark.parametrize("amount", [11, None])
    def test_resume_raises_any_budget_and_reactivates_at_once(
        self, subject: Subject, kind: str, amount: int | None
    ) -> None:
        subject.create("t", "Ship", **budget(kind, 10))
        before = spend(subject, kind, 10)
        begun = subject.events()[-1].position
        goal = subject.resume("t", **budget(kind, amount))
        assert (goal.status, goal.exhausted, used(goal)) == (ACTIVE, (), used(before))
        assert kinds(subject.events(after=begun)) == [BUDGET_CHANGED, STATUS_CHANGED]

    @each_kind
    @pytest.mark.parametrize("amount", ["kept", 9, 10])
    def test_resume_at_a_budget_that_stays_reached_is_refused_by_its_name(
        self, subject: Subject, kind: str, amount: Any
    ) -> None:
        subject.create("t", "Ship", **budget(kind, 10))
        spend(subject, kind, 10)
        tables = subject.tables()
        with pytest.raises(BudgetExhaustedError, match=f"more of {KINDS[kind].argument},"):
            subject.resume("t", **({} if amount == "kept" else budget(kind, amount)))
        assert subject.tables() == tables

    @each_kind
    def test_a_budget_that_was_removed_in_time_limits_nothing(
        self, subject: Subject, kind: str
    ) -> None:
        subject.create("t", "Ship", **budget(kind, 10))
        subject.set("t", **budget(kind, None))
        assert spend(subject, kind, 1000).status is ACTIVE

    def test_a_charge_that_reaches_several_budgets_limits_the_goal_once(
        self, subject: Subject
    ) -> None:
        subject.create("t", "Ship", token_budget=5, cost_budget="0.5", call_budget=1, time_budget=2)
        result = subject.charge("t", tokens=5, cost="0.5", seconds=2, response_id="r1")
        assert result.goal is not None
        assert result.goal.exhausted == ("tokens", "cost", "calls", "time")
        assert kinds(subject.events()) == [CREATED, ACCOUNTED, STATUS_CHANGED]
        with pytest.raises(BudgetExhaustedError) as caught:
            subject.resume("t", token_budget=6, call_budget=None)
        assert str(caught.value) == (
            "the goal of thread 't' has used 0.5 of 0.5 in cost, 2 s of 2 s of active time; give resume()"
            " more of cost_budget, time_budget, or None for no bound"
        )
        goal = subject.resume("t", token_budget=6, call_budget=2, cost_budget=1, time_budget=None)
        assert (goal.status, goal.exhausted) == (ACTIVE, ())

    def test_a_replaced_goal_leaves_its_budgets_behind(self, subject: Subject) -> None:
        subject.create("t", "Ship", cost_budget=1, call_budget=2, time_budget=3, warn_at=(0.5,))
        goal = subject.replace("t", "Another", call_budget=7)
        assert goal.budgets == (None, None, 7, None, None, None)

    # -- calls -----------------------------------------------------------------------------------------

    def test_a_call_is_a_usage_or_a_response_that_was_charged(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        subject.charge("t", tokens=5, seconds=1, idempotency_key="k")
        subject.charge("t", TokenUsage(5))
        subject.charge("t", tokens=5, response_id="r1")
        subject.charge("t", TokenUsage(5), response_id="r2")
        subject.charge("t", TokenUsage(5), response_id="r2")
        subject.charge_many([Charge("t", TokenUsage(5), response_id=one) for one in ("r2", "r3")])
        goal = subject.get("t")
        assert goal is not None
        assert goal.calls_used == 4
        assert [event.calls_delta for event in subject.events()[1:]] == [0, 1, 1, 1, 1]
        assert [event.cumulative_calls for event in subject.events()[1:]] == [0, 1, 2, 3, 4]

    def test_record_total_counts_the_calls_that_are_new_in_it(self, subject: Subject) -> None:
        subject.create("t", "Ship", call_budget=5)
        subject.record_total("t", TokenUsage(100), calls=9, cost=9, turn_id="turn-1")
        for _ in range(2):  # of which the second one brings nothing new
            subject.record_total("t", TokenUsage(150), calls=3, cost="0.5", turn_id="turn-1")
        subject.record_total("t", TokenUsage(160), calls=2, turn_id="turn-1")
        goal = subject.get("t")
        assert goal is not None
        assert used(goal) == (60, Decimal("0.5"), 5, 0)
        assert (goal.unpriced_tokens, goal.status) == (10, BUDGET_LIMITED)

    # -- cost ------------------------------------------------------------------------------------------

    def test_costs_add_up_exactly(self, subject: Subject) -> None:
        subject.create("t", "Ship", cost_budget="0.3")
        subject.charge("t", cost="0.1")
        first = subject.charge("t", cost=Decimal("0.199999999")).goal
        last = subject.charge("t", cost=Decimal("1e-9")).goal
        assert first is not None
        assert last is not None
        assert (first.cost_used, first.status) == (Decimal("0.299999999"), ACTIVE)
        assert (last.cost_used, last.status) == (Decimal("0.3"), BUDGET_LIMITED)
        charges = [event for event in subject.events() if event.kind is ACCOUNTED]
        assert [event.cost_delta_nanos for event in charges] == [10**8, 199_999_999, 1]
        assert charges[-1].cumulative_cost == Decimal("0.3")

    @pytest.mark.parametrize("again", [2, "2.0", Decimal("2.000"), None])
    def test_a_repeat_with_the_same_cost_in_any_form_or_none_charges_once(
        self, subject: Subject, again: Any
    ) -> None:
        subject.create("t", "Ship")
        first = subject.charge("t", tokens=5, cost="2", response_id="r1")
        tables = subject.tables()
        repeat = subject.charge("t", tokens=5, cost=again, response_id="r1")
        assert (repeat.goal, repeat.duplicate) == (first.goal, True)
        assert subject.charge_many([Charge("t", tokens=5, cost=again, response_id="r1")]) == [
            repeat
        ]
        assert subject.tables() == tables

    def test_a_repeat_with_another_cost_is_refused_and_changes_nothing(
        self, subject: Subject
    ) -> None:
        subject.create("t", "Ship")
        subject.charge("t", tokens=5, cost="2", idempotency_key="k")
        subject.charge("t", tokens=5, idempotency_key="without")
        tables = subject.tables()
        for key, cost, charged in (("k", "2.000000001", "2"), ("without", "1", "0")):
            with pytest.raises(IdempotencyConflictError, match=f"a cost of {charged} in") as caught:
                subject.charge("t", tokens=5, cost=cost, idempotency_key=key)
            assert "that stands" in str(caught.value)
        assert subject.tables() == tables

    def test_tokens_of_a_cost_that_is_not_known_are_unpriced(self, subject: Subject) -> None:
        subject.create("t", "Ship", cost_budget=1)
        subject.charge("t", tokens=5)
        subject.charge("t", TokenUsage(7))
        subject.charge("t", tokens=11, cost=0)
        subject.charge("t", tokens=13, cost="0.5")
        goal = subject.get("t")
        assert goal is not None
        assert (goal.tokens_used, goal.unpriced_tokens, goal.cost_used) == (36, 12, Decimal("0.5"))
        assert [event.unpriced_tokens_delta for event in subject.events()] == [0, 5, 7, 0, 0]

    @pytest.mark.parametrize("figure", ["cost", "calls"])
    def test_a_figure_that_would_overflow_refuses_the_charge(
        self, subject: Subject, figure: str
    ) -> None:
        subject.create("t", "Ship")
        subject.record_total("t", TokenUsage())
        largest: dict[str, Any] = {"cost": "9223372036.854775807", "calls": 2**63 - 1}
        subject.record_total("t", TokenUsage(1), **{figure: largest[figure]})
        tables = subject.tables()
        with pytest.raises(UsageOverflowError) as caught:
            subject.charge("t", TokenUsage(1), cost="0.000000001")
        assert caught.value.field == figure
        assert subject.tables() == tables

    # -- the deadline ----------------------------------------------------------------------------------

    def test_a_deadline_is_noticed_by_the_first_write_after_it(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        due = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
        goal = subject.create("t", "Ship", deadline=due)
        assert (goal.deadline, goal.status, goal.exhausted) == (due, ACTIVE, ())
        due_ms = round(due.timestamp() * 1000)
        set_clock(monkeypatch, due_ms - 1)
        assert subject.set("t", objective="Ship it").status is ACTIVE
        set_clock(monkeypatch, due_ms)
        read = subject.get("t")
        assert read is not None
        assert read.status is ACTIVE, "reading writes nothing"
        late = subject.set("t", objective="Ship it now")
        assert (late.status, late.exhausted, late.objective) == (
            BUDGET_LIMITED,
            ("deadline",),
            "Ship it now",
        )
        assert _all_kinds(subject.events()) == [(CREATED, ACTIVE), (STATUS_CHANGED, BUDGET_LIMITED)]

    def test_a_charge_after_the_deadline_counts_and_limits(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        subject.create("t", "Ship", deadline=datetime(2100, 1, 1, tzinfo=UTC))
        set_clock(monkeypatch, 4_102_444_800_000)
        result = subject.charge("t", tokens=5)
        assert result.goal is not None
        assert (result.applied, result.goal.status) == (True, BUDGET_LIMITED)
        assert kinds(subject.events()) == [CREATED, ACCOUNTED, STATUS_CHANGED]
        assert subject.charge("t", tokens=5).applied, "a turn pays to its end"
        assert subject.ensure("t", "Another") == subject.get("t")

    def test_a_deadline_that_has_passed_limits_at_once(self, subject: Subject) -> None:
        past = datetime(2020, 1, 1, tzinfo=UTC)
        assert subject.create("t", "Ship", deadline=past).status is BUDGET_LIMITED
        assert kinds(subject.events()) == [CREATED]
        subject.create("u", "Ship")
        assert subject.set("u", deadline=past).status is BUDGET_LIMITED
        assert subject.set("v", objective="Ship", deadline=past).status is BUDGET_LIMITED
        assert subject.create("w", "Ship", deadline=past, status=PAUSED).status is PAUSED
        assert subject.set("w", status=ACTIVE).status is BUDGET_LIMITED

    def test_resume_after_the_deadline_needs_a_later_one(self, subject: Subject) -> None:
        subject.create("t", "Ship", deadline=datetime(2020, 1, 1, tzinfo=UTC))
        tables = subject.tables()
        changes: list[dict[str, Any]] = [{}, {"deadline": datetime(2021, 1, 1, tzinfo=UTC)}]
        for kept in changes:
            with pytest.raises(
                BudgetExhaustedError, match=r"is past its deadline; .* of deadline,"
            ):
                subject.resume("t", **kept)
        assert subject.tables() == tables
        assert subject.resume("t", deadline=datetime(2200, 1, 1, tzinfo=UTC)).status is ACTIVE
        assert subject.set("t", deadline=None).deadline is None

    # -- what is told of it ------------------------------------------------------------------------

    def test_a_change_of_budgets_is_told_as_it_was_and_is(self, subject: Subject) -> None:
        due = datetime(2100, 1, 1, tzinfo=UTC)
        subject.create("t", "Ship", token_budget=5, call_budget=3, time_budget=1.5, warn_at=(0.5,))
        subject.set(
            "t",
            token_budget=5,
            cost_budget="2.5",
            call_budget=None,
            time_budget=2.25,
            deadline=due,
            warn_at=(0.8, 0.25),
            objective="Ship it",
        )
        [event] = subject.events()[1:]
        assert (event.kind, event.goal_status, event.previous_status) == (
            BUDGET_CHANGED,
            ACTIVE,
            ACTIVE,
        )
        assert event.details == {
            "was": {
                "cost_budget_nanos": None,
                "call_budget": 3,
                "time_budget_ms": 1500,
                "deadline_ms": None,
                "warn_fractions": "0.5",
            },
            "now": {
                "cost_budget_nanos": 2_500_000_000,
                "call_budget": None,
                "time_budget_ms": 2250,
                "deadline_ms": 4_102_444_800_000,
                "warn_fractions": "0.25 0.8",
            },
        }
        tables = subject.tables()
        subject.set("t", cost_budget=Decimal("2.50"), warn_at=[0.25, 0.8, 0.8], deadline=due)
        subject.resume("t", token_budget=5, call_budget=None)
        assert subject.tables() == tables

    def test_model_and_tags_of_a_charge_are_in_the_log(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        tags = {"user": "ada", "tool": "s\u00fcche"}
        subject.charge("t", tokens=1, model="model-1", tags=tags)
        subject.record_total("t", TokenUsage())
        subject.record_total("t", TokenUsage(1), model="model-2", tags={"user": "bob"})
        subject.charge("t", tokens=1, tags={})
        assert [(event.model, event.tags) for event in subject.events()] == [
            (None, {}),
            ("model-1", tags),
            ("model-2", {"user": "bob"}),
            (None, {}),
        ]

    @pytest.mark.parametrize(
        ("tags", "problem"),
        [
            ("user", "a mapping of texts, not str"),
            ({f"{number}": "x" for number in range(9)}, "8 at the most, are 9"),
            ({"user": 5}, "must be text, not int"),
            ({5: "user"}, "must be text, not int"),
            ({"": "x"}, "1 to 256 characters"),
            ({"user": "x" * 65}, "64 characters at the most"),
        ],
    )
    def test_tags_out_of_their_bounds_are_refused(
        self, subject: Subject, tags: Any, problem: str
    ) -> None:
        subject.create("t", "Ship")
        tables = subject.tables()
        for charge in (
            lambda: subject.charge("t", tokens=1, tags=tags),
            lambda: subject.record_total("t", TokenUsage(), tags=tags),
        ):
            with pytest.raises(InvalidValueError, match=problem) as caught:
                charge()
            assert caught.value.field == "tags"
        assert subject.tables() == tables
