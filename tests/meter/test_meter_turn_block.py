"""A turn as the block of a `with` statement."""

from __future__ import annotations

import pytest

from goal_state import GoalMeter, GoalStore, TokenUsage, TurnError
from goal_state.testing.clock import Clock
from tests.meter.figures import THREAD, paid


def test_turn_block_that_ends_finishes_the_turn_and_charges_its_time(
    store: GoalStore, meter: GoalMeter, clock: Clock
) -> None:
    goal = store.create(THREAD, "work")
    with meter.turn("turn-1") as reading:
        assert (reading.goal, meter.turn_id) == (goal, "turn-1")
        meter.charge(TokenUsage(5), response_id="r1")
        clock.tick(seconds=2)
    assert meter.turn_id is None
    assert paid(store.get(THREAD)) == (5, 2_000)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StopIteration])
def test_turn_block_that_an_exception_leaves_aborts_the_turn_and_charges_its_time(
    store: GoalStore,
    meter: GoalMeter,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    store.create(THREAD, "work")
    aborted: list[str | None] = []
    abort = meter.abort_turn
    monkeypatch.setattr(meter, "abort_turn", lambda: (aborted.append(meter.turn_id), abort()))
    raised = error("mine")
    with pytest.raises(error) as caught, meter.turn("turn-1"):  # noqa: PT012
        clock.tick(seconds=2)
        raise raised
    assert caught.value is raised
    assert (aborted, meter.turn_id) == (["turn-1"], None)
    assert paid(store.get(THREAD)) == (0, 2_000)


def test_turn_block_takes_what_start_turn_takes(store: GoalStore, meter: GoalMeter) -> None:
    store.create(THREAD, "work")
    with meter.turn("turn-1", total=TokenUsage(1_000), count_id="a"):
        meter.record_total(TokenUsage(1_005))
    with meter.turn("turn-2", charge_tokens=False):
        meter.charge(TokenUsage(5))
    assert paid(store.get(THREAD)) == (5, 0)


def test_turn_block_while_a_turn_runs_is_refused_and_leaves_that_one(meter: GoalMeter) -> None:
    meter.start_turn("turn-1")
    with pytest.raises(TurnError, match="turn 'turn-1' runs"), meter.turn("turn-2"):
        pass
    assert meter.turn_id == "turn-1"


def test_turn_block_whose_turn_was_ended_inside_leaves_the_next_one(meter: GoalMeter) -> None:
    with meter.turn("turn-1"):
        meter.finish_turn()
        meter.start_turn("turn-2")
    assert meter.turn_id == "turn-2"
