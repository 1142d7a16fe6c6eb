"""Two stores on one file: in one process, and in two of which one is killed now and then."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from goal_state import GoalStore
from tests.properties import effort
from tests.properties.drafts import THREADS, Draft, drafts
from tests.properties.handles import Handle, LocalHandle, RemoteHandle
from tests.properties.machine import NAMES, GoalMachine, agree, eventually, step, taken
from tests.properties.operations import Operation

pytestmark = pytest.mark.timeout(effort.PATIENCE_SECONDS)


class TwoStoresMachine(GoalMachine):
    """Each call goes to one of two stores; some go to both at once."""

    def __init__(self, folder: Path, template: Path) -> None:
        super().__init__(folder)
        self.path = self.folder / "goals.db"
        shutil.copy(template, self.path)
        self.raw = sqlite3.connect(self.path, isolation_level=None)
        self.handles = [LocalHandle(self.path), self.open_other()]

    def open_other(self) -> Handle:
        return LocalHandle(self.path)

    def forget(self, handle: Handle) -> None:
        """Nothing is to be expected any more of a store that is gone."""
        self.listenings = [one for one in self.listenings if one.handle is not handle]
        for consuming in self.consuming.values():
            if handle in consuming:
                consuming.remove(handle)

    @rule(first=drafts(), second=st.none() | drafts())
    def race(self, first: Draft, second: Draft | None) -> None:
        """Both stores are called at once, with the same call where there is no second one: what came of
        it must be what one after the other would have done, in one order or the other.
        """
        operations = [one.resolve(self.model) for one in (first, second or first)]
        finish = self.handles[1].start(operations[1])
        outcomes = [self.handles[0].perform(operations[0]), finish()]
        calls = list(zip(self.handles, operations, outcomes, strict=True))
        seen = self.handles[0].observe(THREADS, ())
        faults: list[AssertionError] = []
        explained: list[list[Handle | None]] = []
        before, written_before = self.model, self.written_by
        for order in (calls, calls[::-1]):
            model, self.written_by = before.copy(), list(written_before)
            try:
                for handle, operation, outcome in order:
                    agree(model, operation, outcome)
                    self.wrote(handle, model)
                assert self.is_held(model, seen)
            except AssertionError as fault:
                faults.append(fault)
            else:
                self.model = model
                explained.append(self.written_by)
        if not explained:
            raise ExceptionGroup("neither order explains what happened", faults)
        taken["race"] += 1
        # Where both do, as with the same call twice, nobody can tell which store wrote an event.
        self.written_by = [
            by if all(by is other for other in rest) else None
            for by, *rest in zip(*explained, strict=True)
        ]


class OneProcessMachine(TwoStoresMachine):
    """The second store is dropped now and then without being closed."""

    def __init__(self, folder: Path, template: Path) -> None:
        super().__init__(folder, template)
        self.dropped: list[Handle] = []

    @rule(by_other=st.booleans())
    def drop(self, by_other: bool) -> None:
        taken["store dropped"] += 1
        handle = self.handle(by_other)
        for name in NAMES:  # the threads of its consumers would live on
            while handle in self.consuming[name]:
                self.stop_consuming(name)
        self.forget(handle)
        self.dropped.append(handle)
        self.handles[self.handles.index(handle)] = LocalHandle(self.path)
        self.unchanged = True

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            for handle in self.dropped:
                handle.close()


class TwoProcessesMachine(TwoStoresMachine):
    """The second store lives in a process of its own, which is killed now and then."""

    def open_other(self) -> Handle:
        return RemoteHandle(self.path)

    def kill_and_reopen(self) -> None:
        taken["process killed"] += 1
        killed = self.handles.pop()
        assert isinstance(killed, RemoteHandle)
        killed.kill()
        for name in NAMES:
            if self.consuming[name][:1] == [killed]:
                # Its lease ends ten seconds after its death; here, at once.
                self.raw.execute(
                    "UPDATE goal_state_cursors SET lease_expires_at_ms = 1 WHERE name = ?", (name,)
                )
        self.forget(killed)
        self.handles.append(self.open_other())
        for name in NAMES:  # whoever waited for the name holds it from now on
            for handle in self.consuming[name][:1]:
                assert handle.drain(name)
                assert eventually(lambda at=handle, of=name: at.holds(of), bool)

    @rule()
    def kill_when_idle(self) -> None:
        """Everything that was acknowledged is there."""
        self.kill_and_reopen()
        self.unchanged = True

    @rule(calls=st.lists(drafts(), min_size=1, max_size=4))
    def kill_in_transaction(self, calls: list[Draft]) -> None:
        """Nothing of a transaction that was not committed is there."""
        other, trial = self.handles[1], self.model.copy()
        assert isinstance(other, RemoteHandle)
        perform = other.begin()
        for call in calls:
            step(perform, trial, call)
        self.kill_and_reopen()
        self.unchanged = True

    @rule(draft=drafts(), delay_ms=st.sampled_from([0, 0, 0.2, 0.5, 1, 2]), by_other=st.booleans())
    def kill_in_call_and_retry(self, draft: Draft, delay_ms: float, by_other: bool) -> None:
        """A call that was not answered was carried out or was not. What can be repeated is repeated, and
        is charged once.
        """
        other, operation = self.handles[1], draft.resolve(self.model)
        other.start(operation)
        time.sleep(delay_ms / 1000)
        self.kill_and_reopen()
        if self.was_carried_out(operation):
            taken["call carried out, but not answered"] += 1
            self.wrote(other)
        has_key = any(operation.arguments.get(key) for key in ("response_id", "idempotency_key"))
        if has_key or draft.name in ("record_total", "clear"):
            handle = self.handle(by_other)
            agree(self.model, operation, handle.perform(operation))
            self.wrote(handle)

    def was_carried_out(self, operation: Operation) -> bool:
        """Whether it was; brings the model along then."""
        seen = self.handles[0].observe(THREADS, ())
        if self.is_held(self.model, seen):
            return False
        goal = seen.goal_of_thread.get(operation.arguments.get("thread_id", ""))
        is_new = goal is not None and goal.goal_id not in self.model.minted
        self.model.apply(operation.name, operation.arguments, goal.goal_id if is_new else None)
        assert self.is_held(self.model, seen)
        return True


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """An empty store, to be copied."""
    path = tmp_path / "template.db"
    GoalStore.open(path).close()
    return path


@pytest.mark.slow
def test_two_stores_in_one_process_do_as_the_model(
    tmp_path: Path, template: Path, record_property: Callable[[str, object], None]
) -> None:
    effort.run(lambda: OneProcessMachine(tmp_path, template), record_property, percent=20)


@pytest.mark.slow
def test_two_stores_in_two_processes_do_as_the_model(
    tmp_path: Path, template: Path, record_property: Callable[[str, object], None]
) -> None:
    effort.run(lambda: TwoProcessesMachine(tmp_path, template), record_property, percent=3)
