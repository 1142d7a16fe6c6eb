"""The `codex_goal_event`: the recorded events, and what the host states of itself."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from goal_state import GoalStore, InvalidValueError
from goal_state.analytics import JsonLinesSink, send_events
from goal_state.analytics.version import library_version
from goal_state.codex import CodexPayload
from goal_state.codex.runtime import machine_arch, os_name, os_version

RECORDED = Path(__file__).parents[1] / "data" / "analytics-events.jsonl"


def sent(store: GoalStore, payload: CodexPayload) -> list[dict[str, Any]]:
    return [payload(event) for event in store.events()]


def test_the_recorded_events_are_rebuilt_byte_for_byte(store: GoalStore, tmp_path: Path) -> None:
    recorded = RECORDED.read_bytes()
    first = json.loads(recorded.splitlines()[0])["event_params"]
    thread = first["thread_id"]
    turns = [json.loads(line)["event_params"]["turn_id"] for line in recorded.splitlines()]
    payload = CodexPayload(
        client_name="probe",
        client_version="0.1",
        rpc_transport="stdio",
        experimental_api_enabled=True,
        runtime_version="0.169.0",
        runtime_os="linux",
        runtime_os_version="12.0.0",
        runtime_arch="x86_64",
    )
    goal = store.create(thread, "Ship the parser", token_budget=500, turn_id=turns[0])
    store.charge(thread, tokens=140, seconds=0.2, turn_id=turns[1])
    store.charge(thread, tokens=190, seconds=0.3, turn_id=turns[2])
    store.charge(thread, tokens=210, seconds=0.4, turn_id=turns[3])
    store.clear(thread)

    target = tmp_path / "events.jsonl"
    with send_events(store, JsonLinesSink(target), payload=payload) as consumer:
        assert consumer.drain(60)

    rebuilt = target.read_bytes().replace(goal.goal_id.encode(), first["goal_id"].encode())
    assert rebuilt == recorded


def test_seconds_are_whole_and_cumulative(store: GoalStore) -> None:
    store.create("thread-1", "Ship it")
    store.charge("thread-1", seconds=1.9)
    store.charge("thread-1", seconds=1.9)
    seconds = [
        payload["event_params"]["cumulative_time_accounted_seconds"]
        for payload in sent(store, CodexPayload(client_name="agent", client_version="1"))
    ]
    assert seconds == [None, 1, 3]


def test_a_payload_says_everything_or_leaves_it_to_the_defaults(store: GoalStore) -> None:
    store.create("thread-1", "Ship it")
    [bare] = sent(store, CodexPayload(client_name="agent", client_version="1.4"))
    params = bare["event_params"]
    assert params["session_id"] == "thread-1"
    assert params["app_server_client"] == {
        "product_client_id": "agent",
        "client_name": "agent",
        "client_version": "1.4",
        "rpc_transport": "in_process",
        "experimental_api_enabled": None,
    }
    assert params["runtime"] == {
        "codex_rs_version": library_version(),
        "runtime_os": os_name(),
        "runtime_os_version": os_version(),
        "runtime_arch": machine_arch(),
    }
    assert (
        params["thread_source"] is params["subagent_source"] is params["parent_thread_id"] is None
    )

    [full] = sent(
        store,
        CodexPayload(
            client_name="agent",
            client_version="1.4",
            product_client_id="suite",
            rpc_transport="websocket",
            experimental_api_enabled=False,
            session_id="session-1",
            thread_source="subagent",
            subagent_source="review",
            parent_thread_id="thread-0",
            runtime_version="2.0",
        ),
    )
    params = full["event_params"]
    assert params["session_id"] == "session-1"
    assert params["app_server_client"]["product_client_id"] == "suite"
    assert params["app_server_client"]["rpc_transport"] == "websocket"
    assert params["app_server_client"]["experimental_api_enabled"] is False
    assert params["runtime"]["codex_rs_version"] == "2.0"
    assert params["thread_source"] == "subagent"
    assert params["subagent_source"] == "review"
    assert params["parent_thread_id"] == "thread-0"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("client_name", ""),
        ("client_version", None),
        ("rpc_transport", "x" * 257),
        ("session_id", ""),
        ("parent_thread_id", "\ud800"),
        ("runtime_os", 12),
        ("experimental_api_enabled", 1),
    ],
)
def test_a_payload_out_of_its_bounds_is_refused(field: str, value: object) -> None:
    given: dict[str, Any] = {"client_name": "agent", "client_version": "1", field: value}
    with pytest.raises(InvalidValueError) as refusal:
        CodexPayload(**given)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("system", "release", "expected"),
    [
        ("Linux", {"VERSION_ID": "12"}, ("linux", "12.0.0")),
        ("Linux", {"VERSION_ID": "22.04"}, ("linux", "22.4.0")),
        ("Linux", {"VERSION_ID": "3.19.1"}, ("linux", "3.19.1")),
        ("Linux", {"VERSION_ID": "39-beta"}, ("linux", "39-beta")),
        ("Linux", {}, ("linux", "6.1.0-kernel")),
        ("Linux", None, ("linux", "6.1.0-kernel")),
        ("Darwin", None, ("macos", "14.4.0")),
        ("Windows", None, ("windows", "10.0.22631")),
        ("", None, ("unknown", "10.0.22631")),
    ],
)
def test_the_operating_system_is_found(
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    release: dict[str, str] | None,
    expected: tuple[str, str],
) -> None:
    def os_release() -> dict[str, str]:
        if release is None:
            raise OSError("no such file")
        return release

    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-kernel")
    monkeypatch.setattr(platform, "version", lambda: "10.0.22631")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("14.4", ("", "", ""), "arm64"))
    monkeypatch.setattr(platform, "freedesktop_os_release", os_release)
    assert (os_name.__wrapped__(), os_version.__wrapped__()) == expected


@pytest.mark.parametrize(
    ("machine", "arch"),
    [
        ("x86_64", "x86_64"),
        ("AMD64", "x86_64"),
        ("arm64", "aarch64"),
        ("i686", "x86"),
        ("", "unknown"),
    ],
)
def test_the_architecture_is_found(
    monkeypatch: pytest.MonkeyPatch, machine: str, arch: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert machine_arch.__wrapped__() == arch
