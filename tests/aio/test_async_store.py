"""AsyncGoalStore: closing, loops, threads, forks, listeners, consumers; what it never does to its loop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
import time
from collections.abc import Sequence
from contextvars import Context
from pathlib import Path

import pytest

from goal_state import (
    AsyncGoalStore,
    GoalEvent,
    GoalStore,
    InvalidValueError,
    NestedCallError,
    StoreClosedError,
    TransactionError,
)
from goal_state.aio import lane
from goal_state.aio.store import Opening
from goal_state.domain.requests import Charge
from goal_state.operations.goal_operations import GoalOperations
from goal_state.storage.repository import GoalRepository
from tests.processes import PATIENCE_SECONDS

TASKS = 1_000


def opened(database: Path) -> Opening:
    return AsyncGoalStore.open(database, durability="normal")


def own_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("goal-state")]


def until_no_thread_is_left(name: str = "") -> None:
    """Waits until no thread is left that is named so."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while (left := [one for one in own_threads() if name in one]) and time.monotonic() < ends:
        time.sleep(0.01)
    assert left == []


def test_every_public_name_of_the_store_is_one_of_the_async_store() -> None:
    names = {name for name in dir(GoalStore) if not name.startswith("_")}
    assert names <= set(dir(AsyncGoalStore)) | {"work_of", "carry_out_together"}


def test_each_call_is_a_coroutine_function_with_the_arguments_and_words_of_the_stores() -> None:
    for name, function in inspect.getmembers(GoalOperations, inspect.isfunction):
        if name.startswith("_") or name in {"apply", "reserve"}:
            continue
        awaited = getattr(AsyncGoalStore, name)
        assert inspect.iscoroutinefunction(awaited), name
        assert awaited.__doc__ == function.__doc__
        assert inspect.signature(awaited) == inspect.signature(function)


def test_calls_that_wait_together_are_committed_together_and_wake_their_loop_once(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with opened(database) as store:
            await store.create("t", "Ship")
            groups: list[int] = []
            wake_ups: list[object] = []
            loop = asyncio.get_running_loop()
            carry_out, wake_up = store._store._backend.write_together, loop.call_soon_threadsafe
            monkeypatch.setattr(
                store._store._backend,
                "write_together",
                lambda works: (groups.append(len(works)), carry_out(works))[1],
            )
            monkeypatch.setattr(
                loop,
                "call_soon_threadsafe",
                lambda *call: (wake_ups.append(call), wake_up(*call))[1],
            )
            with store._store.transaction():  # so that all of them wait
                first = asyncio.create_task(store.charge("t", tokens=1))
                while not groups:  # noqa: ASYNC110 - another thread's
                    await asyncio.sleep(0)
                rest = [asyncio.create_task(store.charge("t", tokens=1)) for _ in range(TASKS)]
                await asyncio.sleep(0)
            await asyncio.gather(first, *rest)
            assert groups == [1, 256, 256, 256, TASKS - 3 * 256]
            assert len(wake_ups) == len(groups)

    asyncio.run(run())


def test_calls_are_carried_out_in_the_order_in_which_they_were_made(database: Path) -> None:
    async def run() -> None:
        async with opened(database) as store:
            await store.create("t", "Ship", call_budget=10**6)
            await asyncio.gather(*(store.charge("t", tokens=n) for n in range(1, 600)))
            charged = [e.tokens_delta async for e in store.events() if e.kind == "usage_accounted"]
            assert charged == list(range(1, 600))

    asyncio.run(run())


def test_a_refused_call_leaves_the_others_of_its_group_alone(database: Path) -> None:
    async def run() -> None:
        async with opened(database) as store:
            await store.create("t", "Ship", token_budget=50)
            results = await asyncio.gather(
                *(store.reserve("t", tokens=1)._reserve() for _ in range(200)),
                store.charge("t", tokens=0),
                return_exceptions=True,
            )
            assert sum(not isinstance(each, BaseException) for each in results) == 51
            assert len(await store.holds("t")) == 50

    asyncio.run(run())


def test_a_request_that_breaks_hurts_its_own_caller_alone(database: Path) -> None:
    async def run() -> None:
        def broken(repository: GoalRepository) -> None:
            raise ZeroDivisionError

        async with opened(database) as store:
            await store.create("t", "Ship")
            *charged, failed = await asyncio.gather(
                *(store.charge("t", tokens=1) for _ in range(20)),
                store.carry_out(broken),
                return_exceptions=True,
            )
            assert isinstance(failed, ZeroDivisionError)
            assert [type(each).__name__ for each in charged] == ["Accounting"] * 20
            goal = await store.get("t")
            assert goal is not None
            assert goal.tokens_used == 20

    asyncio.run(run())


def test_the_loop_goes_on_while_another_store_holds_the_write_lock(database: Path) -> None:
    async def run() -> None:
        async with opened(database) as store:
            await store.create("t", "Ship")
            with GoalStore.open(database, durability="normal") as other, other.transaction():
                charge = asyncio.create_task(store.charge("t", tokens=1))
                for _ in range(20):
                    await asyncio.sleep(0.001)
                    assert (await store.get("t")) is not None
                assert not charge.done()
            await charge

    asyncio.run(run())


def test_closing_drains_a_thousand_calls_and_refuses_later_ones(database: Path) -> None:
    async def run() -> None:
        store = await opened(database)
        await store.create("t", "Ship")
        charges = [asyncio.create_task(store.charge("t", tokens=1)) for _ in range(TASKS)]
        await asyncio.sleep(0)
        await asyncio.gather(store.close(), store.close())
        with pytest.raises(StoreClosedError):
            await store.charge("t", tokens=1)
        with pytest.raises(StoreClosedError):
            store.events()
        assert all(each.applied for each in await asyncio.gather(*charges))

    asyncio.run(run())
    until_no_thread_is_left()
    with GoalStore.open(database) as store:
        goal = store.get("t")
        assert goal is not None
        assert goal.tokens_used == TASKS


def test_closing_waits_for_a_transaction_that_is_open(database: Path) -> None:
    async def run() -> None:
        store = await opened(database)
        await store.create("t", "Ship")
        async with store.transaction() as tx:
            closing = asyncio.create_task(store.close(), context=Context())
            await asyncio.sleep(0.01)
            await tx.charge("t", tokens=5)
            assert not closing.done()
        await closing
        with pytest.raises(TransactionError):
            await tx.charge("t", tokens=5)

    asyncio.run(run())
    with GoalStore.open(database) as store:
        assert [goal.tokens_used for goal in store.goals()] == [5]


def test_a_call_of_the_store_inside_its_transaction_is_refused_at_once(database: Path) -> None:
    async def run() -> None:
        async with opened(database) as store:
            async with store.transaction() as tx:
                await tx.create("t", "Ship")
                for call in (store.get("t"), store.charge("t", tokens=1), store.close()):
                    with pytest.raises(NestedCallError):
                        await call
                with pytest.raises(NestedCallError):
                    await asyncio.create_task(store.get("t"))
            outlived = await store.get("t")
            assert outlived is not None

    asyncio.run(run())


def test_a_block_that_fails_is_undone(database: Path) -> None:
    async def run() -> None:
        async with opened(database) as store:
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async with store.transaction() as tx:
                    await tx.create("t", "Ship")
                    raise ZeroDivisionError
            assert await store.count() == 0
            async with store.transaction() as tx:
                await tx.create("t", "Ship")
                assert (await tx.get("t")) is not None
                async with tx.reserve("t", tokens=5) as hold:
                    await hold.settle(tokens=3)
            assert [goal.tokens_used async for goal in store.goals()] == [3]

    asyncio.run(run())


def test_threads_that_have_nothing_to_do_end_and_come_back_with_the_next_call(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "_IDLE_SECONDS", 0.01)

    async def use(store: AsyncGoalStore) -> None:
        for number in range(3):
            await store.charge("t", tokens=1)
            goal = await store.get("t")
            assert goal is not None
            assert goal.tokens_used == 1 + number
            await asyncio.to_thread(until_no_thread_is_left)
        await asyncio.gather(*(store.charge("t", tokens=1) for _ in range(500)))

    with GoalStore.open(database, durability="normal") as store:
        store.create("t", "Ship")
        asyncio.run(use(AsyncGoalStore(store)))
        until_no_thread_is_left()
        goal = store.get("t")
        assert goal is not None
        assert goal.tokens_used == 503


def test_several_loops_in_several_threads_share_a_store(database: Path) -> None:
    store = asyncio.run(open_now(database))

    async def work() -> None:
        await asyncio.gather(*(store.charge("t", tokens=1) for _ in range(100)))
        for _ in range(5):
            async with store.transaction() as tx:
                await tx.charge("t", tokens=1)

    async def end() -> None:
        goal = await store.get("t")
        assert goal is not None
        assert goal.tokens_used == 4 * 105
        assert await store.verify() == []
        await store.close()

    asyncio.run(make(store))
    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(end())


async def open_now(database: Path) -> AsyncGoalStore:
    return await opened(database)


async def make(store: AsyncGoalStore) -> None:
    await store.create("t", "Ship")


def test_a_loop_that_ended_in_the_midst_leaves_nothing_behind(database: Path) -> None:
    async def run() -> None:
        store = await opened(database)
        await store.create("t", "Ship")

        async def held() -> None:
            async with store.reserve("t", tokens=7):
                await asyncio.Event().wait()

        async def changing() -> None:
            async with store.transaction() as tx:
                await tx.charge("t", tokens=1)
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(held()) for _ in range(5)]
        while len(await store.holds("t")) < 5:  # noqa: ASYNC110 - the store's
            await asyncio.sleep(0.001)
        tasks.append(asyncio.create_task(changing()))
        tasks += [asyncio.create_task(store.charge("t", tokens=1)) for _ in range(50)]
        await asyncio.sleep(0.01)
        # And it returns: the runner cancels them all, and closes the loop.

    asyncio.run(run())
    gc.collect()
    until_no_thread_is_left()
    with GoalStore.open(database) as store:
        goal = store.get("t")
        assert goal is not None
        assert goal.live_holds == 0
        assert goal.estimated_tokens == 5 * 7
        assert store.verify() == []


def test_a_loop_that_was_closed_with_its_tasks_gives_back_what_they_were_granted(
    database: Path,
) -> None:
    loop = asyncio.new_event_loop()
    store = loop.run_until_complete(open_now(database))
    loop.run_until_complete(make(store))
    with store._store.transaction():
        task = loop.create_task(store.reserve("t", tokens=7)._reserve())
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
    ends = time.monotonic() + PATIENCE_SECONDS
    while store._store.holds("t") == [] and time.monotonic() < ends - PATIENCE_SECONDS + 0.2:
        time.sleep(0.01)

    async def end() -> None:
        await store.charge("t", tokens=1)
        assert await store.holds("t") == []
        await store.close()

    task._log_destroy_pending = False  # type: ignore[attr-defined]
    asyncio.run(end())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_goes_on_with_the_store_in_a_loop_of_its_own(database: Path) -> None:
    store = asyncio.run(open_now(database))
    asyncio.run(make(store))

    async def work() -> None:
        await asyncio.gather(*(store.charge("t", tokens=1) for _ in range(100)))
        await store.get("t")

    async def parent() -> int:
        charging = asyncio.create_task(work())
        await asyncio.sleep(0)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                thread = threading.Thread(target=lambda: asyncio.run(work()))
                thread.start()
                thread.join(PATIENCE_SECONDS)
                status = int(thread.is_alive())
            finally:
                os._exit(status)
        await charging
        _, status = await asyncio.get_running_loop().run_in_executor(None, os.waitpid, child, 0)
        goal = await store.get("t")
        await store.close()
        assert goal is not None
        assert goal.tokens_used == 200
        return os.waitstatus_to_exitcode(status)

    assert asyncio.run(parent()) == 0


def test_listeners_are_called_on_the_loop_in_order_and_before_the_call_returns(
    database: Path,
) -> None:
    async def run() -> None:
        async with opened(database) as store:
            heard: list[GoalEvent] = []
            threads: set[threading.Thread] = set()

            def listen(event: GoalEvent) -> None:
                threads.add(threading.current_thread())
                heard.append(event)
                if len(heard) == 3:
                    raise ZeroDivisionError

            with await store.subscribe(listen, kinds=["created", "usage_accounted"]):
                await store.create("t", "Ship")
                assert [event.kind for event in heard] == ["created"]
                await asyncio.gather(*(store.charge("t", tokens=1) for _ in range(300)))
                assert len(heard) == 301
            await store.charge("t", tokens=1)
            assert [event.position for event in heard] == list(range(1, 302))
            assert threads == {threading.main_thread()}
            with pytest.raises(InvalidValueError):
                await store.subscribe(open_now)  # type: ignore[arg-type]
            with pytest.raises(InvalidValueError):
                await store.subscribe(listen, kinds=["no such"])

    asyncio.run(run())


def test_a_consumer_awaits_its_sink_on_the_loop_and_delivers_again_what_it_refused(
    database: Path,
) -> None:
    async def run() -> None:
        async with opened(database) as store:
            await store.create("t", "Ship")
            taken: list[int] = []
            calls = 0

            async def sink(events: Sequence[GoalEvent]) -> None:
                nonlocal calls
                calls += 1
                await asyncio.sleep(0)
                if calls == 2:
                    raise ConnectionError
                assert (await store.get("t")) is not None
                taken.extend(event.position for event in events)

            async with await store.consume("c", sink, batch_size=10) as consumer:
                await asyncio.gather(*(store.charge("t", tokens=1) for _ in range(30)))
                assert await consumer.drain(PATIENCE_SECONDS)
                assert consumer.position == 31
            assert taken == list(range(1, 32))
            with pytest.raises(InvalidValueError):
                await store.consume("c", sink, batch_size=0)

    asyncio.run(run())


def test_a_consumer_ends_with_its_loop(database: Path) -> None:
    async def run() -> AsyncGoalStore:
        store = await opened(database)

        async def sink(events: Sequence[GoalEvent]) -> None:
            await asyncio.Event().wait()

        await store.consume("consumer", sink)
        await store.create("t", "Ship")
        await asyncio.sleep(0.05)
        assert any("consumer" in name for name in own_threads())
        return store

    store = asyncio.run(run())
    until_no_thread_is_left("consumer")
    asyncio.run(store.close())
    until_no_thread_is_left()


def test_the_whole_store_is_copied_restored_exported_and_pruned(
    database: Path, tmp_path: Path
) -> None:
    async def run() -> None:
        async with opened(database) as store:
            await store.apply(Charge("t", tokens=1))
            await store.create("t", "Ship")
            await store.backup(tmp_path / "copy.db")
            await store.charge("t", tokens=5)
            lines = [line async for line in store.export_lines()]
            await store.restore(tmp_path / "copy.db")
            goal = await store.get("t")
            assert goal is not None
            assert goal.tokens_used == 0
        async with AsyncGoalStore.open(tmp_path / "new.db") as new:
            assert await new.import_lines(lines) > 0
            assert [goal.tokens_used async for goal in new.goals()] == [5]

    asyncio.run(run())
