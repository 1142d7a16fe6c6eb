"""`warn_at`: an event as the use of a budget passes a fraction of it."""

from __future__ import annotations

from typing import Any

import pytest

from goal_state import Charge, GoalEvent, InvalidValueError
from goal_state.testing.contract.budgets import KINDS, budget, each_kind, spend
from goal_state.testing.contract.subjects import (
    ACCOUNTED,
    ACTIVE,
    BUDGET_CHANGED,
    BUDGET_LIMITED,
    CREATED,
    STATUS_CHANGED,
    THRESHOLD_CROSSED,
    Subject,
    kinds,
)

__all__ = ["Thresholds"]


def crossed(events: list[GoalEvent]) -> list[tuple[str, float]]:
    """Which fractions of which budgets were passed, in order."""
    return [
        (event.details["budget"], event.details["fraction"])
        for event in events
        if event.kind is THRESHOLD_CROSSED
    ]


class Thresholds:
    """`warn_at`: an event as the use of a budget passes a fraction of it."""

    @each_kind
    def test_a_fraction_of_each_budget_is_told_once_as_it_is_passed(
        self, subject: Subject, kind: str
    ) -> None:
        subject.create("t", "Ship", **budget(kind, 10), warn_at=(0.8, 0.5))
        told: list[list[tuple[str, float]]] = []
        for _ in range(9):
            begun = subject.events()[-1].position
            spend(subject, kind, 1)
            told.append(crossed(subject.events(after=begun)))
        assert told == [[]] * 4 + [[(kind, 0.5)], [], [], [(kind, 0.8)], []]
        [half, _] = [event for event in subject.events() if event.kind is THRESHOLD_CROSSED]
        scale = KINDS[kind].scale
        assert half.details == {
            "budget": kind,
            "fraction": 0.5,
            "used": 5 * scale,
            "limit": 10 * scale,
        }
        assert (half.goal_status, half.previous_status, half.tokens_delta) == (ACTIVE, ACTIVE, 0)

    def test_one_charge_passes_all_that_lie_between_after_its_change_of_status(
        self, subject: Subject
    ) -> None:
        subject.create("t", "Ship", token_budget=10, cost_budget=4, warn_at=(0.5, 0.8))
        subject.charge("t", tokens=10, cost=2, turn_id="turn-1")
        events = subject.events()[1:]
        assert kinds(events) == [ACCOUNTED, STATUS_CHANGED] + [THRESHOLD_CROSSED] * 3
        assert crossed(events) == [("tokens", 0.5), ("tokens", 0.8), ("cost", 0.5)]
        assert {(event.turn_id, event.goal_status) for event in events} == {
            ("turn-1", BUDGET_LIMITED)
        }

    def test_charges_of_one_batch_pass_a_fraction_once(self, subject: Subject) -> None:
        subject.create("t", "Ship", token_budget=10, warn_at=(0.5,))
        subject.charge_many([Charge("t", tokens=3)] * 3)
        assert kinds(subject.events()) == [CREATED] + [ACCOUNTED] * 2 + [
            THRESHOLD_CROSSED,
            ACCOUNTED,
        ]

    @each_kind
    def test_a_changed_budget_passes_a_fraction_as_a_charge_does(
        self, subject: Subject, kind: str
    ) -> None:
        subject.create("t", "Ship", **budget(kind, 20), warn_at=(0.5,))
        spend(subject, kind, 6)
        told: list[list[tuple[str, float]]] = []
        for amount in (10, 9, 100, None, 8, 8):
            begun = subject.events()[-1].position
            subject.set("t", **budget(kind, amount))
            told.append(crossed(subject.events(after=begun)))
        assert told == [[(kind, 0.5)], [], [], [], [(kind, 0.5)], []]
        begun = subject.events()[-1].position
        subject.set("t", **budget(kind, 100))
        spend(subject, kind, 44)
        assert crossed(subject.events(after=begun)) == [(kind, 0.5)]

    def test_a_lowered_budget_tells_of_change_status_and_fraction_in_this_order(
        self, subject: Subject
    ) -> None:
        subject.create("t", "Ship", token_budget=100, warn_at=(0.9,))
        subject.charge("t", tokens=10)
        subject.set("t", token_budget=10)
        assert kinds(subject.events()[2:]) == [BUDGET_CHANGED, STATUS_CHANGED, THRESHOLD_CROSSED]

    def test_a_fraction_that_was_passed_before_it_was_asked_for_is_not_told(
        self, subject: Subject
    ) -> None:
        subject.create("t", "Ship", token_budget=10)
        subject.charge("t", tokens=6)
        subject.set("t", warn_at=(0.5, 0.7))
        assert kinds(subject.events()[2:]) == [BUDGET_CHANGED]
        subject.charge("t", tokens=1)
        assert crossed(subject.events()) == [("tokens", 0.7)]

    @pytest.mark.parametrize(("used", "told"), [(333_332, []), (333_333, [("tokens", 0.333333)])])
    def test_fractions_are_exact(
        self, subject: Subject, used: int, told: list[tuple[str, float]]
    ) -> None:
        subject.create("t", "Ship", token_budget=1_000_000, warn_at=(0.333333,))
        subject.charge("t", tokens=used)
        assert crossed(subject.events()) == told

    @pytest.mark.parametrize(
        "warn_at",
        [
            *(0.5, "0.5", ("0.5",), (0,), (1.0,), (0.0,), (-0.5,), (1.5,), (True,)),
            *((float("nan"),), (0.1234567,), tuple(number / 10 for number in range(1, 10))),
        ],
    )
    def test_what_is_no_fraction_is_refused(self, subject: Subject, warn_at: Any) -> None:
        with pytest.raises(InvalidValueError) as caught:
            subject.create("t", "Ship", token_budget=5, warn_at=warn_at)
        assert caught.value.field == "warn_at"
        assert subject.get("t") is None
