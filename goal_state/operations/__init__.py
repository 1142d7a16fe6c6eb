"""The calls that change goals: one description for the store and for a host's own transaction."""

from __future__ import annotations

from goal_state.operations.goal_operations import GoalOperations
from goal_state.operations.hold import Hold

__all__ = ["GoalOperations", "Hold"]
