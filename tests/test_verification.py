"""verify(): silent about what is sound, and exact about what was tampered with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from goal_state import Difference, Goal, GoalStatus, GoalStore, InvalidValueError, TokenUsage
from tests.databases import execute
from tests.in_memory import open_in_memory


@pytest.fixture
def goals(store: GoalStore) -> dict[str, Goal]:
    """Goals with a past, by thread."""
    for thread in ("a", "b", "c"):
        store.create(thread, "Ship", token_budget=100)
        store.charge(thread, tokens=60, seconds=1.5)
        store.charge(thread, tokens=60, seconds=1)
        store.resume(thread, token_budget=500)
    store.replace("b", "Ship more")
    store.charge("b", tokens=7)
    store.clear("c")
    return {goal.thread_id: goal for goal in store.goals()}


def one_line(differences: list[Difference]) -> list[tuple[str, str, object, object]]:
    return [(one.thread_id, one.column, one.stored, one.recomputed) for one in differences]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["file", "memory"])
def test_what_is_sound_has_no_differences(database: Path, target: str) -> None:
    with GoalStore.open(database) if target == "file" else open_in_memory() as store:
        assert store.verify() == []
        for number, status in enumerate([*GoalStatus] * 100):
            thread = f"t{number}"
            store.transact(
                lambda r, thread=thread, number=number, status=status: (
                    r.create(thread, "Ship", token_budget=10),
                    r.charge(thread, tokens=number),
                    r.set_baseline(thread, TokenUsage()),
                    r.record_total(thread, TokenUsage(5), seconds=1, mode="active_or_stopped"),
                    r.set(thread, status=status),
                )
            )
        store.clear("t5")
        store.replace("t6", "Ship more")
        assert store.count() == 599
        assert store.verify() == []
        assert store.verify("t6") == store.verify("t5") == store.verify("nobody") == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("tokens_used = 121", ("a", "tokens_used", 121, 120)),
        ("tokens_used = 122", ("a", "tokens_used", 122, 120)),
        ("unpriced_tokens = 119", ("a", "unpriced_tokens", 119, 120)),
        ("cost_used_nanos = 1", ("a", "cost_used_nanos", 1, 0)),
        ("calls_used = 1", ("a", "calls_used", 1, 0)),
        ("estimated_tokens = 5", ("a", "estimated_tokens", 5, 0)),
        ("time_used_ms = 2501", ("a", "time_used_ms", 2501, 2500)),
        ("status = 'paused'", ("a", "status", "paused", "active")),
        ("status = 'complete'", ("a", "status", "complete", "active")),
    ],
)
def test_a_row_that_was_tampered_with(
    store: GoalStore,
    database: Path,
    goals: dict[str, Goal],
    change: str,
    expected: tuple[str, str, object, object],
) -> None:
    execute(database, f"UPDATE goal_state_goals SET {change} WHERE thread_id = 'a'")
    differences = store.verify()
    assert one_line(differences) == [expected]
    assert differences == store.verify("a")
    assert store.verify("b") == []
    assert differences[0].goal_id == goals["a"].goal_id
    _, column, stored, recomputed = expected
    assert str(differences[0]) == (
        f"goal {goals['a'].goal_id} of thread 'a': {column} is {stored}, the log says {recomputed}"
    )


_AGAIN = (
    "event_id, {}, thread_id, goal_id, turn_id, goal_status, previous_status, token_budget, 0, 0,"
    " occurred_at_ms"
)
AGAIN_AS = f"INSERT INTO goal_state_events ({_AGAIN.format('kind')}) SELECT {_AGAIN}".replace(
    "0, 0", "tokens_delta, time_delta_ms", 1
)
"""One event once more, as another kind."""


@pytest.mark.parametrize(
    ("statement", "thread", "columns"),
    [
        ("DELETE FROM goal_state_events WHERE goal_id = :a AND kind = 'created'", "a", ["event"]),
        (
            "UPDATE goal_state_events SET tokens_delta = 61 WHERE goal_id = :a AND cumulative_tokens = 60",
            "a",
            ["event", "event", "tokens_used"],
        ),
        (
            "UPDATE goal_state_events SET time_delta_ms = 1 WHERE goal_id = :a AND cumulative_tokens = 120",
            "a",
            ["event", "time_used_ms"],
        ),
        (
            (
                "UPDATE goal_state_events SET cumulative_tokens = 59"
                " WHERE goal_id = :a AND cumulative_tokens = 60"
            ),
            "a",
            ["event"],
        ),
        (
            (
                "UPDATE goal_state_events SET cumulative_time_ms = 1"
                " WHERE goal_id = :a AND cumulative_tokens = 60"
            ),
            "a",
            ["event"],
        ),
        ("DELETE FROM goal_state_events WHERE goal_id = :a", "a", ["goal_id"]),
        # With it went who took the place of the thread's first goal.
        ("DELETE FROM goal_state_events WHERE goal_id = :b", "b", ["goal_id", "goal_id"]),
        ("DELETE FROM goal_state_events", "a", ["goal_id"]),
        (
            "DELETE FROM goal_state_events WHERE goal_id = :a AND kind = 'usage_accounted'",
            "a",
            ["time_used_ms", "tokens_used", "unpriced_tokens"],
        ),
        (
            AGAIN_AS.format("'cleared'")
            + " FROM goal_state_events WHERE goal_id = :a AND kind = 'created'",
            "a",
            ["goal_id"],
        ),
        (
            AGAIN_AS.format("kind")
            + " FROM goal_state_events WHERE goal_id = :a AND kind = 'created'",
            "a",
            ["event"],
        ),
        (
            AGAIN_AS.format("'status_changed'") + " FROM goal_state_events WHERE kind = 'cleared'",
            "c",
            ["event"],
        ),
    ],
    ids=[
        "no created",
        "another delta",
        "another time",
        "another cumulative",
        "another cumulative time",
        "no log of the first",
        "no log of another",
        "no log at all",
        "no charges",
        "cleared but there",
        "created twice",
        "an event after cleared",
    ],
)
def test_a_log_that_was_tampered_with(
    store: GoalStore,
    database: Path,
    goals: dict[str, Goal],
    statement: str,
    thread: str,
    columns: list[str],
) -> None:
    for name in ("a", "b"):
        statement = statement.replace(f":{name}", f"'{goals[name].goal_id}'")
    execute(database, statement)
    differences = store.verify()
    found = sorted(one.column.split()[0] for one in differences if one.thread_id == thread)
    assert found == columns
    assert store.verify(thread) == [one for one in differences if one.thread_id == thread]
    if "WHERE" in statement:
        assert {one.thread_id for one in differences} == {thread}


@pytest.mark.parametrize(
    "break_it",
    [
        lambda goal: (
            f"UPDATE goal_state_goals SET thread_id = 'z' WHERE goal_id = '{goal.goal_id}'"
        ),
        lambda goal: (
            f"UPDATE goal_state_events SET thread_id = 'z' WHERE goal_id = '{goal.goal_id}'"
        ),
    ],
    ids=["row", "log"],
)
def test_a_goal_moved_to_another_thread(
    store: GoalStore, database: Path, goals: dict[str, Goal], break_it: Callable[[Goal], str]
) -> None:
    execute(database, break_it(goals["a"]))
    assert [one.column for one in store.verify()] == ["thread_id"]


def test_more_goals_than_fit_on_a_page_are_all_compared(store: GoalStore, database: Path) -> None:
    store.transact(lambda r: [r.create(f"t{number}", "Ship") for number in range(1203)])
    assert store.verify() == []
    execute(database, "UPDATE goal_state_goals SET tokens_used = 1")
    assert len(store.verify()) == 1203
    execute(
        database, "UPDATE goal_state_goals SET tokens_used = 0", "DELETE FROM goal_state_events"
    )
    assert len(store.verify()) == 1203


def test_a_malformed_thread_is_refused(store: GoalStore) -> None:
    with pytest.raises(InvalidValueError, match="thread_id"):
        store.verify("")
