"""The durable baselines: of each count of a thread, the last total and the turn that owned it."""

from __future__ import annotations

from operator import itemgetter
from typing import Final, NamedTuple

from sqlalchemy import Executable, exists, null, select, update

from goal_state.domain.usage import ThreadUsage, TokenUsage, UsageBaseline
from goal_state.domain.values import MAX_INTEGER
from goal_state.storage.executor import Executor
from goal_state.storage.rows import arranged
from goal_state.storage.schema import COUNTS, LAST_COUNTS, baselines
from goal_state.storage.statements import Parameter, Statement, Upsert, limited

__all__ = ["StoredBaseline", "UsageLog"]

_U = baselines.c
_KEY: Final = ["thread_id", "count_id"]
_TOTAL: Final = [_U[name] for name in COUNTS]
_LAST: Final = [_U[name] for name in LAST_COUNTS]
_WIDTH: Final = len(COUNTS)
_REPORTED: Final = [column.name for column in baselines.columns if column.name != "warned_goal_id"]
_UNNAMED: Final = ""


def _upsert(*values: Parameter) -> Upsert:
    return Upsert(
        baselines,
        dict(zip(_REPORTED, values, strict=True)),
        _KEY,
        lambda new: {name: new[name] for name in _REPORTED if name not in _KEY},
    )


_WRITE = Statement(_upsert, _REPORTED)
_reported = arranged(_REPORTED, total=COUNTS, last=LAST_COUNTS)
_OF_THREAD = Statement(
    lambda thread_id: select(
        *_TOTAL, *_LAST, _U.updated_at_ms, _U.turn_id, _U.model_context_window
    ).where(_U.thread_id == thread_id)
)
_BASELINE = Statement(
    lambda thread_id, count_id: select(
        *_TOTAL, *(_U[name] for name in UsageBaseline._fields[1:]), _U.unpaid_turn_ids
    ).where(_U.thread_id == thread_id, _U.count_id == count_id)
)
_ANY_OF_THREAD = Statement(
    lambda thread_id, limit: limited(select(_U.count_id).where(_U.thread_id == thread_id), limit)
)
_SET_OWNERS = Statement(
    lambda turn_id, now_ms, goal_id, unpaid_turn_ids, thread_id, count_id: (
        update(baselines)
        .where(_U.thread_id == thread_id, _U.count_id == count_id)
        .values(
            turn_id=turn_id,
            updated_at_ms=now_ms,
            goal_id=goal_id,
            unpaid_turn_ids=unpaid_turn_ids,
        )
    )
)


def _warn(
    goal_id: Parameter, thread_id: Parameter, same_thread_id: Parameter, same_goal_id: Parameter
) -> Executable:
    another = baselines.alias()
    # All counts of the thread are marked, and one mark is enough to know by: a count may begin later. What
    # is looked up names the thread by itself: were it asked for each row anew, it would see the mark just
    # made.
    is_marked = exists().where(
        another.c.thread_id == same_thread_id, another.c.warned_goal_id == same_goal_id
    )
    return (
        update(baselines)
        .where(_U.thread_id == thread_id, ~is_marked)
        .values(warned_goal_id=goal_id)
    )


_WARN = Statement(_warn)
_FORGET_WARNING = Statement(
    lambda thread_id, goal_id: (
        update(baselines)
        .where(_U.thread_id == thread_id, _U.warned_goal_id == goal_id)
        .values(warned_goal_id=null())
    )
)


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
        latest = max(rows, key=itemgetter(2 * _WIDTH))
        _, turn_id, window = latest[2 * _WIDTH :]
        sums = [
            min(sum(column), MAX_INTEGER)
            for column in zip(*(row[:_WIDTH] for row in rows), strict=True)
        ]
        total = TokenUsage.of_valid(*sums)
        last = TokenUsage.of_valid(*latest[_WIDTH : 2 * _WIDTH])
        return ThreadUsage(total, last, window, turn_id)

    def baseline(self, thread_id: str, count_id: str | None) -> StoredBaseline | None:
        """What a charge needs to know of a count; None for one never seen."""
        row = self._executor.run(_BASELINE, (thread_id, count_id or _UNNAMED)).fetchone()
        if row is None:
            return None
        total = TokenUsage.of_valid(*row[:_WIDTH])
        return StoredBaseline(UsageBaseline(total, *row[_WIDTH:-1]), row[-1])

    def knows(self, thread_id: str) -> bool:
        """Whether any total of the thread was recorded."""
        return bool(self._executor.run(_ANY_OF_THREAD, (thread_id, 1)).fetchall())

    def write(
        self,
        thread_id: str,
        count_id: str | None,
        usage: ThreadUsage,
        *,
        goal_id: str | None,
        epoch: int,
        unpaid_turn_ids: str | None,
        now_ms: int,
    ) -> None:
        """Takes a usage as the baseline of a count, in the time of a goal (or of none)."""
        values = _reported(
            thread_id=thread_id,
            count_id=count_id or _UNNAMED,
            turn_id=usage.turn_id,
            total=usage.total.counts(),
            last=usage.last.counts(),
            model_context_window=usage.model_context_window,
            updated_at_ms=now_ms,
            goal_id=goal_id,
            epoch=epoch,
            unpaid_turn_ids=unpaid_turn_ids,
        )
        self._executor.run(_WRITE, values)

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
