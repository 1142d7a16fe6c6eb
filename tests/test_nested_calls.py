"""Calls of a store from inside its own calls: refused at once, or carried out; never a wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import goal_state
from goal_state import GoalEvent, GoalStore, RequestError
from tests.in_memory import open_in_memory
from tests.processes import CHECKOUT, PATIENCE_SECONDS, python

CALLS: dict[str, Callable[[GoalStore, Path], object]] = {
    "get": lambda store, _: store.get("t"),
    "goals": lambda store, _: list(store.goals()),
    "events": lambda store, _: list(store.events()),
    "count": lambda store, _: store.count(),
    "usage": lambda store, _: store.usage("t"),
    "last_position": lambda store, _: store.last_position(),
    "verify": lambda store, _: store.verify(),
    "create": lambda store, _: store.create("u", "Ship"),
    "charge": lambda store, _: store.charge("t", tokens=1),
    "clear": lambda store, _: store.clear("t"),
    "transact": lambda store, _: store.transact(lambda repository: None),
    "subscribe": lambda store, _: store.subscribe(print),
    "export_lines": lambda store, _: list(store.export_lines()),
    "import_lines": lambda store, _: store.import_lines([]),
    "backup": lambda store, folder: store.backup(folder / "copy.db"),
    "prune_events": lambda store, _: store.prune_events(before=datetime(2100, 1, 1, tzinfo=UTC)),
    "consume": lambda store, _: store.consume("audit", print),
}


@pytest.fixture(params=["file", ":memory:"])
def either(request: pytest.FixtureRequest, database: Path) -> Any:
    with GoalStore.open(database) if request.param == "file" else open_in_memory() as store:
        store.create("t", "Ship")
        yield store


@pytest.mark.timeout(30)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_inside_a_transaction_is_refused_at_once(
    either: GoalStore, tmp_path: Path, call: str
) -> None:
    refused: list[BaseException] = []

    def work(repository: Any) -> None:
        repository.charge("t", tokens=5)
        try:
            CALLS[call](either, tmp_path)
        except goal_state.NestedCallError as error:
            refused.append(error)

    either.transact(work)
    assert len(refused) == 1
    assert isinstance(refused[0], RequestError)
    goal = either.get("t")
    assert goal is not None
    assert goal.tokens_used == 5


@pytest.mark.timeout(30)
def test_a_nested_call_that_is_not_caught_undoes_the_transaction(either: GoalStore) -> None:
    def work(repository: Any) -> None:
        repository.charge("t", tokens=5)
        either.charge("t", tokens=1)

    with pytest.raises(goal_state.NestedCallError):
        either.transact(work)
    assert either.charge("t", tokens=1).goal.tokens_used == 1  # type: ignore[union-attr]


@pytest.mark.timeout(30)
def test_another_threads_call_during_a_transaction_waits_for_its_end(either: GoalStore) -> None:
    begun, answers = threading.Event(), list[int]()

    def charge() -> None:
        begun.wait(PATIENCE_SECONDS)
        goal = either.charge("t", tokens=1).goal
        assert goal is not None
        answers.append(goal.tokens_used)

    thread = threading.Thread(target=charge)
    thread.start()

    def work(repository: Any) -> None:
        repository.charge("t", tokens=5)
        begun.set()
        thread.join(0.2)
        assert answers == []

    either.transact(work)
    thread.join(PATIENCE_SECONDS)
    assert answers == [6]


@pytest.mark.timeout(30)
def test_another_stores_call_inside_a_transaction_works(either: GoalStore, tmp_path: Path) -> None:
    with GoalStore.open(tmp_path / "another.db") as another:
        another.create("t", "Ship")
        either.transact(lambda repository: another.charge("t", tokens=3))
        goal = another.get("t")
        assert goal is not None
        assert goal.tokens_used == 3


@pytest.mark.timeout(30)
def test_calls_from_a_listener_work(either: GoalStore, tmp_path: Path) -> None:
    heard: list[str] = []

    def listen(event: GoalEvent) -> None:
        heard.append(event.thread_id)
        if event.thread_id == "t" and len(heard) < 3:
            assert either.get("t") is not None
            either.create("from the listener", "Ship")
            either.transact(lambda repository: repository.charge("from the listener", tokens=2))
            list(either.goals())
            list(either.events())
            assert either.verify() == []

    either.subscribe(listen)
    either.charge("t", tokens=1)
    assert heard == ["t", "from the listener", "from the listener"]
    goal = either.get("from the listener")
    assert goal is not None
    assert goal.tokens_used == 2


@pytest.mark.timeout(30)
@pytest.mark.parametrize("where", ["work", "listener"])
def test_closing_the_store_from_inside_a_call_returns_at_once_and_closes_after_it(
    path: Path, where: str
) -> None:
    store = GoalStore.open(path)
    store.create("t", "Ship")
    if where == "listener":
        store.subscribe(lambda event: store.close())
        assert store.charge("t", tokens=1).applied
    else:

        def work(repository: Any) -> object:
            store.close()
            return repository.charge("t", tokens=1)

        assert store.transact(work)
    with pytest.raises(goal_state.StoreClosedError):
        store.get("t")
    with GoalStore.open(path) as again:
        goal = again.get("t")
        assert goal is not None
        assert goal.tokens_used == 1


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_work_runs_once_on_its_callers_thread_with_its_context_beside_other_writers(
    path: Path,
) -> None:
    python(
        """
import contextvars, sys, threading
from goal_state import GoalStore
mark = contextvars.ContextVar("mark")
wrong = []
with GoalStore.open(sys.argv[1], durability="normal") as store:
    store.create("t", "Ship")

    def write(number):
        for turn in range(40):
            mark.set((number, turn))
            ran = []

            def work(repository):
                ran.append((threading.get_ident(), mark.get(None)))
                repository.charge("t", tokens=1)

            store.transact(work)
            if ran != [(threading.get_ident(), (number, turn))]:
                wrong.append(ran)
            store.charge("t", tokens=1)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
        assert not thread.is_alive()
    assert not wrong, wrong[0]
    assert store.get("t").tokens_used == 6 * 80
""",
        path,
    )


_TERMINATED = """
import signal, sys, threading
from goal_state import GoalStore, StoreClosedError
store = GoalStore.open(sys.argv[1])
store.create("t", "Ship")

def stop(*_):
    store.close()
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
number = 0
while True:
    number += 1
    store.charge("t", tokens=1, idempotency_key=str(number))
    print(number, flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.skipif(os.name != "posix", reason="SIGTERM is POSIX's")
def test_a_process_whose_sigterm_handler_closes_the_store_ends_and_loses_nothing(
    tmp_path: Path,
) -> None:
    for attempt in range(5):
        path = tmp_path / f"{attempt}.db"
        process = subprocess.Popen(
            [sys.executable, "-c", _TERMINATED, str(path)],
            env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                assert process.stdout is not None
                assert process.stderr is not None
                said = [process.stdout.readline() for _ in range(10 + attempt)]
                process.send_signal(signal.SIGTERM)
                process.wait(20)
                said += process.stdout.read().split("\n")
                errors = process.stderr.read()
            finally:
                process.kill()
        assert process.returncode == 0, errors
        acknowledged = [int(line) for line in said if line.strip()]
        with GoalStore.open(path) as store:
            goal = store.get("t")
            assert goal is not None
            assert goal.tokens_used - acknowledged[-1] in (0, 1)
            assert store.verify() == []
