"""Strategies for calls whose values lean on the state at hand: the budget's edge, a stale id, a used key.

A draft is drawn before it is known what the store holds, and becomes an `Operation` when it is carried out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from goal_state import TokenUsage
from tests.properties.model import KEPT, LARGEST, MODES, STATUSES, Baseline, Counts, Model
from tests.properties.operations import Operation

__all__ = ["THREADS", "Draft", "Malformed", "drafts", "malformed"]


class Long(str):
    """A text whose end is of no interest to who reads a failure."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{str(self)[:6]!r}…, {len(self)} characters>"


THREADS = ("thread-1", "thread-2", Long("ж" * 256))

NO_SUCH_GOAL = "00000000-0000-7000-8000-000000000000"


@dataclass(frozen=True)
class Draft:
    """A call to be. The values that are `Lean` are found out when the state is known."""

    name: str
    thread_id: str
    values: dict[str, Any]
    by_other: bool
    """Which of two stores makes the call, where there are two."""

    def resolve(self, model: Model) -> Operation:
        if "charges" in self.values:
            charges = [charge.resolve(model).arguments for charge in self.values["charges"]]
            return Operation(self.name, {"charges": charges})
        thread_id = self.thread_id
        if thread_id == AT_WORK:
            thread_id = next(reversed(model.goals), THREADS[0])
        arguments: dict[str, Any] = {"thread_id": thread_id}
        for name, value in self.values.items():
            several = zip(name.split(", "), value, strict=True) if ", " in name else [(name, value)]
            arguments |= {
                one: its.of(model, thread_id) if isinstance(its, Lean) else its
                for one, its in several
            }
        if arguments.pop("as_before", False):
            key = arguments["response_id"] or arguments["idempotency_key"]
            first = model.keys.get((thread_id, key))
            if first is not None:
                # Its seconds are measured anew, and are mostly others.
                tokens = first.amounts.tokens
                if arguments["usage"] is None and tokens:
                    arguments["tokens"] = tokens
                else:
                    arguments["usage"], arguments["tokens"] = Counts(9, 9, 0, tokens, 0, tokens), 0
        return Operation(self.name, arguments)


@dataclass(frozen=True)
class Lean:
    """A value that is reckoned from the state, named for what is printed."""

    name: str
    number: Any
    reckon: Callable[[Model, str, Any], Any]

    def of(self, model: Model, thread_id: str) -> Any:
        return self.reckon(model, thread_id, self.number)

    def __repr__(self) -> str:
        return f"<{self.name} {self.number}>"


# -- values ------------------------------------------------------------------------------------------


def _near_budget(model: Model, thread_id: str, distance: int) -> int:
    """So many tokens that the budget is met but for the distance."""
    goal = model.goals.get(thread_id)
    if goal is None or goal.token_budget is None:
        return 7
    return min(max(goal.token_budget - goal.tokens_used + distance, 0), LARGEST)


def _near_largest(model: Model, thread_id: str, distance: int) -> int:
    """So many tokens that the counter is full but for the distance."""
    goal = model.goals.get(thread_id)
    return min(max(LARGEST - (goal.tokens_used if goal else 0) + distance, 0), LARGEST)


def _near_used(model: Model, thread_id: str, distance: int) -> int:
    """A budget at this distance from what was used."""
    goal = model.goals.get(thread_id)
    return min(max((goal.tokens_used if goal else 0) + distance, 1), LARGEST)


def _near_cost(model: Model, thread_id: str, distance: int) -> Decimal:
    """Such a cost that the budget is met but for so many nanos."""
    goal = model.goals.get(thread_id)
    if goal is None or goal.cost_budget_nanos is None:
        return Decimal("0.25")
    left = goal.cost_budget_nanos - goal.cost_used_nanos + distance
    return Decimal(min(max(left, 0), LARGEST)).scaleb(-9)


def _near_calls(model: Model, thread_id: str, distance: int) -> int:
    """A budget at this distance from the calls that were made."""
    goal = model.goals.get(thread_id)
    return min(max((goal.calls_used if goal else 0) + distance, 1), LARGEST)


def _goal_id(model: Model, thread_id: str, which: str) -> str:
    goal = model.goals.get(thread_id)
    if which == "right":
        return goal.goal_id if goal else NO_SUCH_GOAL
    for goal_id, of_thread in reversed(model.minted.items()):
        if (of_thread == thread_id) == (which == "stale") and (
            goal is None or goal_id != goal.goal_id
        ):
            return goal_id
    return NO_SUCH_GOAL


def _total(model: Model, thread_id: str, way: tuple[str, Counts]) -> Counts:
    """A cumulative total, by its way from the one before."""
    before = model.baselines.get(thread_id)
    old = before.total if before else Counts()
    kind, step = way
    if kind == "repeated":
        return old
    if kind == "grown":
        new = [min(a + b, LARGEST) for a, b in zip(old, step, strict=True)]
    elif kind == "fallen":
        new = [max(a - b, 0) for a, b in zip(old, step, strict=True)]
    elif kind == "inherited":
        other = model.baselines.get(THREADS[(THREADS.index(thread_id) + 1) % len(THREADS)])
        new = list(other.total if other else step)
    else:
        new = list(step)
    return Counts(*new)


def _thread_usage(
    model: Model, thread_id: str, way: tuple[str, Counts, int | None, str | None]
) -> Baseline:
    kind, step, window, turn_id = way
    return Baseline(_total(model, thread_id, (kind, step)), step, window, turn_id)


THREAD_IDS = st.sampled_from(THREADS)
AT_WORK = "the thread of the newest goal"
TURN_IDS = st.sampled_from([None, "turn-1", "turn-2"])
OBJECTIVES = st.sampled_from(
    ["Ship it", " \tstripped\n", Long("x" * 4000), Long("ß→🙂" * 1000 + " ")]
)
STATUS = st.sampled_from(STATUSES)
ACTIVE_OR_ANY = st.one_of(st.just("active"), st.just("active"), STATUS)
MODE = st.just("active_only") | st.sampled_from(sorted(MODES))
AMOUNT = st.one_of(
    st.integers(0, 20),
    st.integers(-1, 1).map(lambda distance: Lean("to the budget", distance, _near_budget)),
    st.integers(-1, 1).map(lambda distance: Lean("to the largest", distance, _near_largest)),
    st.sampled_from([2**31, 2**62, LARGEST]),
)
# No value lies half-way between two milliseconds.
SECONDS = st.sampled_from(
    [0, 0, 0, 1, 2.5, 0.001, 1.999, 0.0004, 0.0006, 3600, 4_611_686_018_427_387, LARGEST // 1000]
)
BUDGET = st.one_of(
    st.none(),
    st.integers(1, 50),
    st.integers(-1, 2).map(lambda distance: Lean("used", distance, _near_used)),
    st.just(LARGEST),
)
COST = st.one_of(
    st.none(),
    st.sampled_from([0, 1, "0.5", Decimal("1e-9"), "9223372036.854775807"]),
    st.integers(-1, 1).map(lambda distance: Lean("to the cost budget", distance, _near_cost)),
)
COST_BUDGET = st.none() | st.sampled_from([1, "0.5", Decimal("1e-9"), "2.000000001"])
CALL_BUDGET = st.one_of(
    st.none(),
    st.integers(1, 3),
    st.integers(0, 2).map(lambda distance: Lean("made", distance, _near_calls)),
)
EXPECTED = st.one_of(
    st.none(),
    st.none(),
    st.none(),
    st.sampled_from(["right", "stale", "other"]).map(lambda which: Lean("id", which, _goal_id)),
)
RESUME_AT = st.sampled_from(
    [
        datetime(2031, 5, 6, 7, 8, 9, 123_000, UTC),
        datetime(1969, 7, 20, 20, 17, tzinfo=timezone(timedelta(hours=-5, minutes=-30))),
    ]
)
REASON = st.sampled_from(["waits for review", "  stripped ", Long("→" * 4000)])
KEY = st.sampled_from([None, "key-1", "key-2", Long("ß" * 256)])
_KIND = st.sampled_from(["grown", "grown", "grown", "repeated", "fallen", "said", "inherited"])
_SMALL = st.integers(0, 9)
# Cached input is mostly a part of the input, but the new part of the one may exceed that of the other.
STEP = st.one_of(
    st.builds(
        lambda i, c, w, o, r: Counts(i, c, w, o, r, i + o), _SMALL, _SMALL, _SMALL, _SMALL, _SMALL
    ),
    st.sampled_from([Counts(), Counts(2**62, 0, 0, 1, 0, 2**62 + 1), Counts(*([LARGEST] * 6))]),
)
TOTAL = st.one_of(
    st.tuples(_KIND, STEP).map(lambda way: Lean("total", way, _total)),
    st.tuples(_KIND, STEP, st.sampled_from([None, 0, 272_000]), TURN_IDS).map(
        lambda way: Lean("usage", way, _thread_usage)
    ),
)


# -- calls -------------------------------------------------------------------------------------------

_NEW = {
    "objective": OBJECTIVES,
    "token_budget": BUDGET,
    "cost_budget": COST_BUDGET,
    "call_budget": CALL_BUDGET,
    "parent": st.none() | THREAD_IDS,
    "status": st.just("active") | STATUS,
    "turn_id": TURN_IDS,
}
_BUDGETS = {
    "token_budget": st.just(KEPT) | BUDGET,
    "cost_budget": st.just(KEPT) | COST_BUDGET,
    "call_budget": st.just(KEPT) | CALL_BUDGET,
}
_BY_NAME: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "create": _NEW,
    "ensure": _NEW,
    "replace": _NEW,
    "set": {
        "objective": st.just(KEPT) | OBJECTIVES,
        **_BUDGETS,
        "expected_goal_id": EXPECTED,
        "turn_id": TURN_IDS,
        "status, resume_at, blocked_reason": st.one_of(
            st.tuples(st.just(KEPT), st.none(), st.none()),
            st.tuples(STATUS, st.none(), st.none()),
            st.tuples(st.just("usage_limited"), st.none() | RESUME_AT, st.none()),
            st.tuples(st.just("blocked"), st.none(), st.none() | REASON),
            st.tuples(st.just(KEPT) | STATUS, st.none() | RESUME_AT, st.none() | REASON),
        ),
    },
    "resume": {
        **_BUDGETS,
        "expected_goal_id": EXPECTED,
        "turn_id": TURN_IDS,
    },
    "charge": {
        "usage, tokens": st.one_of(
            st.tuples(st.none(), AMOUNT),
            st.tuples(STEP, st.just(0)),
            st.tuples(st.none() | STEP, AMOUNT),
        ),
        "cost": COST,
        "seconds": SECONDS,
        "mode": MODE,
        "expected_goal_id": EXPECTED,
        "turn_id": TURN_IDS,
        "response_id, idempotency_key": st.one_of(
            st.tuples(st.none(), KEY), st.tuples(KEY, st.none()), st.tuples(KEY, KEY)
        ),
        "as_before": st.booleans(),
    },
    "record_total": {
        "total": TOTAL,
        "seconds": SECONDS,
        "cost": COST,
        "calls": st.integers(0, 3) | st.just(LARGEST),
        "turn_id": TURN_IDS,
        "mode": MODE,
        "expected_goal_id": EXPECTED,
    },
    "set_baseline": {"total": TOTAL, "turn_id": TURN_IDS},
    "reconcile": {"total": TOTAL, "turn_id": TURN_IDS},
    "clear": {"expected_goal_id": EXPECTED, "turn_id": TURN_IDS},
}


def drafts(*names: str) -> st.SearchStrategy[Draft]:
    """Calls of these operations; of all of them without a name."""
    return st.one_of(
        *(
            st.builds(
                Draft,
                st.just(name),
                THREAD_IDS
                if name in ("create", "ensure", "replace")
                else st.one_of(st.just(AT_WORK), st.just(AT_WORK), THREAD_IDS),
                st.fixed_dictionaries(_BY_NAME[name]),
                st.booleans(),
            )
            for name in names or _BY_NAME
        )
    )


_BY_NAME["charge_many"] = {"charges": st.lists(drafts("charge"), max_size=4)}


# -- malformed calls ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Malformed:
    """A call with one value out of its bounds, and the field that the error must name."""

    operation: Operation
    field: str
    by_other: bool


_BAD_NAME: list[Any] = ["", Long("x" * 257), "a\0b", "\ud800", 7, b"thread"]
_BAD_STATUS: list[Any] = ["", "done", "ACTIVE", None, 3]
_BAD_BUDGET: list[Any] = [0, -1, 2**63, 2**200, True, 5.0, "5", float("nan")]
_BAD_COST: list[Any] = [-1, "-0.1", 0.5, True, "much", Decimal("NaN"), 10**10, b"1"]
_BAD: dict[str, list[Any]] = {
    "thread_id": [*_BAD_NAME, None],
    "turn_id": _BAD_NAME,
    "expected_goal_id": _BAD_NAME,
    "response_id": _BAD_NAME,
    "idempotency_key": _BAD_NAME,
    "usage": [5, "usage", {}, {"input_token": 1}, {"tokens": 5}, object()],
    "objective": [
        "",
        " \n\t ",
        Long("x" * 4001),
        Long("🙂" * 4001),
        "a\0b",
        "\udfff",
        None,
        7,
        b"text",
    ],
    "status": _BAD_STATUS,
    "mode": [*_BAD_STATUS, "active"],
    "token_budget": _BAD_BUDGET,
    "call_budget": _BAD_BUDGET,
    "cost_budget": [0, *_BAD_COST],
    "cost": _BAD_COST,
    "calls": [-1, 2**63, True, 1.0, "1", None],
    "parent": _BAD_NAME,
    "tokens": [-1, 2**63, 2**200, True, 1.0, "1", None, float("nan")],
    "seconds": [
        -1,
        -0.001,
        float("nan"),
        float("inf"),
        -float("inf"),
        1e300,
        2**63 // 1000 + 1,
        2**200,
        True,
        "1",
        None,
    ],
    # The good status is neither of those that these two go with.
    "resume_at": [datetime(2031, 5, 6, tzinfo=UTC), datetime(2031, 5, 6), 5, "2031-05-06"],  # noqa: DTZ001
    "blocked_reason": ["no reason to wait", "", " ", Long("x" * 4001), "a\0b", "\ud800", 7],
    "total": [None, 5, {"input_tokens": 1}, (1, 2)],
}
_GOOD_NEW: dict[str, Any] = {
    "objective": "Refused",
    "status": "paused",
    "token_budget": 5,
    "cost_budget": "0.5",
    "call_budget": 5,
    "turn_id": None,
    "parent": None,
}
_GOOD: dict[str, dict[str, Any]] = {
    "create": _GOOD_NEW,
    "ensure": _GOOD_NEW,
    "replace": _GOOD_NEW,
    "set": {
        "objective": "Refused",
        "status": "paused",
        "token_budget": 5,
        "resume_at": None,
        "blocked_reason": None,
        "expected_goal_id": None,
        "turn_id": None,
    },
    "resume": {"token_budget": None, "expected_goal_id": None, "turn_id": None},
    "charge": {
        "usage": None,
        "tokens": 3,
        "cost": "0.5",
        "seconds": 3,
        "mode": "active_or_stopped",
        "expected_goal_id": None,
        "turn_id": None,
        "response_id": "refused",
        "idempotency_key": "refused",
    },
    "record_total": {
        "total": TokenUsage(1000, 0, 0, 1000),
        "seconds": 3,
        "cost": 1,
        "calls": 1,
        "turn_id": None,
        "mode": "active_or_stopped",
        "expected_goal_id": None,
    },
    "set_baseline": {"total": TokenUsage(1000, 0, 0, 1000), "turn_id": None},
    "reconcile": {"total": TokenUsage(1000, 0, 0, 1000), "turn_id": None},
    "clear": {"expected_goal_id": None, "turn_id": None},
}
_MALFORMED = [
    (name, field, bad)
    for name, good in _GOOD.items()
    for field in ("thread_id", *good)
    for bad in _BAD[field]
]


def malformed() -> st.SearchStrategy[Malformed]:
    """Calls that would change something but for one value."""

    def call(case: int, thread_id: str, by_other: bool) -> Malformed:
        name, field, bad = _MALFORMED[case]
        arguments = {"thread_id": thread_id, **_GOOD[name], field: bad}
        return Malformed(Operation(name, arguments, verbatim=True), field, by_other)

    return st.builds(call, st.integers(0, len(_MALFORMED) - 1), THREAD_IDS, st.booleans())
