"""What is Anthropic's own about a metered client: thinking, helpers of streams, tool runners, other paths."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("anthropic") is None:
    pytest.skip("needs the agent SDKs: make test-sdks", allow_module_level=True)

import httpx2
from anthropic import (
    Anthropic,
    AnthropicBedrock,
    AnthropicVertex,
    APIRequest,
    APIResponse,
    AsyncAnthropic,
    CallNext,
    beta_tool,
)
from pydantic import BaseModel

from goal_state import BudgetExceededError, Goal, GoalStore
from goal_state.integrations.anthropic import metered
from tests.sdks.provider import Provider, Reply, TokenUsage

SDK = f"anthropic {version('anthropic')}"
MODEL = "claude-sonnet-4-6"
ASKED: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 500,
    "messages": [{"role": "user", "content": "Ship the parser"}],
}


@pytest.fixture(autouse=True)
def goal(store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=100_000)


def client(provider: Provider, store: GoalStore, **options: Any) -> Anthropic:
    plain = Anthropic(api_key="none", http_client=provider.client(), **options)
    return metered(plain, store, thread_id="t")


def async_client(provider: Provider, store: GoalStore) -> AsyncAnthropic:
    plain = AsyncAnthropic(api_key="none", http_client=provider.async_client())
    return metered(plain, store, thread_id="t")


def settled(store: GoalStore) -> Goal:
    found = store.get("t")
    assert found is not None
    assert store.holds() == [], SDK
    assert store.verify() == [], SDK
    return found


def test_the_helper_of_streams_is_paid_and_ends_with_the_whole_message(store: GoalStore) -> None:
    provider = Provider(always=Reply(TokenUsage(300, 100, 50, 40), text="All is well."))
    with client(provider, store).messages.stream(**ASKED) as stream:
        said = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert said.strip() == "All is well."
    assert message.usage.output_tokens == 40
    assert settled(store).tokens_used == provider.tokens == 240

    async def streamed() -> str:
        async with async_client(provider, store).messages.stream(**ASKED) as stream:
            return await stream.get_final_text()

    assert asyncio.run(streamed()).strip() == "All is well."
    assert settled(store).tokens_used == provider.tokens == 480, SDK


def test_parsed_messages_are_paid(store: GoalStore) -> None:
    class Answer(BaseModel):
        done: bool

    provider = Provider(Reply(text='{"done": true}'))
    parsed = client(provider, store).messages.parse(**ASKED, output_format=Answer)
    assert parsed.parsed_output == Answer(done=True)
    assert settled(store).tokens_used == 120, SDK


def test_messages_of_beta_are_paid(store: GoalStore) -> None:
    provider = Provider()
    client(provider, store).beta.messages.create(**ASKED)
    assert settled(store).tokens_used == 120, SDK


def test_a_tool_runner_pays_each_of_its_messages(store: GoalStore) -> None:
    @beta_tool
    def search(query: str) -> str:
        """Searches.

        Args:
            query: for what.
        """
        return f"nothing about {query}"

    provider = Provider(
        Reply(TokenUsage(500, output_tokens=30), tools=(("search", {"query": "x"}),))
    )
    runner = client(provider, store).beta.messages.tool_runner(tools=[search], **ASKED)
    assert runner.until_done().stop_reason == "end_turn"
    assert len(provider.requests) == 2
    assert settled(store).tokens_used == provider.tokens == 650, SDK


def test_a_tool_runner_stops_with_the_refusal_where_the_budget_is_reached(store: GoalStore) -> None:
    @beta_tool
    def search(query: str) -> str:
        """Searches.

        Args:
            query: for what.
        """
        return "nothing"

    tools = (("search", {"query": "x"}),)
    provider = Provider(always=Reply(TokenUsage(60_000, output_tokens=30), tools=tools))
    runner = client(provider, store).beta.messages.tool_runner(tools=[search], **ASKED)
    with pytest.raises(BudgetExceededError) as refusal:
        runner.until_done()
    assert refusal.value.thread_id == "t"
    assert len(provider.requests) == 2
    assert settled(store).tokens_used == provider.tokens == 120_060, SDK


def test_the_cap_stays_above_what_thinking_may_use(store: GoalStore) -> None:
    store.set("t", token_budget=3_000)
    provider = Provider()
    asked = {**ASKED, "max_tokens": 8_000, "thinking": {"type": "enabled", "budget_tokens": 2_048}}
    metering = client(provider, store)
    metering.messages.create(**asked)
    assert 2_048 < provider.requests[0]["max_tokens"] < 3_000
    store.set("t", token_budget=2_300)
    with pytest.raises(BudgetExceededError):
        metering.messages.create(**asked)
    assert len(provider.requests) == 1, SDK


def test_counting_tokens_and_batches_cost_nothing(store: GoalStore) -> None:
    provider = Provider()
    provider._respond = lambda *_: httpx2.Response(200, json={"input_tokens": 5})  # type: ignore[method-assign]
    metering = client(provider, store)
    counted = metering.messages.count_tokens(model=MODEL, messages=ASKED["messages"])
    assert counted.input_tokens == 5
    metering.messages.batches.create(requests=[{"custom_id": "1", "params": ASKED}])
    assert provider.paths == ["/v1/messages/count_tokens", "/v1/messages/batches"]
    assert provider.requests[1]["requests"][0]["params"] == ASKED
    assert settled(store).calls_used == 0, SDK


def test_a_response_that_the_callers_own_middleware_repeats_is_paid_once(store: GoalStore) -> None:
    kept: list[APIResponse[Any]] = []

    def cache(request: APIRequest, call_next: CallNext) -> APIResponse[Any]:
        if not kept:
            kept.append(call_next(request))
        return kept[0]

    provider = Provider()
    metering = client(provider, store, middleware=[cache])
    first, second = (metering.messages.create(**ASKED) for _ in range(2))
    assert first.id == second.id
    assert len(provider.requests) == 1
    assert settled(store).tokens_used == 120, SDK


def test_an_error_in_a_stream_is_charged_what_it_began_with(store: GoalStore) -> None:
    provider = Provider()
    respond = provider._respond

    def failing(*args: Any) -> httpx2.Response:
        parts = list(respond(*args).stream)  # type: ignore[arg-type]
        error = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n'
        return httpx2.Response(200, stream=httpx2.ByteStream(b"".join(parts[:3]) + error))

    provider._respond = failing  # type: ignore[method-assign]
    with pytest.raises(Exception, match="overloaded_error"):
        list(client(provider, store).messages.create(**ASKED, stream=True))
    assert 100 < settled(store).tokens_used < 120, SDK


def test_a_stream_of_bedrock_is_charged_as_an_estimate(store: GoalStore) -> None:
    def frames(request: httpx2.Request) -> httpx2.Response:
        headers = {"content-type": "application/vnd.amazon.eventstream"}
        return httpx2.Response(200, headers=headers, stream=httpx2.ByteStream(b"\x00\x00\n\n\x01"))

    http_client = httpx2.Client(transport=httpx2.MockTransport(frames))
    plain = AnthropicBedrock(api_key="none", aws_region="eu-west-1", http_client=http_client)
    metering = metered(plain, store, thread_id="t")
    with metering.messages.with_streaming_response.create(**ASKED, stream=True) as response:
        assert b"".join(response.iter_bytes()) == b"\x00\x00\n\n\x01"
    found = settled(store)
    assert 500 < found.tokens_used == found.estimated_tokens < 600, SDK


def test_clients_for_vertex_are_metered(store: GoalStore) -> None:
    provider = Provider()
    respond = provider._respond
    provider._respond = lambda request, number, reply, body: respond(  # type: ignore[method-assign]
        httpx2.Request("POST", "https://example.org/v1/messages"), number, reply, body
    )
    plain = AnthropicVertex(
        region="eu", project_id="p", access_token="none", http_client=provider.client()
    )
    metering = metered(plain, store, thread_id="t")
    metering.messages.create(**ASKED)
    list(metering.messages.create(**ASKED, stream=True))
    assert provider.paths[0].endswith(f"/models/{MODEL}:rawPredict")
    assert settled(store).tokens_used == 240, SDK


def test_a_prompt_with_tools_sets_aside_what_the_provider_adds(store: GoalStore) -> None:
    held: list[int] = []
    provider = Provider(
        always=Reply(before=lambda: held.append(store.holds()[0].tokens)),
    )
    metering = client(provider, store)
    metering.messages.create(**ASKED)
    tool = {"name": "search", "input_schema": {"type": "object"}}
    metering.messages.create(**ASKED, tools=[tool])
    assert held[1] - held[0] > 350, SDK


@pytest.mark.parametrize("stream", [False, True])
def test_traces_are_as_they_are_without_metering(store: GoalStore, stream: bool) -> None:
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    tracing = trace.TracerProvider()
    tracing.add_span_processor(export.SimpleSpanProcessor(exporter))
    options: dict[str, Any] = {"open_telemetry": {"tracer_provider": tracing}}
    provider = Provider(always=Reply(response_id="r"))
    plain = Anthropic(api_key="none", http_client=provider.client(), **options)
    for each in (plain, metered(plain, store, thread_id="t")):
        answer = each.messages.create(**ASKED, stream=stream)
        if stream:
            list(answer)
    without, with_metering = (
        {name: value for name, value in span.attributes.items() if "time" not in name}
        for span in exporter.get_finished_spans()
    )
    assert without == with_metering, SDK
    assert settled(store).tokens_used == 120
