"""A metered model of the OpenAI Agents SDK, with the SDK's own fakes and mock transports."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("agents") is None:
    pytest.skip("needs the agent SDKs: make test-sdks", allow_module_level=True)

import httpx2
from agents import (
    Agent,
    AgentsException,
    Model,
    ModelSettings,
    ModelTracing,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    Usage,
    function_tool,
    set_default_openai_client,
    set_trace_processors,
    set_tracing_disabled,
)
from agents.exceptions import ModelTimeoutError
from agents.models.fake_id import FAKE_RESPONSES_ID
from agents.retry import ModelRetryAdvice, ModelRetryAdviceRequest, ModelRetrySettings
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI
from openai.types.responses.response_usage import InputTokensDetails

from goal_state import (
    AsyncGoalStore,
    BudgetExceededError,
    GoalNotFoundError,
    GoalStore,
    InvalidValueError,
    TokenUsage,
)
from goal_state.integrations import openai_agents
from goal_state.integrations.openai_agents import RunBudgetExceededError, metered
from tests.processes import CHECKOUT, python

pytest_plugins = ["goal_state.testing.fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore")  # the SDK's own

Either = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])


@pytest.fixture(autouse=True)
def _sdk() -> Iterator[None]:
    print(f"openai-agents {version('openai-agents')}")  # shown where a test fails
    set_trace_processors([])
    set_tracing_disabled(True)
    yield
    set_tracing_disabled(False)


@pytest.fixture
def store(goal_store: GoalStore) -> Iterator[GoalStore]:
    """A store with a goal for thread "t1", which is sound afterwards and has no hold left."""
    goal_store.create("t1", "Write the report", token_budget=100_000)
    yield goal_store
    assert list(goal_store.verify()) == []
    assert list(goal_store.holds()) == []


def usage(input_tokens: int, output_tokens: int, cached: int = 0) -> Usage:
    return Usage(
        requests=1,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=input_tokens + output_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=cached, cache_write_tokens=0),
    )


def said(text: str, used: Usage, response_id: str | None = "resp-789") -> ModelStep:
    return ModelStep([assistant_message(text)], usage=used, response_id=response_id)


def called(tool: str, used: Usage, call_id: str = "call-1", arguments: str = "{}") -> ModelStep:
    return ModelStep([function_call(tool, arguments, call_id=call_id)], usage=used)


async def ran(agent: Agent[Any], streamed: bool, prompt: str = "Go", **options: Any) -> Any:
    if not streamed:
        return await Runner.run(agent, prompt, **options)
    result = Runner.run_streamed(agent, prompt, **options)
    async for _ in result.stream_events():
        pass
    return result


def used_tokens(store: GoalStore, thread_id: str = "t1") -> int:
    goal = store.get(thread_id)
    assert goal is not None
    return goal.tokens_used


# -- what is paid ----------------------------------------------------------------------------------


@Either
@pytest.mark.parametrize("is_async", [False, True], ids=["GoalStore", "AsyncGoalStore"])
def test_call_answered_is_charged_what_the_response_says(
    store: GoalStore, streamed: bool, is_async: bool
) -> None:
    async def main() -> None:
        mine = AsyncGoalStore(store) if is_async else store
        model = ScriptedModel([said("Done", usage(1_000, 200, cached=300))])
        result = await ran(Agent("a", model=metered(model, mine, thread_id="t1")), streamed)
        assert result.final_output == "Done"
        assert result.context_wrapper.usage.total_tokens == 1_200

    asyncio.run(main())
    goal = store.get("t1")
    assert goal is not None
    assert (goal.tokens_used, goal.calls_used, goal.estimated_tokens) == (900, 1, 0)


def test_run_sync_is_charged(store: GoalStore) -> None:
    agent = Agent(
        "a", model=metered(ScriptedModel([said("Done", usage(10, 2))]), store, thread_id="t1")
    )
    assert Runner.run_sync(agent, "Go").final_output == "Done"
    assert used_tokens(store) == 12


@Either
def test_tool_loop_of_responses_with_one_placeholder_id_is_charged_response_by_response(
    store: GoalStore, streamed: bool
) -> None:
    model = ScriptedModel(
        [
            called("look", usage(100, 10), "call-1"),
            called("look", usage(100, 10), "call-2"),
            said("Done", usage(100, 10)),
        ]
    )

    @function_tool
    def look() -> str:
        return "nothing there"

    agent = Agent("a", model=metered(model, store, thread_id="t1"), tools=[look])
    asyncio.run(ran(agent, streamed))
    assert used_tokens(store) == 330
    assert len(model.calls) == 3


def test_placeholder_ids_are_those_of_the_sdk() -> None:
    ids = {FAKE_RESPONSES_ID, ModelStep().response_id}
    assert ids == openai_agents._NO_IDS, version("openai-agents")


@Either
def test_response_out_of_a_cache_is_charged_once(store: GoalStore, streamed: bool) -> None:
    answer = [said("Done", usage(100, 10), response_id="resp_1") for _ in range(2)]
    agent = Agent("a", model=metered(ScriptedModel(answer), store, thread_id="t1"))
    for _ in range(2):
        asyncio.run(ran(agent, streamed))
    goal = store.get("t1")
    assert goal is not None
    assert (goal.tokens_used, goal.calls_used) == (110, 1)


def test_model_metered_twice_is_charged_once(store: GoalStore) -> None:
    model = ScriptedModel([said("Done", usage(100, 10), response_id="resp_1")])
    twice = metered(metered(model, store, thread_id="t1"), store, thread_id="t1")
    asyncio.run(ran(Agent("a", model=twice), False))
    assert used_tokens(store) == 110


@Either
def test_usage_unknown_charges_the_whole_hold_as_an_estimate(
    store: GoalStore, streamed: bool
) -> None:
    model = ScriptedModel([ModelStep([assistant_message("Done")])])
    agent = Agent("a", model=metered(model, store, thread_id="t1", output_tokens=500))
    asyncio.run(ran(agent, streamed))
    goal = store.get("t1")
    assert goal is not None
    assert 500 < goal.tokens_used < 600
    assert goal.estimated_tokens == goal.tokens_used


def test_price_of_the_named_model_is_charged(goal_file: Any) -> None:
    def prices(used: TokenUsage, model: str | None) -> Decimal | None:
        return Decimal(used.total_tokens) / 1_000 if model == "gpt-test" else None

    model = ScriptedModel([said("Done", usage(100, 10))])
    model.model = "gpt-test"  # type: ignore[attr-defined]
    with GoalStore.open(goal_file, durability="normal", prices=prices) as store:
        store.create("t1", "Go", cost_budget=20)
        asyncio.run(ran(Agent("a", model=metered(model, store, thread_id="t1")), False))
        goal = store.get("t1")
        assert goal is not None
        assert goal.cost_used == Decimal("0.11")


# -- the request -----------------------------------------------------------------------------------


@Either
def test_cap_of_the_output_is_that_of_the_settings_or_of_the_argument(
    store: GoalStore, streamed: bool
) -> None:
    model = ScriptedModel([said("Done", usage(10, 2)) for _ in range(2)])
    mine = metered(model, store, thread_id="t1", output_tokens=700)
    settings = ModelSettings(max_tokens=300, temperature=0.5)
    asyncio.run(ran(Agent("a", model=mine, model_settings=settings), streamed))
    asyncio.run(ran(Agent("a", model=mine), streamed))
    assert [call.model_settings.max_tokens for call in model.calls] == [300, 700]
    assert model.calls[0].model_settings.temperature == 0.5
    assert settings.max_tokens == 300


def test_cap_of_the_output_is_what_is_left(store: GoalStore) -> None:
    store.charge("t1", tokens=99_000)
    model = ScriptedModel([said("Done", usage(10, 2))])
    asyncio.run(ran(Agent("a", model=metered(model, store, thread_id="t1")), False))
    cap = model.calls[0].model_settings.max_tokens
    assert cap is not None
    assert 256 <= cap < 1_000


def test_hold_covers_instructions_tools_handoffs_and_schema(store: GoalStore) -> None:
    def look(where: str) -> str:
        raise AssertionError(where)

    look.__doc__ = "Looks. " + "Where? " * 300
    held: list[int] = []

    def answer(_: object) -> ModelStep:
        held.append(next(iter(store.holds())).tokens)
        return said("Done", usage(10, 2))

    def held_by(**options: Any) -> int:
        model = ScriptedModel([ModelStep.respond(answer)])
        mine = metered(model, store, thread_id="t1", output_tokens=100)
        asyncio.run(ran(Agent("a", model=mine, **options), False))
        return held[-1]

    bare = held_by()
    assert held_by(instructions="word " * 600) >= bare + 600
    assert held_by(tools=[function_tool(look)]) >= bare + 600
    described = Agent("b", handoff_description="of letters " * 200)
    assert held_by(handoffs=[described]) >= bare + 400


def test_hold_covers_what_the_provider_keeps_of_a_conversation(store: GoalStore) -> None:
    held: list[int] = []

    def answer(response_id: str, used: Usage) -> ModelStep:
        def respond(_: object) -> ModelStep:
            held.append(next(iter(store.holds())).tokens)
            return said("Done", used, response_id)

        return ModelStep.respond(respond)

    async def main() -> None:
        model = ScriptedModel(
            [answer("resp_1", usage(5_000, 50)), answer("resp_2", usage(5_060, 9))]
        )
        agent = Agent("a", model=metered(model, store, thread_id="t1", output_tokens=100))
        first = await Runner.run(agent, "Go")
        await Runner.run(agent, "On", previous_response_id=first.last_response_id)

    asyncio.run(main())
    assert held[0] < 200
    assert held[1] >= 5_050


# -- who pays --------------------------------------------------------------------------------------


@Either
def test_thread_of_the_spending_block_pays_with_its_turn_and_tags(
    store: GoalStore, streamed: bool
) -> None:
    async def main() -> None:
        agent = Agent("a", model=metered(ScriptedModel([said("Done", usage(10, 2))]), store))
        with store.spending("t1", turn_id="turn-1", tags={"user": "ada"}):
            await ran(agent, streamed, conversation_id="other")

    asyncio.run(main())
    last = list(store.events(thread_id="t1"))[-1]
    assert (last.turn_id, last.tags, last.tokens_delta) == ("turn-1", {"user": "ada"}, 12)


def test_streamed_run_that_was_begun_in_a_spending_block_is_paid_by_it(store: GoalStore) -> None:
    async def main() -> None:
        agent = Agent("a", model=metered(ScriptedModel([said("Done", usage(10, 2))]), store))
        with store.spending("t1"):
            result = Runner.run_streamed(agent, "Go")
        async for _ in result.stream_events():
            pass

    asyncio.run(main())
    assert used_tokens(store) == 12


@Either
def test_conversation_id_names_the_thread(store: GoalStore, streamed: bool) -> None:
    agent = Agent("a", model=metered(ScriptedModel([said("Done", usage(10, 2))]), store))
    asyncio.run(ran(agent, streamed, conversation_id="t1"))
    assert used_tokens(store) == 12


@Either
def test_group_id_names_the_thread(store: GoalStore, streamed: bool) -> None:
    set_tracing_disabled(False)
    agent = Agent("a", model=metered(ScriptedModel([said("Done", usage(10, 2))]), store))
    asyncio.run(ran(agent, streamed, run_config=RunConfig(group_id="t1")))
    assert used_tokens(store) == 12


@Either
def test_thread_named_by_nobody_sends_nothing(store: GoalStore, streamed: bool) -> None:
    model = ScriptedModel([said("Done", usage(10, 2))])
    with pytest.raises(InvalidValueError, match=r"store\.spending"):
        asyncio.run(ran(Agent("a", model=metered(model, store)), streamed))
    assert model.calls == ()


@Either
def test_thread_without_a_goal_sends_nothing(store: GoalStore, streamed: bool) -> None:
    model = ScriptedModel([said("Done", usage(10, 2))])
    with pytest.raises(GoalNotFoundError):
        asyncio.run(ran(Agent("a", model=metered(model, store, thread_id="t2")), streamed))
    assert model.calls == ()


# -- several agents --------------------------------------------------------------------------------


@Either
def test_handoff_to_a_child_is_paid_by_its_own_goal_and_its_parents(
    store: GoalStore, streamed: bool
) -> None:
    second = Agent(
        "editor",
        model=metered(ScriptedModel([said("Edited", usage(70, 7))]), store, child="editor"),
    )
    first = Agent(
        "writer",
        model=metered(ScriptedModel([called("transfer_to_editor", usage(100, 10))]), store),
        handoffs=[second],
    )

    async def main() -> None:
        with store.spending("t1"):
            result = await ran(first, streamed)
        assert result.final_output == "Edited"

    asyncio.run(main())
    assert (used_tokens(store, "t1"), used_tokens(store, "t1/editor")) == (187, 77)


@Either
def test_agent_as_tool_is_paid_by_its_child_goal_and_its_parents(
    store: GoalStore, streamed: bool
) -> None:
    helper_model = ScriptedModel([said("Found", usage(70, 7)), said("Again", usage(70, 7))])
    helper = Agent("helper", model=metered(helper_model, store, child="helper"))
    outer_model = ScriptedModel(
        [
            called("helper", usage(100, 10), "call-1", '{"input": "find"}'),
            called("helper", usage(100, 10), "call-2", '{"input": "find"}'),
            said("Done", usage(100, 10)),
        ]
    )
    outer = Agent(
        "outer", model=metered(outer_model, store), tools=[helper.as_tool("helper", "Finds.")]
    )

    async def main() -> None:
        with store.spending("t1"):
            await ran(outer, streamed)

    asyncio.run(main())
    assert (used_tokens(store, "t1"), used_tokens(store, "t1/helper")) == (484, 154)


def test_model_of_the_run_config_meters_every_agent_of_the_run(store: GoalStore) -> None:
    model = ScriptedModel([called("transfer_to_b", usage(100, 10)), said("Done", usage(70, 7))])
    second = Agent("b", model="no-such-model")
    first = Agent("a", model="no-such-model", handoffs=[second])
    config = RunConfig(model=metered(model, store, thread_id="t1"))
    asyncio.run(ran(first, False, run_config=config))
    assert used_tokens(store) == 187


@Either
def test_refusal_inside_an_agent_as_tool_sends_nothing_and_the_outer_run_is_refused(
    store: GoalStore, streamed: bool
) -> None:
    store.set("t1", token_budget=1_000)
    helper_model = ScriptedModel([said("Found", usage(70, 7))])
    helper = Agent("helper", model=metered(helper_model, store, child="helper"))
    outer_model = ScriptedModel(
        [
            called("helper", usage(700, 100), arguments='{"input": "find"}'),
            said("Done", usage(9, 1)),
        ]
    )
    outer = Agent(
        "outer", model=metered(outer_model, store), tools=[helper.as_tool("helper", "Finds.")]
    )

    async def main() -> None:
        with store.spending("t1"), pytest.raises(RunBudgetExceededError):
            await ran(outer, streamed)

    asyncio.run(main())
    assert helper_model.calls == ()
    assert len(outer_model.calls) == 1
    assert used_tokens(store) == 800


@Either
def test_parallel_runs_on_one_budget_never_use_more(store: GoalStore, streamed: bool) -> None:
    store.set("t1", token_budget=1_000)
    sent: list[int] = []

    async def answer(call: Any) -> ModelStep:
        await asyncio.sleep(0.01)
        output = call.model_settings.max_tokens
        sent.append(100 + output)
        return said("Done", usage(100, output))

    async def main() -> list[Any]:
        model = ScriptedModel([ModelStep.respond(answer) for _ in range(8)])
        mine = metered(model, store, thread_id="t1", output_tokens=150)
        runs = [ran(Agent("a", model=mine), streamed, "word " * 60) for _ in range(8)]
        return await asyncio.gather(*runs, return_exceptions=True)

    ends = asyncio.run(main())
    refused = [end for end in ends if isinstance(end, RunBudgetExceededError)]
    assert len(refused) == 8 - len(sent)
    assert refused
    assert sent
    assert used_tokens(store) == sum(sent) <= 1_000


# -- the end of a budget ---------------------------------------------------------------------------


@Either
def test_budget_reached_in_the_middle_of_a_run_ends_it_in_the_sdks_own_way(
    store: GoalStore, streamed: bool
) -> None:
    store.set("t1", token_budget=2_000)
    model = ScriptedModel([called("look", usage(1_700, 200)), said("Done", usage(10, 2))])

    @function_tool
    def look() -> str:
        return "nothing there"

    agent = Agent("a", model=metered(model, store, thread_id="t1"), tools=[look])
    with pytest.raises(RunBudgetExceededError) as caught:
        asyncio.run(ran(agent, streamed))
    error = caught.value
    assert isinstance(error, AgentsException)
    assert isinstance(error, BudgetExceededError)
    assert (error.thread_id, error.kind, error.budget, error.used) == ("t1", "tokens", 2_000, 1_900)
    assert error.asked is not None
    assert error.asked > 256
    assert error.run_data is not None
    assert len(error.run_data.raw_responses) == 1
    assert len(model.calls) == 1


def test_budget_raised_in_the_middle_of_a_run_lets_it_go_on(store: GoalStore) -> None:
    store.set("t1", token_budget=2_000)
    model = ScriptedModel([called("look", usage(1_700, 200)), said("Done", usage(10, 2))])

    @function_tool
    def look() -> str:
        store.set("t1", token_budget=10_000)
        return "nothing there"

    agent = Agent("a", model=metered(model, store, thread_id="t1"), tools=[look])
    assert asyncio.run(ran(agent, False)).final_output == "Done"
    assert used_tokens(store) == 1_912


def test_refusal_advises_a_retry_only_where_waiting_helps(store: GoalStore) -> None:
    mine = metered(ScriptedModel(), store, thread_id="t1")

    def advised() -> bool | None:
        with pytest.raises(RunBudgetExceededError) as caught:
            asyncio.run(ran(Agent("a", model=mine), False))
        advice = mine.get_retry_advice(ModelRetryAdviceRequest(caught.value, 1, stream=False))
        assert advice is not None
        return advice.suggested

    hold = store.reserve("t1", tokens=99_990)
    assert advised() is True
    hold.settle(tokens=99_990)
    assert advised() is False


# -- failures --------------------------------------------------------------------------------------

REQUEST = httpx2.Request("POST", "https://api.example.org/v1/responses")


def status_error(status: int) -> APIStatusError:
    return APIStatusError("no", response=httpx2.Response(status, request=REQUEST), body=None)


def connection_error(cause: Exception) -> APIConnectionError:
    error = APIConnectionError(request=REQUEST)
    error.__cause__ = cause
    return error


@Either
@pytest.mark.parametrize(
    "error",
    [
        lambda: status_error(429),
        lambda: status_error(500),
        lambda: connection_error(httpx2.ConnectError("no")),
    ],
    ids=["429", "500", "never connected"],
)
def test_call_that_the_provider_refused_is_free(
    store: GoalStore, streamed: bool, error: Callable[[], Exception]
) -> None:
    agent = Agent("a", model=metered(ScriptedModel([error()]), store, thread_id="t1"))
    with pytest.raises(type(error())):
        asyncio.run(ran(agent, streamed))
    assert used_tokens(store) == 0


@Either
@pytest.mark.parametrize(
    "error",
    [
        lambda: APITimeoutError(REQUEST),
        lambda: connection_error(httpx2.ReadError("cut")),
        lambda: ValueError("odd"),
    ],
    ids=["time-out", "dropped", "unknown"],
)
def test_call_that_failed_after_it_was_sent_is_charged_in_full_as_an_estimate(
    store: GoalStore, streamed: bool, error: Callable[[], Exception]
) -> None:
    agent = Agent(
        "a", model=metered(ScriptedModel([error()]), store, thread_id="t1", output_tokens=500)
    )
    with pytest.raises(type(error())):
        asyncio.run(ran(agent, streamed))
    goal = store.get("t1")
    assert goal is not None
    assert 500 < goal.tokens_used == goal.estimated_tokens < 600


def test_refusal_of_a_call_whose_hold_has_ended_is_the_providers_own(store: GoalStore) -> None:
    def answer(_: object) -> ModelStep:
        for hold in list(store.holds()):
            store.charge("t1", tokens=5, settles=hold.hold_id)
        raise status_error(429)

    model = ScriptedModel([ModelStep.respond(answer)])
    with pytest.raises(APIStatusError):
        asyncio.run(ran(Agent("a", model=metered(model, store, thread_id="t1")), False))
    assert used_tokens(store) == 5


@Either
def test_sdks_retry_is_a_call_of_its_own(store: GoalStore, streamed: bool) -> None:
    model = ScriptedModel([status_error(500), said("Done", usage(10, 2), "resp_2")])
    settings = ModelSettings(
        retry=ModelRetrySettings(
            max_retries=2, backoff={"initial_delay": 0.0}, policy=lambda context: True
        )
    )
    agent = Agent("a", model=metered(model, store, thread_id="t1"), model_settings=settings)
    asyncio.run(ran(agent, streamed))
    assert len(model.calls) == 2
    goal = store.get("t1")
    assert goal is not None
    assert (goal.tokens_used, goal.calls_used) == (12, 1)


@Either
def test_failed_tools_retry_is_charged_as_a_response_of_its_own(
    store: GoalStore, streamed: bool
) -> None:
    tries: list[int] = []

    @function_tool
    def look() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("not now")
        return "there"

    model = ScriptedModel(
        [
            called("look", usage(100, 10), "call-1"),
            called("look", usage(100, 10), "call-2"),
            said("Done", usage(100, 10)),
        ]
    )
    agent = Agent("a", model=metered(model, store, thread_id="t1"), tools=[look])
    asyncio.run(ran(agent, streamed))
    assert used_tokens(store) == 330


@Either
def test_time_out_of_the_sdk_charges_in_full_as_an_estimate(
    store: GoalStore, streamed: bool
) -> None:
    async def answer(_: object) -> ModelStep:
        await asyncio.sleep(60)
        raise AssertionError

    model = ScriptedModel([ModelStep.respond(answer)])
    agent = Agent(
        "a",
        model=metered(model, store, thread_id="t1", output_tokens=500),
        model_settings=ModelSettings(timeout=0.2),
    )
    with pytest.raises(ModelTimeoutError):
        asyncio.run(ran(agent, streamed))
    goal = store.get("t1")
    assert goal is not None
    assert 500 < goal.tokens_used == goal.estimated_tokens < 600


@Either
def test_cancelled_run_charges_in_full_as_an_estimate(store: GoalStore, streamed: bool) -> None:
    async def main() -> None:
        sent = asyncio.Event()

        async def answer(_: object) -> ModelStep:
            sent.set()
            await asyncio.sleep(60)
            raise AssertionError

        model = ScriptedModel([ModelStep.respond(answer)])
        mine = metered(model, store, thread_id="t1", output_tokens=500)
        task = asyncio.create_task(ran(Agent("a", model=mine), streamed))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(200):  # the SDK ends a streamed run on a task of its own
            if not list(store.holds()):
                break
            await asyncio.sleep(0.01)

    asyncio.run(main())
    goal = store.get("t1")
    assert goal is not None
    assert 500 < goal.tokens_used == goal.estimated_tokens < 600


@Either
def test_cancellation_at_any_moment_leaves_nothing_held(store: GoalStore, streamed: bool) -> None:
    async def answer(_: object) -> ModelStep:
        await asyncio.sleep(0.002)
        return said("Done", usage(10, 2))

    async def main() -> None:
        for steps in range(0, 80, 2):
            model = ScriptedModel([ModelStep.respond(answer)])
            mine = metered(model, store, thread_id="t1", output_tokens=300)
            task = asyncio.create_task(ran(Agent("a", model=mine), streamed))
            for _ in range(steps):
                await asyncio.sleep(0.0001)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await until(store, lambda: not list(store.holds()))

    asyncio.run(main())


# -- streams ---------------------------------------------------------------------------------------


async def until(store: GoalStore, condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


def test_stream_cancelled_before_its_usage_charges_in_full_as_an_estimate(store: GoalStore) -> None:
    async def main() -> None:
        goes_on = asyncio.Event()
        whole = ScriptedModel([said("A long answer", usage(100, 10))])

        async def half(call: Any) -> AsyncIterator[Any]:
            stream = whole.stream_response(
                None, "", ModelSettings(), [], None, [], call.tracing,
                previous_response_id=None, conversation_id=None, prompt=None,
            )  # fmt: skip
            async for event in stream:
                if event.type == "response.completed":
                    await goes_on.wait()
                yield event

        model = ScriptedModel([ModelStep.stream(half)])
        mine = metered(model, store, thread_id="t1", output_tokens=500)
        result = Runner.run_streamed(Agent("a", model=mine), "Go")
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type.endswith("delta"):
                result.cancel()
        await until(store, lambda: not list(store.holds()))

    asyncio.run(main())
    goal = store.get("t1")
    assert goal is not None
    assert 500 < goal.tokens_used == goal.estimated_tokens < 600


def test_stream_that_fails_after_it_has_begun_is_charged_in_full_as_an_estimate(
    store: GoalStore,
) -> None:
    async def broken(_: Any) -> AsyncIterator[Any]:
        yield type("Event", (), {"type": "response.output_text.delta"})()
        raise status_error(500)

    model = ScriptedModel([ModelStep.stream(broken)])
    agent = Agent("a", model=metered(model, store, thread_id="t1", output_tokens=500))
    with pytest.raises(APIStatusError):
        asyncio.run(ran(agent, True))
    goal = store.get("t1")
    assert goal is not None
    assert 500 < goal.tokens_used == goal.estimated_tokens < 600


def test_stream_cancelled_once_its_usage_has_come_charges_that(store: GoalStore) -> None:
    async def main() -> None:
        model = ScriptedModel([said("Done", usage(100, 10))])
        result = Runner.run_streamed(Agent("a", model=metered(model, store, thread_id="t1")), "Go")
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.completed":
                result.cancel()
        await until(store, lambda: not list(store.holds()))

    asyncio.run(main())
    goal = store.get("t1")
    assert goal is not None
    assert (goal.tokens_used, goal.estimated_tokens) == (110, 0)


def test_stream_left_by_its_reader_closes_the_models_and_charges_in_full(store: GoalStore) -> None:
    closed: list[bool] = []

    async def endless(_: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield type("Event", (), {"type": "response.output_text.delta"})()
        finally:
            closed.append(True)

    async def main() -> None:
        model = metered(
            ScriptedModel([ModelStep.stream(endless)]), store, thread_id="t1", output_tokens=500
        )
        stream: Any = model.stream_response(
            None, "Go", ModelSettings(), [], None, [], ModelTracing.DISABLED,
            previous_response_id=None, conversation_id=None, prompt=None,
        )  # fmt: skip
        async for _ in stream:
            break
        await stream.aclose()
        await until(store, lambda: not list(store.holds()))

    asyncio.run(main())
    assert closed == [True]
    goal = store.get("t1")
    assert goal is not None
    assert 500 < goal.tokens_used == goal.estimated_tokens < 600


# -- the SDK's own models, over a transport of ours ---------------------------------------------------

RESPONSE: dict[str, Any] = {
    "id": "resp_0123456789",
    "object": "response",
    "created_at": 1,
    "model": "gpt-test",
    "output": [
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Done", "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "status": "completed",
    "usage": {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 0},
        "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 4},
        "total_tokens": 110,
    },
}


def events(*parts: dict[str, Any] | str) -> httpx2.Response:
    lines = [part if isinstance(part, str) else json.dumps(part) for part in parts]
    body = "".join(f"data: {line}\n\n" for line in lines)
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=body)


def client(
    answer: Callable[[dict[str, Any]], httpx2.Response], requests: list[dict[str, Any]]
) -> AsyncOpenAI:
    def handle(request: httpx2.Request) -> httpx2.Response:
        requests.append(json.loads(request.content))
        return answer(requests[-1])

    return AsyncOpenAI(
        api_key="none",
        base_url="https://api.example.org/v1",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(handle)),
    )


@Either
def test_responses_model_sends_the_cap_and_is_charged(store: GoalStore, streamed: bool) -> None:
    requests: list[dict[str, Any]] = []

    def answer(_: dict[str, Any]) -> httpx2.Response:
        if not streamed:
            return httpx2.Response(200, json=RESPONSE)
        return events({"type": "response.completed", "sequence_number": 1, "response": RESPONSE})

    model = OpenAIResponsesModel("gpt-test", client(answer, requests))
    mine = metered(model, store, thread_id="t1", output_tokens=600)
    assert asyncio.run(ran(Agent("a", model=mine), streamed)).final_output == "Done"
    assert requests[0]["max_output_tokens"] == 600
    goal = store.get("t1")
    assert goal is not None
    assert (goal.tokens_used, goal.estimated_tokens) == (70, 0)
    charge = list(store.events(thread_id="t1"))[-1]
    assert (charge.model, charge.idempotency_key) == ("gpt-test", "resp_0123456789")


@pytest.mark.parametrize("status", ["incomplete", "failed"])
def test_stream_that_ends_incomplete_or_failed_is_charged_its_usage(
    store: GoalStore, status: str
) -> None:
    """The run itself counts none of it."""
    ended = RESPONSE | {"status": status}
    answer = events({"type": f"response.{status}", "sequence_number": 1, "response": ended})
    model = OpenAIResponsesModel("gpt-test", client(lambda _: answer, []))
    with pytest.raises(AgentsException):
        asyncio.run(ran(Agent("a", model=metered(model, store, thread_id="t1")), True))
    goal = store.get("t1")
    assert goal is not None
    assert (goal.tokens_used, goal.estimated_tokens) == (70, 0)


def test_stream_that_fails_without_usage_is_charged_in_full_as_an_estimate(
    store: GoalStore,
) -> None:
    ended = RESPONSE | {"status": "failed", "usage": None, "output": []}
    answer = events({"type": "response.failed", "sequence_number": 1, "response": ended})
    model = OpenAIResponsesModel("gpt-test", client(lambda _: answer, []))
    mine = metered(model, store, thread_id="t1", output_tokens=500)
    with pytest.raises(AgentsException):
        asyncio.run(ran(Agent("a", model=mine), True))
    goal = store.get("t1")
    assert goal is not None
    assert 500 < goal.tokens_used == goal.estimated_tokens < 600


@Either
def test_chat_model_is_charged_response_by_response(store: GoalStore, streamed: bool) -> None:
    """Streamed, the SDK gives all of its responses one placeholder for an id, and asks for usage."""
    requests: list[dict[str, Any]] = []
    used = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    message = {"role": "assistant", "content": "Done"}
    common = {"id": "chatcmpl-1", "created": 1, "model": "gpt-test"}

    def answer(_: dict[str, Any]) -> httpx2.Response:
        if not streamed:
            whole = common | {"object": "chat.completion", "usage": used}
            return httpx2.Response(200, json=whole | {"choices": [choice | {"message": message}]})
        chunk = common | {"object": "chat.completion.chunk"}
        return events(
            chunk | {"choices": [choice | {"delta": message}]},
            chunk | {"choices": [], "usage": used},
            "[DONE]",
        )

    async def main() -> None:
        model = OpenAIChatCompletionsModel("gpt-test", client(answer, requests))
        agent = Agent("a", model=metered(model, store, thread_id="t1", output_tokens=600))
        for _ in range(2):
            await ran(agent, streamed)

    asyncio.run(main())
    assert [request["max_tokens"] for request in requests] == [600, 600]
    assert all(request.get("stream_options") for request in requests) is streamed
    goal = store.get("t1")
    assert goal is not None
    assert (goal.tokens_used, goal.calls_used, goal.estimated_tokens) == (220, 2, 0)


def test_name_is_resolved_by_the_default_provider_at_the_first_call(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    requests: list[dict[str, Any]] = []
    agent = Agent("a", model=metered("gpt-test", store, thread_id="t1"))
    ours = client(lambda _: httpx2.Response(200, json=RESPONSE), requests)
    set_default_openai_client(ours, use_for_tracing=False)
    try:
        asyncio.run(ran(agent, False))
    finally:
        monkeypatch.setattr("agents.models._openai_shared._default_openai_client", None)
    assert requests[0]["model"] == "gpt-test"
    assert used_tokens(store) == 70


# -- the interface ---------------------------------------------------------------------------------


def test_interface_is_whole_in_the_installed_version() -> None:
    sdk = f"openai-agents {version('openai-agents')}"
    theirs = {name for name, what in vars(Model).items() if inspect.isfunction(what)}
    ours = vars(openai_agents._MeteredModel)
    assert theirs - set(ours) == set(), sdk
    plain, streamed = (
        inspect.signature(call).parameters for call in (Model.get_response, Model.stream_response)
    )
    assert plain == streamed, sdk
    needed = {"system_instructions", "input", "model_settings", "tools", "output_schema"}
    needed |= {"handoffs", "previous_response_id", "conversation_id", "prompt"}
    assert needed <= set(plain), sdk


def test_what_else_a_model_has_is_the_other_models(store: GoalStore) -> None:
    class Mine(ScriptedModel):
        model = "gpt-test"
        done: list[object] = []

        async def close(self) -> None:
            self.done.append("closed")

        async def _cleanup_on_run_end(self, owner: object) -> None:
            self.done.append("cleaned up")

    async def main() -> None:
        inner = Mine([said("Done", usage(10, 2))])
        mine = metered(inner, store, thread_id="t1")
        await ran(Agent("a", model=mine), True)
        await mine.close()
        assert "cleaned up" in inner.done
        assert inner.done[-1] == "closed"
        assert getattr(mine, "model") == "gpt-test"  # noqa: B009
        with pytest.raises(AttributeError):
            getattr(mine, "nothing")  # noqa: B009

    asyncio.run(main())


def test_retry_advice_for_other_errors_is_the_other_models(store: GoalStore) -> None:
    advice = ModelRetryAdvice(suggested=True)
    error = ValueError("odd")
    mine = metered(
        ScriptedModel([ModelStep.raise_error(error, retry_advice=advice)]), store, thread_id="t1"
    )
    with pytest.raises(ValueError, match="odd"):
        asyncio.run(ran(Agent("a", model=mine), False))
    assert mine.get_retry_advice(ModelRetryAdviceRequest(error, 1, stream=False)) == advice


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"model": object()}, "model"),
        ({"store": object()}, "store"),
        ({"thread_id": ""}, "thread_id"),
        ({"output_tokens": -1}, "output_tokens"),
    ],
)
def test_argument_out_of_its_bounds_is_refused(
    store: GoalStore, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidValueError) as caught:
        metered(**({"model": "gpt-test", "store": store} | arguments))
    assert caught.value.field == field


def test_example_runs_offline_and_keeps_its_budget() -> None:
    code = (
        "import runpy, socket, sys; socket.socket.connect = None;"
        " runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    said = python(code, CHECKOUT / "examples" / "openai_agents_sdk.py")
    first, second, whole, part = said.splitlines()
    assert first == "turn 1: Prices fell by a third."
    assert second.startswith("turn 2: of the token_budget of thread 'report', 4500, ")
    assert whole.endswith(" tokens in 5 calls")
    assert 2_000 < int(whole.split()[1].replace(",", "")) <= 4_500
    assert part.startswith("report/searcher: ")
