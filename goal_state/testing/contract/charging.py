"""`charge` and `charge_many`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from goal_state import (
    Accounting,
    AccountingMode,
    Charge,
    Goal,
    GoalEvent,
    IdempotencyConflictError,
    InvalidValueError,
    RequestError,
    TokenUsage,
    UsageOverflowError,
)
from goal_state.testing.contract.subjects import (
    ACCOUNTED,
    ACTIVE,
    BLOCKED,
    BUDGET_LIMITED,
    COMPLETE,
    NO_GOAL,
    PAUSED,
    STATUS_CHANGED,
    Subject,
    kinds,
    with_status,
)

__all__ = ["Charging"]


def _with_goals_to_charge(subject: Subject, group: str) -> None:
    subject.create(f"{group}-budget", "Ship", token_budget=100)
    subject.charge(f"{group}-budget", tokens=7, idempotency_key="before")
    subject.create(f"{group}-plain", "Ship")
    subject.create(f"{group}-paused", "Ship", status=PAUSED)
    subject.set(f"{group}-waits", objective="Ship", status=BLOCKED, blocked_reason="An answer")
    subject.set(f"{group}-waits", token_budget=50)


def _charges(group: str) -> list[Charge]:
    budget, plain = f"{group}-budget", f"{group}-plain"
    paused, waits = f"{group}-paused", f"{group}-waits"
    mode = AccountingMode.ACTIVE_OR_STOPPED
    return [
        Charge(budget, tokens=7, idempotency_key="before"),
        Charge(budget, tokens=60, seconds=1.5, turn_id="turn-1", idempotency_key="k"),
        Charge(plain, tokens=5, idempotency_key="k"),
        Charge(paused, tokens=5),
        Charge(f"{group}-nobody", tokens=5, idempotency_key="k"),
        Charge(plain, tokens=5, expected_goal_id=NO_GOAL),
        Charge(plain),
        Charge(plain, idempotency_key="of nothing"),
        Charge(plain, idempotency_key="of nothing"),
        Charge(waits, tokens=49, mode=mode, idempotency_key="k"),
        Charge(waits, tokens=1, mode=mode, turn_id="turn-2"),
        Charge(budget, tokens=60, seconds=1.5, idempotency_key="k"),
        Charge(budget, tokens=33, turn_id="turn-3"),
        Charge(budget, tokens=1),
        Charge(budget, tokens=60, seconds=1.5, idempotency_key="k"),
        Charge(paused, tokens=3, mode=mode),
        Charge(plain, seconds=2),
        Charge(plain, TokenUsage(50, 20, 0, 7), response_id="response"),
        Charge(plain, {"prompt_tokens": 30, "completion_tokens": 7}, response_id="response"),
        Charge(waits, TokenUsage(9, 9), mode=mode, response_id="of nothing that counts"),
    ]


def _without_ids(record: Goal | GoalEvent) -> dict[str, Any]:
    """A goal or an event without what is another one in each group."""
    fields = asdict(record) | {"thread_id": record.thread_id.split("-")[1]}
    return {key: fields[key] for key in fields if key not in ("goal_id", "event_id", "position")}


class Charging:
    """`charge` and `charge_many`."""

    def test_charge_adds_usage(self, subject: Subject) -> None:
        created = subject.create("t", "Ship", token_budget=1000)
        first = subject.charge("t", tokens=250, seconds=3.2, turn_id="turn-1")
        second = subject.charge("t", tokens=50, seconds=0.9, turn_id="turn-2")

        assert first.goal is not None
        assert (
            (first.applied, first.duplicate) == (second.applied, second.duplicate) == (True, False)
        )
        assert second.goal == subject.get("t")
        assert second.goal is not None
        assert (first.goal.tokens_used, first.goal.time_used_ms) == (250, 3200)
        assert (second.goal.tokens_used, second.goal.time_used_ms) == (300, 4100)
        assert (second.goal.time_used_seconds, second.goal.remaining_tokens) == (4, 700)
        assert (second.goal.goal_id, second.goal.created_at) == (
            created.goal_id,
            created.created_at,
        )

        charges = subject.events()[1:]
        assert kinds(charges) == [ACCOUNTED, ACCOUNTED]
        assert [(e.tokens_delta, e.time_delta_ms) for e in charges] == [(250, 3200), (50, 900)]
        assert [(e.cumulative_tokens, e.cumulative_time_ms) for e in charges] == [
            (250, 3200),
            (300, 4100),
        ]
        assert [e.cumulative_seconds for e in charges] == [3, 4]
        assert [e.turn_id for e in charges] == ["turn-1", "turn-2"]
        assert {(e.goal_status, e.previous_status, e.token_budget) for e in charges} == {
            (ACTIVE, ACTIVE, 1000)
        }

    def test_a_charge_that_fills_the_budget_is_followed_by_the_change_of_status(
        self,
        subject: Subject,
    ) -> None:
        subject.create("t", "Ship", token_budget=100)
        result = subject.charge("t", tokens=150, turn_id="turn-1")
        assert result.goal is not None
        assert (result.goal.status, result.goal.tokens_used) == (BUDGET_LIMITED, 150)
        assert result.goal.remaining_tokens == 0
        charge, change = subject.events()[1:]
        assert (charge.kind, charge.goal_status, charge.cumulative_tokens) == (
            ACCOUNTED,
            BUDGET_LIMITED,
            150,
        )
        assert (change.kind, change.goal_status, change.previous_status) == (
            STATUS_CHANGED,
            BUDGET_LIMITED,
            ACTIVE,
        )
        assert charge.turn_id == change.turn_id == "turn-1"
        assert charge.position < change.position

    def test_charge_without_a_goal_changes_nothing(self, subject: Subject) -> None:
        tables = subject.tables()
        assert subject.charge("t", tokens=5, seconds=1) == Accounting(None, applied=False)
        assert subject.tables() == tables

    def test_charge_for_another_goal_than_expected_changes_nothing(self, subject: Subject) -> None:
        goal = subject.create("t", "Ship")
        tables = subject.tables()
        stale = subject.charge("t", tokens=5, expected_goal_id=NO_GOAL)
        assert stale == Accounting(goal, applied=False)
        assert subject.tables() == tables
        assert subject.charge("t", tokens=5, expected_goal_id=goal.goal_id).applied

    def test_a_charge_that_no_status_accepts_changes_nothing(self, subject: Subject) -> None:
        goal = with_status(subject, PAUSED)
        tables = subject.tables()
        assert subject.charge("t", tokens=5, seconds=1) == Accounting(goal, applied=False)
        assert subject.tables() == tables

    def test_a_repeated_key_charges_once(self, subject: Subject) -> None:
        subject.create("t", "Ship", token_budget=1000)
        first = subject.charge("t", tokens=10, seconds=1, idempotency_key="k")
        subject.charge("t", tokens=990)
        tables = subject.tables()
        again = subject.charge("t", tokens=10, seconds=1, idempotency_key="k")
        assert (again.applied, again.duplicate) == (True, True)
        assert again.goal is not None
        assert first.goal is not None
        assert (again.goal.tokens_used, again.goal.time_used_ms, again.goal.status) == (
            10,
            1000,
            ACTIVE,
        )
        assert again.goal.goal_id == first.goal.goal_id
        assert subject.tables() == tables
        assert [e.idempotency_key for e in subject.events()] == [None, "k", None, None]

    def test_charge_with_a_usage_adds_the_tokens_that_count(self, subject: Subject) -> None:
        subject.create("t", "Ship", token_budget=1000)
        subject.charge("t", TokenUsage(100, 30, 5, 20, 5), response_id="r1", seconds=1)
        subject.charge("t", {"input_tokens": 50, "output_tokens": 5}, turn_id="turn-1")
        goal = subject.get("t")
        assert goal is not None
        assert (goal.tokens_used, goal.time_used_ms) == (145, 1000)
        keys = [(e.idempotency_key, e.turn_id, e.tokens_delta) for e in subject.events()]
        assert keys[1:] == [("r1", None, 90), (None, "turn-1", 55)]
        assert subject.usage("t") is None  # no total was ever reported

    def test_charge_with_a_repeated_response_id_charges_once(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        first = subject.charge("t", TokenUsage(10), response_id="r1", seconds=1)
        tables = subject.tables()
        for again in (
            subject.charge("t", TokenUsage(10), response_id="r1", seconds=7),
            subject.charge("t", TokenUsage(10), idempotency_key="r1"),
            subject.charge("t", tokens=10, response_id="r1", idempotency_key="r1"),
        ):
            assert again == Accounting(first.goal, applied=True, duplicate=True)
        for other in ({"usage": TokenUsage(11)}, {"tokens": 9}):
            with pytest.raises(IdempotencyConflictError) as caught:
                subject.charge("t", **other, response_id="r1")  # type: ignore[arg-type]
            assert str(caught.value).startswith(
                "response_id 'r1' has charged 10 tokens in thread 't'"
            )
            assert "that stands" in str(caught.value)
        assert subject.tables() == tables

    def test_charge_with_a_response_id_of_another_thread_is_another_charge(
        self, subject: Subject
    ) -> None:
        for thread in ("t", "u"):
            subject.create(thread, "Ship")
            assert not subject.charge(thread, TokenUsage(10), response_id="r1").duplicate

    @pytest.mark.parametrize(
        ("arguments", "field", "problem"),
        [
            ({"usage": TokenUsage(5), "tokens": 5}, "tokens", "goes without usage"),
            ({"response_id": "r1"}, "usage", "is missing"),
            ({"response_id": "r1", "seconds": 1}, "usage", "is missing"),
            (
                {"tokens": 5, "response_id": "r1", "idempotency_key": "k"},
                "idempotency_key",
                "must be the response_id",
            ),
            ({"usage": {"input_tokens": 5, "cache_tokens": 7}}, "usage", "cache_tokens"),
        ],
    )
    def test_charge_of_contradictory_arguments_is_refused_and_changes_nothing(
        self, subject: Subject, arguments: dict[str, Any], field: str, problem: str
    ) -> None:
        subject.create("t", "Ship")
        tables = subject.tables()
        with pytest.raises(InvalidValueError) as caught:
            subject.charge("t", **arguments)
        assert caught.value.field == field
        assert problem in caught.value.problem
        assert subject.tables() == tables

    def test_charge_of_a_usage_that_was_empty_takes_its_response_id(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        assert subject.charge("t", TokenUsage(), response_id="r1").applied
        assert subject.charge("t", TokenUsage(), response_id="r1").duplicate

    def test_charge_many_does_as_charge_one_after_the_other(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("goal_state.storage.wall_clock.now_ms", lambda: 1_000)
        for group in ("one", "many"):
            _with_goals_to_charge(subject, group)
        begun = subject.events()[-1].position
        monkeypatch.setattr("goal_state.storage.wall_clock.now_ms", lambda: 2_000)
        one = [subject.apply(charge) for charge in _charges("one")]
        between = subject.events()[-1].position
        many = subject.charge_many(_charges("many"))

        assert [(result.applied, result.duplicate) for result in many] == [
            (result.applied, result.duplicate) for result in one
        ]
        assert [result.goal and _without_ids(result.goal) for result in many] == [
            result.goal and _without_ids(result.goal) for result in one
        ]
        events = subject.events(after=begun)
        charged = [_without_ids(event) for event in events if event.position > between]
        assert charged == [_without_ids(event) for event in events if event.position <= between]
        goals = {goal.thread_id: goal for goal in subject.goals()}
        for thread in ("budget", "plain", "paused", "waits"):
            assert _without_ids(goals[f"many-{thread}"]) == _without_ids(goals[f"one-{thread}"])
        assert (many[-1].goal, many[-5].goal) == (goals["many-waits"], goals["many-paused"])

    @pytest.mark.parametrize(
        ("last", "error"),
        [
            (Charge("t", tokens=2**63 - 1), UsageOverflowError),
            (Charge("t", tokens=2, idempotency_key="k"), IdempotencyConflictError),
        ],
        ids=["overflow", "conflict"],
    )
    def test_charge_many_makes_all_or_none(
        self, subject: Subject, last: Charge, error: type[RequestError]
    ) -> None:
        subject.create("t", "Ship")
        tables = subject.tables()
        with pytest.raises(error):
            subject.charge_many([Charge("t", tokens=1, idempotency_key="k"), last])
        assert subject.tables() == tables

    def test_charge_many_of_what_no_goal_takes_changes_nothing(self, subject: Subject) -> None:
        goal = subject.create("t", "Ship", status=PAUSED)
        tables = subject.tables()
        assert subject.charge_many([]) == []
        assert subject.charge_many([Charge("t", tokens=5), Charge("nobody", tokens=5)]) == [
            Accounting(goal, applied=False),
            Accounting(None, applied=False),
        ]
        assert subject.tables() == tables

    def test_a_charge_that_names_no_amount_is_one_of_nothing(self, subject: Subject) -> None:
        goal = subject.create("t", "Ship")
        tables = subject.tables()
        assert subject.charge("t") == Accounting(goal, applied=False)
        assert subject.charge_many([Charge("t")]) == [Accounting(goal, applied=False)]
        assert subject.tables() == tables

    @pytest.mark.parametrize(
        ("charges", "problem"),
        [
            (None, "must be many, not NoneType"),
            (Charge("t", tokens=1), "must be many, not Charge"),
            ("t", "must be of Charge, number 0 is str"),
            ([Charge("t", tokens=1), {"tokens": 1}], "must be of Charge, number 1 is dict"),
        ],
        ids=["none", "one alone", "text", "a mapping among them"],
    )
    def test_charge_many_refuses_what_are_no_charges(
        self, subject: Subject, charges: Any, problem: str
    ) -> None:
        subject.create("t", "Ship")
        tables = subject.tables()
        with pytest.raises(InvalidValueError) as caught:
            subject.charge_many(charges)
        assert str(caught.value) == f"charges: {problem}"
        assert subject.tables() == tables

    def test_modes_are_taken_by_name(self, subject: Subject) -> None:
        with_status(subject, COMPLETE)
        for mode in (AccountingMode.ACTIVE_OR_COMPLETE, "active_or_complete"):
            assert subject.charge("t", tokens=1, mode=mode).applied
        subject.set_baseline("t", TokenUsage())
        assert subject.record_total(
            "t", TokenUsage(1), seconds=1, mode="active_or_complete"
        ).applied
