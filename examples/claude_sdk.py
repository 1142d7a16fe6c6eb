"""A turn of the Claude Agent SDK, told to stop between two tools before its budget is overdrawn."""

import asyncio

from claude_agent_sdk import AssistantMessage
from claude_program import Program, tool_use  # in place of the program that the SDK runs

from goal_state import AsyncGoalStore
from goal_state.integrations.claude_agent import TurnBudgetExceededError, query


async def turn(program: Program) -> None:
    for number in range(1, 20):
        call = tool_use(f"tool-{number}", "Read", file=f"chapter-{number}.md")
        program.responds(f"msg_{number}", call, used=(400 * number, 600))
        if not await program.tool(call["id"], "Read"):
            break
        program.returns(call["id"])
    program.ends()


async def main() -> None:
    async with AsyncGoalStore.open(":memory:") as store:
        await store.create("report", "Write the report", token_budget=8_000)
        messages = query(prompt="Go", store=store, thread_id="report", transport=Program(turn))
        try:
            async for message in messages:
                if isinstance(message, AssistantMessage):
                    print(
                        f"{message.content[0].input['file']}: {message.usage['input_tokens']} + 600"
                    )
        except TurnBudgetExceededError as error:
            print(f"stopped: {error}")
        goal = await store.get("report")
        print(f"{goal.tokens_used:,} tokens in {goal.calls_used} calls")


asyncio.run(main())
