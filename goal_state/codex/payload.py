"""The `codex_goal_event`: one goal event as Codex sends it, field for field as it was recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from goal_state.analytics.version import library_version
from goal_state.codex.runtime import machine_arch, os_name, os_version
from goal_state.domain.events import EventKind, GoalEvent
from goal_state.domain.values import check_name, check_optional_name
from goal_state.errors import InvalidValueError

__all__ = ["CodexPayload"]

_KINDS: Final = frozenset(
    {EventKind.CREATED, EventKind.USAGE_ACCOUNTED, EventKind.STATUS_CHANGED, EventKind.CLEARED}
)
_NAMES: Final = (
    "client_name",
    "client_version",
    "rpc_transport",
    "runtime_version",
    "runtime_os",
    "runtime_os_version",
    "runtime_arch",
)
_OPTIONAL_NAMES: Final = (
    "product_client_id",
    "session_id",
    "thread_source",
    "subagent_source",
    "parent_thread_id",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodexPayload:
    """Makes the `codex_goal_event` of an event, for a receiver that Codex feeds too:

        payload = CodexPayload(client_name="my-agent", client_version="1.4")
        send_events(store, sink, payload=payload)

    It holds no event id and no time; a receiver that can be given another field is served better by
    `goal_event`. Where threads differ, make one for each:
    `payload=lambda event: payloads[event.thread_id](event)`.

    What an event says besides what happened is stated here, or found in the process. Texts have 1 to 256
    characters.

    Attributes:
        client_name, client_version: the program that drives the agent.
        product_client_id: the product that it is a client of; None for the client's name.
        rpc_transport: how the client talks to the agent: "stdio", "websocket", "in_process" …
        experimental_api_enabled: whether the client asked for unstable parts of the API; None where there
            are none.
        session_id: the session that the thread belongs to; None for the thread's own id.
        thread_source: what started the thread, such as "user".
        subagent_source: what started it, where it is a sub-agent's.
        parent_thread_id: the thread that it is a sub-agent of.
        runtime_version: the version of what keeps the goals; this library's, unless the host states its own.
        runtime_os, runtime_os_version, runtime_arch: what it runs on, found by itself.

    Raises:
        InvalidValueError: a text is out of its bounds.
    """

    client_name: str
    client_version: str
    product_client_id: str | None = None
    rpc_transport: str = "in_process"
    experimental_api_enabled: bool | None = None
    session_id: str | None = None
    thread_source: str | None = None
    subagent_source: str | None = None
    parent_thread_id: str | None = None
    runtime_version: str = field(default_factory=library_version)
    runtime_os: str = field(default_factory=os_name)
    runtime_os_version: str = field(default_factory=os_version)
    runtime_arch: str = field(default_factory=machine_arch)

    def __post_init__(self) -> None:
        for name in _NAMES:
            check_name(name, getattr(self, name))
        for name in _OPTIONAL_NAMES:
            check_optional_name(name, getattr(self, name))
        _check_flag("experimental_api_enabled", self.experimental_api_enabled)

    def __call__(self, event: GoalEvent) -> dict[str, Any] | None:
        """What is sent, ready for JSON: the recorded events' fields, in their order, with their nulls. Of a
        kind of event that Codex does not know nothing is sent.
        """
        if event.kind not in _KINDS:
            return None
        return {
            "event_type": "codex_goal_event",
            "event_params": {
                "thread_id": event.thread_id,
                "session_id": event.thread_id if self.session_id is None else self.session_id,
                "turn_id": event.turn_id,
                "app_server_client": {
                    "product_client_id": self.client_name
                    if self.product_client_id is None
                    else self.product_client_id,
                    "client_name": self.client_name,
                    "client_version": self.client_version,
                    "rpc_transport": self.rpc_transport,
                    "experimental_api_enabled": self.experimental_api_enabled,
                },
                "runtime": {
                    "codex_rs_version": self.runtime_version,
                    "runtime_os": self.runtime_os,
                    "runtime_os_version": self.runtime_os_version,
                    "runtime_arch": self.runtime_arch,
                },
                "thread_source": self.thread_source,
                "subagent_source": self.subagent_source,
                "parent_thread_id": self.parent_thread_id,
                "goal_id": event.goal_id,
                "event_kind": event.kind.value,
                "goal_status": event.goal_status.value,
                "has_token_budget": event.has_token_budget,
                "cumulative_tokens_accounted": event.cumulative_tokens,
                "cumulative_time_accounted_seconds": event.cumulative_seconds,
            },
        }


def _check_flag(field: str, value: object) -> None:
    if value is not None and not isinstance(value, bool):
        raise InvalidValueError(field, f"must be a bool or None, not {type(value).__name__}")
