"""The cursors of durable consumers: how far each has read the log, and who holds its name."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import null, select, update

from goal_state.storage.executor import Executor
from goal_state.storage.schema import cursors
from goal_state.storage.statements import Statement, insert_into

__all__ = ["MAX_LEASE_MS", "ConsumerCursor", "ConsumerCursors"]

MAX_LEASE_MS: Final = 300_000
"""The longest lease. One that ends later was made before the clock jumped back, and is void."""


class ConsumerCursor(NamedTuple):
    """How far a named consumer has got, and who holds the name until when (Unix ms)."""

    name: str
    position: int
    holder: str | None
    lease_expires_at_ms: int | None

    def is_free_for(self, holder: str, now_ms: int) -> bool:
        """Whether this holder may take the name: it has it, or nobody's lease is running."""
        ends = self.lease_expires_at_ms
        return ends is None or self.holder == holder or not now_ms < ends <= now_ms + MAX_LEASE_MS


_C = cursors.c
_CURSOR: Final = [_C[name] for name in ConsumerCursor._fields]

_BY_NAME = Statement(lambda name: select(*_CURSOR).where(_C.name == name))
_ALL = Statement(lambda: select(*_CURSOR).order_by(_C.name))
_INSERT = insert_into(cursors, [*ConsumerCursor._fields, "updated_at_ms"])
_HOLD = Statement(
    lambda holder, expires_at_ms, now_ms, name: (
        update(cursors)
        .where(_C.name == name)
        .values(holder=holder, lease_expires_at_ms=expires_at_ms, updated_at_ms=now_ms)
    )
)
_ADVANCE = Statement(
    lambda position, expires_at_ms, now_ms, name, holder: (
        update(cursors)
        .where(_C.name == name, _C.holder == holder)
        .values(position=position, lease_expires_at_ms=expires_at_ms, updated_at_ms=now_ms)
    )
)
_RENEW = Statement(
    lambda expires_at_ms, now_ms, name, holder: (
        update(cursors)
        .where(_C.name == name, _C.holder == holder)
        .values(lease_expires_at_ms=expires_at_ms, updated_at_ms=now_ms)
    )
)
_RELEASE = Statement(
    lambda now_ms, name, holder: (
        update(cursors)
        .where(_C.name == name, _C.holder == holder)
        .values(holder=null(), lease_expires_at_ms=null(), updated_at_ms=now_ms)
    )
)


class ConsumerCursors:
    """The positions of durable consumers, and the leases on their names.

    A name has one holder at a time. A lease that was not renewed in time may be taken by another.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def get(self, name: str) -> ConsumerCursor | None:
        """The cursor of that name, or None if nobody ever consumed under it."""
        row = self._executor.run(_BY_NAME, (name,)).fetchone()
        return None if row is None else ConsumerCursor(*row)

    def all(self) -> list[ConsumerCursor]:
        """Every cursor, by name."""
        return [ConsumerCursor(*row) for row in self._executor.run(_ALL).fetchall()]

    def claim(self, name: str, holder: str, *, lease_ms: int, now_ms: int) -> int | None:
        """Takes the name and returns its position; None while somebody else holds it."""
        expires = now_ms + lease_ms
        cursor = self.get(name)
        if cursor is None:
            new = ConsumerCursor(name, 0, holder, expires)
            self._executor.run(_INSERT, (*new, now_ms))
            return 0
        if not cursor.is_free_for(holder, now_ms):
            return None
        self._executor.run(_HOLD, (holder, expires, now_ms, name))
        return cursor.position

    def advance(self, name: str, holder: str, position: int, *, lease_ms: int, now_ms: int) -> bool:
        """Notes how far the holder has got and renews its lease; False if the name was lost."""
        values = (position, now_ms + lease_ms, now_ms, name, holder)
        return self._executor.run(_ADVANCE, values).rowcount == 1

    def renew(self, name: str, holder: str, *, lease_ms: int, now_ms: int) -> bool:
        """Renews the holder's lease; False if the name was lost."""
        values = (now_ms + lease_ms, now_ms, name, holder)
        return self._executor.run(_RENEW, values).rowcount == 1

    def release(self, name: str, holder: str, *, now_ms: int) -> None:
        """Gives the name back, if it is still held."""
        self._executor.run(_RELEASE, (now_ms, name, holder))
