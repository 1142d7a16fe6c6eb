"""`goals`, `count` and `events`."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from goal_state import (
    GoalEvent,
    GoalStatus,
    InvalidValueError,
)
from goal_state.testing.contract.subjects import (
    PAUSED,
    Subject,
)

__all__ = ["Reading"]


class Reading:
    """`goals`, `count` and `events`."""

    def test_goals_and_count_are_narrowed_by_status(self, subject: Subject) -> None:
        assert (subject.goals(), subject.count()) == ([], 0)
        made = [
            subject.create(f"t{place}", "Ship", status=status)
            for place, status in enumerate([*GoalStatus, PAUSED])
        ]
        assert subject.goals() == made
        assert subject.count() == 7
        for status in GoalStatus:
            chosen = [goal for goal in made if goal.status is status]
            assert subject.goals(status) == subject.goals(status.value) == chosen
            assert subject.count(status) == subject.count(status.value) == len(chosen)
        with pytest.raises(InvalidValueError, match="status: must be one of active, paused"):
            subject.count("open")
        with pytest.raises(InvalidValueError, match="status: must be one of active, paused"):
            subject.goals("open")

    def test_events_are_read_by_position_thread_and_goal(self, subject: Subject) -> None:
        first = subject.create("a", "Ship")
        subject.create("b", "Ship")
        subject.charge("a", tokens=1)
        subject.charge("b", tokens=1)
        second = subject.replace("a", "Ship more")
        subject.charge("a", tokens=1)

        everything = subject.events()
        positions = [event.position for event in everything]
        assert positions == sorted(set(positions))
        assert len({event.event_id for event in everything}) == len(everything) == 6
        for after, limit in itertools.product([0, *positions], [None, 0, 1, 4, 9]):
            behind = [event for event in everything if event.position > after]
            choices: list[tuple[dict[str, str], Callable[[GoalEvent], bool]]] = [
                ({}, lambda event: True),
                ({"thread_id": "a"}, lambda event: event.thread_id == "a"),
                ({"goal_id": first.goal_id}, lambda event: event.goal_id == first.goal_id),
                (
                    {"thread_id": "a", "goal_id": second.goal_id},
                    lambda event: event.goal_id == second.goal_id,
                ),
                ({"thread_id": "b", "goal_id": second.goal_id}, lambda event: False),
                ({"thread_id": "nobody"}, lambda event: False),
            ]
            for chosen, matches in choices:
                expected = [event for event in behind if matches(event)][:limit]
                assert subject.events(after=after, limit=limit, **chosen) == expected
