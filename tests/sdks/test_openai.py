"""What is OpenAI's own about a metered client: usage of streams, caps, choices, conversations."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("openai") is None:
    pytest.skip("needs the agent SDKs: make test-sdks", allow_module_level=True)

import httpx
import httpx2
from openai import AsyncOpenAI, AzureOpenAI, OpenAI
from pydantic import BaseModel

from goal_state import BudgetExceededError, Goal, GoalStore
from goal_state.integrations.openai import metered
from tests.sdks.provider import Provider, Reply, TokenUsage

SDK = f"openai {version('openai')}"
MODEL = "gpt-4o"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Ship"}]}


@pytest.fixture(autouse=True)
def goal(store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=100_000)


def client(provider: Provider, store: GoalStore, **metering: Any) -> OpenAI:
    plain = OpenAI(api_key="none", http_client=provider.client())
    return metered(plain, store, **({"thread_id": "t"} | metering))


def settled(store: GoalStore, thread_id: str = "t") -> Goal:
    found = store.get(thread_id)
    assert found is not None
    assert store.holds() == [], SDK
    assert store.verify() == [], SDK
    return found


@pytest.mark.parametrize(
    ("options", "shows"),
    [
        ({}, False),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": {"include_usage": True}}, True),
    ],
)
def test_the_chunk_of_the_usage_is_shown_to_whom_asked_for_it(
    store: GoalStore, options: dict[str, Any], shows: bool
) -> None:
    provider = Provider()
    chunks = list(client(provider, store).chat.completions.create(**CHAT, stream=True, **options))
    assert provider.requests[0]["stream_options"] == {"include_usage": True}
    assert [chunk.usage is not None for chunk in chunks if not chunk.choices] == [True] * shows
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).strip()
    assert settled(store).tokens_used == 120, SDK


def test_a_whole_chat_is_not_asked_for_options_of_streams(store: GoalStore) -> None:
    provider = Provider()
    client(provider, store).chat.completions.create(**CHAT)
    assert "stream_options" not in provider.requests[0], SDK


@pytest.mark.parametrize(
    ("named", "sent"),
    [
        ({}, {"max_completion_tokens": 4_096}),
        ({"max_tokens": 700}, {"max_tokens": 700}),
        ({"max_completion_tokens": 700}, {"max_completion_tokens": 700}),
        ({"extra_body": {"max_tokens": 700}}, {"max_tokens": 700}),
        ({"n": 3}, {"max_completion_tokens": 4_096, "n": 3}),
    ],
)
def test_the_cap_of_a_chat_is_sent_by_the_name_that_the_caller_uses(
    store: GoalStore, named: dict[str, Any], sent: dict[str, Any]
) -> None:
    provider = Provider()
    client(provider, store).chat.completions.create(**CHAT, **named)
    (request,) = provider.requests
    caps = {name: value for name, value in request.items() if name.startswith("max_")}
    assert caps | ({"n": request["n"]} if "n" in request else {}) == sent, SDK


def test_each_choice_has_its_part_of_what_is_set_aside(store: GoalStore) -> None:
    store.set("t", token_budget=2_000)
    provider = Provider()
    metering = client(provider, store)
    metering.chat.completions.create(**CHAT, n=4, max_completion_tokens=1_000)
    assert 450 < provider.requests[0]["max_completion_tokens"] < 500
    store.set("t", token_budget=1_000)
    with pytest.raises(BudgetExceededError):
        metering.chat.completions.create(**CHAT, n=4, max_completion_tokens=1_000)
    assert len(provider.requests) == 1, SDK


def test_helpers_of_streams_are_paid(store: GoalStore) -> None:
    provider = Provider(always=Reply(TokenUsage(300, 100, 0, 40)))
    metering = client(provider, store)
    with metering.chat.completions.stream(**CHAT) as chat:
        chat.until_done()
        assert chat.get_final_completion().choices[0].message.content
    assert settled(store).tokens_used == provider.tokens == 240
    with metering.responses.stream(model=MODEL, input="Ship") as response:
        response.until_done()
        assert response.get_final_response().output_text
    assert settled(store).tokens_used == provider.tokens == 480, SDK


def test_parsed_answers_are_paid(store: GoalStore) -> None:
    class Answer(BaseModel):
        done: bool

    provider = Provider(always=Reply(text='{"done": true}'))
    metering = client(provider, store)
    chat = metering.chat.completions.parse(**CHAT, response_format=Answer)
    assert chat.choices[0].message.parsed == Answer(done=True)
    response = metering.responses.parse(model=MODEL, input="Ship", text_format=Answer)
    assert response.output_parsed == Answer(done=True)
    assert settled(store).tokens_used == 240, SDK


def test_what_a_response_goes_on_from_is_set_aside_too(store: GoalStore) -> None:
    held: list[int] = []
    note = Reply(
        TokenUsage(3_000, output_tokens=50), before=lambda: held.append(store.holds()[0].tokens)
    )
    metering = client(Provider(always=note), store)
    first = metering.responses.create(model=MODEL, input="Ship")
    metering.responses.create(model=MODEL, input="Ship", previous_response_id=first.id)
    assert held[1] - held[0] == 3_050
    metering.responses.create(model=MODEL, input="Ship", conversation="c")
    metering.responses.create(
        model=MODEL, input="Ship", conversation={"id": "c"}, stream=True
    ).close()
    assert held[3] - held[2] == 3_050, SDK


def test_the_conversation_of_a_response_names_the_thread_where_nobody_else_does(
    store: GoalStore,
) -> None:
    store.create("conversation-1", "Ship", token_budget=10_000)
    metering = client(Provider(), store, thread_id=None)
    metering.responses.create(model=MODEL, input="Ship", conversation="conversation-1")
    assert settled(store, "conversation-1").tokens_used == 120
    with store.spending("t"):
        metering.responses.create(model=MODEL, input="Ship", conversation="conversation-1")
    assert settled(store).tokens_used == 120, SDK


def test_compaction_is_paid_without_a_cap(store: GoalStore) -> None:
    provider = Provider()
    client(provider, store).responses.compact(model=MODEL, input="Ship")
    assert "max_output_tokens" not in provider.requests[0]
    assert settled(store).tokens_used == 120, SDK


def test_a_response_in_the_background_is_charged_as_an_estimate(store: GoalStore) -> None:
    provider = Provider(Reply(says_usage=False))
    client(provider, store).responses.create(
        model=MODEL, input="Ship", background=True, max_output_tokens=500
    )
    found = settled(store)
    assert 500 < found.tokens_used == found.estimated_tokens < 600, SDK


@pytest.mark.parametrize("kind", ["response.incomplete", "response.failed"])
def test_a_streamed_response_that_ends_badly_is_charged_what_it_says(
    store: GoalStore, kind: str
) -> None:
    provider = Provider()
    respond = provider._respond

    def ending(*args: Any) -> httpx2.Response:
        content = b"".join(respond(*args).stream)  # type: ignore[arg-type]
        content = content.replace(b"response.completed", kind.encode())
        return httpx2.Response(200, stream=httpx2.ByteStream(content))

    provider._respond = ending  # type: ignore[method-assign]
    list(client(provider, store).responses.create(model=MODEL, input="Ship", stream=True))
    found = settled(store)
    assert (found.tokens_used, found.estimated_tokens) == (120, 0), SDK


def test_a_stream_of_chat_whose_provider_knows_no_usage_is_charged_as_an_estimate(
    store: GoalStore,
) -> None:
    provider = Provider(Reply(says_usage=False))
    chat = {**CHAT, "max_tokens": 500}
    chunks = list(client(provider, store).chat.completions.create(**chat, stream=True))
    assert chunks
    found = settled(store)
    assert 500 < found.tokens_used == found.estimated_tokens < 600, SDK


def test_embeddings_go_on_unpaid_and_untouched(store: GoalStore) -> None:
    provider = Provider()
    answer = client(provider, store, thread_id=None).embeddings.create(
        model="embedder", input="Ship"
    )
    assert answer.usage.total_tokens == 5
    assert provider.requests[0]["input"] == "Ship"
    assert settled(store).calls_used == 0, SDK


def test_a_request_that_cannot_be_built_costs_nothing(store: GoalStore) -> None:
    provider = Provider()
    plain = OpenAI(api_key="none", http_client=provider.client())
    metering = metered(plain, store, thread_id="t")
    metering.api_key = ""
    with pytest.raises(TypeError, match="authentication"):
        metering.chat.completions.create(**CHAT)

    async def awaited() -> None:
        plain = AsyncOpenAI(api_key="none", http_client=provider.async_client())
        metering = metered(plain, store, thread_id="t")
        metering.api_key = ""
        with pytest.raises(TypeError, match="authentication"):
            await metering.chat.completions.create(**CHAT)

    asyncio.run(awaited())
    assert provider.requests == []
    assert settled(store).calls_used == 0, SDK


def test_clients_for_azure_are_metered(store: GoalStore) -> None:
    provider = Provider()
    plain = AzureOpenAI(
        api_key="none",
        api_version="2026-01-01",
        azure_endpoint="https://example.org",
        http_client=provider.client(),
    )
    metering = metered(plain, store, thread_id="t")
    assert isinstance(metering, AzureOpenAI)
    metering.chat.completions.create(**CHAT)
    list(metering.chat.completions.create(**CHAT, stream=True))
    assert provider.paths == [f"/openai/deployments/{MODEL}/chat/completions"] * 2
    assert settled(store).tokens_used == 240, SDK


def test_clients_over_the_older_httpx_are_metered(store: GoalStore) -> None:
    provider = Provider()

    def answer(request: httpx.Request) -> httpx.Response:
        asked = httpx2.Request("POST", str(request.url), content=request.content)
        answered = provider._answer(asked)
        content = b"".join(answered.stream)  # type: ignore[arg-type]

        class Whole(httpx.SyncByteStream):
            def __iter__(self) -> Any:
                yield content

        return httpx.Response(200, headers=dict(answered.headers), stream=Whole())

    http_client: Any = httpx.Client(transport=httpx.MockTransport(answer))
    metering = metered(OpenAI(api_key="none", http_client=http_client), store, thread_id="t")
    metering.chat.completions.create(**CHAT)
    assert list(metering.chat.completions.create(**CHAT, stream=True))
    assert settled(store).tokens_used == 240, SDK
