"""A process that forks while it has a store open."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from goal_state import GoalStore
from tests.processes import python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

_FORKING = """
import os, sys
from goal_state import ForkedStoreError, GoalStore

def child():
    {child}

store = GoalStore.open(sys.argv[1])
store.create("before", "Ship")
heard = []
store.subscribe(lambda event: heard.append(event.thread_id))
store.get("before")  # so that a reader's connection is open as well
process = os.fork()
if process == 0:
    child()
    {leave}
store.create("meanwhile", "Ship")
_, status = os.waitpid(process, 0)
assert status == 0, status
store.create("after", "Ship")
assert [goal.thread_id for goal in store.goals()][-1] == "after"
assert heard == ["meanwhile", "after"], heard
assert store.verify() == []
store.close()
"""


def fork(path: Path, child: str, *, leave: str = "os._exit(0)") -> list[str]:
    """Runs a child of a process that has a store open on the path, while the parent goes on writing;
    the threads that have goals afterwards."""
    indented = child.strip().replace("\n", "\n    ")
    python(_FORKING.format(child=indented, leave=leave), path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with GoalStore.open(path, migrate=False) as store:
        assert store.verify() == []
        return sorted(goal.thread_id for goal in store.goals())


def test_the_store_is_refused_in_the_child(database: Path) -> None:
    threads = fork(
        database,
        """
calls = (
    lambda: store.get("before"),
    lambda: store.create("child", "Ship"),
    lambda: store.account("before", tokens=1),
    lambda: store.clear("before"),
    lambda: list(store.goals()),
    lambda: list(store.events()),
    lambda: store.count(),
    lambda: store.verify(),
    lambda: store.subscribe(print),
    lambda: store.consume("audit", print),
    lambda: store.transact(lambda repository: None),
)
for number, call in enumerate(calls):
    try:
        call()
    except ForkedStoreError as error:
        assert "open it again in the child" in str(error)
    else:
        os._exit(number + 1)
""",
    )
    assert threads == ["after", "before", "meanwhile"]


def test_closing_the_parents_store_in_the_child_is_fine(database: Path) -> None:
    assert fork(database, "store.close()") == ["after", "before", "meanwhile"]


def test_the_childs_own_store_works(database: Path) -> None:
    threads = fork(
        database,
        """
with GoalStore.open(sys.argv[1]) as own:
    assert own.get("before") is not None
    own.create("child", "Ship")
    assert own.account("child", tokens=5).applied
""",
    )
    assert threads == ["after", "before", "child", "meanwhile"]


@pytest.mark.parametrize(
    "leave", ["sys.exit(0)", "del store; import gc; gc.collect(); sys.exit(0)"]
)
def test_a_child_that_ends_in_the_usual_way_harms_nothing(database: Path, leave: str) -> None:
    threads = fork(
        database,
        """
with GoalStore.open(sys.argv[1]) as own:
    own.create("child", "Ship")
""",
        leave=leave,
    )
    assert threads == ["after", "before", "child", "meanwhile"]


def test_a_fork_in_the_midst_of_a_transaction(database: Path) -> None:
    """The child has the parent's memory of an open transaction, which is not its own to end."""
    python(
        """
import os, sys, threading, warnings
from goal_state import ForkedStoreError, GoalStore

warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork beside threads
with GoalStore.open(sys.argv[1]) as store:
    def work(repository):
        repository.create("t", "Ship")
        half_way.set()
        go_on.wait(60)
        repository.account("t", tokens=5)

    half_way, go_on = threading.Event(), threading.Event()
    writer = threading.Thread(target=store.transact, args=(work,))
    writer.start()
    half_way.wait(60)
    process = os.fork()
    if process == 0:
        try:
            store.get("t")
        except ForkedStoreError:
            sys.exit(0)
        os._exit(1)
    _, status = os.waitpid(process, 0)
    assert status == 0, status
    go_on.set()
    writer.join()
    assert store.get("t").tokens_used == 5
""",
        database,
    )
    with GoalStore.open(database) as store:
        assert store.verify() == []
        assert store.count() == 1


def test_consumers_stay_with_the_parent(database: Path) -> None:
    python(
        """
import os, sys, warnings
from goal_state import GoalStore

warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork beside threads
taken = []
with GoalStore.open(sys.argv[1]) as store:
    consumer = store.consume("audit", lambda events: taken.extend(e.position for e in events))
    store.create("t", "Ship")
    assert consumer.drain(60)
    process = os.fork()
    if process == 0:
        sys.exit(0)
    _, status = os.waitpid(process, 0)
    assert status == 0, status
    store.clear("t")
    assert consumer.drain(60)
assert taken == [1, 2], taken
""",
        database,
    )


def test_the_child_mints_ids_of_its_own() -> None:
    """Not its parent's, and also if another thread of the parent was minting one just then."""
    told = python(
        """
import os, signal
from goal_state import identifiers

identifiers.new_id()
identifiers._lock.acquire()
process = os.fork()
if process == 0:
    signal.alarm(20)  # rather than to wait for ever
    print(identifiers.new_id(), flush=True)
    os._exit(0)
identifiers._lock.release()
_, status = os.waitpid(process, 0)
assert status == 0, status
print(identifiers.new_id())
""",
    )
    childs, parents = told.split()
    # Behind the time and its count: what two processes must not have in common.
    assert childs[19:] != parents[19:]
