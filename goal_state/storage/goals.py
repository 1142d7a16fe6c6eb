"""The table of goals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import delete, func, literal_column, null, select

from goal_state.domain.events import FIGURES
from goal_state.domain.goals import Goal, GoalStatus
from goal_state.storage.executor import Executor
from goal_state.storage.known_goals import KnownGoals
from goal_state.storage.rows import Write, columns_of, insert_of, reader, update_of
from goal_state.storage.schema import goals
from goal_state.storage.statements import Statement, limited

__all__ = ["GoalTable"]

_G = goals.c
_GOAL: Final = columns_of(Goal, goals)
_goal = reader(Goal)

_BY_THREAD = Statement(lambda thread_id: select(*_GOAL).where(_G.thread_id == thread_id))
_LOCK_BY_THREAD = Statement(
    lambda thread_id: select(*_GOAL).where(_G.thread_id == thread_id).with_for_update()
)
_BY_ID = Statement(lambda goal_id: select(*_GOAL).where(_G.goal_id == goal_id))
_LOCK_BY_ID = Statement(
    lambda goal_id: select(*_GOAL).where(_G.goal_id == goal_id).with_for_update()
)
_DUE_TO_RESUME = Statement(
    lambda now_ms, limit: limited(
        select(*_GOAL)
        .where(_G.resume_at_ms <= now_ms)
        .order_by(_G.resume_at_ms)
        .with_for_update(skip_locked=True),
        limit,
    )
)
_NEXT_RESUME = Statement(lambda: select(func.min(_G.resume_at_ms)))
_CHILDREN = Statement(
    lambda goal_id: select(*_GOAL).where(_G.parent_goal_id == goal_id).order_by(_G.goal_id)
)
_PAGE = Statement(
    lambda after, limit: limited(
        select(*_GOAL).where(_G.goal_id > after).order_by(_G.goal_id), limit
    )
)
_PAGE_OF_STATUS = Statement(
    lambda after, status, limit: limited(
        select(*_GOAL).where(_G.goal_id > after, _G.status == status).order_by(_G.goal_id), limit
    )
)
_COUNT = Statement(lambda: select(func.count()).select_from(goals))
_COUNT_OF_STATUS = Statement(
    lambda status: select(func.count()).select_from(goals).where(_G.status == status)
)
_INSERT = insert_of(Goal, goals)
_UPDATE = update_of(
    Goal,
    goals,
    key="goal_id",
    columns=[c.name for c in _GOAL if c.name not in ("goal_id", "thread_id", "created_at_ms")],
)
# Each column that is set has SQLite check its constraints: what most charges leave alone is left out.
_CHARGED_ALWAYS: Final = ["tokens_used", "time_used_ms", "unpriced_tokens", "updated_at_ms"]
_HELD: Final = ["live_holds", "held_tokens", "held_cost_nanos", "held_calls"]
_CHARGED_SELDOM: Final = [
    *(figure.used for figure in FIGURES if figure.used not in _CHARGED_ALWAYS),
    *_HELD,
]
_HOLD = update_of(Goal, goals, key="goal_id", columns=_HELD)
_CHARGE = update_of(Goal, goals, key="goal_id", columns=_CHARGED_ALWAYS)
_CHARGE_ALL = update_of(Goal, goals, key="goal_id", columns=[*_CHARGED_ALWAYS, *_CHARGED_SELDOM])
_CHARGE_AND_LIMIT = update_of(
    Goal,
    goals,
    key="goal_id",
    columns=[*_CHARGED_ALWAYS, *_CHARGED_SELDOM],
    also={
        "status": literal_column(f"'{GoalStatus.BUDGET_LIMITED}'"),
        "resume_at_ms": null(),
        "blocked_reason": null(),
    },
)
_DELETE = Statement(lambda goal_id: delete(goals).where(_G.goal_id == goal_id))
# One statement, so that of many who clear at once exactly one gets the row.
_CLEAR = Statement(
    lambda thread_id: delete(goals).where(_G.thread_id == thread_id).returning(*_GOAL)
)
_CLEAR_EXPECTED = Statement(
    lambda thread_id, goal_id: (
        delete(goals).where(_G.thread_id == thread_id, _G.goal_id == goal_id).returning(*_GOAL)
    )
)


class GoalTable:
    """Reads and writes the rows of goals, inside a transaction that its owner began."""

    def __init__(self, executor: Executor, known: KnownGoals) -> None:
        self._executor = executor
        self._known = known

    def get(self, thread_id: str) -> Goal | None:
        """The thread's goal, or None."""
        row = self._executor.run(_BY_THREAD, (thread_id,)).fetchone()
        return None if row is None else _goal(row)

    def lock(self, thread_id: str) -> Goal | None:
        """The thread's goal, or None; nobody else changes it until this transaction ends."""
        known = self._known.of_thread(thread_id)
        if known is not None:
            return known
        row = self._executor.run(_LOCK_BY_THREAD, (thread_id,)).fetchone()
        if row is None and self._executor.lock_absent_goal(thread_id):
            row = self._executor.run(_LOCK_BY_THREAD, (thread_id,)).fetchone()
        return self._read(row)

    def by_id(self, goal_id: str) -> Goal | None:
        """The goal of an id, if it is there still."""
        row = self._executor.run(_BY_ID, (goal_id,)).fetchone()
        return None if row is None else _goal(row)

    def lock_by_id(self, goal_id: str) -> Goal | None:
        """The goal of an id, if it is there still; nobody else changes it until this transaction ends."""
        known = self._known.of_id(goal_id)
        if known is not None:
            return known
        return self._read(self._executor.run(_LOCK_BY_ID, (goal_id,)).fetchone())

    def known_by_id(self, goal_id: str) -> Goal | None:
        """The goal of an id, if this transaction knows it: nothing is read."""
        return self._known.of_id(goal_id)

    def due_to_resume(self, now_ms: int, limit: int) -> list[Goal]:
        """Some of the goals whose `resume_at_ms` has come, the earliest first; nobody else changes them."""
        rows = self._executor.run(_DUE_TO_RESUME, (now_ms, limit)).fetchall()
        return [_goal(row) for row in rows]

    def next_resume_at_ms(self) -> int | None:
        """The earliest `resume_at_ms` of all goals; None where there is none."""
        return self._executor.run(_NEXT_RESUME).fetchone()[0]

    def children(self, goal_id: str) -> list[Goal]:
        """The goals that were made under another and are there still, in the order of their ids."""
        return [_goal(row) for row in self._executor.run(_CHILDREN, (goal_id,)).fetchall()]

    def page(self, after: str, status: GoalStatus | None, limit: int) -> list[Goal]:
        """Up to `limit` goals (of a status) with a `goal_id` behind `after`, in the order of their ids."""
        if status is None:
            rows = self._executor.run(_PAGE, (after, limit)).fetchall()
        else:
            rows = self._executor.run(_PAGE_OF_STATUS, (after, status.value, limit)).fetchall()
        return [_goal(row) for row in rows]

    def count(self, status: GoalStatus | None) -> int:
        """How many goals there are (of a status)."""
        if status is None:
            return self._executor.run(_COUNT).fetchone()[0]
        return self._executor.run(_COUNT_OF_STATUS, (status.value,)).fetchone()[0]

    def insert(self, goal: Goal) -> None:
        """Writes a goal that is not there."""
        self._write(_INSERT, goal)

    def update(self, goal: Goal) -> None:
        """Writes a goal that is there, whatever has changed."""
        self._write(_UPDATE, goal)

    def hold(self, goal: Goal) -> None:
        """Writes what is set aside of a goal's budgets."""
        self._write(_HOLD, goal)

    def charge(self, before: Goal, after: Goal) -> None:
        """Writes what a charge, or the end of a hold, changes."""
        self._write(_write_of(before, after), after)

    def charge_many(self, charged: Iterable[tuple[Goal, Goal]]) -> None:
        """Writes what charges have changed, for each goal as it was before and after all of them."""
        writes = [(_write_of(before, after), after) for before, after in charged]
        for _, after in writes:
            self._known.drop(after.goal_id)
        for write in (_CHARGE, _CHARGE_ALL, _CHARGE_AND_LIMIT):
            rows = [write.values(after) for its, after in writes if its is write]
            if rows:
                self._executor.run_many(write.statement, rows)
        for _, after in writes:
            self._known.put(after)

    def delete(self, goal_id: str) -> None:
        """Removes a goal."""
        self._known.drop(goal_id)
        self._executor.run(_DELETE, (goal_id,))

    def clear(self, thread_id: str, expected_goal_id: str | None) -> Goal | None:
        """Removes the thread's goal, if it is the expected one (None: whichever it is), and returns it."""
        if expected_goal_id is None:
            rows = self._executor.run(_CLEAR, (thread_id,)).fetchall()
        else:
            rows = self._executor.run(_CLEAR_EXPECTED, (thread_id, expected_goal_id)).fetchall()
        if not rows:
            return None
        goal = _goal(rows[0])
        self._known.drop(goal.goal_id)
        return goal

    def _read(self, row: tuple[Any, ...] | None) -> Goal | None:
        if row is None:
            return None
        goal = _goal(row)
        self._known.put(goal)
        return goal

    def _write(self, write: Write[Goal], goal: Goal) -> None:
        self._known.drop(goal.goal_id)
        self._executor.run(write.statement, write.values(goal))
        self._known.put(goal)


def _write_of(before: Goal, after: Goal) -> Write[Goal]:
    """The statement that writes what a charge has changed."""
    if after.status is not before.status:
        return _CHARGE_AND_LIMIT
    # What of these changes goes with a call, a cost or a hold.
    is_plain = (
        after.calls_used == before.calls_used
        and after.cost_used_nanos == before.cost_used_nanos
        and after.live_holds == before.live_holds
        and after.estimated_tokens == before.estimated_tokens
    )
    return _CHARGE if is_plain else _CHARGE_ALL
