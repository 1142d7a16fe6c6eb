"""A writer with a searcher for its tool, agents of the OpenAI Agents SDK, within one budget."""

import asyncio

from agents import Agent, Runner, Usage, set_tracing_disabled
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call

from goal_state import AsyncGoalStore
from goal_state.integrations.openai_agents import RunBudgetExceededError, metered


def answer(call: ModelCall) -> ModelStep:  # a model would: metered("gpt-5.2", store)
    output = assistant_message("Prices fell by a third.")
    if call.tools and "output" not in call.input[-1]:
        output = function_call("search", '{"input": "prices"}', call_id="call-1")
    used = min(900, call.model_settings.max_tokens or 900)
    return ModelStep([output], usage=Usage(requests=1, input_tokens=15, output_tokens=used))


async def main() -> None:
    async with AsyncGoalStore.open(":memory:") as store:
        await store.create("report", "Write the report", token_budget=4_500)
        model = ScriptedModel([ModelStep.respond(answer)] * 20)
        mine = metered(model, store, child="searcher")
        searcher = Agent("searcher", instructions="Find out what is asked.", model=mine)
        search = searcher.as_tool("search", "Finds out what is asked.")
        writer = Agent("writer", model=metered(model, store), tools=[search])
        with store.spending("report"):
            try:
                for turn in range(1, 9):
                    print(f"turn {turn}:", (await Runner.run(writer, "Go on")).final_output)
            except RunBudgetExceededError as error:
                print(f"turn {turn}: {error}")
        async for goal in store.goals():
            print(f"{goal.thread_id}: {goal.tokens_used:,} tokens in {goal.calls_used} calls")


set_tracing_disabled(True)
asyncio.run(main())
