"""The durable baselines: of each count of a thread, the last total and the turn that owned it."""

from __future__ import annotations

from operator import itemgetter
from typing import Final, NamedTuple

from sqlalchemy import bindparam, exists, func, null, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.sql import Executable

from goal_state.domain.usage import ThreadUsage, TokenUsage, TokenUsageInfo, UsageBaseline
from goal_state.domain.values import MAX_INTEGER
from goal_state.storage.executor import Executor
from goal_state.storage.schema import baselines
from goal_state.storage.statements import Statement

__all__ = ["StoredBaseline", "UsageLog"]

_U = baselines.c
_COUNTS: Final = [c for c in baselines.columns if c.name.endswith("_tokens")]
_TOTAL: Final = [c for c in _COUNTS if not c.name.startswith("last_")]
_COLUMNS: Final = [c.name for c in baselines.columns if c.name != "warned_goal_id"]
_UNNAMED: Final = ""


def _upsert() -> Executable:
    statement = insert(baselines).values({name: bindparam(name, type_=None) for name in _COLUMNS})
    changed = {name: statement.excluded[name] for name in _COLUMNS[2:]}
    return statement.on_conflict_do_update(index_elements=["thread_id", "count_id"], set_=changed)


_OF_THREAD = Statement(
    lambda: select(_U.updated_at_ms, _U.turn_id, *_COUNTS, _U.model_context_window).where(
        _U.thread_id == bindparam("thread_id")
    ),
    "thread_id",
)
_BASELINE = Statement(
    lambda: select(
        _U.turn_id,
        *_TOTAL,
        _U.model_context_window,
        _U.goal_id,
        _U.count_number,
        _U.unpaid_turn_ids,
    ).where(_U.thread_id == bindparam("thread_id"), _U.count_id == bindparam("count_id")),
    "thread_id count_id",
)
_COUNTS_OF_THREAD = Statement(
    lambda: (
        select(func.count()).select_from(baselines).where(_U.thread_id == bindparam("thread_id"))
    ),
    "thread_id",
)
_SET_OWNERS = Statement(
    lambda: (
        update(baselines)
        .where(
            _U.thread_id == bindparam("b_thread_id"),
            _U.count_id == bindparam("b_count_id"),
        )
        .values(
            turn_id=bindparam("b_turn_id"),
            goal_id=bindparam("b_goal_id"),
            unpaid_turn_ids=bindparam("b_unpaid_turn_ids"),
            updated_at_ms=bindparam("b_updated_at_ms"),
        )
    ),
    "b_turn_id b_updated_at_ms b_goal_id b_unpaid_turn_ids b_thread_id b_count_id",
)
_ANOTHER: Final = baselines.alias()
# All counts of the thread are marked, and one mark is enough to know by: a count may begin later.
_WARN = Statement(
    lambda: (
        update(baselines)
        .where(
            _U.thread_id == bindparam("b_thread_id"),
            ~exists().where(
                _ANOTHER.c.thread_id == bindparam("b_same_thread_id"),
                _ANOTHER.c.warned_goal_id == bindparam("b_goal_id"),
            ),
        )
        .values(warned_goal_id=bindparam("b_warned_goal_id"))
    ),
    "b_warned_goal_id b_thread_id b_same_thread_id b_goal_id",
)
_FORGET_WARNING = Statement(
    lambda: (
        update(baselines)
        .where(
            _U.thread_id == bindparam("b_thread_id"),
            _U.warned_goal_id == bindparam("b_goal_id"),
        )
        .values(warned_goal_id=null())
    ),
    "b_thread_id b_goal_id",
)
_WRITE = Statement(_upsert, " ".join(_COLUMNS))


class StoredBaseline(NamedTuple):
    """A baseline, and what is kept beside it."""

    baseline: UsageBaseline
    unpaid_turn_ids: str | None
    """Turns that reported and paid nothing, so that the log knows nothing of them."""


class UsageLog:
    """Reads and moves baselines inside a transaction that its owner began."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def read(self, thread_id: str) -> ThreadUsage | None:
        """What the thread has used, all its counts together, as far as was recorded; None for a thread
        never seen. The last response, its turn and its context window are those that were reported last.
        """
        rows = self._executor.run(_OF_THREAD, (thread_id,)).fetchall()
        if not rows:
            return None
        _, turn_id, *counts, window = max(rows, key=itemgetter(0))
        sums = [
            min(sum(column), MAX_INTEGER)
            for column in zip(*(row[2:8] for row in rows), strict=True)
        ]
        total, last = TokenUsage.of_valid(*sums), TokenUsage.of_valid(*counts[6:])
        return ThreadUsage(TokenUsageInfo(total, last, window), turn_id)

    def baseline(self, thread_id: str, count_id: str | None) -> StoredBaseline | None:
        """What a charge needs to know of a count; None for one never seen."""
        row = self._executor.run(_BASELINE, (thread_id, count_id or _UNNAMED)).fetchone()
        if row is None:
            return None
        total = TokenUsage.of_valid(*row[1:7])
        return StoredBaseline(UsageBaseline(total, row[7], row[0], row[8], row[9]), row[10])

    def knows(self, thread_id: str) -> bool:
        """Whether any total of the thread was recorded."""
        return self._executor.run(_COUNTS_OF_THREAD, (thread_id,)).fetchone()[0] > 0

    def write(
        self,
        thread_id: str,
        count_id: str | None,
        usage: ThreadUsage,
        *,
        goal_id: str | None,
        count_number: int,
        unpaid_turn_ids: str | None,
        now_ms: int,
    ) -> None:
        """Takes a usage as the baseline of a count, in the time of a goal (or of none)."""
        info = usage.info
        self._executor.run(
            _WRITE,
            (
                thread_id,
                count_id or _UNNAMED,
                usage.turn_id,
                *info.total.counts(),
                *info.last.counts(),
                info.model_context_window,
                now_ms,
                goal_id,
                count_number,
                unpaid_turn_ids,
            ),
        )

    def set_owners(
        self,
        thread_id: str,
        count_id: str | None,
        *,
        turn_id: str | None,
        goal_id: str | None,
        unpaid_turn_ids: str | None,
        now_ms: int,
    ) -> None:
        """States whose a baseline is: the turn's that used it, and the goal's of that time."""
        self._executor.run(
            _SET_OWNERS,
            (turn_id, now_ms, goal_id, unpaid_turn_ids, thread_id, count_id or _UNNAMED),
        )

    def warn_once(self, thread_id: str, goal_id: str) -> bool:
        """Notes that a meter says that the goal's budget is exhausted; False if one has said so since it
        filled.
        """
        values = (goal_id, thread_id, thread_id, goal_id)
        return self._executor.run(_WARN, values).rowcount > 0

    def forget_warning(self, thread_id: str, goal_id: str) -> None:
        """The goal's budget is not full any longer: once it is again, that is to be said again."""
        self._executor.run(_FORGET_WARNING, (thread_id, goal_id))
