"""The log of what happened: ledger and outbox in one, append-only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Executable, func, literal_column, select

from goal_state.domain.amounts import Amounts
from goal_state.domain.budgets import crossed_fractions
from goal_state.domain.events import (
    Estimate,
    EventKind,
    GoalEvent,
    finished_event,
    new_event_draft,
)
from goal_state.domain.goals import Goal, GoalStatus, goal_ids_above
from goal_state.domain.holds import HoldRecord
from goal_state.storage.executor import Executor
from goal_state.storage.identifiers import new_id
from goal_state.storage.rows import columns_of, insert_of, reader
from goal_state.storage.schema import events
from goal_state.storage.statements import Parameter, Statement, limited

__all__ = [
    "EventDraft",
    "EventLog",
    "Purpose",
    "budget_event",
    "charge_events",
    "new_draft",
    "threshold_events",
]

_E = events.c
_EVENT: Final = columns_of(GoalEvent, events)
_event = reader(GoalEvent)
# As text, so that the partial index serves.
_CREATED: Final = _E.kind == literal_column("'created'")

# What few events have is left to its default where it can be: each column that is bound costs something.
_SELDOM: Final = frozenset(
    {
        "cost_delta_nanos",
        "calls_delta",
        "estimated_tokens_delta",
        "model",
        "estimate",
        "origin_goal_id",
        "via_goal_id",
        "hold_id",
        "tags_json",
        "details_json",
    }
)
_APPEND = insert_of(GoalEvent, events, without=frozenset({"position"}))
_APPEND_PLAIN = insert_of(GoalEvent, events, without=_SELDOM | {"position"})
_PAGE = Statement(
    lambda after, limit: limited(
        select(*_EVENT).where(_E.position > after).order_by(_E.position), limit
    )
)
_PAGE_OF_GOAL = Statement(
    lambda goal_id, after, limit: limited(
        select(*_EVENT).where(_E.goal_id == goal_id, _E.position > after).order_by(_E.position),
        limit,
    )
)
_GOALS_OF_THREAD = Statement(
    lambda thread_id: (
        select(_E.goal_id, _E.position)
        .where(_E.thread_id == thread_id, _CREATED)
        .order_by(_E.position)
    )
)
_CHARGE_BY_KEY = Statement(
    lambda thread_id, key: select(*_EVENT).where(
        _E.thread_id == thread_id, _E.idempotency_key == key
    )
)


def _charge_of_turn(thread_id: Parameter, turn_id: Parameter, limit: Parameter) -> Executable:
    creations = events.alias()
    # By the thread's goals: an index on turns would cost each charge, and this is asked when a total falls.
    query = select(_E.position).where(
        _E.goal_id.in_(
            select(creations.c.goal_id).where(
                creations.c.thread_id == thread_id,
                creations.c.kind == literal_column("'created'"),
            )
        ),
        _E.turn_id == turn_id,
        _E.tokens_delta > literal_column("0"),
    )
    return limited(query, limit)


_CHARGE_OF_TURN = Statement(_charge_of_turn)
_ID_AT = Statement(lambda position: select(_E.event_id).where(_E.position == position))
_LAST_POSITION = Statement(lambda: select(func.max(_E.position)))

EventDraft: TypeAlias = Any
"""A `GoalEvent` on its way into the log: it has no position yet."""


class Purpose(NamedTuple):
    """What a charge was for, as its event tells it."""

    turn_id: str | None = None
    key: str | None = None
    model: str | None = None
    tags_json: str | None = None
    estimate: Estimate | None = None
    hold_id: str | None = None
    origin_goal_id: str | None = None
    via_goal_id: str | None = None

    def above(self, goal: Goal | HoldRecord) -> Iterator[tuple[str, Purpose]]:
        """The goals above one (or above that of a hold) that is charged, the nearest first, and what the
        charge is for to each of them.
        """
        via_goal_id = goal.goal_id
        for goal_id in goal_ids_above(goal.ancestor_goal_ids):
            yield (
                goal_id,
                self._replace(
                    turn_id=None, key=None, origin_goal_id=goal.goal_id, via_goal_id=via_goal_id
                ),
            )
            via_goal_id = goal_id


def charge_events(
    before: Goal, after: Goal, amounts: Amounts, purpose: Purpose, now_ms: int
) -> list[EventDraft]:
    """The events of a charge: itself, where the status changed that, and the fractions that were passed."""
    turn_id = purpose.turn_id
    charge = new_draft(EventKind.USAGE_ACCOUNTED, after, turn_id, before.status, now_ms)
    (
        charge.tokens_delta,
        charge.time_delta_ms,
        charge.cost_delta_nanos,
        charge.calls_delta,
        charge.unpriced_tokens_delta,
        charge.estimated_tokens_delta,
    ) = amounts
    charge.cumulative_tokens = after.tokens_used
    charge.cumulative_time_ms = after.time_used_ms
    charge.cumulative_cost_nanos = after.cost_used_nanos
    charge.cumulative_calls = after.calls_used
    (
        _,
        charge.idempotency_key,
        charge.model,
        charge.tags_json,
        charge.estimate,
        charge.hold_id,
        charge.origin_goal_id,
        charge.via_goal_id,
    ) = purpose
    drafts = [charge]
    if after.status is not before.status:
        drafts.append(new_draft(EventKind.STATUS_CHANGED, after, turn_id, before.status, now_ms))
    if after.warn_fractions is not None:
        drafts += threshold_events(before, after, turn_id, now_ms)
    return drafts


def threshold_events(
    before: Goal, after: Goal, turn_id: str | None, now_ms: int
) -> list[EventDraft]:
    """The fractions of `warn_at` that were passed as a goal went from one state to another."""
    drafts: list[EventDraft] = []
    for use, millionths in crossed_fractions(before, after):
        draft = new_draft(EventKind.THRESHOLD_CROSSED, after, turn_id, before.status, now_ms)
        draft.details_json = json.dumps(
            {
                "budget": use.kind.value,
                "fraction": millionths / 1_000_000,
                "used": use.used,
                "limit": use.budget,
            }
        )
        drafts.append(draft)
    return drafts


def budget_event(before: Goal, after: Goal, turn_id: str | None, now_ms: int) -> EventDraft:
    """What of a goal's budgets was changed."""
    draft = new_draft(EventKind.BUDGET_CHANGED, after, turn_id, before.status, now_ms)
    was, now = before.budgets._asdict(), after.budgets._asdict()
    names = [name for name in was if was[name] != now[name]]
    draft.details_json = json.dumps(
        {
            "was": {name: was[name] for name in names},
            "now": {name: now[name] for name in names},
        }
    )
    return draft


def new_draft(
    kind: EventKind,
    goal: Goal,
    turn_id: str | None,
    previous_status: GoalStatus | None,
    now_ms: int,
) -> EventDraft:
    """An event that left the goal like this and charged nothing."""
    draft = new_event_draft()
    draft.event_id = new_id()
    draft.kind = kind
    draft.thread_id = goal.thread_id
    draft.goal_id = goal.goal_id
    draft.turn_id = turn_id
    draft.goal_status = goal.status
    draft.previous_status = previous_status
    draft.token_budget = goal.token_budget
    draft.tokens_delta = draft.time_delta_ms = 0
    draft.cumulative_tokens = draft.cumulative_time_ms = None
    draft.idempotency_key = draft.replaced_goal_id = None
    draft.occurred_at_ms = now_ms
    return draft


def _is_plain(draft: EventDraft) -> bool:
    """Whether an event has nothing of `_SELDOM`."""
    return (
        draft.calls_delta == 0
        and draft.cost_delta_nanos == 0
        and draft.model is None
        and draft.details_json is None
        and draft.tags_json is None
        and draft.origin_goal_id is None
        and draft.hold_id is None  # and so no estimate
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
        draft = new_draft(kind, goal, turn_id, previous_status, now_ms)
        draft.replaced_goal_id = replaced_goal_id
        self.add([draft])

    def append_status_change(
        self, before: Goal, after: Goal, *, turn_id: str | None, now_ms: int
    ) -> None:
        """Records that the status of a goal is another one."""
        self.append(
            EventKind.STATUS_CHANGED,
            after,
            turn_id=turn_id,
            previous_status=before.status,
            now_ms=now_ms,
        )

    def add(self, drafts: list[EventDraft]) -> None:
        """Appends events, in order."""
        self.newest_id = drafts[-1].event_id
        append = _APPEND_PLAIN if all(map(_is_plain, drafts)) else _APPEND
        rows = [*map(append.values, drafts)]
        if self.on_event is None:
            self._executor.run_many(append.statement, rows)
            return
        last = self._executor.insert(append.statement, rows)
        # Within a transaction positions follow one another.
        for number, draft in enumerate(drafts, last - len(drafts) + 1):
            self.on_event(finished_event(draft, number))

    def page(self, after: int, limit: int) -> list[GoalEvent]:
        """Up to `limit` events behind a position, in order."""
        return [_event(row) for row in self._executor.run(_PAGE, (after, limit)).fetchall()]

    def settled_page(self, after: int, limit: int) -> list[GoalEvent]:
        """As `page`, up to where the log is settled: for those who keep a cursor, since no event can appear
        behind it later.
        """
        events = self.page(after, limit)
        if not events:
            return events
        through = self._executor.settled_through(events[-1].position)
        return [event for event in events if event.position <= through]

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

    def charge_by_key(self, thread_id: str, key: str) -> GoalEvent | None:
        """The charge that was made in the thread under an idempotency key."""
        row = self._executor.run(_CHARGE_BY_KEY, (thread_id, key)).fetchone()
        return None if row is None else _event(row)

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
