"""Recomputing every goal from the log, and naming each difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Executable, literal_column, select, union

from goal_state.domain.events import FIGURES, EventKind, GoalEvent
from goal_state.domain.goals import Goal, GoalStatus
from goal_state.domain.plain import plain_fields
from goal_state.storage.executor import Executor
from goal_state.storage.repository import GoalRepository
from goal_state.storage.rows import columns_of, reader
from goal_state.storage.schema import balances, events, goals
from goal_state.storage.statements import Parameter, Statement

__all__ = ["Difference", "verify"]

_E = events.c
_B = balances.c
_EVENT: Final = columns_of(GoalEvent, events)
_event = reader(GoalEvent)
_BALANCE: Final = [_B.status, *(_B[figure.balance] for figure in FIGURES)]


def _in_ledgers(*criteria: ColumnElement[bool]) -> Executable:
    return (
        select(*_EVENT, *_BALANCE)
        .select_from(events.outerjoin(balances, _B.goal_id == _E.goal_id))
        .where(*criteria)
        .order_by(_E.goal_id, _E.position)
    )


def _ledgers_of_thread(thread_id: Parameter, same_thread_id: Parameter) -> Executable:
    created = events.alias()
    goal_ids = union(
        select(created.c.goal_id).where(
            created.c.thread_id == thread_id, created.c.kind == literal_column("'created'")
        ),
        select(goals.c.goal_id).where(goals.c.thread_id == same_thread_id),
    )
    return _in_ledgers(_E.goal_id.in_(goal_ids))


_LEDGERS = Statement(_in_ledgers)
_LEDGERS_OF_THREAD = Statement(_ledgers_of_thread)
_REPLACED = Statement(
    lambda thread_id, goal_id: (
        select(_E.position)
        .where(
            _E.thread_id == thread_id,
            _E.kind == literal_column("'created'"),
            _E.replaced_goal_id == goal_id,
        )
        .limit(literal_column("1"))
        .offset(literal_column("0"))
    )
)

_PAGE: Final = 500
_HELD: Final = ("live_holds", "held_tokens", "held_cost_nanos", "held_calls")
_NOTHING_HELD: Final = [0] * len(_HELD)


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where a goal is not what its log says.

    Attributes:
        thread_id, goal_id: whose.
        column: the column of the goal, or of its log, that is wrong.
        stored: what stands there.
        recomputed: what the log says.
    """

    thread_id: str
    goal_id: str
    column: str
    stored: object
    recomputed: object

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return plain_fields(self)

    def __str__(self) -> str:
        return (
            f"goal {self.goal_id} of thread {self.thread_id!r}: {self.column} is {self.stored},"
            f" the log says {self.recomputed}"
        )


class _Ledger:
    """What the events of one goal add up to, and what is wrong with them by themselves."""

    def __init__(self, goal_id: str, thread_id: str) -> None:
        self.goal_id = goal_id
        self.thread_id = thread_id
        self.sums = dict.fromkeys(FIGURES, 0)
        self.status = ""
        self.cleared = False
        self.created = False
        self.differences: list[Difference] = []

    def add(self, event: GoalEvent, balance: tuple[Any, ...]) -> None:
        """Takes the next event, and what the goal's balance says (only None where there is none)."""
        kind, place = event.kind, f"event {event.position}"
        if event.thread_id != self.thread_id:
            self._differs(f"{place} thread_id", event.thread_id, self.thread_id)
        if self.cleared:
            self._differs(place, kind.value, "nothing after cleared")
        if (kind is EventKind.CREATED) == self.created:
            self._differs(place, kind.value, "one created, first")
        self.created = True
        self.cleared |= kind is EventKind.CLEARED
        for figure in FIGURES:
            self.sums[figure] += getattr(event, figure.delta)
        self.status = event.goal_status.value
        if kind is EventKind.CREATED and balance[0] is not None:
            # What was pruned came behind it; the balance says what that added up to.
            self.status, *sums = balance
            self.sums = dict(zip(FIGURES, sums, strict=True))
            self.cleared = self.status == EventKind.CLEARED
        if kind is EventKind.USAGE_ACCOUNTED:
            for figure, recomputed in self.sums.items():
                if figure.cumulative is None:
                    continue
                stored = getattr(event, figure.cumulative)
                if stored != recomputed:
                    self._differs(f"{place} {figure.cumulative}", stored, recomputed)

    def compare(self, goal: Goal) -> None:
        for column, stored, recomputed in (
            ("thread_id", goal.thread_id, self.thread_id),
            *((figure.used, getattr(goal, figure.used), self.sums[figure]) for figure in FIGURES),
            ("status", goal.status.value, self.status),
        ):
            if stored != recomputed:
                self._differs(column, stored, recomputed)
        if self.cleared:
            self._differs("goal_id", goal.goal_id, "cleared")

    def _differs(self, column: str, stored: object, recomputed: object) -> None:
        self.differences.append(
            Difference(self.thread_id, self.goal_id, column, stored, recomputed)
        )


def verify(repository: GoalRepository, thread_id: str | None) -> Iterator[Difference]:
    """Yields the differences between goals and log, as of one snapshot, in bounded memory."""
    executor = repository.executor
    with executor.snapshot():
        held = _held(repository)
        stored = _stored(repository, thread_id)
        goal = next(stored, None)
        for ledger in _ledgers(executor, thread_id):
            while goal is not None and goal.goal_id < ledger.goal_id:
                yield _without_log(goal)
                goal = next(stored, None)
            if goal is not None and goal.goal_id == ledger.goal_id:
                ledger.compare(goal)
                yield from _budget(goal)
                yield from _holds(goal, held.get(goal.goal_id, _NOTHING_HELD))
                goal = next(stored, None)
            elif not ledger.cleared and not _was_replaced(executor, ledger):
                yield Difference(ledger.thread_id, ledger.goal_id, "goal_id", None, ledger.goal_id)
            yield from ledger.differences
        while goal is not None:
            yield _without_log(goal)
            goal = next(stored, None)


def _stored(repository: GoalRepository, thread_id: str | None) -> Iterator[Goal]:
    if thread_id is not None:
        goal = repository.get(thread_id)
        if goal is not None:
            yield goal
        return
    page = repository.goals_page(limit=_PAGE)
    while page:
        yield from page
        page = repository.goals_page(after=page[-1].goal_id, limit=_PAGE)


def _held(repository: GoalRepository) -> dict[str, list[int]]:
    """What live holds set aside, by the goals of whose budgets they are parts."""
    held: dict[str, list[int]] = {}
    for hold in repository.all_holds():
        for goal_id in hold.goal_ids:
            known = held.get(goal_id, _NOTHING_HELD)
            more = (1, hold.tokens, hold.cost_nanos or 0, hold.calls)
            held[goal_id] = [a + b for a, b in zip(known, more, strict=True)]
    return held


def _holds(goal: Goal, held: list[int]) -> Iterator[Difference]:
    for column, recomputed in zip(_HELD, held, strict=True):
        if (stored := getattr(goal, column)) != recomputed:
            yield Difference(goal.thread_id, goal.goal_id, column, stored, recomputed)


def _ledgers(executor: Executor, thread_id: str | None) -> Iterator[_Ledger]:
    if thread_id is None:
        rows = executor.stream(_LEDGERS)
    else:
        rows = executor.stream(_LEDGERS_OF_THREAD, (thread_id, thread_id))
    ledger: _Ledger | None = None
    width = len(_EVENT)
    for row in rows:
        event = _event(row[:width])
        if ledger is None or ledger.goal_id != event.goal_id:
            if ledger is not None:
                yield ledger
            ledger = _Ledger(event.goal_id, event.thread_id)
        ledger.add(event, row[width:])
    if ledger is not None:
        yield ledger


def _was_replaced(executor: Executor, ledger: _Ledger) -> bool:
    return executor.run(_REPLACED, (ledger.thread_id, ledger.goal_id)).fetchone() is not None


def _without_log(goal: Goal) -> Difference:
    return Difference(goal.thread_id, goal.goal_id, "goal_id", goal.goal_id, "no such goal")


def _budget(goal: Goal) -> Iterator[Difference]:
    if goal.status is GoalStatus.ACTIVE and goal.exhausted:
        yield Difference(
            goal.thread_id,
            goal.goal_id,
            "status",
            goal.status.value,
            f"{GoalStatus.BUDGET_LIMITED.value}, for {', '.join(goal.exhausted)}",
        )
