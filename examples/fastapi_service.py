"""A service whose users are held to their budgets: one store and one client for all requests at a time.

python examples/fastapi_service.py    (offline: 200 requests at once, of 20 users)
"""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from openai import AsyncOpenAI

from goal_state import AsyncGoalStore, BudgetExceededError
from goal_state.integrations.openai import metered


def service(database: Path, openai: AsyncOpenAI, *, token_budget: int) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncGoalStore.open(database) as app.state.store:
            app.state.client = metered(openai, app.state.store, output_tokens=500)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/users/{user}/messages")
    async def ask(user: str, text: str) -> str:
        await app.state.store.ensure(user, "Answer the user", token_budget=token_budget)
        with app.state.store.spending(user):
            response = await app.state.client.responses.create(model="gpt-4o", input=text)
        return response.id

    @app.exception_handler(BudgetExceededError)
    async def refuse(_: Request, refusal: BudgetExceededError) -> JSONResponse:
        return JSONResponse({"detail": str(refusal)}, status_code=402)

    return app


async def provider(request: httpx2.Request) -> httpx2.Response:  # stands in for the real one
    await asyncio.sleep(0.01)
    response = {"id": uuid.uuid4().hex, "object": "response", "model": "gpt-4o", "output": []}
    response["usage"] = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
    return httpx2.Response(200, json=response, request=request)


async def main(database: Path) -> None:
    models = httpx2.AsyncClient(transport=httpx2.MockTransport(provider))
    app = service(database, AsyncOpenAI(api_key="none", http_client=models), token_budget=4_000)
    served = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://service")
    async with app.router.lifespan_context(app), served, models:
        posts = (served.post(f"/users/user-{n % 20}/messages?text=Go+on") for n in range(200))
        statuses = [response.status_code for response in await asyncio.gather(*posts)]
        goals = [goal async for goal in app.state.store.goals()]
        used = sum(goal.tokens_used for goal in goals)
        print(f"{statuses.count(200)} answers, {statuses.count(402)} refusals: {used:,} tokens")
        print(f"{len(goals)} users, none above 4,000: {max(goal.tokens_used for goal in goals):,}")
        assert used == statuses.count(200) * 150
        assert await app.state.store.verify() == []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder, "goals.db")))
