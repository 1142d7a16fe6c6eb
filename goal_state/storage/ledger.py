"""The log of what happened: ledger and outbox in one, append-only, and the cursors of its consumers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self, TypeAlias

from sqlalchemy import bindparam, func, insert, literal_column, null, select, update

from goal_state.domain.events import EventKind, GoalEvent, make_event
from goal_state.domain.goals import Goal, GoalStatus
from goal_state.storage.executor import Executor
from goal_state.storage.identifiers import new_id
from goal_state.storage.schema import cursors, events
from goal_state.storage.statements import Statement, limited

__all__ = [
    "ConsumerCursor",
    "ConsumerCursors",
    "EventLog",
    "EventRow",
    "RecordedCharge",
    "charge_rows",
]

_E = events.c
_CREATIONS: Final = events.alias()
_CREATED: Final = _E.kind == literal_column(
    "'created'"
)  # as text, so that the partial index serves

_APPEND = Statement(
    lambda: insert(events).values(
        {c.name: bindparam(c.name) for c in events.columns if c.name != "position"}
    ),
    " ".join(c.name for c in events.columns if c.name != "position"),
)
_PAGE = Statement(
    lambda: limited(select(events).where(_E.position > bindparam("after")).order_by(_E.position)),
    "after limit",
)
_PAGE_OF_GOAL = Statement(
    lambda: limited(
        select(events)
        .where(_E.goal_id == bindparam("goal_id"), _E.position > bindparam("after"))
        .order_by(_E.position)
    ),
    "goal_id after limit",
)
_GOALS_OF_THREAD = Statement(
    lambda: (
        select(_E.goal_id, _E.position)
        .where(_E.thread_id == bindparam("thread_id"), _CREATED)
        .order_by(_E.position)
    ),
    "thread_id",
)
_CHARGE_BY_KEY = Statement(
    lambda: select(
        _E.goal_id,
        _E.goal_status,
        _E.token_budget,
        _E.tokens_delta,
        _E.time_delta_ms,
        _E.cumulative_tokens,
        _E.cumulative_time_ms,
        _E.occurred_at_ms,
    ).where(_E.thread_id == bindparam("thread_id"), _E.idempotency_key == bindparam("key")),
    "thread_id key",
)
# By the thread's goals: an index on turns would cost each charge, and this is asked when a total falls.
_CHARGE_OF_TURN = Statement(
    lambda: limited(
        select(_E.position).where(
            _E.goal_id.in_(
                select(_CREATIONS.c.goal_id).where(
                    _CREATIONS.c.thread_id == bindparam("thread_id"),
                    _CREATIONS.c.kind == literal_column("'created'"),
                )
            ),
            _E.turn_id == bindparam("turn_id"),
            _E.tokens_delta > literal_column("0"),
        )
    ),
    "thread_id turn_id limit",
)
_ID_AT = Statement(
    lambda: select(_E.event_id).where(_E.position == bindparam("position")), "position"
)
_LAST_POSITION = Statement(lambda: select(func.max(_E.position)))
_STATUS: Final = {status.value: status for status in GoalStatus}
_KIND: Final = {kind.value: kind for kind in EventKind}


EventRow: TypeAlias = tuple[Any, ...]
"""An event on its way into the log: the values of its columns, but for the position."""


def charge_rows(
    goal: Goal,
    *,
    tokens: int,
    time_ms: int,
    previous_status: GoalStatus,
    turn_id: str | None,
    idempotency_key: str | None,
    now_ms: int,
) -> list[EventRow]:
    """The rows of a charge that left the goal like this: itself and, where the status changed, that."""
    charge = (
        new_id(),
        "usage_accounted",
        goal.thread_id,
        goal.goal_id,
        turn_id,
        goal.status._value_,
        previous_status._value_,
        goal.token_budget,
        tokens,
        time_ms,
        goal.tokens_used,
        goal.time_used_ms,
        idempotency_key,
        None,
        now_ms,
    )
    if goal.status is previous_status:
        return [charge]
    return [
        charge,
        _row(EventKind.STATUS_CHANGED, goal, turn_id, previous_status, None, now_ms),
    ]


def _row(
    kind: EventKind,
    goal: Goal,
    turn_id: str | None,
    previous_status: GoalStatus | None,
    replaced_goal_id: str | None,
    now_ms: int,
) -> EventRow:
    return (
        new_id(),
        kind.value,
        goal.thread_id,
        goal.goal_id,
        turn_id,
        goal.status.value,
        None if previous_status is None else previous_status.value,
        goal.token_budget,
        0,
        0,
        None,
        None,
        None,
        replaced_goal_id,
        now_ms,
    )


class RecordedCharge(NamedTuple):
    """A charge as the ledger remembers it under its idempotency key."""

    goal_id: str
    goal_status: str
    token_budget: int | None
    tokens: int
    time_ms: int
    cumulative_tokens: int
    cumulative_time_ms: int
    occurred_at_ms: int

    @classmethod
    def of(cls, goal: Goal, tokens: int, time_ms: int) -> Self:
        """The charge that left the goal like this."""
        return cls(
            goal.goal_id,
            goal.status.value,
            goal.token_budget,
            tokens,
            time_ms,
            goal.tokens_used,
            goal.time_used_ms,
            goal.updated_at_ms,
        )


class EventLog:
    """Appends to the log and reads it, inside a transaction that its owner began.

    Attributes:
        on_event: called with each event as it is appended (not yet committed); None where nobody asks.
        newest_id: the `event_id` of what was appended last; None before the first.
    """

    def __init__(
        self, executor: Executor, on_event: Callable[[GoalEvent], None] | None = None
    ) -> None:
        self._executor = executor
        self.on_event: Callable[[GoalEvent], None] | None = on_event
        self.newest_id: str | None = None

    def append(
        self,
        kind: EventKind,
        goal: Goal,
        *,
        turn_id: str | None,
        now_ms: int,
        previous_status: GoalStatus | None = None,
        replaced_goal_id: str | None = None,
    ) -> None:
        """Records that something other than a charge happened to a goal, as it is afterwards."""
        self.add([_row(kind, goal, turn_id, previous_status, replaced_goal_id, now_ms)])

    def add(self, rows: list[EventRow]) -> None:
        """Appends rows made by this module, in order."""
        self.newest_id = rows[-1][0]
        last = self._executor.insert(_APPEND, rows)
        if self.on_event is not None:
            # Within a transaction positions follow one another.
            for number, row in enumerate(rows, last - len(rows) + 1):
                self.on_event(_event((number, *row)))

    def page(self, after: int, limit: int) -> list[GoalEvent]:
        """Up to `limit` events behind a position, in order."""
        return [_event(row) for row in self._executor.run(_PAGE, (after, limit)).fetchall()]

    def page_of_goal(self, goal_id: str, after: int, limit: int) -> list[GoalEvent]:
        """Up to `limit` events of one goal behind a position, in order."""
        rows = self._executor.run(_PAGE_OF_GOAL, (goal_id, after, limit)).fetchall()
        return [_event(row) for row in rows]

    def page_of_thread(self, thread_id: str, after: int, limit: int) -> list[GoalEvent]:
        """Up to `limit` events of one thread behind a position, in order.

        The goals of a thread follow one another, and so do their events: those of each goal lie between
        its `created` and the next one's.
        """
        with self._executor.snapshot():
            goals = self._executor.run(_GOALS_OF_THREAD, (thread_id,)).fetchall()
            begun = sum(1 for _, position in goals if position <= after)
            events: list[GoalEvent] = []
            for goal_id, _ in goals[max(begun - 1, 0) :]:
                events += self.page_of_goal(goal_id, after, limit - len(events))
                if len(events) >= limit:
                    break
        return events

    def charge_by_key(self, thread_id: str, key: str) -> RecordedCharge | None:
        """The charge that was made in the thread under an idempotency key."""
        row = self._executor.run(_CHARGE_BY_KEY, (thread_id, key)).fetchone()
        return None if row is None else RecordedCharge(*row)

    def turn_has_charged(self, thread_id: str, turn_id: str) -> bool:
        """Whether tokens were charged to a turn of the thread."""
        return bool(self._executor.run(_CHARGE_OF_TURN, (thread_id, turn_id, 1)).fetchall())

    def holds(self, event_id: str, position: int) -> bool:
        """Whether the event at a position is that one."""
        row = self._executor.run(_ID_AT, (position,)).fetchone()
        return row is not None and row[0] == event_id

    def last_position(self) -> int:
        """The position of the newest event, 0 in an empty log."""
        return self._executor.run(_LAST_POSITION).fetchone()[0] or 0


def _event(row: tuple[Any, ...]) -> GoalEvent:
    position, event_id, kind, thread_id, goal_id, turn_id, status, previous, *rest = row
    return make_event(
        position,
        event_id,
        _KIND[kind],
        thread_id,
        goal_id,
        turn_id,
        _STATUS[status],
        None if previous is None else _STATUS[previous],
        *rest,
    )


# -- cursors -----------------------------------------------------------------------------------------


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

_CURSOR = Statement(
    lambda: select(_C.name, _C.position, _C.holder, _C.lease_expires_at_ms).where(
        _C.name == bindparam("b_name")
    ),
    "b_name",
)
_CURSORS = Statement(
    lambda: select(_C.name, _C.position, _C.holder, _C.lease_expires_at_ms).order_by(_C.name)
)
_NEW_CURSOR = Statement(
    lambda: insert(cursors).values({c.name: bindparam(c.name) for c in cursors.columns}),
    " ".join(c.name for c in cursors.columns),
)
_HOLD = Statement(
    lambda: (
        update(cursors)
        .where(_C.name == bindparam("b_name"))
        .values(
            holder=bindparam("b_holder"),
            lease_expires_at_ms=bindparam("b_expires"),
            updated_at_ms=bindparam("b_now"),
        )
    ),
    "b_holder b_expires b_now b_name",
)
_ADVANCE = Statement(
    lambda: (
        update(cursors)
        .where(_C.name == bindparam("b_name"), _C.holder == bindparam("b_holder"))
        .values(
            position=bindparam("b_position"),
            lease_expires_at_ms=bindparam("b_expires"),
            updated_at_ms=bindparam("b_now"),
        )
    ),
    "b_position b_expires b_now b_name b_holder",
)
_RENEW = Statement(
    lambda: (
        update(cursors)
        .where(_C.name == bindparam("b_name"), _C.holder == bindparam("b_holder"))
        .values(lease_expires_at_ms=bindparam("b_expires"), updated_at_ms=bindparam("b_now"))
    ),
    "b_expires b_now b_name b_holder",
)
_RELEASE = Statement(
    lambda: (
        update(cursors)
        .where(_C.name == bindparam("b_name"), _C.holder == bindparam("b_holder"))
        .values(holder=null(), lease_expires_at_ms=null(), updated_at_ms=bindparam("b_now"))
    ),
    "b_now b_name b_holder",
)

MAX_LEASE_MS: Final = 300_000
"""No lease lasts longer. One that seems to was made before the clock jumped back, and counts for nothing."""


class ConsumerCursors:
    """The positions of durable consumers, and the leases on their names.

    A name has one holder at a time. A lease that was not renewed in time may be taken by another.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def get(self, name: str) -> ConsumerCursor | None:
        """The cursor of that name, or None if nobody ever consumed under it."""
        row = self._executor.run(_CURSOR, (name,)).fetchone()
        return None if row is None else ConsumerCursor(*row)

    def all(self) -> list[ConsumerCursor]:
        """Every cursor, by name."""
        return [ConsumerCursor(*row) for row in self._executor.run(_CURSORS).fetchall()]

    def claim(self, name: str, holder: str, *, lease_ms: int, now_ms: int) -> int | None:
        """Takes the name and returns its position; None while somebody else holds it."""
        expires = now_ms + lease_ms
        cursor = self.get(name)
        if cursor is None:
            self._executor.run(_NEW_CURSOR, (name, 0, holder, expires, now_ms))
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
