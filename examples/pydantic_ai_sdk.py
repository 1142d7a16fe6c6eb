"""An agent of Pydantic AI that a goal pays for: its calls are held first, and stop at the budget.

python examples/pydantic_ai_sdk.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic_ai import Agent, UsageLimitExceeded
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from goal_state import GoalStore
from goal_state.integrations.pydantic_ai import Budget


def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    """Stands for a model: it searches for ever."""
    usage = RequestUsage(input_tokens=450 * len(messages), output_tokens=50)
    return ModelResponse([ToolCallPart("search", {"query": "SQLite"})], usage=usage)


with tempfile.TemporaryDirectory() as folder, GoalStore.open(Path(folder, "goals.db")) as store:
    store.create("thread-1", "Find a source", token_budget=20_000)
    agent = Agent(FunctionModel(answer), capabilities=[Budget(store)])
    agent.tool_plain(lambda query: f"nothing about {query} " * 200, name="search")
    try:
        agent.run_sync("Find a source", conversation_id="thread-1")
    except UsageLimitExceeded as refusal:
        print(refusal)
    goal = store.get("thread-1")
    assert goal is not None
    print(f"# {goal.calls_used} calls: {goal.tokens_used:,} of 20,000 tokens")
    assert goal.tokens_used <= 20_000
