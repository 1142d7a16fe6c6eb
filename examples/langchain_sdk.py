"""An agent of LangChain that a goal pays for: its calls are held first, and stop at the budget.

python examples/langchain_sdk.py
"""

from __future__ import annotations

import tempfile
from itertools import repeat
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from goal_state import BudgetExceededError, GoalStore
from goal_state.integrations.langchain import BudgetMiddleware

question = {"messages": [("user", "Which of these is a source? " + "Page after page. " * 600)]}
config = {"configurable": {"thread_id": "thread-1"}}
usage = {"input_tokens": 3_000, "output_tokens": 50, "total_tokens": 3_050}

with tempfile.TemporaryDirectory() as folder, GoalStore.open(Path(folder, "goals.db")) as store:
    store.create("thread-1", "Find a source", token_budget=20_000)
    model = GenericFakeChatModel(messages=repeat(AIMessage("None.", usage_metadata=usage)))
    agent = create_agent(model, middleware=[BudgetMiddleware(store)])
    try:
        while True:
            agent.invoke(question, config)
    except BudgetExceededError as refusal:
        print(refusal)
    goal = store.get("thread-1")
    print(f"# {goal.calls_used} calls: {goal.tokens_used:,} of 20,000 tokens")
    assert goal.tokens_used <= 20_000
