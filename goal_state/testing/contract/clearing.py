"""`clear`."""

from __future__ import annotations

import pytest

from goal_state import (
    GoalStatus,
    TokenUsage,
)
from goal_state.testing.contract.subjects import (
    CLEARED,
    CREATED,
    NO_GOAL,
    Subject,
    kinds,
    with_status,
)

__all__ = ["Clearing"]


class Clearing:
    """`clear`."""

    @pytest.mark.parametrize("status", GoalStatus)
    def test_clear_returns_the_goal_as_it_was(self, subject: Subject, status: GoalStatus) -> None:
        goal = with_status(subject, status)
        assert subject.clear("t") == goal
        assert subject.get("t") is None
        assert subject.clear("t") is None
        last = subject.events(goal_id=goal.goal_id)[-1]
        assert (last.kind, last.goal_status, last.previous_status) == (CLEARED, status, status)
        assert (last.turn_id, last.token_budget, last.cumulative_tokens) == (None, 500, None)
        assert kinds(subject.events()).count(CLEARED) == 1

    def test_clear_where_there_is_none_changes_nothing(self, subject: Subject) -> None:
        tables = subject.tables()
        assert subject.clear("t") is None
        assert subject.tables() == tables

    def test_clear_of_another_goal_than_expected_changes_nothing(self, subject: Subject) -> None:
        goal = subject.create("t", "Ship")
        tables = subject.tables()
        assert subject.clear("t", expected_goal_id=NO_GOAL) is None
        assert subject.tables() == tables
        assert subject.clear("t", expected_goal_id=goal.goal_id, turn_id="turn-1") == goal
        assert subject.events()[-1].turn_id == "turn-1"

    def test_what_was_cleared_is_gone_but_for_its_events(self, subject: Subject) -> None:
        old = subject.create("t", "A secret objective")
        subject.set("t", objective="A secret objective too")
        subject.clear("t")
        new = subject.create("t", "Ship")
        assert new.goal_id > old.goal_id
        assert "secret" not in repr(subject.tables())
        assert [(e.kind, e.goal_id, e.replaced_goal_id) for e in subject.events()] == [
            (CREATED, old.goal_id, None),
            (CLEARED, old.goal_id, None),
            (CREATED, new.goal_id, None),
        ]

    def test_usage_outlives_the_goal(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        subject.record_total("t", TokenUsage(10, 0, 0, 1), turn_id="turn-1")
        usage = subject.usage("t")
        subject.clear("t")
        assert subject.usage("t") == usage
