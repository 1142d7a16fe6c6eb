"""Makes a small database of the newest schema revision, with rows of every kind as that schema has them.

    python -m tests.upgrade.make_fixtures

Only if it is missing: once a revision was released its fixture stays as it is.
"""

from __future__ import annotations

import json
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
_LATE_MS = 253_402_300_799_999
_MAX = 2**63 - 1
_BUDGETS = (
    ("token_budget", "tokens_used"),
    ("cost_budget_nanos", "cost_used_nanos"),
    ("call_budget", "calls_used"),
    ("time_budget_ms", "time_used_ms"),
)


def fixture(revision: str) -> Path:
    """The database of a revision."""
    return FOLDER / f"{revision}.sqlite"


def _part(event: Row) -> tuple[str, str]:
    return event["via_goal_id"] or "", event["model"] or ""


def _sums(events: list[Row]) -> Row:
    return {
        "tokens": sum(event["tokens_delta"] for event in events),
        "time_ms": sum(event["time_delta_ms"] for event in events),
        "cost_nanos": sum(event["cost_delta_nanos"] for event in events),
        "calls": sum(event["calls_delta"] for event in events),
        "unpriced_tokens": sum(event["unpriced_tokens_delta"] for event in events),
        "estimated_tokens": sum(event["estimated_tokens_delta"] for event in events),
    }


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
            "goal_state_parts": [],
            "goal_state_cursors": [],
            "goal_state_holds": [],
            "goal_state_database": [
                {"identity": self.new_id(), "counted_tokens": "uncached", "currency": "USD"}
            ],
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
                "cost_delta_nanos": 0,
                "calls_delta": 0,
                "unpriced_tokens_delta": 0,
                "estimated_tokens_delta": 0,
                "cumulative_cost_nanos": None,
                "cumulative_calls": None,
                "model": None,
                "estimate": None,
                "origin_goal_id": None,
                "via_goal_id": None,
                "hold_id": None,
                "tags_json": None,
                "details_json": None,
            }
            | values
        )
        goal["updated_at_ms"] = self._clock_ms
        return self._position

    def goal(
        self,
        thread_id: str,
        *,
        budget: int | None = None,
        budgets: Row | None = None,
        parent: Row | None = None,
        **event: Any,
    ) -> Row:
        ancestors = [] if parent is None else [*self.ancestor_ids(parent), parent["goal_id"]]
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
            "cost_budget_nanos": None,
            "cost_used_nanos": 0,
            "call_budget": None,
            "calls_used": 0,
            "time_budget_ms": None,
            "deadline_ms": None,
            "warn_fractions": None,
            "unpriced_tokens": 0,
            "estimated_tokens": 0,
            "parent_goal_id": None if parent is None else parent["goal_id"],
            "ancestor_goal_ids": " ".join(ancestors) or None,
            "live_holds": 0,
            "held_tokens": 0,
            "held_cost_nanos": 0,
            "held_calls": 0,
            "claim_number": 0,
            "claim_owner": None,
            "claim_expires_at_ms": None,
        }
        goal |= budgets or {}
        self.event("created", goal, **event)
        self.tables["goal_state_goals"].append(goal)
        return goal

    @staticmethod
    def ancestor_ids(goal: Row) -> list[str]:
        """Of the goals above one, the root first."""
        return (goal["ancestor_goal_ids"] or "").split()

    def charge(
        self,
        goal: Row,
        tokens: int,
        time_ms: int,
        *,
        cost: int | None = None,
        calls: int = 0,
        estimated: int = 0,
        **event: Any,
    ) -> int:
        """Charges a goal and those above it; a cost that is None is not known."""
        before, unpriced = goal["status"], tokens if cost is None else 0
        goal["tokens_used"] += tokens
        goal["time_used_ms"] += time_ms
        goal["cost_used_nanos"] += cost or 0
        goal["calls_used"] += calls
        goal["unpriced_tokens"] += unpriced
        goal["estimated_tokens"] += estimated
        if before == "active" and any(
            goal[budget] is not None and goal[used] >= goal[budget] for budget, used in _BUDGETS
        ):
            goal["status"] = "budget_limited"
        position = self.event(
            "usage_accounted",
            goal,
            previous_status=before,
            tokens_delta=tokens,
            time_delta_ms=time_ms,
            cumulative_tokens=goal["tokens_used"],
            cumulative_time_ms=goal["time_used_ms"],
            cost_delta_nanos=cost or 0,
            calls_delta=calls,
            unpriced_tokens_delta=unpriced,
            estimated_tokens_delta=estimated,
            cumulative_cost_nanos=goal["cost_used_nanos"],
            cumulative_calls=goal["calls_used"],
            **event,
        )
        if goal["status"] != before:
            position = self.event("status_changed", goal, previous_status=before, turn_id="turn-2")
        parent = next((one for one in self.goals if one["goal_id"] == goal["parent_goal_id"]), None)
        if parent is not None:
            above = event | {
                "turn_id": None,
                "idempotency_key": None,
                "via_goal_id": goal["goal_id"],
            }
            above.setdefault("origin_goal_id", goal["goal_id"])
            self.charge(parent, tokens, 0, cost=cost, calls=calls, estimated=estimated, **above)
        return position

    @property
    def goals(self) -> list[Row]:
        return self.tables["goal_state_goals"]

    def change_budget(self, goal: Row, **budgets: int | None) -> None:
        was = {name: goal[name] for name in budgets}
        goal |= budgets
        details = json.dumps({"was": was, "now": budgets})
        self.event("budget_changed", goal, previous_status=goal["status"], details_json=details)

    def warn(self, goal: Row, budget: str, used: int, limit: int) -> None:
        details = {"budget": budget, "fraction": 0.5, "used": used, "limit": limit}
        self.event(
            "threshold_crossed",
            goal,
            previous_status=goal["status"],
            details_json=json.dumps(details),
        )

    def hold(self, goal: Row, tokens: int, cost: int | None, **values: Any) -> Row:
        """A hold, which counts on the goal and those above it while it has not ended."""
        ancestors = self.ancestor_ids(goal)
        hold: Row = {
            "hold_id": self.new_id(),
            "thread_id": goal["thread_id"],
            "goal_id": goal["goal_id"],
            "root_goal_id": [*ancestors, goal["goal_id"]][0],
            "ancestor_goal_ids": goal["ancestor_goal_ids"],
            "hold_key": None,
            "tokens": tokens,
            "cost_nanos": cost,
            "calls": 1,
            "observed_tokens": None,
            "observed_cost_nanos": None,
            "observed_unpriced_tokens": None,
            "model": None,
            "turn_id": None,
            "tags_json": None,
            "on_unknown": "charge",
            "is_dispatched": 1,
            "created_at_ms": self.tick(),
            "expires_at_ms": _LATE_MS,
            "ended_at_ms": None,
            "outcome": None,
            "charged_tokens": None,
            "charged_cost_nanos": None,
            "charged_calls": None,
        } | values
        if hold["outcome"] is None:
            for one in self.goals:
                if one["goal_id"] in (goal["goal_id"], *ancestors):
                    one["live_holds"] += 1
                    one["held_tokens"] += hold["tokens"]
                    one["held_cost_nanos"] += hold["cost_nanos"] or 0
                    one["held_calls"] += hold["calls"]
        self.tables["goal_state_holds"].append(hold)
        return hold

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
        charges = [event for event in old if event["kind"] == "usage_accounted"]
        for via, model in sorted({_part(event) for event in charges}):
            of_part = [event for event in charges if _part(event) == (via, model)]
            self.tables["goal_state_parts"].append(
                {"goal_id": goal["goal_id"], "via_goal_id": via, "model": model} | _sums(of_part)
            )
        self.tables["goal_state_balances"].append(
            {
                "goal_id": goal["goal_id"],
                "through_position": through,
                "status": old[-1]["goal_status"],
            }
            | _sums(old)
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

    _fill_tree(rows)
    _fill_holds(rows)

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


def _fill_tree(rows: _Rows) -> None:
    budgets = {
        "cost_budget_nanos": 5 * 10**9,
        "call_budget": 4,
        "time_budget_ms": 60_000,
        "deadline_ms": _LATE_MS,
        "warn_fractions": "0.5 0.999999",
    }
    root = rows.goal("tree", budget=1_000, budgets=budgets, turn_id="turn-1")
    middle = rows.goal("tree/middle", parent=root)
    leaf = rows.goal("tree/leaf", parent=middle)
    said = {"model": "model-\u00fc", "tags_json": '{"tool":"search","user":"ada"}'}
    paid = {"cost": 1_500_000_001, "calls": 1, "idempotency_key": "response-1"}
    first = rows.charge(leaf, 40, 1_500, **paid, **said)
    rows.charge(leaf, 60, 0, calls=1, turn_id="turn-4", model="nobody knows its price")
    rows.warn(root, "calls", 2, 4)
    rows.charge(middle, 30, 0, calls=1, estimated=30, estimate="made", hold_id=rows.new_id())
    rows.charge(middle, 5, 0, estimated=-20, estimate="resolved")
    rows.change_budget(root, call_budget=3)
    rows.change_status(root, "budget_limited")
    through = rows.charge(leaf, 1, 0, cost=7, calls=1)
    rows.charge(leaf, 2, 3, cost=1, calls=1, turn_id="turn-5")
    rows.prune(leaf, through)
    rows.prune(root, first + 2)  # what it paid for the leaf, by way of the middle
    root |= {"claim_number": 2, "claim_owner": "worker-2", "claim_expires_at_ms": _NOW_MS}


def _fill_holds(rows: _Rows) -> None:
    goal = rows.goal("held", budget=10_000, budgets={"cost_budget_nanos": 10**9})
    child = rows.goal("held/child", parent=goal)
    said = {"model": "model-1", "turn_id": "turn-1", "tags_json": '{"user":"ada"}'}
    seen = {"observed_tokens": 5, "observed_cost_nanos": 6, "observed_unpriced_tokens": 7}
    rows.hold(goal, 100, 10**6, hold_key="live", **said)
    rows.hold(child, 200, None, is_dispatched=0, on_unknown="release")
    rows.hold(child, 300, 5, calls=2, **seen)
    ended: Row = {"ended_at_ms": rows.tick(), "charged_tokens": 0}
    ended |= {"charged_cost_nanos": 0, "charged_calls": 0}
    rows.hold(goal, 10, 0, outcome="released", hold_key="ended", **ended)
    for outcome, tokens in (("settled", 12), ("unknown", 10)):
        hold = rows.hold(child, 10, 10, outcome=outcome, **ended)
        estimated = tokens if outcome == "unknown" else 0
        estimate = "made" if estimated else None
        rows.charge(
            child,
            tokens,
            0,
            cost=10,
            calls=1,
            estimated=estimated,
            estimate=estimate,
            hold_id=hold["hold_id"],
        )
        hold |= {"charged_tokens": tokens, "charged_cost_nanos": 10, "charged_calls": 1}


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
