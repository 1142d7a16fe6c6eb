"""Everything that speaks Codex: rollouts, clients that resume, rejoin or fork a thread, and analytics.

What a thread has used is there the moment a client attaches to it (`ThreadHub`).
"""

from goal_state.codex.hub import ThreadHub
from goal_state.codex.messages import (
    Message,
    RestoredUsage,
    goal_updated,
    restored_turn_id,
    token_usage_updated,
)
from goal_state.codex.outbox import Connection
from goal_state.codex.payload import CodexPayload

__all__ = [
    "CodexPayload",
    "Connection",
    "Message",
    "RestoredUsage",
    "ThreadHub",
    "goal_updated",
    "restored_turn_id",
    "token_usage_updated",
]
