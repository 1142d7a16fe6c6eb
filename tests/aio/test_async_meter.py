"""AsyncGoalMeter: what is true of a meter is true where it is awaited; and tasks that are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from goal_state import AsyncGoalMeter, AsyncGoalStore, GoalMeter, TurnError
from goal_state.testing.clock import Clock
from tests.aio.cancelling import cancelled, cancelled_everywhere
from tests.aio.driven import Driven
from tests.meter import test_meter
from tests.meter.figures import THREAD


class DrivenMeter(Driven):
    @property
    def goal(self) -> Any:
        return self._result(self._target.goal)

    @property
    def remaining_tokens(self) -> Any:
        return self._result(self._target.remaining_tokens)

    def turn(self, *args: Any, **options: Any) -> Any:
        return Driven(self._target.turn(*args, **options), self._runner)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_meter(database: Path, clock: Clock) -> Iterator[Callable[..., GoalMeter]]:
    with asyncio.Runner() as runner:

        async def opened() -> AsyncGoalStore:
            return await AsyncGoalStore.open(database, durability="normal")

        store = runner.run(opened())

        def make(*, count_idle_time: bool = False) -> GoalMeter:
            meter = AsyncGoalMeter(store, THREAD, count_idle_time=count_idle_time, clock_ns=clock)
            return cast(GoalMeter, DrivenMeter(meter, runner))

        yield make
        runner.run(store.close())


@pytest.fixture
def meter(make_meter: Callable[..., GoalMeter]) -> GoalMeter:
    return make_meter()


@pytest.fixture
def running_meter(store: Any, meter: GoalMeter) -> GoalMeter:
    store.create(THREAD, "work")
    meter.start_turn("turn-1")
    return meter


# It calls methods of the class `GoalMeter`, which no adapter stands in for.
NOT_DRIVEN = {"test_a_report_needs_a_turn"}

for _name, _test in vars(test_meter).items():
    if _name.startswith("test_") and _name not in NOT_DRIVEN:
        globals()[_name] = pytest.mark.slow(_test)


def test_a_turn_that_is_cancelled_at_any_await_is_over_and_has_charged_each_response_once(
    database: Path,
) -> None:
    async def turn(meter: AsyncGoalMeter) -> None:
        async with meter.turn("turn-1"):
            await meter.charge(tokens=10, idempotency_key="r")

    async def run() -> None:
        async with AsyncGoalStore.open(database, durability="normal") as store:
            for at, moment, times in cancelled_everywhere():
                thread_id = f"{at} {moment} {times}"
                await store.create(thread_id, "Ship", token_budget=1_000)
                meter = AsyncGoalMeter(store, thread_id)
                has_waited = await cancelled(turn(meter), at, moment, times=times)
                assert meter.turn_id is None
                await turn(meter)
                goal = await meter.goal()
                assert goal is not None
                assert goal.tokens_used == 10
                if not has_waited:
                    break
            assert await store.verify() == []

    asyncio.run(run())


def test_a_report_needs_a_turn(database: Path) -> None:
    async def run() -> None:
        async with AsyncGoalStore.open(database, durability="normal") as store:
            meter = AsyncGoalMeter(store, "t")
            for report in (meter.flush, meter.finish_turn, meter.abort_turn, meter.charge):
                with pytest.raises(TurnError, match="no turn is running"):
                    await report()

    asyncio.run(run())


def test_tasks_that_share_a_meter_take_turns_and_lose_nothing(database: Path) -> None:
    async def run() -> None:
        async with AsyncGoalStore.open(database, durability="normal") as store:
            await store.create("t", "Ship")
            meter = AsyncGoalMeter(store, "t")
            async with meter.turn("turn-1"):
                await asyncio.gather(*(meter.charge(tokens=1) for _ in range(50)))
            goal = await meter.goal()
            assert goal is not None
            assert goal.tokens_used == 50

    asyncio.run(run())
