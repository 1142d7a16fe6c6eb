"""`holds`, `expire-holds`, `resume-due`: what ends by itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from goal_state import GoalStore
from goal_state.storage import wall_clock
from tests.cli.program import run, run_json, run_json_lines

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAR_OFF = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def db(database: Path) -> Path:
    """Two goals, with a hold on each that lasts for a minute and for an hour."""
    with GoalStore.open(database, durability="normal") as store:
        for thread, seconds in (("minute", 60), ("hour", 3600)):
            store.create(thread, "x", token_budget=1_000)
            store.reserve(thread, tokens=200, cost="0.5", model="[red]m", expires_in=seconds)
    return database


def test_holds_lists_what_has_not_ended(db: Path) -> None:
    with GoalStore.open(db) as store:
        stored = [hold.to_dict() for hold in store.holds()]
    assert run_json_lines("holds", "--db", db) == stored
    assert run_json_lines("holds", "hour", "--db", db) == stored[1:]
    lines = run("holds", "--db", db).stdout.splitlines()
    assert lines[1].split()[:6] == [stored[0]["hold_id"], "minute", "200", "0.5", "1", "perhaps"]
    assert lines[1].rstrip().endswith("[red]m")
    assert lines[-1] == "2 holds"
    assert run("holds", "nobody", "--db", db).stdout == "0 holds\n"


def test_expire_holds_charges_what_may_have_been_sent(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_json("expire-holds", "--db", db) == {"expired": 0}
    later_ms = wall_clock.now_ms() + 120_000
    monkeypatch.setattr(wall_clock, "now_ms", lambda: later_ms)
    assert run("expire-holds", "--db", db).stdout == "Ended 1 hold that had expired.\n"
    with GoalStore.open(db) as store:
        goals = {goal.thread_id: goal.estimated_tokens for goal in store.goals()}
        assert [hold.thread_id for hold in store.holds()] == ["hour"]
    assert goals == {"minute": 200, "hour": 0}


def test_resume_due_wakes_the_goals_whose_limit_has_ended(db: Path) -> None:
    with GoalStore.open(db) as store:
        store.set("minute", status="usage_limited", resume_at=LONG_AGO)
        store.set("hour", status="usage_limited", resume_at=FAR_OFF)
    lines = run("resume-due", "--db", db).stdout.splitlines()
    assert lines[1].split()[:2] == ["minute", "active"]
    assert lines[2] == "1 goal resumed; the next limit ends at 2100-01-01 00:00:00.000 UTC"
    assert run_json_lines("resume-due", "--db", db) == []
    with GoalStore.open(db) as store:
        store.set("hour", status="usage_limited", resume_at=LONG_AGO)
    (woken,) = run_json_lines("resume-due", "--db", db)
    assert (woken["thread_id"], woken["status"], woken["resume_at"]) == ("hour", "active", None)
