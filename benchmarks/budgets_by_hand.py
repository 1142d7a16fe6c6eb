"""The limit again, for budgets: costs, goals above a goal, and holds, through `sqlite3` and nothing else.

Rows, statements and transactions are those of the library, without a read that it could do without.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from benchmarks.by_hand import Limit, new_id

__all__ = ["BudgetLimit", "RefusedError"]

_COLUMNS: Final = (
    "goal_id, thread_id, status, token_budget, tokens_used, time_used_ms, updated_at_ms,"
    " unpriced_tokens, cost_budget_nanos, cost_used_nanos, call_budget, calls_used, ancestor_goal_ids,"
    " live_holds, held_tokens, held_cost_nanos, held_calls, estimated_tokens"
)
_BY_THREAD: Final = f"SELECT {_COLUMNS} FROM goal_state_goals WHERE thread_id = ?"
_BY_ID: Final = f"SELECT {_COLUMNS} FROM goal_state_goals WHERE goal_id = ?"
_CHARGE: Final = (
    "UPDATE goal_state_goals SET tokens_used = ?, time_used_ms = ?, updated_at_ms = ?,"
    " unpriced_tokens = ? WHERE goal_id = ?"
)
_CHARGE_COST: Final = (
    "UPDATE goal_state_goals SET tokens_used = ?, time_used_ms = ?, updated_at_ms = ?,"
    " cost_used_nanos = ? WHERE goal_id = ?"
)
_SETTLE_GOAL: Final = (
    "UPDATE goal_state_goals SET tokens_used = ?, updated_at_ms = ?, calls_used = ?,"
    " unpriced_tokens = ?, live_holds = ?, held_tokens = ?, held_cost_nanos = ?, held_calls = ?"
    " WHERE goal_id = ?"
)
_HOLD_GOAL: Final = (
    "UPDATE goal_state_goals SET live_holds = ?, held_tokens = ?, held_cost_nanos = ?, held_calls = ?"
    " WHERE goal_id = ?"
)
_EVENT_COLUMNS: Final = (
    "event_id, kind, thread_id, goal_id, turn_id, goal_status, previous_status, token_budget,"
    " tokens_delta, time_delta_ms, cumulative_tokens, cumulative_time_ms, occurred_at_ms,"
    " unpriced_tokens_delta, cumulative_cost_nanos, cumulative_calls"
)


def _event(*more: str) -> str:
    columns = ", ".join((_EVENT_COLUMNS, *more))
    values = ", ".join("?" * (16 + len(more)))
    return f"INSERT INTO goal_state_events ({columns}) VALUES ({values})"


_EVENT: Final = _event()
_COST_EVENT: Final = _event("cost_delta_nanos")
_ANCESTOR_EVENT: Final = _event("origin_goal_id", "via_goal_id")
_SETTLE_EVENT: Final = _event("calls_delta", "hold_id")
_DUE: Final = (
    "SELECT hold_id FROM goal_state_holds WHERE root_goal_id = ? AND expires_at_ms <= ?"
    " AND ended_at_ms IS NULL ORDER BY expires_at_ms LIMIT 500"
)
_HOLD: Final = (
    "SELECT goal_id, outcome, tokens, cost_nanos, calls, turn_id FROM goal_state_holds"
    " WHERE hold_id = ?"
)
_INSERT_HOLD: Final = (
    "INSERT INTO goal_state_holds (hold_id, thread_id, goal_id, root_goal_id, tokens, cost_nanos, calls,"
    " turn_id, on_unknown, is_dispatched, created_at_ms, expires_at_ms)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'charge', ?, ?, ?)"
)
_DISPATCH: Final = "UPDATE goal_state_holds SET is_dispatched = 1 WHERE hold_id = ?"
_END_HOLD: Final = (
    "UPDATE goal_state_holds SET ended_at_ms = ?, outcome = 'settled', charged_tokens = ?,"
    " charged_cost_nanos = ?, charged_calls = ? WHERE hold_id = ?"
)


class RefusedError(Exception):
    """So much is not left, or the goal does not take it."""


class BudgetLimit(Limit):
    """One connection of `sqlite3` that charges costs and trees, and keeps holds."""

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self.cursor.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.cursor.execute("COMMIT")
        except BaseException:
            self.undo()
            raise

    def charge_cost(
        self, thread_id: str, tokens: int, time_ms: int, cost_nanos: int, turn_id: str
    ) -> None:
        """One charge whose cost is known, one transaction."""
        execute = self.cursor.execute
        with self._writing():
            goal = execute(_BY_THREAD, (thread_id,)).fetchone()
            now_ms = time.time_ns() // 1_000_000
            used, time_used, cost = goal[4] + tokens, goal[5] + time_ms, goal[9] + cost_nanos
            _require_room(goal, used, cost)
            execute(_CHARGE_COST, (used, time_used, max(now_ms, goal[6]), cost, goal[0]))
            figures = (tokens, time_ms, used, time_used, now_ms, 0, cost, goal[11])
            execute(_COST_EVENT, (*_named(goal, turn_id, now_ms), *figures, cost_nanos))

    def charge_up(self, thread_id: str, tokens: int, time_ms: int, turn_id: str) -> None:
        """One charge of a goal and of those above it, one transaction."""
        execute = self.cursor.execute
        with self._writing():
            goal = execute(_BY_THREAD, (thread_id,)).fetchone()
            now_ms = time.time_ns() // 1_000_000
            above = [
                execute(_BY_ID, (goal_id,)).fetchone()
                for goal_id in reversed(goal[12].split(" ") if goal[12] else ())
            ]
            chain = [goal, *above]
            if any(each[13] for each in chain):
                self._check_due(chain[-1][0], now_ms)
            via = None
            for each in chain:
                used = each[4] + tokens
                time_used = each[5] + (time_ms if via is None else 0)
                _require_room(each, used, each[9])
                unpriced = each[7] + tokens
                execute(_CHARGE, (used, time_used, max(now_ms, each[6]), unpriced, each[0]))
                named = _named(each, turn_id if via is None else None, now_ms)
                delta_ms = time_ms if via is None else 0
                figures = (tokens, delta_ms, used, time_used, now_ms, tokens, each[9], each[11])
                if via is None:
                    execute(_EVENT, (*named, *figures))
                else:
                    execute(_ANCESTOR_EVENT, (*named, *figures, goal[0], via))
                via = each[0]

    def reserve(self, thread_id: str, tokens: int, turn_id: str, *, is_dispatched: int = 1) -> str:
        """Sets tokens and a call aside, one transaction; returns the hold's id."""
        execute = self.cursor.execute
        with self._writing():
            goal = execute(_BY_THREAD, (thread_id,)).fetchone()
            now_ms = time.time_ns() // 1_000_000
            if goal[13]:
                self._check_due(goal[0], now_ms)
            _require_room(goal, goal[4] + goal[14] + tokens - 1, goal[9] + goal[15])
            if goal[10] is not None and goal[11] + goal[16] + 1 > goal[10]:
                raise RefusedError
            hold_id = new_id(now_ms)
            execute(_HOLD_GOAL, (goal[13] + 1, goal[14] + tokens, goal[15], goal[16] + 1, goal[0]))
            named = (hold_id, thread_id, goal[0], goal[0], tokens, 0, 1, turn_id)
            execute(_INSERT_HOLD, (*named, is_dispatched, now_ms, now_ms + 600_000))
        return hold_id

    def dispatch(self, hold_id: str) -> None:
        """Notes that the call of a hold may be sent, one transaction."""
        with self._writing():
            hold = self.cursor.execute(_HOLD, (hold_id,)).fetchone()
            if hold[1] is not None:
                raise RefusedError
            self.cursor.execute(_DISPATCH, (hold_id,))

    def settle(self, hold_id: str, tokens: int) -> None:
        """Charges what a call has used and ends its hold, one transaction."""
        execute = self.cursor.execute
        with self._writing():
            goal_id, outcome, held, held_cost, calls, turn_id = execute(
                _HOLD, (hold_id,)
            ).fetchone()
            if outcome is not None:
                raise RefusedError
            goal = execute(_BY_ID, (goal_id,)).fetchone()
            now_ms = time.time_ns() // 1_000_000
            self._check_due(goal_id, now_ms)
            used, calls_used, unpriced = goal[4] + tokens, goal[11] + calls, goal[7] + tokens
            _require_room(goal, used, goal[9])
            held_then = (goal[13] - 1, goal[14] - held, goal[15] - held_cost, goal[16] - calls)
            updated = max(now_ms, goal[6])
            execute(_SETTLE_GOAL, (used, updated, calls_used, unpriced, *held_then, goal_id))
            figures = (tokens, 0, used, goal[5], now_ms, tokens, goal[9], calls_used)
            execute(_SETTLE_EVENT, (*_named(goal, turn_id, now_ms), *figures, calls, hold_id))
            execute(_END_HOLD, (now_ms, tokens, 0, calls, hold_id))

    def _check_due(self, root_goal_id: str, now_ms: int) -> None:
        if self.cursor.execute(_DUE, (root_goal_id, now_ms)).fetchall():
            raise RefusedError  # nothing expires while a benchmark runs


def _require_room(goal: Any, tokens_used: int, cost_nanos: int) -> None:
    """Makes sure that a goal is active and stays so."""
    is_spent = goal[3] is not None and tokens_used >= goal[3]
    if goal[2] != "active" or is_spent or (goal[8] is not None and cost_nanos >= goal[8]):
        raise RefusedError


def _named(goal: Any, turn_id: str | None, now_ms: int) -> tuple[object, ...]:
    """What an event says of its goal."""
    return (
        new_id(now_ms),
        "usage_accounted",
        goal[1],
        goal[0],
        turn_id,
        goal[2],
        goal[2],
        goal[3],
    )
