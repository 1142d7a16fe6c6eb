"""Clients of a hub that remember what they were told."""

from __future__ import annotations

import threading
from typing import Any

from goal_state import Goal, ThreadUsage, TokenUsage
from goal_state.codex import Message, goal_updated, token_usage_updated

PATIENCE_SECONDS = 30.0


class Client:
    """Takes every message at once."""

    def __init__(self) -> None:
        self.told: list[Message] = []

    def send(self, message: Message, /) -> None:
        self.told.append(message)

    def take(self) -> list[Message]:
        """What came since the last call."""
        told, self.told = self.told, []
        return told


class FailingClient(Client):
    """Takes some messages and then fails for ever."""

    def __init__(self, takes: int) -> None:
        super().__init__()
        self._takes = takes
        self.calls = 0

    def send(self, message: Message, /) -> None:
        self.calls += 1
        if len(self.told) == self._takes:
            raise ConnectionResetError("gone")
        super().send(message)


class StuckClient(Client):
    """Blocks in its first message until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_stuck = threading.Event()
        self.may_go_on = threading.Event()

    def send(self, message: Message, /) -> None:
        self.is_stuck.set()
        assert self.may_go_on.wait(PATIENCE_SECONDS)
        super().send(message)


def used(tokens: int, turn_id: str | None = None) -> ThreadUsage:
    """A usage whose total and last part differ in every field."""
    return ThreadUsage(
        TokenUsage(tokens * 10, tokens * 3, tokens, tokens * 5, tokens * 2),
        TokenUsage(tokens * 4 + 1, tokens + 2, 3, tokens * 2 + 4, tokens + 5),
        200_000,
        turn_id,
    )


def response(request_id: int, thread_id: str, **turns: str) -> Message:
    """The response of an attachment: the thread, and its turns with their statuses."""
    listed = [{"id": turn_id, "status": status} for turn_id, status in turns.items()]
    thread = {"id": thread_id, "turns": listed}
    return {"jsonrpc": "2.0", "id": request_id, "result": {"thread": thread}}


def usage(thread_id: str, turn_id: str, stated: ThreadUsage) -> Message:
    return token_usage_updated(thread_id, turn_id, stated)


def goal_message(goal: Goal | None) -> Message:
    assert goal is not None
    return goal_updated(goal)


def kinds(messages: list[Message]) -> list[Any]:
    """What each message is: the method of a notification, the id of a response."""
    return [message.get("method", message.get("id")) for message in messages]
