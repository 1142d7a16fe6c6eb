"""`claim`, `resume_due` and `next_resume_at`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from goal_state import Charge, GoalNotFoundError, InvalidValueError, TokenUsage
from goal_state.errors import ClaimHeldError, ClaimOvertakenError
from goal_state.testing.contract.holds import goal_of
from goal_state.testing.contract.subjects import (
    ACTIVE,
    BUDGET_LIMITED,
    CREATED,
    PAUSED,
    STATUS_CHANGED,
    USAGE_LIMITED,
    Subject,
    kinds,
)
from goal_state.testing.contract.wall_time import Timed, WallTime

__all__ = ["Claims"]


def at(wall_time: WallTime, seconds: float) -> datetime:
    """So many seconds after the present."""
    return datetime.fromtimestamp(wall_time.now_ms / 1000, UTC) + timedelta(seconds=seconds)


class Claims(Timed):
    """`claim`, `resume_due` and `next_resume_at`."""

    def test_claim_gives_the_goal_to_one_owner_for_a_time(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        subject.create("t", "Ship")
        claimed = subject.claim("t", "ada", 10)
        assert claimed == subject.get("t")
        assert (claimed.claim_number, claimed.claim_owner) == (wall_time.now_ms, "ada")
        assert claimed.claim_expires_at_ms == wall_time.now_ms + 10_000
        tables = subject.tables()
        with pytest.raises(ClaimHeldError, match="run by 'ada' for another 10 s"):
            subject.claim("t", "bob", 10)
        assert subject.tables() == tables
        assert kinds(subject.events()) == [CREATED]

    def test_claim_again_by_its_owner_goes_on_under_the_same_number(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        subject.create("t", "Ship")
        first = subject.claim("t", "ada", 10).claim_number
        wall_time.tick(9)
        assert subject.claim("t", "ada", 10).claim_number == first
        wall_time.tick(9.999)
        with pytest.raises(ClaimHeldError):
            subject.claim("t", "bob", 10)
        wall_time.tick(0.001)
        second = subject.claim("t", "bob", 10).claim_number
        wall_time.tick(10)
        assert first < second < subject.claim("t", "bob", 10).claim_number

    def test_claim_after_the_clock_went_back_has_a_higher_number(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        subject.create("t", "Ship")
        first = subject.claim("t", "ada", 0.001).claim_number
        wall_time.tick(0.001)
        second = subject.claim("t", "bob", 0.001).claim_number
        wall_time.tick(-100)
        assert subject.claim("t", "bob", 10).claim_number == second
        wall_time.tick(10)
        assert first < second
        assert subject.claim("t", "ada", 10).claim_number == second + 1

    @pytest.mark.parametrize(
        "call", ["charge", "charge_many", "record_total", "reserve", "set", "resume"]
    )
    def test_what_names_an_overtaken_claim_is_refused(
        self, subject: Subject, wall_time: WallTime, call: str
    ) -> None:
        subject.create("t", "Ship", token_budget=100)
        subject.set_baseline("t", TokenUsage())
        old = subject.claim("t", "ada", 10).claim_number
        calls: dict[str, Callable[[int], object]] = {
            "charge": lambda claim: subject.charge("t", tokens=1, claim=claim),
            "charge_many": lambda claim: subject.charge_many(
                [Charge("t", tokens=1), Charge("t", tokens=1, claim=claim)]
            ),
            "record_total": lambda claim: subject.record_total("t", TokenUsage(5), claim=claim),
            "reserve": lambda claim: subject.reserve("t", tokens=1, claim=claim),
            "set": lambda claim: subject.set("t", objective="Another", claim=claim),
            "resume": lambda claim: subject.resume("t", token_budget=200, claim=claim),
        }
        wall_time.tick(10)
        calls[call](old)  # nobody has taken over
        new = subject.claim("t", "bob", 10).claim_number
        tables = subject.tables()
        with pytest.raises(
            ClaimOvertakenError,
            match=rf"claim {old} .*'t' was overtaken.*claim {new} holds now",
        ):
            calls[call](old)
        assert subject.tables() == tables
        calls[call](new)

    @pytest.mark.parametrize("gone", ["clear", "replace"])
    def test_a_claim_ends_with_its_goal(
        self, subject: Subject, wall_time: WallTime, gone: str
    ) -> None:
        subject.create("t", "Ship")
        claim = subject.claim("t", "ada", 10).claim_number
        if gone == "clear":
            subject.clear("t")
            now = "the goal is gone"
        else:
            subject.replace("t", "Another")
            now = "claim 0 holds now"
        with pytest.raises(ClaimOvertakenError, match=rf"overtaken \({now}\); stop working on it"):
            subject.charge("t", tokens=1, claim=claim)
        subject.ensure("t", "Another")
        wall_time.tick(0.001)
        assert subject.claim("t", "bob", 10).claim_number > claim
        with pytest.raises(ClaimOvertakenError, match="overtaken"):
            subject.charge("t", tokens=1, claim=claim)

    @pytest.mark.parametrize(
        ("owner", "seconds", "field"),
        [
            ("", 5, "owner"),
            (None, 5, "owner"),
            ("o" * 257, 5, "owner"),
            ("ada", 0, "seconds"),
            ("ada", -1, "seconds"),
            ("ada", float("nan"), "seconds"),
            ("ada", float("inf"), "seconds"),
            ("ada", True, "seconds"),
            ("ada", 367 * 86_400, "seconds"),
        ],
    )
    def test_a_malformed_claim_is_refused_by_name(
        self, subject: Subject, owner: Any, seconds: Any, field: str
    ) -> None:
        subject.create("t", "Ship")
        tables = subject.tables()
        with pytest.raises(InvalidValueError) as caught:
            subject.claim("t", owner, seconds)
        assert caught.value.field == field
        with pytest.raises(GoalNotFoundError):
            subject.claim("u", "ada", 5)
        assert subject.tables() == tables

    # -- limits that end ---------------------------------------------------------------------------

    def test_resume_due_wakes_each_goal_once_its_time_has_come(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        for thread_id, seconds in (("late", 20), ("soon", 10), ("now", 5)):
            subject.create(thread_id, "Ship")
            subject.set(thread_id, status=USAGE_LIMITED, resume_at=at(wall_time, seconds))
        subject.create("unknown", "Ship", status=USAGE_LIMITED)
        subject.create("paused", "Ship", status=PAUSED)
        assert subject.store.next_resume_at() == at(wall_time, 5)
        tables = subject.tables()
        wall_time.tick(4.999)
        assert subject.resume_due() == []
        assert subject.tables() == tables
        wall_time.tick(5.001)
        begun = subject.events()[-1].position
        woken = subject.resume_due()
        assert [goal.thread_id for goal in woken] == ["now", "soon"]
        for goal in woken:
            assert (goal.status, goal.resume_at) == (ACTIVE, None)
            assert goal == subject.get(goal.thread_id)
        assert kinds(subject.events(after=begun)) == [STATUS_CHANGED, STATUS_CHANGED]
        assert subject.store.next_resume_at() == at(wall_time, 10)
        tables = subject.tables()
        assert subject.resume_due() == []
        assert subject.tables() == tables
        assert [goal.status for goal in subject.goals()].count(USAGE_LIMITED) == 2

    def test_resume_due_takes_another_time_than_the_present(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        subject.create("t", "Ship")
        subject.set("t", status=USAGE_LIMITED, resume_at=at(wall_time, 100))
        assert subject.resume_due(now=at(wall_time, 99)) == []
        assert [goal.status for goal in subject.resume_due(now=at(wall_time, 100))] == [ACTIVE]
        bad: list[Any] = [datetime(2030, 1, 1), "now", 5]  # noqa: DTZ001
        for malformed in bad:
            with pytest.raises(InvalidValueError, match=r"^now: "):
                subject.resume_due(now=malformed)

    @pytest.mark.parametrize("why", ["tokens", "deadline"])
    def test_resume_due_of_a_goal_with_a_reached_budget_limits_it(
        self, subject: Subject, wall_time: WallTime, why: str
    ) -> None:
        subject.create("t", "Ship", token_budget=100, deadline=at(wall_time, 8))
        if why == "tokens":
            subject.charge("t", tokens=90)
        subject.set("t", status=USAGE_LIMITED, resume_at=at(wall_time, 5))
        if why == "tokens":
            subject.set("t", token_budget=80)
        wall_time.tick(5 if why == "tokens" else 8)
        assert [goal.status for goal in subject.resume_due()] == [BUDGET_LIMITED]
        assert goal_of(subject, "t").resume_at is None
        assert subject.resume_due() == []

    def test_a_goal_that_was_resumed_otherwise_is_not_woken(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        for thread_id in ("a", "b", "c"):
            subject.create(thread_id, "Ship")
            subject.set(thread_id, status=USAGE_LIMITED, resume_at=at(wall_time, 5))
        subject.resume("a")
        subject.set("b", status=PAUSED)
        subject.clear("c")
        assert subject.store.next_resume_at() is None
        wall_time.tick(5)
        assert subject.resume_due() == []

    def test_resume_due_wakes_more_than_one_page(
        self, subject: Subject, wall_time: WallTime
    ) -> None:
        for number in range(101):
            subject.set(
                f"t{number}", objective="Ship", status=USAGE_LIMITED, resume_at=at(wall_time, 1)
            )
        wall_time.tick(1)
        assert len({goal.thread_id for goal in subject.resume_due()}) == 101
