"""Several calls in one transaction, as the block of a `with` statement."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pytest

from goal_state import (
    DatabaseFullError,
    EventKind,
    GoalEvent,
    GoalRepository,
    GoalStore,
    InvalidValueError,
    NestedCallError,
    StoreClosedError,
    TransactionError,
)
from goal_state.storage import blocks
from tests.in_memory import open_in_memory


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, database: Path) -> Iterator[GoalStore]:
    with (
        open_in_memory(durability="normal")
        if request.param == "memory"
        else GoalStore.open(database, durability="normal")
    ) as store:
        store.create("t", "Ship")
        yield store
        if not store._is_closed:
            assert store.verify() == []


def used(store: GoalStore) -> int:
    goal = store.get("t")
    assert goal is not None
    return goal.tokens_used


def charges_elsewhere(store: GoalStore) -> None:
    """Another thread can write: no lock is left behind."""
    thread = threading.Thread(target=lambda: store.charge("t", tokens=1), daemon=True)
    before = used(store)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert used(store) == before + 1


def test_block_that_ends_commits_all_of_it_and_tells_listeners_once(store: GoalStore) -> None:
    heard: list[GoalEvent] = []
    store.subscribe(heard.append)
    with store.transaction() as tx:
        assert isinstance(tx, GoalRepository)
        tx.charge("t", tokens=5)
        tx.set("t", status="complete")
        assert heard == []
    assert [event.kind for event in heard] == [EventKind.USAGE_ACCOUNTED, EventKind.STATUS_CHANGED]
    assert used(store) == 5


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StopIteration, GeneratorExit])
def test_block_that_an_exception_leaves_undoes_all_of_it(
    store: GoalStore, error: type[BaseException]
) -> None:
    heard: list[GoalEvent] = []
    store.subscribe(heard.append)
    raised = error("mine")
    with pytest.raises(error) as caught, store.transaction() as tx:  # noqa: PT012
        tx.charge("t", tokens=5)
        raise raised
    assert caught.value is raised
    assert raised.__context__ is None
    assert (used(store), heard) == (0, [])
    charges_elsewhere(store)


def test_block_that_catches_a_refusal_goes_on(store: GoalStore) -> None:
    with store.transaction() as tx:
        tx.charge("t", tokens=5)
        with pytest.raises(InvalidValueError):
            tx.charge("t", tokens=-1)
        tx.charge("t", tokens=6)
    assert used(store) == 11


def test_block_that_hides_a_failure_of_the_database_is_not_committed(store: GoalStore) -> None:
    failed = DatabaseFullError("full")
    with pytest.raises(DatabaseFullError), store.transaction() as tx:  # noqa: PT012
        tx.charge("t", tokens=5)
        tx.executor.failure = failed  # type: ignore[attr-defined]
    assert used(store) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.charge("t", tokens=1),
        lambda store: store.get("t"),
        lambda store: list(store.events()),
        lambda store: store.transact(lambda repository: None),
        lambda store: store.transaction().__enter__(),
        lambda store: store.subscribe(print),
    ],
    ids=["charge", "get", "events", "transact", "transaction", "subscribe"],
)
def test_call_of_the_store_inside_a_block_is_refused_and_the_block_goes_on(
    store: GoalStore, call: Callable[[GoalStore], object]
) -> None:
    with store.transaction() as tx:
        tx.charge("t", tokens=1)
        with pytest.raises(NestedCallError, match="the repository that it passes to you"):
            call(store)
        tx.charge("t", tokens=1)
    assert used(store) == 2


def test_close_inside_a_block_waits_for_its_end(store: GoalStore) -> None:
    with store.transaction() as tx:
        store.close()
        tx.charge("t", tokens=1)
    with pytest.raises(StoreClosedError):
        store.get("t")


def test_repository_of_a_block_that_is_over_is_refused(store: GoalStore) -> None:
    with store.transaction() as tx:
        pass
    with pytest.raises(TransactionError, match="is over"):
        tx.charge("t", tokens=1)


def test_block_that_is_entered_again_is_refused(store: GoalStore) -> None:
    block = store.transaction()
    with block as tx:
        tx.charge("t", tokens=1)
    with pytest.raises(TransactionError, match="ask for a new one"), block:
        pass
    assert used(store) == 1


def test_block_that_is_never_entered_does_nothing(store: GoalStore) -> None:
    store.transaction()
    charges_elsewhere(store)


def test_block_in_an_exit_stack_ends_with_the_stack(store: GoalStore) -> None:
    with ExitStack() as stack:
        stack.enter_context(store.transaction()).charge("t", tokens=1)
    assert used(store) == 1
    with pytest.raises(KeyError), ExitStack() as stack:  # noqa: PT012
        stack.enter_context(store.transaction()).charge("t", tokens=1)
        raise KeyError
    assert used(store) == 1


def test_block_waits_for_other_writers_and_they_for_it(store: GoalStore) -> None:
    def write() -> None:
        for _ in range(50):
            with store.transaction() as tx:
                goal = tx.get("t")
                assert goal is not None
                charged = tx.charge("t", tokens=1).goal
                assert charged is not None
                assert charged.tokens_used == goal.tokens_used + 1
            store.charge("t", tokens=1)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert used(store) == 400


def test_block_whose_end_is_struck_is_undone_although_the_exception_is_kept(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback keeps every frame that the exception came through."""

    def struck(
        generator: object,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(blocks, "_end", struck)
    with pytest.raises(KeyboardInterrupt) as kept, store.transaction() as tx:
        tx.charge("t", tokens=1)
    charges_elsewhere(store)
    assert used(store) == 1
    assert kept.value.__traceback__ is not None


def test_block_whose_beginning_is_struck_leaves_no_lock_although_the_exception_is_kept(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = blocks.Block.__enter__

    def struck(block: blocks.Block[GoalRepository]) -> GoalRepository:
        enter(block)
        raise KeyboardInterrupt

    monkeypatch.setattr(blocks.Block, "__enter__", struck)
    with pytest.raises(KeyboardInterrupt) as kept, store.transaction() as tx:
        tx.charge("t", tokens=1)
    charges_elsewhere(store)
    assert kept.value.__traceback__ is not None
