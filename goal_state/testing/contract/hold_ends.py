"""How holds are ended: settled, released or cut, once."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from goal_state import (
    Accounting,
    Charge,
    GoalEvent,
    IdempotencyConflictError,
    InvalidValueError,
    TokenUsage,
    UsageOverflowError,
)
from goal_state.domain.events import Estimate
from goal_state.errors import HoldEndedError
from goal_state.operations.hold import Hold
from goal_state.testing.contract.holds import goal_of, held, used
from goal_state.testing.contract.subjects import (
    ACCOUNTED,
    BUDGET_LIMITED,
    COMPLETE,
    PAUSED,
    STATUS_CHANGED,
    Subject,
    kinds,
)
from goal_state.testing.contract.wall_time import Timed

__all__ = ["FREE", "HoldEnds", "newest", "with_hold"]

FREE = (0, 0, 0, 0)


def with_hold(subject: Subject, **more: Any) -> Hold:
    """A goal with budgets, and a hold on it that lasts for ten seconds."""
    subject.create("t", "Ship", token_budget=100, cost_budget=10, call_budget=5)
    given: dict[str, Any] = {
        "tokens": 60,
        "cost": 6,
        "model": "m",
        "turn_id": "turn-1",
        "expires_in": 10,
    }
    return subject.reserve("t", **given | more)


def newest(subject: Subject) -> GoalEvent:
    """The last event."""
    return subject.events()[-1]


class HoldEnds(Timed):
    """`settle`, `release`, `cut`, and what `charge` and `record_total` settle."""

    # -- settled -----------------------------------------------------------------------------------

    def test_settle_charges_what_was_used_and_gives_back_the_rest(self, subject: Subject) -> None:
        hold = with_hold(subject, tags={"tool": "search"})
        result = hold.settle(TokenUsage(30, 10, 0, 5), cost="2.5", seconds=1.5, response_id="r1")
        goal = goal_of(subject, "t")
        assert result == Accounting(goal, applied=True)
        assert used(subject, "t") == (25, Decimal("2.5"), 1)
        assert (goal.time_used_ms, goal.estimated_tokens, goal.unpriced_tokens) == (1500, 0, 0)
        assert held(subject, "t") == FREE
        assert subject.holds() == []
        event = newest(subject)
        assert (event.kind, event.hold_id, event.estimate, event.idempotency_key) == (
            ACCOUNTED,
            hold.hold_id,
            None,
            "r1",
        )
        assert (event.model, event.turn_id, event.tags) == ("m", "turn-1", {"tool": "search"})

    def test_settle_names_its_own_model_turn_and_tags(self, subject: Subject) -> None:
        with_hold(subject).settle(tokens=1, model="n", turn_id="turn-2", tags={"a": "b"})
        event = newest(subject)
        assert (event.model, event.turn_id, event.tags) == ("n", "turn-2", {"a": "b"})

    def test_settle_without_a_price_counts_the_tokens_as_unpriced(self, subject: Subject) -> None:
        with_hold(subject).settle(TokenUsage(30))
        assert used(subject, "t") == (30, 0, 1)
        assert goal_of(subject, "t").unpriced_tokens == 30

    def test_settle_counts_the_calls_that_were_set_aside(self, subject: Subject) -> None:
        with_hold(subject, calls=3).settle(TokenUsage(30), cost=1)
        assert used(subject, "t") == (30, 1, 3)

    def test_settle_above_the_hold_and_the_budget_charges_the_truth(self, subject: Subject) -> None:
        hold = with_hold(subject)
        begun = newest(subject).position
        result = hold.settle(tokens=150, cost=12)
        assert result.applied
        assert used(subject, "t") == (150, 12, 1)
        assert goal_of(subject, "t").status is BUDGET_LIMITED
        assert kinds(subject.events(after=begun)) == [ACCOUNTED, STATUS_CHANGED]

    @pytest.mark.parametrize("status", [PAUSED, COMPLETE])
    @pytest.mark.parametrize("end", ["settle", "cut"])
    def test_an_end_charges_in_every_status_and_flips_from_active_only(
        self, subject: Subject, status: Any, end: str
    ) -> None:
        hold = with_hold(subject, tokens=100, cost=10)
        subject.set("t", status=status)
        if end == "settle":
            assert hold.settle(tokens=100, cost=10).applied
        else:
            hold.cut()
        assert used(subject, "t") == (100, 10, 1)
        assert goal_of(subject, "t").status is status

    @pytest.mark.parametrize("key", [None, "r1"])
    def test_the_same_settlement_again_returns_the_first_result(
        self, subject: Subject, key: str | None
    ) -> None:
        hold = with_hold(subject)
        hold.settle(TokenUsage(30), cost=2, seconds=1, response_id=key)
        tables = subject.tables()
        for again in (
            hold.settle(TokenUsage(30), cost=2, seconds=7, response_id=key),
            hold.settle(tokens=30, response_id=key),
            subject.charge("t", TokenUsage(30), response_id=key, settles=hold),
            subject.charge("t", tokens=30, response_id=key, settles=hold.hold_id),
        ):
            assert (again.applied, again.duplicate) == (True, True)
            assert again.goal is not None
            assert again.goal.tokens_used == 30
        assert subject.tables() == tables

    def test_a_settlement_with_other_figures_is_refused(self, subject: Subject) -> None:
        hold = with_hold(subject)
        hold.settle(TokenUsage(30), cost=2)
        tables = subject.tables()
        others: list[dict[str, Any]] = [
            {"tokens": 31},
            {"tokens": 29},
            {"tokens": 30, "cost": 3},
            {},
        ]
        for other in others:
            with pytest.raises(HoldEndedError, match=r"settled.*30 tokens, and that stands"):
                hold.settle(**other)
        assert subject.tables() == tables

    def test_a_settlement_of_a_known_response_with_other_figures_is_a_conflict(
        self, subject: Subject
    ) -> None:
        hold = with_hold(subject)
        subject.charge("t", TokenUsage(30), response_id="r1")
        tables = subject.tables()
        with pytest.raises(IdempotencyConflictError, match="'r1' has charged 30 tokens"):
            hold.settle(TokenUsage(31), response_id="r1")
        assert subject.tables() == tables
        assert subject.holds() == [hold.record]

    def test_a_response_that_was_charged_before_is_not_charged_by_the_settlement(
        self, subject: Subject
    ) -> None:
        hold = with_hold(subject)
        first = subject.charge("t", TokenUsage(30), cost=2, response_id="r1")
        for _ in range(2):
            again = hold.settle(TokenUsage(30), cost=2, response_id="r1")
            assert (again.applied, again.duplicate) == (True, True)
            assert used(subject, "t") == (30, 2, 1)
            assert held(subject, "t") == FREE
        assert first.goal is not None

    def test_a_response_that_was_settled_is_not_charged_again(self, subject: Subject) -> None:
        hold = with_hold(subject)
        hold.settle(TokenUsage(30), cost=2, response_id="r1")
        tables = subject.tables()
        assert subject.charge("t", TokenUsage(30), response_id="r1").duplicate
        with pytest.raises(IdempotencyConflictError):
            subject.charge("t", TokenUsage(31), response_id="r1")
        assert subject.tables() == tables

    def test_a_settlement_that_would_overflow_is_refused_and_the_hold_stays(
        self, subject: Subject
    ) -> None:
        subject.create("root", "Ship")
        subject.create("t", "Ship", parent="root")
        subject.charge("root", tokens=10)
        hold = subject.reserve("t", tokens=60)
        tables = subject.tables()
        with pytest.raises(UsageOverflowError):
            hold.settle(tokens=2**63 - 1)
        with pytest.raises(InvalidValueError):
            hold.settle(tokens=-1)
        assert subject.tables() == tables
        assert hold.settle(tokens=5).applied

    def test_charge_many_settles_each_hold_in_turn(self, subject: Subject) -> None:
        hold = with_hold(subject)
        other = subject.reserve("t", tokens=40, cost=4)
        results = subject.charge_many(
            [
                Charge("t", tokens=20, settles=hold.hold_id),
                Charge("t", tokens=3),
                Charge("t", tokens=20, settles=hold.hold_id),
                Charge("t", tokens=30, settles=other.hold_id),
            ]
        )
        assert [(result.applied, result.duplicate) for result in results] == [
            (True, False),
            (True, False),
            (True, True),
            (True, False),
        ]
        assert used(subject, "t") == (53, 0, 2)
        assert held(subject, "t") == FREE

    def test_record_total_settles_with_what_is_new_in_it(self, subject: Subject) -> None:
        hold = with_hold(subject)
        subject.set_baseline("t", TokenUsage(100))
        for repeat in (False, True):
            result = subject.record_total("t", TokenUsage(130), cost=2, seconds=1, settles=hold)
            assert (result.applied, result.duplicate) == (True, repeat)
            assert used(subject, "t") == (30, 2, 1)
            assert held(subject, "t") == FREE
        event = newest(subject)
        assert (event.hold_id, event.tokens_delta) == (hold.hold_id, 30)
        with pytest.raises(HoldEndedError):
            subject.record_total("t", TokenUsage(150), settles=hold)
        usage = subject.usage("t")
        assert usage is not None
        assert usage.total == TokenUsage(130)

    def test_an_overtaken_claim_settles_nothing(self, subject: Subject) -> None:
        hold = with_hold(subject)
        claim = subject.claim("t", "ada", 10).claim_number
        tables = subject.tables()
        with pytest.raises(Exception, match="was overtaken"):
            subject.charge("t", tokens=5, settles=hold, claim=claim + 1)
        assert subject.tables() == tables
        assert subject.charge("t", tokens=5, settles=hold, claim=claim).applied

    # -- released ----------------------------------------------------------------------------------

    def test_release_gives_everything_back(self, subject: Subject) -> None:
        hold = with_hold(subject)
        events = subject.events()
        hold.release()
        assert (used(subject, "t"), held(subject, "t")) == ((0, 0, 0), FREE)
        assert subject.events() == events
        tables = subject.tables()
        hold.release()
        hold.cut()
        for call in (hold.settle, lambda: hold.settle(tokens=5)):
            with pytest.raises(HoldEndedError, match="released"):
                call()
        assert subject.tables() == tables

    @pytest.mark.parametrize("end", ["settle", "cut"])
    def test_release_of_a_hold_that_was_charged_is_refused(
        self, subject: Subject, end: str
    ) -> None:
        hold = with_hold(subject)
        getattr(hold, end)()
        tables = subject.tables()
        with pytest.raises(HoldEndedError):
            hold.release()
        assert subject.tables() == tables

    # -- cut ---------------------------------------------------------------------------------------

    def test_cut_charges_the_hold_in_full_as_an_estimate(self, subject: Subject) -> None:
        hold = with_hold(subject)
        hold.cut()
        assert used(subject, "t") == (60, 6, 1)
        assert goal_of(subject, "t").estimated_tokens == 60
        assert held(subject, "t") == FREE
        event = newest(subject)
        assert (event.estimate, event.estimated_tokens_delta, event.hold_id) == (
            Estimate.MADE,
            60,
            hold.hold_id,
        )
        assert (event.model, event.turn_id) == ("m", "turn-1")
        tables = subject.tables()
        hold.cut()
        assert subject.tables() == tables

    def test_cut_of_a_hold_without_a_cost_counts_its_tokens_as_unpriced(
        self, subject: Subject
    ) -> None:
        subject.create("t", "Ship")
        subject.reserve("t", tokens=60).cut()
        goal = goal_of(subject, "t")
        assert (goal.tokens_used, goal.estimated_tokens, goal.unpriced_tokens) == (60, 60, 60)

    def test_cut_charges_what_was_observed_and_no_estimate(self, subject: Subject) -> None:
        hold = with_hold(subject)
        hold.observed(tokens=5, cost="0.5")
        hold.observed(tokens=8, cost="0.8")
        hold.cut()
        assert used(subject, "t") == (8, Decimal("0.8"), 1)
        assert goal_of(subject, "t").estimated_tokens == 0
        assert newest(subject).estimate is None

    @pytest.mark.parametrize(("cost", "unpriced"), [(None, 5), (0, 0), ("0.5", 0)])
    def test_cut_of_an_observed_call_counts_its_tokens_as_unpriced_without_a_cost(
        self, subject: Subject, cost: Any, unpriced: int
    ) -> None:
        hold = with_hold(subject)
        hold.observed(tokens=5, cost=cost)
        hold.cut()
        assert used(subject, "t") == (5, Decimal(cost or 0), 1)
        assert goal_of(subject, "t").unpriced_tokens == unpriced

    def test_cut_of_a_hold_of_cost_zero_knows_its_price(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        hold = subject.reserve("t", tokens=60, cost=0)
        assert hold.cost == 0
        hold.cut()
        goal = goal_of(subject, "t")
        assert (goal.tokens_used, goal.estimated_tokens, goal.unpriced_tokens) == (60, 60, 0)

    def test_reserve_without_a_price_tells_no_cost(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        hold = subject.reserve("t", tokens=60)
        assert (hold.cost, hold.record.to_dict()["cost"]) == (None, None)

    @pytest.mark.parametrize(
        ("field", "arguments"),
        [
            ("tokens", {"tokens": -1}),
            ("cost", {"cost": -1}),
            ("model", {"model": "m" * 257}),
            ("model", {"model": ""}),
        ],
    )
    def test_observed_refuses_malformed_values_by_name(
        self, subject: Subject, field: str, arguments: dict[str, Any]
    ) -> None:
        hold = with_hold(subject, model=None)
        tables = subject.tables()
        with pytest.raises(InvalidValueError) as caught:
            hold.observed(**arguments)
        assert caught.value.field == field
        assert subject.tables() == tables

    def test_cut_charges_nothing_where_unknown_usage_is_released(self, subject: Subject) -> None:
        hold = with_hold(subject, unknown="release")
        events = subject.events()
        hold.cut()
        assert (used(subject, "t"), held(subject, "t")) == ((0, 0, 0), FREE)
        assert subject.events() == events
        assert hold.settle(tokens=20, cost=2).applied  # what it was becomes known after all
        assert used(subject, "t") == (20, 2, 1)

    def test_cut_of_what_was_never_dispatched_charges_nothing(self, subject: Subject) -> None:
        hold = with_hold(subject, dispatched=False)
        for _ in range(2):
            hold.cut()
            assert (used(subject, "t"), held(subject, "t")) == ((0, 0, 0), FREE)
        other = subject.reserve("t", tokens=60, cost=6, dispatched=False)
        other.dispatched()
        tables = subject.tables()
        other.dispatched()
        assert subject.tables() == tables
        other.cut()
        assert used(subject, "t") == (60, 6, 1)

    def test_leaving_the_block_cuts_what_has_not_ended(self, subject: Subject) -> None:
        class StreamBrokeError(Exception):
            pass

        def stream() -> None:
            with with_hold(subject) as hold:
                hold.observed(tokens=5, cost=1)
                raise StreamBrokeError

        with pytest.raises(StreamBrokeError):
            stream()
        assert used(subject, "t") == (5, 1, 1)
        with subject.reserve("t", tokens=30, cost=3):
            pass
        assert used(subject, "t") == (35, 4, 2)

    @pytest.mark.parametrize("end", ["settle", "release", "charge", "charge by id"])
    def test_leaving_the_block_leaves_what_has_ended(self, subject: Subject, end: str) -> None:
        with with_hold(subject) as hold:
            if end == "charge":
                subject.charge("t", tokens=5, settles=hold)
            elif end == "charge by id":
                subject.charge("t", tokens=5, settles=hold.hold_id)
            elif end == "settle":
                hold.settle(tokens=5)
            else:
                hold.release()
            tables = subject.tables()
        assert subject.tables() == tables
