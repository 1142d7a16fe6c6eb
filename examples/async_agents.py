"""Sixty-four agents of one event loop share a budget: their calls share commits, and none goes above it.

python examples/async_agents.py
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from goal_state import AsyncGoalStore, BudgetExceededError


async def agent(store: AsyncGoalStore, name: str) -> None:
    await store.create(name, "Find a source", parent="team")
    for call in range(20):
        try:
            async with store.reserve(name, tokens=1_000) as hold:
                await asyncio.sleep(0.005)  # the model answers
                await hold.settle(tokens=900, response_id=f"{name}-{call}")
        except BudgetExceededError:
            return


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncGoalStore.open(Path(folder, "goals.db")) as store:
            await store.create("team", "Write the report", token_budget=500_000)
            await asyncio.gather(*(agent(store, f"agent-{number}") for number in range(64)))
            team = await store.get("team")
            assert team is not None
            print(f"# 64 agents, {team.calls_used} calls: {team.tokens_used:,} of 500,000 tokens")
            assert team.tokens_used <= 500_000
            assert await store.verify() == []


asyncio.run(main())
