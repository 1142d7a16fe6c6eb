"""The durable usage baseline: per thread, the last cumulative usage seen and the turn that owned it."""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam, literal_column, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.sql import Executable

from goal_state.executor import Executor, Statement
from goal_state.tables import thread_usage
from goal_state.usage import ThreadUsage, TokenUsage, TokenUsageInfo, UsageBaseline

__all__ = ["UsageLog"]

_U = thread_usage.c
_COUNTS: Final = [c for c in thread_usage.columns if c.name.endswith("_tokens")]
_TOTAL: Final = [c for c in _COUNTS if not c.name.startswith("last_")]
_COLUMNS: Final = [
    c.name for c in thread_usage.columns if c.name not in ("warned_goal_id", "unpaid_turn_ids")
]


def _upsert() -> Executable:
    statement = insert(thread_usage).values(
        {name: bindparam(name, type_=None) for name in _COLUMNS}
    )
    changed = {name: statement.excluded[name] for name in _COLUMNS[2:]}
    return statement.on_conflict_do_update(index_elements=["thread_id", "count_id"], set_=changed)


_SELECT = Statement(
    lambda: select(_U.turn_id, *_COUNTS, _U.model_context_window).where(
        _U.thread_id == bindparam("thread_id"), _U.count_id == literal_column("''")
    ),
    "thread_id",
)
_BASELINE = Statement(
    lambda: select(_U.turn_id, *_TOTAL, _U.model_context_window, _U.goal_id, _U.count_number).where(
        _U.thread_id == bindparam("thread_id"), _U.count_id == literal_column("''")
    ),
    "thread_id",
)
_SET_OWNERS = Statement(
    lambda: (
        update(thread_usage)
        .where(thread_usage.c.thread_id == bindparam("b_thread_id"))
        .values(
            turn_id=bindparam("b_turn_id"),
            goal_id=bindparam("b_goal_id"),
            updated_at_ms=bindparam("b_updated_at_ms"),
        )
    ),
    "b_turn_id b_updated_at_ms b_goal_id b_thread_id",
)
_WARN = Statement(
    lambda: (
        update(thread_usage)
        .where(
            thread_usage.c.thread_id == bindparam("b_thread_id"),
            thread_usage.c.warned_goal_id.is_distinct_from(bindparam("b_goal_id")),
        )
        .values(warned_goal_id=bindparam("b_warned_goal_id"))
    ),
    "b_warned_goal_id b_thread_id b_goal_id",
)
_WRITE = Statement(_upsert, " ".join(_COLUMNS))


class UsageLog:
    """Reads and moves baselines inside a transaction that its owner began."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def read(self, thread_id: str) -> ThreadUsage | None:
        """What the thread has used, as far as was recorded; None for a thread never seen."""
        row = self._executor.run(_SELECT, (thread_id,)).fetchone()
        if row is None:
            return None
        total, last = TokenUsage.of_valid(*row[1:7]), TokenUsage.of_valid(*row[7:13])
        return ThreadUsage(TokenUsageInfo(total, last, row[13]), row[0])

    def baseline(self, thread_id: str) -> UsageBaseline | None:
        """What of it a charge needs."""
        row = self._executor.run(_BASELINE, (thread_id,)).fetchone()
        if row is None:
            return None
        return UsageBaseline(TokenUsage.of_valid(*row[1:7]), row[7], row[0], row[8], row[9])

    def write(
        self,
        thread_id: str,
        usage: ThreadUsage,
        goal_id: str | None,
        count_number: int,
        now_ms: int,
    ) -> None:
        """Takes a usage of a count as the thread's baseline, in the time of a goal (or of none)."""
        info = usage.info
        self._executor.run(
            _WRITE,
            (
                thread_id,
                "",
                usage.turn_id,
                *info.total.counts(),
                *info.last.counts(),
                info.model_context_window,
                now_ms,
                goal_id,
                count_number,
            ),
        )

    def set_owners(
        self, thread_id: str, turn_id: str | None, goal_id: str | None, now_ms: int
    ) -> None:
        """States whose the baseline is: the turn's that used it, and the goal's of that time."""
        self._executor.run(_SET_OWNERS, (turn_id, now_ms, goal_id, thread_id))

    def warn_once(self, thread_id: str, goal_id: str) -> bool:
        """Notes that a meter says that the goal's budget is exhausted; False if one has said so before."""
        return self._executor.run(_WARN, (goal_id, thread_id, goal_id)).rowcount == 1
