"""Pruning the log: old events go, what they add up to stays.

What is left of a goal is its `created` event, a balance carried forward, and its newer events; of a goal
that is gone and whose last event is pruned, nothing. The caller's idempotency keys go with their events.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    ColumnElement,
    and_,
    case,
    delete,
    exists,
    func,
    literal_column,
    select,
)
from sqlalchemy.sql import Executable

from goal_state.domain.events import FIGURES
from goal_state.storage.cursors import ConsumerCursors
from goal_state.storage.executor import Executor
from goal_state.storage.holds import HoldTable
from goal_state.storage.repository import GoalRepository
from goal_state.storage.schema import balances, events, goals, parts
from goal_state.storage.statements import Parameter, Statement, Upsert

__all__ = ["last_prunable_position", "prune_chunk", "prune_ended", "prune_holds"]

_E = events.c
_B = balances.c
_IS_CREATED: Final = _E.kind == literal_column("'created'")


def _prunable(after: Parameter, through: Parameter) -> ColumnElement[bool]:
    return and_(_E.position > after, _E.position <= through, ~_IS_CREATED)


def _carry_forward(after: Parameter, through: Parameter) -> Upsert:
    old = (
        select(
            _E.goal_id,
            func.max(_E.position).label("through_position"),
            *(func.sum(_E[figure.delta]).label(figure.balance) for figure in FIGURES),
        )
        .where(_prunable(after, through))
        .group_by(_E.goal_id)
        .subquery()
    )
    last = events.alias("last")
    cleared: ColumnElement[str] = literal_column("'cleared'")
    status = case((last.c.kind == cleared, cleared), else_=last.c.goal_status).label("status")
    return Upsert(
        balances,
        # A join by WHERE: after one by ON, SQLite would take ON CONFLICT for a part of it.
        select(*old.columns, status).where(last.c.position == old.c.through_position),
        ["goal_id"],
        lambda new: {
            "through_position": new["through_position"],
            "status": new["status"],
            **{figure.balance: _B[figure.balance] + new[figure.balance] for figure in FIGURES},
        },
    )


def _carry_parts(after: Parameter, through: Parameter) -> Upsert:
    via, model = (
        func.coalesce(column, literal_column("''")) for column in (_E.via_goal_id, _E.model)
    )
    old = (
        select(
            _E.goal_id,
            via.label("via_goal_id"),
            model.label("model"),
            *(func.sum(_E[figure.delta]).label(figure.balance) for figure in FIGURES),
        )
        .where(_prunable(after, through), _E.kind == literal_column("'usage_accounted'"))
        .group_by(_E.goal_id, via, model)
    )
    return Upsert(
        parts,
        old,
        ["goal_id", "via_goal_id", "model"],
        lambda new: {
            figure.balance: parts.c[figure.balance] + new[figure.balance] for figure in FIGURES
        },
    )


_CARRY_FORWARD = Statement(_carry_forward)
_CARRY_PARTS = Statement(_carry_parts)
_DELETE_OLD = Statement(lambda after, through: delete(events).where(_prunable(after, through)))
_FIRST_YOUNG = Statement(
    lambda before_ms: select(func.min(_E.position)).where(_E.occurred_at_ms >= before_ms)
)
_FIRST_PRUNABLE = Statement(lambda: select(func.min(_E.position)).where(~_IS_CREATED))


def _ended(through: Parameter) -> Executable:
    other = events.alias("other")
    return (
        select(_E.goal_id)
        .where(
            _IS_CREATED,
            _E.position <= through,
            ~exists().where(goals.c.goal_id == _E.goal_id),
            ~exists().where(other.c.goal_id == _E.goal_id, other.c.position > _E.position),
        )
        .order_by(_E.position)  # a goal before the one that took its place
        .limit(literal_column("1000"))
        .offset(literal_column("0"))
    )


_ENDED = Statement(_ended)
_FORGET_EVENTS = Statement(lambda goal_id: delete(events).where(_E.goal_id == goal_id))
_FORGET_BALANCE = Statement(lambda goal_id: delete(balances).where(_B.goal_id == goal_id))
_FORGET_PARTS = Statement(lambda goal_id: delete(parts).where(parts.c.goal_id == goal_id))


def last_prunable_position(repository: GoalRepository, before_ms: int) -> int:
    """The last position that is older than a time (Unix ms) and that every consumer has passed."""
    executor = repository.executor
    with executor.snapshot():
        first_young = executor.run(_FIRST_YOUNG, (before_ms,)).fetchone()[0]
        last = repository.log.last_position() if first_young is None else first_young - 1
        return min([last, *(cursor.position for cursor in ConsumerCursors(executor).all())])


def prune_chunk(repository: GoalRepository, through: int, size: int) -> int | None:
    """Prunes some of the events up to a position; returns how many, None when none are left.

    Args:
        repository: in a transaction.
        through: the last position to be pruned.
        size: positions at the most.
    """
    executor = repository.executor
    first = executor.run(_FIRST_PRUNABLE).fetchone()[0]
    if first is None or first > through:
        return None
    bounds = (first - 1, min(first - 1 + size, through))
    executor.run(_CARRY_FORWARD, bounds)
    executor.run(_CARRY_PARTS, bounds)
    return executor.run(_DELETE_OLD, bounds).rowcount


def prune_ended(repository: GoalRepository, through: int) -> int:
    """Forgets some of the goals that are gone and of which only the `created` event is left, up to a
    position; returns how many.
    """
    executor: Executor = repository.executor
    ended = executor.run(_ENDED, (through,)).fetchall()
    executor.run_many(_FORGET_EVENTS, ended)
    executor.run_many(_FORGET_BALANCE, ended)
    executor.run_many(_FORGET_PARTS, ended)
    return len(ended)


def prune_holds(repository: GoalRepository, before_ms: int) -> int:
    """Forgets the holds that ended before a time; returns how many."""
    return HoldTable(repository.executor).delete_ended(before_ms)
