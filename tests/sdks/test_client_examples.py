"""The examples of the metered clients run by themselves, and the service adds up under load."""

from __future__ import annotations

import asyncio
import runpy
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("openai") is None or find_spec("anthropic") is None or find_spec("fastapi") is None:
    pytest.skip("needs the agent SDKs: make test-sdks", allow_module_level=True)

import httpx2
from openai import AsyncOpenAI

from goal_state import AsyncGoalStore, Goal
from tests.processes import CHECKOUT, python
from tests.sdks.provider import Provider, Reply, TokenUsage

EXAMPLES = CHECKOUT / "examples"
_WITHOUT_NETWORK = """
import runpy, socket, sys, tempfile

def refuse(*_):
    raise AssertionError("the example reaches for the network")

socket.socket.connect = refuse
tempfile.tempdir = sys.argv[2]
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def said(name: str, folder: Path) -> list[str]:
    out = python(_WITHOUT_NETWORK, EXAMPLES / name, folder)
    assert list(folder.iterdir()) == []
    return [" ".join(line.split()) for line in out.splitlines()]


@pytest.mark.slow
def test_the_anthropic_example_stops_before_its_budget_is_overdrawn(tmp_path: Path) -> None:
    lines = said("anthropic_sdk.py", tmp_path)
    assert [line.removeprefix("One more rule works. ") for line in lines[:3]] == [
        "340 tokens",
        "680 tokens",
        "1,020 tokens",
    ]
    assert lines[3].startswith("Not sent: of the token_budget of thread 'thread-1', 1200, 1020")
    assert len(lines) == 4


@pytest.mark.slow
def test_the_openai_example_adds_a_sub_agents_cost_to_its_parents(tmp_path: Path) -> None:
    lines = said("openai_sdk.py", tmp_path)
    assert lines[0].startswith("Not sent: of the cost_budget of thread 'thread-1', 0.03, 0.025")
    assert lines[1:] == ["thread-1 4 calls 0.025 USD", "thread-1/critic 2 calls 0.0125 USD"]


@pytest.mark.slow
def test_the_service_runs_offline(tmp_path: Path) -> None:
    answers, users = said("fastapi_service.py", tmp_path)
    assert answers.split()[1] == "answers,"
    assert users.startswith("20 users, none above 4,000: ")


@pytest.mark.parametrize("token_budget", [100_000, 2_000], ids=["ample", "short"])
def test_the_service_charges_200_requests_at_once_to_20_goals_exactly(
    path: Path, token_budget: int
) -> None:
    def answer(body: Mapping[str, Any]) -> Reply:
        words = body["input"].split()  # "user-3 17"
        return Reply(
            TokenUsage(10 + int(words[1]), output_tokens=100),
            delay_seconds=int(words[1]) % 7 / 1_000,
        )

    provider = Provider(always=answer)
    service = runpy.run_path(str(EXAMPLES / "fastapi_service.py"))["service"]

    async def served() -> tuple[Counter[int], dict[str, Goal]]:
        models = provider.async_client()
        openai = AsyncOpenAI(api_key="none", http_client=models)
        app = service(path, openai, token_budget=token_budget)
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://service")
        async with app.router.lifespan_context(app), client, models:
            posts = (
                client.post(f"/users/user-{n % 20}/messages", params={"text": f"user-{n % 20} {n}"})
                for n in range(200)
            )
            statuses = Counter(each.status_code for each in await asyncio.gather(*posts))
            store: AsyncGoalStore = app.state.store
            goals = {goal.thread_id: goal async for goal in store.goals()}
            assert await store.holds() == []
            assert await store.verify() == []
            return statuses, goals

    statuses, goals = asyncio.run(served())
    assert statuses[200] + statuses[402] == 200
    assert (statuses[402] == 0) == (token_budget == 100_000)
    expected: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for asked in provider.requests:
        user, number = asked["input"].split()
        expected[user] += 110 + int(number)
        calls[user] += 1
    assert len(goals) == 20
    assert {user: goal.tokens_used for user, goal in goals.items()} == expected
    assert {user: goal.calls_used for user, goal in goals.items()} == calls
    assert sum(calls.values()) == len(provider.ledger) == statuses[200]
    assert all(goal.tokens_used <= token_budget for goal in goals.values())
    assert sum(goal.tokens_used for goal in goals.values()) == provider.tokens
