"""An error raised to many callers is a fresh object for each: its traceback tells of one call alone."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from goal_state import GoalStateError, GoalStore, StoreClosedError
from tests.processes import PATIENCE_SECONDS, python

CALLS: dict[str, Callable[[GoalStore], object]] = {
    "get": lambda store: store.get("t"),
    "charge": lambda store: store.charge("t", tokens=1),
    "goals": lambda store: list(store.goals()),
    "events": lambda store: list(store.events()),
    "count": lambda store: store.count(),
    "transact": lambda store: store.transact(lambda repository: None),
    "subscribe": lambda store: store.subscribe(print),
    "consume": lambda store: store.consume("audit", print),
    "export": lambda store: list(store.export_lines()),
}


def length(error: BaseException) -> int:
    """How many frames a traceback has."""
    traceback, frames = error.__traceback__, 0
    while traceback is not None:
        traceback, frames = traceback.tb_next, frames + 1
    return frames


def raised(call: Callable[[], object]) -> GoalStateError:
    with pytest.raises(GoalStateError) as caught:
        call()
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("where", ["file", ":memory:"])
def test_a_closed_stores_refusal_is_raised_afresh(path: Path, where: str, call: str) -> None:
    store = GoalStore.open(path if where == "file" else where)
    store.create("t", "Ship")
    store.close()
    errors = [raised(lambda: CALLS[call](store)) for _ in range(5)]
    assert {type(error) for error in errors} == {StoreClosedError}
    assert len({id(error) for error in errors}) == 5
    assert len({length(error) for error in errors}) == 1
    # None, unless CPython has kept one that a tracer of another test raised.
    handled = sys.exception()
    assert all(error.__context__ is handled for error in errors)


@pytest.mark.slow
def test_a_commit_that_failed_for_a_group_is_raised_afresh_to_each_caller(path: Path) -> None:
    """All wait for one that has the lock; that they waited in vain is told to each by itself."""
    with GoalStore.open(path, busy_timeout_seconds=0.5) as store:
        store.create("t", "Ship")
        errors: list[BaseException] = []

        def charge() -> None:
            try:
                store.charge("t", tokens=1)
            except BaseException as error:
                errors.append(error)

        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            threads = [threading.Thread(target=charge) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_SECONDS)
                assert not thread.is_alive()
            other.execute("ROLLBACK")
        assert len(errors) == 8
        assert len({id(error) for error in errors}) == 8
        assert all(isinstance(error, GoalStateError) for error in errors)
        tracebacks = [error.__traceback__ for error in errors]
        assert len({id(traceback) for traceback in tracebacks}) == 8
        for error in errors:
            innermost = error.__traceback__
            assert innermost is not None
            assert innermost.tb_frame.f_code is charge.__code__
        assert max(length(error) for error in errors) < 20
        goal = store.get("t")
        assert goal is not None
        assert goal.tokens_used == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_stores_refusal_is_raised_afresh(path: Path) -> None:
    python(
        """
import os, sys, warnings
from goal_state import ForkedStoreError, GoalStore
warnings.simplefilter("ignore", DeprecationWarning)

def length(error):
    traceback, frames = error.__traceback__, 0
    while traceback is not None:
        traceback, frames = traceback.tb_next, frames + 1
    return frames

with GoalStore.open(":memory:") as store:
    process = os.fork()
    if process == 0:
        errors = []
        try:
            for _ in range(5):
                try:
                    store.get("t")
                except ForkedStoreError as error:
                    errors.append(error)
            assert len({id(error) for error in errors}) == 5
            assert len({length(error) for error in errors}) == 1
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(process, 0)[1] == 0
"""
    )
