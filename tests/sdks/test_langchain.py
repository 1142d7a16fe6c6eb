"""The adapter of LangChain and LangGraph, held beside what its fake provider counted: `make test-sdks`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("langchain") is None:
    pytest.skip("needs the agent SDKs: make test-sdks", allow_module_level=True)

from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, ModelRetryMiddleware
from langchain.agents.structured_output import ProviderStrategy, StructuredOutputError
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseChatModel, FakeListLLM
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import RetryPolicy
from pydantic import BaseModel, Field

from goal_state import AsyncGoalStore, BudgetExceededError, Goal, GoalStore
from goal_state.integrations.langchain import (
    BudgetCallback,
    BudgetMiddleware,
    GraphBudgetExceededError,
)
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
GO: Any = {"messages": [("user", "Go")]}


@pytest.fixture(autouse=True)
def _names_the_version() -> None:
    for name in ("langchain", "langchain-core", "langgraph"):
        print(name, version(name))


@pytest.fixture
def store() -> Iterator[GoalStore]:
    with open_in_memory() as opened:
        opened.create(T, "Ship", token_budget=100_000)
        yield opened
        assert opened.verify() == []
        assert list(opened.holds()) == []


def used(store: GoalStore, thread_id: str = T) -> Goal:
    goal = store.get(thread_id)
    assert goal is not None
    return goal


def say(
    text: str = "done",
    *tools: str,
    response_id: str | None = None,
    read: int = 100,
    cached: int = 0,
    written: int = 20,
) -> AIMessage:
    return AIMessage(
        text,
        tool_calls=[{"name": name, "args": {}, "id": f"call-{n}"} for n, name in enumerate(tools)],
        usage_metadata={
            "input_tokens": read,
            "output_tokens": written,
            "total_tokens": read + written,
            "input_token_details": {"cache_read": cached},
        },
        response_metadata={"model_name": "fake-1", **({"id": response_id} if response_id else {})},
    )


class StatusError(Exception):
    status_code = 429


class Provider(BaseChatModel):
    """A model that answers as it is told, and keeps a ledger of its own: the truth."""

    answers: list[Any] = Field(default_factory=list)
    requests: list[tuple[list[BaseMessage], dict[str, Any]]] = Field(default_factory=list)
    billed: list[int] = Field(default_factory=list)
    max_tokens: int | None = None
    model_name: str = "fake"
    lock: Any = Field(default_factory=threading.Lock, exclude=True)

    @property
    def _llm_type(self) -> str:
        return "fake"

    @property
    def tokens(self) -> int:
        return sum(self.billed)

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(**kwargs)

    def _next(self, messages: list[BaseMessage], options: dict[str, Any]) -> Any:
        with self.lock:
            self.requests.append((messages, options))
            answer = self.answers.pop(0) if self.answers else say()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _bill(self, answer: AIMessage) -> AIMessage:
        usage = answer.usage_metadata
        assert usage is not None
        cached = usage.get("input_token_details", {}).get("cache_read", 0)
        self.billed.append(usage["total_tokens"] - cached)
        return answer

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        answer = self._next(messages, kwargs)
        if callable(answer):
            answer = answer()
        if answer.usage_metadata:
            self._bill(answer)
        return ChatResult(generations=[ChatGeneration(message=answer)])

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        answer = self._next(messages, kwargs)
        if callable(answer):
            answer = answer()
            if asyncio.iscoroutine(answer):
                answer = await answer
        if answer.usage_metadata:
            self._bill(answer)
        return ChatResult(generations=[ChatGeneration(message=answer)])


class Streaming(Provider):
    """One that streams: what was read comes first, what was written last."""

    breaks: Any = None

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        answer = self._next(messages, kwargs)
        usage = dict(answer.usage_metadata or {})
        if usage:
            written, usage["output_tokens"] = usage["output_tokens"], 0
            usage["total_tokens"] = usage["input_tokens"]
        first: Any = {"usage_metadata": usage} if usage else {}
        yield ChatGenerationChunk(message=AIMessageChunk("", **first))
        for word in str(answer.content).split():
            chunk = ChatGenerationChunk(message=AIMessageChunk(word + " "))
            if run_manager:
                run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk
            if self.breaks:
                raise self.breaks
        calls = [
            {"name": c["name"], "args": "{}", "id": c["id"], "index": n}
            for n, c in enumerate(answer.tool_calls)
        ]
        last: Any = {}
        if usage:
            self._bill(answer)
            last["usage_metadata"] = {
                "input_tokens": 0,
                "output_tokens": written,
                "total_tokens": written,
            }
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                "", tool_call_chunks=calls, response_metadata=answer.response_metadata, **last
            )
        )

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, stop, None, **kwargs):
            await asyncio.sleep(0)
            yield chunk


# -- ways to run a graph, and to have it paid ----------------------------------------------------------


def invoke(graph: Any, config: Any, asked: Any = GO) -> None:
    graph.invoke(asked, config)


def stream(graph: Any, config: Any, asked: Any = GO) -> None:
    for _ in graph.stream(asked, config, stream_mode="messages"):
        pass


async def ainvoke(graph: Any, config: Any, asked: Any = GO) -> None:
    await graph.ainvoke(asked, config)


async def astream(graph: Any, config: Any, asked: Any = GO) -> None:
    async for _ in graph.astream(asked, config, stream_mode="messages"):
        pass


@pytest.fixture(params=[invoke, stream, ainvoke, astream], ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


class Paying:
    """Makes agents that are paid by the middleware or by the callback, and runs them."""

    def __init__(self, kind: str, way: Callable[..., Any], store: GoalStore) -> None:
        self.kind = kind
        self.is_streamed = "stream" in way.__name__
        self._way = way
        self._store = store

    def provider(self, *answers: Any, **options: Any) -> Provider:
        kind = Streaming if self.is_streamed else Provider
        return kind(answers=list(answers), **options)

    def run(
        self,
        model: Any,
        tools: Any = (),
        *,
        around: Any = (),
        ask: Any = "Go",
        store: Any = None,
        agent: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        store = store or self._store
        config: dict[str, Any] = {"configurable": {"thread_id": T}}
        middleware = list(around)
        if self.kind != "callback":
            middleware.append(BudgetMiddleware(store, **options))
        if self.kind != "middleware":
            config["callbacks"] = [BudgetCallback(store, **options)]
        graph = create_agent(model, list(tools), middleware=middleware, **(agent or {}))
        made = self._way(graph, config, {"messages": [("user", ask)]})
        if made is not None:
            asyncio.run(made)


@pytest.fixture(params=["middleware", "callback", "both"])
def paying(request: pytest.FixtureRequest, way: Callable[..., Any], store: GoalStore) -> Paying:
    return Paying(request.param, way, store)


@tool
def look() -> str:
    """Looks."""
    return "ok"


# -- charged as the provider counted -----------------------------------------------------------------


def test_a_call_is_charged_once_what_the_provider_counted(store: GoalStore, paying: Paying) -> None:
    provider = paying.provider(say(response_id="r-1", read=1_000, cached=600, written=50))
    paying.run(provider)
    goal = used(store)
    expected = 450 if not paying.is_streamed else provider.tokens
    assert goal.tokens_used == provider.tokens == expected
    assert (goal.calls_used, goal.estimated_tokens) == (1, 0)
    assert [part.name for part in store.breakdown(T, by="model").parts] == ["fake-1"]


def test_each_response_of_a_tool_loop_is_charged_once(store: GoalStore, paying: Paying) -> None:
    provider = paying.provider(
        say("", "look", read=100, written=5),
        say("", "look", "look", read=300, written=7),
        say(read=900, written=40),
    )
    paying.run(provider, [look])
    assert used(store).tokens_used == provider.tokens == 1_352
    assert used(store).calls_used == len(provider.requests) == 3


def test_a_run_that_reaches_the_budget_stops_before_the_request_that_is_not_left(
    store: GoalStore, paying: Paying
) -> None:
    store.set(T, token_budget=5_000)
    provider = paying.provider(
        say("", "look", read=2_000, written=500), say("", "look", read=2_200, written=200)
    )
    with pytest.raises(GraphBudgetExceededError) as caught:
        paying.run(provider, [look], output_tokens=300)
    assert isinstance(caught.value, BudgetExceededError)
    assert (caught.value.thread_id, caught.value.kind) == (T, "tokens")
    assert (caught.value.budget, caught.value.used, caught.value.held) == (5_000, 4_900, 0)
    assert len(provider.requests) == 2
    assert used(store).tokens_used == provider.tokens == 4_900


def test_a_refusal_is_neither_retried_nor_made_a_message_of(
    store: GoalStore, paying: Paying
) -> None:
    store.set(T, token_budget=100)
    provider = paying.provider()
    with pytest.raises(GraphBudgetExceededError):
        paying.run(provider, around=[ModelRetryMiddleware(initial_delay=0)])
    assert provider.requests == []


def test_the_output_is_capped_to_what_is_left(store: GoalStore, way: Callable[..., Any]) -> None:
    store.set(T, token_budget=1_000)
    paying = Paying("middleware", way, store)
    provider = paying.provider(max_tokens=4_000)
    paying.run(provider)
    assert 256 <= provider.requests[0][1]["max_tokens"] < 1_000


def test_the_cap_is_the_models_own_or_else_the_adapters(
    store: GoalStore, way: Callable[..., Any]
) -> None:
    paying = Paying("middleware", way, store)
    for provider in (paying.provider(max_tokens=700), paying.provider()):
        paying.run(provider, output_tokens=900)
        assert provider.requests[0][1]["max_tokens"] == (provider.max_tokens or 900)


def test_a_usage_that_nobody_says_is_charged_as_the_whole_hold(
    store: GoalStore, paying: Paying
) -> None:
    paying.run(paying.provider(AIMessage("done")), output_tokens=900)
    goal = used(store)
    assert goal.tokens_used == goal.estimated_tokens > 900
    assert goal.calls_used == 1


def test_what_comes_from_the_cache_is_not_paid(store: GoalStore, paying: Paying) -> None:
    provider = paying.provider(cache=InMemoryCache())
    for _ in range(3):
        paying.run(provider)
    if not paying.is_streamed:  # a stream is not cached
        assert len(provider.requests) == 1
    assert used(store).tokens_used == provider.tokens == 120 * len(provider.requests)


def test_a_response_repeated_by_its_id_is_charged_once(store: GoalStore, paying: Paying) -> None:
    provider = paying.provider(say(response_id="r-1"), say(response_id="r-1"))
    paying.run(provider)
    paying.run(provider)
    assert used(store).tokens_used == 120


def test_an_awaited_store_serves_too(store: GoalStore, paying: Paying) -> None:
    provider = paying.provider()
    paying.run(provider, store=AsyncGoalStore(store))
    assert used(store).tokens_used == provider.tokens == 120


def test_the_price_is_that_of_the_model_that_answered(way: Callable[..., Any]) -> None:
    prices = {"fake": Decimal("0.001"), "fake-1": Decimal("0.003")}
    with open_in_memory(prices=lambda usage, model: prices[model] * usage.total_tokens) as store:
        store.create(T, "Ship", cost_budget=20)
        for kind in ("middleware", "callback"):
            paying = Paying(kind, way, store)
            paying.run(paying.provider())
        assert used(store).cost_used == Decimal("0.72")
        assert store.verify() == []


def test_a_model_of_plain_texts_is_held_and_charged(store: GoalStore) -> None:
    config: Any = {"callbacks": [BudgetCallback(store, thread_id=T, output_tokens=50)]}
    FakeListLLM(responses=["done"]).invoke("Go " * 100, config)
    assert 150 <= used(store).tokens_used == used(store).estimated_tokens < 200


def test_what_is_held_counts_tools_pictures_and_what_was_said(
    store: GoalStore, paying: Paying
) -> None:
    held: list[int] = []

    def answer() -> AIMessage:
        held.append(sum(hold.tokens for hold in store.holds()) - 100)
        return say()

    if paying.is_streamed:
        return

    def long() -> str:
        """Looks."""
        return "ok"

    long.__doc__ = "Looks. " * 300
    picture = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
    for question in ("Go", [picture]):
        provider = paying.provider(answer, max_tokens=100)
        paying.run(provider, [tool(long)], ask=question)
    if paying.kind == "callback":  # the fake binds no tools
        assert held[0] < 100
    else:
        assert 700 <= held[0] < 800
    assert 1_900 < held[1] - held[0] < 2_100


# -- retries and failures ----------------------------------------------------------------------------


def test_each_attempt_of_a_retry_is_a_call_of_its_own(store: GoalStore, paying: Paying) -> None:
    provider = paying.provider(StatusError(), TimeoutError("late"), say())
    paying.run(provider, around=[ModelRetryMiddleware(initial_delay=0)], output_tokens=900)
    goal = used(store)
    assert goal.calls_used == 2
    assert goal.tokens_used - goal.estimated_tokens == 120
    assert goal.estimated_tokens > 900


def test_a_fallback_is_a_call_of_its_own(store: GoalStore, paying: Paying) -> None:
    other = paying.provider()
    paying.run(paying.provider(StatusError()), around=[ModelFallbackMiddleware(other)])
    assert used(store).tokens_used == other.tokens == 120


def test_each_attempt_of_a_chain_that_tries_again_is_a_call_of_its_own(store: GoalStore) -> None:
    config: Any = {"callbacks": [BudgetCallback(store, thread_id=T)]}
    model = Provider(answers=[TimeoutError("late"), StatusError(), say()])
    model.with_retry(wait_exponential_jitter=False).invoke("Go", config)
    goal = used(store)
    assert (goal.calls_used, goal.tokens_used - goal.estimated_tokens) == (2, 120)
    store.set(T, token_budget=goal.tokens_used + 100)
    with pytest.raises(GraphBudgetExceededError):
        model.with_retry(wait_exponential_jitter=False).invoke("Go", config)
    assert len(model.requests) == 3


def test_a_request_that_was_refused_costs_nothing(store: GoalStore, paying: Paying) -> None:
    with pytest.raises(StatusError):
        paying.run(paying.provider(StatusError()))
    assert (used(store).tokens_used, used(store).calls_used) == (0, 0)


def test_a_request_that_may_have_been_answered_is_charged_as_an_estimate(
    store: GoalStore, paying: Paying
) -> None:
    with pytest.raises(TimeoutError):
        paying.run(paying.provider(TimeoutError("late")))
    assert used(store).tokens_used == used(store).estimated_tokens > 4_096


class Answer(BaseModel):
    """An answer."""

    number: int


def test_a_response_that_has_not_the_form_asked_for_is_charged(
    store: GoalStore, paying: Paying
) -> None:
    provider = paying.provider(say("no JSON"))
    with pytest.raises(StructuredOutputError):
        paying.run(provider, agent={"response_format": ProviderStrategy(Answer)})
    assert (used(store).tokens_used, used(store).estimated_tokens) == (120, 0)


# -- streams and cancellation ------------------------------------------------------------------------


@pytest.mark.parametrize("way", [stream, astream], indirect=True)
def test_a_stream_that_drops_is_charged_what_was_observed(store: GoalStore, paying: Paying) -> None:
    provider = paying.provider(say("one two"), breaks=ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        paying.run(provider)
    assert (used(store).tokens_used, used(store).estimated_tokens) == (100, 0)


@pytest.mark.parametrize("way", [stream, astream], indirect=True)
def test_a_stream_that_drops_before_it_says_anything_is_charged_as_an_estimate(
    store: GoalStore, paying: Paying
) -> None:
    provider = paying.provider(AIMessage("one two"), breaks=ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        paying.run(provider)
    assert used(store).tokens_used == used(store).estimated_tokens > 4_096


@pytest.mark.parametrize("kind", ["middleware", "both"])
def test_a_streamed_graph_that_is_broken_off_is_charged_what_was_observed(
    store: GoalStore, kind: str
) -> None:
    async def run(graph: Any, config: Any, asked: Any) -> None:
        chunks = graph.astream(asked, config, stream_mode="messages")
        async for _ in chunks:
            break
        await chunks.aclose()

    Paying(kind, run, store).run(Streaming(answers=[say("one two three " * 9)]))
    assert (used(store).tokens_used, used(store).estimated_tokens) == (100, 0)


def test_a_stream_of_a_model_that_is_broken_off_is_charged_what_was_observed(
    store: GoalStore,
) -> None:
    model = Streaming(answers=[say("one two three")])
    config: Any = {"callbacks": [BudgetCallback(store, thread_id=T)]}
    chunks = model.stream("Go", config)
    next(chunks), next(chunks)
    chunks.close()
    assert used(store).tokens_used == 100


def test_an_awaited_stream_of_a_model_that_is_broken_off_is_charged_what_was_observed(
    store: GoalStore,
) -> None:
    async def main() -> None:
        model = Streaming(answers=[say("one two three")])
        chunks: Any = model.astream("Go", {"callbacks": [BudgetCallback(store, thread_id=T)]})
        await anext(chunks), await anext(chunks)
        await chunks.aclose()

    asyncio.run(main())
    assert used(store).tokens_used == 100


@pytest.mark.parametrize("kind", ["middleware", "callback"])
def test_a_cancelled_run_is_charged_as_an_estimate_or_stays_held(
    store: GoalStore, kind: str
) -> None:
    sent = threading.Event()

    async def hang() -> AIMessage:
        sent.set()
        await asyncio.sleep(60)
        return say()

    async def run(graph: Any, config: Any, asked: Any) -> None:
        task = asyncio.create_task(ainvoke(graph, config))
        await asyncio.to_thread(sent.wait)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    Paying(kind, run, store).run(Provider(answers=[hang]), output_tokens=500)
    if kind == "callback":
        (hold,) = store.holds()
        assert hold.tokens > 500
        hold_id = hold.hold_id
        store.charge(T, tokens=120, settles=hold_id)
    else:
        assert used(store).tokens_used == used(store).estimated_tokens > 500


def test_a_loop_is_not_blocked_by_the_callback(store: GoalStore) -> None:
    async def main() -> tuple[float, set[str]]:
        seen: set[str] = set()
        callback = BudgetCallback(store, thread_id=T)
        begin = callback._payer.begin

        def note(*args: Any, **options: Any) -> Any:
            seen.add(threading.current_thread().name)
            return begin(*args, **options)

        callback._payer.begin = note  # type: ignore[method-assign]
        await Provider().ainvoke("Go", {"callbacks": [callback]})
        return time.monotonic(), seen

    _, seen = asyncio.run(main())
    assert seen
    assert threading.main_thread().name not in seen


# -- who pays ----------------------------------------------------------------------------------------


def test_the_argument_comes_before_the_block_and_the_block_before_the_graph(
    store: GoalStore, paying: Paying
) -> None:
    for thread_id in ("argument", "block"):
        store.create(thread_id, "Ship")
    with store.spending("block", tags={"user": "ada"}):
        paying.run(paying.provider(), thread_id="argument")
        paying.run(paying.provider())
    paying.run(paying.provider())
    assert [used(store, each).tokens_used for each in ("argument", "block", T)] == [120, 120, 120]
    assert [part.name for part in store.breakdown("block", by="user").parts] == ["ada"]


def test_a_sub_agent_with_a_child_is_paid_by_it_and_by_those_above(
    store: GoalStore, paying: Paying
) -> None:
    inner = Provider(answers=[say(read=7, written=3)])
    sub: Any = create_agent(
        inner,
        middleware=[BudgetMiddleware(store, child="researcher")]
        if paying.kind != "callback"
        else [],
    )
    if paying.kind == "callback":
        sub = sub.with_config(callbacks=[BudgetCallback(store, child="researcher")])

    def ask() -> str:
        sub.invoke(GO)
        return "ok"

    async def ask_awaited() -> str:
        await sub.ainvoke(GO)
        return "ok"

    asking = StructuredTool.from_function(ask, ask_awaited, name="ask", description="Asks.")
    paying.run(paying.provider(say("", "ask"), say()), [asking])
    assert used(store, f"{T}/researcher").tokens_used == inner.tokens == 10
    assert used(store).tokens_used == 250


def test_a_sub_graph_is_paid_by_the_thread_of_the_graph_around_it(store: GoalStore) -> None:
    model = Provider()
    state: Any = MessagesState

    def node(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    sub = StateGraph(state).add_node("call", node).add_edge(START, "call").add_edge("call", END)
    graph = StateGraph(state).add_node("call", node).add_node("sub", sub.compile())
    graph = graph.add_edge(START, "call").add_edge("call", "sub").add_edge("sub", END)
    graph.compile().invoke(
        GO, {"callbacks": [BudgetCallback(store)], "configurable": {"thread_id": T}}
    )
    assert used(store).tokens_used == model.tokens == 240


@pytest.mark.parametrize("is_awaited", [False, True])
def test_parallel_calls_on_one_budget_never_go_above_it(store: GoalStore, is_awaited: bool) -> None:
    store.set(T, token_budget=10_000)

    def answer() -> AIMessage:
        time.sleep(0.01)
        return say(read=10, written=490)

    async def wait() -> AIMessage:
        await asyncio.sleep(0.01)
        return say(read=10, written=490)

    model = Provider(answers=[wait if is_awaited else answer] * 40, max_tokens=500)
    agent = create_agent(model, middleware=[BudgetMiddleware(store)])
    config: Any = {"configurable": {"thread_id": T}}
    if is_awaited:
        done = asyncio.run(agent.abatch([GO] * 40, config, return_exceptions=True))
    else:
        done = agent.batch([GO] * 40, config, return_exceptions=True)
    refused = [each for each in done if isinstance(each, Exception)]
    assert all(isinstance(each, GraphBudgetExceededError) for each in refused)
    assert 0 < len(model.requests) == 40 - len(refused) < 40
    assert used(store).tokens_used == model.tokens <= 10_000


def test_a_refused_run_can_be_taken_up_again_with_a_higher_budget(
    store: GoalStore, way: Callable[..., Any]
) -> None:
    store.set(T, token_budget=5_000)
    kind = Streaming if "stream" in way.__name__ else Provider
    model = kind(answers=[say("", "look", read=4_900, written=20), say()])
    agent: Any = create_agent(
        model, [look], middleware=[BudgetMiddleware(store)], checkpointer=InMemorySaver()
    )
    config: Any = {"configurable": {"thread_id": T}}
    with pytest.raises(GraphBudgetExceededError):
        asyncio.run(made) if (made := way(agent, config)) else None
    store.set(T, token_budget=50_000)
    result = agent.invoke(None, config)
    assert result["messages"][-1].content == "done"
    assert used(store).tokens_used == model.tokens == 5_040


def test_a_retry_policy_does_not_try_a_refusal_again(store: GoalStore) -> None:
    store.set(T, token_budget=100)
    tried: list[int] = []
    model = Provider()

    def node(state: MessagesState) -> Any:
        tried.append(1)
        return {"messages": [model.invoke(state["messages"])]}

    state: Any = MessagesState
    graph = StateGraph(state).add_node(
        "call", node, retry_policy=RetryPolicy(initial_interval=0, retry_on=Exception)
    )
    graph = graph.add_edge(START, "call").add_edge("call", END)
    config: Any = {"callbacks": [BudgetCallback(store)], "configurable": {"thread_id": T}}
    with pytest.raises(GraphBudgetExceededError):
        graph.compile().invoke(GO, config)
    assert (len(tried), model.requests) == (1, [])


def test_the_example_stops_within_its_budget_and_needs_no_network(tmp_path: Path) -> None:
    out = python(WITHOUT_NETWORK, CHECKOUT / "examples" / "langchain_sdk.py", tmp_path)
    refusal, used_up = out.splitlines()
    assert "20000" in refusal
    assert used_up.endswith("of 20,000 tokens")
    assert list(tmp_path.iterdir()) == []
