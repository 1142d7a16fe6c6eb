"""Values out of their bounds, and those that just keep them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from goal_state import (
    InvalidValueError,
    RequestError,
    TokenUsage,
)
from goal_state.testing.contract.subjects import (
    ACTIVE,
    Subject,
    with_status,
)

__all__ = ["Refusals"]

NAMES: dict[Any, str] = {
    "": "1 to 256",
    "x" * 257: "1 to 256",
    "a\0b": "NUL",
    "\ud800": "surrogate",
    5: "text",
}
AMOUNTS: dict[Any, str] = {
    -1: "0 or more",
    2**63: "below 2^63",
    10**5000: "below 2^63",
    1.0: "int",
    "1": "int",
}
BUDGETS: dict[Any, str] = {
    0: "more than 0",
    -5: "more than 0",
    2**63: "below 2^63",
    1.5: "int",
    "1": "int",
}
SECONDS: dict[Any, str] = {
    -0.0001: "0 or more",
    -1: "0 or more",
    float("nan"): "finite",
    float("inf"): "finite",
    2**63 // 1000 + 1: "below 2^63 milliseconds",
    1e300: "below 2^63 milliseconds",
    "1": "number of seconds",
}
COSTS: dict[Any, str] = {
    -1: "0 or more",
    "-0.01": "0 or more",
    Decimal("-1e-30"): "0 or more",
    0.5: "must be exact",
    float("nan"): "must be exact",
    "much": "must be a number",
    "": "must be a number",
    "NaN": "must be finite",
    Decimal("Infinity"): "must be finite",
    10**10: "below 2^63 nanos",
    "1e999999999": "below 2^63 nanos",
    (1,): "an int, a Decimal or text",
}
OBJECTIVES: dict[Any, str] = {
    "": "1 to 4000",
    " \n\t": "1 to 4000",
    "x" * 4001: "1 to 4000",
    "a\0b": "NUL",
    "\udfff": "surrogate",
    None: "text",
}
STATUSES: dict[Any, str] = {
    "Active": "one of active",
    "": "one of active",
    None: "one of active",
    1: "one of",
}

BUDGET_NAMES = "token_budget cost_budget call_budget time_budget deadline"

BOUNDS: dict[str, dict[Any, str]] = {
    "thread_id": NAMES | {None: "text"},
    "turn_id": NAMES,
    "expected_goal_id": NAMES,
    "response_id": NAMES,
    "idempotency_key": NAMES,
    "usage": {5: "int", "input_tokens": "str"},
    "objective": OBJECTIVES,
    "status": STATUSES,
    "token_budget": BUDGETS,
    "tokens": AMOUNTS | {None: "int"},
    "seconds": SECONDS | {None: "number of seconds"},
    "resume_at": {5: "datetime", datetime(2030, 1, 1): "aware"},  # noqa: DTZ001
    "blocked_reason": OBJECTIVES | {5: "text"},
    "mode": {"ACTIVE_ONLY": "one of active_status_only", None: "one of"},
    "cost_budget": COSTS | {0: "at least 0.000000001", "0.0000000001": "at least 0.000000001"},
    "call_budget": BUDGETS,
    "time_budget": SECONDS | {0: "a millisecond or more", 0.0001: "a millisecond or more"},
    "deadline": {5: "datetime", datetime(2030, 1, 1): "aware"},  # noqa: DTZ001
    "warn_at": {0.5: "several fractions", (1.5,): "above 0 and below 1", ("0.5",): "not str"},
    "parent": NAMES | {"t": "another thread"},
    "cost": COSTS,
    "calls": AMOUNTS | {None: "int"},
    "model": NAMES,
    "tags": {5: "a mapping of texts, not int", "user": "a mapping of texts, not str"},
    "total": {1: "ThreadUsage, not int", None: "ThreadUsage, not NoneType"},
}
ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "create": ({"objective": "Ship"}, f"objective {BUDGET_NAMES} warn_at parent status turn_id"),
    "ensure": ({"objective": "Ship"}, f"objective {BUDGET_NAMES} warn_at parent status turn_id"),
    "replace": ({"objective": "Ship"}, f"objective {BUDGET_NAMES} warn_at parent status turn_id"),
    "set": (
        {},
        f"objective {BUDGET_NAMES} warn_at status resume_at blocked_reason expected_goal_id turn_id",
    ),
    "resume": ({}, f"{BUDGET_NAMES} expected_goal_id turn_id"),
    "charge": (
        {},
        "usage tokens cost seconds model mode expected_goal_id turn_id response_id idempotency_key tags",
    ),
    "record_total": (
        {"total": TokenUsage()},
        "total seconds calls cost model mode expected_goal_id turn_id tags",
    ),
    "set_baseline": ({"total": TokenUsage()}, "total turn_id"),
    "reconcile": ({"total": TokenUsage()}, "total turn_id"),
    "clear": ({}, "expected_goal_id turn_id"),
}


class Refusals:
    """Values out of their bounds, and those that just keep them."""

    @pytest.mark.parametrize(
        ("operation", "field"),
        [
            (operation, field)
            for operation, (_, fields) in ARGUMENTS.items()
            for field in ["thread_id", *fields.split()]
        ],
    )
    def test_a_malformed_value_is_refused_by_name_and_changes_nothing(
        self, subject: Subject, operation: str, field: str
    ) -> None:
        with_status(subject, ACTIVE)
        subject.set_baseline("t", TokenUsage(5, 0, 0, 5))
        tables = subject.tables()
        # True equals 1 as a key, so it stands here.
        refusals = [*BOUNDS[field].items(), (True, "must be")]
        for value, problem in refusals:
            if value is None and field == "blocked_reason":
                continue  # none is what it is if it is left out
            arguments = {"thread_id": "t"} | ARGUMENTS[operation][0] | {field: value}
            with pytest.raises(InvalidValueError) as caught:
                getattr(subject, operation)(**arguments)
            assert caught.value.field == field
            assert problem in caught.value.problem
            assert str(caught.value) == f"{field}: {caught.value.problem}"
        assert subject.tables() == tables

    def test_a_refusal_is_a_value_error_and_a_request_error(self) -> None:
        assert issubclass(InvalidValueError, ValueError)
        assert issubclass(InvalidValueError, RequestError)

    @pytest.mark.parametrize(
        "text",
        [
            "x",
            "x" * 4000,
            "🦜" * 4000,
            "a\nb\tc",
            "'; DROP TABLE goal_state_goals --",
            "\ufeffx",
            "\u2028x\u2028y",
        ],
        ids=["1", "4000", "4000 beyond the BMP", "lines", "quotes", "mark", "separators"],
    )
    def test_any_text_is_kept_as_it_is(self, subject: Subject, text: str) -> None:
        assert subject.create("t", text).objective == text.strip()
        goal = subject.get("t")
        assert goal is not None
        assert goal.objective == text.strip()

    @pytest.mark.parametrize("name", ["x", "x" * 256, "🦜" * 256, " spaces ", "%_'\"", "\n"])
    def test_any_name_is_kept_as_it_is(self, subject: Subject, name: str) -> None:
        goal = subject.create(name, "Ship", turn_id=name)
        subject.charge(name, tokens=1, turn_id=name, idempotency_key=name)
        subject.record_total(name, TokenUsage(), turn_id=name)
        assert goal.thread_id == name
        assert [e.thread_id for e in subject.events(thread_id=name)] == [name, name]
        assert {e.turn_id for e in subject.events()} == {name}
        assert subject.events()[1].idempotency_key == name
        usage = subject.usage(name)
        assert usage is not None
        assert usage.turn_id == name
