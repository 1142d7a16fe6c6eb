"""Totals that fall: which are late, and which begin a new count. No token is paid twice."""

from __future__ import annotations

import logging
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine

from goal_state import GoalRepository, GoalStore, InvalidValueError, TokenUsage
from goal_state.meter import GoalMeter
from tests.in_memory import open_in_memory
from tests.meter.figures import THREAD, tokens_used

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
    assert store.verify() == []
    return tokens_used(store)


def reported(store: GoalStore, reports: str) -> int:
    """Makes reports `turn:total` to the store, and returns what the goal has paid."""
    store.create(THREAD, "work")
    for report in reports.split():
        turn_id, _, tokens = report.partition(":")
        store.record_total(THREAD, total(int(tokens)), turn_id=turn_id or None)
    return used(store)


@pytest.mark.parametrize(
    ("reports", "truth"),
    [
        pytest.param(":100 :200 :100 :200", 100, id="a retry, without turns"),
        pytest.param("a:100 a:200 a:100 a:200 a:210", 110, id="a retry in the running turn"),
        pytest.param(
            "a:100 b:200 a:100 b:200", 100, id="of the turn whose first total paid nothing"
        ),
        pytest.param("a:100 a:150 b:200 a:150 b:200 a:120 b:205", 105, id="of an earlier turn"),
        pytest.param("a:100 a:200 b:50 b:60 b:50 b:70", 120, id="a new turn counts anew"),
        pytest.param(
            "a:100 a:200 b:50 a:30 b:60", 110, id="an earlier turn is late in a new count"
        ),
        pytest.param("a:100 a:200 a:50 a:60 a:210", 110, id="a turn tried again from zero"),
        pytest.param("a:100 a:200 :50 :210", 110, id="no turn begins no count"),
    ],
)
def test_the_turn_tells_a_late_total_from_a_new_count(
    store: GoalStore, reports: str, truth: int
) -> None:
    assert reported(store, reports) == truth


@pytest.mark.parametrize("status", [None, "paused", "active"])
def test_a_turn_that_paid_nothing_is_known_too(store: GoalStore, status: str | None) -> None:
    """Nobody paid for it, so no event names it: but it has reported."""
    if status is not None:
        store.create(THREAD, "work", status=status)
    for tokens, turn_id in ((100, "a"), (200, "b"), (300, "c"), (300, "d")):
        store.record_total(THREAD, total(tokens), turn_id=turn_id, expected_goal_id="of nobody")
    store.replace(THREAD, "other work")
    for turn_id in "abcd":
        store.record_total(THREAD, total(50), turn_id=turn_id)
    store.record_total(THREAD, total(310), turn_id="e")
    assert used(store) == 10


def test_of_very_many_turns_that_paid_nothing_the_latest_are_known(store: GoalStore) -> None:
    for number in range(100):
        store.record_total(THREAD, total(1_000 + number), turn_id=f"turn-{number}")
    store.create(THREAD, "work")
    for number in range(90, 100):
        store.record_total(THREAD, total(500), turn_id=f"turn-{number}")
    assert store.baseline(THREAD).total == total(1_099)  # type: ignore[union-attr]


def test_a_late_total_changes_nothing_at_all(store: GoalStore) -> None:
    store.create(THREAD, "work")
    for tokens, turn_id in ((100, "a"), (200, "b")):
        store.record_total(THREAD, total(tokens), turn_id=turn_id)
    before = store.usage(THREAD), store.baseline(THREAD), store.last_position()
    late = store.record_total(THREAD, total(150), turn_id="b", seconds=5)
    assert (late.goal, late.applied) == (store.get(THREAD), False)
    assert (store.usage(THREAD), store.baseline(THREAD), store.last_position()) == before


def test_the_turns_of_other_threads_are_others(store: GoalStore) -> None:
    store.create("other thread", "work")
    for tokens in (100, 200):
        store.record_total("other thread", total(tokens), turn_id="turn-2")
    assert reported(store, "turn-1:100 turn-1:200 turn-2:50 turn-2:60") == 110


# -- counts with names ---------------------------------------------------------------------------------


def test_a_further_count_begins_at_zero_and_each_has_a_baseline_of_its_own(
    store: GoalStore,
) -> None:
    store.create(THREAD, "work")
    reports = [
        ("one", 100, 0),  # the first total of the thread
        ("one", 130, 30),
        ("two", 50, 50),
        ("one", 140, 10),
        ("two", 40, 0),
        ("two", 55, 5),
        ("one", 130, 0),
        ("three", 0, 0),
        ("three", 7, 7),
        (None, 1_000, 0),  # one without a name may have begun before
        (None, 1_001, 1),
    ]
    paid = 0
    for count_id, tokens, charge in reports:
        for _ in range(2):
            store.record_total(THREAD, total(tokens), count_id=count_id, turn_id="turn")
            if _ == 0:
                paid += charge
            assert used(store) == paid
    assert store.baseline(THREAD, count_id="two").total == total(55)  # type: ignore[union-attr]
    assert store.baseline(THREAD).total == total(1_001)  # type: ignore[union-attr]
    assert store.baseline(THREAD, count_id="four") is None
    assert store.usage(THREAD).total == total(140 + 55 + 7 + 1_001)  # type: ignore[union-attr]


def test_a_turn_tried_again_from_zero_pays_for_both_tries_in_counts_of_their_own(
    store: GoalStore,
) -> None:
    store.create(THREAD, "work")
    for attempt, truth in (("try-1", 80), ("try-2", 160)):
        meter = GoalMeter(store, THREAD)
        meter.start_turn("turn-1", count_id=attempt)
        for tokens in (50, 80, 50):
            meter.record_total(total(tokens))
        assert used(store) == truth


def test_a_report_may_name_the_count_that_the_turn_goes_on_with(store: GoalStore) -> None:
    store.create(THREAD, "work")
    meter = GoalMeter(store, THREAD)
    meter.start_turn("turn-1", total=TokenUsage())
    meter.record_total(total(100))
    meter.record_total(total(30), count_id="session-2")
    meter.record_total(total(45))
    meter.record_total(total(40))
    assert used(store) == 145


def test_meters_in_turns_of_their_own_share_a_count_by_its_name(store: GoalStore) -> None:
    store.create(THREAD, "work")
    store.set_baseline(THREAD, total(0), count_id="run")
    meters = [GoalMeter(store, THREAD) for _ in range(4)]
    for number, meter in enumerate(meters):
        meter.start_turn(f"turn-{number}", count_id="run")
    for tokens in (30, 10, 20, 60, 5, 60):
        for meter in meters:
            meter.record_total(total(tokens))
    assert used(store) == 60


def test_a_count_is_charged_whole_after_a_crash_of_its_first_turn(store: GoalStore) -> None:
    store.create(THREAD, "work")
    store.set_baseline(THREAD, total(500))
    GoalMeter(store, THREAD).start_turn("turn-1", count_id="run")
    assert GoalMeter(store, THREAD).start_turn("turn-2", total=total(40), count_id="run").charged
    assert used(store) == 40


def test_sums_over_counts_that_no_counter_holds_stay_at_the_largest(store: GoalStore) -> None:
    for count_id in "ab":
        store.set_baseline(THREAD, TokenUsage(2**63 - 1, total_tokens=5), count_id=count_id)
    usage = store.usage(THREAD)
    assert usage is not None
    assert (usage.total.input_tokens, usage.total.total_tokens) == (2**63 - 1, 10)


@pytest.mark.parametrize("name", ["", "x" * 257, 3, "a\0b"])
def test_a_counts_name_has_bounds(store: GoalStore, name: object) -> None:
    meter = GoalMeter(store, THREAD)
    calls = (
        lambda: store.record_total(THREAD, total(1), count_id=name),  # type: ignore[arg-type]
        lambda: store.set_baseline(THREAD, total(1), count_id=name),  # type: ignore[arg-type]
        lambda: store.reconcile(THREAD, total(1), count_id=name),  # type: ignore[arg-type]
        lambda: store.baseline(THREAD, count_id=name),  # type: ignore[arg-type]
        lambda: meter.start_turn("turn-1", count_id=name),  # type: ignore[arg-type]
        lambda: meter.record_total(total(1), count_id=name),  # type: ignore[arg-type]
    )
    for call in calls:
        with pytest.raises(InvalidValueError, match=r"^count_id: "):
            call()
    assert (store.usage(THREAD), meter.turn_id) == (None, None)


# -- totals that are none ------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and record.name.startswith("goal_state.")
    ]


@pytest.mark.parametrize("responses", [1, 2, 5])
@pytest.mark.parametrize("metered", [False, True])
def test_a_host_that_gives_what_each_response_used_is_told_once_for_each_thread(
    store: GoalStore, caplog: pytest.LogCaptureFixture, responses: int, *, metered: bool
) -> None:
    random = Random(responses)
    for thread_id in ("one", "two"):
        store.create(thread_id, "work")
        meter = GoalMeter(store, thread_id)
        for turn in range(20):
            if metered:
                meter.start_turn(f"turn-{turn}")
            for _ in range(responses):
                used = total(random.randrange(1, 10_000))
                if metered:
                    meter.record_total(used)
                else:
                    store.record_total(thread_id, used, turn_id=f"turn-{turn}")
            if metered:
                meter.finish_turn()
    first, second = warnings(caplog)
    assert "thread 'one'" in first
    assert "thread 'two'" in second
    assert "charge(thread, usage, response_id=…)" in first
    assert "count_id" in first


def test_a_host_that_names_no_turn_is_told_too(
    store: GoalStore, caplog: pytest.LogCaptureFixture
) -> None:
    for tokens in (50, 20, 90, 10, 70, 30, 20):
        store.record_total(THREAD, total(tokens))
    assert len(warnings(caplog)) == 1


def test_retries_and_a_new_count_are_no_reason_to_warn(
    store: GoalStore, caplog: pytest.LogCaptureFixture
) -> None:
    reported(store, "a:100 a:200 a:100 a:150 a:200 b:50 b:60 b:70 c:80 c:90")
    for count_id in "xyz":
        for tokens in (50, 40, 30):
            for turn_id in "def":
                store.record_total(THREAD, total(tokens), count_id=count_id, turn_id=turn_id)
    assert warnings(caplog) == []


def test_hosts_transactions_are_remembered_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with GoalStore.open(tmp_path / "goals.db"):
        pass
    engine = create_engine(f"sqlite:///{tmp_path / 'goals.db'}")
    for turn_id in "abc":
        for tokens in (90, 20):
            with engine.begin() as connection:
                GoalRepository(connection).record_total(THREAD, total(tokens), turn_id=turn_id)
    engine.dispose()
    assert len(warnings(caplog)) == 1


# -- several meters in one turn, each in its own time --------------------------------------------------


@pytest.mark.parametrize("seen", [300, 250, 120])
def test_a_meter_made_late_in_the_turn_of_another(store: GoalStore, seen: int) -> None:
    """It joins a turn that is known, so its count is the same, however far behind its reports are."""
    first = in_turns(store, "A")["A"]
    first.record_total(total(300))
    late = GoalMeter(store, THREAD)
    late.start_turn("turn of A")
    for tokens in (seen, 300, 310):
        late.record_total(total(tokens))
    first.record_total(total(320))
    assert used(store) == 320


def test_a_process_that_starts_again_counts_from_anew(store: GoalStore) -> None:
    in_turns(store, "A")["A"].record_total(total(300))
    again = GoalMeter(store, THREAD)
    again.start_turn("turn 2")
    for tokens in (50, 120):
        again.record_total(total(tokens))
    assert used(store) == 300 + 70


def test_the_total_at_the_start_of_a_new_turn_may_begin_a_count(store: GoalStore) -> None:
    meter = in_turns(store, "A")["A"]
    meter.record_total(total(300))
    meter.finish_turn()
    meter.start_turn("turn 2", total=total(30))
    for tokens in (20, 35, 30):  # what is below 30 is late
        meter.record_total(total(tokens))
    meter.finish_turn()
    meter.start_turn("turn 2", total=total(10))
    meter.record_total(total(36))
    assert used(store) == 306


def test_a_baseline_that_the_host_lowers_is_a_new_count(store: GoalStore) -> None:
    meter = in_turns(store, "A")["A"]
    meter.record_total(total(300))
    store.set_baseline(THREAD, total(50))
    baseline = store.baseline(THREAD)
    assert baseline is not None
    assert (baseline.total, baseline.epoch) == (total(50), 1)
    meter.record_total(total(60))
    assert used(store) == 310


def test_only_a_fall_is_a_new_count(store: GoalStore) -> None:
    numbers: list[int] = []
    for tokens in (100, 100, 150, 149, 149, 200, 0):
        store.record_total(THREAD, total(tokens), turn_id=f"turn {tokens}")
        store.set_baseline(THREAD, total(tokens))
        store.reconcile(THREAD, total(tokens))
        baseline = store.baseline(THREAD)
        assert baseline is not None
        numbers.append(baseline.epoch)
    assert numbers == [0, 0, 0, 1, 1, 1, 2]


# A thread's true history: for each count the steps by which it grows.
COUNTS = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=6), min_size=1, max_size=4)


@pytest.mark.slow
@given(counts=COUNTS, data=st.data(), named=st.booleans())
def test_whoever_hears_first_or_late_no_token_is_paid_twice(
    counts: list[list[int]], data: st.DataObject, named: bool
) -> None:
    """Each count has a turn of its own. All hear what they hear of it, in order or again, in their own
    time; with names also of counts that are over.
    """
    totals: list[list[int]] = []
    for steps in counts:
        totals.append([0])
        for step in steps:
            totals[-1].append(totals[-1][-1] + 1 + step)
    with open_in_memory() as store:
        store.create(THREAD, "work")
        store.set_baseline(THREAD, TokenUsage(), count_id="0" if named else None)
        truth = 0
        for number, known in enumerate(totals):
            # Without names the first total of a new count is what it is known by.
            if not named and number and totals[number - 1][-1] == 0:
                continue
            heard = data.draw(st.lists(st.sampled_from(known), max_size=8), "what is heard")
            for tokens in [0, *heard, known[-1]]:
                late = data.draw(st.integers(0, number if named else 0), "of which count")
                if late:
                    store.record_total(
                        THREAD,
                        total(data.draw(st.sampled_from(totals[number - late]))),
                        turn_id=f"turn {number}",
                        count_id=str(number - late),
                    )
                store.record_total(
                    THREAD,
                    total(tokens),
                    turn_id=f"turn {number}",
                    count_id=str(number) if named else None,
                )
            truth += known[-1]
            assert used(store) == truth
