"""What goals are charged through metered clients, beside the ledger of the provider, which is the truth."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pytest

if find_spec("openai") is None or find_spec("anthropic") is None:
    pytest.skip("needs the agent SDKs: make test-sdks", allow_module_level=True)

import httpx2

from goal_state import BudgetExceededError, GoalStore, TokenUsage
from goal_state.prices import GenaiPrices
from tests.sdks.clients import APIS, MODELS, Caller
from tests.sdks.provider import Provider, Reply

pytestmark = [
    pytest.mark.parametrize("api", APIS),
    pytest.mark.parametrize("is_async", [False, True]),
]


class Calls(Protocol):
    """Makes a caller of the API that the test is run with."""

    def __call__(self, provider: Provider, thread_id: str = "t", **metering: Any) -> Caller: ...


@pytest.fixture
def calls(api: str, is_async: bool, store: GoalStore) -> Calls:
    def new(provider: Provider, thread_id: str = "t", **metering: Any) -> Caller:
        return Caller(api, is_async, provider, store, {"thread_id": thread_id, **metering})

    return new


@contextmanager
def figures_named(caller: Caller) -> Iterator[None]:
    """Has a failure name the SDK."""
    try:
        yield
    except AssertionError as error:
        error.add_note(str(caller))
        raise


def check(caller: Caller, store: GoalStore, thread_id: str = "t") -> None:
    """The goal has paid what the ledger says, and nothing is left open."""
    goal = store.get(thread_id)
    assert goal is not None
    with figures_named(caller):
        assert goal.tokens_used == caller.provider.tokens
        assert goal.calls_used == len(caller.provider.ledger)
        assert goal.estimated_tokens == 0
        assert store.holds() == []
        assert store.verify() == []


def charged(store: GoalStore, thread_id: str) -> list[int]:
    """The tokens of each charge of a thread's."""
    return [
        event.tokens_delta
        for event in store.events(thread_id=thread_id)
        if event.kind == "usage_accounted"
    ]


def within_the_cap(body: Mapping[str, Any]) -> Reply:
    """A model that says as much as it may."""
    cap = body.get("max_tokens") or body.get("max_completion_tokens") or body["max_output_tokens"]
    return Reply(TokenUsage(5, output_tokens=cap))


def many_at_once(caller: Caller, count: int) -> list[Any]:
    """What became of so many calls that are made at the same time: an answer or a refusal each."""
    if caller.is_async:

        async def gathered() -> list[Any]:
            asking = (caller.asked_awaited(f"tool {number}") for number in range(count))
            return await asyncio.gather(*asking, return_exceptions=True)

        return asyncio.run(gathered())

    def one(number: int) -> Any:
        try:
            return caller.asked(f"tool {number}")
        except BudgetExceededError as refusal:
            return refusal

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_every_response_is_charged_once(calls: Calls, store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=100_000)
    usages = [TokenUsage(100 + n, 10 * n, 0, 20 + n, n) for n in range(8)]
    caller = calls(Provider(*(Reply(usage) for usage in usages)))
    for number in range(8):
        caller.ask(stream=number % 2 == 1)
    assert len(caller.provider.ledger) == 8
    check(caller, store)
    with figures_named(caller):
        assert charged(store, "t") == [usage.goal_tokens for usage in usages]


def test_no_request_is_made_after_a_refusal(calls: Calls, store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=1_000)
    caller = calls(Provider(always=within_the_cap))
    made = 0
    with suppress(BudgetExceededError):
        while made < 10:
            caller.ask()
            made += 1
    assert 0 < made < 10
    for stream in (False, True):
        with pytest.raises(BudgetExceededError) as refusal:
            caller.ask(stream=stream)
        assert refusal.value.thread_id == "t"
    assert len(caller.provider.requests) == made
    assert caller.provider.tokens <= 1_000
    check(caller, store)


def test_parent_and_child_pay_from_one_pool(calls: Calls, store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=1_300)
    provider = Provider(always=within_the_cap)
    parent, child = calls(provider), calls(provider, child="critic")
    parent.ask(cap=400)
    child.ask(cap=400)
    parent.ask(cap=400)
    with pytest.raises(BudgetExceededError) as refusal:
        child.ask(cap=400)
    assert refusal.value.thread_id == "t"
    check(parent, store)
    (critic,) = store.children("t")
    assert (critic.thread_id, critic.tokens_used) == ("t/critic", 405)
    assert len(provider.requests) == 3


def test_parallel_tools_on_a_short_remainder_stay_within_it(calls: Calls, store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=2_000)
    slow = Provider(always=lambda body: Reply(within_the_cap(body).usage, delay_seconds=0.05))
    caller = calls(slow)
    outcomes = many_at_once(caller, 8)
    refused = [each for each in outcomes if isinstance(each, BudgetExceededError)]
    answered = [each for each in outcomes if not isinstance(each, BaseException)]
    assert len(refused) + len(answered) == 8
    assert refused
    assert len(answered) == len(slow.requests) == len(slow.ledger) >= 3
    assert slow.tokens <= 2_000
    check(caller, store)


def test_a_failed_tools_retry_is_charged_and_a_repeated_response_is_not(
    calls: Calls, store: GoalStore
) -> None:
    store.create("t", "Ship", token_budget=100_000)
    tool = (("search", {"query": "parser"}),)
    first = Reply(TokenUsage(100, output_tokens=30), tools=tool, response_id="r-1")
    again = Reply(TokenUsage(160, output_tokens=30), tools=tool, response_id="r-2")
    caller = calls(Provider(first, again, again, first))
    caller.ask()
    caller.ask("search failed: try again")
    figures = store.get("t")
    assert figures is not None
    assert figures.tokens_used == 130 + 190
    caller.ask("search failed: try again", stream=True)  # what a cache between repeats
    caller.ask()
    goal = store.get("t")
    assert goal is not None
    with figures_named(caller):
        assert goal.tokens_used == 130 + 190
        assert goal.calls_used == 2
        assert store.holds() == []
        assert store.verify() == []


@pytest.mark.parametrize("counted", ["uncached", "all"])
def test_a_growing_context_is_counted_whole_or_without_what_is_cached(
    api: str, is_async: bool, counted: str, path: Path
) -> None:
    turns = [TokenUsage(100 * n, 100 * (n - 1), 0, 20) for n in range(1, 11)]
    provider = Provider(*(Reply(usage) for usage in turns))
    with GoalStore.open(path, counted_tokens=counted) as store:
        store.create("t", "Ship", token_budget=100_000)
        caller = Caller(api, is_async, provider, store, {"thread_id": "t"})
        for number in range(10):
            caller.ask("word " * 60 * (number + 1), stream=number % 3 == 0)
        goal = store.get("t")
        assert goal is not None
        with figures_named(caller):
            assert goal.tokens_used == (
                provider.tokens if counted == "uncached" else provider.all_tokens
            )
        assert store.verify() == []


def test_streamed_calls_are_charged_as_whole_ones(calls: Calls, store: GoalStore) -> None:
    usage = TokenUsage(1_000, 600, 0, 300, 100)
    for thread_id, stream in (("whole", False), ("streamed", True)):
        store.create(thread_id, "Ship", token_budget=100_000)
        caller = calls(Provider(always=Reply(usage, text="word " * 50)), thread_id)
        caller.ask(stream=stream)
        check(caller, store, thread_id)
        with figures_named(caller):
            assert charged(store, thread_id) == [700]


def test_a_huge_tool_output_is_settled_above_its_hold(calls: Calls, store: GoalStore) -> None:
    store.create("t", "Ship", token_budget=10_000)
    caller = calls(Provider(Reply(TokenUsage(50_000, output_tokens=20))))
    caller.ask()
    check(caller, store)
    goal = store.get("t")
    assert goal is not None
    assert (goal.tokens_used, goal.status) == (50_020, "budget_limited")
    with pytest.raises(BudgetExceededError):
        caller.ask()
    assert len(caller.provider.requests) == 1


def test_a_system_prompt_of_each_turn_is_free_where_it_is_cached(
    calls: Calls, store: GoalStore, api: str
) -> None:
    store.create("t", "Ship", token_budget=4_000)
    write, read = TokenUsage(1_100, 0, 1_000, 20), TokenUsage(1_100, 1_000, 0, 20)
    if api == "chat":
        write = TokenUsage(1_100, output_tokens=20)
    caller = calls(Provider(Reply(write), always=Reply(read)))
    # What it is estimated to use without a cache would not leave room for half of them.
    prompt = "You are a careful engineer. " * 110
    for _ in range(12):
        caller.ask(prompt)
    check(caller, store)
    goal = store.get("t")
    assert goal is not None
    assert goal.tokens_used == 1_120 + 11 * 120


def test_a_to_b_to_c_is_shown_as_own_usage_and_with_what_is_below(
    calls: Calls, store: GoalStore
) -> None:
    store.create("a", "Ship", token_budget=100_000)
    provider = Provider(*(Reply(TokenUsage(100 * n, output_tokens=10)) for n in (1, 2, 4)))
    a = calls(provider, "a")
    b = calls(provider, "a", child="b")
    c = calls(provider, "a/b", child="c")
    for caller in (a, b, c):
        caller.ask()
    check(a, store, "a")
    used = {goal.thread_id: goal.tokens_used for goal in store.goals()}
    with figures_named(a):
        assert used == {"a": 730, "a/b": 620, "a/b/c": 410}
        assert [goal.thread_id for goal in store.children("a")] == ["a/b"]
        assert [goal.thread_id for goal in store.children("a/b")] == ["a/b/c"]
        for thread_id, parts in (("a", {110, 620}), ("a/b", {210, 410})):
            breakdown = store.breakdown(thread_id)
            assert breakdown is not None
            assert {part.tokens for part in breakdown.parts} == parts


@pytest.mark.parametrize("stream", [False, True])
def test_a_time_out_costs_nothing_unless_it_may_have_been_carried_out(
    api: str, is_async: bool, stream: bool, store: GoalStore
) -> None:
    store.create("t", "Ship", token_budget=100_000)
    provider = Provider(
        Reply(error=httpx2.ConnectTimeout), Reply(error=httpx2.ReadTimeout, carried_out=True)
    )
    caller = Caller(api, is_async, provider, store, {"thread_id": "t"}, {"max_retries": 0})
    with pytest.raises(Exception, match=r"(?i)timed out"):
        caller.ask(stream=stream)
    goal = store.get("t")
    assert goal is not None
    with figures_named(caller):
        assert (goal.tokens_used, goal.calls_used) == (0, 0)
    with pytest.raises(Exception, match=r"(?i)timed out"):
        caller.ask(stream=stream)
    goal = store.get("t")
    assert goal is not None
    with figures_named(caller):
        assert goal.tokens_used == goal.estimated_tokens >= provider.tokens == 120
        assert goal.calls_used == 1
        assert store.holds() == []
        assert store.verify() == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_call_costs_nothing_unless_it_was_sent(
    calls: Calls, store: GoalStore, is_async: bool, stream: bool
) -> None:
    store.create("t", "Ship", token_budget=100_000)
    if not is_async:

        def interrupt() -> None:
            raise KeyboardInterrupt

        caller = calls(Provider(Reply(before=interrupt)))
        with pytest.raises(KeyboardInterrupt):
            caller.ask(stream=stream)
    else:
        sent = asyncio.Event()

        async def wait() -> None:
            sent.set()
            await asyncio.sleep(60)

        caller = calls(Provider(Reply(before=wait)))

        async def cancelled() -> None:
            unsent = asyncio.create_task(caller.asked_awaited(stream=stream))
            await asyncio.sleep(0)  # it has asked for its hold
            unsent.cancel()
            with pytest.raises(asyncio.CancelledError):
                await unsent
            assert caller.provider.requests == []
            goal = store.get("t")
            assert goal is not None
            assert goal.tokens_used == 0
            task = asyncio.create_task(caller.asked_awaited(stream=stream))
            await sent.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
    goal = store.get("t")
    assert goal is not None
    with figures_named(caller):
        assert len(caller.provider.requests) == 1
        assert 500 < goal.tokens_used == goal.estimated_tokens < 600
        assert goal.calls_used == 1
        assert store.holds() == []
        assert store.verify() == []


def test_a_budget_that_is_raised_in_the_middle_lets_a_run_go_on(
    calls: Calls, store: GoalStore
) -> None:
    store.create("t", "Ship", token_budget=600)
    caller = calls(Provider(always=within_the_cap))
    caller.ask()
    with pytest.raises(BudgetExceededError):
        caller.ask()
    store.resume("t", token_budget=1_200)
    caller.ask()
    assert len(caller.provider.ledger) == 2
    check(caller, store)


def unlogged(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    return {}


def logged(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name in ("anthropic", "openai", "httpx2", "goal_state"):
        patch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    return {}


def traced(ratio: float) -> Callable[[pytest.MonkeyPatch], dict[str, Any]]:
    def options(patch: pytest.MonkeyPatch) -> dict[str, Any]:
        sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling")
        trace = pytest.importorskip("opentelemetry.sdk.trace")
        provider = trace.TracerProvider(sampler=sampling.TraceIdRatioBased(ratio))
        return {"open_telemetry": {"tracer_provider": provider}}

    return options


@pytest.mark.parametrize(
    "watched",
    [unlogged, logged, traced(0.0), traced(1.0)],
    ids=["unlogged", "logged", "no trace sampled", "every trace sampled"],
)
def test_totals_do_not_depend_on_traces_being_sampled(
    api: str,
    is_async: bool,
    store: GoalStore,
    watched: Callable[[pytest.MonkeyPatch], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = watched(monkeypatch)
    if options and api != "messages":
        pytest.skip("this SDK traces nothing itself")
    store.create("t", "Ship", token_budget=100_000)
    caller = Caller(api, is_async, Provider(), store, {"thread_id": "t"}, options)
    for stream in (False, True, False, True):
        caller.ask(stream=stream)
    check(caller, store)
    assert caller.provider.tokens == 480


def test_costs_are_what_the_ledger_costs_at_the_models_prices(
    api: str, is_async: bool, path: Path
) -> None:
    usages = [TokenUsage(10_000, 4_000, 0, 300, 100), TokenUsage(2_000, output_tokens=50)]
    provider = Provider(*(Reply(usage) for usage in usages))
    prices = GenaiPrices()
    with GoalStore.open(path, prices=prices) as store:
        store.create("t", "Ship", cost_budget="1.00")
        caller = Caller(api, is_async, provider, store, {"thread_id": "t"})
        caller.ask()
        caller.ask(stream=True)
        goal = store.get("t")
        assert goal is not None
        costs = [prices(usage, MODELS[api]) for usage in usages]
        with figures_named(caller):
            assert goal.cost_used == sum(cost for cost in costs if cost is not None) > Decimal(0)
            assert goal.unpriced_tokens == 0
        with pytest.raises(BudgetExceededError) as refusal:
            caller.ask("word " * 3_000_000)
        assert refusal.value.kind == "cost"
        assert store.verify() == []
