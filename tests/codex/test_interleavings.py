"""Any interleaving of attachments, detachments, forks, usage and turns, beside a model: each client gets
exactly one replay per attachment, after its response, and from then on every update exactly once; nothing is
written to any rollout or to the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from goal_state import GoalStore, ThreadUsage
from goal_state.codex import Message, ThreadHub
from goal_state.codex.builders import TURN_ID, USAGE, rollout, rollout_with_token_usage
from goal_state.codex.rollout import TurnStatus
from tests.codex.clients import (
    PATIENCE_SECONDS,
    Client,
    goal_message,
    response,
    usage,
    used,
)
from tests.databases import fingerprints
from tests.in_memory import open_in_memory

pytestmark = pytest.mark.timeout(60 + settings().max_examples)  # as many as the profile asks for

ENDED = st.sampled_from([TurnStatus.COMPLETED, TurnStatus.INTERRUPTED, TurnStatus.FAILED])
RUNNING = TurnStatus.IN_PROGRESS
MOST_CLIENTS = 4
MOST_THREADS = 6

Told = dict[int, list[Message]]


@dataclass
class Thread:
    """What a thread is, and what of it outlives the program: what its rollout or its baseline says."""

    kept: ThreadUsage | None = None
    is_live: bool = False
    usage: ThreadUsage | None = None
    turns: dict[str, TurnStatus] = field(default_factory=dict)
    clients: set[int] = field(default_factory=set)
    recorded_turns: dict[str, TurnStatus] = field(default_factory=dict)
    unlisted_turn_id: str = ""

    def wake(self) -> None:
        if not self.is_live:
            self.is_live = True
            self.usage = self.kept
            self.turns = dict(self.recorded_turns)
            # A baseline tells of its turn, and not how that ended.
            kept_turn_id = "" if self.kept is None else self.kept.turn_id or ""
            self.unlisted_turn_id = "" if kept_turn_id in self.turns else kept_turn_id

    def sleep_if_idle(self) -> None:
        if not self.clients and RUNNING not in self.turns.values():
            self.is_live = False

    def turn_id(self) -> str:
        ended = [turn_id for turn_id, status in self.turns.items() if status is not RUNNING]
        return (["", *self.turns, *filter(None, [self.unlisted_turn_id]), *ended])[-1]


class HubMachine(RuleBasedStateMachine):
    """A hub and what its clients should have been told."""

    def __init__(self, store: GoalStore, home: Path) -> None:
        super().__init__()
        home.mkdir()
        self.store = store
        self.home = home
        self.ids = count(1)
        self.threads: dict[str, Thread] = {}
        self.position = store.last_position()
        self.files: dict[str, str] = {}
        self.launch()

    def launch(self) -> None:
        self.hub = ThreadHub(self.store, home=self.home)
        self.clients = [Client()]
        self.expected: Told = {0: []}

    def new_id(self, kind: str) -> str:
        return f"{self.home.name}-{kind}-{next(self.ids)}"

    def pick(self, data: st.DataObject, *, live: bool = False) -> tuple[str, Thread]:
        names = [name for name, thread in self.threads.items() if thread.is_live or not live]
        name = data.draw(st.sampled_from(names), label="thread")
        return name, self.threads[name]

    def pick_client(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, len(self.clients) - 1), label="client")

    def expect_replay(self, client: int, request_id: int, name: str) -> None:
        thread = self.threads[name]
        turns = {turn_id: status.value for turn_id, status in thread.turns.items()}
        told = self.expected[client]
        told.append(response(request_id, name, **turns))
        if thread.usage is not None:
            told.append(usage(name, thread.turn_id(), thread.usage))
        if (goal := self.store.get(name)) is not None:
            told.append(goal_message(goal))
        thread.clients.add(client)

    # -- clients -----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.clients) < MOST_CLIENTS)
    @rule()
    def connect(self) -> None:
        self.expected[len(self.clients)] = []
        self.clients.append(Client())

    @precondition(lambda self: len(self.threads) < MOST_THREADS)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        name, client, request_id = self.new_id("new"), self.pick_client(data), next(self.ids)
        self.threads[name] = Thread(is_live=True)
        self.hub.start(name, self.clients[client], request_id=request_id)
        self.expect_replay(client, request_id, name)

    @precondition(lambda self: self.threads)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        (name, thread), client, request_id = self.pick(data), self.pick_client(data), next(self.ids)
        thread.wake()
        restored = self.hub.resume(name, self.clients[client], request_id=request_id)
        assert (None if restored is None else restored.usage) == thread.usage
        self.expect_replay(client, request_id, name)

    @precondition(lambda self: 0 < len(self.threads) < MOST_THREADS)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        (parent_name, parent), client = self.pick(data), self.pick_client(data)
        name, request_id = self.new_id("fork"), next(self.ids)
        was_live = parent.is_live
        parent.wake()
        turns = {
            turn_id: TurnStatus.INTERRUPTED if status is RUNNING else status
            for turn_id, status in parent.turns.items()
        }
        self.threads[name] = Thread(
            parent.usage, True, parent.usage, turns, unlisted_turn_id=parent.unlisted_turn_id
        )
        parent.is_live = was_live
        self.hub.fork(parent_name, name, self.clients[client], request_id=request_id)
        self.expect_replay(client, request_id, name)

    @precondition(lambda self: self.threads)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        (name, thread), client = self.pick(data), self.pick_client(data)
        self.hub.detach(self.clients[client], name)
        thread.clients.discard(client)
        thread.sleep_if_idle()

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A client is told what is on its way, and then leaves every thread."""
        self.compare()
        client = self.pick_client(data)
        self.hub.detach(self.clients[client])
        for thread in self.threads.values():
            thread.clients.discard(client)
            thread.sleep_if_idle()

    # -- threads -----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.threads) < MOST_THREADS)
    @rule(has_used=st.booleans())
    def record(self, has_used: bool) -> None:
        """There is a rollout of a thread that is not live."""
        if has_used:
            name = rollout_with_token_usage(self.home)
            self.threads[name] = Thread(USAGE)
        else:
            name = rollout(self.home)
            self.threads[name] = Thread()
        self.threads[name].recorded_turns = {TURN_ID: TurnStatus.COMPLETED}
        self.files = fingerprints(self.home)

    @precondition(lambda self: self.threads)
    @rule(data=st.data())
    def make_goal(self, data: st.DataObject) -> None:
        name, _ = self.pick(data)
        self.store.replace(name, "Ship it")
        self.position = self.store.last_position()

    @precondition(lambda self: self.threads)
    @rule(data=st.data())
    def begin_turn(self, data: st.DataObject) -> None:
        name, thread = self.pick(data)
        turn_id = f"turn-{next(self.ids)}"
        thread.wake()
        thread.turns[turn_id] = RUNNING
        self.hub.turn_started(name, turn_id)

    @precondition(lambda self: any(thread.turns for thread in self.live()))
    @rule(data=st.data(), status=ENDED)
    def end_turn(self, data: st.DataObject, status: TurnStatus) -> None:
        names = [name for name, t in self.threads.items() if t.is_live and t.turns]
        name = data.draw(st.sampled_from(names), label="thread")
        thread = self.threads[name]
        turn_id = data.draw(st.sampled_from([*thread.turns]), label="turn")
        thread.turns[turn_id] = status
        self.hub.turn_finished(name, turn_id, status)
        thread.sleep_if_idle()

    @precondition(lambda self: any(self.live()))
    @rule(data=st.data(), tokens=st.integers(1, 5))
    def use(self, data: st.DataObject, tokens: int) -> None:
        name, thread = self.pick(data, live=True)
        turn_id = data.draw(st.sampled_from([*thread.turns, "another"]), label="turn")
        stated = used(tokens, turn_id)
        self.hub.usage_updated(name, turn_id, stated)
        known = thread.usage
        if known is not None and known.turn_id == turn_id and stated.total.is_below(known.total):
            return
        thread.usage = stated
        for client in thread.clients:
            self.expected[client].append(usage(name, turn_id, stated))

    @rule()
    def restart(self) -> None:
        """The program is started again; what was live is told of by rollouts and baselines alone."""
        self.compare()
        for client in self.clients:
            self.hub.detach(client)
        self.launch()
        for thread in self.threads.values():
            thread.clients.clear()
            thread.is_live = False

    # -- what must hold ----------------------------------------------------------------------------

    def live(self) -> list[Thread]:
        return [thread for thread in self.threads.values() if thread.is_live]

    @invariant()
    def only_the_needed_are_live(self) -> None:
        live = {name for name, thread in self.threads.items() if thread.is_live}
        assert set(self.hub.live_threads()) == live

    @invariant()
    def nothing_was_logged(self) -> None:
        assert self.store.last_position() == self.position

    @rule()
    def compare(self) -> None:
        """Everybody was told what the model says, no more and no less, in its order."""
        assert self.hub.flush(PATIENCE_SECONDS)
        told: Told = {number: client.take() for number, client in enumerate(self.clients)}
        assert told == self.expected
        self.expected = {number: [] for number in told}

    def teardown(self) -> None:
        self.compare()
        for client in self.clients:
            self.hub.detach(client)
        assert fingerprints(self.home) == self.files
        for name in self.threads:
            goal: Any = self.store.get(name)
            assert goal is None or goal.tokens_used == 0


@pytest.mark.slow
def test_any_interleaving_restores_usage_once(tmp_path: Path) -> None:
    examples = count()
    with open_in_memory() as store:
        run_state_machine_as_test(
            lambda: HubMachine(store, tmp_path / f"home-{next(examples)}"),
            settings=settings(
                max_examples=max(settings().max_examples // 2, 1), stateful_step_count=40
            ),
        )
        assert store.verify() == []
