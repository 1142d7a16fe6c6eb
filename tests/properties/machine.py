"""The state machine: rules that change a store and the model alike, and what must hold after each of them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from goal_state import Goal, GoalEvent
from tests.properties.drafts import THREADS, Draft, Malformed, drafts, malformed
from tests.properties.handles import Abort, Handle
from tests.properties.model import STATUSES, Model, Refused, Settlement
from tests.properties.operations import Observation, Operation, Outcome, Perform, plain

__all__ = ["GoalMachine", "agree", "eventually", "step", "taken"]

PATIENCE_SECONDS = 10.0

taken: Counter[str] = Counter()
"""Steps taken so far in this process, by what became of them."""

NAMES = ("analytics", "billing")


def agree(model: Model, operation: Operation, outcome: Outcome) -> bool:
    """Brings the model along and compares what it says with what the store said; whether it was refused."""
    taken[operation.name] += 1
    try:
        expected = model.apply(operation.name, operation.arguments, outcome.goal_id)
    except Refused as refused:
        expected = refused
    if isinstance(expected, Refused):
        taken[expected.error] += 1
        assert (outcome.error, outcome.field) == (expected.error, expected.field), operation
        return True
    assert outcome.error is None, (operation, outcome)
    assert plain(outcome.result) == expected, operation
    for settled in expected if isinstance(expected, list) else [expected]:
        if isinstance(settled, Settlement):
            kind = "charge" if settled.applied else "charge not taken"
            taken["repeated charge" if settled.duplicate else kind] += 1
    return False


def step(perform: Perform, model: Model, draft: Draft) -> bool:
    """Carries out a call on the store and on the model; whether it was refused."""
    operation = draft.resolve(model)
    return agree(model, operation, perform(operation))


@dataclass(frozen=True)
class Listening:
    """A live listener, and from where on in the log it hears."""

    handle: Handle
    number: int
    begins: int
    kinds: list[str] | None
    thread_id: str | None

    def wants(self, event: GoalEvent) -> bool:
        return (self.kinds is None or event.kind in self.kinds) and (
            self.thread_id is None or event.thread_id == self.thread_id
        )


class GoalMachine(RuleBasedStateMachine):
    """Drives the stores in `handles`, all of them on one database, beside one model."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.model = Model()
        self.handles: list[Handle] = []
        self.written_by: list[Handle | None] = []
        """Which store wrote each event of the log; None where two could have."""
        self.listenings: list[Listening] = []
        self.consuming: dict[str, list[Handle]] = {name: [] for name in NAMES}
        """Who consumes under a name: the first holds it, the others wait."""
        self.log: list[GoalEvent] = []
        self.goals: dict[str, Goal] = {}
        self.contents: Any = None
        self.unchanged = False
        """Whether the step that was taken must have left rows and log as they were."""
        self.raw: sqlite3.Connection | None = None

    def handle(self, by_other: bool) -> Handle:
        return self.handles[by_other % len(self.handles)]

    # -- operations --------------------------------------------------------------------------------

    @initialize(calls=st.lists(drafts("create"), max_size=3))
    def begin(self, calls: list[Draft]) -> None:
        for call in calls:
            self.carry_out(call)
        self.unchanged = False

    @rule(draft=drafts("create"))
    def create(self, draft: Draft) -> None:
        self.carry_out(draft)

    @rule(draft=drafts("ensure"))
    def ensure(self, draft: Draft) -> None:
        self.carry_out(draft)

    @rule(draft=drafts("replace"))
    def replace(self, draft: Draft) -> None:
        self.carry_out(draft)

    @rule(draft=drafts("set"))
    def set(self, draft: Draft) -> None:
        self.carry_out(draft)

    @rule(draft=drafts("resume"))
    def resume(self, draft: Draft) -> None:
        self.carry_out(draft)

    @rule(draft=drafts("charge"))
    def charge(self, draft: Draft) -> None:
        self.carry_out(draft)

    @rule(draft=drafts("charge_many"))
    def charge_many(self, draft: Draft) -> None:
        self.carry_out(draft)

    @rule(draft=drafts("reconcile"))
    def reconcile(self, draft: Draft) -> None:
        self.carry_out(draft)

    @rule(draft=drafts("record_total"))
    def record_total(self, draft: Draft) -> None:
        self.carry_out(draft)

    @rule(draft=drafts("set_baseline"))
    def set_baseline(self, draft: Draft) -> None:
        self.carry_out(draft)

    @rule(draft=drafts("clear"))
    def clear(self, draft: Draft) -> None:
        self.carry_out(draft)

    def carry_out(self, draft: Draft) -> None:
        handle, before = self.handle(draft.by_other), self.model.copy()
        refused = step(handle.perform, self.model, draft)
        self.unchanged = refused or (
            draft.name not in ("record_total", "set_baseline", "reconcile")
            and self.model.events == before.events
            and self.model.goals == before.goals
        )
        self.wrote(handle)

    def wrote(self, handle: Handle, model: Model | None = None) -> None:
        """The events that the model has more by now were written by this store."""
        events = (model or self.model).events
        self.written_by += [handle] * (len(events) - len(self.written_by))

    @rule(call=malformed())
    def malformed(self, call: Malformed) -> None:
        outcome = self.handle(call.by_other).perform(call.operation)
        taken["InvalidValueError"] += 1
        assert (outcome.error, outcome.field) == ("InvalidValueError", call.field), call
        self.unchanged = True

    @rule(
        calls=st.lists(drafts(), min_size=1, max_size=5),
        ending=st.sampled_from(["commit", "go on after a refusal", "raise"]),
        by_other=st.booleans(),
    )
    def transact(self, calls: list[Draft], ending: str, by_other: bool) -> None:
        handle, trial = self.handle(by_other), self.model

        def script(perform: Perform) -> None:
            nonlocal trial
            trial = self.model.copy()
            for call in calls:
                if step(perform, trial, call) and ending != "go on after a refusal":
                    raise Abort
            if ending == "raise":
                raise Abort

        try:
            handle.transact(script)
        except Abort:
            taken["rolled back"] += 1
            self.unchanged = True
        else:
            taken["transaction"] += 1
            self.model = trial
            self.wrote(handle)

    # -- events ------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.listenings) < 3)
    @rule(
        kinds=st.none()
        | st.lists(
            st.sampled_from(
                ["created", "usage_accounted", "status_changed", "cleared", "budget_changed"]
            ),
            unique=True,
        ),
        thread_id=st.none() | st.sampled_from(THREADS),
        failing=st.booleans(),
        by_other=st.booleans(),
    )
    def listen(
        self, kinds: list[str] | None, thread_id: str | None, failing: bool, by_other: bool
    ) -> None:
        handle = self.handle(by_other)
        number = handle.subscribe(kinds, thread_id, failing)
        self.listenings.append(Listening(handle, number, len(self.log), kinds, thread_id))

    @precondition(lambda self: self.listenings)
    @rule()
    def stop_listening(self) -> None:
        listening = self.listenings.pop(0)
        listening.handle.unsubscribe(listening.number)

    @rule(
        name=st.sampled_from(NAMES),
        batch_size=st.sampled_from([1, 2, 3, 100]),
        failures=st.sampled_from([0, 0, 0, 1]),
        by_other=st.booleans(),
    )
    def consume(self, name: str, batch_size: int, failures: int, by_other: bool) -> None:
        handle = self.handle(by_other)
        if handle not in self.consuming[name]:
            handle.consume(name, self.deliveries(name), batch_size, failures)
            self.consuming[name].append(handle)
            self.drain(name)

    @rule(name=st.sampled_from(NAMES))
    def drain(self, name: str) -> None:
        """Who has drained holds the name: nobody who begins to consume later takes it away."""
        for handle in self.consuming[name][:1]:
            assert handle.drain(name)
            # Of an empty log everything is delivered before anybody holds the name.
            assert eventually(lambda at=handle: at.holds(name), bool)
            self.consumer_had_everything_in_order(name)

    @rule(name=st.sampled_from(NAMES))
    def stop_consuming(self, name: str) -> None:
        for handle in self.consuming[name][:1]:
            assert handle.stop(name)
            self.consuming[name].remove(handle)
            self.consumer_had_everything_in_order(name)
        self.drain(name)

    def deliveries(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def everything_holds(self) -> None:
        if not self.handles:
            return
        taken["steps"] += 1
        recent = [event.goal_id for event in self.model.events[-2:]]
        # And one more at each step, in turn: all of them would cost most of the time.
        ids = list(self.model.minted)
        recent += ids[taken["steps"] % len(ids) :][:1] if ids else []
        self.look(tuple(dict.fromkeys(recent)))

    def look(self, goal_ids: tuple[str, ...]) -> None:
        """Checks every invariant on what the stores tell now."""
        seen, *others = [handle.observe(THREADS, goal_ids) for handle in self.handles]
        for other in others:
            assert other == seen
        self.nothing_changed_by_a_failure(seen)
        self.store_is_as_the_model(seen)
        self.log_only_grew(seen.events)
        self.usage_is_the_sum_of_the_ledger(seen)
        self.no_goal_is_active_over_its_budget(seen)
        self.each_ancestor_paid_while_it_was_there(seen)
        self.each_goal_begins_and_ends_once(seen.events)
        self.times_run_forwards(seen.goals)
        self.listeners_heard_everything_in_order()

    def store_is_as_the_model(self, seen: Observation) -> None:
        assert self.is_held(self.model, seen)
        for goal_id, events in seen.events_of_goal.items():
            assert events == [event for event in seen.events if event.goal_id == goal_id]
        for thread_id, events in seen.events_of_thread.items():
            assert events == [event for event in seen.events if event.thread_id == thread_id]
            behind = [event for event in events if event.position > seen.middle]
            assert seen.after_middle[thread_id] == behind[:3]
        for thread_id, goal in seen.goal_of_thread.items():
            assert [goal] == [one for one in seen.goals if one.thread_id == thread_id] or not goal
        assert seen.count == len(seen.goals)
        for status in STATUSES:
            of_status = [goal for goal in seen.goals if goal.status == status]
            assert seen.of_status[status] == (len(of_status), of_status)
        assert seen.differences == []

    def is_held(self, model: Model, seen: Observation) -> bool:
        """Whether the stores hold what the model holds."""
        return (
            [plain(event) for event in seen.events] == model.events
            and {goal.thread_id: plain(goal) for goal in seen.goals} == model.goals
            and {thread: plain(goal) for thread, goal in seen.goal_of_thread.items()}
            == {thread: model.goals.get(thread) for thread in seen.goal_of_thread}
            and {thread: plain(usage) for thread, usage in seen.usage_of_thread.items()}
            == {thread: model.baselines.get(thread) for thread in seen.usage_of_thread}
            # Only a later reconciliation would show whose time a baseline is of.
            and (
                self.raw is None
                or dict(self.raw.execute("SELECT thread_id, goal_id FROM goal_state_baselines"))
                == model.recorded_for
            )
        )

    def usage_is_the_sum_of_the_ledger(self, seen: Observation) -> None:
        """Invariant 1."""
        tokens: Counter[str] = Counter()
        time_ms: Counter[str] = Counter()
        cost_nanos: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        for event in seen.events:
            assert event.tokens_delta >= 0
            assert event.time_delta_ms >= 0
            if event.kind == "usage_accounted":
                tokens[event.goal_id] += event.tokens_delta
                time_ms[event.goal_id] += event.time_delta_ms
                cost_nanos[event.goal_id] += event.cost_delta_nanos
                calls[event.goal_id] += event.calls_delta
                assert event.cumulative_cost_nanos == cost_nanos[event.goal_id]
                assert event.cumulative_calls == calls[event.goal_id]
                assert event.cumulative_tokens == tokens[event.goal_id]
                assert event.cumulative_time_ms == time_ms[event.goal_id]
        for goal in seen.goals:
            assert goal.tokens_used == tokens[goal.goal_id]
            assert goal.time_used_ms == time_ms[goal.goal_id]
            assert goal.cost_used_nanos == cost_nanos[goal.goal_id]
            assert goal.calls_used == calls[goal.goal_id]

    def no_goal_is_active_over_its_budget(self, seen: Observation) -> None:
        """Invariant 2."""
        for goal in seen.goals:
            assert not (plain(goal).spent and goal.status == "active")  # type: ignore[attr-defined]

    def each_ancestor_paid_while_it_was_there(self, seen: Observation) -> None:
        """Invariant 8."""
        ends: dict[str, int] = {}
        for event in seen.events:
            gone = event.goal_id if event.kind == "cleared" else event.replaced_goal_id
            if gone is not None:
                ends[gone] = event.position
        own: dict[str, list[GoalEvent]] = {}
        paid: Counter[tuple[str, str]] = Counter()
        for event in seen.events:
            if event.origin_goal_id is None:
                own.setdefault(event.goal_id, []).append(event)
            else:
                pair = (event.goal_id, event.origin_goal_id)
                paid[pair] += event.tokens_delta
                assert event.time_delta_ms == 0
                assert (event.turn_id, event.idempotency_key) == (None, None)
        for goal in seen.goals:
            for ancestor in (goal.ancestor_goal_ids or "").split():
                until = ends.get(ancestor, sys.maxsize)
                assert paid[ancestor, goal.goal_id] == sum(
                    event.tokens_delta for event in own[goal.goal_id] if event.position < until
                )

    def each_goal_begins_and_ends_once(self, log: list[GoalEvent]) -> None:
        """Invariant 3."""
        kinds: dict[str, list[str]] = {}
        for event in log:
            kinds.setdefault(event.goal_id, []).append(event.kind)
        for of_goal in kinds.values():
            assert of_goal[0] == "created"
            assert "created" not in of_goal[1:]
            assert "cleared" not in of_goal[:-1]

    def nothing_changed_by_a_failure(self, seen: Observation) -> None:
        """Invariant 5."""
        contents = self.dump(seen)
        if self.unchanged:
            assert contents == self.contents
        self.unchanged = False
        self.contents = contents

    def dump(self, seen: Observation) -> Any:
        """All rows and the whole log: as the file has them, or as the store tells them."""
        if self.raw is None:
            return seen.goals, seen.events, seen.usage_of_thread
        return [
            self.raw.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
            for table in ("goal_state_goals", "goal_state_events", "goal_state_baselines")
        ]

    def log_only_grew(self, log: list[GoalEvent]) -> None:
        """Invariant 6: what was read before stands as it stood, and positions rise."""
        assert log[: len(self.log)] == self.log
        positions = [event.position for event in log]
        assert all(a < b for a, b in pairwise(positions))
        assert len({event.event_id for event in log}) == len(log)
        self.log = log

    def listeners_heard_everything_in_order(self) -> None:
        """Invariant 6."""
        for listening in self.listenings:
            written = list(zip(self.log, self.written_by, strict=True))[listening.begins :]
            wanted = [(event, by) for event, by in written if listening.wants(event)]
            certain = {event.position for event, by in wanted if by is listening.handle}
            # The thread of a consumer may be delivering what another thread has written.
            heard = eventually(
                lambda at=listening: at.handle.received(at.number),
                lambda heard, certain=certain: certain <= {event.position for event in heard},
            )
            assert heard == [
                event
                for event, by in wanted
                if by is listening.handle or (by is None and event in heard)
            ]

    def consumer_had_everything_in_order(self, name: str) -> None:
        """Invariant 6: nothing left out; what comes again has come before."""
        log = [(event.position, event.event_id) for event in self.log]
        path, had = self.deliveries(name), 0
        for line in path.read_text().splitlines() if path.exists() else []:
            batch = [(position, event_id) for position, event_id in json.loads(line)]
            begins = log.index(batch[0])
            assert begins <= had, "events were left out"
            assert batch == log[begins : begins + len(batch)]
            had = max(had, begins + len(batch))
        assert had == len(log)

    def times_run_forwards(self, goals: list[Goal]) -> None:
        for goal in goals:
            before = self.goals.get(goal.goal_id, goal)
            assert goal.created_at_ms == before.created_at_ms
            assert goal.created_at_ms <= before.updated_at_ms <= goal.updated_at_ms
        self.goals = {goal.goal_id: goal for goal in goals}

    # -- the end -----------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # else a step has failed, and what it left fits no model
                self.look(tuple(self.model.minted))
                for name in NAMES:
                    self.consume(name, batch_size=7, failures=0, by_other=False)
                    while self.consuming[name]:  # the holder first: then the next one gets its turn
                        self.stop_consuming(name)
        finally:
            for handle in self.handles:
                handle.close()
            if self.raw is not None:
                self.raw.close()
            shutil.rmtree(self.folder)


def eventually(read: Callable[[], Any], enough: Callable[[Any], bool]) -> Any:
    """What is read once it is enough, or when patience is at its end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not enough(found := read()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return found
