"""Tasks that are cancelled: each call was carried out whole or not at all, and everybody else goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from goal_state import AsyncGoalStore, GoalStore, StoreClosedError
from tests.aio.cancelling import cancelled, cancelled_everywhere

BUDGET = 1_000
USED = 10


async def charge(store: AsyncGoalStore, thread_id: str) -> None:
    await store.charge(thread_id, tokens=USED)


async def transact(store: AsyncGoalStore, thread_id: str) -> None:
    await store.transact(lambda repository: repository.charge(thread_id, tokens=USED))


async def transaction(store: AsyncGoalStore, thread_id: str) -> None:
    async with store.transaction() as tx:
        await tx.charge(thread_id, tokens=USED - 1)
        await tx.charge(thread_id, tokens=1)


async def settled_block(store: AsyncGoalStore, thread_id: str) -> None:
    async with store.reserve(thread_id, tokens=USED) as hold:
        await hold.settle(tokens=USED)


async def cut_block(store: AsyncGoalStore, thread_id: str) -> None:
    async with store.reserve(thread_id, tokens=USED):
        await asyncio.sleep(0)


async def observed_block(store: AsyncGoalStore, thread_id: str) -> None:
    async with store.reserve(thread_id, tokens=2 * USED) as hold:
        await hold.observed(tokens=1)
        await hold.observed(tokens=USED)


async def reads(store: AsyncGoalStore, thread_id: str) -> None:
    await store.get(thread_id)
    assert [event.kind async for event in store.events(thread_id=thread_id)] == ["created"]
    assert [goal async for goal in store.goals()]
    assert await store.verify() == []
    assert [line async for line in store.export_lines()]


async def subscribe(store: AsyncGoalStore, thread_id: str) -> None:
    with await store.subscribe(print, thread_id=thread_id):
        pass


CALLS: dict[str, Callable[[AsyncGoalStore, str], Awaitable[None]]] = {
    "charge": charge,
    "transact": transact,
    "transaction": transaction,
    "settled block": settled_block,
    "cut block": cut_block,
    "reads": reads,
    "subscribe": subscribe,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_cancelled_at_any_await_was_made_whole_or_not_at_all(
    name: str, database: Path
) -> None:
    async def run() -> None:
        async with AsyncGoalStore.open(database, durability="normal") as store:
            for at, moment, times in cancelled_everywhere():
                thread_id = f"{at} {moment} {times}"
                await store.create(thread_id, "Ship", token_budget=BUDGET)
                work = CALLS[name](store, thread_id)
                assert asyncio.iscoroutine(work)
                has_waited = await cancelled(work, at, moment, times=times)
                # What was made in its place comes behind it.
                await store.charge(thread_id, tokens=1)

                goal = await store.get(thread_id)
                assert goal is not None
                assert goal.tokens_used in (1, 1 + USED)
                assert await store.holds(thread_id) == []
                assert goal.live_holds == 0
                if not has_waited:
                    break
            assert await store.verify() == []

    asyncio.run(run())


def test_a_reserve_that_is_cancelled_gives_back_what_it_was_granted(database: Path) -> None:
    async def run() -> None:
        async with AsyncGoalStore.open(database, durability="normal") as store:
            for at, moment, times in cancelled_everywhere():
                thread_id = f"{at} {moment} {times}"
                await store.create(thread_id, "Ship", token_budget=BUDGET)
                has_waited = await cancelled(
                    held(store, thread_id, hold := []), at, moment, times=times
                )
                await store.charge(thread_id, tokens=1)
                assert len(await store.holds(thread_id)) == len(hold), (at, moment, times)
                goal = await store.get(thread_id)
                assert goal is not None
                assert goal.tokens_used == 1, "a hold that is given back charges nothing"
                if not has_waited:
                    assert len(hold) == 1
                    break

    async def held(store: AsyncGoalStore, thread_id: str, hold: list[Any]) -> None:
        hold.append(await store.reserve(thread_id, tokens=USED))

    asyncio.run(run())


def test_a_hold_that_is_found_again_by_its_key_survives_a_cancelled_reserve(database: Path) -> None:
    async def run() -> None:
        async with AsyncGoalStore.open(database, durability="normal") as store:
            await store.create("t", "Ship", token_budget=BUDGET)
            hold = await store.reserve("t", tokens=USED, key="k")
            for at, moment, times in cancelled_everywhere():
                again = store.reserve("t", tokens=USED, key="k").__aenter__()
                has_waited = await cancelled(again, at, moment, times=times)
                assert [each.hold_id for each in await store.holds("t")] == [hold.hold_id]
                if not has_waited:
                    break

    asyncio.run(run())


def test_a_block_whose_hold_was_observed_charges_that_at_least_when_it_is_cancelled(
    database: Path,
) -> None:
    async def run() -> None:
        async with AsyncGoalStore.open(database, durability="normal") as store:
            for at, moment, times in cancelled_everywhere():
                thread_id = f"{at} {moment} {times}"
                await store.create(thread_id, "Ship", token_budget=BUDGET)
                has_waited = await cancelled(
                    observed_block(store, thread_id), at, moment, times=times
                )
                await store.charge(thread_id)
                goal = await store.get(thread_id)
                assert goal is not None
                assert goal.live_holds == 0
                assert goal.tokens_used in (0, 1, USED, 2 * USED)
                if not has_waited:
                    assert goal.tokens_used == USED
                    break

    asyncio.run(run())


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_cancellation_leaves_a_block_once_its_hold_has_ended(database: Path, times: int) -> None:
    async def block(store: AsyncGoalStore, is_held: asyncio.Event) -> None:
        async with store.reserve("t", tokens=USED):
            is_held.set()
            await asyncio.Event().wait()

    async def run() -> None:
        async with AsyncGoalStore.open(database, durability="normal") as store:
            with GoalStore.open(database, durability="normal") as other:
                other.create("t", "Ship")
                is_held = asyncio.Event()
                task = asyncio.create_task(block(store, is_held))
                await is_held.wait()
                with other.transaction():  # so that the hold cannot end yet
                    for _ in range(times):
                        task.cancel()
                        await asyncio.sleep(0.01)
                    assert not task.done()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert other.holds("t") == []

    asyncio.run(run())


def test_a_settlement_is_made_although_its_caller_is_cancelled_before_it_was_begun(
    database: Path,
) -> None:
    async def run() -> None:
        async with AsyncGoalStore.open(database, durability="normal") as store:
            await store.create("t", "Ship", token_budget=BUDGET)

            async def block() -> None:
                async with store.reserve("t", tokens=500) as hold:
                    asyncio.get_running_loop().call_soon(task.cancel)
                    await hold.settle(tokens=USED)

            task = asyncio.create_task(block())
            with pytest.raises(asyncio.CancelledError):
                await task
            goal = await store.get("t")
            assert goal is not None
            assert (goal.tokens_used, goal.estimated_tokens) == (USED, 0)

    asyncio.run(run())


def test_closing_and_opening_that_are_cancelled_leave_a_store_closed(database: Path) -> None:
    async def opened() -> None:
        async with AsyncGoalStore.open(database, durability="normal"):
            pass

    async def run() -> None:
        for at, moment, times in cancelled_everywhere():
            if not await cancelled(opened(), at, moment, times=times):
                break
        for at, moment, times in cancelled_everywhere():
            store = await AsyncGoalStore.open(database, durability="normal")
            has_waited = await cancelled(store.close(), at, moment, times=times)
            with pytest.raises(StoreClosedError):
                await store.get("t")
            assert "closed" in repr(store)
            if not has_waited:
                break

    asyncio.run(run())


def test_others_in_the_group_of_a_cancelled_call_are_carried_out(database: Path) -> None:
    async def run() -> None:
        async with AsyncGoalStore.open(database, durability="normal") as store:
            await store.create("t", "Ship")
            tasks = [asyncio.create_task(store.charge("t", tokens=1)) for _ in range(300)]
            await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in results[::3])
            done = [each for each in results if not isinstance(each, BaseException)]
            assert len(done) == 200
            goal = await store.get("t")
            assert goal is not None
            assert 200 <= goal.tokens_used <= 300
            assert await store.verify() == []

    asyncio.run(run())
