"""Holds, claims and limits that end, called at random through two stores on one file, beside a plain model.

`HYPOTHESIS_PROFILE=proof` makes it long.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from goal_state import EventKind, GoalStateError, GoalStatus, GoalStore
from goal_state.domain.hold_requests import (
    DispatchHold,
    EndHold,
    ExtendHold,
    ObserveHold,
    ReleaseHold,
)
from goal_state.storage import wall_clock
from tests.properties.hold_model import BEGUN_MS, PARENTS, HoldModel, RefusedError

PATIENCE_SECONDS: Final = 120 + 2 * settings().max_examples
pytestmark = pytest.mark.timeout(PATIENCE_SECONDS)


THREADS = st.sampled_from([*PARENTS, "leaf"])
TOKENS = st.integers(1, 40)
BUDGETS = st.integers(1, 100)
CALLS = st.integers(1, 8)
SPANS = st.sampled_from([5, 20])
HOLDS = st.integers(0, 100)
"""Which hold, counted from the newest."""


class HoldMachine(RuleBasedStateMachine):
    """Two stores on one file, and what they must come to."""

    taken: Counter[str] = Counter()

    def __init__(self, empty: Path, folder: Path) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        path = shutil.copy(empty, self.folder / "goals.db")
        self.stores = [GoalStore.open(path, durability="normal") for _ in range(2)]
        self.model = HoldModel()
        self.ids: list[str] = []
        """The id of each hold of the model."""

    def step(self, name: str, arguments: tuple[Any, ...], call: Callable[[], Any]) -> None:
        """Has the model and a store do the same: both come to the same, or refuse it alike."""
        self.taken[name] += 1
        expected, refused = None, None
        try:
            expected = self.model.apply(name, *arguments)
        except RefusedError as refusal:
            refused = str(refusal)
            self.taken[refused] += 1
        result, error = None, None
        try:
            result = call()
        except GoalStateError as raised:
            error = type(raised).__name__
        assert (result, error) == (expected, refused), name

    def at(self, seconds: int) -> datetime:
        return datetime.fromtimestamp(BEGUN_MS // 1000 + seconds, UTC)

    # -- goals -------------------------------------------------------------------------------------

    @initialize(
        tokens=st.integers(60, 300),
        calls=st.integers(6, 20),
        spans=st.lists(SPANS, min_size=1, max_size=4),
    )
    def plant(self, tokens: int, calls: int, spans: list[int]) -> None:
        wall_clock.now_ms = lambda: self.model.now_ms
        for thread_id in PARENTS:
            self.create(thread_id, tokens, calls, 0)
        for number, span in enumerate(spans):
            self.reserve("leaf", 10 + number, None, None, span, number != 2, True, 1)

    @precondition(lambda self: len(self.model.goals) < len(PARENTS))
    @rule(thread_id=THREADS, tokens=BUDGETS, calls=CALLS, by=st.integers(0, 1))
    def create(self, thread_id: str, tokens: int, calls: int, by: int) -> None:
        def call() -> None:
            self.stores[by].create(
                thread_id,
                "Ship",
                parent=PARENTS[thread_id],
                token_budget=tokens,
                call_budget=calls,
            )

        self.step("create", (thread_id, tokens, calls), call)

    @rule(thread_id=THREADS, rarely=st.integers(0, 3), by=st.integers(0, 1))
    def clear(self, thread_id: str, rarely: int, by: int) -> None:
        if rarely == 0:
            self.step("clear", (thread_id,), lambda: self.stores[by].clear(thread_id) and None)

    @rule(thread_id=THREADS, tokens=st.integers(1, 40), calls=CALLS, by=st.integers(0, 1))
    def resume(self, thread_id: str, tokens: int, calls: int, by: int) -> None:
        goal = self.model.of(thread_id)
        if goal is not None:
            tokens += goal.tokens + goal.held
            calls += goal.calls + goal.held_calls

        def call() -> None:
            self.stores[by].resume(thread_id, token_budget=tokens, call_budget=calls)

        self.step("resume", (thread_id, tokens, calls), call)

    @precondition(lambda self: not any(goal.resume_at for goal in self.model.goals.values()))
    @rule(thread_id=THREADS, seconds=SPANS, by=st.integers(0, 1))
    def limit(self, thread_id: str, seconds: int, by: int) -> None:
        until = self.model.now + seconds

        def call() -> None:
            self.stores[by].set(
                thread_id, status=GoalStatus.USAGE_LIMITED, resume_at=self.at(until)
            )

        self.step("limit", (thread_id, until), call)

    @precondition(lambda self: any(goal.resume_at for goal in self.model.goals.values()))
    @rule(by=st.integers(0, 1))
    def resume_due(self, by: int) -> None:
        self.step(
            "resume_due", (), lambda: {goal.thread_id for goal in self.stores[by].resume_due()}
        )

    @rule(thread_id=THREADS, owner=st.sampled_from(["ada", "bob"]), span=SPANS)
    def claim(self, thread_id: str, owner: str, span: int) -> None:
        store = self.stores[owner == "bob"]
        self.step(
            "claim_",
            (thread_id, owner, span),
            lambda: store.claim(thread_id, owner, span).claim_number,
        )

    @rule(thread_id=THREADS, tokens=st.integers(0, 20), by=st.integers(0, 1))
    def charge(self, thread_id: str, tokens: int, by: int) -> None:
        self.step(
            "charge",
            (thread_id, tokens),
            lambda: self.stores[by].charge(thread_id, tokens=tokens).applied,
        )

    @rule(seconds=st.sampled_from([1, 5, 10]))
    def tick(self, seconds: int) -> None:
        self.model.now += seconds

    # -- holds -------------------------------------------------------------------------------------

    @rule(
        thread_id=THREADS,
        tokens=TOKENS,
        at_least=st.none() | st.integers(1, 10),
        key=st.sampled_from([None, None, "k", "l"]),
        span=SPANS,
        is_dispatched=st.booleans() | st.just(True),
        charges_unknown=st.booleans() | st.just(True),
        by=st.integers(0, 1),
    )
    def reserve(
        self,
        thread_id: str,
        tokens: int,
        at_least: int | None,
        key: str | None,
        span: int,
        is_dispatched: bool,
        charges_unknown: bool,
        by: int,
    ) -> None:
        at_least = None if at_least is None else min(at_least, tokens)

        def call() -> int:
            hold = self.stores[by].reserve(
                thread_id,
                tokens=tokens,
                at_least=at_least,
                key=key,
                expires_in=span,
                dispatched=is_dispatched,
                unknown="charge" if charges_unknown else "release",
            )
            if not hold.was_found:
                self.ids.append(hold.hold_id)
            return self.ids.index(hold.hold_id)

        self.step(
            "reserve",
            (thread_id, tokens, at_least, key, span, is_dispatched, charges_unknown),
            call,
        )

    def chosen(self, back: int) -> tuple[int, str]:
        number = len(self.ids) - 1 - back % len(self.ids)
        return number, self.ids[number]

    @precondition(lambda self: self.ids)
    @rule(
        back=HOLDS,
        tokens=st.integers(0, 50),
        has_key=st.booleans(),
        by=st.integers(0, 1),
    )
    def settle(self, back: int, tokens: int, has_key: bool, by: int) -> None:
        number, hold_id = self.chosen(back)
        thread_id, key = self.model.holds[number].thread_id, f"r{number}" if has_key else None

        def call() -> tuple[bool, bool]:
            result = self.stores[by].charge(
                thread_id, tokens=tokens, idempotency_key=key, settles=hold_id
            )
            return result.applied, result.duplicate

        self.step("settle", (number, tokens, key), call)

    @precondition(lambda self: self.ids)
    @rule(
        back=HOLDS,
        what=st.sampled_from(["release", "cut", "dispatch", "extend", "observe"]),
        amount=st.integers(1, 30),
        by=st.integers(0, 1),
    )
    def change(self, back: int, what: str, amount: int, by: int) -> None:
        number, hold_id = self.chosen(back)
        request, more = {
            "release": (ReleaseHold(hold_id), ()),
            "cut": (EndHold(hold_id), ()),
            "dispatch": (DispatchHold(hold_id), ()),
            "extend": (ExtendHold(hold_id, amount), (amount,)),
            "observe": (ObserveHold(hold_id, None, amount, None, None), (amount,)),
        }[what]

        def call() -> None:
            self.stores[by].apply(request)

        self.step(what, (number, *more), call)

    @precondition(lambda self: self.ids)
    @rule(by=st.integers(0, 1))
    def expire_holds(self, by: int) -> None:
        self.step("expire_holds", (), self.stores[by].expire_holds)

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def the_stores_are_as_the_model(self) -> None:
        self.taken["steps"] += 1
        due = {
            goal.thread_id: (
                goal.status,
                goal.tokens,
                goal.calls,
                goal.estimated,
                (goal.live, goal.held, goal.held_calls),
                goal.claim,
                self.model.tokens_left(goal.thread_id),
            )
            for goal in self.model.goals.values()
        }
        live = [
            hold_id
            for hold_id, hold in zip(self.ids, self.model.holds, strict=True)
            if hold.outcome is None
        ]
        for store in self.stores:
            seen: dict[str, Any] = {}
            for goal in store.goals():
                headroom = store.headroom(goal.thread_id)
                assert headroom is not None
                seen[goal.thread_id] = (
                    goal.status.value,
                    goal.tokens_used,
                    goal.calls_used,
                    goal.estimated_tokens,
                    (goal.live_holds, goal.held_tokens, goal.held_calls),
                    goal.claim_number,
                    headroom.tokens,
                )
                assert goal.status is not GoalStatus.ACTIVE or not goal.exhausted
            assert seen == due
            assert [hold.hold_id for hold in store.holds()] == sorted(live)
        assert self.stores[0].verify() == []

    @invariant()
    def each_hold_has_ended_once_and_goals_above_pay_the_same(self) -> None:
        own: Counter[str] = Counter()
        paid: Counter[tuple[str, str]] = Counter()
        for event in self.stores[1].events():
            if event.kind is not EventKind.USAGE_ACCOUNTED or event.hold_id is None:
                continue
            if event.origin_goal_id is None:
                own[event.hold_id] += event.calls_delta
            paid[event.goal_id, event.hold_id] += event.tokens_delta
        assert all(calls <= 1 for calls in own.values())
        by_hold: dict[str, set[int]] = {}
        for (goal_id, hold_id), tokens in paid.items():
            if any(goal.goal_id == goal_id for goal in self.stores[1].goals()):
                by_hold.setdefault(hold_id, set()).add(tokens)
        assert all(len(tokens) == 1 for tokens in by_hold.values())

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        shutil.rmtree(self.folder)


@pytest.mark.slow
def test_holds_claims_and_limits_come_to_what_the_model_says(
    made_once: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setattr(wall_clock, "now_ms", lambda: BEGUN_MS)
    HoldMachine.taken = Counter()
    run_state_machine_as_test(
        lambda: HoldMachine(made_once, tmp_path), settings=settings(stateful_step_count=50)
    )
    for name, count in HoldMachine.taken.items():
        record_property(name, count)
