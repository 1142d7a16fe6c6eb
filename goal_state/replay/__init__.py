"""Restored usage: what a thread has used is there the moment a client resumes, rejoins or forks it."""

from goal_state.replay.hub import ThreadHub, ThreadNotFoundError
from goal_state.replay.outbox import Connection
from goal_state.replay.restored import (
    Message,
    RestoredUsage,
    goal_updated,
    restored_turn_id,
    token_usage_updated,
)

__all__ = [
    "Connection",
    "Message",
    "RestoredUsage",
    "ThreadHub",
    "ThreadNotFoundError",
    "goal_updated",
    "restored_turn_id",
    "token_usage_updated",
]
