"""Metered turns of the Claude Agent SDK, beside a stand-in for its program that keeps a ledger of its own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("claude_agent_sdk") is None:
    pytest.skip("needs the agent SDKs: make test-sdks", allow_module_level=True)

import claude_agent_sdk
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKError,
    CLIConnectionError,
    HookMatcher,
    Message,
    ResultMessage,
)

from examples.claude_program import Program, text, tool_use
from goal_state import (
    AsyncGoalStore,
    BudgetExceededError,
    GoalNotFoundError,
    GoalStore,
    InvalidValueError,
    TokenUsage,
)
from goal_state.integrations.claude_agent import ClaudeSDKClient, TurnBudgetExceededError, query
from tests.processes import CHECKOUT, python

pytest_plugins = ["goal_state.testing.fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore")  # the SDK's own


@pytest.fixture(autouse=True)
def _sdk() -> None:
    print(f"claude-agent-sdk {version('claude-agent-sdk')}")  # shown where a test fails


@pytest.fixture
def store(goal_store: GoalStore) -> Iterator[GoalStore]:
    """A store with a goal for thread "t1", which is sound afterwards and has no hold left."""
    goal_store.create("t1", "Write the report", token_budget=100_000)
    yield goal_store
    assert list(goal_store.verify()) == []
    assert list(goal_store.holds()) == []


def figures(store: GoalStore, thread_id: str = "t1") -> tuple[int, int, int]:
    """Tokens and calls that were used, and how many of the tokens are an estimate."""
    goal = store.get(thread_id)
    assert goal is not None
    return goal.tokens_used, goal.calls_used, goal.estimated_tokens


async def asked(store: Any, program: Program, **options: Any) -> list[Message]:
    options = {"prompt": "Go", "thread_id": "t1"} | options
    return [message async for message in query(store=store, transport=program, **options)]


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


async def two_calls(program: Program) -> None:
    """A tool call and an answer; the messages show the input and one token of the output."""
    name = f"tool-{len(program.prompts)}"
    program.responds(f"msg_1_{name}", text(), tool_use(name), used=(100, 40), said=(100, 1))
    if await program.tool(name):
        program.returns(name)
        program.responds(f"msg_2_{name}", used=(150, 60), said=(150, 1), cached=1_000)
    program.ends()


# -- what is paid ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["GoalStore", "AsyncGoalStore"])
def test_turn_is_charged_what_its_calls_used(store: GoalStore, is_async: bool) -> None:
    async def main() -> None:
        program = Program(two_calls)
        messages = await asked(AsyncGoalStore(store) if is_async else store, program)
        assert isinstance(messages[-1], ResultMessage)
        assert program.prompts == ["Go"]

    asyncio.run(main())
    assert figures(store) == (350, 2, 0)


def test_message_is_charged_before_it_is_handed_on_and_once(store: GoalStore) -> None:
    seen: list[int] = []

    async def main() -> None:
        stream = query(prompt="Go", store=store, thread_id="t1", transport=Program(two_calls))
        seen.extend(
            [figures(store)[0] async for message in stream if isinstance(message, AssistantMessage)]
        )

    asyncio.run(main())
    assert seen == [101, 101, 252]


@pytest.mark.parametrize("running_total", [False, True])
def test_turns_of_a_program_that_tells_usage_alone_are_charged_once(
    store: GoalStore, running_total: bool
) -> None:
    def turn(number: int) -> Any:
        async def run(program: Program) -> None:
            program.responds(f"msg_{number}", used=(100, 40), said=(100, 1))
            times = number if running_total else 1
            used = {"input_tokens": 100 * times, "output_tokens": 40 * times}
            program.ends(totals=False, usage=used)

        return run

    async def main() -> None:
        client = ClaudeSDKClient(transport=Program(turn(1), turn(2)), store=store, thread_id="t1")
        async with client:
            for _ in range(2):
                await client.query("Go")
                async for _ in client.receive_response():
                    pass

    asyncio.run(main())
    assert figures(store) == (280, 2, 0)


def test_cost_is_what_the_program_says_in_all(store: GoalStore) -> None:
    """Its costs are running totals; a reset of the conversation sets them back to 0."""

    def turn(number: int, cost: float) -> Any:
        async def run(program: Program) -> None:
            if number == 3:
                program.ledger.clear()
                program.says(type="conversation_reset", new_conversation_id="c2")
            program.responds(f"msg_{number}", used=(100, 40), said=(100, 1))
            program.ends(total_cost_usd=cost)

        return run

    async def main() -> None:
        program = Program(turn(1, 0.1), turn(2, 0.1 + 0.2), turn(3, 0.05))
        async with ClaudeSDKClient(transport=program, store=store, thread_id="t1") as client:
            for _ in range(3):
                await client.query("Go")
                async for _ in client.receive_response():
                    pass

    asyncio.run(main())
    goal = store.get("t1")
    assert goal is not None
    assert goal.cost_used == Decimal("0.35")
    assert figures(store) == (420, 3, 0)


def test_price_of_the_store_is_charged_until_the_program_says_more(goal_file: Any) -> None:
    def prices(used: TokenUsage, model: str | None) -> Decimal | None:
        return Decimal(used.total_tokens) / 1_000 if model == "claude-test" else None

    async def turn(program: Program) -> None:
        program.responds("msg_1", used=(100, 40), said=(100, 1))
        program.ends(total_cost_usd=0.2)

    with GoalStore.open(goal_file, durability="normal", prices=prices) as store:
        store.create("t1", "Go", cost_budget=20)
        seen: list[Decimal] = []

        async def main() -> None:
            options = ClaudeAgentOptions(model="claude-test")
            async for _ in query(
                prompt="Go", store=store, options=options, transport=Program(turn), thread_id="t1"
            ):
                goal = store.get("t1")
                assert goal is not None
                seen.append(goal.cost_used)

        asyncio.run(main())
        assert seen == [Decimal("0.101"), Decimal("0.2")]
        assert store.verify() == []


def test_usage_that_only_the_end_tells_settles_the_hold(store: GoalStore) -> None:
    async def turn(program: Program) -> None:
        program.responds("msg_1", text(), tool_use("tool-1"), unread=True)
        assert await program.tool("tool-1")
        program.responds("msg_2", said=(0, 0))
        program.ends()

    asyncio.run(asked(store, Program(turn)))
    assert figures(store) == (220, 1, 0)


def test_usage_that_nobody_tells_is_charged_in_full_as_an_estimate(store: GoalStore) -> None:
    async def turn(program: Program) -> None:
        program.responds("msg_1", unread=True)
        program.ends(totals=False)

    asyncio.run(asked(store, Program(turn), output_tokens=500))
    used, calls, estimated = figures(store)
    assert 500 < used == estimated < 600
    assert calls == 1


@pytest.mark.parametrize(
    "result",
    [
        {"usage": {"input_tokens": 0, "output_tokens": 0}},
        {"is_error": True, "api_error_status": 529},
    ],
    ids=["no call", "refused"],
)
def test_turn_that_called_no_model_is_free(store: GoalStore, result: dict[str, Any]) -> None:
    async def turn(program: Program) -> None:
        program.ends(totals=False, **result)

    asyncio.run(asked(store, Program(turn)))
    assert figures(store) == (0, 0, 0)


def test_message_of_the_programs_own_about_an_error_is_free(store: GoalStore) -> None:
    async def turn(program: Program) -> None:
        message = {"id": "1", "model": "<synthetic>", "content": [text()], "usage": {}}
        program.says(type="assistant", message=message, error="rate_limit")
        program.ends(totals=False, is_error=True, api_error_status=429)

    asyncio.run(asked(store, Program(turn)))
    assert figures(store) == (0, 0, 0)


# -- the end of a budget ---------------------------------------------------------------------------


def test_turn_without_room_starts_nothing(store: GoalStore) -> None:
    store.charge("t1", tokens=99_900)
    program = Program(two_calls)
    with pytest.raises(TurnBudgetExceededError) as caught:
        asyncio.run(asked(store, program))
    assert isinstance(caught.value, BudgetExceededError)
    assert isinstance(caught.value, ClaudeSDKError)
    assert (caught.value.used, caught.value.result) == (99_900, None)
    assert program.prompts == []
    assert not program.is_ready()


def test_budget_reached_between_tool_calls_stops_the_program_and_raises(store: GoalStore) -> None:
    store.set("t1", token_budget=400)
    ran: list[str] = []

    async def turn(program: Program) -> None:
        program.responds("msg_1", tool_use("tool-1"), used=(100, 90), said=(100, 80))
        if await program.tool("tool-1"):
            ran.append("tool-1")
        program.ends()

    program = Program(turn)
    seen: list[Message] = []

    async def main() -> None:
        stream = query(
            prompt="Go", store=store, thread_id="t1", transport=program, output_tokens=300
        )
        async for message in stream:
            seen.append(message)  # noqa: PERF401 - what is seen before the error

    with pytest.raises(TurnBudgetExceededError) as caught:
        asyncio.run(main())
    assert ran == []
    assert program.stopped == str(caught.value)
    assert (caught.value.thread_id, caught.value.budget, caught.value.used) == ("t1", 400, 180)
    assert caught.value.result is not None
    assert caught.value.result.session_id == "session-1"
    assert [type(message) for message in seen] == [AssistantMessage]
    assert figures(store) == (190, 1, 0)


def test_program_that_does_not_end_when_told_to_stop_is_left(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goal_state.integrations.claude_agent.turns._MAY_GO_ON_SECONDS", 0.1)
    store.set("t1", token_budget=400)

    async def turn(program: Program) -> None:
        program.responds("msg_1", tool_use("tool-1"), used=(100, 90))
        assert not await program.tool("tool-1")
        await asyncio.sleep(60)

    with pytest.raises(TurnBudgetExceededError) as caught:
        asyncio.run(asked(store, Program(turn), output_tokens=300))
    assert caught.value.result is None
    assert figures(store) == (190, 1, 0)


def test_budget_raised_in_the_middle_lets_the_turn_go_on(store: GoalStore) -> None:
    store.set("t1", token_budget=400)

    async def turn(program: Program) -> None:
        program.responds("msg_1", tool_use("tool-1"), used=(100, 90))
        store.set("t1", token_budget=10_000)
        assert await program.tool("tool-1")
        program.responds("msg_2", used=(200, 20))
        program.ends()

    asyncio.run(asked(store, Program(turn), output_tokens=300))
    assert figures(store) == (410, 2, 0)


def test_parallel_turns_on_one_budget_never_use_more(store: GoalStore) -> None:
    store.set("t1", token_budget=3_000)
    programs: list[Program] = []

    async def turn(program: Program) -> None:
        for number in range(10):
            await asyncio.sleep(0.005)
            name = f"{len(programs)}-{programs.index(program)}-{number}"
            program.responds(f"msg-{name}", tool_use(name), used=(100, 150), said=(100, 150))
            if not await program.tool(name):
                break
            program.returns(name)
        program.ends()

    async def main() -> list[Any]:
        programs.extend(Program(turn) for _ in range(8))
        turns = [
            asked(store, program, prompt="word " * 60, output_tokens=290) for program in programs
        ]
        return await asyncio.gather(*turns, return_exceptions=True)

    ends = asyncio.run(main())
    assert all(isinstance(end, TurnBudgetExceededError) for end in ends), ends
    used = sum(entry["input"] + entry["output"] for p in programs for entry in p.ledger)
    assert figures(store)[0] == used
    assert 2_000 < used <= 3_000


def test_slow_reader_is_waited_for_before_a_tool_is_run(store: GoalStore) -> None:
    store.set("t1", token_budget=400)

    async def main() -> None:
        program = Program(two_calls)
        async for message in query(
            prompt="Go", store=store, thread_id="t1", transport=program, output_tokens=300
        ):
            await asyncio.sleep(0.1)
            assert not isinstance(message, ResultMessage)

    store.charge("t1", tokens=50)
    with pytest.raises(TurnBudgetExceededError):
        asyncio.run(main())
    assert figures(store) == (190, 1, 0)


def test_reader_who_lags_behind_has_the_unread_call_held_and_charged(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lag = "goal_state.integrations.claude_agent.account._READER_MAY_LAG_SECONDS"
    monkeypatch.setattr(lag, 0.05)
    held: list[int] = []

    async def turn(program: Program) -> None:
        program.says(type="system", subtype="init")
        program.responds("msg_1", tool_use("tool-1"), used=(100, 40), said=(100, 1))
        assert await program.tool("tool-1")
        held.append(len(list(store.holds())))
        program.returns("tool-1")
        program.responds("msg_2", used=(150, 60), said=(150, 1))
        program.ends()

    async def main() -> None:
        async for _ in query(prompt="Go", store=store, thread_id="t1", transport=Program(turn)):
            await asyncio.sleep(0.2)

    asyncio.run(main())
    assert held == [2]
    assert figures(store) == (350, 2, 0)


def test_tools_side_by_side_share_the_hold_of_the_call_that_follows(store: GoalStore) -> None:
    held: list[int] = []

    async def turn(program: Program) -> None:
        tools = [tool_use(f"tool-{number}") for number in range(5)]
        program.responds("msg_1", *tools)
        assert all(await asyncio.gather(*(program.tool(tool["id"]) for tool in tools)))
        held.append(len(list(store.holds())))
        program.ends()

    asyncio.run(asked(store, Program(turn)))
    assert held == [1]


def test_context_that_was_cached_is_not_held_for_again_where_little_is_left(
    store: GoalStore,
) -> None:
    store.set("t1", token_budget=5_000)

    async def turn(program: Program) -> None:
        for number in range(4):
            name = f"tool-{number}"
            program.responds(f"msg_{number}", tool_use(name), used=(100, 10), cached=90_000)
            assert await program.tool(name)
            program.returns(name)
        program.ends()

    asyncio.run(asked(store, Program(turn)))
    assert figures(store) == (440, 4, 0)


def test_goal_that_is_completed_in_the_turn_pays_to_its_end(store: GoalStore) -> None:
    async def turn(program: Program) -> None:
        program.responds("msg_1", used=(100, 40), said=(100, 1))
        await asyncio.sleep(0.05)
        store.set("t1", status="complete")
        program.responds("msg_2", used=(100, 40), said=(100, 1))
        program.ends()

    asyncio.run(asked(store, Program(turn)))
    assert figures(store) == (280, 2, 0)


def test_tool_that_runs_for_longer_than_a_hold_lasts_does_not_cost_it(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goal_state.paid_calls.payer.EXPIRES_IN_SECONDS", 1.0)
    monkeypatch.setattr("goal_state.paid_calls.call.EXPIRES_IN_SECONDS", 1.0)
    monkeypatch.setattr("goal_state.integrations.claude_agent.turns._KEEP_EVERY_SECONDS", 0.05)

    async def turn(program: Program) -> None:
        program.responds("msg_1", tool_use("tool-1"))
        assert await program.tool("tool-1")
        await asyncio.sleep(1.3)
        program.returns("tool-1")
        program.responds("msg_2")
        program.ends()

    asyncio.run(asked(store, Program(turn)))
    store.expire_holds()
    assert figures(store) == (220, 2, 0)


# -- turns that are left -----------------------------------------------------------------------------


def test_turn_left_in_the_middle_of_a_call_is_charged_that_call_as_an_estimate(
    store: GoalStore,
) -> None:
    async def turn(program: Program) -> None:
        program.responds("msg_1", tool_use("tool-1"), used=(100, 40), said=(100, 1))
        assert await program.tool("tool-1")
        program.returns("tool-1")
        await asyncio.sleep(60)

    async def main() -> None:
        stream = query(
            prompt="Go", store=store, thread_id="t1", transport=Program(turn), output_tokens=500
        )
        async for message in stream:
            if type(message).__name__ == "UserMessage":
                break
        await stream.aclose()

    asyncio.run(main())
    used, calls, estimated = figures(store)
    assert 500 < estimated < 700
    assert used == 101 + estimated
    assert calls == 2


def test_turn_left_after_a_message_is_charged_that(store: GoalStore) -> None:
    async def main() -> None:
        stream = query(prompt="Go", store=store, thread_id="t1", transport=Program(two_calls))
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(main())
    assert figures(store) == (101, 1, 0)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_cancelled_turn_is_charged_its_call_as_an_estimate(store: GoalStore, how: str) -> None:
    async def turn(_: Program) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        program = Program(turn)
        work = asked(store, program, output_tokens=500)
        if how == "timeout":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(work, 0.2)
            return
        task = asyncio.create_task(work)
        await until(lambda: bool(program.prompts))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    used, calls, estimated = figures(store)
    assert 500 < used == estimated < 600
    assert calls == 1


def test_cancellation_at_any_moment_leaves_nothing_held(store: GoalStore) -> None:
    async def main() -> None:
        for steps in range(0, 120, 2):
            task = asyncio.create_task(asked(store, Program(two_calls), output_tokens=300))
            for _ in range(steps):
                await asyncio.sleep(0.0001)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await until(lambda: not list(store.holds()))

    asyncio.run(main())


def test_program_that_fails_is_charged_its_call_as_an_estimate(store: GoalStore) -> None:
    class Broken(Program):
        async def read_messages(self) -> Any:
            async for message in super().read_messages():
                yield message
                if self.prompts:
                    raise OSError("the pipe broke")

    async def turn(program: Program) -> None:
        program.says(type="system", subtype="init")

    with pytest.raises(OSError, match="the pipe broke"):
        asyncio.run(asked(store, Broken(turn), output_tokens=500))
    used, _, estimated = figures(store)
    assert 500 < used == estimated < 600


def test_program_that_cannot_be_reached_is_free(store: GoalStore) -> None:
    class Absent(Program):
        async def connect(self) -> None:
            raise CLIConnectionError("no such program")

    async def main() -> None:
        with pytest.raises(CLIConnectionError):
            await asked(store, Absent())
        client = ClaudeSDKClient(transport=Absent(), store=store, thread_id="t1")
        with pytest.raises(CLIConnectionError):
            await client.connect("Go")
        with pytest.raises(CLIConnectionError):  # it is not connected
            await client.query("Go")
        await client.disconnect()

    asyncio.run(main())
    assert figures(store) == (0, 0, 0)


# -- who pays ----------------------------------------------------------------------------------------


async def with_sub_agent(program: Program) -> None:
    """A sub-agent with a tool call that is shown, and an answer that is not."""
    task = tool_use("task-1", "Task", prompt="Search", subagent_type="searcher")
    program.responds("msg_1", task, used=(100, 10))
    assert await program.tool("task-1", "Task", tool_input=task["input"])
    inner = {"agent_id": "agent-1", "agent_type": "searcher"}
    program.responds("msg_2", tool_use("tool-2"), used=(50, 5), parent="task-1")
    assert await program.tool("tool-2", **inner)
    program.ledger.append({"input": 60, "cached": 0, "output": 6})
    program.returns("task-1")
    program.responds("msg_3", used=(200, 20))
    program.ends()


def test_sub_agents_are_paid_by_the_thread(store: GoalStore) -> None:
    asyncio.run(asked(store, Program(with_sub_agent)))
    assert figures(store) == (451, 3, 0)


def test_sub_agents_are_paid_by_goals_of_their_own_where_asked_for(store: GoalStore) -> None:
    asyncio.run(asked(store, Program(with_sub_agent), subagent_goals=True))
    assert figures(store) == (451, 3, 0)
    assert figures(store, "t1/searcher") == (55, 1, 0)


def test_parallel_sub_agents_are_held_for_each(store: GoalStore) -> None:
    held: list[int] = []

    async def turn(program: Program) -> None:
        tasks = [tool_use(f"task-{n}", "Task", prompt="Search") for n in range(3)]
        program.responds("msg_1", *tasks)
        asking = (program.tool(task["id"], "Task", tool_input=task["input"]) for task in tasks)
        assert all(await asyncio.gather(*asking))
        held.append(len(list(store.holds())))
        for task in tasks:
            program.returns(task["id"])
        program.ends()

    asyncio.run(asked(store, Program(turn)))
    assert held == [4]
    assert figures(store)[0] == 110


def test_refusal_inside_a_sub_agent_stops_the_turn(store: GoalStore) -> None:
    store.set("t1", token_budget=1_500)

    async def turn(program: Program) -> None:
        task = tool_use("task-1", "Task", prompt="Search")
        program.responds("msg_1", task, used=(100, 10))
        assert await program.tool("task-1", "Task", tool_input=task["input"])
        program.responds("msg_2", tool_use("tool-2"), used=(600, 50), parent="task-1")
        assert not await program.tool("tool-2", agent_id="agent-1")
        program.ends()

    with pytest.raises(TurnBudgetExceededError) as caught:
        asyncio.run(asked(store, Program(turn), output_tokens=300))
    assert caught.value.result is not None
    assert figures(store) == (760, 2, 0)


def test_child_pays_from_its_own_goal_and_its_parents(store: GoalStore) -> None:
    asyncio.run(asked(store, Program(two_calls), child="writer"))
    assert figures(store) == (350, 2, 0)
    assert figures(store, "t1/writer") == (350, 2, 0)


def test_thread_of_the_spending_block_pays_with_its_turn_and_tags(store: GoalStore) -> None:
    async def main() -> None:
        with store.spending("t1", turn_id="turn-1", tags={"user": "ada"}):
            stream = query(prompt="Go", store=store, transport=Program(two_calls))
            async for _ in stream:
                pass

    asyncio.run(main())
    charges = [event for event in store.events(thread_id="t1") if event.tokens_delta]
    assert sum(event.tokens_delta for event in charges) == 350
    assert {(event.turn_id, event.tags["user"]) for event in charges} == {("turn-1", "ada")}


def test_client_pays_for_each_turn_by_the_block_around_its_query(store: GoalStore) -> None:
    store.create("t2", "Write another")

    async def main() -> None:
        program = Program(two_calls, two_calls)
        async with ClaudeSDKClient(transport=program, store=store) as client:
            for thread_id in ("t1", "t2"):
                program.ledger.clear()
                program.says(type="conversation_reset", new_conversation_id=thread_id)
                with store.spending(thread_id):
                    await client.query("Go")
                async for _ in client.receive_response():
                    pass

    asyncio.run(main())
    assert figures(store) == (350, 2, 0)
    assert figures(store, "t2") == (350, 2, 0)


def test_session_of_the_options_names_the_thread(store: GoalStore) -> None:
    options = ClaudeAgentOptions(session_id="t1")
    asyncio.run(asked(store, Program(two_calls), options=options, thread_id=None))
    assert figures(store) == (350, 2, 0)


@pytest.mark.parametrize(
    ("thread_id", "error"), [(None, InvalidValueError), ("t2", GoalNotFoundError)]
)
def test_turn_that_nobody_would_pay_for_starts_nothing(
    store: GoalStore, thread_id: str | None, error: type[Exception]
) -> None:
    program = Program(two_calls)
    with pytest.raises(error):
        asyncio.run(asked(store, program, thread_id=thread_id))
    assert not program.is_ready()


# -- the program and the options ---------------------------------------------------------------------


def test_hooks_of_the_host_are_kept(store: GoalStore) -> None:
    asked_for: list[str] = []

    async def mine(hook: Any, tool_use_id: Any, context: Any) -> Any:
        asked_for.append(hook["tool_name"])
        return {}

    options = ClaudeAgentOptions(hooks={"PreToolUse": [HookMatcher(hooks=[mine])]})
    asyncio.run(asked(store, Program(two_calls), options=options))
    assert asked_for == ["Bash"]
    assert options.hooks is not None
    assert set(options.hooks) == {"PreToolUse"}
    assert len(options.hooks["PreToolUse"]) == 1


def test_turn_that_the_program_begins_itself_is_held(store: GoalStore) -> None:
    held: list[int] = []

    async def turn(program: Program) -> None:
        program.responds("msg_1")
        program.ends()
        assert await program.takes_prompt("A task has ended")
        held.append(len(list(store.holds())))
        program.responds("msg_2")
        program.ends()

    async def main() -> None:
        async def prompts() -> Any:
            yield {"type": "user", "message": {"role": "user", "content": "Go"}}
            await asyncio.sleep(0.5)

        await asked(store, Program(turn), prompt=prompts())

    asyncio.run(main())
    assert held == [1]
    assert figures(store) == (220, 2, 0)


def test_error_of_the_store_in_a_hook_stops_the_program(store: GoalStore) -> None:
    async def turn(program: Program) -> None:
        program.responds("msg_1", tool_use("tool-1"))
        await asyncio.sleep(0.1)
        store.clear("t1")
        assert not await program.tool("tool-1")
        program.ends()

    with pytest.raises(GoalNotFoundError):
        asyncio.run(asked(store, Program(turn)))


def test_client_goes_on_after_a_refusal(store: GoalStore) -> None:
    store.set("t1", token_budget=600)
    store.charge("t1", tokens=210)

    async def main() -> None:
        program = Program(two_calls, two_calls)
        client = ClaudeSDKClient(transport=program, store=store, thread_id="t1", output_tokens=300)
        async with client:
            await client.query("Go")
            with pytest.raises(TurnBudgetExceededError):
                _ = [message async for message in client.receive_response()]
            with pytest.raises(TurnBudgetExceededError):
                await client.query("Go")
            store.set("t1", token_budget=2_000)
            await client.query("Go")
            messages = [message async for message in client.receive_response()]
            assert isinstance(messages[-1], ResultMessage)

    asyncio.run(main())


def test_client_that_connects_again_counts_the_new_programs_totals_anew(store: GoalStore) -> None:
    def turn(number: int) -> Any:
        async def run(program: Program) -> None:
            program.responds(f"msg_{number}", used=(100, 40), said=(100, 1))
            program.ends(total_cost_usd=0.1)

        return run

    async def main() -> None:
        client = ClaudeSDKClient(transport=Program(turn(1)), store=store, thread_id="t1")
        for number in (1, 2):
            client._custom_transport = Program(turn(number))
            async with client:
                await client.query("Go")
                async for _ in client.receive_response():
                    pass

    asyncio.run(main())
    goal = store.get("t1")
    assert goal is not None
    assert goal.cost_used == Decimal("0.2")
    assert figures(store) == (280, 2, 0)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"store": object()}, "store"), ({"thread_id": ""}, "thread_id"), ({"child": ""}, "child")],
)
def test_argument_out_of_its_bounds_is_refused_at_once(
    store: GoalStore, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidValueError) as caught:
        query(**({"prompt": "Go", "store": store} | arguments))
    assert caught.value.field == field


def test_functions_take_what_the_installed_sdks_take() -> None:
    sdk = f"claude-agent-sdk {version('claude-agent-sdk')}"
    theirs = set(inspect.signature(claude_agent_sdk.query).parameters)
    assert theirs <= set(inspect.signature(query).parameters), sdk
    for name in ("__init__", "connect", "query", "receive_messages", "disconnect"):
        theirs = set(inspect.signature(getattr(claude_agent_sdk.ClaudeSDKClient, name)).parameters)
        assert theirs <= set(inspect.signature(getattr(ClaudeSDKClient, name)).parameters), sdk


def test_example_runs_offline_and_keeps_its_budget() -> None:
    code = (
        "import runpy, socket, sys; socket.socket.connect = None; sys.path.insert(0, sys.argv[1]);"
        " runpy.run_path(sys.argv[2], run_name='__main__')"
    )
    examples = CHECKOUT / "examples"
    *turns, refused, used = python(code, examples, examples / "claude_sdk.py").splitlines()
    assert [line.split(":")[0] for line in turns] == [f"chapter-{n}.md" for n in (1, 2, 3, 4)]
    assert refused.startswith("stopped: of the token_budget of thread 'report', 8000, ")
    assert used == "6,400 tokens in 4 calls"
