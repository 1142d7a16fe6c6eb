"""A thread's count that begins anew, seen by several meters, each in its own time: no token is paid twice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goal_state import GoalStore, TokenUsage
from goal_state.meter import GoalMeter

THREAD = "thread-1"

pytestmark = pytest.mark.timeout(120 + settings().max_examples)  # as many as the profile asks for


def total(tokens: int) -> TokenUsage:
    return TokenUsage(input_tokens=tokens)


def in_turns(store: GoalStore, names: str, at: int = 0) -> dict[str, GoalMeter]:
    """A meter for each name, in a turn of its own, on a thread that has used so much."""
    store.create(THREAD, "work")
    store.set_baseline(THREAD, total(at))
    meters = {name: GoalMeter(store, THREAD) for name in names}
    for name, meter in meters.items():
        meter.start_turn(f"turn of {name}")
    return meters


def used(store: GoalStore) -> int:
    goal = store.get(THREAD)
    assert goal is not None
    assert store.verify() == []
    return goal.tokens_used


@pytest.mark.parametrize(
    ("reports", "truth"),
    [
        pytest.param(
            "A200 B200 A300 A50 B300 A60 B50 B60 B70", 300 + 20, id="one is late with the old count"
        ),
        pytest.param(
            "A300 B300 A50 A120 B50 B120 A130", 300 + 80, id="one is late with the new count"
        ),
        pytest.param(
            "A300 B300 A50 A120 A10 A40 B50 B120 B10 B40 B45", 300 + 70 + 35, id="two counts late"
        ),
        pytest.param("A300 B100 A50 B200 A90 B300 B50 B95", 300 + 45, id="late in both"),
        pytest.param(
            "A300 B300 B10 A20 A30 B30 B40", 300 + 30, id="who fell first does not matter"
        ),
    ],
)
def test_a_fall_that_meters_see_out_of_step(store: GoalStore, reports: str, truth: int) -> None:
    meters = in_turns(store, "AB")
    for report in reports.split():
        meters[report[0]].observe(total(int(report[1:])))
    assert used(store) == truth


@pytest.mark.parametrize("seen", [300, 250, 120])
def test_a_meter_made_late_in_the_turn_of_another(store: GoalStore, seen: int) -> None:
    """It joins a turn that is known, so its count is the same, however far behind its reports are."""
    first = in_turns(store, "A")["A"]
    first.observe(total(300))
    late = GoalMeter(store, THREAD)
    late.start_turn("turn of A")
    for tokens in (seen, 300, 310):
        late.observe(total(tokens))
    first.observe(total(320))
    assert used(store) == 320


def test_a_meter_that_was_overtaken_before_its_first_report(store: GoalStore) -> None:
    meters = in_turns(store, "AB")
    meters["A"].observe(total(300))
    for tokens in (100, 200, 300, 310):
        meters["B"].observe(total(tokens))
    assert used(store) == 310


@pytest.mark.parametrize("counts", ["", "A100 A1"])
def test_a_meter_that_was_overtaken_before_its_first_turn(store: GoalStore, counts: str) -> None:
    first = in_turns(store, "A")["A"]
    for report in [*counts.split(), "A200"]:
        first.observe(total(int(report[1:])))
    before = used(store)
    late = GoalMeter(store, THREAD)
    first.observe(total(300))
    late.start_turn("turn 2")
    for tokens in (150, 250, 300, 310):
        late.observe(total(tokens))
    assert used(store) == before + 110


def test_a_fall_before_the_first_report(store: GoalStore) -> None:
    first = in_turns(store, "A")["A"]
    first.observe(total(300))
    silent = GoalMeter(store, THREAD)
    silent.start_turn("turn 2")
    first.observe(total(50))
    silent.observe(total(60))
    assert used(store) == 310


def test_a_process_that_starts_again_counts_from_anew(store: GoalStore) -> None:
    in_turns(store, "A")["A"].observe(total(300))
    again = GoalMeter(store, THREAD)
    again.start_turn("turn 2")
    for tokens in (50, 120):
        again.observe(total(tokens))
    assert used(store) == 300 + 70


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("left", [40, 200, 300, 400])
def test_one_that_was_idle_while_the_count_began_anew(
    store: GoalStore, left: int, says: bool
) -> None:
    """The thread goes from process to process; each turn goes on from where the other's ended."""
    meters = in_turns(store, "AB")
    meters["A"].observe(total(200))
    meters["B"].observe(total(300))
    meters["B"].finish_turn()
    for tokens in (10, left, left):
        meters["A"].observe(total(tokens))
    meters["A"].finish_turn()
    meters["B"].start_turn("turn 2", total=total(left) if says else None)
    for tokens in (left + 5, left + 9):
        meters["B"].observe(total(tokens))
    assert used(store) == 300 + left - 10 + 9


def idle_while_another_counted_anew(store: GoalStore, left: int) -> dict[str, GoalMeter]:
    """B knows 300 of the count before, and has just begun a turn, where so much is stored."""
    meters = in_turns(store, "AB")
    meters["B"].observe(total(300))
    meters["B"].finish_turn()
    for tokens in (300, 10, left):
        meters["A"].observe(total(tokens))
    meters["B"].start_turn("turn 2")
    return meters


def test_one_that_was_idle_sees_the_next_fall_itself(store: GoalStore) -> None:
    meters = idle_while_another_counted_anew(store, 400)
    for tokens in (20, 30):
        meters["B"].observe(total(tokens))
    assert used(store) == 300 + 390 + 10


def test_one_that_was_idle_and_is_late_again(store: GoalStore) -> None:
    meters = idle_while_another_counted_anew(store, 400)
    meters["A"].observe(total(420))
    for tokens in (395, 425):
        meters["B"].observe(total(tokens))
    assert used(store) == 300 + 390 + 25


def test_one_that_was_idle_is_of_the_count_that_it_came_to(store: GoalStore) -> None:
    meters = idle_while_another_counted_anew(store, 40)
    meters["B"].observe(total(45))
    meters["A"].observe(total(5))
    meters["B"].observe(total(60))
    assert used(store) == 300 + 30 + 5


def test_one_that_was_idle_for_several_counts(store: GoalStore) -> None:
    meters = in_turns(store, "AB")
    meters["B"].observe(total(300))
    meters["B"].finish_turn()
    for tokens in (300, 10, 400, 20, 30, 5, 50):
        meters["A"].observe(total(tokens))
    meters["B"].start_turn("turn 2")
    for tokens in (55, 60):
        meters["B"].observe(total(tokens))
    assert used(store) == 300 + 390 + 10 + 45 + 10


def test_a_baseline_that_the_host_lowers_is_a_new_count(store: GoalStore) -> None:
    meter = in_turns(store, "A")["A"]
    meter.observe(total(300))
    store.set_baseline(THREAD, total(50))
    baseline = store.baseline(THREAD)
    assert baseline is not None
    assert (baseline.total, baseline.count_number) == (total(50), 1)
    meter.observe(total(60))
    assert used(store) == 310


def test_only_a_fall_is_a_new_count(store: GoalStore) -> None:
    numbers: list[int] = []
    for tokens in (100, 100, 150, 149, 149, 200, 0):
        store.record_usage(THREAD, total(tokens), turn_id=f"turn {tokens}")
        store.set_baseline(THREAD, total(tokens))
        store.reconcile(THREAD, total(tokens))
        baseline = store.baseline(THREAD)
        assert baseline is not None
        numbers.append(baseline.count_number)
    assert numbers == [0, 0, 0, 1, 1, 1, 2]


# A thread's true history: for each count the steps by which it grows, from a beginning of its own.
COUNTS = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=6), min_size=1, max_size=4)


def history(counts: Sequence[Sequence[int]]) -> list[int]:
    """All totals, in order. Each count begins below the whole of the one before."""
    totals: list[int] = []
    for number, steps in enumerate(counts):
        at = len(counts) - number - 1
        for step in steps:
            totals.append(at)
            at += 1 + step
        totals.append(at)
    return totals


def growth(totals: Sequence[int]) -> int:
    """What the totals cost: all that is used, but for what a new count begins with."""
    return totals[0] + sum(max(b - a, 0) for a, b in itertools.pairwise(totals))


@given(counts=COUNTS, data=st.data())
def test_with_one_that_hears_all_at_once_the_others_may_be_late_and_deaf(
    counts: list[list[int]], data: st.DataObject
) -> None:
    """The leader is told every total as it comes. The others hear what they hear, in order, whenever."""
    totals = history(counts)
    with GoalStore.open(":memory:") as store:
        meters = in_turns(store, "ABC")
        heard = dict.fromkeys("BC", 0)
        for number, tokens in enumerate(totals, 1):
            meters["A"].observe(total(tokens))
            for name in data.draw(st.lists(st.sampled_from("BC"), max_size=4), "who hears"):
                if heard[name] < number:
                    at = data.draw(st.integers(heard[name], number - 1), f"what {name} hears")
                    heard[name] = at + 1
                    meters[name].observe(total(totals[at]))
        assert used(store) == growth(totals)


@given(counts=COUNTS, data=st.data())
def test_whoever_hears_first_no_token_is_paid_twice(
    counts: list[list[int]], data: st.DataObject
) -> None:
    """All hear every total, in order, each in its own time."""
    totals = history(counts)
    with GoalStore.open(":memory:") as store:
        meters = in_turns(store, "ABC")
        heard = dict.fromkeys("ABC", 0)
        while left := [name for name in "ABC" if heard[name] < len(totals)]:
            name = data.draw(st.sampled_from(left), "who hears")
            meters[name].observe(total(totals[heard[name]]))
            heard[name] += 1
        assert used(store) == growth(totals)
