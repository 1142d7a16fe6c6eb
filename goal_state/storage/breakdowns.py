"""Adding a goal's usage up by child, model, turn or tag, from its events and what is kept of pruned ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy import func, literal_column, select

from goal_state.domain.breakdown import Breakdown, Part
from goal_state.domain.events import FIGURES, EventKind, GoalEvent
from goal_state.domain.goals import Goal
from goal_state.storage import wall_clock
from goal_state.storage.executor import Executor
from goal_state.storage.ledger import EventLog
from goal_state.storage.schema import balances, events, parts
from goal_state.storage.statements import Statement

__all__ = ["breakdown"]

_E = events.c
_P = parts.c
_B = balances.c
_SUMS: Final = [_P[figure.balance] for figure in FIGURES]
_PARTS = Statement(
    lambda goal_id: select(_P.via_goal_id, _P.model, *_SUMS).where(_P.goal_id == goal_id)
)
_PRUNED_THROUGH = Statement(
    lambda goal_id: select(_B.through_position).where(_B.goal_id == goal_id)
)
_THREAD_OF = Statement(
    lambda goal_id: select(func.min(_E.thread_id)).where(
        _E.goal_id == goal_id, _E.kind == literal_column("'created'")
    )
)

_PAGE: Final = 500
_NONE: Final = ""
"""What the table of parts has where a charge came from no child, or named no model."""


def breakdown(executor: Executor, log: EventLog, goal: Goal, by: str) -> Breakdown:
    """A goal's usage by `"child"`, `"model"`, `"turn"` or the name of a tag."""
    sums = _Sums()
    name_of = _naming(by)
    since_ms: int | None = None
    with executor.snapshot():
        pruned = executor.run(_PRUNED_THROUGH, (goal.goal_id,)).fetchone()
        for via, model, *figures in executor.run(_PARTS, (goal.goal_id,)).fetchall():
            if by in ("child", "model"):
                sums.add(via if by == "child" else model, figures)
        after = 0
        while page := log.page_of_goal(goal.goal_id, after, _PAGE):
            for event in page:
                if pruned is not None and since_ms is None and event.position > pruned[0]:
                    since_ms = event.occurred_at_ms
                if event.kind is EventKind.USAGE_ACCOUNTED:
                    figures = [getattr(event, figure.delta) for figure in FIGURES]
                    sums.add(name_of(event) or _NONE, figures)
            after = page[-1].position
        if pruned is not None and since_ms is None:
            since_ms = wall_clock.now_ms()
        names = {name: _shown(executor, goal, by, name) for name in sums.by_name}
    found = [Part(names[name], *figures) for name, figures in sums.by_name.items()]
    found.sort(key=lambda part: (-part.tokens, -part.cost_nanos, part.name or ""))
    is_complete = pruned is None or by in ("child", "model")
    return Breakdown(goal.goal_id, by, tuple(found), None if is_complete else since_ms)


class _Sums:
    """Figures added up by name."""

    def __init__(self) -> None:
        self.by_name: dict[str, list[int]] = {}

    def add(self, name: str, figures: list[int]) -> None:
        known = self.by_name.setdefault(name, [0] * len(FIGURES))
        self.by_name[name] = [a + b for a, b in zip(known, figures, strict=True)]


def _naming(by: str) -> Callable[[GoalEvent], str | None]:
    if by == "child":
        return lambda event: event.via_goal_id
    if by == "model":
        return lambda event: event.model
    if by == "turn":
        return lambda event: event.turn_id
    return lambda event: event.tags.get(by)


def _shown(executor: Executor, goal: Goal, by: str, name: str) -> str | None:
    """A child by its thread, what is the goal's own by the goal's."""
    if by != "child":
        return name or None
    if name == _NONE:
        return goal.thread_id
    row = executor.run(_THREAD_OF, (name,)).fetchone()
    return name if row[0] is None else row[0]
