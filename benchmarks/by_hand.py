"""The limit: what an expert writes for one database with `sqlite3` and nothing else.

The same file layout (made by the library's migrations), the same pragmas and the same rows as the library
writes, so that it does the same work on disk: BEGIN IMMEDIATE, SELECT, decide in Python, UPDATE by primary
key, INSERT the event, COMMIT. It checks no argument, builds no object, and serves one thread.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from goal_state import Goal, GoalRepository, GoalStore, TokenUsage

__all__ = [
    "BUDGET",
    "BY_HAND",
    "CHARGE",
    "EVENT",
    "GOAL",
    "OBJECTIVE",
    "Limit",
    "charged",
    "new_file",
    "new_id",
]

BY_HAND: Final = "sqlite3 by hand"
OBJECTIVE: Final = "Ship the parser, with tests for every branch of it"
BUDGET: Final = 10**15

GOAL = (
    "SELECT goal_id, status, token_budget, tokens_used, time_used_ms, updated_at_ms, unpriced_tokens"
    " FROM goal_state_goals WHERE thread_id = ?"
)
_WHOLE_GOAL = f"SELECT {', '.join(Goal.__slots__)} FROM goal_state_goals WHERE thread_id = ?"
CHARGE = (
    "UPDATE goal_state_goals SET tokens_used = ?, time_used_ms = ?, updated_at_ms = ?,"
    " unpriced_tokens = ? WHERE goal_id = ?"
)
_CHARGE_AND_LIMIT = (
    "UPDATE goal_state_goals SET status = 'budget_limited', tokens_used = ?, time_used_ms = ?,"
    " updated_at_ms = ?, unpriced_tokens = ? WHERE goal_id = ?"
)
EVENT = (
    "INSERT INTO goal_state_events (event_id, kind, thread_id, goal_id, turn_id, goal_status,"
    " previous_status, token_budget, tokens_delta, time_delta_ms, cumulative_tokens,"
    " cumulative_time_ms, idempotency_key, replaced_goal_id, occurred_at_ms, unpriced_tokens_delta,"
    " cumulative_cost_nanos, cumulative_calls)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, ?, ?)"
)
_KEY = (
    "SELECT goal_id, tokens_delta, time_delta_ms FROM goal_state_events"
    " WHERE thread_id = ? AND idempotency_key = ?"
)
_USAGE = (
    "SELECT turn_id, input_tokens, cached_input_tokens, cache_write_input_tokens, output_tokens,"
    " reasoning_output_tokens, total_tokens, model_context_window FROM goal_state_baselines"
    " WHERE thread_id = ?"
)
_MOVE = (
    "UPDATE goal_state_baselines SET turn_id = ?, input_tokens = ?, cached_input_tokens = ?,"
    " cache_write_input_tokens = ?, output_tokens = ?, reasoning_output_tokens = ?,"
    " total_tokens = ?, last_input_tokens = ?, last_cached_input_tokens = ?,"
    " last_cache_write_input_tokens = ?, last_output_tokens = ?,"
    " last_reasoning_output_tokens = ?, last_total_tokens = ?, model_context_window = ?,"
    " updated_at_ms = ?, goal_id = ? WHERE thread_id = ?"
)


_made: Final[dict[object, bytes]] = {}


def new_file(
    path: Path, threads: Sequence[str], more: Callable[[GoalRepository], None] | None = None
) -> Path:
    """A database with one active goal in each thread, and its usage baseline at zero; and what `more` adds.

    What is made once is copied then: the migrations take longer than many a figure.
    """
    key = (tuple(threads), more)
    if key in _made:
        path.write_bytes(_made[key])
        return path

    def fill(repository: GoalRepository) -> None:
        for thread in threads:
            repository.create(thread, OBJECTIVE, token_budget=BUDGET)
            repository.set_baseline(thread, TokenUsage())
        if more is not None:
            more(repository)

    with GoalStore.open(path, durability="normal") as store:
        store.transact(fill)
    _made[key] = path.read_bytes()
    return path


def charged(
    goal: Sequence[Any], thread_id: str, tokens: int, time_ms: int, turn_id: str
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The values of `CHARGE` and `EVENT` for one charge below the budget of a goal, as `GOAL` reads it."""
    goal_id, status, budget, used, time_used, updated, unpriced = goal
    used, time_used = used + tokens, time_used + time_ms
    now_ms = time.time_ns() // 1_000_000
    change = (used, time_used, max(now_ms, updated), unpriced + tokens, goal_id)
    event = (
        *(new_id(now_ms), "usage_accounted", thread_id, goal_id, turn_id, status, status, budget),
        *(tokens, time_ms, used, time_used, None, now_ms, tokens, 0, 0),
    )
    return change, event


def new_id(now_ms: int) -> str:
    number = f"{now_ms:012x}7{os.urandom(10).hex()[1:]}"
    return f"{number[:8]}-{number[8:12]}-{number[12:16]}-{number[16:20]}-{number[20:]}"


class Limit:
    """One connection of `sqlite3`."""

    def __init__(
        self, path: Path, *, durability: str = "normal", busy_timeout_seconds: float = 10.0
    ) -> None:
        self.connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=busy_timeout_seconds
        )
        self.cursor = self.connection.cursor()
        for pragma in (
            "journal_mode = WAL",
            "foreign_keys = ON",
            f"synchronous = {durability.upper()}",
            "wal_autocheckpoint = 4000",
        ):
            self.cursor.execute(f"PRAGMA {pragma}")

    def close(self) -> None:
        self.cursor.close()
        self.connection.close()

    def get(self, thread_id: str) -> tuple[object, ...] | None:
        return self.cursor.execute(_WHOLE_GOAL, (thread_id,)).fetchone()

    def write_charge(
        self,
        thread_id: str,
        tokens: int,
        time_ms: int,
        turn_id: str | None = None,
        key: str | None = None,
    ) -> str:
        """One charge inside of the transaction that is open."""
        execute = self.cursor.execute
        goal = execute(GOAL, (thread_id,)).fetchone()
        goal_id, before, budget, used, time_used, updated, unpriced = goal
        if before not in ("active", "budget_limited"):
            return goal_id
        used += tokens
        time_used += time_ms
        status = before
        if before == "active" and budget is not None and used >= budget:
            status = "budget_limited"
        now_ms = time.time_ns() // 1_000_000
        execute(
            CHARGE if status == before else _CHARGE_AND_LIMIT,
            (used, time_used, max(now_ms, updated), unpriced + tokens, goal_id),
        )
        execute(
            EVENT,
            (
                new_id(now_ms),
                "usage_accounted",
                thread_id,
                goal_id,
                turn_id,
                status,
                before,
                budget,
                tokens,
                time_ms,
                used,
                time_used,
                key,
                now_ms,
                tokens,
                0,
                0,
            ),
        )
        if status != before:
            execute(
                EVENT,
                (
                    new_id(now_ms),
                    "status_changed",
                    thread_id,
                    goal_id,
                    turn_id,
                    status,
                    before,
                    budget,
                    0,
                    0,
                    None,
                    None,
                    None,
                    now_ms,
                    0,
                    None,
                    None,
                ),
            )
        return goal_id

    def charge(self, thread_id: str, tokens: int, time_ms: int, turn_id: str | None = None) -> None:
        """One charge, one transaction."""
        execute = self.cursor.execute
        execute("BEGIN IMMEDIATE")
        try:
            self.write_charge(thread_id, tokens, time_ms, turn_id)
            execute("COMMIT")
        except BaseException:
            self.undo()
            raise

    def charge_all(self, threads: Sequence[str], tokens: int, time_ms: int, turn_id: str) -> None:
        """A plain loop of charges in one transaction."""
        execute = self.cursor.execute
        execute("BEGIN IMMEDIATE")
        try:
            for thread_id in threads:
                self.write_charge(thread_id, tokens, time_ms, turn_id)
            execute("COMMIT")
        except BaseException:
            self.undo()
            raise

    def charge_once(
        self, thread_id: str, tokens: int, time_ms: int, turn_id: str, key: str
    ) -> None:
        """One charge, one transaction, unless the key was used before."""
        execute = self.cursor.execute
        execute("BEGIN IMMEDIATE")
        try:
            if execute(_KEY, (thread_id, key)).fetchone() is None:
                self.write_charge(thread_id, tokens, time_ms, turn_id, key)
            execute("COMMIT")
        except BaseException:
            self.undo()
            raise

    def record_total(
        self, thread_id: str, total: tuple[int, int, int, int, int, int], turn_id: str
    ) -> None:
        """Charges what is new in a cumulative total and moves the baseline, in one transaction."""
        execute = self.cursor.execute
        execute("BEGIN IMMEDIATE")
        try:
            row = execute(_USAGE, (thread_id,)).fetchone()
            last = tuple(
                [new - old if new > old else 0 for new, old in zip(total, row[1:7], strict=True)]
            )
            tokens = max(last[0] - last[1], 0) + last[3]
            if total[0] + total[3] < row[1] + row[4]:
                tokens = 0
            goal_id = self.write_charge(thread_id, tokens, 0, turn_id)
            now_ms = time.time_ns() // 1_000_000
            execute(_MOVE, (turn_id, *total, *last, row[7], now_ms, goal_id, thread_id))
            execute("COMMIT")
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        if self.connection.in_transaction:
            self.cursor.execute("ROLLBACK")
