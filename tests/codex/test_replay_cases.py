"""Every recorded scenario of two clients, played: the same messages in the same order to the same client.

The rollout of a scenario is written to a data directory as far as the scenario has got.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goal_state import GoalStore, ThreadUsage
from goal_state.codex import Message, ThreadHub
from goal_state.codex.rollout import RolloutReader, RolloutWriter, find_rollout
from tests.codex.clients import PATIENCE_SECONDS, Client, kinds
from tests.databases import fingerprints

CASES = Path(__file__).parents[1] / "data" / "replay-cases"
NAMES = sorted(path.stem for path in CASES.glob("*.json"))


class Player:
    """A host with one live thread, whose turns happen as its recorded rollout says."""

    def __init__(self, name: str, store: GoalStore, home: Path) -> None:
        self.store = store
        self.home = home
        self.steps: list[dict[str, Any]] = json.loads((CASES / f"{name}.json").read_text())["steps"]
        self.symbols: dict[str, str] = {}
        self.turn_ids: list[str] = []
        self.lines: Iterator[dict[str, Any]] = iter(())
        self.thread_id = "a-thread-that-never-ran"
        self.rollout: Path | None = None
        recorded = sorted((CASES / name).glob("*.jsonl"))
        if recorded:
            self._read(recorded[0])
        self.symbols[self.thread_id] = "thread1"
        self.symbols["the-fork"] = "thread2"
        self.hub = ThreadHub(store, home=home)
        self.clients: dict[str, Client] = {}

    def _read(self, recorded: Path) -> None:
        reader = RolloutReader(recorded)
        assert reader.meta is not None
        self.thread_id = reader.meta.thread_id
        self.turn_ids = [turn.turn_id for turn in reader.turns()]
        self.symbols |= {turn_id: f"turn{n}" for n, turn_id in enumerate(self.turn_ids, start=1)}
        self.lines = iter([json.loads(line) for line in recorded.read_text().splitlines()])
        self.rollout = self.home / "sessions" / "2026" / "11" / "20" / recorded.name
        self.rollout.parent.mkdir(parents=True)

    def play(self) -> None:
        assert self.steps
        for number, step in enumerate(self.steps):
            names = list(step["messages"])
            if not self.clients:
                self.clients = {name: Client() for name in names}
                self.hub.start(self.thread_id, self.clients["A"], request_id=0)
                self._told()
            elif names != list(self.clients):
                # Nobody of before is there any more: the program was started again.
                self.clients = {name: Client() for name in names}
                self.hub = ThreadHub(self.store, home=self.home)
            asking = next(name for name in names if "response" in step["messages"][name])
            self._do(step["do"], asking, number)
            told = self._told()
            shown = {name: [self._symbolic(m) for m in told[name]] for name in names}
            assert shown == step["messages"], (number, step["do"])
            if step["turns"] is not None:
                reply = told[asking][0]["result"]["thread"]["turns"]
                turns = [[self.symbols[turn["id"]], turn["status"]] for turn in reply]
                assert turns == step["turns"]

    def _do(self, do: str, asking: str, number: int) -> None:
        client = self.clients[asking]
        match do.split()[1:]:
            case ["runs", "a", "turn"]:
                client.send({"jsonrpc": "2.0", "id": number, "result": {}})
                self._run_turn(number)
            case ["calls", "thread/resume"]:
                self.hub.resume(self.thread_id, client, request_id=number)
            case ["calls", "thread/fork"]:
                self.hub.fork(self.thread_id, "the-fork", client, request_id=number)
            case _:
                raise AssertionError(do)

    def _run_turn(self, number: int) -> None:
        """The lines of one turn, up to its end or to that of the file; each usage is told and recorded."""
        assert self.rollout is not None
        with RolloutWriter(self.rollout) as writer:
            for line in self.lines:
                writer.append(line)
                payload = line["payload"]
                if line["type"] != "event_msg":
                    continue
                if payload["type"] == "task_started":
                    self.hub.turn_started(self.thread_id, payload["turn_id"])
                    self.turn_id: str = payload["turn_id"]
                elif payload["type"] == "token_count":
                    stated = ThreadUsage.from_mapping(payload["info"])
                    self.store.record_total(self.thread_id, stated, turn_id=self.turn_id)
                    self.hub.usage_updated(self.thread_id, self.turn_id, stated)
                elif payload["type"] == "task_complete":
                    self.hub.turn_finished(self.thread_id, payload["turn_id"])
                    return

    def _told(self) -> dict[str, list[Message]]:
        assert self.hub.flush(PATIENCE_SECONDS)
        return {name: client.take() for name, client in self.clients.items()}

    def _symbolic(self, message: Message) -> Any:
        """A message as the recordings show it."""
        if "id" in message:
            return "response"
        assert message["method"] == "thread/tokenUsage/updated"
        params = message["params"]
        return {
            "thread": self.symbols[params["threadId"]],
            "turn": self.symbols[params["turnId"]],
            "total": params["tokenUsage"]["total"],
            "last": params["tokenUsage"]["last"],
        }


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_case_is_replayed_exactly(name: str, store: GoalStore, home: Path) -> None:
    player = Player(name, store, home)
    player.play()
    assert list(store.events()) == []


def test_there_are_cases() -> None:
    assert NAMES == ["cold_resume", "no_usage_yet", "rejoin_mid_turn", "rejoin_running_thread"]


@pytest.mark.parametrize("name", [name for name in NAMES if (CASES / name).is_dir()])
def test_after_a_restart_the_latest_turn_is_told_also_to_those_who_come_later(
    name: str, store: GoalStore, home: Path
) -> None:
    """A turn that was under way when the program died is over: whoever comes first and whoever comes
    later are told of the same one.
    """
    player = Player(name, store, home)
    player.play()
    before = fingerprints(home)
    hub, first, second = ThreadHub(store, home=home), Client(), Client()
    hub.resume(player.thread_id, first, request_id=1)
    hub.resume(player.thread_id, second, request_id=2)
    assert hub.flush(PATIENCE_SECONDS)
    for told, request_id in ((first.told, 1), (second.told, 2)):
        assert kinds(told) == [request_id, "thread/tokenUsage/updated"]
        assert told[1]["params"]["turnId"] == player.turn_ids[-1]
    assert first.told[1] == second.told[1]
    assert fingerprints(home) == before


def test_a_recorded_fork_that_is_resumed_has_its_parents_usage_under_its_own_id(
    store: GoalStore, home: Path
) -> None:
    day = home / "sessions" / "2026" / "11" / "20"
    day.mkdir(parents=True)
    parent, fork = sorted((CASES / "rejoin_mid_turn").glob("*.jsonl"))
    for recorded in (parent, fork):
        (day / recorded.name).write_bytes(recorded.read_bytes())
    meta = RolloutReader(fork).meta
    assert meta is not None
    assert find_rollout(home, meta.thread_id) == day / fork.name
    hub, client = ThreadHub(store, home=home), Client()
    restored = hub.resume(meta.thread_id, client, request_id=1)
    assert restored is not None
    assert restored.thread_id == meta.thread_id
    assert restored.turn_id == RolloutReader(parent).turns()[-1].turn_id
    assert restored.usage.total.total_tokens == 276
    assert hub.flush(PATIENCE_SECONDS)
    assert client.told[1] == restored.message()
