"""Rollouts: a thread's history as JSON lines, the durable source of its token counts. No SQL.

Each line is an object `{timestamp, ordinal, type, payload}`. Lines are only ever appended, so a crash can
damage the last line alone, and the newest usage stands near the end. Whatever a reader cannot use is
skipped, counted and reported, never fatal.
"""

from __future__ import annotations

from goal_state.codex.rollout.lines import (
    MAX_COMPRESSED_BYTES,
    MAX_HELD_BYTES,
    MAX_LINES,
    MAX_PARSED_BYTES,
    MAX_READ_BYTES,
    MAX_SEARCHED_BYTES,
    SkippedLine,
    SkippedLines,
)
from goal_state.codex.rollout.paths import (
    MAX_DIRECTORY_ENTRIES,
    RolloutPath,
    find_rollout,
    find_rollouts,
    rollout_path,
)
from goal_state.codex.rollout.reader import RolloutReader
from goal_state.codex.rollout.records import HistoryBase, SessionMeta, TurnStatus
from goal_state.codex.rollout.tail import RolloutTail
from goal_state.codex.rollout.turns import Turn
from goal_state.codex.rollout.writer import RolloutWriter

__all__ = [
    "MAX_COMPRESSED_BYTES",
    "MAX_DIRECTORY_ENTRIES",
    "MAX_HELD_BYTES",
    "MAX_LINES",
    "MAX_PARSED_BYTES",
    "MAX_READ_BYTES",
    "MAX_SEARCHED_BYTES",
    "HistoryBase",
    "RolloutPath",
    "RolloutReader",
    "RolloutTail",
    "RolloutWriter",
    "SessionMeta",
    "SkippedLine",
    "SkippedLines",
    "Turn",
    "TurnStatus",
    "find_rollout",
    "find_rollouts",
    "rollout_path",
]
