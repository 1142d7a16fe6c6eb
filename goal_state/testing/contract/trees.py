"""Goals under goals: who pays for whom."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from goal_state import (
    Charge,
    Goal,
    GoalEvent,
    GoalNotFoundError,
    GoalStatus,
    IdempotencyConflictError,
    InvalidValueError,
    RequestError,
    TokenUsage,
    TreeError,
    UsageOverflowError,
)
from goal_state.domain.goals import MAX_DEPTH
from goal_state.testing.contract.subjects import (
    ACCOUNTED,
    ACTIVE,
    BUDGET_LIMITED,
    COMPLETE,
    CREATED,
    PAUSED,
    STATUS_CHANGED,
    THRESHOLD_CROSSED,
    Subject,
    kinds,
    set_clock,
)

__all__ = ["Trees"]


def grow(subject: Subject, *, prefix: str = "", **budgets: Any) -> tuple[Goal, Goal, Goal]:
    """A root, a goal under it, and one under that; the root has the budgets."""
    root = subject.create(f"{prefix}root", "Ship", **budgets)
    middle = subject.create(f"{prefix}middle", "Build", parent=f"{prefix}root")
    leaf = subject.create(f"{prefix}leaf", "Write", parent=f"{prefix}middle")
    return root, middle, leaf


def used(subject: Subject, *threads: str) -> list[tuple[int, Decimal, int, int]]:
    """What goals have used: tokens, cost, calls, milliseconds."""
    goals = [subject.get(thread) for thread in threads]
    return [
        (goal.tokens_used, goal.cost_used, goal.calls_used, goal.time_used_ms)
        for goal in goals
        if goal is not None
    ]


class Trees:
    """Goals under goals: who pays for whom."""

    def test_a_goal_knows_those_above_it_root_first(self, subject: Subject) -> None:
        root, middle, leaf = grow(subject)
        assert (root.parent_goal_id, root.ancestor_goal_ids) == (None, None)
        assert (middle.parent_goal_id, middle.ancestor_goal_ids) == (root.goal_id, root.goal_id)
        assert leaf.parent_goal_id == middle.goal_id
        assert leaf.ancestor_goal_ids == f"{root.goal_id} {middle.goal_id}"
        assert leaf == subject.get("leaf")

    def test_a_charge_goes_up_the_tree_but_for_its_time(self, subject: Subject) -> None:
        grow(subject)
        subject.charge("root", tokens=1, cost=1, seconds=1, response_id="r")
        subject.charge("middle", tokens=10, cost=10, seconds=10, response_id="r")
        result = subject.charge("leaf", tokens=100, cost=100, seconds=100, response_id="r")
        assert (result.applied, result.goal) == (True, subject.get("leaf"))
        assert used(subject, "root", "middle", "leaf") == [
            (111, 111, 3, 1_000),
            (110, 110, 2, 10_000),
            (100, 100, 1, 100_000),
        ]

    def test_an_ancestors_event_says_where_it_comes_from_and_carries_no_key_and_no_turn(
        self, subject: Subject
    ) -> None:
        root, middle, leaf = grow(subject)
        begun = subject.events()[-1].position
        subject.charge(
            "leaf",
            tokens=5,
            cost="0.5",
            seconds=3,
            model="model-1",
            tags={"user": "ada"},
            turn_id="turn-1",
            response_id="r1",
        )
        events = subject.events(after=begun)
        assert [
            (e.goal_id, e.origin_goal_id, e.via_goal_id, e.turn_id, e.idempotency_key)
            for e in events
        ] == [
            (leaf.goal_id, None, None, "turn-1", "r1"),
            (middle.goal_id, leaf.goal_id, leaf.goal_id, None, None),
            (root.goal_id, leaf.goal_id, middle.goal_id, None, None),
        ]
        assert {(e.kind, e.model, e.tags["user"], e.tokens_delta) for e in events} == {
            (ACCOUNTED, "model-1", "ada", 5)
        }
        assert {(e.cost_delta, e.calls_delta, e.unpriced_tokens_delta) for e in events} == {
            (Decimal("0.5"), 1, 0)
        }
        assert [event.time_delta_ms for event in events] == [3_000, 0, 0]

    def test_time_alone_stays_with_its_goal(self, subject: Subject) -> None:
        grow(subject, time_budget=1)
        begun = subject.events()[-1].position
        subject.charge("leaf", seconds=5)
        assert [event.thread_id for event in subject.events(after=begun)] == ["leaf"]

    def test_tokens_without_a_cost_are_unpriced_in_every_goal(self, subject: Subject) -> None:
        grow(subject)
        subject.charge("leaf", tokens=5)
        subject.charge("middle", TokenUsage(7))
        assert [goal.unpriced_tokens for goal in subject.goals()] == [12, 12, 5]

    def test_totals_of_a_child_go_up_as_well(self, subject: Subject) -> None:
        grow(subject)
        subject.record_total("leaf", TokenUsage(1_000))
        subject.record_total("leaf", TokenUsage(1_050), calls=2, cost="0.25", seconds=1)
        subject.reconcile("leaf", TokenUsage(1_060))
        assert used(subject, "root", "middle", "leaf") == [
            (60, Decimal("0.25"), 2, 0),
            (60, Decimal("0.25"), 2, 0),
            (60, Decimal("0.25"), 2, 1_000),
        ]

    # -- budgets above ---------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "budgets", [{"token_budget": 5}, {"cost_budget": "0.5"}, {"call_budget": 1}]
    )
    def test_an_ancestor_whose_budget_fills_is_limited_and_the_child_is_not(
        self, subject: Subject, budgets: dict[str, Any]
    ) -> None:
        root, _, _ = grow(subject, **budgets, warn_at=(0.5,))
        result = subject.charge("leaf", TokenUsage(5), cost="0.5")
        assert result.goal is not None
        assert result.goal.status is ACTIVE
        assert [goal.status for goal in subject.goals()] == [BUDGET_LIMITED, ACTIVE, ACTIVE]
        events = subject.events(goal_id=root.goal_id)
        assert kinds(events) == [CREATED, ACCOUNTED, STATUS_CHANGED, THRESHOLD_CROSSED]
        assert {event.turn_id for event in events} == {None}

    @pytest.mark.parametrize("status", GoalStatus)
    def test_an_ancestor_pays_in_any_status_and_only_an_active_one_is_limited(
        self, subject: Subject, status: GoalStatus
    ) -> None:
        grow(subject, token_budget=10)
        subject.set("root", status=status)
        assert subject.charge("leaf", tokens=12, mode="active_or_stopped").applied
        root = subject.get("root")
        assert root is not None
        assert root.tokens_used == 12
        assert root.status is (BUDGET_LIMITED if status is ACTIVE else status)

    def test_a_charge_notices_the_deadline_of_an_ancestor(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        grow(subject, deadline=datetime(2100, 1, 1, tzinfo=UTC))
        set_clock(monkeypatch, 4_102_444_800_000)
        subject.charge("leaf", tokens=1)
        assert [goal.status for goal in subject.goals()] == [BUDGET_LIMITED, ACTIVE, ACTIVE]

    @pytest.mark.parametrize("status", [PAUSED, COMPLETE])
    def test_a_charge_that_its_goal_does_not_take_reaches_no_ancestor(
        self, subject: Subject, status: GoalStatus
    ) -> None:
        grow(subject)
        subject.set("leaf", status=status)
        tables = subject.tables()
        assert not subject.charge("leaf", tokens=5).applied
        assert not subject.charge_many([Charge("leaf", tokens=5)])[0].applied
        assert subject.tables() == tables

    def test_a_charge_that_an_ancestor_cannot_hold_changes_nothing(self, subject: Subject) -> None:
        grow(subject)
        subject.charge("root", tokens=2**63 - 5)
        tables = subject.tables()
        for charge in (
            lambda: subject.charge("leaf", tokens=5),
            lambda: subject.charge_many([Charge("leaf", tokens=4), Charge("middle", tokens=1)]),
        ):
            with pytest.raises(UsageOverflowError):
                charge()
        assert subject.tables() == tables

    # -- what happens to goals in the middle -------------------------------------------------------

    @pytest.mark.parametrize("how", ["cleared", "replaced"])
    def test_those_above_a_goal_that_is_gone_still_pay(self, subject: Subject, how: str) -> None:
        root, middle, leaf = grow(subject)
        if how == "cleared":
            subject.clear("middle")
        else:
            subject.replace("middle", "Build another", parent="root")
        begun = subject.events()[-1].position
        subject.charge("leaf", tokens=5)
        assert [
            (e.goal_id, e.origin_goal_id, e.via_goal_id) for e in subject.events(after=begun)
        ] == [
            (leaf.goal_id, None, None),
            (root.goal_id, leaf.goal_id, middle.goal_id),
        ]
        assert subject.get("leaf") == subject.charge("leaf").goal
        new = subject.get("middle")
        assert new is None or new.tokens_used == 0
        again = subject.get("leaf")
        assert again is not None
        assert again.ancestor_goal_ids == leaf.ancestor_goal_ids, "for life"

    @pytest.mark.parametrize("change", [{"status": PAUSED}, {"status": COMPLETE}])
    def test_a_goal_in_the_middle_that_is_stopped_pays_on(
        self, subject: Subject, change: dict[str, Any]
    ) -> None:
        grow(subject)
        subject.set("middle", **change)
        subject.charge("leaf", tokens=5)
        assert [goal.tokens_used for goal in subject.goals()] == [5, 5, 5]

    def test_a_goal_whose_ancestors_are_all_gone_pays_alone(self, subject: Subject) -> None:
        grow(subject)
        subject.clear("root")
        subject.clear("middle")
        assert subject.charge("leaf", tokens=5).applied
        assert [(goal.thread_id, goal.tokens_used) for goal in subject.goals()] == [("leaf", 5)]

    def test_a_goal_made_anew_is_a_root_where_no_parent_is_named(self, subject: Subject) -> None:
        grow(subject)
        assert subject.replace("leaf", "Write another").parent_goal_id is None
        subject.charge("leaf", tokens=5)
        assert [goal.tokens_used for goal in subject.goals()] == [0, 0, 5]

    def test_a_goal_below_one_that_lost_its_parent_keeps_the_rest(self, subject: Subject) -> None:
        root, middle, _ = grow(subject)
        subject.clear("root")
        below = subject.create("below", "Test", parent="middle")
        assert below.ancestor_goal_ids == f"{root.goal_id} {middle.goal_id}"
        subject.charge("below", tokens=5)
        assert used(subject, "middle") == [(5, Decimal(0), 0, 0)]

    # -- repeats and batches -----------------------------------------------------------------------

    def test_a_repeat_of_a_child_charges_its_ancestors_once(self, subject: Subject) -> None:
        grow(subject)
        first = subject.charge("leaf", tokens=5, cost=1, response_id="r1")
        tables = subject.tables()
        again = subject.charge("leaf", tokens=5, cost=1, response_id="r1")
        assert (again.goal, again.duplicate) == (first.goal, True)
        with pytest.raises(IdempotencyConflictError):
            subject.charge("leaf", tokens=6, response_id="r1")
        assert subject.tables() == tables

    def test_a_key_of_a_child_is_free_in_its_parents_thread(self, subject: Subject) -> None:
        grow(subject)
        for thread in ("leaf", "middle", "root"):
            assert not subject.charge(thread, tokens=5, idempotency_key="k").duplicate
        assert [goal.tokens_used for goal in subject.goals()] == [15, 10, 5]

    def test_charge_many_over_a_tree_does_as_charge_one_after_the_other(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def charges(group: str) -> list[Charge]:
            root, middle, leaf = (f"{group}{name}" for name in ("root", "middle", "leaf"))
            return [
                Charge(leaf, tokens=20, cost=1, response_id="r1", tags={"user": "ada"}),
                Charge(root, tokens=3, seconds=2, turn_id="turn-1"),
                Charge(leaf, tokens=20, response_id="r1"),
                Charge(middle, TokenUsage(30), model="model-1"),
                Charge(root, tokens=60, idempotency_key="k"),
                Charge(leaf, tokens=1, mode="active_or_stopped"),
                Charge(f"{group}nobody", tokens=1),
                Charge(root, tokens=60, idempotency_key="k"),
            ]

        set_clock(monkeypatch, 1_000)
        for group in ("one-", "many-"):
            grow(subject, prefix=group, token_budget=100, call_budget=3, warn_at=(0.5,))
        begun = subject.events()[-1].position
        set_clock(monkeypatch, 2_000)
        one = [subject.apply(charge) for charge in charges("one-")]
        between = subject.events()[-1].position
        many = subject.charge_many(charges("many-"))

        names = {goal.goal_id: goal.thread_id for goal in subject.goals()}

        def told(record: Goal | GoalEvent) -> str:
            """All but what is another one in each group."""
            plain = record.to_dict()
            text = repr({key: plain[key] for key in plain if key not in ("event_id", "position")})
            for goal_id, thread_id in names.items():
                text = text.replace(goal_id, thread_id)
            return text.replace("many-", "").replace("one-", "")

        assert [(each.applied, each.duplicate) for each in many] == [
            (each.applied, each.duplicate) for each in one
        ]
        assert [each.goal and told(each.goal) for each in many] == [
            each.goal and told(each.goal) for each in one
        ]
        events = subject.events(after=begun)
        assert [told(event) for event in events if event.position > between] == [
            told(event) for event in events if event.position <= between
        ]
        goals = {goal.thread_id: told(goal) for goal in subject.goals()}
        for name in ("root", "middle", "leaf"):
            assert goals[f"many-{name}"] == goals[f"one-{name}"]
        assert used(subject, "many-root") == [(114, Decimal(1), 2, 2_000)]

    # -- what cannot be a parent -------------------------------------------------------------------

    @pytest.mark.parametrize("call", ["create", "replace", "ensure"])
    def test_a_parent_that_cannot_be_one_is_refused_and_changes_nothing(
        self, subject: Subject, call: str
    ) -> None:
        grow(subject)
        subject.set("root", status=COMPLETE)
        tables = subject.tables()
        refused: list[tuple[str, Any, type[RequestError], str]] = [
            ("new", "nobody", GoalNotFoundError, "the parent 'nobody' has no goal here"),
            ("new", "new", InvalidValueError, "parent: must be another thread"),
            ("new", "", InvalidValueError, "parent: must have 1 to 256 characters"),
            ("new", 5, InvalidValueError, "parent: must be text"),
        ]
        if call != "ensure":
            refused.append(("root", "leaf", TreeError, "the goal of 'leaf' works for the one"))
        for thread_id, parent, error, problem in refused:
            with pytest.raises(error, match=problem):
                getattr(subject, call)(thread_id, "Ship", parent=parent)
        assert subject.tables() == tables

    def test_a_complete_goals_parent_can_be_made_under_what_is_not_below_it(
        self, subject: Subject
    ) -> None:
        grow(subject)
        subject.create("other", "Ship")
        new = subject.replace("root", "Ship more", parent="other")
        other = subject.get("other")
        assert other is not None
        assert new.ancestor_goal_ids == other.goal_id

    def test_a_tree_is_so_deep_and_no_deeper(self, subject: Subject) -> None:
        subject.create("1", "Ship")
        for depth in range(2, MAX_DEPTH + 1):
            subject.create(f"{depth}", "Ship", parent=f"{depth - 1}")
        tables = subject.tables()
        with pytest.raises(TreeError, match="is 16 deep, and 16 is the bound"):
            subject.create("17", "Ship", parent="16")
        assert subject.tables() == tables
        subject.charge("16", tokens=5)
        assert [goal.tokens_used for goal in subject.goals()] == [5] * 16

    def test_ensure_takes_a_parent_for_a_new_goal_alone(self, subject: Subject) -> None:
        root, _, leaf = grow(subject)
        assert subject.ensure("new", "Ship", parent="root").parent_goal_id == root.goal_id
        assert subject.ensure("leaf", "Ship", parent="root") == leaf
