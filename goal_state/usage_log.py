"""The durable usage baseline: per thread, the last cumulative usage seen and the turn that owned it."""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.sql import Executable

from goal_state.executor import Executor, Statement
from goal_state.tables import thread_usage
from goal_state.usage import ThreadUsage, TokenUsage, TokenUsageInfo, UsageBaseline

__all__ = ["UsageLog"]

_COLUMNS: Final = [c.name for c in thread_usage.columns if c.name != "warned_goal_id"]


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
_BASELINE = Statement(
    lambda: select(
        *list(thread_usage.columns)[1:8],
        thread_usage.c.model_context_window,
        thread_usage.c.goal_id,
        thread_usage.c.count_number,
    ).where(thread_usage.c.thread_id == bindparam("thread_id")),
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
