"""Several meters on one thread id: the goal pays for each token once, whoever reports it first."""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from goal_state import EventKind, GoalStore, TokenUsage
from goal_state.meter import GoalMeter
from tests.meter.figures import THREAD, tokens_used
from tests.processes import finish, running

METERS = 8
PROCESSES = 4


def growing(steps: int, seed: int) -> list[TokenUsage]:
    """What a thread has used after each of so many responses."""
    random = Random(seed)
    total, totals = TokenUsage(), []
    for _ in range(steps):
        fresh, cached, output = (random.randrange(1, 100) for _ in range(3))
        total += TokenUsage(fresh + cached, cached, 0, output)
        totals.append(total)
    return totals


def in_parallel(count: int, work: Callable[[int], object]) -> None:
    """Runs it in so many threads at once, and raises what went wrong in any."""
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(work, number) for number in range(count)]:
            future.result()


def assert_paid(store: GoalStore, tokens: int) -> None:
    assert tokens_used(store) == tokens
    assert store.verify() == []


def started(store: GoalStore, count: int) -> list[GoalMeter]:
    meters = [GoalMeter(store, THREAD) for _ in range(count)]
    for number, meter in enumerate(meters):
        meter.start_turn(f"turn-{number}", total=TokenUsage(), count_id="run")
    return meters


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_threads_that_report_the_same_totals_in_lockstep(store: GoalStore, seed: int) -> None:
    store.create(THREAD, "work")
    totals = growing(40, seed)
    meters = started(store, METERS)
    barrier = threading.Barrier(METERS)

    def report(number: int) -> None:
        for total in totals:
            barrier.wait()
            meters[number].record_total(total)

    in_parallel(METERS, report)
    assert_paid(store, totals[-1].goal_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("count_id", [None, "run"])
@pytest.mark.parametrize("seed", range(3))
def test_threads_that_report_the_same_totals_each_at_its_own_pace(
    store: GoalStore, seed: int, count_id: str | None
) -> None:
    """Some are far behind the others, some leave totals out, and each begins when it likes: in one turn, or
    in turns of their own with one count.
    """
    store.create(THREAD, "work")
    store.set_baseline(THREAD, TokenUsage(), count_id=count_id)
    totals = growing(60, seed)
    meters = [GoalMeter(store, THREAD) for _ in range(METERS)]

    def report(number: int) -> None:
        random = Random(f"{seed} {number}")
        meter = meters[number]
        turn_id = "turn" if count_id is None else f"turn-{number}"
        meter.start_turn(turn_id, total=TokenUsage(), count_id=count_id)
        for total in totals[:-1]:
            if random.random() < 0.7:
                meter.record_total(total)
        meter.record_total(totals[-1])
        meter.finish_turn()

    in_parallel(METERS, report)
    assert_paid(store, totals[-1].goal_tokens)


def test_counts_with_names_each_at_its_own_pace(store: GoalStore) -> None:
    """Each count has a name: whoever is late with the one before is heard all the same, and for nothing."""
    store.create(THREAD, "work")
    counts = {"run": growing(15, 1), "second": growing(15, 2), "third": growing(15, 3)}
    meters = started(store, METERS)

    def report(number: int) -> None:
        random = Random(number)
        for count_id, totals in counts.items():
            for total in totals:
                meters[number].record_total(total, count_id=count_id)
                if random.random() < 0.2:
                    earlier = random.choice(list(counts))
                    meters[number].record_total(
                        random.choice(counts[earlier][:3]), count_id=earlier
                    )

    in_parallel(METERS, report)
    assert_paid(store, sum(totals[-1].goal_tokens for totals in counts.values()))


def test_one_that_starts_again_for_each_response_while_the_others_lag_behind(
    store: GoalStore,
) -> None:
    store.create(THREAD, "work")
    totals = [TokenUsage(), *growing(60, 4)]
    meters = started(store, METERS - 1)
    told: list[TokenUsage] = []

    def report(number: int) -> None:
        if number == len(meters):
            for turn, (before, total) in enumerate(itertools.pairwise(totals)):
                again = GoalMeter(store, THREAD)
                again.start_turn(f"again-{turn}", total=before, count_id="run")
                again.record_total(total)
                told.append(total)
            return
        heard = 0
        while heard < len(totals) - 1:
            for total in told[heard:]:
                heard += 1
                meters[number].record_total(total)
            time.sleep(0.001)

    in_parallel(METERS, report)
    assert_paid(store, totals[-1].goal_tokens)


def test_one_meter_in_many_threads_charges_each_total_once(store: GoalStore) -> None:
    store.create(THREAD, "work", token_budget=1_000)
    (meter,) = started(store, 1)
    totals = growing(40, 5)
    notices: list[bool] = []

    def report(number: int) -> None:
        for total in totals[number::METERS]:
            notices.append(meter.flush().budget_exhausted)
            with lock:
                if total.goal_tokens > highest[-1].goal_tokens:
                    highest.append(total)
                    notices.append(meter.record_total(total).budget_exhausted)

    lock, highest = threading.Lock(), [TokenUsage()]
    in_parallel(METERS, report)
    assert_paid(store, totals[-1].goal_tokens)
    assert sum(notices) == 1


def test_the_notice_comes_to_one_of_many(store: GoalStore) -> None:
    store.create(THREAD, "work", token_budget=2_000)
    totals = growing(60, 6)
    meters = started(store, METERS)
    notices: list[bool] = []

    def report(number: int) -> None:
        notices.extend(meters[number].record_total(total).budget_exhausted for total in totals)

    in_parallel(METERS, report)
    assert sum(notices) == 1
    assert_paid(store, totals[-1].goal_tokens)


def test_no_meter_charges_the_goal_that_replaced_its_own(store: GoalStore) -> None:
    """Goals come and go from behind while all report; only what was there at a turn's start is charged."""
    first = store.create(THREAD, "first")
    totals = growing(60, 7)
    meters = started(store, METERS)
    begun = threading.Barrier(METERS + 1)

    def report(number: int) -> None:
        begun.wait()
        if number == METERS:
            for turn in range(10):
                store.replace(THREAD, f"another {turn}")
            return
        for total in totals:
            meters[number].record_total(total)

    in_parallel(METERS + 1, report)
    charged = {e.goal_id for e in store.events() if e.kind is EventKind.USAGE_ACCOUNTED}
    assert charged <= {first.goal_id}
    assert_paid(store, 0)


_REPORT = """
import json, sys
from goal_state import GoalStore, TokenUsage
from goal_state.meter import GoalMeter

path, name = sys.argv[1:]
with GoalStore.open(path, durability="normal", busy_timeout_seconds=60) as store:
    meter = GoalMeter(store, "thread-1")
    meter.start_turn(name, total=TokenUsage(), count_id="run")
    print("started", flush=True)
    for line in sys.stdin:
        count_id, *counts = json.loads(line)
        meter.record_total(TokenUsage(*counts), count_id=count_id)
        print("heard", flush=True)
"""


def _line(total: TokenUsage, count_id: str = "run") -> str:
    return f'["{count_id}", {total.input_tokens}, {total.cached_input_tokens}, 0, {total.output_tokens}]\n'


def reporters(stack: ExitStack, database: Path) -> list[subprocess.Popen[str]]:
    """Processes that wait for totals to report, each in a turn of its own."""
    processes = [
        stack.enter_context(running(_REPORT, database, f"turn-{number}"))
        for number in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
    return processes


@pytest.mark.slow
def test_processes_that_report_the_same_totals_in_lockstep(database: Path) -> None:
    """Half-way another count begins."""
    totals = [("run", total) for total in growing(20, 8)] + [("next", t) for t in growing(20, 9)]
    with GoalStore.open(database, durability="normal") as store, ExitStack() as stack:
        store.create(THREAD, "work")
        processes = reporters(stack, database)
        for count_id, total in totals:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(_line(total, count_id))
                process.stdin.flush()
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "heard\n"
        for process in processes:
            finish(process)
        assert_paid(store, totals[19][1].goal_tokens + totals[-1][1].goal_tokens)


@pytest.mark.slow
def test_processes_that_report_the_same_totals_each_at_its_own_pace(database: Path) -> None:
    totals = growing(200, 11)
    with GoalStore.open(database, durability="normal") as store, ExitStack() as stack:
        store.create(THREAD, "work")
        processes = reporters(stack, database)
        for number, process in enumerate(processes):
            assert process.stdin is not None
            process.stdin.writelines(_line(total) for total in totals[: -1 - number] + totals[-1:])
            process.stdin.flush()
        for process in processes:
            finish(process)
        assert_paid(store, totals[-1].goal_tokens)
