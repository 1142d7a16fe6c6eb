"""A crash between the line in the rollout and the charge: each token is charged once, to the goal whose
time it was used in, on whichever side of the crash it was recorded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from goal_state import EventKind, Goal, GoalStatus, GoalStore, ThreadUsage
from goal_state.codex import RestoredUsage, ThreadHub
from goal_state.codex.rollout import RolloutWriter, find_rollout
from goal_state.meter import GoalMeter
from tests.codex.clients import PATIENCE_SECONDS, Client, goal_message, usage, used
from tests.codex.rollout_lines import began, completed, event
from tests.databases import fingerprints
from tests.in_memory import open_in_memory

THREAD = "thread-1"

BEFORE, LOST = used(100), used(160)
DUE = LOST.total.goal_tokens - BEFORE.total.goal_tokens


class Host:
    """Runs turns of one thread: first the line in the rollout, then the charge."""

    def __init__(self, store: GoalStore, home: Path) -> None:
        self.store = store
        self.home = home
        store.set_baseline(THREAD, used(0).total)
        RolloutWriter.create(home, THREAD).close()

    def begin(self, turn_id: str) -> None:
        self._write(began(turn_id, 200_000))

    def use(self, turn_id: str, stated: ThreadUsage) -> None:
        """One response of the model, recorded in the rollout alone."""
        counts = {"total_token_usage": stated.total, "last_token_usage": stated.last}
        self._write(
            event(
                "token_count",
                info={name: _line_counts(one) for name, one in counts.items()}
                | {"model_context_window": stated.model_context_window},
            )
        )

    def end(self, turn_id: str) -> None:
        self._write(completed(turn_id))

    def run(self, turn_id: str, stated: ThreadUsage) -> None:
        """A whole turn, recorded and charged."""
        self.begin(turn_id)
        self.use(turn_id, stated)
        self.store.record_total(THREAD, stated, turn_id=turn_id)
        self.end(turn_id)

    def resume(self) -> tuple[RestoredUsage | None, list[dict[str, Any]]]:
        """A client resumes the thread, in a program that was just started."""
        hub, client = ThreadHub(self.store, home=self.home), Client()
        restored = hub.resume(THREAD, client, request_id=1)
        assert hub.flush(PATIENCE_SECONDS)
        return restored, client.told[1:]

    def goal(self) -> Goal:
        goal = self.store.get(THREAD)
        assert goal is not None
        return goal

    def _write(self, line: dict[str, Any]) -> None:
        path = find_rollout(self.home, THREAD)
        assert path is not None
        with RolloutWriter(path) as writer:
            writer.append(line)


def _line_counts(counts: Any) -> dict[str, int]:
    return {
        "input_tokens": counts.input_tokens,
        "cached_input_tokens": counts.cached_input_tokens,
        "cache_write_input_tokens": counts.cache_write_input_tokens,
        "output_tokens": counts.output_tokens,
        "reasoning_output_tokens": counts.reasoning_output_tokens,
        "total_tokens": counts.total_tokens,
    }


@pytest.fixture
def host(store: GoalStore, home: Path) -> Host:
    return Host(store, home)


# -- the line was written, the charge was not made ---------------------------------------------------


def test_what_only_the_rollout_knows_is_charged_once(host: Host) -> None:
    host.store.create(THREAD, "Ship it")
    host.run("turn-1", BEFORE)
    assert host.goal().tokens_used == BEFORE.total.goal_tokens
    host.begin("turn-2")
    host.use("turn-2", LOST)
    restored, told = host.resume()
    assert restored == RestoredUsage(THREAD, "turn-2", LOST.of_turn("turn-2"))
    assert host.goal().tokens_used == LOST.total.goal_tokens
    # The client is told of the goal as it is after the charge.
    assert told == [usage(THREAD, "turn-2", LOST), goal_message(host.goal())]
    charge = list(host.store.events())[-1]
    assert (charge.kind, charge.tokens_delta, charge.turn_id, charge.time_delta_ms) == (
        EventKind.USAGE_ACCOUNTED,
        DUE,
        "turn-2",
        0,
    )
    assert host.store.usage(THREAD) == LOST.of_turn("turn-2")
    assert host.store.verify() == []


def test_resuming_again_charges_nothing(host: Host) -> None:
    host.store.create(THREAD, "Ship it")
    host.run("turn-1", BEFORE)
    host.begin("turn-2")
    host.use("turn-2", LOST)
    first = host.resume()
    events, rollouts = list(host.store.events()), fingerprints(host.home)
    assert host.resume() == first
    assert host.resume() == first
    assert list(host.store.events()) == events
    assert fingerprints(host.home) == rollouts


def test_a_resume_without_a_crash_charges_nothing(host: Host) -> None:
    host.store.create(THREAD, "Ship it")
    host.run("turn-1", BEFORE)
    events, rollouts = list(host.store.events()), fingerprints(host.home)
    restored, _ = host.resume()
    assert restored == RestoredUsage(THREAD, "turn-1", BEFORE.of_turn("turn-1"))
    assert list(host.store.events()) == events
    assert fingerprints(host.home) == rollouts


def test_the_host_that_repeats_the_charge_after_the_resume_charges_nothing(host: Host) -> None:
    host.store.create(THREAD, "Ship it")
    host.run("turn-1", BEFORE)
    host.use("turn-1", LOST)
    host.resume()
    assert not host.store.record_total(THREAD, LOST, turn_id="turn-1").applied
    assert host.goal().tokens_used == LOST.total.goal_tokens


def test_a_goal_that_was_made_before_the_meters_turn_pays_what_the_turn_lost(
    store: GoalStore, home: Path
) -> None:
    host = Host(store, home)
    store.create(THREAD, "Ship it")
    meter = GoalMeter(store, THREAD)
    meter.start_turn("turn-1")
    host.begin("turn-1")
    host.use("turn-1", LOST)
    host.resume()
    assert host.goal().tokens_used == LOST.total.goal_tokens
    meter = GoalMeter(store, THREAD)
    meter.start_turn("turn-2", total=LOST)
    assert not meter.record_total(LOST).charged
    assert host.goal().tokens_used == LOST.total.goal_tokens


def test_the_difference_can_use_up_the_budget(host: Host) -> None:
    host.store.create(THREAD, "Ship it", token_budget=BEFORE.total.goal_tokens + DUE)
    host.run("turn-1", BEFORE)
    assert host.goal().status is GoalStatus.ACTIVE
    host.use("turn-1", LOST)
    _, told = host.resume()
    assert host.goal().status is GoalStatus.BUDGET_LIMITED
    assert told[-1]["params"]["goal"]["status"] == "budgetLimited"


def test_nobody_pays_what_was_used_in_the_time_of_a_goal_that_is_gone(host: Host) -> None:
    host.store.create(THREAD, "Ship it")
    host.run("turn-1", BEFORE)
    host.use("turn-1", LOST)
    cleared = host.store.clear(THREAD)
    assert cleared is not None
    restored, told = host.resume()
    assert restored is not None
    assert restored.usage == LOST.of_turn("turn-1")
    assert told == [usage(THREAD, "turn-1", LOST)]
    assert [event.kind for event in host.store.events()][-1] is EventKind.CLEARED


@pytest.mark.parametrize("clears_first", [True, False], ids=["cleared and made", "replaced"])
def test_a_later_goal_does_not_pay_for_the_one_before(host: Host, clears_first: bool) -> None:
    host.store.create(THREAD, "Ship it")
    host.run("turn-1", BEFORE)
    host.use("turn-1", LOST)
    if clears_first:
        host.store.clear(THREAD)
        host.store.create(THREAD, "Something else")
    else:
        host.store.replace(THREAD, "Something else")
    host.resume()
    host.resume()
    assert host.goal().tokens_used == 0
    # From now on it pays, but not for what was before.
    later = used(200)
    host.store.record_total(THREAD, later, turn_id="turn-2")
    assert host.goal().tokens_used == later.total.goal_tokens - LOST.total.goal_tokens


def test_a_goal_that_was_made_after_the_loss_does_not_pay_for_it(host: Host) -> None:
    host.run("turn-1", BEFORE)
    host.use("turn-1", LOST)
    host.store.create(THREAD, "Ship it")
    host.resume()
    assert host.goal().tokens_used == 0


def test_a_paused_goal_pays_nothing(host: Host) -> None:
    host.store.create(THREAD, "Ship it")
    host.run("turn-1", BEFORE)
    host.store.set(THREAD, status="paused")
    host.use("turn-1", LOST)
    host.resume()
    assert host.goal().tokens_used == BEFORE.total.goal_tokens
    host.store.resume(THREAD)
    host.resume()
    assert host.goal().tokens_used == BEFORE.total.goal_tokens


def test_a_thread_whose_rollout_the_store_never_saw_is_charged_nothing(
    store: GoalStore, home: Path
) -> None:
    host = Host(store, home)
    host.use("turn-1", LOST)
    other = open_in_memory()
    with other:
        other.create(THREAD, "Ship it")
        restored, _ = Host.resume(_on(host, other))
        goal = other.get(THREAD)
        assert goal is not None
        assert goal.tokens_used == 0
        known = other.usage(THREAD)
    assert restored is not None
    assert restored.usage == LOST
    assert known is not None
    assert known == LOST


def _on(host: Host, store: GoalStore) -> Host:
    moved = Host.__new__(Host)
    moved.store, moved.home = store, host.home
    return moved


# -- the charge was made, the line was lost ----------------------------------------------------------


def test_what_only_the_store_knows_is_told_and_not_charged_again(host: Host) -> None:
    host.store.create(THREAD, "Ship it")
    host.run("turn-1", BEFORE)
    host.begin("turn-2")
    host.store.record_total(THREAD, LOST, turn_id="turn-2")  # and the line never reached the disk
    events, rollouts = list(host.store.events()), fingerprints(host.home)
    restored, told = host.resume()
    assert restored == RestoredUsage(THREAD, "turn-2", LOST.of_turn("turn-2"))
    assert told[0] == usage(THREAD, "turn-2", LOST)
    assert host.goal().tokens_used == LOST.total.goal_tokens
    assert host.store.usage(THREAD) == LOST.of_turn("turn-2")
    assert list(host.store.events()) == events
    assert fingerprints(host.home) == rollouts


def test_a_usage_of_which_the_store_knows_no_turn_is_said_to_be_of_the_rollouts_latest(
    host: Host,
) -> None:
    host.run("turn-1", BEFORE)
    host.store.set_baseline(THREAD, used(0).total)
    with open_in_memory() as store:
        store.set_baseline(THREAD, LOST)
        restored, _ = _on(host, store).resume()
    assert restored == RestoredUsage(THREAD, "turn-1", LOST.of_turn("turn-1"))


def test_a_torn_line_is_a_lost_one(host: Host) -> None:
    host.store.create(THREAD, "Ship it")
    host.run("turn-1", BEFORE)
    path = find_rollout(host.home, THREAD)
    assert path is not None
    host.store.record_total(THREAD, LOST, turn_id="turn-2")
    torn = json.dumps(event("token_count", info={"total_token_usage": {}}))[:-20].encode()
    path.write_bytes(path.read_bytes() + torn)
    restored, _ = host.resume()
    assert restored == RestoredUsage(THREAD, "turn-2", LOST.of_turn("turn-2"))
    assert host.goal().tokens_used == LOST.total.goal_tokens


# -- forks -------------------------------------------------------------------------------------------


def test_a_fork_pays_only_for_its_own(host: Host) -> None:
    host.store.create(THREAD, "Ship it")
    host.run("turn-1", BEFORE)
    hub, client = ThreadHub(host.store, home=host.home), Client()
    hub.fork(THREAD, "fork", client, request_id=1)
    assert host.store.get("fork") is None
    host.store.create("fork", "Try another way")
    own = used(130)
    host.store.record_total("fork", own, turn_id="turn-f")
    fork = host.store.get("fork")
    assert fork is not None
    assert fork.tokens_used == own.total.goal_tokens - BEFORE.total.goal_tokens
    assert host.goal().tokens_used == BEFORE.total.goal_tokens
    assert host.store.verify() == []


def test_a_fork_of_a_thread_that_lost_a_charge_leaves_it_to_its_parent(host: Host) -> None:
    host.store.create(THREAD, "Ship it")
    host.run("turn-1", BEFORE)
    host.use("turn-1", LOST)
    hub, client = ThreadHub(host.store, home=host.home), Client()
    restored = hub.fork(THREAD, "fork", client, request_id=1)
    assert restored == RestoredUsage("fork", "turn-1", LOST.of_turn("turn-1"))
    host.store.create("fork", "Try another way")
    host.store.record_total("fork", LOST, turn_id="turn-f")
    fork = host.store.get("fork")
    assert fork is not None
    assert fork.tokens_used == 0
    assert host.goal().tokens_used == LOST.total.goal_tokens


def test_a_fork_that_is_resumed_before_it_ran_has_what_it_inherited(host: Host) -> None:
    host.run("turn-1", BEFORE)
    hub = ThreadHub(host.store, home=host.home)
    hub.fork(THREAD, "fork", Client(), request_id=1)
    again = ThreadHub(host.store, home=host.home)
    assert again.resume("fork", Client(), request_id=2) == RestoredUsage(
        "fork", "turn-1", BEFORE.of_turn("turn-1")
    )
    assert host.store.usage("fork") == BEFORE.of_turn("turn-1")
