"""The table of holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import delete, select

from goal_state.domain.holds import HoldRecord
from goal_state.storage.executor import Executor
from goal_state.storage.rows import columns_of, insert_of, reader, update_of
from goal_state.storage.schema import holds
from goal_state.storage.statements import Statement, limited

__all__ = ["HoldTable"]

_H = holds.c
_HOLD: Final = columns_of(HoldRecord, holds)
_hold = reader(HoldRecord)
_LIVE: Final = _H.ended_at_ms.is_(None)

_INSERT = insert_of(HoldRecord, holds)
_BY_ID = Statement(lambda hold_id: select(*_HOLD).where(_H.hold_id == hold_id).with_for_update())
_BY_KEY = Statement(
    lambda thread_id, key: select(*_HOLD).where(_H.thread_id == thread_id, _H.hold_key == key)
)
_DUE_IN_TREE = Statement(
    lambda root_goal_id, now_ms, limit: limited(
        select(*_HOLD)
        .where(_H.root_goal_id == root_goal_id, _H.expires_at_ms <= now_ms, _LIVE)
        .order_by(_H.expires_at_ms),
        limit,
    )
)
_DUE_ROOTS = Statement(
    lambda now_ms, limit: limited(
        select(_H.root_goal_id).distinct().where(_H.expires_at_ms <= now_ms, _LIVE), limit
    )
)
_LIVE_OF_THREAD = Statement(
    lambda thread_id: select(*_HOLD).where(_H.thread_id == thread_id, _LIVE).order_by(_H.hold_id)
)
_ALL_LIVE = Statement(
    lambda after, limit: limited(
        select(*_HOLD).where(_H.hold_id > after, _LIVE).order_by(_H.hold_id), limit
    )
)
_CHANGE = update_of(
    HoldRecord,
    holds,
    key="hold_id",
    columns=[
        "observed_tokens",
        "observed_cost_nanos",
        "observed_unpriced_tokens",
        "is_dispatched",
        "expires_at_ms",
    ],
)
_END = update_of(
    HoldRecord,
    holds,
    key="hold_id",
    columns=["ended_at_ms", "outcome", "charged_tokens", "charged_cost_nanos", "charged_calls"],
)
_DELETE_ENDED = Statement(
    lambda before_ms: delete(holds).where(_H.ended_at_ms.is_not(None), _H.ended_at_ms < before_ms)
)

_PAGE: Final = 500


class HoldTable:
    """Reads and writes the rows of holds, inside a transaction that its owner began."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def get(self, hold_id: str) -> HoldRecord | None:
        """The hold of an id; nobody else changes it until this transaction ends."""
        row = self._executor.run(_BY_ID, (hold_id,)).fetchone()
        return None if row is None else _hold(row)

    def by_key(self, thread_id: str, key: str) -> HoldRecord | None:
        """The hold that was made in the thread under a key."""
        row = self._executor.run(_BY_KEY, (thread_id, key)).fetchone()
        return None if row is None else _hold(row)

    def due_in_tree(self, root_goal_id: str, now_ms: int) -> list[HoldRecord]:
        """Some of the live holds in a tree that have expired, the earliest first."""
        rows = self._executor.run(_DUE_IN_TREE, (root_goal_id, now_ms, _PAGE)).fetchall()
        return [_hold(row) for row in rows]

    def due_roots(self, now_ms: int, limit: int) -> list[str]:
        """The tops of some of the trees in which live holds have expired."""
        return [row[0] for row in self._executor.run(_DUE_ROOTS, (now_ms, limit)).fetchall()]

    def live_of_thread(self, thread_id: str) -> list[HoldRecord]:
        """The live holds of a thread, in the order in which they were made."""
        return [_hold(row) for row in self._executor.run(_LIVE_OF_THREAD, (thread_id,)).fetchall()]

    def all_live(self) -> Iterator[HoldRecord]:
        """All live holds, in the order in which they were made, page by page."""
        after = ""
        while rows := self._executor.run(_ALL_LIVE, (after, _PAGE)).fetchall():
            page = [_hold(row) for row in rows]
            yield from page
            after = page[-1].hold_id

    def insert(self, hold: HoldRecord) -> None:
        """Writes a hold that is not there."""
        self._executor.run(_INSERT.statement, _INSERT.values(hold))

    def change(self, hold: HoldRecord) -> None:
        """Writes what may change of a hold while it is live."""
        self._executor.run(_CHANGE.statement, _CHANGE.values(hold))

    def end(self, hold: HoldRecord) -> None:
        """Writes how a hold has ended."""
        self._executor.run(_END.statement, _END.values(hold))

    def delete_ended(self, before_ms: int) -> int:
        """Forgets the holds that ended before a time; returns how many."""
        return self._executor.run(_DELETE_ENDED, (before_ms,)).rowcount
