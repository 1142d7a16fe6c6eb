"""What adapters share: who pays for a model call, what is set aside for it, and what becomes of that."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from goal_state import (
    AsyncGoalStore,
    BudgetExceededError,
    GoalNotFoundError,
    GoalStore,
    InvalidValueError,
    TokenUsage,
)
from goal_state.operations.spending import current_spending
from goal_state.paid_calls import Payer, call, prompt_tokens
from goal_state.paid_calls import payer as payer_module
from goal_state.paid_calls.refusals import refusal_as, was_never_sent
from tests.in_memory import open_in_memory


@pytest.fixture
def store() -> Iterator[GoalStore]:
    with open_in_memory() as opened:
        opened.create("t", "Ship", token_budget=10_000)
        yield opened


class Awaited:
    """A payer whose calls of asyncio are run to their end, one after the other, as if they were plain."""

    def __init__(self, payer: Payer, runner: asyncio.Runner) -> None:
        self._payer = payer
        self._run = lambda work: runner.run(work, context=copy_context())

    @contextmanager
    def begin(self, *args: Any, **options: Any) -> Iterator[Any]:
        async def begin() -> Any:
            return await self._payer.begin_awaited(*args, **options)

        paid = self._run(begin())
        try:
            yield _Plain(paid, self._run)
        except BaseException as error:
            self._run(paid.__aexit__(type(error), error, None))
            raise
        else:
            self._run(paid.__aexit__(None, None, None))


class _Plain:
    def __init__(self, paid: Any, run: Callable[[Any], Any]) -> None:
        self._paid = paid
        self._run = run

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._paid, name)
        if name not in {"observed", "refused", "answered"}:
            return value
        return lambda *args, **options: self._run(value(*args, **options))


@pytest.fixture(params=["plain", "awaited"])
def paying(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes a payer whose calls are plain, or awaited."""
    if request.param == "plain":
        yield Payer
        return
    with asyncio.Runner() as runner:
        yield lambda *args, **options: Awaited(Payer(*args, **options), runner)


def used(store: GoalStore, thread_id: str = "t") -> int:
    goal = store.get(thread_id)
    assert goal is not None
    assert goal.live_holds == 0
    assert store.verify() == []
    return goal.tokens_used


class TestWhoPays:
    def test_begin_without_a_thread_is_refused(
        self, store: GoalStore, paying: Callable[..., Any]
    ) -> None:
        with (
            pytest.raises(InvalidValueError, match=r"store\.spending") as caught,
            paying(store).begin(10, model=None),
        ):
            pass
        assert caught.value.field == "thread_id"

    @pytest.mark.parametrize(
        ("argument", "block", "sdk", "payer"),
        [
            ("a", "b", "c", "a"),
            (None, "b", "c", "b"),
            (None, None, "c", "c"),
            ("a", None, "c", "a"),
        ],
    )
    def test_begin_takes_the_argument_before_the_block_before_the_sdk(
        self,
        store: GoalStore,
        paying: Callable[..., Any],
        argument: str | None,
        block: str | None,
        sdk: str | None,
        payer: str,
    ) -> None:
        for thread_id in "abc":
            store.create(thread_id, "Ship")

        def call() -> None:
            begun = paying(store, thread_id=argument).begin(10, model=None, thread_id=sdk)
            with begun as paid:
                paid.answered(TokenUsage(10, output_tokens=1))

        if block is None:
            call()
        else:
            with store.spending(block):
                call()
        assert [used(store, thread_id) for thread_id in "abc"] == [
            11 if thread_id == payer else 0 for thread_id in "abc"
        ]

    def test_begin_for_a_thread_without_a_goal_is_refused(
        self, store: GoalStore, paying: Callable[..., Any]
    ) -> None:
        with (
            pytest.raises(GoalNotFoundError),
            paying(store, thread_id="nobody").begin(10, model=None),
        ):
            pass

    def test_spending_gives_its_turn_and_tags_to_the_charge(
        self, store: GoalStore, paying: Callable[..., Any]
    ) -> None:
        payer = paying(store)
        with (
            store.spending("t", turn_id="turn-1", tags={"user": "ada"}),
            payer.begin(10, model="m") as paid,
        ):
            paid.answered(TokenUsage(10, output_tokens=1))
        event = list(store.events())[-1]
        assert (event.turn_id, event.tags, event.model) == ("turn-1", {"user": "ada"}, "m")

    def test_child_pays_from_its_own_goal_and_its_parents(
        self, store: GoalStore, paying: Callable[..., Any]
    ) -> None:
        payer = paying(store, thread_id="t", child="researcher")
        for _ in range(2):
            with payer.begin(10, model=None) as paid:
                paid.answered(TokenUsage(10, output_tokens=1))
        parent, child = store.get("t"), store.get("t/researcher")
        assert parent is not None
        assert child is not None
        assert (child.parent_goal_id, child.objective) == (parent.goal_id, "researcher")
        assert (used(store), used(store, "t/researcher")) == (22, 22)

    def test_child_of_a_thread_whose_goal_was_replaced_gets_a_goal_below_the_new_one(
        self, store: GoalStore, paying: Callable[..., Any]
    ) -> None:
        payer = paying(store, thread_id="t", child="researcher")
        for _ in range(2):
            parent = store.replace("t", "Ship again", token_budget=10_000)
            with payer.begin(10, model=None) as paid:
                paid.answered(TokenUsage(10, output_tokens=1))
            child = store.get("t/researcher")
            assert child is not None
            assert child.parent_goal_id == parent.goal_id
            assert (used(store), used(store, "t/researcher")) == (11, 11)

    @pytest.mark.parametrize("parent", ["t", "month", None])
    def test_child_whose_goal_the_host_has_made_pays_from_that(
        self, store: GoalStore, paying: Callable[..., Any], parent: str | None
    ) -> None:
        store.create("month", "Spend")
        made = store.create("t/researcher", "Find it", parent=parent, token_budget=300)
        payer = paying(store, thread_id="t", child="researcher")
        with payer.begin(10, model=None) as paid:
            assert paid.output_tokens == 290
            paid.answered(TokenUsage(10, output_tokens=1))
        child = store.get("t/researcher")
        assert child is not None
        assert (child.goal_id, child.tokens_used) == (made.goal_id, 11)
        assert used(store) == (11 if parent == "t" else 0)

    def test_child_of_a_thread_without_a_goal_is_refused(
        self, store: GoalStore, paying: Callable[..., Any]
    ) -> None:
        payer = paying(store, thread_id="nobody", child="researcher")
        with pytest.raises(GoalNotFoundError), payer.begin(10, model=None):
            pass
        assert store.get("nobody/researcher") is None

    def test_store_of_the_other_kind_serves_as_well(self) -> None:
        async def main() -> None:
            async with AsyncGoalStore.open(":memory:") as store:
                await store.create("t", "Ship")
                payer = Payer(store, thread_id="t")
                with payer.begin(10, model=None) as plain:
                    plain.answered(TokenUsage(10))
                async with await payer.begin_awaited(10, model=None) as awaited:
                    await awaited.answered(TokenUsage(10))
                goal = await store.get("t")
                assert goal is not None
                assert goal.tokens_used == 20

        asyncio.run(main())

    def test_payer_without_a_store_is_refused(self) -> None:
        with pytest.raises(InvalidValueError, match="AsyncGoalStore"):
            Payer("goals.db")  # type: ignore[arg-type]


class TestSpending:
    def test_inner_block_takes_the_place_of_the_outer_one_until_it_ends(
        self, store: GoalStore
    ) -> None:
        named = []
        with store.spending("outer"):
            with store.spending("inner"):
                named.append(current_spending())
            named.append(current_spending())
        named.append(current_spending())
        assert [spending and spending.thread_id for spending in named] == ["inner", "outer", None]

    def test_block_that_raises_ends(self, store: GoalStore) -> None:
        with pytest.raises(ZeroDivisionError), store.spending("t"):
            raise ZeroDivisionError
        assert current_spending() is None

    def test_tasks_begun_inside_have_it_and_other_tasks_and_threads_have_not(
        self, store: GoalStore
    ) -> None:
        async def look() -> str | None:
            await asyncio.sleep(0)
            spending = current_spending()
            return spending and spending.thread_id

        async def name(thread_id: str) -> str | None:
            with store.spending(thread_id):
                return await asyncio.create_task(look())

        async def main() -> list[str | None]:
            return await asyncio.gather(look(), name("a"), name("b"), look())

        seen: list[object] = []
        with store.spending("outer"):
            thread = threading.Thread(target=lambda: seen.append(current_spending()))
            thread.start()
            thread.join()
        assert asyncio.run(main()) == [None, "a", "b", None]
        assert seen == [None]

    @pytest.mark.parametrize(
        ("field", "arguments"),
        [
            ("thread_id", {"thread_id": ""}),
            ("turn_id", {"thread_id": "t", "turn_id": ""}),
            ("tags", {"thread_id": "t", "tags": {"user": ""}}),
        ],
    )
    def test_malformed_value_is_refused_by_name(
        self, store: GoalStore, field: str, arguments: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidValueError) as caught:
            store.spending(**arguments)
        assert caught.value.field == field


class TestWhatIsSetAside:
    @pytest.mark.parametrize(
        ("prompt", "asked", "granted"),
        [
            (1_000, None, 4_096),
            (1_000, 500, 500),
            (9_000, None, 1_000),  # cut to what is left
            (9_744, None, 256),
            (9_950, 50, 50),
        ],
    )
    def test_output_is_capped_by_the_call_or_by_what_is_left(
        self,
        store: GoalStore,
        paying: Callable[..., Any],
        prompt: int,
        asked: int | None,
        granted: int,
    ) -> None:
        payer = paying(store, thread_id="t")
        with payer.begin(prompt, model=None, output_tokens=asked) as paid:
            assert paid.output_tokens == granted
            assert paid.hold.tokens == prompt + granted
            paid.refused()

    @pytest.mark.parametrize(
        ("prompt", "asked", "least"), [(9_745, None, 256), (9_951, 50, 256), (9_000, None, 1_001)]
    )
    def test_call_is_refused_where_the_shortest_answer_is_not_left(
        self,
        store: GoalStore,
        paying: Callable[..., Any],
        prompt: int,
        asked: int | None,
        least: int,
    ) -> None:
        payer = paying(store, thread_id="t")
        with (
            pytest.raises(BudgetExceededError),
            payer.begin(prompt, model=None, output_tokens=asked, least_output_tokens=least),
        ):
            pass
        assert used(store) == 0

    def test_calls_side_by_side_stay_within_the_budget(
        self, store: GoalStore, paying: Callable[..., Any]
    ) -> None:
        payer = paying(store, thread_id="t", output_tokens=5_000)
        with payer.begin(1_000, model=None) as first:
            with payer.begin(1_000, model=None) as second:
                assert (first.output_tokens, second.output_tokens) == (5_000, 3_000)
                with (
                    pytest.raises(BudgetExceededError) as caught,
                    payer.begin(1_000, model=None),
                ):
                    pass
                assert caught.value.waiting_helps
                second.answered(TokenUsage(1_000, output_tokens=3_000))
            first.answered(TokenUsage(1_000, output_tokens=5_000))
        assert used(store) == 10_000

    def test_prompt_that_was_cached_before_is_expected_to_be_again_where_little_is_left(
        self, store: GoalStore, paying: Callable[..., Any]
    ) -> None:
        payer = paying(store, thread_id="t")
        for usage in (
            TokenUsage(8_000, 0, 7_900, output_tokens=100),
            TokenUsage(9_000, 7_900, 1_000, output_tokens=200),
        ):
            with payer.begin(usage.input_tokens, model="m") as paid:
                assert paid.hold.tokens == 10_000 - (8_100 if usage.cached_input_tokens else 0)
                paid.answered(usage)
        assert used(store) == 8_100 + 1_300
        # Another model has a cache of its own.
        with pytest.raises(BudgetExceededError), payer.begin(9_000, model="other"):
            pass

    def test_what_was_cached_is_remembered_of_so_many_conversations(
        self, store: GoalStore, paying: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(payer_module, "_MOST_REMEMBERED", 1)
        payer = paying(store, thread_id="t")
        for model in ("m", "other"):
            with payer.begin(2_000, model=model) as paid:
                paid.answered(TokenUsage(2_000, 0, 2_000, output_tokens=1_000))
        with pytest.raises(BudgetExceededError), payer.begin(4_000, model="m"):
            pass
        with payer.begin(4_000, model="other") as paid:
            paid.refused()

    def test_cap_is_by_the_whole_prompt_where_that_is_left(
        self, store: GoalStore, paying: Callable[..., Any]
    ) -> None:
        payer = paying(store, thread_id="t")
        with payer.begin(3_000, model="m") as paid:
            paid.answered(TokenUsage(3_000, 0, 3_000, output_tokens=2_000))
        with payer.begin(4_000, model="m") as paid:
            assert paid.output_tokens == 1_000
            paid.refused()

    def test_cap_stays_within_what_is_granted_however_tokens_count(
        self, paying: Callable[..., Any]
    ) -> None:
        def dear_output(usage: TokenUsage) -> int:
            return usage.input_tokens + 5 * usage.output_tokens

        with open_in_memory(counted_tokens=dear_output) as store:
            store.create("t", "Ship", token_budget=10_000)
            with paying(store, thread_id="t").begin(1_001, model=None) as paid:
                assert paid.output_tokens == (10_000 - 1_001) // 5
                paid.answered(TokenUsage(1_001, output_tokens=paid.output_tokens))
            assert used(store) == 9_996

    def test_cost_budget_bounds_the_output(self, paying: Callable[..., Any]) -> None:
        def prices(usage: TokenUsage, model: str | None) -> Decimal | None:
            return Decimal(usage.input_tokens + 4 * usage.output_tokens) / 1_000

        with open_in_memory(prices=prices) as store:
            store.create("t", "Ship", cost_budget=5)
            with paying(store, thread_id="t").begin(1_000, model="m") as paid:
                assert 256 <= paid.output_tokens <= 1_000
                paid.answered(TokenUsage(1_000, output_tokens=paid.output_tokens))
            goal = store.get("t")
            assert goal is not None
            assert goal.cost_used <= 5


class TestWhatBecomesOfIt:
    def test_answer_is_charged_once_by_its_id(
        self, store: GoalStore, paying: Callable[..., Any]
    ) -> None:
        payer = paying(store, thread_id="t")
        for _ in range(2):
            with payer.begin(100, model="m") as paid:
                paid.answered(TokenUsage(100, output_tokens=7), response_id="r", model="m-2026")
        event = list(store.events())[-1]
        assert (used(store), event.model) == (107, "m-2026")

    def test_answer_with_the_id_of_another_is_charged_and_told(
        self, store: GoalStore, paying: Callable[..., Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        payer = paying(store, thread_id="t")
        for output in (7, 8):
            with payer.begin(100, model=None) as paid:
                paid.answered(TokenUsage(100, output_tokens=output), response_id="same")
        assert used(store) == 215
        assert "names two responses alike" in caplog.text

    @pytest.mark.parametrize(
        "usage", [None, TokenUsage(), SimpleNamespace(tokenz=12), {"input_tokens": -1}]
    )
    def test_answer_of_unknown_usage_is_charged_as_an_estimate(
        self,
        store: GoalStore,
        paying: Callable[..., Any],
        usage: object,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with paying(store, thread_id="t", output_tokens=900).begin(100, model=None) as paid:
            paid.answered(usage, response_id="r")
        goal = store.get("t")
        assert goal is not None
        assert (used(store), goal.estimated_tokens) == (1_000, 1_000)
        told = any(record.levelno == logging.WARNING for record in caplog.records)
        assert told == (usage not in (None, TokenUsage()))

    def test_answer_whose_cost_alone_is_known_is_charged_that(
        self, store: GoalStore, paying: Callable[..., Any]
    ) -> None:
        with paying(store, thread_id="t").begin(100, model=None) as paid:
            paid.answered(None, cost="0.25")
        goal = store.get("t")
        assert goal is not None
        assert (used(store), goal.cost_used) == (0, Decimal("0.25"))

    def test_refused_call_is_charged_nothing(
        self, store: GoalStore, paying: Callable[..., Any]
    ) -> None:
        with (
            suppress(ZeroDivisionError),
            paying(store, thread_id="t").begin(100, model=None) as paid,
        ):
            paid.refused()
            raise ZeroDivisionError
        assert used(store) == 0

    @pytest.mark.parametrize(
        ("observed", "charged"),
        [([], 1_000), ([TokenUsage(120, output_tokens=3), TokenUsage(120, output_tokens=9)], 129)],
    )
    def test_call_that_breaks_off_is_charged_what_was_observed_or_all(
        self,
        store: GoalStore,
        paying: Callable[..., Any],
        observed: list[TokenUsage],
        charged: int,
    ) -> None:
        payer = paying(store, thread_id="t", output_tokens=900)
        with suppress(ZeroDivisionError), payer.begin(100, model=None) as paid:
            for usage in observed:
                paid.observed(usage)
            paid.observed(SimpleNamespace(nothing="known"))
            raise ZeroDivisionError
        assert used(store) == charged

    def test_stream_goes_on_and_is_settled_though_its_hold_has_ended(
        self, store: GoalStore, paying: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(call, "EXPIRES_IN_SECONDS", 0.001)  # so that it is extended each time
        with paying(store, thread_id="t", output_tokens=900).begin(100, model=None) as paid:
            store.apply(_end(paid.hold.hold_id))
            paid.observed(TokenUsage(100, output_tokens=2_000))
            paid.answered(TokenUsage(100, output_tokens=2_000))
        goal = store.get("t")
        assert goal is not None
        assert (used(store), goal.estimated_tokens) == (2_100, 0)

    def test_hold_of_a_long_stream_is_extended(
        self, store: GoalStore, paying: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with paying(store, thread_id="t").begin(100, model=None) as paid:
            before = paid.hold.expires_at
            paid.observed(TokenUsage(100, output_tokens=2))
            assert paid.hold.expires_at == before
            monkeypatch.setattr(call, "EXPIRES_IN_SECONDS", 1_000.0)
            monkeypatch.setattr(call.time, "monotonic", _later(500.0))
            paid.observed(TokenUsage(100, output_tokens=3))
            assert (paid.hold.expires_at - before).total_seconds() > 300
            paid.refused()


def test_what_is_called_inside_of_a_payers_block_is_paid_by_its_goal_or_a_child_of_it(
    store: GoalStore,
) -> None:
    with store.spending("t", turn_id="turn-1", tags={"user": "ada"}):
        block = Payer(store, child="researcher").spending()
    with block:
        named = current_spending()
        assert named is not None
        assert named == ("t/researcher", "turn-1", {"user": "ada"})
    with Payer(store).spending("sdk"):
        assert current_spending() == ("sdk", None, None)
    assert current_spending() is None
    with pytest.raises(InvalidValueError, match="thread_id"):
        Payer(store).spending()


def _end(hold_id: str) -> Any:
    from goal_state.domain.hold_requests import EndHold

    return EndHold(hold_id)


def _later(seconds: float) -> Callable[[], float]:
    from time import monotonic

    return lambda: monotonic() + seconds


class _SdkLimitError(BudgetExceededError, OSError):
    pass


class TestRefusals:
    def test_refusal_as_an_error_of_an_sdk_keeps_its_words_and_figures(
        self, store: GoalStore
    ) -> None:
        with pytest.raises(BudgetExceededError) as caught:
            store.reserve("t", tokens=10_001)
        refusal = refusal_as(_SdkLimitError, caught.value)
        assert isinstance(refusal, OSError)
        assert str(refusal) == str(caught.value)
        assert vars(refusal) == vars(caught.value)
        assert (refusal.budget, refusal.asked, refusal.thread_id) == (10_000, 10_001, "t")

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["ConnectError"], True),
            (["APIConnectionError", "Wrapped", "PoolTimeout"], True),
            (["APIConnectionError", "ReadTimeout"], False),
            (["APIConnectionError"], False),
        ],
    )
    def test_request_was_never_sent_where_no_connection_was_made(
        self, names: list[str], expected: bool
    ) -> None:
        error: BaseException | None = None
        for name in reversed(names):
            outer = type(name, (Exception,), {})()
            outer.__cause__ = error
            error = outer
        assert error is not None
        assert was_never_sent(error) is expected


@dataclass
class _Tool:
    name: str
    description: str | None


class TestPromptTokens:
    @pytest.mark.parametrize(
        ("prompt", "tokens"),
        [
            ("", 0),
            (None, 0),
            ("four", 2),
            ("日本語", 3),
            ([{"role": "user", "content": "hello"}], 2 + 2 + 3 + 2),
            (b"\x89PNG", 2_000),
            ("data:image/png;base64,iVBORw0KGgo", 2_000),
            ("A" * 100_000, 2_000),
            ("word " * 3_000, 5_000),
            (_Tool("find", None), 2),
            (SimpleNamespace(model_dump=lambda **_: {"a": "bcd"}), 2),
            (7, 1),
            ("\ud800", 1),
        ],
    )
    def test_prompt_is_told_from_its_size(self, prompt: object, tokens: int) -> None:
        assert prompt_tokens(prompt) == tokens
        assert prompt_tokens(prompt, prompt) == 2 * tokens

    def test_prompt_that_holds_itself_comes_to_an_end(self) -> None:
        messages: list[object] = ["hi"]
        messages += [messages, messages]
        assert prompt_tokens(messages) > 0
