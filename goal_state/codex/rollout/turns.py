"""Turns and how far they have got, as the records of a rollout tell it."""

from __future__ import annotations

from dataclasses import dataclass

from goal_state.codex.rollout.records import (
    ErrorRaised,
    Record,
    TurnBegan,
    TurnEnded,
    TurnNamed,
    TurnsDropped,
    TurnStatus,
    UsageStated,
)

__all__ = ["Turn", "Turns"]


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn and how far it had got by the end of the file."""

    turn_id: str
    status: TurnStatus


class Turns:
    """Collects turns from records in the order of the file."""

    def __init__(self) -> None:
        self.status_of: dict[str, TurnStatus] = {}
        self._current: str | None = None

    def take(self, record: Record) -> None:
        """The next record of the file."""
        match record:
            case TurnBegan(turn_id) | TurnNamed(turn_id):
                self._current = turn_id
                if turn_id is not None:
                    self.status_of.setdefault(turn_id, TurnStatus.IN_PROGRESS)
            case TurnEnded(turn_id, status):
                self._end(turn_id or self._current, status)
            case ErrorRaised(turn_id):
                # The turn stays current: its task_complete, which changes nothing, is still to come.
                self._set(turn_id or self._current, TurnStatus.FAILED)
            case TurnsDropped(count):
                for _ in range(min(count, len(self.status_of))):
                    self.status_of.popitem()
                self._current = None
            case UsageStated():
                pass

    def listed(self) -> list[Turn]:
        """The turns in the order in which they began."""
        return [Turn(turn_id, status) for turn_id, status in self.status_of.items()]

    def forget_first(self) -> None:
        """Leaves out the turn that began first."""
        del self.status_of[next(iter(self.status_of))]

    def _end(self, turn_id: str | None, status: TurnStatus) -> None:
        self._set(turn_id, status)
        if turn_id == self._current:
            self._current = None

    def _set(self, turn_id: str | None, status: TurnStatus) -> None:
        if turn_id is None:
            return
        before = self.status_of.setdefault(turn_id, TurnStatus.IN_PROGRESS)
        if before is TurnStatus.IN_PROGRESS or status is TurnStatus.INTERRUPTED:
            self.status_of[turn_id] = status
