"""Makes a small database of the newest schema revision, with rows of every kind as that schema has them.

    python -m tests.upgrade.make_fixtures

Only if it is missing: once a revision was released its fixture stays as it is.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from goal_state import migrate
from goal_state.storage.schema import HEAD_REVISION
from goal_state.storage.sqlite.connections import create_engine

__all__ = ["FOLDER", "fixture"]

FOLDER = Path(__file__).parent / "fixtures"

Row = dict[str, Any]

_NOW_MS = 1_767_225_600_000
_MAX = 2**63 - 1


def fixture(revision: str) -> Path:
    """The database of a revision."""
    return FOLDER / f"{revision}.sqlite"


class _Rows:
    """The rows of the fixture."""

    def __init__(self) -> None:
        self._clock_ms = _NOW_MS
        self._position = 0
        self._ids = 0
        self.tables: dict[str, list[Row]] = {
            "goal_state_goals": [],
            "goal_state_events": [],
            "goal_state_baselines": [],
            "goal_state_balances": [],
            "goal_state_cursors": [],
            "goal_state_database": [{"identity": self.new_id(), "counted_tokens": "uncached"}],
        }

    def new_id(self) -> str:
        self._ids += 1
        return f"019b7600-0000-7000-8000-{self._ids:012x}"

    def tick(self) -> int:
        self._clock_ms += 1234
        return self._clock_ms

    def event(self, kind: str, goal: Row, **values: Any) -> int:
        self._position += 1
        self.tables["goal_state_events"].append(
            {
                "position": self._position,
                "event_id": self.new_id(),
                "kind": kind,
                "thread_id": goal["thread_id"],
                "goal_id": goal["goal_id"],
                "turn_id": None,
                "goal_status": goal["status"],
                "previous_status": None,
                "token_budget": goal["token_budget"],
                "tokens_delta": 0,
                "time_delta_ms": 0,
                "cumulative_tokens": None,
                "cumulative_time_ms": None,
                "idempotency_key": None,
                "replaced_goal_id": None,
                "occurred_at_ms": self.tick(),
            }
            | values
        )
        goal["updated_at_ms"] = self._clock_ms
        return self._position

    def goal(self, thread_id: str, *, budget: int | None = None, **event: Any) -> Row:
        goal: Row = {
            "thread_id": thread_id,
            "goal_id": self.new_id(),
            "objective": f"Ship {thread_id[:40]}",
            "status": "active",
            "token_budget": budget,
            "tokens_used": 0,
            "time_used_ms": 0,
            "created_at_ms": self._clock_ms,
            "updated_at_ms": self._clock_ms,
            "resume_at_ms": None,
            "blocked_reason": None,
        }
        self.event("created", goal, **event)
        self.tables["goal_state_goals"].append(goal)
        return goal

    def charge(self, goal: Row, tokens: int, time_ms: int, **event: Any) -> int:
        before = goal["status"]
        goal["tokens_used"] += tokens
        goal["time_used_ms"] += time_ms
        budget = goal["token_budget"]
        if before == "active" and budget is not None and goal["tokens_used"] >= budget:
            goal["status"] = "budget_limited"
        position = self.event(
            "usage_accounted",
            goal,
            previous_status=before,
            tokens_delta=tokens,
            time_delta_ms=time_ms,
            cumulative_tokens=goal["tokens_used"],
            cumulative_time_ms=goal["time_used_ms"],
            **event,
        )
        if goal["status"] != before:
            return self.event("status_changed", goal, previous_status=before, turn_id="turn-2")
        return position

    def change_status(self, goal: Row, status: str, **event: Any) -> None:
        before, goal["status"] = goal["status"], status
        self.event("status_changed", goal, previous_status=before, **event)

    def clear(self, goal: Row) -> None:
        self.event("cleared", goal, previous_status=goal["status"], turn_id="turn-9")
        self.tables["goal_state_goals"].remove(goal)

    def baseline(self, thread_id: str, first: int, goal: Row | None, **values: Any) -> None:
        names = (
            "input_tokens",
            "cached_input_tokens",
            "cache_write_input_tokens",
            "output_tokens",
            "reasoning_output_tokens",
            "total_tokens",
        )
        row: Row = {"thread_id": thread_id, "count_id": "", "turn_id": None}
        row |= {name: first + 100 - number for number, name in enumerate(names)}
        row |= {f"last_{name}": first + 10 - number for number, name in enumerate(names)}
        row |= {"model_context_window": None, "updated_at_ms": self.tick()}
        row["goal_id"] = row["warned_goal_id"] = None if goal is None else goal["goal_id"]
        row |= {"epoch": first % 7, "unpaid_turn_ids": None}
        self.tables["goal_state_baselines"].append(row | values)

    def cursor(self, name: str, position: int, holder: str | None = None) -> None:
        self.tables["goal_state_cursors"].append(
            {
                "name": name,
                "position": position,
                "holder": holder,
                "lease_expires_at_ms": None if holder is None else _NOW_MS + 10_000,
                "updated_at_ms": self.tick(),
            }
        )

    def prune(self, goal: Row, through: int) -> None:
        """Carries forward what the events of a goal up to a position say."""
        events = self.tables["goal_state_events"]
        old = [
            event
            for event in events
            if event["goal_id"] == goal["goal_id"]
            and event["position"] <= through
            and event["kind"] != "created"
        ]
        self.tables["goal_state_events"] = [event for event in events if event not in old]
        self.tables["goal_state_balances"].append(
            {
                "goal_id": goal["goal_id"],
                "through_position": through,
                "tokens": sum(event["tokens_delta"] for event in old),
                "time_ms": sum(event["time_delta_ms"] for event in old),
                "status": old[-1]["goal_status"],
            }
        )


def _fill(rows: _Rows) -> None:
    pruned = rows.goal("pruned", budget=500)
    rows.charge(pruned, 100, 10, turn_id="turn-1")
    through = rows.charge(pruned, 400, 20, turn_id="turn-1")
    rows.charge(pruned, 5, 5, turn_id="turn-1", idempotency_key="after")
    rows.prune(pruned, through)

    for status in ("active", "paused", "blocked", "usage_limited", "complete"):
        goal = rows.goal(status, budget=1000, turn_id="turn-1")
        rows.charge(goal, 250, 1500, turn_id="turn-1", idempotency_key="key")
        rows.charge(goal, 50, 0, turn_id="turn-2")
        rows.baseline(status, 1000, goal, turn_id="turn-2", model_context_window=258_400)
        if status != "active":
            rows.change_status(goal, status, turn_id="turn-2")
        if status == "blocked":
            goal["blocked_reason"] = "waits for Ada's answer; 'quoted'"
        if status == "usage_limited":
            goal["resume_at_ms"] = _NOW_MS + 3_600_000

    over = rows.goal("budget_limited", budget=100)
    rows.charge(over, 120, 2001, turn_id="turn-2", idempotency_key="key")
    rows.charge(over, 30, 0, turn_id="turn-2")
    rows.goal("unbounded")
    vast = rows.goal("vast", budget=_MAX)
    rows.charge(vast, _MAX - 1, _MAX - 1, turn_id="t" * 256, idempotency_key="k" * 256)
    odd = rows.goal("\u00fcn\u00ef \U0001f980 '; DROP TABLE goal_state_goals; --" + "x" * 200)
    odd["objective"] = "\u2028 \U0001f980".strip() + "\nx" * 1999

    old = rows.goal("replaced")
    rows.charge(old, 7, 8, idempotency_key="of the one that was replaced")
    rows.change_status(old, "complete")
    rows.tables["goal_state_goals"].remove(old)
    rows.goal("replaced", turn_id="turn-3", replaced_goal_id=old["goal_id"])

    gone = rows.goal("cleared", budget=10)
    rows.charge(gone, 9, 9, idempotency_key="of the one that was cleared")
    rows.clear(gone)
    rows.baseline("cleared", 0, None)
    rows.baseline("never had a goal", 0, None, total_tokens=_MAX, model_context_window=0)
    rows.baseline("vast", _MAX - 100, vast, turn_id="t" * 256)
    rows.baseline("counted", 0, None, turn_id="turn-4", unpaid_turn_ids='["turn-3", "\u00fc"]')
    for count_id in ("run-1", "n" * 256):
        rows.baseline("counted", 40, None, count_id=count_id, turn_id="turn-5")

    last = rows.tables["goal_state_events"][-1]["position"]
    rows.cursor("audit", last - 3)
    rows.cursor("analytics", last, holder="019b7600-0000-7000-8000-ffffffffffff")
    rows.cursor("new", 0)


def make(path: Path) -> None:
    """Makes the database."""
    rows = _Rows()
    _fill(rows)
    path.parent.mkdir(exist_ok=True)
    migrate.upgrade(create_engine(path))
    with closing(sqlite3.connect(path)) as connection, connection:
        for table, values in rows.tables.items():
            for row in values:
                names, marks = ", ".join(row), ", ".join("?" * len(row))
                connection.execute(
                    f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values())
                )


if __name__ == "__main__":
    newest = fixture(HEAD_REVISION)
    if not newest.exists():
        make(newest)
        print(f"made {newest.name}")
