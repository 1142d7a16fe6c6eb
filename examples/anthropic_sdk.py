"""The Anthropic SDK on a budget: a message for which nothing is left is not sent. Offline.

python examples/anthropic_sdk.py
"""

from __future__ import annotations

import uuid

import httpx2
from anthropic import Anthropic

from goal_state import BudgetExceededError, GoalStore
from goal_state.integrations.anthropic import metered


def provider(request: httpx2.Request) -> httpx2.Response:  # stands in for the real one
    message = {"id": uuid.uuid4().hex, "type": "message", "role": "assistant", "model": "m"}
    message["content"] = [{"type": "text", "text": "One more rule works."}]
    message["usage"] = {"input_tokens": 40, "cache_read_input_tokens": 800, "output_tokens": 300}
    return httpx2.Response(200, json=message, request=request)


http_client = httpx2.Client(transport=httpx2.MockTransport(provider))
with GoalStore.open(":memory:") as store:
    goal = store.create("thread-1", "Ship the parser", token_budget=1_200)
    client = metered(Anthropic(api_key="none", http_client=http_client), store)
    try:
        with store.spending("thread-1"):
            while goal is not None and goal.status == "active":
                message = client.messages.create(
                    model="claude-sonnet-4-6",
                    max_tokens=500,
                    messages=[{"role": "user", "content": "Go on."}],
                )
                goal = store.get("thread-1")
                print(f"{message.content[0].text:24}{goal.tokens_used:>6,} tokens")
    except BudgetExceededError as refusal:
        print(f"Not sent: {refusal}")
