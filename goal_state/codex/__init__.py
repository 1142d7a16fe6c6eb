"""Restored usage: what a thread has used is there the moment a client resumes, rejoins or forks it."""

from goal_state.codex.hub import ThreadHub
from goal_state.codex.messages import (
    Message,
    RestoredUsage,
    goal_updated,
    restored_turn_id,
    token_usage_updated,
)
from goal_state.codex.outbox import Connection

__all__ = [
    "Connection",
    "Message",
    "RestoredUsage",
    "ThreadHub",
    "goal_updated",
    "restored_turn_id",
    "token_usage_updated",
]
