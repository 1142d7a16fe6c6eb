"""What a client is told when it attaches to a thread, as JSON-RPC messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from goal_state.codex.rollout import RolloutTail, Turn, TurnStatus
from goal_state.domain.goals import Goal
from goal_state.domain.usage import ThreadUsage, TokenUsage

__all__ = [
    "Message",
    "RestoredUsage",
    "goal_updated",
    "response",
    "restored_turn_id",
    "token_usage_updated",
]

Message: TypeAlias = dict[str, Any]


def restored_turn_id(turns: Iterable[Turn]) -> str:
    """The turn that restored usage is said to be of: the latest one not in progress, else the last,
    else `""`.
    """
    last = ended = ""
    for turn in turns:
        last = turn.turn_id
        if turn.status is not TurnStatus.IN_PROGRESS:
            ended = turn.turn_id
    return ended or last


@dataclass(frozen=True, slots=True)
class RestoredUsage:
    """What a thread has used, to be told to one client that attaches to it.

    Attributes:
        thread_id: the thread that the client asked for; of a fork, its own.
        turn_id: see `restored_turn_id`; of a fork, the original turn.
        usage: the usage, with its own turn, which need not be the one that is told.
    """

    thread_id: str
    turn_id: str
    usage: ThreadUsage

    @classmethod
    def from_tail(cls, thread_id: str, tail: RolloutTail) -> RestoredUsage | None:
        """From the end of the rollout of a thread that is not running: none of its turns is in progress
        any more. None where it has no usage.
        """
        return None if tail.usage is None else cls(thread_id, tail.last_turn_id or "", tail.usage)

    @classmethod
    def from_stored(cls, thread_id: str, usage: ThreadUsage | None) -> RestoredUsage | None:
        """From the store's baseline of a thread. None where it has none, or has used nothing yet."""
        if usage is None or usage.total == TokenUsage():
            return None
        return cls(thread_id, usage.turn_id or "", usage)

    def message(self) -> Message:
        """The notification."""
        return token_usage_updated(self.thread_id, self.turn_id, self.usage)


def response(request_id: int | str, result: Mapping[str, Any]) -> Message:
    """The reply to a request."""
    return {"jsonrpc": "2.0", "id": request_id, "result": dict(result)}


def token_usage_updated(thread_id: str, turn_id: str, usage: ThreadUsage) -> Message:
    """The notification of what a thread has used."""
    params = {"threadId": thread_id, "turnId": turn_id, "tokenUsage": usage.to_mapping()}
    return _notification("thread/tokenUsage/updated", params)


def goal_updated(goal: Goal, turn_id: str | None = None) -> Message:
    """The notification of a goal as it is. Times are Unix times in whole seconds."""
    first, *words = goal.status.value.split("_")
    snapshot = {
        "threadId": goal.thread_id,
        "objective": goal.objective,
        "status": first + "".join(word.capitalize() for word in words),
        "tokenBudget": goal.token_budget,
        "tokensUsed": goal.tokens_used,
        "timeUsedSeconds": goal.time_used_seconds,
        "createdAt": goal.created_at_ms // 1000,
        "updatedAt": goal.updated_at_ms // 1000,
    }
    params = {"threadId": goal.thread_id, "turnId": turn_id, "goal": snapshot}
    return _notification("thread/goal/updated", params)


def _notification(method: str, params: Message) -> Message:
    return {"jsonrpc": "2.0", "method": method, "params": params}
