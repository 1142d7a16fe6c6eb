"""`set` and `resume`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from goal_state import (
    KEEP,
    BudgetExhaustedError,
    GoalNotFoundError,
    GoalStatus,
    InvalidValueError,
    StaleGoalError,
)
from goal_state.testing.contract.subjects import (
    ACCOUNTED,
    ACTIVE,
    BLOCKED,
    BUDGET_CHANGED,
    BUDGET_LIMITED,
    COMPLETE,
    CREATED,
    NO_GOAL,
    PAUSED,
    STATUS_CHANGED,
    USAGE_LIMITED,
    Subject,
    kinds,
    with_status,
)

__all__ = ["Changing"]

LATER = datetime(2030, 1, 2, 3, 4, 5, 678_000, UTC)
WAITS: dict[GoalStatus, dict[str, Any]] = {
    USAGE_LIMITED: {"resume_at": LATER},
    BLOCKED: {"blocked_reason": "Which of the two?"},
}


class Changing:
    """`set` and `resume`."""

    def test_set_makes_a_goal_where_there_is_none(self, subject: Subject) -> None:
        goal = subject.set(
            "t", objective=" Ship ", status="paused", token_budget=10, turn_id="turn-1"
        )
        assert goal == subject.get("t")
        assert (goal.objective, goal.status, goal.token_budget) == ("Ship", PAUSED, 10)
        assert [(e.kind, e.goal_status, e.turn_id) for e in subject.events()] == [
            (CREATED, PAUSED, "turn-1")
        ]

    def test_set_makes_an_active_goal_without_a_budget_if_not_told_otherwise(
        self, subject: Subject
    ) -> None:
        goal = subject.set("t", objective="Ship")
        assert (goal.status, goal.token_budget) == (ACTIVE, None)

    @pytest.mark.parametrize("change", [{}, {"status": "paused"}, {"token_budget": None}])
    def test_set_needs_a_goal_or_an_objective(
        self, subject: Subject, change: dict[str, Any]
    ) -> None:
        with pytest.raises(GoalNotFoundError, match="'t' has no goal"):
            subject.set("t", **change)
        assert subject.events() == []

    def test_set_changes_in_place(self, subject: Subject) -> None:
        old = with_status(subject, ACTIVE)
        new = subject.set(
            "t", objective="Ship it", status=PAUSED, token_budget=900, turn_id="turn-9"
        )
        assert new == subject.get("t")
        assert (new.goal_id, new.created_at) == (old.goal_id, old.created_at)
        assert (new.tokens_used, new.time_used_ms) == (100, 5000)
        assert (new.objective, new.status, new.token_budget) == ("Ship it", PAUSED, 900)
        assert new.updated_at >= old.updated_at
        last = subject.events()[-1]
        assert (last.kind, last.goal_status, last.previous_status) == (
            STATUS_CHANGED,
            PAUSED,
            ACTIVE,
        )
        assert (last.turn_id, last.token_budget, last.cumulative_tokens) == ("turn-9", 900, None)

    def test_an_objective_alone_appends_no_event(self, subject: Subject) -> None:
        with_status(subject, ACTIVE)
        events = subject.events()
        new = subject.set("t", objective="Ship it")
        assert (new.objective, new.status) == ("Ship it", ACTIVE)
        assert subject.events() == events

    @pytest.mark.parametrize("budget", [101, None])
    def test_a_budget_alone_appends_what_it_was_and_is(
        self, subject: Subject, budget: int | None
    ) -> None:
        with_status(subject, ACTIVE)
        events = subject.events()
        new = subject.set("t", token_budget=budget)
        assert (new.token_budget, new.status) == (budget, ACTIVE)
        [event] = subject.events()[len(events) :]
        assert (event.kind, event.goal_status, event.previous_status) == (
            BUDGET_CHANGED,
            ACTIVE,
            ACTIVE,
        )
        assert event.details == {"was": {"token_budget": 500}, "now": {"token_budget": budget}}

    @pytest.mark.parametrize("status", GoalStatus)
    def test_set_of_what_is_there_changes_nothing(
        self, subject: Subject, status: GoalStatus
    ) -> None:
        goal = with_status(subject, status)
        tables = subject.tables()
        assert subject.set("t") == goal
        assert subject.set("t", objective=KEEP, status=KEEP, token_budget=KEEP) == goal
        assert subject.set("t", objective=" Ship", status=status, token_budget=500) == goal
        assert subject.tables() == tables

    @pytest.mark.parametrize("budget", [99, 100])
    def test_a_budget_at_or_under_the_usage_limits_an_active_goal(
        self, subject: Subject, budget: int
    ) -> None:
        with_status(subject, ACTIVE)
        goal = subject.set("t", token_budget=budget)
        assert (goal.status, goal.token_budget, goal.remaining_tokens) == (
            BUDGET_LIMITED,
            budget,
            0,
        )
        last = subject.events()[-1]
        assert (last.kind, last.goal_status, last.previous_status) == (
            STATUS_CHANGED,
            BUDGET_LIMITED,
            ACTIVE,
        )

    @pytest.mark.parametrize("budget", [601, None])
    def test_more_budget_alone_does_not_lift_the_limit(
        self, subject: Subject, budget: int | None
    ) -> None:
        subject.create("t", "Ship", token_budget=500)
        subject.charge("t", tokens=600)
        assert subject.set("t", token_budget=budget).status is BUDGET_LIMITED
        assert kinds(subject.events()) == [CREATED, ACCOUNTED, STATUS_CHANGED, BUDGET_CHANGED]
        assert subject.set("t", status=ACTIVE).status is ACTIVE

    @pytest.mark.parametrize("status", [PAUSED, BLOCKED, USAGE_LIMITED, COMPLETE])
    def test_a_spent_goal_asked_to_be_active_is_budget_limited(
        self, subject: Subject, status: GoalStatus
    ) -> None:
        with_status(subject, status)
        assert subject.set("t", token_budget=100).status is status
        assert subject.set("t", status=ACTIVE).status is BUDGET_LIMITED
        last = subject.events()[-1]
        assert (last.goal_status, last.previous_status) == (BUDGET_LIMITED, status)

    def test_set_refuses_another_goal_than_expected(self, subject: Subject) -> None:
        goal = with_status(subject, ACTIVE)
        assert subject.set("t", status=PAUSED, expected_goal_id=goal.goal_id).status is PAUSED
        tables = subject.tables()
        with pytest.raises(
            StaleGoalError, match=f"has goal {goal.goal_id}, expected goal {NO_GOAL}"
        ):
            subject.set("t", objective="Another", expected_goal_id=NO_GOAL)
        with pytest.raises(StaleGoalError, match="'other' has no goal, expected goal"):
            subject.set("other", objective="Another", expected_goal_id=NO_GOAL)
        assert subject.tables() == tables

    @pytest.mark.parametrize("status", WAITS)
    def test_why_a_goal_waits_is_kept_while_it_waits(
        self, subject: Subject, status: GoalStatus
    ) -> None:
        with_status(subject, ACTIVE)
        [(field, value)] = WAITS[status].items()
        goal = subject.set("t", status=status, **WAITS[status])
        assert goal == subject.get("t")
        assert getattr(goal, field) == value
        assert subject.set("t", objective="Ship it", token_budget=900) == subject.get("t")
        charged = subject.charge("t", tokens=1, mode="active_or_stopped").goal
        assert charged is not None
        assert getattr(charged, field) == value
        assert getattr(subject.set("t", status=status), field) is None

    @pytest.mark.parametrize("status", WAITS)
    @pytest.mark.parametrize("leave", ["set", "resume", "charge", "complete", "other"])
    def test_why_a_goal_waited_is_forgotten_when_it_no_longer_does(
        self, subject: Subject, status: GoalStatus, leave: str
    ) -> None:
        subject.set("t", objective="Ship", status=status, token_budget=5, **WAITS[status])
        if leave == "set":
            subject.set("t", status=ACTIVE)
        elif leave == "resume":
            subject.resume("t")
        elif leave == "charge":
            charged = subject.charge("t", tokens=5, mode="active_or_stopped")
            assert charged.goal == subject.get("t")
        elif leave == "complete":
            subject.set("t", status=COMPLETE)
        else:
            [other] = set(WAITS) - {status}
            subject.set("t", status=other)
        goal = subject.get("t")
        assert goal is not None
        assert goal.status is not status
        assert (goal.resume_at, goal.blocked_reason) == (None, None)

    @pytest.mark.parametrize("status", [KEEP, *GoalStatus])
    def test_why_a_goal_waits_goes_with_the_status_that_waits_for_it(
        self, subject: Subject, status: Any
    ) -> None:
        with_status(subject, PAUSED)
        tables = subject.tables()
        for waiting, arguments in WAITS.items():
            if waiting is not status:
                [field] = arguments
                with pytest.raises(InvalidValueError, match=f"{field}: goes with status {waiting}"):
                    subject.set("t", status=status, **arguments)
        assert subject.tables() == tables

    @pytest.mark.parametrize("status", [s for s in GoalStatus if s is not ACTIVE])
    def test_resume_makes_a_goal_active(self, subject: Subject, status: GoalStatus) -> None:
        old = with_status(subject, status)
        new = subject.resume("t", turn_id="turn-3")
        assert new == subject.get("t")
        assert (new.goal_id, new.status, new.tokens_used) == (old.goal_id, ACTIVE, 100)
        assert (new.objective, new.token_budget) == ("Ship", 500)
        last = subject.events()[-1]
        assert (last.kind, last.goal_status, last.previous_status, last.turn_id) == (
            STATUS_CHANGED,
            ACTIVE,
            status,
            "turn-3",
        )

    def test_resume_of_an_active_goal_changes_nothing(self, subject: Subject) -> None:
        goal = with_status(subject, ACTIVE)
        tables = subject.tables()
        assert subject.resume("t") == goal
        assert subject.tables() == tables

    @pytest.mark.parametrize("budget", [601, None])
    def test_resume_raises_the_budget_at_once(self, subject: Subject, budget: int | None) -> None:
        subject.create("t", "Ship", token_budget=500)
        subject.charge("t", tokens=600)
        goal = subject.resume("t", token_budget=budget)
        assert (goal.status, goal.token_budget, goal.tokens_used) == (ACTIVE, budget, 600)
        last = subject.events()[-1]
        assert (last.kind, last.token_budget) == (STATUS_CHANGED, budget)

    @pytest.mark.parametrize("budget", [KEEP, 1, 600])
    def test_resume_of_a_goal_that_stays_spent_changes_nothing(
        self, subject: Subject, budget: Any
    ) -> None:
        subject.create("t", "Ship", token_budget=500)
        subject.charge("t", tokens=600)
        tables = subject.tables()
        with pytest.raises(
            BudgetExhaustedError,
            match=r"has used 600 of \d+ tokens; give resume\(\) more of token_budget, or None",
        ):
            subject.resume("t", token_budget=budget)
        assert subject.tables() == tables

    def test_resume_lowering_the_budget_of_an_active_goal_under_its_usage(
        self, subject: Subject
    ) -> None:
        with_status(subject, ACTIVE)
        tables = subject.tables()
        with pytest.raises(BudgetExhaustedError):
            subject.resume("t", token_budget=100)
        assert subject.tables() == tables

    def test_resume_needs_the_expected_goal(self, subject: Subject) -> None:
        with pytest.raises(GoalNotFoundError):
            subject.resume("t")
        with pytest.raises(StaleGoalError):
            subject.resume("t", expected_goal_id=NO_GOAL)
        goal = with_status(subject, PAUSED)
        tables = subject.tables()
        with pytest.raises(StaleGoalError):
            subject.resume("t", token_budget=9_000, expected_goal_id=NO_GOAL)
        assert subject.tables() == tables
        assert subject.resume("t", expected_goal_id=goal.goal_id).status is ACTIVE
