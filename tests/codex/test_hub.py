"""What a client is told when it attaches to a thread, and what it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from goal_state import (
    DatabaseError,
    GoalExistsError,
    GoalStore,
    InvalidValueError,
    StoreClosedError,
    TokenUsage,
)
from goal_state.codex import RestoredUsage, ThreadHub, restored_turn_id
from goal_state.codex.builders import TURN_ID, USAGE, rollout, rollout_with_token_usage
from goal_state.codex.rollout import Turn, TurnStatus, find_rollout
from goal_state.errors import NotARolloutError, ThreadNotFoundError
from goal_state.storage.sqlite.executor import Executor, Statement
from tests.codex.clients import (
    PATIENCE_SECONDS,
    Client,
    goal_message,
    kinds,
    response,
    usage,
    used,
)
from tests.codex.rollout_lines import aborted, began, completed, meta, token_count, write_rollout
from tests.codex.rollout_lines import used as lines_used
from tests.databases import fingerprints

DONE, RUNNING = TurnStatus.COMPLETED, TurnStatus.IN_PROGRESS
FAILED, INTERRUPTED = TurnStatus.FAILED, TurnStatus.INTERRUPTED


def flushed(hub: ThreadHub) -> None:
    assert hub.flush(PATIENCE_SECONDS)


# -- which turn --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], ""),
        ([DONE], "1"),
        ([RUNNING], "1"),
        ([DONE, RUNNING], "1"),
        ([RUNNING, DONE], "2"),
        ([DONE, RUNNING, RUNNING], "1"),
        ([RUNNING, RUNNING], "2"),
        ([DONE, FAILED], "2"),
        ([DONE, INTERRUPTED, RUNNING], "2"),
    ],
)
def test_the_latest_turn_that_is_not_in_progress_else_the_last_else_none(
    statuses: list[TurnStatus], expected: str
) -> None:
    turns = [Turn(str(number), status) for number, status in enumerate(statuses, start=1)]
    assert restored_turn_id(turns) == expected


# -- what is told ------------------------------------------------------------------------------------


def test_response_then_usage_then_goal_to_the_one_who_asked(
    hub: ThreadHub, store: GoalStore, client: Client
) -> None:
    other = Client()
    hub.start("thread", other, request_id=7)
    store.create("thread", "Ship it", token_budget=1_000)
    hub.turn_started("thread", "turn-1")
    hub.usage_updated("thread", "turn-1", used(3))
    hub.turn_finished("thread", "turn-1")
    flushed(hub)
    other.take()
    assert hub.resume("thread", client, request_id=8) == RestoredUsage(
        "thread", "turn-1", used(3, "turn-1")
    )
    flushed(hub)
    [response_, usage_, goal_] = client.told
    assert response_ == response(8, "thread", **{"turn-1": "completed"})
    assert usage_ == usage("thread", "turn-1", used(3))
    assert goal_ == goal_message(store.get("thread"))
    assert other.told == []


def test_the_messages_are_as_on_the_wire(hub: ThreadHub, home: Path, store: GoalStore) -> None:
    thread_id = rollout_with_token_usage(home)
    goal = store.create(thread_id, "Ship it", token_budget=1_000_000)
    store.set(thread_id, status="usage_limited")
    client = Client()
    hub.resume(thread_id, client, request_id="a", result={"ok": True})
    flushed(hub)
    updated = store.get(thread_id)
    assert updated is not None
    assert client.told == [
        {"jsonrpc": "2.0", "id": "a", "result": {"ok": True}},
        {
            "jsonrpc": "2.0",
            "method": "thread/tokenUsage/updated",
            "params": {
                "threadId": thread_id,
                "turnId": TURN_ID,
                "tokenUsage": {
                    "total": {
                        "totalTokens": 1_680,
                        "inputTokens": 1_200,
                        "cachedInputTokens": 350,
                        "cacheWriteInputTokens": 75,
                        "outputTokens": 480,
                        "reasoningOutputTokens": 160,
                    },
                    "last": {
                        "totalTokens": 505,
                        "inputTokens": 410,
                        "cachedInputTokens": 130,
                        "cacheWriteInputTokens": 25,
                        "outputTokens": 95,
                        "reasoningOutputTokens": 40,
                    },
                    "modelContextWindow": 200_000,
                },
            },
        },
        {
            "jsonrpc": "2.0",
            "method": "thread/goal/updated",
            "params": {
                "threadId": thread_id,
                "turnId": None,
                "goal": {
                    "threadId": thread_id,
                    "objective": "Ship it",
                    "status": "usageLimited",
                    "tokenBudget": 1_000_000,
                    "tokensUsed": 0,
                    "timeUsedSeconds": 0,
                    "createdAt": goal.created_at_ms // 1000,
                    "updatedAt": updated.updated_at_ms // 1000,
                },
            },
        },
    ]


def test_no_usage_no_notification_and_no_goal_none_either(hub: ThreadHub, client: Client) -> None:
    hub.start("thread", client, request_id=1)
    assert hub.resume("thread", client, request_id=2) is None
    flushed(hub)
    assert kinds(client.told) == [1, 2]


def test_a_thread_that_used_nothing_has_no_usage_after_a_restart_either(
    hub: ThreadHub, store: GoalStore, home: Path, client: Client
) -> None:
    """Its stored baseline, zero, is no usage."""
    hub.start("thread", Client(), request_id=1)
    hub.fork("thread", "fork", Client(), request_id=2)
    silent = rollout(home)
    again = ThreadHub(store, home=home)
    for request_id, thread_id in enumerate(["thread", "fork", silent], start=3):
        assert again.resume(thread_id, client, request_id=request_id) is None
    flushed(again)
    flushed(hub)
    assert kinds(client.told) == [3, 4, 5]


def test_a_goal_without_usage_is_told(hub: ThreadHub, store: GoalStore, client: Client) -> None:
    store.create("thread", "Ship it")
    hub.resume("thread", client, request_id=1)
    flushed(hub)
    assert kinds(client.told) == [1, "thread/goal/updated"]


def test_a_goal_that_was_cleared_is_not_told(
    hub: ThreadHub, store: GoalStore, client: Client
) -> None:
    hub.start("thread", client, request_id=1)
    store.create("thread", "Ship it")
    store.clear("thread")
    hub.resume("thread", client, request_id=2)
    flushed(hub)
    assert kinds(client.told) == [1, 2]


def test_an_update_reaches_every_attached_client_once(hub: ThreadHub) -> None:
    clients = [Client() for _ in range(5)]
    hub.start("thread", clients[0], request_id=0)
    for number, client in enumerate(clients[1:], start=1):
        hub.resume("thread", client, request_id=number)
    flushed(hub)
    for client in clients:
        client.take()
    hub.detach(clients[4], "thread")
    hub.usage_updated("thread", "turn-1", used(1))
    flushed(hub)
    expected = [usage("thread", "turn-1", used(1))]
    assert [client.told for client in clients] == [expected] * 4 + [[]]


def test_a_client_that_attaches_twice_gets_two_replays_and_each_update_once(
    hub: ThreadHub, client: Client
) -> None:
    hub.start("thread", client, request_id=1)
    hub.resume("thread", client, request_id=2)
    hub.usage_updated("thread", "turn-1", used(1))
    flushed(hub)
    assert kinds(client.told) == [1, 2, "thread/tokenUsage/updated"]


def test_an_older_total_of_a_turn_that_comes_late_is_told_to_nobody(
    hub: ThreadHub, client: Client
) -> None:
    hub.start("thread", client, request_id=1)
    hub.usage_updated("thread", "turn-1", used(9))
    hub.usage_updated("thread", "turn-1", used(8))
    restored = hub.resume("thread", client, request_id=2)
    assert restored is not None
    assert restored.usage == used(9, "turn-1")
    flushed(hub)
    told = [message for message in client.told if "method" in message]
    assert [message["params"]["tokenUsage"] for message in told] == [used(9).to_mapping()] * 2


def test_a_new_count_in_a_new_turn_is_told(hub: ThreadHub, client: Client) -> None:
    hub.start("thread", client, request_id=1)
    hub.usage_updated("thread", "turn-1", used(9))
    hub.usage_updated("thread", "turn-2", used(1))
    flushed(hub)
    assert client.told[-1] == usage("thread", "turn-2", used(1))


def test_while_a_turn_runs_the_one_before_it_is_named(hub: ThreadHub, client: Client) -> None:
    hub.start("thread", client, request_id=0)
    for turn_id, tokens in (("turn-1", 1), ("turn-2", 2)):
        hub.turn_started("thread", turn_id)
        hub.usage_updated("thread", turn_id, used(tokens))
        restored = hub.resume("thread", client, request_id=1)
        assert restored == RestoredUsage("thread", "turn-1", used(tokens, turn_id))
        hub.turn_finished("thread", turn_id)
    restored = hub.resume("thread", client, request_id=2)
    assert restored == RestoredUsage("thread", "turn-2", used(2, "turn-2"))


def test_a_fork_has_its_own_thread_id_and_the_original_turn_id(
    hub: ThreadHub, store: GoalStore, client: Client
) -> None:
    hub.start("thread", client, request_id=1)
    store.create("thread", "Ship it")
    hub.turn_started("thread", "turn-1")
    hub.usage_updated("thread", "turn-1", used(5))
    fork = Client()
    restored = hub.fork("thread", "fork", fork, request_id=2)
    assert restored == RestoredUsage("fork", "turn-1", used(5, "turn-1"))
    flushed(hub)
    # It has no goal, and the turn that runs in its parent was interrupted in it.
    assert fork.told == [
        response(2, "fork", **{"turn-1": "interrupted"}),
        usage("fork", "turn-1", used(5)),
    ]
    assert store.usage("fork") == used(5, "turn-1")
    # From here on they go their own ways.
    client.take()
    hub.usage_updated("thread", "turn-1", used(6))
    hub.usage_updated("fork", "turn-f", used(7))
    flushed(hub)
    assert client.told == [usage("thread", "turn-1", used(6))]
    assert fork.told[2:] == [usage("fork", "turn-f", used(7))]


def test_a_thread_that_is_not_live_is_restored_from_its_rollout(
    hub: ThreadHub, home: Path, client: Client
) -> None:
    thread_id = rollout_with_token_usage(home)
    before = fingerprints(home)
    assert hub.resume(thread_id, client, request_id=1) == RestoredUsage(thread_id, TURN_ID, USAGE)
    flushed(hub)
    assert client.told == [
        response(1, thread_id, **{TURN_ID: "completed"}),
        usage(thread_id, TURN_ID, USAGE),
    ]
    assert fingerprints(home) == before


STORED_TURNS = [
    *(began("t1"), token_count(5), completed("t1")),
    *(began("t2"), token_count(9), aborted("t2")),
    *(began("t3"), completed("t3", error={"codex_error_info": "other"})),
    *(began("t4"), token_count(12)),
]
STATUSES_OVER = {"t1": "completed", "t2": "interrupted", "t3": "failed", "t4": "interrupted"}


def test_a_cold_thread_has_every_turn_of_its_rollout_with_the_status_that_it_ended_with(
    hub: ThreadHub, tmp_path: Path, client: Client
) -> None:
    path = write_rollout(tmp_path, meta("thread"), *STORED_TURNS).path
    restored = hub.resume("thread", client, request_id=1, rollout=path)
    assert restored == RestoredUsage("thread", "t4", lines_used(12, turn_id="t4"))
    flushed(hub)
    # Nobody has seen the last one end, and nobody works on it: it was interrupted.
    assert client.told[0] == response(1, "thread", **STATUSES_OVER)


def test_a_fork_of_a_cold_thread_has_the_turns_of_its_rollout(
    hub: ThreadHub, tmp_path: Path, client: Client
) -> None:
    path = write_rollout(tmp_path, meta("thread"), *STORED_TURNS).path
    hub.fork("thread", "fork", client, request_id=1, rollout=path)
    flushed(hub)
    assert client.told[0] == response(1, "fork", **STATUSES_OVER)


def test_a_cold_thread_has_the_turns_that_the_host_names(
    hub: ThreadHub, tmp_path: Path, client: Client
) -> None:
    path = write_rollout(tmp_path, meta("thread"), *STORED_TURNS).path
    turns = [Turn("t0", FAILED), Turn("t1", DONE), Turn("t9", RUNNING)]
    restored = hub.resume("thread", client, request_id=1, rollout=path, turns=turns)
    assert restored == RestoredUsage("thread", "t1", lines_used(12, turn_id="t4"))
    flushed(hub)
    said = {"t0": "failed", "t1": "completed", "t9": "inProgress"}
    assert client.told[0] == response(1, "thread", **said)
    hub.detach(client)
    assert hub.live_threads() == ["thread"], "one of its turns runs"
    # Of a live thread the hub knows better.
    hub.turn_finished("thread", "t9", INTERRUPTED)
    assert hub.live_threads() == []


def test_a_live_thread_has_the_turns_that_the_hub_has_seen(hub: ThreadHub, client: Client) -> None:
    hub.turn_started("thread", "t1")
    hub.resume("thread", client, request_id=1, turns=[Turn("t0", FAILED)])
    flushed(hub)
    assert client.told[0] == response(1, "thread", t1="inProgress")


@pytest.mark.parametrize("turn", [Turn("", DONE), Turn("t1", "done")])  # type: ignore[arg-type]
def test_a_turn_that_cannot_be_one_is_refused(hub: ThreadHub, client: Client, turn: Turn) -> None:
    with pytest.raises(InvalidValueError):
        hub.resume("thread", client, request_id=1, turns=[turn])


def test_a_turn_that_only_the_baseline_names_is_named_and_not_listed(
    hub: ThreadHub, store: GoalStore, client: Client
) -> None:
    """The store does not know how it ended."""
    store.set_baseline("thread", used(3), turn_id="t1")
    assert hub.resume("thread", client, request_id=1) == RestoredUsage(
        "thread", "t1", used(3, "t1")
    )
    flushed(hub)
    assert client.told[0] == response(1, "thread")
    hub.turn_started("thread", "t2")
    assert hub.resume("thread", client, request_id=2) == RestoredUsage(
        "thread", "t1", used(3, "t1")
    )
    hub.turn_finished("thread", "t2")
    assert hub.resume("thread", client, request_id=3) == RestoredUsage(
        "thread", "t2", used(3, "t1")
    )


def test_a_turn_that_the_rollout_lost_was_interrupted(
    hub: ThreadHub, store: GoalStore, tmp_path: Path, client: Client
) -> None:
    path = write_rollout(tmp_path, meta("thread"), *STORED_TURNS[:3]).path
    store.set_baseline("thread", used(30), turn_id="t2")
    restored = hub.resume("thread", client, request_id=1, rollout=path)
    assert restored == RestoredUsage("thread", "t2", used(30, "t2"))
    flushed(hub)
    assert client.told[0] == response(1, "thread", t1="completed", t2="interrupted")


def test_a_resume_that_charges_runs_six_statements(
    store: GoalStore,
    hub: ThreadHub,
    tmp_path: Path,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Baseline, charge, event, baseline; then usage and goal. BEGIN and COMMIT are not counted, and the goal
    that this store has made is known to it.
    """
    store.create("thread", "Ship it")
    store.set_baseline("thread", lines_used(5), turn_id="t1")
    path = write_rollout(tmp_path, meta("thread"), *STORED_TURNS).path
    statements: list[Statement] = []

    def counting(run: Callable[..., Any]) -> Callable[..., Any]:
        def counted(executor: Executor, statement: Statement, *values: Any) -> Any:
            statements.append(statement)
            return run(executor, statement, *values)

        return counted

    with monkeypatch.context() as patched:
        for name in ("run", "run_many"):
            patched.setattr(Executor, name, counting(getattr(Executor, name)))
        hub.resume("thread", client, request_id=1, rollout=path)
    goal = store.get("thread")
    assert goal is not None
    assert goal.tokens_used == 7
    assert len(statements) == 6


def test_a_rollout_that_lies_elsewhere_can_be_named(
    store: GoalStore, home: Path, client: Client
) -> None:
    thread_id = rollout_with_token_usage(home)
    path = find_rollout(home, thread_id)
    hub = ThreadHub(store)
    with pytest.raises(ThreadNotFoundError):
        hub.resume(thread_id, client, request_id=1)
    restored = hub.resume(thread_id, client, request_id=1, rollout=path)
    assert restored == RestoredUsage(thread_id, TURN_ID, USAGE)


# -- which threads are live --------------------------------------------------------------------------


def test_a_thread_lives_while_somebody_is_attached_or_a_turn_runs(
    hub: ThreadHub, client: Client
) -> None:
    hub.start("thread", client, request_id=1)
    assert hub.live_threads() == ["thread"]
    hub.turn_started("thread", "turn-1")
    hub.detach(client)
    assert hub.live_threads() == ["thread"]
    hub.turn_finished("thread", "turn-1")
    assert hub.live_threads() == []


def test_a_turn_makes_a_thread_live_that_nobody_is_attached_to(
    hub: ThreadHub, client: Client
) -> None:
    hub.turn_started("thread", "turn-1")
    hub.usage_updated("thread", "turn-1", used(2))
    hub.resume("thread", client, request_id=1)
    hub.turn_finished("thread", "turn-1", TurnStatus.FAILED)
    flushed(hub)
    assert client.told == [
        response(1, "thread", **{"turn-1": "inProgress"}),
        usage("thread", "turn-1", used(2)),
    ]


def test_detaching_from_one_thread_leaves_the_others(hub: ThreadHub, client: Client) -> None:
    for number, thread_id in enumerate(["a", "b"]):
        hub.start(thread_id, client, request_id=number)
    flushed(hub)
    client.take()
    hub.turn_started("a", "turn-1")
    hub.detach(client, "a")
    hub.usage_updated("a", "turn-1", used(1))
    hub.usage_updated("b", "turn-1", used(2))
    flushed(hub)
    assert client.told == [usage("b", "turn-1", used(2))]
    hub.detach(client)
    assert hub.live_threads() == ["a"]


# -- refusals ----------------------------------------------------------------------------------------


def test_an_unknown_thread_is_not_found_and_nobody_is_told(hub: ThreadHub, client: Client) -> None:
    with pytest.raises(ThreadNotFoundError, match="no rollout and no record"):
        hub.resume("thread", client, request_id=1)
    with pytest.raises(ThreadNotFoundError):
        hub.fork("thread", "fork", client, request_id=2)
    with pytest.raises(ThreadNotFoundError, match="start or resume it first"):
        hub.usage_updated("thread", "turn-1", used(1))
    with pytest.raises(ThreadNotFoundError):
        hub.turn_finished("thread", "turn-1")
    flushed(hub)
    assert client.told == []
    assert hub.live_threads() == []


def test_a_live_thread_is_not_started_again(hub: ThreadHub, client: Client) -> None:
    hub.start("thread", client, request_id=1)
    with pytest.raises(GoalExistsError):
        hub.start("thread", Client(), request_id=2)
    with pytest.raises(GoalExistsError):
        hub.fork("thread", "thread", Client(), request_id=3)
    hub.usage_updated("thread", "turn-1", used(1))
    flushed(hub)
    assert kinds(client.told) == [1, "thread/tokenUsage/updated"]


def test_malformed_ids_are_refused(hub: ThreadHub, client: Client) -> None:
    hub.start("thread", client, request_id=1)
    for call in (
        lambda: hub.start("", client, request_id=2),
        lambda: hub.resume("x" * 257, client, request_id=2),
        lambda: hub.fork("thread", "\0", client, request_id=2),
        lambda: hub.turn_started("thread", ""),
        lambda: hub.turn_finished("thread", ""),
        lambda: hub.usage_updated("thread", "", used(1)),
    ):
        with pytest.raises(InvalidValueError):
            call()
    flushed(hub)
    assert kinds(client.told) == [1]
    assert hub.live_threads() == ["thread"]


def test_what_is_no_rollout_is_refused(hub: ThreadHub, tmp_path: Path, client: Client) -> None:
    with pytest.raises(NotARolloutError):
        hub.resume("thread", client, request_id=1, rollout=tmp_path)
    assert hub.live_threads() == []


def test_a_store_that_fails_leaves_no_thread_half_made(database: Path, home: Path) -> None:
    store, client = GoalStore.open(database), Client()
    hub = ThreadHub(store, home=home)
    hub.start("parent", Client(), request_id=0)
    store.close()
    for call in (
        lambda: hub.start("new", client, request_id=1),
        lambda: hub.resume("other", client, request_id=2),
        lambda: hub.resume("parent", client, request_id=3),
        lambda: hub.fork("parent", "fork", client, request_id=4),
    ):
        with pytest.raises(StoreClosedError):
            call()
    flushed(hub)
    assert client.told == []
    assert hub.live_threads() == ["parent"]


@pytest.mark.parametrize("attach", ["start", "fork"])
def test_an_attachment_that_fails_at_its_last_step_leaves_no_thread(
    hub: ThreadHub, store: GoalStore, client: Client, monkeypatch: pytest.MonkeyPatch, attach: str
) -> None:
    hub.start("parent", Client(), request_id=0)

    def fail(thread_id: str) -> None:
        raise DatabaseError("cannot be read")

    def call() -> None:
        if attach == "start":
            hub.start("new", client, request_id=1)
        else:
            hub.fork("parent", "new", client, request_id=1)

    with monkeypatch.context() as patched:
        patched.setattr(store, "get", fail)
        with pytest.raises(DatabaseError):
            call()
    assert hub.live_threads() == ["parent"]
    call()
    flushed(hub)
    assert kinds(client.told) == [1]


def test_starting_a_thread_that_the_store_knows_keeps_its_baseline(
    hub: ThreadHub, store: GoalStore, client: Client
) -> None:
    store.set_baseline("thread", TokenUsage(5, 1, 0, 2))
    hub.start("thread", client, request_id=1)
    known = store.usage("thread")
    assert known is not None
    assert known.total == TokenUsage(5, 1, 0, 2)
    hub.start("new", client, request_id=2)
    known = store.usage("new")
    assert known is not None
    assert known.total == TokenUsage()


def test_to_attach_neither_charges_nor_logs(
    hub: ThreadHub, store: GoalStore, home: Path, client: Client
) -> None:
    thread_id = rollout_with_token_usage(home)
    store.create(thread_id, "Ship it")
    events, goal, files = list(store.events()), store.get(thread_id), fingerprints(home)
    for number in range(3):
        hub.resume(thread_id, client, request_id=number)
        hub.fork(thread_id, f"fork-{number}", client, request_id=number)
        hub.detach(client)
    assert list(store.events()) == events
    assert store.get(thread_id) == goal
    assert fingerprints(home) == files
