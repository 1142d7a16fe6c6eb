"""The adapter of Pydantic AI, held beside what its fake provider counted: `make test-sdks`."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("pydantic_ai") is None:
    pytest.skip("needs the agent SDKs: make test-sdks", allow_module_level=True)

import anyio
from pydantic_ai import Agent, ModelRetry, RunContext, UsageLimitExceeded
from pydantic_ai.capabilities import ModelFallback
from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError, UserError
from pydantic_ai.messages import (
    ImageUrl,
    ModelMessage,
    ModelResponse,
    ModelResponseStreamEvent,
    TextPart,
    ToolCallPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from goal_state import AsyncGoalStore, BudgetExceededError, Goal, GoalStore
from goal_state.integrations.pydantic_ai import Budget, UsageBudgetExceededError
from tests.in_memory import open_in_memory
from tests.processes import CHECKOUT, python

T = "thread-1"
WITHOUT_NETWORK = """
import runpy, socket, sys, tempfile

def refuse(*_):
    raise AssertionError("the example reaches for the network")

socket.socket.connect = refuse
tempfile.tempdir = sys.argv[2]
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def _names_the_version() -> None:
    print("pydantic-ai-slim", version("pydantic-ai-slim"))


@contextmanager
def event_loop() -> Iterator[None]:
    """One for the SDK's calls that are not awaited: it would leave its own open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.fixture(autouse=True)
def _loop() -> Iterator[None]:
    with event_loop():
        yield


@pytest.fixture
def store() -> Iterator[GoalStore]:
    with open_in_memory() as opened:
        opened.create(T, "Ship", token_budget=100_000)
        yield opened
        assert opened.verify() == []
        assert [hold for hold in opened.holds() if hold.thread_id != "kept"] == []


def used(store: GoalStore, thread_id: str = T) -> Goal:
    goal = store.get(thread_id)
    assert goal is not None
    return goal


def say(text: str = "done", *, response_id: str | None = None, **usage: int) -> ModelResponse:
    figures = usage or {"input_tokens": 100, "output_tokens": 20}
    return ModelResponse(
        [TextPart(text)],
        usage=RequestUsage(**figures),
        model_name="fake",
        provider_response_id=response_id,
    )


def call(*names: str, response_id: str | None = None, **usage: int) -> ModelResponse:
    response = say(response_id=response_id, **usage)
    response.parts = [
        ToolCallPart(name, {}, tool_call_id=f"call-{n}") for n, name in enumerate(names)
    ]
    return response


@dataclass
class FakeStream(StreamedResponse):
    response: ModelResponse
    breaks: BaseException | None = None
    says_input_first: bool = True

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        self.provider_response_id = self.response.provider_response_id
        if self.says_input_first:
            self._usage = RequestUsage(input_tokens=self.response.usage.input_tokens)
        for part in self.response.parts:
            if isinstance(part, ToolCallPart):
                yield self._parts_manager.handle_tool_call_part(
                    vendor_part_id=part.tool_call_id,
                    tool_name=part.tool_name,
                    args=part.args,
                    tool_call_id=part.tool_call_id,
                )
                continue
            assert isinstance(part, TextPart)
            for word in part.content.split():
                for event in self._parts_manager.handle_text_delta(
                    vendor_part_id="text", content=word
                ):
                    yield event
                await asyncio.sleep(0)
                if self.breaks:
                    raise self.breaks
        self._usage = self.response.usage
        self.state = self.response.state

    async def close_stream(self) -> None: ...

    @property
    def model_name(self) -> str:
        return "fake"

    @property
    def provider_name(self) -> str:
        return "fake"

    @property
    def provider_url(self) -> None:
        return None

    @property
    def timestamp(self) -> datetime:
        return datetime.now(UTC)


class Provider(Model):
    """A model that answers as it is told, and keeps a ledger of its own: the truth."""

    def __init__(self, *answers: ModelResponse | BaseException | Callable[[], Any], **options: Any):
        super().__init__(settings=options.pop("settings", None))
        self.answers = list(answers)
        self.stream_options = options
        self.requests: list[tuple[list[ModelMessage], dict[str, Any]]] = []
        self.billed: list[RequestUsage] = []
        self.cancelled: list[str | None] = []

    @property
    def model_name(self) -> str:
        return self.stream_options.get("name", "fake")

    @property
    def system(self) -> str:
        return "fake"

    @property
    def tokens(self) -> int:
        """What is counted of what was billed: all but what came from the cache."""
        return sum(each.total_tokens - each.cache_read_tokens for each in self.billed)

    async def _next(
        self, messages: list[ModelMessage], settings: ModelSettings | None
    ) -> ModelResponse:
        self.requests.append((messages, dict(settings or {})))
        answer = self.answers.pop(0) if self.answers else say()
        if callable(answer):
            answer = await answer()
        if isinstance(answer, BaseException):
            raise answer
        self.billed.append(answer.usage)
        return copy.copy(answer)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        return await self._next(messages, model_settings)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        response = await self._next(messages, model_settings)
        options = {k: v for k, v in self.stream_options.items() if k != "name"}
        yield FakeStream(model_request_parameters, response, **options)

    async def cancel_suspended_response(self, response: ModelResponse) -> None:
        self.cancelled.append(response.provider_response_id)

    def continuation_delay(self, response: ModelResponse) -> float | None:
        return 0.001 if response.provider_response_id else None


# -- ways to run an agent ----------------------------------------------------------------------------


def run_sync(agent: Agent[Any, Any], **options: Any) -> None:
    agent.run_sync("Go", **options)


async def run(agent: Agent[Any, Any], **options: Any) -> None:
    await agent.run("Go", **options)


async def run_stream(agent: Agent[Any, Any], **options: Any) -> None:
    async with agent.run_stream("Go", **options) as result:
        await result.get_output()


async def iterate(agent: Agent[Any, Any], **options: Any) -> None:
    async with agent.iter("Go", **options) as steps:
        async for _ in steps:
            pass


async def iterate_streaming(agent: Agent[Any, Any], **options: Any) -> None:
    async with agent.iter("Go", **options) as steps:
        async for node in steps:
            if Agent.is_model_request_node(node):
                async with node.stream(steps.ctx) as stream:
                    async for _ in stream:
                        pass


def run_stream_sync(agent: Agent[Any, Any], **options: Any) -> None:
    agent.run_stream_sync("Go", **options).get_output()


async def run_events(agent: Agent[Any, Any], **options: Any) -> None:
    async with agent.run_stream_events("Go", **options) as events:
        async for _ in events:
            pass


WAYS = [run_sync, run, run_stream, iterate, iterate_streaming, run_stream_sync, run_events]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def go(request: pytest.FixtureRequest) -> Callable[..., None]:
    way = request.param

    def go(agent: Agent[Any, Any], **options: Any) -> None:
        with event_loop():
            made = way(agent, **options)
            if made is not None:
                asyncio.run(made)

    return go


# -- charged as the provider counted -----------------------------------------------------------------


def test_a_run_is_charged_what_the_provider_counted(
    store: GoalStore, go: Callable[..., None]
) -> None:
    provider = Provider(
        say(response_id="r-1", input_tokens=1_000, cache_read_tokens=600, output_tokens=50)
    )
    go(Agent(provider, capabilities=[Budget(store)]), conversation_id=T)
    goal = used(store)
    assert goal.tokens_used == provider.tokens == 450
    assert goal.calls_used == 1
    assert goal.estimated_tokens == 0


def test_each_response_of_a_tool_loop_is_charged_once(
    store: GoalStore, go: Callable[..., None]
) -> None:
    provider = Provider(
        call("look", response_id="r-1", input_tokens=100, output_tokens=5),
        call("look", "look", response_id="r-2", input_tokens=300, output_tokens=7),
        say(response_id="r-3", input_tokens=900, output_tokens=40),
    )
    agent = Agent(provider, capabilities=[Budget(store)])
    agent.tool_plain(lambda: "x" * 600, name="look")
    go(agent, conversation_id=T)
    assert used(store).tokens_used == provider.tokens == 1_352
    assert used(store).calls_used == len(provider.requests) == 3


def test_a_run_that_reaches_the_budget_stops_before_the_request_that_is_not_left(
    store: GoalStore, go: Callable[..., None]
) -> None:
    store.set(T, token_budget=5_000)
    provider = Provider(
        call("look", input_tokens=2_000, output_tokens=500),
        call("look", input_tokens=2_200, output_tokens=200),
    )
    agent = Agent(provider, capabilities=[Budget(store)])
    agent.tool_plain(lambda: "ok", name="look")
    with pytest.raises(UsageBudgetExceededError) as caught:
        go(agent, conversation_id=T)
    assert len(provider.requests) == 2
    assert isinstance(caught.value, BudgetExceededError)
    assert isinstance(caught.value, UsageLimitExceeded)
    assert (caught.value.thread_id, caught.value.kind) == (T, "tokens")
    assert (caught.value.budget, caught.value.used, caught.value.held) == (5_000, 4_900, 0)
    assert caught.value.asked
    assert str(caught.value.__cause__) in str(caught.value)
    assert used(store).tokens_used == provider.tokens == 4_900


def test_the_output_is_capped_to_what_is_left(store: GoalStore, go: Callable[..., None]) -> None:
    store.set(T, token_budget=1_000)
    provider = Provider()
    go(Agent(provider, capabilities=[Budget(store)]), conversation_id=T)
    cap = provider.requests[0][1]["max_tokens"]
    assert 256 <= cap < 1_000


def test_the_cap_of_the_settings_is_kept_and_the_settings_are_not_changed(store: GoalStore) -> None:
    provider = Provider(settings={"max_tokens": 700})
    settings = ModelSettings(temperature=0.5)
    agent = Agent(provider, capabilities=[Budget(store)], model_settings=settings)
    agent.run_sync("Go", conversation_id=T)
    agent.run_sync("Go", conversation_id=T, model_settings={"max_tokens": 300})
    assert [sent["max_tokens"] for _, sent in provider.requests] == [700, 300]
    assert provider.requests[0][1]["temperature"] == 0.5
    assert settings == {"temperature": 0.5}
    assert provider.settings == {"max_tokens": 700}


def test_a_call_without_a_cap_is_capped_by_the_budget_s_own(store: GoalStore) -> None:
    provider = Provider()
    Agent(provider, capabilities=[Budget(store, output_tokens=900)]).run_sync(
        "Go", conversation_id=T
    )
    assert provider.requests[0][1]["max_tokens"] == 900


def test_a_usage_that_nobody_says_is_charged_as_the_whole_hold(store: GoalStore) -> None:
    provider = Provider(say(unmeasured_requests=1))
    agent = Agent(provider, capabilities=[Budget(store, output_tokens=900)])
    agent.run_sync("Go", conversation_id=T)
    goal = used(store)
    assert goal.tokens_used == goal.estimated_tokens > 900


def test_a_response_repeated_by_its_id_is_charged_once(store: GoalStore) -> None:
    provider = Provider(say(response_id="r-1"), say(response_id="r-1"))
    agent = Agent(provider, capabilities=[Budget(store)])
    agent.run_sync("Go", conversation_id=T)
    agent.run_sync("Go", conversation_id=T)
    assert used(store).tokens_used == 120


def test_the_sdks_own_test_model_is_charged_what_it_counts(store: GoalStore) -> None:
    agent = Agent(TestModel(), capabilities=[Budget(store)])
    result = agent.run_sync("Go", conversation_id=T)
    assert used(store).tokens_used == result.usage.total_tokens > 0


# -- retries and failures ----------------------------------------------------------------------------


@pytest.mark.parametrize("go", [run_sync, run, iterate], indirect=True)
def test_a_retry_that_a_tool_or_a_validator_asks_for_is_a_response_of_its_own(
    store: GoalStore, go: Callable[..., None]
) -> None:
    provider = Provider(
        call("fails", response_id="r-1"), say("no", response_id="r-2"), say(response_id="r-3")
    )
    agent = Agent(provider, capabilities=[Budget(store)])

    @agent.tool_plain(retries=2)
    def fails() -> str:
        raise ModelRetry("again")

    @agent.output_validator
    def check(output: str) -> str:
        if output == "no":
            raise ModelRetry("say yes")
        return output

    go(agent, conversation_id=T)
    assert used(store).tokens_used == provider.tokens == 360
    assert used(store).calls_used == 3


@pytest.mark.parametrize(
    "fails",
    [
        lambda: ModelHTTPError(429, "fake"),
        lambda: ModelHTTPError(500, "fake"),
        lambda: ModelConnectionError("fake", "no route", phase="connect"),
    ],
    ids=["429", "500", "no route"],
)
def test_a_request_that_was_refused_costs_nothing(
    store: GoalStore, go: Callable[..., None], fails: Callable[[], Exception]
) -> None:
    error = fails()
    with pytest.raises(type(error)):
        go(Agent(Provider(error), capabilities=[Budget(store)]), conversation_id=T)
    assert (used(store).tokens_used, used(store).calls_used) == (0, 0)


@pytest.mark.parametrize(
    "fails",
    [
        lambda: ModelConnectionError("fake", "reset", phase="read"),
        lambda: TimeoutError("late"),
        lambda: RuntimeError("bug"),
    ],
    ids=["reset", "late", "bug"],
)
def test_a_request_that_may_have_been_answered_is_charged_as_an_estimate(
    store: GoalStore, go: Callable[..., None], fails: Callable[[], Exception]
) -> None:
    error = fails()
    with pytest.raises(type(error)):
        go(Agent(Provider(error), capabilities=[Budget(store)]), conversation_id=T)
    goal = used(store)
    assert goal.tokens_used == goal.estimated_tokens > 4_096


def test_the_models_of_a_fallback_are_held_and_charged_each_as_itself(
    store: GoalStore, go: Callable[..., None]
) -> None:
    first, second = Provider(ModelHTTPError(503, "a"), name="a"), Provider(say(), name="b")
    agent = Agent(FallbackModel(first, second), capabilities=[Budget(store)])
    go(agent, conversation_id=T)
    assert used(store).tokens_used == 120
    assert [part.name for part in store.breakdown(T, by="model").parts] == ["fake"]


def test_what_a_fallback_rejected_is_charged_too(store: GoalStore) -> None:
    def rejects(response: ModelResponse) -> bool:
        return response.parts == [TextPart("bad")]

    first = Provider(say("bad", response_id="r-1", input_tokens=70, output_tokens=30), name="a")
    second = Provider(say("good", response_id="r-2"), name="b")
    model = FallbackModel(first, second, fallback_on=[rejects])
    result = Agent(model, capabilities=[Budget(store)]).run_sync("Go", conversation_id=T)
    assert result.output == "good"
    assert (used(store).tokens_used, used(store).calls_used) == (220, 2)
    assert result.usage.total_tokens == 220


def test_what_a_fallback_inside_of_another_model_rejected_is_charged_too(store: GoalStore) -> None:
    def rejects(response: ModelResponse) -> bool:
        return response.parts == [TextPart("bad")]

    first = Provider(say("bad", response_id="r-1", input_tokens=70, output_tokens=30))
    model = WrapperModel(FallbackModel(first, Provider(), fallback_on=[rejects]))
    Agent(model, capabilities=[Budget(store)]).run_sync("Go", conversation_id=T)
    assert used(store).tokens_used == 220


def test_each_attempt_that_a_capability_makes_is_held_and_charged(
    store: GoalStore, go: Callable[..., None]
) -> None:
    first = Provider(ModelConnectionError("a", "reset", phase="read"), name="a")
    agent = Agent(first, capabilities=[Budget(store), ModelFallback(Provider(say(), name="b"))])
    go(agent, conversation_id=T)
    goal = used(store)
    assert goal.calls_used == 2
    assert goal.tokens_used - goal.estimated_tokens == 120


# -- streams -----------------------------------------------------------------------------------------


async def _break_off(agent: Agent[Any, Any]) -> None:
    async with agent.run_stream("Go", conversation_id=T) as result:
        async for _ in result.stream_text(debounce_by=None):
            break


@pytest.mark.parametrize("says_input_first", [True, False])
def test_a_stream_that_is_broken_off_is_charged_what_was_observed_else_the_whole_hold(
    store: GoalStore, says_input_first: bool
) -> None:
    provider = Provider(say("one two three"), says_input_first=says_input_first)
    agent = Agent(provider, capabilities=[Budget(store)])
    asyncio.run(_break_off(agent))
    goal = used(store)
    if says_input_first:
        assert (goal.tokens_used, goal.estimated_tokens) == (100, 0)
    else:
        assert goal.tokens_used == goal.estimated_tokens > 4_096


def test_a_stream_that_drops_is_charged_what_was_observed(store: GoalStore) -> None:
    reset = ModelConnectionError("fake", "reset", phase="read", in_stream=True)
    provider = Provider(say("one two three"), breaks=reset)
    with pytest.raises(ModelConnectionError):
        asyncio.run(run_stream(Agent(provider, capabilities=[Budget(store)]), conversation_id=T))
    assert used(store).tokens_used == 100


def test_a_stream_that_reports_an_error_of_its_status_is_not_free(store: GoalStore) -> None:
    overloaded = ModelHTTPError(529, "fake", in_stream=True)
    provider = Provider(say("one two three"), breaks=overloaded)
    with pytest.raises(ModelHTTPError):
        asyncio.run(run_stream(Agent(provider, capabilities=[Budget(store)]), conversation_id=T))
    assert used(store).tokens_used == 100


def test_a_cancelled_stream_is_charged_what_was_observed(store: GoalStore) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def consume() -> None:
            async with agent.run_stream("Go", conversation_id=T) as result:
                async for _ in result.stream_text(debounce_by=None):
                    begun.set()
                    await asyncio.sleep(60)

        task = asyncio.create_task(consume())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    agent = Agent(Provider(say("one two three")), capabilities=[Budget(store)])
    asyncio.run(main())
    assert used(store).tokens_used == 100


def test_a_stream_in_a_scope_that_goes_on_cancelling_is_charged_what_was_observed(
    store: GoalStore,
) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with agent.run_stream("Go", conversation_id=T) as result:
                async for _ in result.stream_text(debounce_by=None):
                    scope.cancel()
                    await anyio.sleep(60)

    agent = Agent(Provider(say("one two three")), capabilities=[Budget(store)])
    asyncio.run(main())
    assert used(store).tokens_used == 100


# -- cancelled and late ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [run, run_stream])
def test_a_cancelled_run_is_charged_as_an_estimate(
    store: GoalStore, way: Callable[..., Any]
) -> None:
    async def main() -> None:
        sent = asyncio.Event()

        async def hang() -> ModelResponse:
            sent.set()
            await asyncio.sleep(60)
            return say()

        agent = Agent(Provider(hang), capabilities=[Budget(store, output_tokens=500)])
        task = asyncio.create_task(way(agent, conversation_id=T))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    goal = used(store)
    assert goal.tokens_used == goal.estimated_tokens > 500
    assert goal.calls_used == 1


def test_a_run_that_times_out_is_charged_as_an_estimate(store: GoalStore) -> None:
    async def hang() -> ModelResponse:
        await asyncio.sleep(60)
        return say()

    agent = Agent(Provider(hang), capabilities=[Budget(store, output_tokens=500)])
    with pytest.raises(TimeoutError):
        agent.run_sync("Go", conversation_id=T, timeout=0.05)
    assert used(store).tokens_used == used(store).estimated_tokens > 500


# -- who pays ----------------------------------------------------------------------------------------


def test_the_argument_comes_before_the_block_and_the_block_before_the_conversation(
    store: GoalStore, go: Callable[..., None]
) -> None:
    for thread_id in ("argument", "block"):
        store.create(thread_id, "Ship")
    named = Agent(Provider(), capabilities=[Budget(store, thread_id="argument")])
    unnamed = Agent(Provider(), capabilities=[Budget(store)])
    with store.spending("block", tags={"user": "ada"}):
        go(named, conversation_id=T)
        go(unnamed, conversation_id=T)
    go(unnamed, conversation_id=T)
    assert [used(store, each).tokens_used for each in ("argument", "block", T)] == [120, 120, 120]
    assert [part.name for part in store.breakdown("block", by="user").parts] == ["ada"]


def test_a_budget_that_is_given_to_a_run_takes_the_place_of_the_agents(store: GoalStore) -> None:
    store.create("other", "Ship")
    agent = Agent(Provider(), capabilities=[Budget(store)])
    agent.run_sync("Go", conversation_id=T, capabilities=[Budget(store, thread_id="other")])
    assert (used(store).tokens_used, used(store, "other").tokens_used) == (0, 120)


def test_an_agent_with_two_budgets_is_refused(store: GoalStore) -> None:
    with pytest.raises(UserError, match="goal_state_budget"):
        Agent(Provider(), capabilities=[Budget(store), Budget(store)])


def test_an_agent_that_a_tool_runs_is_paid_by_the_same_goal_or_a_child_of_it(
    store: GoalStore, go: Callable[..., None]
) -> None:
    inner = Agent(
        Provider(say(input_tokens=7, output_tokens=3)), capabilities=[Budget(store, child="inner")]
    )
    middle = Agent(
        Provider(
            call("inner", input_tokens=60, output_tokens=10), say(input_tokens=30, output_tokens=0)
        ),
        capabilities=[Budget(store, child="researcher")],
    )
    same = Agent(Provider(say(input_tokens=4, output_tokens=1)), capabilities=[Budget(store)])
    outer = Agent(Provider(call("middle", "same"), say()), capabilities=[Budget(store)])

    @middle.tool_plain(name="inner")
    async def ask_inner() -> str:
        return (await inner.run("Go")).output

    @outer.tool_plain(name="middle")
    async def ask_middle() -> str:
        return (await middle.run("Go")).output

    @outer.tool_plain(name="same")
    async def ask_same() -> str:
        return (await same.run("Go")).output

    go(outer, conversation_id=T)
    assert used(store, f"{T}/researcher/inner").tokens_used == 10
    assert used(store, f"{T}/researcher").tokens_used == 110
    assert used(store).tokens_used == 120 + 120 + 110 + 5


def test_parent_and_child_share_one_pool(store: GoalStore) -> None:
    store.set(T, token_budget=5_000)
    researcher = Agent(
        Provider(say(input_tokens=4_700, output_tokens=0)),
        capabilities=[Budget(store, child="researcher")],
    )
    provider = Provider(call("ask"), say())
    outer = Agent(provider, capabilities=[Budget(store)])

    @outer.tool_plain
    async def ask() -> str:
        return (await researcher.run("Go")).output

    with pytest.raises(UsageLimitExceeded):
        outer.run_sync("Go", conversation_id=T, model_settings={"max_tokens": 600})
    assert len(provider.requests) == 1
    assert used(store).tokens_used == 4_820


def test_parallel_runs_on_one_budget_never_go_above_it(store: GoalStore) -> None:
    store.set(T, token_budget=10_000)

    async def answer() -> ModelResponse:
        await asyncio.sleep(0.01)
        return say(input_tokens=10, output_tokens=490)

    provider = Provider(*[answer] * 60)
    agent = Agent(provider, capabilities=[Budget(store)], model_settings={"max_tokens": 500})

    async def main() -> int:
        done = await asyncio.gather(
            *(agent.run("Go", conversation_id=T) for _ in range(60)), return_exceptions=True
        )
        assert all(
            isinstance(each, UsageLimitExceeded) for each in done if isinstance(each, Exception)
        )
        return sum(not isinstance(each, Exception) for each in done)

    granted = asyncio.run(main())
    assert 0 < granted == len(provider.requests) < 60
    assert used(store).tokens_used == provider.tokens <= 10_000


def test_an_awaited_store_serves_too(store: GoalStore, go: Callable[..., None]) -> None:
    provider = Provider()
    go(Agent(provider, capabilities=[Budget(AsyncGoalStore(store))]), conversation_id=T)
    assert used(store).tokens_used == provider.tokens == 120


# -- responses in the background, prices, estimates --------------------------------------------------


def _suspended(response_id: str, **usage: int) -> ModelResponse:
    response = say("", response_id=response_id, **usage)
    response.state = "suspended"
    response.parts = []
    if not usage:
        response.usage = RequestUsage()
    return response


def test_a_response_that_goes_on_in_the_background_is_one_call(
    store: GoalStore, go: Callable[..., None]
) -> None:
    provider = Provider(_suspended("job"), _suspended("job"), say("done", response_id="job"))
    go(Agent(provider, capabilities=[Budget(store)]), conversation_id=T)
    goal = used(store)
    assert (goal.tokens_used, goal.calls_used, goal.estimated_tokens) == (120, 1, 0)
    assert len(provider.requests) == 3


def test_the_parts_of_a_response_that_paused_are_each_charged(
    store: GoalStore, go: Callable[..., None]
) -> None:
    provider = Provider(
        _suspended("a", input_tokens=50, output_tokens=5), say("done", response_id="b")
    )
    go(Agent(provider, capabilities=[Budget(store)]), conversation_id=T)
    assert used(store).tokens_used == 175


def test_a_job_in_the_background_that_fails_is_charged_as_an_estimate(store: GoalStore) -> None:
    provider = Provider(_suspended("job"), ModelHTTPError(500, "fake"))
    agent = Agent(provider, capabilities=[Budget(store)])
    with pytest.raises(ModelHTTPError):
        agent.run_sync("Go", conversation_id=T)
    assert provider.cancelled == ["job"]
    assert used(store).estimated_tokens == used(store).tokens_used > 4_096


def test_the_price_is_that_of_the_model_that_answered() -> None:
    prices = {"a": Decimal("0.001"), "b": Decimal("0.002"), "fake": Decimal("0.003")}
    with open_in_memory(prices=lambda usage, model: prices[model] * usage.total_tokens) as store:
        store.create(T, "Ship", cost_budget=100)
        model = FallbackModel(Provider(ModelHTTPError(503, "a"), name="a"), Provider(name="b"))
        Agent(model, capabilities=[Budget(store)]).run_sync("Go", conversation_id=T)
        assert used(store).cost_used == Decimal("0.36")


def test_the_estimate_counts_what_is_sent_and_not_what_messages_hold_besides(
    store: GoalStore,
) -> None:
    asked: list[int] = []

    async def answer() -> ModelResponse:
        asked.append(next(iter(store.holds())).tokens - 100)
        return say("word " * 30)

    agent = Agent(
        Provider(*[answer] * 10),
        capabilities=[Budget(store)],
        instructions="Be brief. " * 30,
        model_settings={"max_tokens": 100},
    )
    history: list[ModelMessage] = []
    for _ in range(10):
        result = agent.run_sync("Go", conversation_id=T, message_history=history)
        history = result.all_messages()
    assert 100 <= asked[0] < 120
    assert asked[9] - asked[8] == asked[1] - asked[0] < 60


def test_a_picture_is_estimated_as_one(store: GoalStore) -> None:
    provider = Provider(RuntimeError("cut"))
    agent = Agent(provider, capabilities=[Budget(store, output_tokens=10)])
    with pytest.raises(RuntimeError):
        agent.run_sync(["What is this?", ImageUrl("http://a/b.png")], conversation_id=T)
    assert 2_000 < used(store).estimated_tokens < 2_100


def test_the_example_stops_within_its_budget_and_needs_no_network(tmp_path: Path) -> None:
    out = python(WITHOUT_NETWORK, CHECKOUT / "examples" / "pydantic_ai_sdk.py", tmp_path)
    refusal, used_up = out.splitlines()
    assert "20000" in refusal
    assert used_up.endswith("of 20,000 tokens")
    assert list(tmp_path.iterdir()) == []
