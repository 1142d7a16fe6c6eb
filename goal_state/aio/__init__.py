"""The store and the meter for asyncio: the same calls, awaited."""

from goal_state.aio.delivery import AsyncConsumer
from goal_state.aio.meter import AsyncGoalMeter
from goal_state.aio.store import AsyncGoalStore

__all__ = ["AsyncConsumer", "AsyncGoalMeter", "AsyncGoalStore"]
