"""What a goal and those above it leave to be used, and what a refusal says: without a database."""

from __future__ import annotations

from typing import Any

import pytest

from goal_state import BudgetExceededError, Goal, GoalStatus, InvalidValueError
from goal_state.domain.amounts import Amounts
from goal_state.domain.budgets import BudgetKind
from goal_state.domain.holds import Headroom, admitted, headroom_of
from goal_state.domain.tags import MAX_TAG_CHARACTERS, MAX_TAGS, check_tags


def goal(thread_id: str, **fields: Any) -> Goal:
    """An active goal of which nothing is used."""
    values: dict[str, Any] = {
        "status": GoalStatus.ACTIVE,
        "token_budget": None,
        "tokens_used": 0,
        "time_used_ms": 0,
    }
    return Goal(
        thread_id=thread_id,
        goal_id=f"goal of {thread_id}",
        objective="Ship",
        created_at_ms=0,
        updated_at_ms=0,
        **values | fields,
    )


def left(headroom: Headroom) -> list[tuple[str, BudgetKind, int]]:
    """Who limits what to how much."""
    return [(limit.thread_id, limit.kind, limit.left) for limit in headroom.limits]


def test_headroom_without_budgets_has_no_bound_and_nobody_stops_it() -> None:
    headroom = headroom_of([goal("leaf"), goal("root")])
    assert (headroom.limits, headroom.stopped_by) == ((), None)
    assert (headroom.tokens, headroom.cost, headroom.calls, headroom.seconds) == (None,) * 4


def test_headroom_counts_active_time_of_the_goal_alone() -> None:
    mine = goal("leaf", time_budget_ms=9_000, time_used_ms=1_500)
    above = goal("root", time_budget_ms=2_000, time_used_ms=1_500)
    headroom = headroom_of([mine, above])
    assert left(headroom) == [("leaf", BudgetKind.TIME, 7_500)]
    assert headroom.seconds == 7.5
    assert headroom_of([goal("leaf"), above]).seconds is None


def test_headroom_of_equal_limits_names_the_nearest() -> None:
    chain = [goal(name, token_budget=10) for name in ("leaf", "middle", "root")]
    assert left(headroom_of(chain)) == [("leaf", BudgetKind.TOKENS, 10)]


def test_headroom_of_each_kind_names_the_tightest_in_the_order_of_the_kinds() -> None:
    mine = goal("leaf", call_budget=9, calls_used=2, held_calls=3, token_budget=50)
    above = goal("root", token_budget=100, tokens_used=40, held_tokens=20, cost_budget_nanos=7)
    assert left(headroom_of([mine, above])) == [
        ("root", BudgetKind.TOKENS, 40),
        ("root", BudgetKind.COST, 7),
        ("leaf", BudgetKind.CALLS, 4),
    ]


def test_headroom_over_a_budget_is_never_below_zero() -> None:
    assert headroom_of([goal("t", token_budget=5, tokens_used=4, held_tokens=3)]).tokens == 0


@pytest.mark.parametrize(
    ("statuses", "stopped_by"),
    [
        (("active", "active", "active"), None),
        (("active", "paused", "active"), "middle"),
        (("active", "blocked", "complete"), "middle"),
        (("usage_limited", "active", "paused"), "leaf"),
        (("active", "active", "budget_limited"), "root"),
    ],
)
def test_headroom_names_the_nearest_goal_that_is_not_active(
    statuses: tuple[str, ...], stopped_by: str | None
) -> None:
    chain = [
        goal(name, status=GoalStatus(status))
        for name, status in zip(("leaf", "middle", "root"), statuses, strict=True)
    ]
    assert headroom_of(chain).stopped_by == stopped_by


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"status": GoalStatus.PAUSED},
            "the goal of thread 't' is paused, so nothing was reserved; make it active with resume() first",
        ),
        (
            {
                "status": GoalStatus.BUDGET_LIMITED,
                "token_budget": 5,
                "tokens_used": 5,
                "call_budget": 1,
                "calls_used": 1,
            },
            (
                "the goal of thread 't' is budget_limited, so nothing was reserved;"
                " its budget of tokens, calls is used up: raise it with resume()"
            ),
        ),
        (
            {"status": GoalStatus.BUDGET_LIMITED, "token_budget": 9, "tokens_used": 5},
            (
                "the goal of thread 't' is budget_limited, so nothing was reserved;"
                " its budgets were raised: resume it"
            ),
        ),
    ],
)
def test_a_goal_that_is_not_active_is_refused_with_what_to_do(
    fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(BudgetExceededError) as caught:
        admitted([goal("t", **fields)], Amounts(1), None)
    assert str(caught.value) == told
    assert (caught.value.thread_id, caught.value.goal_id) == ("t", "goal of t")
    assert not caught.value.waiting_helps


@pytest.mark.parametrize(
    ("fields", "asked", "told"),
    [
        (
            {"token_budget": 100, "tokens_used": 60, "held_tokens": 30},
            Amounts(20),
            (
                "of the token_budget of thread 't', 100, 60 are used and 30 held: 10 left, 20 needed, so"
                " nothing was reserved; the rest is held by calls under way: wait for them, or ask for less"
            ),
        ),
        (
            {"cost_budget_nanos": 2 * 10**9, "cost_used_nanos": 15 * 10**8},
            Amounts(0, 0, 10**9),
            (
                "of the cost_budget of thread 't', 2, 1.5 are used and 0 held: 0.5 left, 1 needed, so nothing"
                " was reserved; ask for less, or raise it with resume()"
            ),
        ),
        (
            {"call_budget": 3, "calls_used": 2, "held_calls": 1},
            Amounts(0, 0, 0, 2),
            (
                "of the call_budget of thread 't', 3, 2 are used and 1 held: 0 left, 2 needed, so nothing"
                " was reserved; ask for less, or raise it with resume()"
            ),
        ),
    ],
)
def test_a_budget_without_so_much_left_is_refused_with_its_figures(
    fields: dict[str, Any], asked: Amounts, told: str
) -> None:
    with pytest.raises(BudgetExceededError) as caught:
        admitted([goal("t", **fields)], asked, None)
    assert str(caught.value) == told


def test_a_budget_without_the_least_that_will_do_is_refused_with_both_figures() -> None:
    with pytest.raises(BudgetExceededError, match="40 left, 50 to 90 needed, so nothing"):
        admitted([goal("t", token_budget=100, tokens_used=60)], Amounts(90), 50)


def test_tags_within_their_bounds_are_stored_in_the_order_of_their_keys() -> None:
    longest = "x" * MAX_TAG_CHARACTERS
    assert check_tags({"user": longest, longest: "b"}) == f'{{"user":"{longest}","{longest}":"b"}}'
    assert check_tags({str(number): "v" for number in range(MAX_TAGS)}) is not None
    assert check_tags({}) is None


@pytest.mark.parametrize(
    "tags",
    [
        {"user": "x" * (MAX_TAG_CHARACTERS + 1)},
        {"x" * (MAX_TAG_CHARACTERS + 1): "ada"},
        {str(number): "v" for number in range(MAX_TAGS + 1)},
    ],
)
def test_tags_out_of_their_bounds_are_refused(tags: dict[str, str]) -> None:
    with pytest.raises(InvalidValueError, match="at the most"):
        check_tags(tags)
