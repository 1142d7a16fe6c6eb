"""Large databases, filled by bulk SQL into the library's own schema, with ledgers that add up."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.by_hand import BUDGET, OBJECTIVE
from goal_state import GoalStore

__all__ = ["EVENTS_PER_GOAL", "copied", "large_file", "thread_name"]

EVENTS_PER_GOAL: Final = 10
_CHARGES = EVENTS_PER_GOAL - 1
_AT_ONCE: Final = 100
"""Goals that are worked on in the same time: their events alternate in the log."""
_TOKENS = 100
_TIME_MS = 250
_BEGAN_MS = 1_700_000_000_000

_GOAL = (
    "INSERT INTO goal_state_goals (thread_id, goal_id, objective, status, token_budget, tokens_used,"
    " time_used_ms, created_at_ms, updated_at_ms, unpriced_tokens)"
    " VALUES (?, ?, ?, 'active', ?, ?, ?, ?, ?, ?)"
)
_EVENT = (
    "INSERT INTO goal_state_events (event_id, kind, thread_id, goal_id, turn_id, goal_status,"
    " previous_status, token_budget, tokens_delta, time_delta_ms, cumulative_tokens,"
    " cumulative_time_ms, idempotency_key, replaced_goal_id, occurred_at_ms, unpriced_tokens_delta,"
    " cumulative_cost_nanos, cumulative_calls)"
    " VALUES (?, ?, ?, ?, ?, 'active', ?, ?, ?, ?, ?, ?, NULL, NULL, ?, ?, ?, ?)"
)


def thread_name(number: int) -> str:
    """A host's name of a thread: known by its number, and in no order, as such names are."""
    return f"thread-{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


def large_file(directory: Path, goals: int) -> Path:
    """A database of so many goals, each with one `created` event and nine charges.

    It is made once for all groups, beside their directories: whoever changes it takes a copy.
    """
    path = directory.parent / f"{goals}-goals.db"
    if path.exists():
        return path
    with GoalStore.open(path, durability="normal"):
        pass
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -262144"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("BEGIN")
    for first in range(0, goals, _AT_ONCE):
        numbers = range(first, min(first + _AT_ONCE, goals))
        connection.executemany(_GOAL, _goals(numbers))
        connection.executemany(_EVENT, _events(numbers))
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    return path


def copied(path: Path, copy: Path) -> Path:
    """A second file with the same content; nobody has the first one open."""
    shutil.copyfile(path, copy)
    return copy


def _id(now_ms: int, sequence: int) -> str:
    """A UUIDv7 of that time."""
    text = f"{now_ms:012x}7{sequence % 4096:03x}8{os.urandom(8).hex()[1:]}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _made_at(number: int) -> int:
    return _BEGAN_MS + number * 1000


def _goal_id(number: int) -> str:
    # Known by its number, so that goals and events agree without keeping a million ids.
    text = f"{_made_at(number):012x}7000" + f"8{number:015x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _goals(numbers: range) -> Iterator[tuple[object, ...]]:
    last = _events_end(numbers)
    for number in numbers:
        yield (
            thread_name(number),
            _goal_id(number),
            OBJECTIVE,
            BUDGET,
            _CHARGES * _TOKENS,
            _CHARGES * _TIME_MS,
            _made_at(number),
            last,
            _CHARGES * _TOKENS,
        )


def _events_end(numbers: range) -> int:
    return _made_at(numbers[-1])


def _events(numbers: range) -> Iterator[tuple[object, ...]]:
    for number in numbers:
        now_ms = _made_at(number)
        yield (
            _id(now_ms, 0),
            "created",
            thread_name(number),
            _goal_id(number),
            None,
            None,
            BUDGET,
            0,
            0,
            None,
            None,
            now_ms,
            0,
            None,
            None,
        )
    now_ms = _events_end(numbers)
    for charge in range(1, _CHARGES + 1):
        for number in numbers:
            yield (
                _id(now_ms, charge * _AT_ONCE + number % _AT_ONCE),
                "usage_accounted",
                thread_name(number),
                _goal_id(number),
                f"turn-{charge}",
                "active",
                BUDGET,
                _TOKENS,
                _TIME_MS,
                charge * _TOKENS,
                charge * _TIME_MS,
                now_ms,
                _TOKENS,
                0,
                0,
            )
