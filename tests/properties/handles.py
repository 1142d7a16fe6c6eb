"""One way to drive a store that is open in this process, and one that is open in another."""

from __future__ import annotations

import json
import multiprocessing
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from goal_state import GoalEvent, GoalStore
from tests.in_memory import open_in_memory
from tests.properties.operations import Observation, Operation, Outcome, Perform, observe, perform

__all__ = ["Abort", "Handle", "LocalHandle", "RemoteHandle"]

PATIENCE_SECONDS = 60.0
"""Longer than anything takes that works."""


class Abort(Exception):  # noqa: N818
    """Ends a transaction so that nothing of it stays."""


class Delivery:
    """A sink that notes what it is given in a file, where it outlives its process."""

    def __init__(self, path: Path, failures: int) -> None:
        self._path = path
        self._failures = failures

    def __call__(self, events: Sequence[GoalEvent]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps([(event.position, event.event_id) for event in events]) + "\n")
        if self._failures:
            self._failures -= 1
            raise OSError("the sink fails, though it has taken the events")


class LocalHandle:
    """A store in this process, on a file or (None) in memory, with its listeners and consumers."""

    def __init__(self, path: Path | None) -> None:
        self.store = (
            open_in_memory(durability="normal")
            if path is None
            else GoalStore.open(path, durability="normal")
        )
        self._received: list[list[GoalEvent]] = []
        self._subscriptions: list[Any] = []
        self._consumers: dict[str, Any] = {}

    def perform(self, operation: Operation) -> Outcome:
        return perform(self.store, operation)

    def start(self, operation: Operation) -> Callable[[], Outcome]:
        """Begins a call; what comes back waits for its outcome."""
        outcomes: list[Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(self.perform(operation)))
        thread.start()

        def finish() -> Outcome:
            thread.join(PATIENCE_SECONDS)
            return outcomes.pop()

        return finish

    def transact(self, script: Callable[[Perform], None]) -> None:
        """Runs the script in a transaction; it is undone if the script raises."""
        self.store.transact(
            lambda repository: script(lambda operation: perform(repository, operation))
        )

    def observe(self, threads: tuple[str, ...], goal_ids: tuple[str, ...]) -> Observation:
        return observe(self.store, threads, goal_ids)

    def subscribe(self, kinds: list[str] | None, thread_id: str | None, failing: bool) -> int:
        """Adds a listener that keeps what it hears, and then fails if it is to; returns its number."""
        received: list[GoalEvent] = []

        def listen(event: GoalEvent) -> None:
            received.append(event)
            if failing:
                raise ValueError("the listener fails")

        self._received.append(received)
        self._subscriptions.append(self.store.subscribe(listen, kinds=kinds, thread_id=thread_id))
        return len(self._received) - 1

    def unsubscribe(self, number: int) -> None:
        self._subscriptions[number].close()

    def received(self, number: int) -> list[GoalEvent]:
        return list(self._received[number])

    def consume(self, name: str, path: Path, batch_size: int, failures: int) -> None:
        sink = Delivery(path, failures)
        self._consumers[name] = self.store.consume(name, sink, batch_size=batch_size)

    def drain(self, name: str) -> bool:
        return self._consumers[name].drain(PATIENCE_SECONDS)

    def holds(self, name: str) -> bool:
        return self._consumers[name].position is not None

    def stop(self, name: str) -> bool:
        return self._consumers.pop(name).close(PATIENCE_SECONDS)

    def close(self) -> None:
        self.store.close()


def serve(connection: Connection, path: Path) -> None:
    """The other process: does what it is told until it is told to close, or killed."""
    handle = LocalHandle(path)
    while True:
        method, arguments = connection.recv()
        try:
            if method == "transact":
                handle.transact(lambda perform: _follow(connection, perform))
                reply = None
            else:
                reply = getattr(handle, method)(*arguments)
        except Abort:
            connection.send((True, None))
        except Exception:
            connection.send((False, traceback.format_exc()))
        else:
            connection.send((True, reply))
        if method == "close":
            return


def _follow(connection: Connection, perform: Perform) -> None:
    """Carries out, inside of a transaction, one operation after the other until its end is sent."""
    connection.send((True, None))
    while (operation := connection.recv()) != "commit":
        if operation == "abort":
            raise Abort
        connection.send((True, perform(operation)))


# A server that has imported everything forks each new process from itself: it is as fresh as a spawned
# one and inherits nothing of the test, but is there in a hundredth of the time.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pytest", "sqlite3", __name__])


class RemoteHandle:
    """A store in a process of its own, driven over a pipe."""

    def __init__(self, target: Path) -> None:
        self._connection, theirs = _context.Pipe()
        self._process = _context.Process(target=serve, args=(theirs, target))
        self._process.start()
        theirs.close()

    def _receive(self) -> Any:
        assert self._connection.poll(PATIENCE_SECONDS), "the other process does not answer"
        fine, reply = self._connection.recv()
        assert fine, reply
        return reply

    def _call(self, method: str, *arguments: Any) -> Any:
        self._connection.send((method, arguments))
        return self._receive()

    def perform(self, operation: Operation) -> Outcome:
        return self._call("perform", operation)

    def start(self, operation: Operation) -> Callable[[], Outcome]:
        """Begins a call; what comes back waits for its outcome."""
        self._connection.send(("perform", (operation,)))
        return self._receive

    def begin(self) -> Perform:
        """Begins a transaction and leaves it open; what comes back performs operations in it."""
        self._call("transact")

        def perform(operation: Operation) -> Outcome:
            self._connection.send(operation)
            return self._receive()

        return perform

    def transact(self, script: Callable[[Perform], None]) -> None:
        """Runs the script in a transaction; it is undone if the script raises."""
        perform = self.begin()
        try:
            script(perform)
        except BaseException:
            self._connection.send("abort")
            self._receive()
            raise
        self._connection.send("commit")
        self._receive()

    def observe(self, threads: tuple[str, ...], goal_ids: tuple[str, ...]) -> Observation:
        return self._call("observe", threads, goal_ids)

    def subscribe(self, kinds: list[str] | None, thread_id: str | None, failing: bool) -> int:
        return self._call("subscribe", kinds, thread_id, failing)

    def unsubscribe(self, number: int) -> None:
        self._call("unsubscribe", number)

    def received(self, number: int) -> list[GoalEvent]:
        return self._call("received", number)

    def consume(self, name: str, path: Path, batch_size: int, failures: int) -> None:
        self._call("consume", name, path, batch_size, failures)

    def drain(self, name: str) -> bool:
        return self._call("drain", name)

    def holds(self, name: str) -> bool:
        return self._call("holds", name)

    def stop(self, name: str) -> bool:
        return self._call("stop", name)

    def close(self) -> None:
        self._call("close")
        self._end()

    def kill(self) -> None:
        """Ends the process where it stands."""
        self._process.kill()
        self._end()

    def _end(self) -> None:
        self._process.join(PATIENCE_SECONDS)
        self._process.close()
        self._connection.close()


Handle = LocalHandle | RemoteHandle
