"""What responses cost, by the prices that a host gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from goal_state import Charge, InvalidValueError, TokenUsage
from goal_state.testing.contract.subjects import ACTIVE, BUDGET_LIMITED, Subject

__all__ = ["Pricing"]


class PriceList:
    """Prices of one model, which notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[TokenUsage, str | None]] = []
        self.price: Any = Decimal("0.01")
        """Of a token of `model-1`; or an error to raise, or what to return instead of a cost."""

    def __call__(self, usage: TokenUsage, model: str | None) -> Decimal | None:
        self.asked.append((usage, model))
        if isinstance(self.price, Exception):
            raise self.price
        if not isinstance(self.price, Decimal):
            return self.price
        return usage.total_tokens * self.price if model == "model-1" else None


class Pricing:
    """What responses cost, by the prices that a host gives."""

    @pytest.fixture
    def prices(self) -> PriceList:
        """The prices of `priced`."""
        return PriceList()

    @pytest.fixture
    def priced(self, make_subject: Callable[..., Subject], prices: PriceList) -> Iterator[Subject]:
        """What the operations run in, where usage has prices."""
        subject = make_subject(prices=prices)
        subject.create("t", "Ship", cost_budget=1)
        yield subject
        subject.check()
        subject.close()

    def test_a_response_costs_what_the_prices_say(self, priced: Subject, prices: PriceList) -> None:
        usage = TokenUsage(50, 20, 0, 10)
        first = priced.charge("t", usage, model="model-1", response_id="r1").goal
        assert first is not None
        assert (first.cost_used, first.unpriced_tokens, first.status) == (Decimal("0.6"), 0, ACTIVE)
        assert prices.asked == [(usage, "model-1")] * priced.attempts
        last = priced.charge("t", TokenUsage(40), model="model-1").goal
        assert last is not None
        assert (last.cost_used, last.status, last.exhausted) == (1, BUDGET_LIMITED, ("cost",))
        charges = [event for event in priced.events() if event.calls_delta]
        assert [(event.model, event.cost_delta) for event in charges] == [
            ("model-1", Decimal("0.6")),
            ("model-1", Decimal("0.4")),
        ]

    def test_each_of_many_responses_is_priced_once(
        self, priced: Subject, prices: PriceList
    ) -> None:
        usages = [TokenUsage(10), TokenUsage(20), TokenUsage(30)]
        priced.charge_many(
            [Charge("t", usage, model="model-1") for usage in usages] + [Charge("t", tokens=5)]
        )
        assert prices.asked == [(usage, "model-1") for usage in usages] * priced.attempts
        goal = priced.get("t")
        assert goal is not None
        assert (goal.cost_used, goal.unpriced_tokens) == (Decimal("0.6"), 5)

    @pytest.mark.parametrize("model", ["model-2", None])
    def test_an_unknown_price_is_never_zero(
        self, priced: Subject, prices: PriceList, model: str | None
    ) -> None:
        goal = priced.charge("t", TokenUsage(50), model=model).goal
        assert goal is not None
        assert (goal.tokens_used, goal.unpriced_tokens, goal.cost_used) == (50, 50, 0)
        assert goal.status is ACTIVE
        assert prices.asked == [(TokenUsage(50), model)] * priced.attempts

    def test_prices_that_raise_do_not_know_and_are_logged(
        self, priced: Subject, prices: PriceList, caplog: pytest.LogCaptureFixture
    ) -> None:
        prices.price = KeyError("model-1")
        result = priced.charge("t", TokenUsage(50), model="model-1")
        assert result.goal is not None
        assert (result.applied, result.goal.unpriced_tokens) == (True, 50)
        said = [one for one in caplog.records if one.name == "goal_state.pricing"]
        assert [one.levelname for one in said] == ["WARNING"] * priced.attempts
        assert "PriceList() raised" in said[0].getMessage()

    @pytest.mark.parametrize("cost", [0.5, Decimal(-1), Decimal("NaN"), "much"])
    def test_prices_that_return_no_cost_are_refused_and_nothing_is_charged(
        self, priced: Subject, prices: PriceList, cost: Any
    ) -> None:
        prices.price = cost
        tables = priced.tables()
        with pytest.raises(InvalidValueError, match=r"PriceList\(\) returned a cost that"):
            priced.charge("t", TokenUsage(1), model="model-1")
        assert priced.tables() == tables

    def test_a_cost_that_is_named_is_not_asked_for(
        self, priced: Subject, prices: PriceList
    ) -> None:
        priced.charge("t", TokenUsage(50), model="model-1", cost="0.25")
        priced.charge("t", tokens=50, model="model-1")
        priced.record_total("t", TokenUsage(50), model="model-1")
        priced.record_total("t", TokenUsage(60), model="model-1")
        assert prices.asked == []
        goal = priced.get("t")
        assert goal is not None
        assert (goal.cost_used, goal.unpriced_tokens) == (Decimal("0.25"), 60)

    def test_a_repeat_at_another_price_charges_once_and_keeps_the_first(
        self, priced: Subject, prices: PriceList
    ) -> None:
        first = priced.charge("t", TokenUsage(50), model="model-1", response_id="r1")
        tables = priced.tables()
        prices.price = Decimal("0.5")
        again = priced.charge("t", TokenUsage(50), model="model-1", response_id="r1")
        assert (again.goal, again.duplicate) == (first.goal, True)
        assert priced.tables() == tables

    def test_a_child_and_those_above_it_pay_one_price(
        self, priced: Subject, prices: PriceList
    ) -> None:
        priced.create("child", "Build", parent="t")
        priced.charge("child", TokenUsage(30), model="model-1")
        assert [goal.cost_used for goal in priced.goals()] == [Decimal("0.3")] * 2
        assert len(prices.asked) == priced.attempts
