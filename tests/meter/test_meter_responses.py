"""What a turn pays that is charged response by response."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from goal_state import (
    GoalMeter,
    GoalStatus,
    GoalStore,
    IdempotencyConflictError,
    InvalidValueError,
    TokenUsage,
    TurnError,
    UsageOverflowError,
)
from goal_state.testing.clock import Clock
from tests.meter.figures import THREAD, MakeMeter, paid


def test_charge_of_several_responses_adds_each_of_them(store: GoalStore, meter: GoalMeter) -> None:
    store.create(THREAD, "work", token_budget=1_000)
    meter.start_turn("turn-1")
    for number, tokens in enumerate((300, 200, 100)):
        reading = meter.charge(
            {"input_tokens": tokens, "output_tokens": 10}, response_id=f"r{number}"
        )
        assert reading.charged
    meter.finish_turn()
    assert paid(store.get(THREAD)) == (630, 0)
    charged = list(store.events(after=1))
    assert [event.idempotency_key for event in charged] == ["r0", "r1", "r2"]
    assert {event.turn_id for event in charged} == {"turn-1"}


def test_charge_repeated_with_its_response_id_is_paid_once(
    store: GoalStore, running_meter: GoalMeter, make_meter: MakeMeter, clock: Clock
) -> None:
    clock.tick(seconds=2)
    running_meter.charge(TokenUsage(70), response_id="r1")
    clock.tick(seconds=3)
    reading = running_meter.charge(TokenUsage(70), response_id="r1")
    assert (reading.charged, reading.goal) == (False, store.get(THREAD))
    assert paid(store.get(THREAD)) == (70, 2_000)
    running_meter.flush()  # the time of the repeat stayed due
    assert paid(store.get(THREAD)) == (70, 5_000)
    other = make_meter()
    other.start_turn("turn-1")
    assert not other.charge(TokenUsage(70), response_id="r1").charged
    assert paid(store.get(THREAD)) == (70, 5_000)


def test_charge_repeated_with_other_tokens_is_refused_and_names_the_response(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    running_meter.charge(TokenUsage(70), response_id="r1")
    with pytest.raises(IdempotencyConflictError, match="response_id 'r1' has charged 70"):
        running_meter.charge(TokenUsage(71), response_id="r1")
    assert paid(store.get(THREAD)) == (70, 0)


def test_charge_brings_the_time_and_alone_it_waits_for_a_whole_second(
    store: GoalStore, running_meter: GoalMeter, clock: Clock
) -> None:
    clock.tick(seconds=0.25)
    running_meter.charge(tokens=5)
    assert paid(store.get(THREAD)) == (5, 250)
    clock.tick(seconds=0.5)
    # All of it was cached, so that no tokens are charged that the time could ride on.
    assert running_meter.charge(TokenUsage(9, 9), response_id="cached").charged
    assert paid(store.get(THREAD)) == (5, 250)
    clock.tick(seconds=0.5)
    running_meter.charge(TokenUsage(9, 9))
    assert paid(store.get(THREAD)) == (5, 1_250)


def test_charge_that_fills_the_budget_reads_exhausted_once_and_over_budget_from_then_on(
    store: GoalStore, meter: GoalMeter
) -> None:
    store.create(THREAD, "work", token_budget=100)
    meter.start_turn("turn-1")
    readings = [meter.charge(TokenUsage(60), response_id=f"r{n}") for n in range(3)]
    assert [reading.budget_exhausted for reading in readings] == [False, True, False]
    assert [reading.over_budget for reading in readings] == [False, True, True]
    assert paid(store.get(THREAD)) == (180, 0)  # the turn pays to its end
    meter.finish_turn()
    meter.start_turn("turn-2")
    assert not meter.charge(TokenUsage(60), response_id="r3").charged
    assert paid(store.get(THREAD)) == (180, 0)


def test_charge_without_a_goal_that_pays_is_nobodys(store: GoalStore, meter: GoalMeter) -> None:
    meter.start_turn("turn-1")
    assert not meter.charge(TokenUsage(60), response_id="r1").charged
    meter.create_goal("work")
    meter.charge(TokenUsage(5), response_id="r2")
    meter.set_goal(status=GoalStatus.PAUSED)
    assert not meter.charge(TokenUsage(60), response_id="r3").charged
    assert paid(store.get(THREAD)) == (5, 0)


def test_charge_after_the_goal_was_replaced_leaves_the_new_goal_alone(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    running_meter.charge(TokenUsage(5), response_id="r1")
    new = store.replace(THREAD, "more work")
    assert not running_meter.charge(TokenUsage(60), response_id="r2").charged
    reading = running_meter.charge(TokenUsage(5), response_id="r1")
    assert (reading.goal, reading.charged) == (new, False)


def test_charge_before_a_total_that_contains_it_is_paid_once(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    running_meter.charge(TokenUsage(100, 40, 0, 10), response_id="r1")
    assert paid(store.get(THREAD))[0] == 70
    running_meter.record_total(TokenUsage(100, 40, 0, 10))
    assert paid(store.get(THREAD))[0] == 70
    running_meter.record_total(TokenUsage(150, 40, 0, 15))
    assert paid(store.get(THREAD))[0] == 125
    usage = store.usage(THREAD)
    assert usage is not None
    assert usage.total == TokenUsage(150, 40, 0, 15)


def test_charge_in_a_turn_before_one_of_totals_is_paid_once(
    store: GoalStore, make_meter: MakeMeter
) -> None:
    store.create(THREAD, "work")
    first = make_meter()
    first.start_turn("turn-1", total=TokenUsage(1_000))
    first.charge(TokenUsage(50), response_id="r1")
    first.charge(TokenUsage(50), response_id="r1")
    first.finish_turn()
    second = make_meter()
    second.start_turn("turn-2", total=TokenUsage(1_050))
    second.record_total(TokenUsage(1_057))
    assert paid(store.get(THREAD))[0] == 57


def test_charge_repeated_where_no_goal_pays_moves_the_baseline_once(
    store: GoalStore, make_meter: MakeMeter
) -> None:
    first = make_meter()
    first.start_turn("turn-1", total=TokenUsage(1_000))
    for response in ("r1", "r2", "r1", "r2"):
        first.charge(TokenUsage(50), response_id=response)
    first.finish_turn()
    store.create(THREAD, "work")
    second = make_meter()
    second.start_turn("turn-2")
    second.record_total(TokenUsage(1_107))
    assert paid(store.get(THREAD))[0] == 7


def test_charge_of_a_further_count_moves_the_baseline_of_that_count(
    store: GoalStore, meter: GoalMeter
) -> None:
    store.create(THREAD, "work")
    store.set_baseline(THREAD, TokenUsage(1_000), count_id="a")
    meter.start_turn("turn-1", count_id="b")
    meter.charge(TokenUsage(50), response_id="r1")
    meter.record_total(TokenUsage(60))
    assert paid(store.get(THREAD))[0] == 60
    other = store.baseline(THREAD, count_id="a")
    assert other is not None
    assert other.total == TokenUsage(1_000)


def test_charge_of_a_usage_in_a_turn_that_records_totals_is_refused(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    running_meter.record_total(TokenUsage(100))
    with pytest.raises(TurnError, match="reports totals"):
        running_meter.charge(TokenUsage(100), response_id="r1")
    assert paid(store.get(THREAD))[0] == 100
    running_meter.charge(tokens=7)  # figures of the host's own, which no total contains
    assert paid(store.get(THREAD))[0] == 107
    running_meter.finish_turn()
    running_meter.start_turn("turn-2")
    running_meter.charge(TokenUsage(1), response_id="r2")
    assert paid(store.get(THREAD))[0] == 108


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"usage": SimpleNamespace(tokens=5)}, "usage"),
        ({"usage": TokenUsage(5), "tokens": 5}, "tokens"),
        ({"tokens": -1}, "tokens"),
        ({"response_id": "r1"}, "usage"),
        ({"tokens": 1, "response_id": "r1", "idempotency_key": "k"}, "idempotency_key"),
        ({"tokens": 1, "turn_id": ""}, "turn_id"),
    ],
)
def test_charge_of_what_cannot_be_charged_is_refused_and_changes_nothing(
    store: GoalStore, running_meter: GoalMeter, arguments: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidValueError) as caught:
        running_meter.charge(**arguments)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert paid(store.get(THREAD)) == (0, 0)


def test_charge_without_a_turn_or_in_another_one_is_refused(
    store: GoalStore, meter: GoalMeter
) -> None:
    store.create(THREAD, "work")
    with pytest.raises(TurnError, match="no turn"):
        meter.charge(tokens=1)
    meter.start_turn("turn-1")
    with pytest.raises(TurnError, match="turn 'turn-2' is not running"):
        meter.charge(tokens=1, turn_id="turn-2")
    assert paid(store.get(THREAD)) == (0, 0)


def test_charge_that_would_overflow_changes_nothing(
    store: GoalStore, running_meter: GoalMeter
) -> None:
    running_meter.charge(tokens=2**63 - 1)
    with pytest.raises(UsageOverflowError):
        running_meter.charge(tokens=1, response_id="r1")
    assert paid(store.get(THREAD))[0] == 2**63 - 1


def test_charge_that_was_struck_after_its_commit_is_paid_once_when_it_is_repeated(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    store.create(THREAD, "work", token_budget=100)
    meter.start_turn("turn-1")
    clock.tick(seconds=2)
    transact = store.transact

    def struck(work: Callable[..., object]) -> object:
        transact(work)
        raise KeyboardInterrupt

    store.transact = struck  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        meter.charge(TokenUsage(100), response_id="r1")
    store.transact = transact  # type: ignore[method-assign]
    clock.tick(seconds=1)
    reading = meter.charge(TokenUsage(100), response_id="r1")
    assert (reading.charged, reading.budget_exhausted) == (False, True)
    assert paid(store.get(THREAD)) == (100, 2_000)
    meter.finish_turn()
    assert paid(store.get(THREAD)) == (100, 3_000)
