"""LangChain and LangGraph: model calls are held to the budgets of a goal, and paid by what they used.

    agent = create_agent(model, tools, middleware=[BudgetMiddleware(store)])
    agent.invoke(messages, {"configurable": {"thread_id": "thread-1"}})

For graphs and chains that call models by themselves there is a callback. It cannot cap an output, and is not
told of every cancellation:

    graph.invoke(state, {"callbacks": [BudgetCallback(store)], "configurable": {"thread_id": "thread-1"}})

With both, a call is paid once: the callback leaves alone what the middleware pays for.
"""

from goal_state.integrations.langchain.callback import BudgetCallback
from goal_state.integrations.langchain.calls import GraphBudgetExceededError
from goal_state.integrations.langchain.middleware import BudgetMiddleware

__all__ = ["BudgetCallback", "BudgetMiddleware", "GraphBudgetExceededError"]
