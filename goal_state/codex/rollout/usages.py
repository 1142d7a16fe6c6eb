"""Usages as a rollout states them, each with the turn and the context window that its line leaves out."""

from __future__ import annotations

from dataclasses import replace

from goal_state.codex.rollout.records import (
    ErrorRaised,
    Record,
    TurnBegan,
    TurnEnded,
    TurnNamed,
    TurnsDropped,
    UsageStated,
)
from goal_state.domain.usage import ThreadUsage

__all__ = ["UsageContext"]


class UsageContext:
    """What a usage line leaves out, from the lines before it: its turn and the model's context window."""

    def __init__(self) -> None:
        self._turn_id: str | None = None
        self._window: int | None = None

    def take(self, record: Record) -> None:
        """The next record of the file."""
        match record:
            case TurnBegan(turn_id, window):
                self._turn_id = turn_id
                self._window = window
            case TurnNamed(turn_id):
                self._turn_id = turn_id
            case UsageStated(usage, is_usage_record):
                self._turn_id = usage.turn_id or self._turn_id
                if not is_usage_record:
                    self._window = usage.model_context_window
            case TurnEnded(turn_id):
                self._turn_id = turn_id or self._turn_id
            case ErrorRaised() | TurnsDropped():
                pass

    def usage(self, stated: UsageStated) -> ThreadUsage:
        """The usage, after `take` of the same line."""
        window = self._window if stated.is_usage_record else stated.usage.model_context_window
        return replace(stated.usage, model_context_window=window, turn_id=self._turn_id)
