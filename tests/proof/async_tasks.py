"""Tasks of two loops in two threads charge one store, and say of each charge that it was acknowledged.

python -m tests.proof.async_tasks DATABASE NAME TASKS CHARGES

Each task makes so many charges, or goes on for ever where CHARGES is 0: until the process is killed.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from itertools import count
from pathlib import Path

from goal_state import AsyncGoalStore

__all__ = ["HOLDERS", "LOOPS"]

LOOPS = 2
HOLDERS = 10


async def opened(database: Path) -> AsyncGoalStore:
    return await AsyncGoalStore.open(database, durability="normal")


def main(database: Path, name: str, tasks: int, charges: int) -> None:
    store = asyncio.run(opened(database))
    lines = threading.Lock()

    async def charge(loop: int, task: int) -> None:
        for turn in range(charges) if charges else count():
            key, tokens = f"{name}/{loop}/{task}/{turn}", 1 + turn % 3
            await store.charge("t", tokens=tokens, idempotency_key=key)
            with lines:
                sys.stdout.write(f"{key} {tokens}\n")
                sys.stdout.flush()

    async def hold() -> None:
        for _ in range(charges) if charges else count():
            async with store.reserve("held", tokens=7):
                await asyncio.sleep(0)

    async def run(loop: int) -> None:
        await asyncio.gather(
            *(charge(loop, task) for task in range(tasks)), *(hold() for _ in range(HOLDERS))
        )

    threads = [threading.Thread(target=lambda n=n: asyncio.run(run(n))) for n in range(LOOPS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(store.close())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
