"""The durable usage baseline: per thread, the last cumulative usage seen and the turn that owned it."""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.sql import Executable

from goal_state.executor import Executor, Statement
from goal_state.tables import thread_usage
from goal_state.usage import ThreadUsage, TokenUsage, TokenUsageInfo

__all__ = ["UsageLog"]

_COLUMNS: Final = [column.name for column in thread_usage.columns]


def _upsert() -> Executable:
    statement = insert(thread_usage).values(
        {name: bindparam(name, type_=None) for name in _COLUMNS}
    )
    changed = {name: statement.excluded[name] for name in _COLUMNS[1:]}
    return statement.on_conflict_do_update(index_elements=["thread_id"], set_=changed)


_SELECT = Statement(
    lambda: select(*list(thread_usage.columns)[1:15]).where(
        thread_usage.c.thread_id == bindparam("thread_id")
    ),
    "thread_id",
)
_GOAL = Statement(
    lambda: select(thread_usage.c.goal_id).where(
        thread_usage.c.thread_id == bindparam("thread_id")
    ),
    "thread_id",
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
        info = TokenUsageInfo(TokenUsage(*row[1:7]), TokenUsage(*row[7:13]), row[13])
        return ThreadUsage(info, row[0])

    def goal_id(self, thread_id: str) -> str | None:
        """The goal that the thread had when its baseline was recorded; None without a goal or baseline.

        What was used since then was used in the time of this goal, or after it.
        """
        row = self._executor.run(_GOAL, (thread_id,)).fetchone()
        return None if row is None else row[0]

    def write(self, thread_id: str, usage: ThreadUsage, goal_id: str | None, now_ms: int) -> None:
        """Takes a usage as the thread's baseline, in the time of a goal (or of none)."""
        info = usage.info
        self._executor.run(
            _WRITE,
            (
                thread_id,
                usage.turn_id,
                *_counts(info.total),
                *_counts(info.last),
                info.model_context_window,
                now_ms,
                goal_id,
            ),
        )


def _counts(usage: TokenUsage) -> tuple[int, ...]:
    return (
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_input_tokens,
        usage.output_tokens,
        usage.reasoning_output_tokens,
        usage.total_tokens,
    )
