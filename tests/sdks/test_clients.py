"""What the metered clients of Anthropic and OpenAI have in common: failures, streams, raw responses."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

import pytest

if find_spec("openai") is None or find_spec("anthropic") is None:
    pytest.skip("needs the agent SDKs: make test-sdks", allow_module_level=True)

import anthropic as anthropic_sdk
import httpx2
import openai as openai_sdk

from goal_state import AsyncGoalStore, BudgetExceededError, Goal, GoalStore, InvalidValueError
from goal_state.integrations import anthropic, openai
from tests.processes import PATIENCE_SECONDS
from tests.sdks.clients import APIS, MODELS, Caller
from tests.sdks.provider import Provider, Reply, TokenUsage

every_api = pytest.mark.parametrize("api", APIS)
sync_and_async = pytest.mark.parametrize("is_async", [False, True])


class Calls(Protocol):
    def __call__(self, provider: Provider, **options: Any) -> Caller: ...


@pytest.fixture
def calls(api: str, is_async: bool, store: GoalStore, monkeypatch: pytest.MonkeyPatch) -> Calls:
    for module in (anthropic_sdk._base_client, openai_sdk._base_client):
        monkeypatch.setattr(module, "INITIAL_RETRY_DELAY", 0.0)
    store.create("t", "Ship", token_budget=100_000)
    return lambda provider, **options: Caller(
        api, is_async, provider, store, {"thread_id": "t"}, options
    )


def settled(store: GoalStore, caller: Caller | None = None) -> Goal:
    """The goal of the thread, nothing of which is open."""
    goal = store.get("t")
    assert goal is not None
    assert store.holds() == [], caller
    assert store.verify() == [], caller
    return goal


def broken_off(caller: Caller, after: int, *, keeps: bool = False) -> None:
    """A stream of which so many events are read. It is closed, or kept until it is collected."""
    create, request = caller.call(caller.client, "Ship the parser", {"stream": True})
    if not caller.is_async:
        stream = create(**request)
        for _, _ in zip(range(after), stream, strict=False):
            pass
        if not keeps:
            stream.close()
        return

    async def read() -> None:
        stream = await create(**request)
        left = after
        async for _ in stream:
            left -= 1
            if not left:
                break
        if not keeps:
            await stream.close()

    asyncio.run(read())


@every_api
@sync_and_async
@pytest.mark.parametrize("keeps", [False, True], ids=["closed", "collected"])
def test_a_stream_that_is_broken_off_is_charged_by_what_is_known(
    calls: Calls, store: GoalStore, api: str, keeps: bool
) -> None:
    usage = TokenUsage(1_000, 200, 0, 400)
    caller = calls(Provider(Reply(usage, text="parser " * 60)))
    broken_off(caller, 20, keeps=keeps)
    gc.collect()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while store.holds() and time.monotonic() < deadline:
        time.sleep(0.01)  # what is collected ends its hold behind
    goal = settled(store, caller)
    if api == "messages":  # its input is known from the beginning; 17 words came
        assert 800 + 17 <= goal.tokens_used <= 800 + 60
    else:
        assert 500 < goal.tokens_used == goal.estimated_tokens < 600


@every_api
@pytest.mark.parametrize("is_async", [True])
def test_a_task_that_is_cancelled_in_a_stream_pays_what_is_known_before_it_ends(
    calls: Calls, store: GoalStore, api: str
) -> None:
    caller = calls(Provider(Reply(TokenUsage(1_000, 200, 0, 400), hangs_after=4)))

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await caller.asked_awaited(stream=True)
        goal = settled(store, caller)
        assert goal.calls_used == 1
        if api == "messages":
            assert 800 < goal.tokens_used < 810
        else:
            assert 500 < goal.tokens_used == goal.estimated_tokens < 600

    asyncio.run(cancelled())


@every_api
@sync_and_async
def test_a_stream_that_nobody_reads_is_charged_as_an_estimate(
    calls: Calls, store: GoalStore
) -> None:
    caller = calls(Provider())
    create, request = caller.call(caller.client, "Ship the parser", {"stream": True})
    if caller.is_async:

        async def left() -> None:
            await (await create(**request)).close()

        asyncio.run(left())
    else:
        create(**request).close()
    goal = settled(store, caller)
    assert 500 < goal.tokens_used == goal.estimated_tokens < 600


@every_api
@sync_and_async
@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_that_breaks_in_the_answer_is_charged_by_what_is_known(
    calls: Calls, store: GoalStore, api: str, stream: bool
) -> None:
    caller = calls(Provider(Reply(breaks_after=1)), max_retries=0)
    with pytest.raises(
        (anthropic_sdk.APIConnectionError, openai_sdk.APIConnectionError, httpx2.ReadError)
    ):
        caller.ask(stream=stream)
    goal = settled(store, caller)
    assert caller.provider.tokens > 0
    assert goal.tokens_used > 0
    # What a message's stream began with is known.
    known = api == "messages" and stream
    assert goal.estimated_tokens == (0 if known else goal.tokens_used)


@every_api
@sync_and_async
@pytest.mark.parametrize("stream", [False, True])
def test_attempts_that_are_refused_cost_nothing_and_the_one_that_is_answered_is_paid_once(
    calls: Calls, store: GoalStore, stream: bool
) -> None:
    script = (Reply(status=429), Reply(status=503))
    caller = calls(Provider(*script), max_retries=2)
    caller.ask(stream=stream)
    assert len(caller.provider.requests) == 3
    goal = settled(store, caller)
    assert (goal.tokens_used, goal.calls_used, goal.estimated_tokens) == (120, 1, 0)


@every_api
@sync_and_async
@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
def test_a_call_that_is_refused_for_good_costs_nothing(
    calls: Calls, store: GoalStore, status: int
) -> None:
    caller = calls(Provider(always=Reply(status=status)), max_retries=1)
    with pytest.raises((anthropic_sdk.APIStatusError, openai_sdk.APIStatusError)):
        caller.ask()
    goal = settled(store, caller)
    assert (goal.tokens_used, goal.calls_used) == (0, 0)


@every_api
@sync_and_async
def test_an_attempt_that_is_lost_on_the_way_is_charged_besides_the_one_that_is_answered(
    calls: Calls, store: GoalStore
) -> None:
    lost = Reply(error=httpx2.ReadError, carried_out=True)
    never_made = Reply(error=httpx2.ConnectError)
    caller = calls(Provider(never_made, lost), max_retries=2)
    caller.ask()
    assert len(caller.provider.ledger) == 2
    goal = settled(store, caller)
    assert goal.calls_used == 2
    assert goal.tokens_used - goal.estimated_tokens == 120
    assert goal.tokens_used >= caller.provider.tokens


@every_api
@sync_and_async
def test_a_budget_that_is_reached_by_others_between_attempts_stops_them(
    calls: Calls, store: GoalStore
) -> None:
    def spend() -> None:
        store.charge("t", tokens=100_000)

    caller = calls(Provider(Reply(status=503, before=spend)), max_retries=2)
    with pytest.raises(BudgetExceededError):
        caller.ask()
    assert len(caller.provider.requests) == 1
    assert settled(store, caller).tokens_used == 100_000


@every_api
@sync_and_async
@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_does_not_say_what_it_used_is_charged_as_an_estimate(
    calls: Calls, store: GoalStore, stream: bool
) -> None:
    caller = calls(Provider(Reply(says_usage=False)))
    create, request = caller.call(caller.client, "Ship", {"stream": stream})
    if caller.is_async:

        async def read() -> None:
            answer = await create(**request)
            if stream:
                async for _ in answer:
                    pass

        asyncio.run(read())
    else:
        answer = create(**request)
        if stream:
            list(answer)
    goal = settled(store, caller)
    assert 500 < goal.tokens_used == goal.estimated_tokens < 600
    assert goal.calls_used == 1


@every_api
@sync_and_async
def test_a_tool_loop_pays_each_response_and_stops_where_the_budget_is_reached(
    calls: Calls, store: GoalStore
) -> None:
    store.set("t", token_budget=1_500)
    tool = (("search", {"query": "parser"}),)
    caller = calls(Provider(always=Reply(TokenUsage(180, output_tokens=20), tools=tool)))
    for step in range(7):
        caller.ask(f"search says {step}", stream=step % 2 == 1)
    with pytest.raises(BudgetExceededError) as refusal:
        caller.ask("search says 7")
    goal = settled(store, caller)
    assert len(caller.provider.requests) == goal.calls_used == 7
    assert goal.tokens_used == caller.provider.tokens == 1_400
    figures = refusal.value
    assert (figures.kind, figures.used, figures.budget) == ("tokens", 1_400, 1_500)


@every_api
@sync_and_async
def test_the_cap_of_the_output_is_lowered_to_what_is_left(calls: Calls, store: GoalStore) -> None:
    store.set("t", token_budget=1_000)
    caller = calls(Provider())
    caller.ask(cap=4_000)
    (sent,) = caller.provider.requests
    cap = sent.get("max_tokens") or sent.get("max_completion_tokens") or sent["max_output_tokens"]
    assert 900 < cap < 1_000


@every_api
@sync_and_async
def test_the_spending_block_names_who_pays(api: str, is_async: bool, store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=1_000)
    caller = Caller(api, is_async, Provider(), store)
    with pytest.raises(InvalidValueError, match="thread_id"):
        caller.ask()
    assert caller.provider.requests == []
    with store.spending("t", turn_id="turn-1", tags={"user": "ada"}):
        caller.ask()
    assert settled(store, caller).tokens_used == 120
    breakdown = store.breakdown("t", by="user")
    assert breakdown is not None
    assert [(part.name, part.tokens) for part in breakdown.parts] == [("ada", 120)]


@every_api
@sync_and_async
def test_calls_are_charged_to_the_model_that_answers(
    calls: Calls, store: GoalStore, api: str
) -> None:
    caller = calls(Provider())
    caller.ask()
    caller.ask(stream=True)
    breakdown = store.breakdown("t", by="model")
    assert breakdown is not None
    assert [(part.name, part.tokens) for part in breakdown.parts] == [(MODELS[api], 240)]


@every_api
@sync_and_async
@pytest.mark.parametrize("stream", [False, True])
def test_raw_responses_are_paid_and_are_what_came(
    calls: Calls, store: GoalStore, api: str, stream: bool
) -> None:
    caller = calls(Provider(Reply(text="Two words", headers={"x-request-id": "7"})))
    _, request = caller.call(caller.client, "Ship", {"stream": stream})
    client = caller.client
    resource = {"messages": lambda: client.messages, "chat": lambda: client.chat.completions}.get(
        api, lambda: client.responses
    )()

    async def raw_awaited() -> tuple[Any, Any]:
        response = await resource.with_raw_response.create(**request)
        parsed = response.parse()
        parsed = await parsed if asyncio.iscoroutine(parsed) else parsed
        return response, [each async for each in parsed] if stream else parsed

    if caller.is_async:
        response, parsed = asyncio.run(raw_awaited())
    else:
        response = resource.with_raw_response.create(**request)
        parsed = response.parse()
        parsed = list(parsed) if stream else parsed
    assert response.headers["x-request-id"] == "7"
    assert response.http_response.request.method == "POST"
    assert parsed
    assert settled(store, caller).tokens_used == 120


@every_api
@sync_and_async
@pytest.mark.parametrize("stream", [False, True])
def test_streaming_responses_are_paid_by_whatever_reads_their_bytes(
    calls: Calls, store: GoalStore, api: str, stream: bool
) -> None:
    caller = calls(Provider())
    _, request = caller.call(caller.client, "Ship", {"stream": stream})
    client = caller.client
    resource = {"messages": lambda: client.messages, "chat": lambda: client.chat.completions}.get(
        api, lambda: client.responses
    )()

    async def lines_awaited() -> list[str]:
        async with resource.with_streaming_response.create(**request) as response:
            lines = [line async for line in response.iter_lines()]
            assert response.elapsed.total_seconds() > 0
            return lines

    if caller.is_async:
        lines = asyncio.run(lines_awaited())
    else:
        with resource.with_streaming_response.create(**request) as response:
            lines = list(response.iter_lines())
            assert response.elapsed.total_seconds() > 0
    text = "\n".join(lines)
    assert "response-1" in text
    assert settled(store, caller).tokens_used == 120


@every_api
@sync_and_async
def test_a_compressed_stream_is_read(
    api: str, is_async: bool, store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("t", "Ship", token_budget=1_000)
    provider = Provider()
    respond = provider._respond

    class Whole(httpx2.SyncByteStream, httpx2.AsyncByteStream):
        def __init__(self, content: bytes) -> None:
            self.content = content

        def __iter__(self) -> Any:
            half = len(self.content) // 2
            yield from (self.content[:half], self.content[half:])

        async def __aiter__(self) -> Any:
            for part in self:
                yield part

    def compressed(*args: Any) -> httpx2.Response:
        response = respond(*args)
        content = gzip.compress(b"".join(response.stream))  # type: ignore[arg-type]
        headers = {"content-type": "text/event-stream", "content-encoding": "gzip"}
        return httpx2.Response(200, headers=headers, stream=Whole(content))

    monkeypatch.setattr(provider, "_respond", compressed)
    caller = Caller(api, is_async, provider, store, {"thread_id": "t"})
    assert len(caller.ask(stream=True)) > 4
    assert settled(store, caller).tokens_used == 120


@every_api
@sync_and_async
def test_copies_of_a_metered_client_are_metered_and_the_plain_one_is_not(
    api: str, is_async: bool, store: GoalStore
) -> None:
    store.create("t", "Ship", token_budget=1_000)
    caller = Caller(api, is_async, Provider(), store)
    meter = anthropic.metered if api == "messages" else openai.metered
    plain = caller.plain_client()
    client = meter(plain, store, thread_id="t")
    assert isinstance(client, type(plain))

    def ask(client: Any) -> None:
        if is_async:
            asyncio.run(caller.asked_awaited(client=client))
        else:
            caller.asked(client=client)

    ask(client.with_options(timeout=5.0))
    assert settled(store).tokens_used == 120
    ask(plain)
    assert len(caller.provider.ledger) == 2
    assert settled(store).tokens_used == 120
    with pytest.raises(InvalidValueError, match="metered already"):
        meter(client, store)


@pytest.mark.parametrize("meter", [anthropic.metered, openai.metered])
def test_what_is_no_client_is_refused(meter: Callable[..., Any], store: GoalStore) -> None:
    with pytest.raises(InvalidValueError, match="client"):
        meter(object(), store)


@every_api
@sync_and_async
def test_an_async_store_serves_clients_of_both_kinds(
    api: str, is_async: bool, store: GoalStore
) -> None:
    store.create("t", "Ship", token_budget=1_000)
    caller = Caller(api, is_async, Provider(), AsyncGoalStore(store), {"thread_id": "t"})
    caller.ask()
    caller.ask(stream=True)
    assert settled(store).tokens_used == 240


@every_api
@sync_and_async
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_stream_is_read_however_its_bytes_are_cut(
    api: str, is_async: bool, size: int, store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("t", "Ship", token_budget=1_000)
    provider = Provider(Reply(text="naïve — 日本"))
    respond = provider._respond

    class Cut(httpx2.SyncByteStream, httpx2.AsyncByteStream):
        def __init__(self, content: bytes) -> None:
            self.content = content

        def __iter__(self) -> Any:
            for at in range(0, len(self.content), size):
                yield self.content[at : at + size]

        async def __aiter__(self) -> Any:
            for part in self:
                yield part

    def cut(*args: Any) -> httpx2.Response:
        content = b"".join(respond(*args).stream)  # type: ignore[arg-type]
        content = content.replace(b"\n", b"\r\n")
        return httpx2.Response(
            200, headers={"content-type": "text/event-stream"}, stream=Cut(content)
        )

    monkeypatch.setattr(provider, "_respond", cut)
    caller = Caller(api, is_async, provider, store, {"thread_id": "t"})
    events = caller.ask(stream=True)
    said = json.dumps([event.model_dump(mode="json") for event in events], ensure_ascii=False)
    assert "日本" in said
    assert settled(store, caller).tokens_used == 120
