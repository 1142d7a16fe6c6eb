"""The pure part: token counts and where they come from, statuses and how they change, names and times."""

from __future__ import annotations

import pickle
import threading
import uuid
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import goal_state
from goal_state import (
    KEEP,
    AccountingMode,
    Charge,
    EventKind,
    Goal,
    GoalStateError,
    GoalStatus,
    InvalidValueError,
    ThreadUsage,
    TokenUsage,
    errors,
)
from goal_state.domain.budgets import BudgetKind
from goal_state.domain.charging import charge_goal
from goal_state.domain.counting import CountedTokens
from goal_state.domain.events import Estimate, check_kind
from goal_state.domain.goals import (
    charged_status,
    check_goal,
    check_mode,
    check_status,
    requested_status,
    status_by_budget,
    takes_charge,
    utc_from_ms,
)
from goal_state.domain.totals import next_baseline
from goal_state.domain.values import (
    check_amount,
    check_milliseconds,
    check_name,
    check_path,
    check_time_ms,
)
from goal_state.storage.identifiers import new_id

ACTIVE, PAUSED, BLOCKED, USAGE_LIMITED, BUDGET_LIMITED, COMPLETE = GoalStatus
LARGEST = 2**63 - 1

COUNTS = [field.name for field in fields(TokenUsage)]
counts = st.integers(0, LARGEST // 4)
usages = st.builds(TokenUsage, *[counts] * 6)


# -- TokenUsage --------------------------------------------------------------------------------------


def test_a_usage_is_zero_until_told_otherwise() -> None:
    usage = TokenUsage()
    assert [getattr(usage, name) for name in COUNTS] == [0] * 6
    assert usage.goal_tokens == 0


def test_the_total_is_input_and_output_where_it_is_left_out() -> None:
    assert TokenUsage(10, 4, 2, 5, 3).total_tokens == 15
    assert TokenUsage(10, 4, 2, 5, 3, 99).total_tokens == 99
    assert TokenUsage(10, total_tokens=0).total_tokens == 0


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [-1, 2**63, 1.0, True, "1", None])
def test_a_count_out_of_its_bounds_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        TokenUsage(**{name: value})
    assert caught.value.field == name


def test_a_total_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="total_tokens: must be below"):
        TokenUsage(LARGEST, output_tokens=1)


def test_a_usage_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        TokenUsage().input_tokens = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (TokenUsage(1000, 800, 0, 30, 20), 230),
        (TokenUsage(1000, 1000), 0),
        (TokenUsage(10, 20, 0, 5), 5),
        (TokenUsage(0, 0, 500, 7, 7), 7),
    ],
)
def test_cached_input_is_free(usage: TokenUsage, tokens: int) -> None:
    assert usage.goal_tokens == tokens


@pytest.mark.slow
@given(usages, usages)
def test_a_sum_and_a_difference_field_by_field(one: TokenUsage, two: TokenUsage) -> None:
    for name in COUNTS:
        first, second = getattr(one, name), getattr(two, name)
        assert getattr(one + two, name) == first + second
        assert getattr(one - two, name) == max(first - second, 0)


@given(usages, usages)
def test_what_was_added_can_be_taken_away(one: TokenUsage, two: TokenUsage) -> None:
    assert one + two == two + one
    assert (one + two) - two == one
    assert one + TokenUsage() == one - TokenUsage() == one
    assert one - one == TokenUsage()


@given(usages, usages)
def test_goal_tokens_never_fall_while_a_thread_goes_on(one: TokenUsage, two: TokenUsage) -> None:
    assert one.goal_tokens >= 0
    assert (one + two - one).goal_tokens == two.goal_tokens


# -- TokenUsage: as Codex writes it ------------------------------------------------------------------


@given(usages)
def test_to_mapping_is_read_back_unchanged(usage: TokenUsage) -> None:
    for build in (TokenUsage.from_codex, TokenUsage.of):
        assert build(usage.to_mapping()) == usage
        assert build({name: getattr(usage, name) for name in COUNTS}) == usage


def test_to_mapping_has_the_names_that_clients_know() -> None:
    assert TokenUsage(6, 5, 4, 3, 2, 1).to_mapping() == {
        "totalTokens": 1,
        "inputTokens": 6,
        "cachedInputTokens": 5,
        "cacheWriteInputTokens": 4,
        "outputTokens": 3,
        "reasoningOutputTokens": 2,
    }


def test_from_codex_takes_what_it_knows() -> None:
    usage = {"inputTokens": 5, "output_tokens": 2, "somethingNew": "x"}
    assert TokenUsage.from_codex(usage) == TokenUsage(5, 0, 0, 2)


@pytest.mark.parametrize("usage", [{}, {"tokens": 5}, None, [("input_tokens", 5)], 5])
def test_a_mapping_that_is_no_usage_is_refused(usage: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"^usage: must"):
        TokenUsage.from_codex(usage)


@pytest.mark.parametrize("value", [None, -1, 1.5, "5", True, 2**63])
def test_from_codex_refuses_a_malformed_count_by_name(value: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        TokenUsage.from_codex({"cachedInputTokens": value})
    assert caught.value.field == "cached_input_tokens"


@pytest.mark.parametrize("constructor", [TokenUsage.from_codex, ThreadUsage.from_mapping])
def test_what_is_no_mapping_is_told_what_it_is(constructor: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"must be a mapping, not int$"):
        constructor(5)


def test_a_mapping_without_a_count_is_told_the_names_there_are() -> None:
    with pytest.raises(InvalidValueError, match=f"must have at least one of {', '.join(COUNTS)}$"):
        TokenUsage.from_codex({"tokens": 5})


# -- ThreadUsage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mapping",
    [
        {"total": {"inputTokens": 5}, "last": {"inputTokens": 2}, "modelContextWindow": 9},
        {
            "total_token_usage": {"input_tokens": 5},
            "last_token_usage": {"input_tokens": 2},
            "model_context_window": 9,
        },
        {
            "totalTokenUsage": {"inputTokens": 5},
            "lastTokenUsage": {"inputTokens": 2},
            "model_context_window": 9,
        },
    ],
)
def test_a_thread_usage_from_the_mappings_that_there_are(mapping: dict[str, Any]) -> None:
    assert ThreadUsage.from_mapping(mapping) == ThreadUsage(TokenUsage(5), TokenUsage(2), 9)


@given(usages, usages, st.none() | counts)
def test_a_thread_usage_to_a_mapping_and_back_is_of_no_turn(
    total: TokenUsage, last: TokenUsage, window: Any
) -> None:
    usage = ThreadUsage(total, last, window, "turn-1")
    assert ThreadUsage.from_mapping(usage.to_mapping()) == ThreadUsage(total, last, window)


def test_a_thread_usage_with_its_total_alone() -> None:
    usage = ThreadUsage.from_mapping({"total": {"inputTokens": 5}})
    assert (
        usage == ThreadUsage(TokenUsage(5)) == ThreadUsage(TokenUsage(5), TokenUsage(), None, None)
    )


@pytest.mark.parametrize("mapping", [{}, None, 5, {"last": {"inputTokens": 5}}, {"total": None}])
def test_a_mapping_that_is_no_thread_usage_is_refused(mapping: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"^usage: must"):
        ThreadUsage.from_mapping(mapping)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((5, TokenUsage()), "total"),
        ((TokenUsage(), None), "last"),
        ((TokenUsage(), TokenUsage(), -1), "model_context_window"),
        ((TokenUsage(), TokenUsage(), 1.0), "model_context_window"),
        ((TokenUsage(), TokenUsage(), None, ""), "turn_id"),
        ((TokenUsage(), TokenUsage(), None, 5), "turn_id"),
    ],
)
def test_a_malformed_thread_usage_is_refused(arguments: Any, field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        ThreadUsage(*arguments)
    assert caught.value.field == field


def test_a_thread_usage_of_another_turn_differs_in_its_turn_alone() -> None:
    usage = ThreadUsage(TokenUsage(5), TokenUsage(2), 9, "turn-1")
    assert usage.of_turn("turn-2") == ThreadUsage(TokenUsage(5), TokenUsage(2), 9, "turn-2")
    assert usage.of_turn(None) == ThreadUsage(TokenUsage(5), TokenUsage(2), 9)
    with pytest.raises(InvalidValueError, match=r"^turn_id: "):
        usage.of_turn("")


def test_the_first_total_of_a_thread_is_its_baseline_and_costs_nothing() -> None:
    total = TokenUsage(100, output_tokens=50)
    for either in (total, ThreadUsage(total), ThreadUsage(total, turn_id="turn-0")):
        after, tokens = next_baseline(None, either, "turn-1", CountedTokens.of("uncached"))
        assert (after, tokens) == (ThreadUsage(total, turn_id="turn-1"), 0)


# -- statuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [0, 99, 100, 101])
@pytest.mark.parametrize("budget", [None, 100])
@pytest.mark.parametrize("requested", [KEEP, *GoalStatus])
@pytest.mark.parametrize("current", GoalStatus)
def test_the_status_that_a_request_leads_to(
    current: GoalStatus, requested: Any, budget: int | None, used: int
) -> None:
    spent = budget is not None and used >= budget
    asked = current if requested is KEEP else requested
    if asked is ACTIVE:
        expected = BUDGET_LIMITED if spent else ACTIVE
    elif current is BUDGET_LIMITED and asked in (PAUSED, BLOCKED):
        expected = BUDGET_LIMITED
    else:
        expected = asked
    assert requested_status(current, requested, exhausted=spent) is expected


@pytest.mark.parametrize("mode", AccountingMode)
@pytest.mark.parametrize("current", GoalStatus)
def test_without_a_budget_a_charge_changes_no_status(
    current: GoalStatus, mode: AccountingMode
) -> None:
    goal = _goal(status=current, tokens_used=LARGEST - 1)
    charge = Charge("t", tokens=1, mode=mode)
    charged = charge_goal(charge, goal, charge.amounts, None, 5).goal
    assert charged is not None
    assert charged.status is current


@pytest.mark.parametrize("mode", AccountingMode)
@pytest.mark.parametrize("current", GoalStatus)
def test_no_charge_leaves_a_spent_goal_active(current: GoalStatus, mode: AccountingMode) -> None:
    flips = current is ACTIVE or mode is AccountingMode.ACTIVE_OR_STOPPED
    after = charged_status(current, mode)
    assert after is (BUDGET_LIMITED if flips else current)
    assert after is not ACTIVE


@pytest.mark.parametrize(
    ("mode", "takers"),
    [
        ("active_status_only", {ACTIVE}),
        ("active_only", {ACTIVE, BUDGET_LIMITED}),
        ("active_or_complete", {ACTIVE, BUDGET_LIMITED, COMPLETE}),
        ("active_or_stopped", {ACTIVE, PAUSED, BLOCKED, USAGE_LIMITED, BUDGET_LIMITED}),
    ],
)
def test_a_mode_says_which_statuses_take_a_charge(mode: str, takers: set[GoalStatus]) -> None:
    assert {one for one in GoalStatus if takes_charge(one, AccountingMode(mode))} == takers


def test_the_texts_that_are_stored_and_sent() -> None:
    assert [str(status) for status in GoalStatus] == [
        "active",
        "paused",
        "blocked",
        "usage_limited",
        "budget_limited",
        "complete",
    ]
    assert [str(kind) for kind in EventKind] == [
        "created",
        "usage_accounted",
        "status_changed",
        "cleared",
        "budget_changed",
        "threshold_crossed",
    ]
    assert [str(kind) for kind in BudgetKind] == ["tokens", "cost", "calls", "time", "deadline"]
    assert [str(estimate) for estimate in Estimate] == ["made", "resolved"]
    assert [str(mode) for mode in AccountingMode] == [
        "active_status_only",
        "active_only",
        "active_or_complete",
        "active_or_stopped",
    ]
    assert repr(KEEP) == "KEEP"


@pytest.mark.parametrize("value", ["made", None, 5, "x" * 10_000])
def test_a_kind_that_there_is_not(value: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"^kinds: must be among created") as caught:
        check_kind(value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("kind", EventKind)
def test_a_kind_is_found_by_its_name(kind: EventKind) -> None:
    assert check_kind(kind) is check_kind(kind.value) is kind


@pytest.mark.parametrize("check", [check_kind, check_status, check_mode])
def test_a_long_name_that_there_is_not_is_shown_in_part(check: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        check("é" + "x" * 100)
    assert caught.value.problem.endswith(r", is '\xe9" + "x" * 75)


# -- Goal --------------------------------------------------------------------------------------------


def _goal(**changes: Any) -> Goal:
    values: dict[str, Any] = {
        "thread_id": "t",
        "goal_id": "g",
        "objective": "Ship",
        "status": ACTIVE,
        "token_budget": None,
        "tokens_used": 0,
        "time_used_ms": 0,
        "created_at_ms": 0,
        "updated_at_ms": 0,
    }
    return Goal(**values | changes)


@pytest.mark.parametrize(
    ("budget", "used", "remaining"),
    [(None, 5, None), (10, 0, 10), (10, 9, 1), (10, 10, 0), (10, 11, 0)],
)
def test_what_is_left_of_a_budget(budget: int | None, used: int, remaining: int | None) -> None:
    goal = _goal(token_budget=budget, tokens_used=used)
    assert goal.remaining_tokens == remaining
    assert goal.has_token_budget is (budget is not None)


@pytest.mark.parametrize(("ms", "seconds"), [(0, 0), (999, 0), (1000, 1), (1999, 1)])
def test_time_used_seconds_is_rounded_down(ms: int, seconds: int) -> None:
    assert _goal(time_used_ms=ms).time_used_seconds == seconds


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_times_are_exact_to_the_millisecond(ms: int) -> None:
    time = utc_from_ms(ms)
    assert time.tzinfo is UTC
    assert time.microsecond % 1000 == 0
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    difference = time - epoch
    assert (difference.days * 86_400 + difference.seconds) * 1000 + (
        difference.microseconds // 1000
    ) == ms


def test_a_goal_does_not_change() -> None:
    goal = _goal(created_at_ms=1_500, updated_at_ms=2_500)
    assert goal.created_at == datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC)
    assert goal.updated_at == datetime(1970, 1, 1, 0, 0, 2, 500_000, UTC)
    with pytest.raises(FrozenInstanceError):
        goal.tokens_used = 5  # type: ignore[misc]


# -- a goal from elsewhere ---------------------------------------------------------------------------

LAST_MS = 253_402_300_799_999
ROOT, PARENT = (f"019b7600-0000-7000-8000-00000000000{number}" for number in (1, 2))


def _deep(ancestors: int) -> list[str]:
    return [f"019b7600-0000-7000-8000-{number:012x}" for number in range(1, ancestors + 1)]


def _from_elsewhere(**changes: Any) -> Goal:
    return _goal(**{"goal_id": new_id()} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"thread_id": "x" * 256, "objective": "x" * 4000},
        {"token_budget": LARGEST, "tokens_used": LARGEST - 1, "time_used_ms": LARGEST},
        {"token_budget": 10, "tokens_used": 10, "status": BUDGET_LIMITED},
        {"token_budget": 10, "tokens_used": 11, "status": PAUSED},
        {"created_at_ms": 5, "updated_at_ms": 5},
        {"created_at_ms": LAST_MS, "updated_at_ms": LAST_MS},
        {"status": USAGE_LIMITED, "resume_at_ms": 0},
        {"status": BLOCKED, "blocked_reason": "Which of the two?"},
        {"cost_budget_nanos": 1, "call_budget": LARGEST, "time_budget_ms": 1, "deadline_ms": 1},
        {
            "cost_budget_nanos": LARGEST,
            "cost_used_nanos": LARGEST - 1,
            "call_budget": 2,
            "calls_used": 1,
            "warn_fractions": "0.000001 0.5 0.999999",
        },
        {"status": PAUSED, "deadline_ms": 0},
        {"tokens_used": 4, "unpriced_tokens": 4, "estimated_tokens": 4},
        {"ancestor_goal_ids": f"{ROOT} {PARENT}", "parent_goal_id": PARENT},
        {"ancestor_goal_ids": " ".join(_deep(15)), "parent_goal_id": _deep(15)[-1]},
        {"claim_number": 3, "claim_owner": "worker-1", "claim_expires_at_ms": 5},
    ],
)
def test_a_goal_within_its_bounds_is_taken_as_it_is(changes: dict[str, Any]) -> None:
    goal = _from_elsewhere(**changes)
    assert check_goal(goal) == goal


def test_a_goal_from_elsewhere_is_stored_as_one_made_here() -> None:
    goal = _from_elsewhere(status=BLOCKED, objective="Ship", blocked_reason="waits")
    values: dict[str, Any] = {
        "status": "blocked",
        "objective": " Ship\n",
        "blocked_reason": " waits ",
    }
    checked = check_goal(replace(goal, **values))
    assert checked == goal
    assert checked.status is BLOCKED


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"thread_id": ""}, "thread_id: must have 1 to 256 characters"),
        ({"goal_id": 5}, "goal_id: must be text"),
        ({"goal_id": "x" * 35}, "goal_id: must be a UUID of 36 characters"),
        ({"goal_id": "x" * 37}, "goal_id: must be a UUID of 36 characters"),
        ({"objective": " "}, "objective: must have 1 to 4000 characters"),
        ({"status": "open"}, "status: must be one of active"),
        ({"token_budget": 0}, "token_budget: must be more than 0"),
        ({"tokens_used": -1}, "tokens_used: must be 0 or more"),
        ({"time_used_ms": -1}, "time_used_ms: must be 0 or more"),
        ({"created_at_ms": -1}, "created_at_ms: must be 0 or more"),
        ({"updated_at_ms": -1}, "updated_at_ms: must be 0 or more"),
        ({"updated_at_ms": LAST_MS + 1}, "updated_at_ms: must be a time before the year 10000"),
        (
            {"created_at_ms": LAST_MS + 1, "updated_at_ms": LAST_MS + 1},
            "created_at_ms: must be a time before the year 10000",
        ),
        (
            {"created_at_ms": 5, "updated_at_ms": 4},
            "updated_at_ms: must not be before created_at_ms",
        ),
        (
            {"token_budget": 10, "tokens_used": 10},
            "status: must not be active: a budget is used up",
        ),
        (
            {"cost_budget_nanos": 5, "cost_used_nanos": 5},
            "status: must not be active: a budget is used up",
        ),
        ({"call_budget": 2, "calls_used": 3}, "status: must not be active: a budget is used up"),
        (
            {"time_budget_ms": 7, "time_used_ms": 7},
            "status: must not be active: a budget is used up",
        ),
        (
            {"deadline_ms": 5, "updated_at_ms": 5},
            "status: must not be active: a budget is used up",
        ),
        ({"cost_budget_nanos": 0}, "cost_budget_nanos: must be more than 0"),
        ({"call_budget": True}, "call_budget: must be an int"),
        ({"time_budget_ms": -1}, "time_budget_ms: must be more than 0"),
        ({"deadline_ms": LAST_MS + 1}, "deadline_ms: must be a time from the year 1 to 9999"),
        ({"warn_fractions": "0.8 0.5"}, "warn_fractions: must be rising fractions"),
        ({"warn_fractions": "1"}, "warn_fractions: must be rising fractions"),
        ({"warn_fractions": "x"}, "warn_fractions: must be rising fractions"),
        ({"warn_fractions": ""}, "warn_fractions: must be rising fractions"),
        ({"cost_used_nanos": -1}, "cost_used_nanos: must be 0 or more"),
        ({"calls_used": 2**63}, "calls_used: must be below 2^63"),
        ({"unpriced_tokens": 1}, "unpriced_tokens: must not be more than tokens_used"),
        (
            {"tokens_used": 4, "estimated_tokens": 5},
            "estimated_tokens: must not be more than tokens_used",
        ),
        ({"parent_goal_id": PARENT}, "parent_goal_id: must be the last of ancestor_goal_ids"),
        ({"ancestor_goal_ids": PARENT}, "parent_goal_id: must be the last of ancestor_goal_ids"),
        (
            {"ancestor_goal_ids": f"{PARENT} {ROOT}", "parent_goal_id": PARENT},
            "parent_goal_id: must be the last of ancestor_goal_ids",
        ),
        (
            {"ancestor_goal_ids": f"{PARENT} {PARENT}", "parent_goal_id": PARENT},
            "ancestor_goal_ids: must not hold a goal twice",
        ),
        (
            {"goal_id": PARENT, "ancestor_goal_ids": PARENT, "parent_goal_id": PARENT},
            "ancestor_goal_ids: must not hold a goal twice, nor the goal itself",
        ),
        (
            {"ancestor_goal_ids": " ".join(_deep(16)), "parent_goal_id": _deep(16)[-1]},
            "ancestor_goal_ids: must be fewer than 16",
        ),
        ({"ancestor_goal_ids": "x"}, "ancestor_goal_ids: must be a UUID of 36 characters"),
        ({"claim_owner": "worker-1"}, "claim_owner: goes with claim_expires_at_ms"),
        ({"claim_expires_at_ms": 5}, "claim_owner: goes with claim_expires_at_ms"),
        ({"claim_number": -1}, "claim_number: must be 0 or more"),
        ({"held_tokens": -1}, "held_tokens: must be 0 or more"),
        (
            {"status": USAGE_LIMITED, "resume_at_ms": LAST_MS + 1},
            "resume_at_ms: must be a time from the year 1 to 9999",
        ),
        (
            {"status": BLOCKED, "resume_at_ms": 0},
            "resume_at_ms: goes with status usage_limited only",
        ),
        (
            {"status": USAGE_LIMITED, "blocked_reason": "waits"},
            "blocked_reason: goes with status blocked only",
        ),
        (
            {"status": BLOCKED, "blocked_reason": ""},
            "blocked_reason: must have 1 to 4000 characters",
        ),
    ],
)
def test_a_goal_out_of_its_bounds_is_refused_by_field(
    changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidValueError) as caught:
        check_goal(_from_elsewhere(**changes))
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("status", GoalStatus)
@pytest.mark.parametrize(
    ("budget", "used", "expected"),
    [
        (None, LARGEST, ACTIVE),
        (10, 9, ACTIVE),
        (10, 10, BUDGET_LIMITED),
        (10, 11, BUDGET_LIMITED),
    ],
)
def test_the_status_that_usage_alone_makes(
    status: GoalStatus, budget: int | None, used: int, expected: GoalStatus
) -> None:
    goal = _goal(status=status, token_budget=budget, tokens_used=used)
    assert status_by_budget(goal) is expected


# -- bounds ------------------------------------------------------------------------------------------


def test_the_first_and_the_last_time_there_is() -> None:
    first = datetime(1, 1, 1, tzinfo=UTC)
    last = datetime(9999, 12, 31, 23, 59, 59, 999_000, UTC)
    for time, hours in ((first, 1), (last, -1)):
        assert utc_from_ms(check_time_ms("resume_at", time)) == time
        outside = time.replace(tzinfo=timezone(timedelta(hours=hours)))
        with pytest.raises(InvalidValueError) as caught:
            check_time_ms("resume_at", outside)
        assert str(caught.value) == "resume_at: must be from the year 1 to 9999 in UTC"


def test_the_least_and_the_largest_amount_of_any_class() -> None:
    class Count(int):
        """As some libraries give counts: an int of their own."""

    for amount in (0, 1, LARGEST - 1, LARGEST):
        for given_as in (int, Count):
            assert check_amount("tokens", given_as(amount)) == amount


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (5, "must be text, not int"),
        ("a\0b", "must not contain a NUL character"),
        ("a\ud800", "must not contain a lone surrogate"),
    ],
)
def test_what_is_no_text_is_told_why(value: Any, problem: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        check_name("turn_id", value)
    assert str(caught.value) == f"turn_id: {problem}"


@pytest.mark.parametrize(("value", "kind"), [("1", "str"), (False, "bool"), (None, "NoneType")])
def test_what_is_no_time_in_seconds_is_told_what_it_is(value: Any, kind: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        check_milliseconds("seconds", value)
    assert str(caught.value) == f"seconds: must be a number of seconds, not {kind}"


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (2**128 - 1, "340282366920938463463374607431768211455"),
        (2**128, "an integer of 129 bits"),
        (10**5000, "an integer of 16610 bits"),
    ],
    ids=["128 bits", "129 bits", "5000 digits"],
)
def test_a_number_that_is_too_long_to_read_is_told_by_its_size(number: int, shown: str) -> None:
    with pytest.raises(InvalidValueError, match=rf"^tokens: must be below 2\^63, is {shown}$"):
        check_amount("tokens", number)


class Place:
    """As some libraries give paths: an object of their own."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path


class Label(str):
    """Text that shows itself as another."""

    __slots__ = ()

    def __str__(self) -> str:
        return "another"


@pytest.mark.parametrize("form", [str, Path, Place, Label])
def test_a_path_is_text_or_an_object_that_has_it(form: Any) -> None:
    assert check_path("home", form("a/b")) == Path("a/b")


def test_a_path_may_hold_bytes_that_are_no_text() -> None:
    assert check_path("home", "a\udcff") == Path("a\udcff")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (None, "must be a path, not NoneType"),
        (b"a", "must be a path, not bytes"),
        (Place(b"a"), "must be a path, not bytes"),
        ("a\0b", "must not contain a NUL character"),
        ("a\ud800", "must not contain a lone surrogate"),
    ],
)
def test_what_is_no_path_is_refused_by_field(path: Any, problem: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        check_path("home", path)
    assert str(caught.value) == f"home: {problem}"


# -- identifiers -------------------------------------------------------------------------------------


def test_ids_are_uuids_of_version_7_that_rise() -> None:
    ids = [new_id() for _ in range(10_000)]
    assert ids == sorted(set(ids))
    for one in (ids[0], ids[-1]):
        parsed = uuid.UUID(one)
        assert (str(parsed), parsed.version, parsed.variant) == (one, 7, uuid.RFC_4122)


def test_ids_rise_when_the_clock_jumps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_id()
    monkeypatch.setattr("goal_state.storage.identifiers.time.time_ns", lambda: 0)
    assert new_id() > before


def test_an_id_has_the_millisecond_and_counts_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = (uuid.UUID(new_id()).int >> 80) + 1
    monkeypatch.setattr(
        "goal_state.storage.identifiers.time.time_ns", lambda: now * 1_000_000 + 999_999
    )
    ids = [uuid.UUID(new_id()).int for _ in range(4097)]
    # 48 bits of the time; the 12 bits after the version have room for 4096 ids.
    assert [one >> 80 for one in ids] == [now] * 4096 + [now + 1]


def test_ids_of_many_threads_are_all_different() -> None:
    made: list[list[str]] = [[] for _ in range(8)]
    threads = [
        threading.Thread(target=lambda mine=mine: mine.extend(new_id() for _ in range(2000)))
        for mine in made
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one for mine in made for one in mine}) == 16_000
    assert all(mine == sorted(mine) for mine in made)


# -- the tree of errors, and the names that are given out --------------------------------------------


def test_every_error_is_in_the_tree_and_on_one_branch() -> None:
    branches = (errors.RequestError, errors.DatabaseError, errors.DeliveryError)
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, GoalStateError)
        assert sum(issubclass(error, branch) for branch in branches) == (
            error is not GoalStateError
        )
        assert error.__doc__


@pytest.mark.parametrize(
    ("kind", "given", "named", "text", "attributes"),
    [
        (
            InvalidValueError,
            ("tokens", "must be 0 or more"),
            {},
            "tokens: must be 0 or more",
            {"field": "tokens", "problem": "must be 0 or more"},
        ),
        (errors.DatabaseError, ("no luck",), {}, "no luck", {"code": None}),
        (
            errors.DatabaseFullError,
            ("the disk is full",),
            {"code": 13},
            "the disk is full",
            {"code": 13},
        ),
        (errors.DeliveryError, ("busy",), {}, "busy", {"retry_after_seconds": 0.0}),
        (
            errors.DeliveryError,
            ("busy",),
            {"retry_after_seconds": 1.5},
            "busy",
            {"retry_after_seconds": 1.5},
        ),
    ],
    ids=["value", "no code", "code", "no time", "time"],
)
def test_an_error_tells_another_process_the_same(
    kind: type[GoalStateError],
    given: tuple[str, ...],
    named: dict[str, Any],
    text: str,
    attributes: dict[str, Any],
) -> None:
    error = kind(*given, **named)
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert type(one) is kind
        assert (str(one), one.args) == (text, given)
        assert {name: getattr(one, name) for name in attributes} == attributes


def test_every_public_name_is_there() -> None:
    assert len(set(goal_state.__all__)) == len(goal_state.__all__)
    assert all(hasattr(goal_state, name) for name in goal_state.__all__)


def test_every_error_is_found_where_users_look_for_it() -> None:
    assert [name for name in goal_state.errors.__all__ if not hasattr(goal_state, name)] == []
    assert set(goal_state.errors.__all__) <= set(goal_state.__all__)
