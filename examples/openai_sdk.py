"""The OpenAI SDK on a budget of money: what a sub-agent spends is its parent's. Offline.

python examples/openai_sdk.py
"""

from __future__ import annotations

import itertools
import uuid

import httpx2
from openai import OpenAI

from goal_state import BudgetExceededError, GoalStore
from goal_state.integrations.openai import metered
from goal_state.prices import GenaiPrices


def provider(request: httpx2.Request) -> httpx2.Response:  # stands in for the real one
    response = {"id": uuid.uuid4().hex, "object": "response", "model": "gpt-4o", "output": []}
    response["usage"] = {"input_tokens": 900, "output_tokens": 400, "total_tokens": 1_300}
    return httpx2.Response(200, json=response, request=request)


http_client = httpx2.Client(transport=httpx2.MockTransport(provider))
with GoalStore.open(":memory:", prices=GenaiPrices()) as store:
    store.create("thread-1", "Ship the parser", cost_budget="0.03")
    openai = OpenAI(api_key="none", http_client=http_client)
    lead, critic = metered(openai, store), metered(openai, store, child="critic")
    try:
        with store.spending("thread-1"):
            for client in itertools.cycle((lead, critic)):
                client.responses.create(
                    model="gpt-4o", input="Go on. " * 400, max_output_tokens=500
                )
    except BudgetExceededError as refusal:
        print(f"Not sent: {refusal}")
    for goal in store.goals():
        print(f"{goal.thread_id:18}{goal.calls_used} calls{goal.cost_used:>9} USD")
