"""Many at once: threads and processes on one file, and callers who share a commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from goal_state import (
    EventKind,
    Goal,
    GoalEvent,
    GoalExistsError,
    GoalRepository,
    GoalStatus,
    GoalStore,
    RequestError,
    StoreClosedError,
    TokenUsage,
    UsageOverflowError,
)
from tests.in_memory import open_in_memory
from tests.processes import PATIENCE_SECONDS, all_at_once

Result = TypeVar("Result")


def at_once(*calls: Callable[[], Result]) -> list[Result]:
    """Makes all calls at the same time, each on a thread of its own; their results, in order."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Result]) -> Result:
        start.wait(PATIENCE_SECONDS)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def tokens_used(store: GoalStore, thread_id: str = "t") -> int:
    goal = store.get(thread_id)
    assert goal is not None
    return goal.tokens_used


@pytest.fixture(autouse=True)
def _verified(store: GoalStore) -> Iterator[None]:
    yield
    assert store._backend._refusal is not None or store.verify() == []


# -- clear -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(5))
@pytest.mark.parametrize("target", ["file", "memory"])
def test_of_many_threads_that_clear_exactly_one_gets_the_goal(
    database: Path, target: str, round_: int
) -> None:
    with GoalStore.open(database) if target == "file" else open_in_memory() as store:
        goal = store.create(f"t{round_}", "Ship")
        cleared = at_once(*[lambda: store.clear(f"t{round_}")] * 16)
        assert [one for one in cleared if one is not None] == [goal]
        assert [event.kind for event in store.events()] == [EventKind.CREATED, EventKind.CLEARED]


def test_of_many_stores_that_clear_exactly_one_gets_the_goal(
    store: GoalStore, database: Path
) -> None:
    goal = store.create("t", "Ship")
    with ExitStack() as stack:
        stores = [stack.enter_context(GoalStore.open(database)) for _ in range(8)]
        cleared = at_once(*[lambda one=one: one.clear("t") for one in stores])
    assert [one for one in cleared if one is not None] == [goal]


_CLEARING = """
import sys, threading
from goal_state import GoalStore

with GoalStore.open(sys.argv[1]) as store:
    def clear():
        goal = store.clear("t")
        if goal is not None:
            cleared.append(goal.goal_id)

    cleared = []
    threads = [threading.Thread(target=clear) for _ in range(4)]
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(*cleared)
"""


@pytest.mark.slow
def test_of_many_processes_that_clear_exactly_one_gets_the_goal(
    store: GoalStore, database: Path
) -> None:
    goal = store.create("t", "Ship")
    printed = all_at_once(_CLEARING, database, processes=4)
    assert " ".join(printed).split() == [goal.goal_id]
    assert [event.kind for event in store.events()] == [EventKind.CREATED, EventKind.CLEARED]


def test_a_goal_that_is_charged_while_it_is_cleared(store: GoalStore) -> None:
    """What clear() returns is the last that was charged: no charge comes after it."""
    goal = store.create("t", "Ship")

    def charge() -> int:
        return sum(store.charge("t", tokens=1).applied for _ in range(20))

    cleared, *charged = at_once(lambda: store.clear("t"), *[charge] * 8)
    assert isinstance(cleared, Goal)
    assert cleared.goal_id == goal.goal_id
    assert cleared.tokens_used == sum(charged)  # type: ignore[arg-type]
    assert [event.kind for event in store.events()][-1] is EventKind.CLEARED


# -- one winner, exact sums --------------------------------------------------------------------------


def test_of_many_who_create_exactly_one_does(store: GoalStore) -> None:
    def create() -> Goal | None:
        try:
            return store.create("t", "Ship")
        except GoalExistsError:
            return None

    made = at_once(*[create] * 16)
    assert [one for one in made if one is not None] == [store.get("t")]


def test_of_many_charges_with_one_key_exactly_one_charges(store: GoalStore) -> None:
    store.create("t", "Ship")
    results = at_once(*[lambda: store.charge("t", tokens=7, idempotency_key="k")] * 16)
    assert sorted(one.duplicate for one in results) == [False] + [True] * 15
    assert {one.goal.tokens_used for one in results if one.goal} == {7}
    assert tokens_used(store) == 7


def test_a_cumulative_total_that_many_report_is_charged_once(store: GoalStore) -> None:
    store.create("t", "Ship")
    store.set_baseline("t", TokenUsage())
    at_once(*[lambda: [store.record_total("t", TokenUsage(n)) for n in (10, 20, 30)]] * 8)
    # Totals that arrive out of order begin anew, and so can only be charged again from there.
    steps = [e.tokens_delta for e in store.events() if e.kind is EventKind.USAGE_ACCOUNTED]
    assert sum(steps) == tokens_used(store)
    assert set(steps) <= {10, 20}
    at_once(*[lambda: store.record_total("t", TokenUsage(100))] * 8)
    steps = [e.tokens_delta for e in store.events() if e.kind is EventKind.USAGE_ACCOUNTED]
    assert len([step for step in steps if step > 20]) == 1


_CHARGING = """
import sys, threading
from goal_state import GoalStore

with GoalStore.open(sys.argv[1], durability="normal") as store:
    def charge(number):
        for step in range(25):
            store.charge("t", tokens=1, seconds=0.001)
            store.charge("t", tokens=1, idempotency_key=f"shared {number} {step}")

    threads = [threading.Thread(target=charge, args=(number,)) for number in range(4)]
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


@pytest.mark.slow
def test_charges_of_many_processes_add_up(store: GoalStore, database: Path) -> None:
    store.create("t", "Ship", token_budget=100)
    all_at_once(_CHARGING, database, processes=4)
    goal = store.get("t")
    assert goal is not None
    # Every process used the same hundred keys.
    assert (goal.tokens_used, goal.time_used_ms) == (4 * 4 * 25 + 4 * 25, 400)
    assert goal.status is GoalStatus.BUDGET_LIMITED
    events = list(store.events())
    assert [event.kind for event in events].count(EventKind.STATUS_CHANGED) == 1
    assert [event.position for event in events] == list(range(1, 500 + 3))


def test_readers_see_whole_transactions(store: GoalStore) -> None:
    """A charge and the change of status that it caused are never seen apart."""
    stop = threading.Event()

    def read() -> int:
        torn = 0
        while not stop.is_set():
            kinds = [event.kind for event in store.events()]
            torn += kinds.count(EventKind.USAGE_ACCOUNTED) != kinds.count(EventKind.STATUS_CHANGED)
            torn += any(goal.status is GoalStatus.ACTIVE for goal in store.goals())
        return torn

    def create_and_fill(repository: GoalRepository, thread_id: str) -> None:
        repository.create(thread_id, "Ship", token_budget=1)
        repository.charge(thread_id, tokens=1)

    def write() -> int:
        try:
            for number in range(60):
                store.transact(lambda r, thread_id=f"t{number}": create_and_fill(r, thread_id))
        finally:
            stop.set()
        return 0

    assert at_once(write, read, read, read) == [0, 0, 0, 0]
    assert store.count() == 60


# -- callers who share a commit ----------------------------------------------------------------------


class OddError(Exception):
    """What the failing calls here raise."""


def _hold_back(store: GoalStore, calls: list[Callable[[], Any]]) -> list[Any]:
    """Makes the calls while another transaction is open, so that they wait and are led as groups.
    Returns what each returned or raised."""
    entered, go_on = threading.Event(), threading.Event()

    def wait(_: GoalRepository) -> None:
        entered.set()
        assert go_on.wait(PATIENCE_SECONDS)

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(calls) + 1) as threads:
        first = threads.submit(store.transact, wait)
        assert entered.wait(PATIENCE_SECONDS)
        futures = [threads.submit(outcome, call) for call in calls]
        while len(store._backend._writer._waiting) < len(calls):
            threading.Event().wait(0.001)
        go_on.set()
        first.result(PATIENCE_SECONDS)
        return [future.result(PATIENCE_SECONDS) for future in futures]


def _charge_and_raise(error: BaseException) -> Callable[[GoalRepository], None]:
    def work(repository: GoalRepository) -> None:
        repository.charge("t", tokens=1_000_000)
        raise error

    return work


def _raise(error: BaseException) -> Callable[[GoalRepository], None]:
    def work(_: GoalRepository) -> None:
        raise error

    return work


@pytest.mark.parametrize("target", ["file", "memory"])
def test_a_call_that_fails_in_a_group_fails_alone(database: Path, target: str) -> None:
    with GoalStore.open(database) if target == "file" else open_in_memory() as store:
        store.create("t", "Ship")
        heard: list[GoalEvent] = []
        store.subscribe(heard.append)

        def call(number: int) -> Callable[[], Any]:
            if number % 8 == 3:
                return lambda: store.transact(_charge_and_raise(OddError(number)))
            if number % 8 == 5:
                return lambda: store.transact(_raise(OddError(number)))
            if number % 8 == 7:
                return lambda: store.create("t", "Another")
            return lambda: store.charge("t", tokens=1, turn_id=f"turn-{number}")

        outcomes = _hold_back(store, [call(number) for number in range(64)])

        paid = []
        for number, outcome in enumerate(outcomes):
            if number % 8 in (3, 5):
                assert isinstance(outcome, OddError)
                assert outcome.args == (number,)
            elif number % 8 == 7:
                assert isinstance(outcome, GoalExistsError)
            else:
                assert outcome.applied
                paid.append((outcome.goal.tokens_used, f"turn-{number}"))
        assert tokens_used(store) == len(paid) == 40
        charges = list(store.events(after=1))
        assert [(e.cumulative_tokens, e.turn_id) for e in charges] == sorted(paid)
        assert heard == charges
        assert store.verify() == []


def test_an_overflow_in_a_group_is_the_error_of_its_caller_alone(store: GoalStore) -> None:
    store.create("t", "Ship")
    store.charge("t", tokens=2**63 - 10)
    outcomes = _hold_back(store, [lambda: store.charge("t", tokens=1)] * 20)
    refused = [one for one in outcomes if isinstance(one, UsageOverflowError)]
    assert len(refused) == 11
    assert tokens_used(store) == 2**63 - 1


def test_more_callers_than_fit_into_one_group(
    store: GoalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goal_state.storage.sqlite.group_commit._MAX_GROUP", 2)
    store.create("t", "Ship")

    def call(number: int) -> Callable[[], Any]:
        return lambda: store.transact(lambda r: (r.charge("t", tokens=1), number))

    outcomes = _hold_back(store, [call(number) for number in range(40)])
    assert [number for _, number in outcomes] == list(range(40))
    assert sorted(result.goal.tokens_used for result, _ in outcomes) == list(range(1, 41))


class Interrupt(BaseException):
    """As `SystemExit` or a cancellation: no `Exception`."""


@pytest.mark.parametrize("work", [_charge_and_raise, _raise])
def test_an_interrupt_in_a_group_hurts_its_caller_alone(
    store: GoalStore, work: Callable[[BaseException], Callable[[GoalRepository], None]]
) -> None:
    store.create("t", "Ship")

    def call(number: int) -> Callable[[], Any]:
        if number % 8 == 3:
            return lambda: store.transact(work(Interrupt(number)))
        return lambda: store.charge("t", tokens=1)

    outcomes = _hold_back(store, [call(number) for number in range(24)])
    for number, outcome in enumerate(outcomes):
        if number % 8 == 3:
            assert isinstance(outcome, Interrupt)
            assert outcome.args == (number,)
        else:
            assert getattr(outcome, "applied", None) is True, (number, outcome)
    assert tokens_used(store) == 21


def test_an_interrupt_right_after_the_commit_repeats_nothing(store: GoalStore) -> None:
    store.create("t", "Ship")
    executor = store._backend._writer._executor
    commit = executor.commit
    commits = iter([False, True])  # the transaction that the others wait for, then theirs

    def interrupted(noted: list[object]) -> None:
        commit(noted)
        if next(commits, False):
            raise Interrupt

    executor.commit = interrupted
    outcomes = _hold_back(store, [lambda: store.charge("t", tokens=1)] * 10)
    assert [type(one) for one in outcomes].count(Interrupt) == 1
    assert tokens_used(store) == 10


def test_after_an_interrupt_the_store_goes_on(store: GoalStore) -> None:
    store.create("t", "Ship")
    with pytest.raises(Interrupt):
        store.transact(_charge_and_raise(Interrupt()))
    assert tokens_used(store) == 0
    assert store.charge("t", tokens=1).applied
    assert tokens_used(store) == 1


def test_several_operations_in_one_transaction_are_all_kept(store: GoalStore) -> None:
    def work(repository: GoalRepository) -> str:
        repository.create("t", "Ship")
        repository.charge("t", tokens=5)
        repository.create("u", "Ship")
        return "done"

    assert store.transact(work) == "done"
    assert (tokens_used(store), store.count()) == (5, 2)

    def fail_late(repository: GoalRepository) -> None:
        repository.clear("t")
        repository.create("v", "Ship")
        repository.create("u", "Ship")

    events = list(store.events())
    with pytest.raises(GoalExistsError):
        store.transact(fail_late)
    assert (tokens_used(store), store.count(), list(store.events())) == (5, 2, events)


# -- closing under load ------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["file", "memory"])
def test_whoever_is_at_work_when_the_store_closes_is_told_so(database: Path, target: str) -> None:
    store = (
        GoalStore.open(database, durability="normal")
        if target == "file"
        else open_in_memory(durability="normal")
    )
    store.create("t", "Ship")
    at_work = [threading.Event() for _ in range(8)]

    def work(number: int) -> tuple[int, BaseException]:
        acknowledged = 0
        while True:
            try:
                if number % 2:
                    store.charge("t", tokens=1)
                    acknowledged += 1
                else:
                    store.get("t")
                    list(store.goals())
                    store.count()
            except BaseException as error:
                return acknowledged, error
            at_work[number].set()

    def close() -> tuple[int, BaseException]:
        for one in at_work:
            assert one.wait(PATIENCE_SECONDS)
        store.close()
        return 0, StoreClosedError()

    outcomes = at_once(close, *[lambda n=n: work(n) for n in range(8)])
    assert {type(error) for _, error in outcomes} == {StoreClosedError}, outcomes
    if target == "file":
        with GoalStore.open(database) as again:
            assert tokens_used(again) == sum(acknowledged for acknowledged, _ in outcomes)


def test_those_who_wait_when_the_store_closes_are_refused(store: GoalStore) -> None:
    store.create("t", "Ship")
    entered, go_on = threading.Event(), threading.Event()

    def slow(repository: GoalRepository) -> None:
        repository.charge("t", tokens=1)
        entered.set()
        assert go_on.wait(PATIENCE_SECONDS)

    def outcome() -> Any:
        try:
            return store.charge("t", tokens=10)
        except RequestError as error:
            return error

    with ThreadPoolExecutor(12) as threads:
        working = threads.submit(store.transact, slow)
        assert entered.wait(PATIENCE_SECONDS)
        closing = threads.submit(store.close)
        waiting = [threads.submit(outcome) for _ in range(10)]
        go_on.set()
        working.result(PATIENCE_SECONDS)
        closing.result(PATIENCE_SECONDS)
        for one in waiting:
            result = one.result(PATIENCE_SECONDS)
            assert isinstance(result, StoreClosedError) or result.applied


def test_closing_twice_and_calling_after_it(store: GoalStore) -> None:
    store.create("t", "Ship")
    begun = store.goals()
    store.close()
    store.close()
    calls: list[Callable[[], Any]] = [
        lambda: store.get("t"),
        lambda: store.usage("t"),
        lambda: store.count(),
        lambda: list(store.goals()),
        lambda: list(store.events()),
        lambda: store.verify(),
        lambda: store.charge("t", tokens=1),
        lambda: store.clear("t"),
        lambda: store.transact(lambda repository: repository.count()),
        lambda: list(begun),
    ]
    for call in calls:
        with pytest.raises(StoreClosedError, match="open it again"):
            call()
