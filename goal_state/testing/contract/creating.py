"""`create`, `ensure` and `replace`."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest

from goal_state import (
    GoalExistsError,
    GoalStatus,
)
from goal_state.testing.contract.subjects import (
    ACTIVE,
    CLEARED,
    COMPLETE,
    CREATED,
    PAUSED,
    Subject,
    kinds,
    with_status,
)

__all__ = ["Creating"]


class Creating:
    """`create`, `ensure` and `replace`."""

    def test_create_makes_a_goal(self, subject: Subject) -> None:
        before = datetime.now(UTC).replace(microsecond=0)
        goal = subject.create("t", "  Ship the parser\n", token_budget=200, turn_id="turn-1")

        assert goal == subject.get("t")
        assert (goal.thread_id, goal.objective, goal.status) == ("t", "Ship the parser", ACTIVE)
        assert (goal.token_budget, goal.has_token_budget, goal.remaining_tokens) == (200, True, 200)
        assert (goal.tokens_used, goal.time_used_ms, goal.time_used_seconds) == (0, 0, 0)
        assert uuid.UUID(goal.goal_id).version == 7
        assert goal.created_at == goal.updated_at
        assert before <= goal.created_at <= datetime.now(UTC)

        [event] = subject.events()
        assert (event.kind, event.thread_id, event.goal_id) == (CREATED, "t", goal.goal_id)
        assert (event.turn_id, event.goal_status, event.previous_status) == ("turn-1", ACTIVE, None)
        assert (event.token_budget, event.has_token_budget) == (200, True)
        assert (event.tokens_delta, event.time_delta_ms) == (0, 0)
        assert (event.cumulative_tokens, event.cumulative_seconds) == (None, None)
        assert (event.idempotency_key, event.replaced_goal_id) == (None, None)
        assert event.occurred_at == goal.created_at

    def test_create_without_a_budget_has_no_bound(self, subject: Subject) -> None:
        goal = subject.create("t", "Ship")
        assert (goal.token_budget, goal.has_token_budget, goal.remaining_tokens) == (
            None,
            False,
            None,
        )
        [event] = subject.events()
        assert (event.token_budget, event.has_token_budget, event.turn_id) == (None, False, None)

    @pytest.mark.parametrize("status", GoalStatus)
    def test_create_begins_with_the_status_asked_for(
        self, subject: Subject, status: GoalStatus
    ) -> None:
        assert subject.create("t", "Ship", status=status.value, token_budget=1).status is status
        assert [event.goal_status for event in subject.events()] == [status]

    @pytest.mark.parametrize("status", [s for s in GoalStatus if s is not COMPLETE])
    def test_create_refuses_where_a_goal_is_unfinished(
        self, subject: Subject, status: GoalStatus
    ) -> None:
        with_status(subject, status)
        tables = subject.tables()
        with pytest.raises(GoalExistsError, match=f"'t' has a goal that is {status}"):
            subject.create("t", "Another")
        assert subject.tables() == tables

    def test_create_takes_the_place_of_a_complete_goal(self, subject: Subject) -> None:
        old = with_status(subject, COMPLETE)
        new = subject.create("t", "Another")
        assert new.goal_id > old.goal_id
        assert (new.tokens_used, new.time_used_ms, new.token_budget) == (0, 0, None)
        assert subject.goals() == [new]
        created = subject.events(goal_id=new.goal_id)
        assert [(e.kind, e.replaced_goal_id) for e in created] == [(CREATED, old.goal_id)]
        assert CLEARED not in kinds(subject.events())

    def test_threads_have_goals_of_their_own(self, subject: Subject) -> None:
        one, two = subject.create("one", "Ship"), subject.create("two", "Ship")
        subject.charge("one", tokens=5)
        assert subject.get("two") == two
        assert one.goal_id != two.goal_id
        assert subject.get("three") is None

    @pytest.mark.parametrize("status", GoalStatus)
    def test_replace_makes_a_new_goal_in_any_case(
        self, subject: Subject, status: GoalStatus
    ) -> None:
        old = with_status(subject, status)
        new = subject.replace("t", "Another", token_budget=7, status=PAUSED, turn_id="turn-2")
        assert new == subject.get("t")
        assert new.goal_id > old.goal_id
        assert (new.objective, new.status, new.token_budget) == ("Another", PAUSED, 7)
        assert (new.tokens_used, new.time_used_ms) == (0, 0)
        [event] = subject.events(goal_id=new.goal_id)
        assert (event.kind, event.replaced_goal_id) == (CREATED, old.goal_id)
        assert (event.turn_id, event.goal_status) == ("turn-2", PAUSED)

    def test_replace_where_there_is_none_makes_one(self, subject: Subject) -> None:
        goal = subject.replace("t", "Ship")
        [event] = subject.events()
        assert (event.goal_id, event.replaced_goal_id) == (goal.goal_id, None)

    def test_ensure_makes_a_goal_where_there_is_none(self, subject: Subject) -> None:
        goal = subject.ensure("t", "Ship", cost_budget=20, warn_at=(0.8,), turn_id="turn-1")
        assert goal == subject.get("t")
        assert (goal.cost_budget, goal.warn_at, goal.status) == (20, (0.8,), ACTIVE)
        assert [(event.kind, event.turn_id) for event in subject.events()] == [(CREATED, "turn-1")]

    @pytest.mark.parametrize("status", GoalStatus)
    def test_ensure_leaves_the_goal_that_there_is(
        self, subject: Subject, status: GoalStatus
    ) -> None:
        goal = subject.create("t", "Ship", status=status, token_budget=5)
        tables = subject.tables()
        assert subject.ensure("t", "Another", token_budget=9, status=PAUSED) == goal
        assert subject.tables() == tables
