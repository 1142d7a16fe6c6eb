"""ThreadHub: the live threads, the clients attached to each, and what each client is told."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from goal_state.codex.messages import (
    RestoredUsage,
    goal_updated,
    response,
    restored_turn_id,
    token_usage_updated,
)
from goal_state.codex.outbox import Connection, Outbox
from goal_state.codex.rollout import RolloutReader, RolloutTail, Turn, TurnStatus, find_rollout
from goal_state.domain.usage import ThreadUsage, TokenUsage
from goal_state.domain.values import check_name
from goal_state.errors import GoalExistsError, InvalidValueError, ThreadNotFoundError
from goal_state.store import GoalStore

__all__ = ["ThreadHub"]

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(slots=True)
class _Thread:
    """A live thread. Its lock is held from reading it to queueing what was read."""

    thread_id: str
    usage: ThreadUsage | None = None
    turns: dict[str, TurnStatus] = field(default_factory=dict[str, TurnStatus])
    unlisted_turn_id: str = ""
    """A turn before all of `turns` that is over. How it ended is not known, so it is not listed."""
    outboxes: dict[int, Outbox] = field(default_factory=dict[int, Outbox])
    lock: threading.RLock = field(default_factory=threading.RLock)

    def restored(self) -> RestoredUsage | None:
        """What a client is told that attaches now."""
        if self.usage is None:
            return None
        turns = [Turn(turn_id, status) for turn_id, status in self.turns.items()]
        turn_id = restored_turn_id(turns)
        if self.unlisted_turn_id and self.turns.get(turn_id) in (None, TurnStatus.IN_PROGRESS):
            turn_id = self.unlisted_turn_id
        return RestoredUsage(self.thread_id, turn_id, self.usage)

    @property
    def is_running(self) -> bool:
        return TurnStatus.IN_PROGRESS in self.turns.values()


class ThreadHub:
    """Tells each client that attaches to a thread at once what the thread has used, and from then on every
    change, once and in order.

    To attach is to start, resume or fork. The client gets the response first, then the restored usage (if
    there is any), then the goal (if there is one); nobody else hears of it, and nothing is written, with
    one exception: what a rollout knows and the store does not (a crash came between) is charged, once.

    Messages go out on threads of their own: no call waits for a client. One that raises or falls a
    thousand messages behind is dropped from every thread. Safe to call from several threads.
    """

    def __init__(self, store: GoalStore, *, home: str | os.PathLike[str] | None = None) -> None:
        """
        Args:
            store: where goals and baselines are kept. The hub does not close it.
            home: the data directory with the rollouts, under `sessions/`; None where there are none.
        """
        self._store = store
        self._home = home
        self._threads: dict[str, _Thread] = {}
        self._outboxes: dict[int, tuple[Connection, Outbox]] = {}
        self._lock: Final = threading.RLock()

    # -- attaching ---------------------------------------------------------------------------------

    def start(
        self,
        thread_id: str,
        connection: Connection,
        *,
        request_id: int | str,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        """A client begins a new thread and is attached to it. Its baseline is zero.

        Args:
            thread_id: the new thread.
            connection: the client that asked.
            request_id: the id of its request.
            result: the result of the response; by default the thread and its turns as they are known.

        Raises:
            GoalExistsError: a thread of that id is live.
            InvalidValueError: the thread id is out of its bounds.
        """
        thread = _Thread(check_name("thread_id", thread_id))
        _check_result(result)
        with thread.lock:
            try:
                self._add(thread)
                if self._store.usage(thread_id) is None:
                    self._store.set_baseline(thread_id, TokenUsage())
                self._attach(thread, connection, request_id, result)
            except BaseException:
                self._forget(thread)
                raise

    def resume(
        self,
        thread_id: str,
        connection: Connection,
        *,
        request_id: int | str,
        rollout: str | os.PathLike[str] | None = None,
        turns: Iterable[Turn] | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> RestoredUsage | None:
        """A client attaches to a thread: to a live one as it is, else to what its rollout or the store
        tells of it.

        A thread that is not live is read from its rollout's end: its usage, and every turn that the 16 MiB
        before the usage name, with its status (see `RolloutReader.restored`); what lies further back is not
        read, however long the rollout is. A turn that neither completed nor failed there was interrupted. The
        store knows no turn's status: without a rollout no turn is listed.

        Args:
            thread_id: the thread.
            connection: the client that asked. Attached already, it is told once more.
            request_id: the id of its request.
            rollout: the thread's rollout, where it does not lie in the data directory.
            turns: the thread's turns in their order, where the host knows them better than the rollout; one
                in progress runs on until `turn_finished`. Of a live thread the hub's own are told.
            result: the result of the response; by default the thread and its turns as they are known.

        Returns:
            The usage that the client is told, or None if there is none.

        Raises:
            ThreadNotFoundError: nothing is known of the thread.
            NotARolloutError: the rollout is none.
            InvalidValueError: the thread id is out of its bounds.
            DatabaseError: the store could not be read. The client was told nothing.
        """
        thread_id = check_name("thread_id", thread_id)
        _check_result(result)
        return self._within(
            thread_id,
            lambda thread: self._attach(thread, connection, request_id, result),
            rollout,
            _checked_turns(turns),
        )

    def fork(
        self,
        thread_id: str,
        new_thread_id: str,
        connection: Connection,
        *,
        request_id: int | str,
        rollout: str | os.PathLike[str] | None = None,
        turns: Iterable[Turn] | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> RestoredUsage | None:
        """A client makes a new thread that goes on from where another one is, and is attached to it.

        What the fork inherited is its baseline: it pays for nothing of its parent's. It has no goal. A
        turn that runs in the parent is interrupted in the fork.

        Args, Returns, Raises: as for `resume`, of the thread that it is made from; `GoalExistsError` if a
            thread of the new id is live.
        """
        thread_id = check_name("thread_id", thread_id)
        new_thread_id = check_name("new_thread_id", new_thread_id)
        _check_result(result)

        def inherit(parent: _Thread) -> _Thread:
            listed = {turn_id: _when_over(status) for turn_id, status in parent.turns.items()}
            return _Thread(new_thread_id, parent.usage, listed, parent.unlisted_turn_id)

        fork = self._within(thread_id, inherit, rollout, _checked_turns(turns))
        with fork.lock:
            try:
                self._add(fork)
                self._store.set_baseline(new_thread_id, fork.usage or TokenUsage())
                return self._attach(fork, connection, request_id, result)
            except BaseException:
                self._forget(fork)
                raise

    def detach(self, connection: Connection, thread_id: str | None = None) -> None:
        """A client leaves a thread, or all of them (None), and is told nothing more of it."""
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            if thread_id is None or thread.thread_id == thread_id:
                with thread.lock:
                    thread.outboxes.pop(id(connection), None)
                    self._forget_if_idle(thread)
        if thread_id is None:
            with self._lock:
                held = self._outboxes.pop(id(connection), None)
            if held is not None:
                held[1].drop()

    # -- what happens in a thread ------------------------------------------------------------------

    def turn_started(self, thread_id: str, turn_id: str) -> None:
        """A turn begins. A thread that nobody is attached to becomes live with it.

        Raises:
            InvalidValueError: an id is out of its bounds.
        """
        turn_id = check_name("turn_id", turn_id)

        def begin(thread: _Thread) -> None:
            thread.turns[turn_id] = TurnStatus.IN_PROGRESS

        self._within(check_name("thread_id", thread_id), begin, must_exist=False)

    def turn_finished(
        self, thread_id: str, turn_id: str, status: TurnStatus = TurnStatus.COMPLETED
    ) -> None:
        """A turn is over.

        Raises:
            ThreadNotFoundError: the thread is not live.
            InvalidValueError: an id is out of its bounds.
        """
        turn_id = check_name("turn_id", turn_id)
        status = _check_turn_status(status)

        def finish(thread: _Thread) -> None:
            thread.turns[turn_id] = status
            self._forget_if_idle(thread)

        self._within_live(check_name("thread_id", thread_id), finish)

    def usage_updated(self, thread_id: str, turn_id: str, usage: ThreadUsage) -> None:
        """The thread's usage is this now, by this turn, whatever turn it names itself; everybody attached is
        told.

        Within a turn a total that is lower than the one before is an older one, which came late: it is
        told to nobody.

        Raises:
            ThreadNotFoundError: the thread is not live.
            InvalidValueError: an id is out of its bounds.
        """
        turn_id = check_name("turn_id", turn_id)
        if not isinstance(usage, ThreadUsage):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError("usage", f"must be a ThreadUsage, not {type(usage).__name__}")
        usage = usage.of_turn(turn_id)
        message = token_usage_updated(thread_id, turn_id, usage)

        def update(thread: _Thread) -> None:
            before = thread.usage
            if (
                before is not None
                and usage.total.is_below(before.total)
                and turn_id == before.turn_id
            ):
                return
            thread.usage = usage
            for connection_id, outbox in list(thread.outboxes.items()):
                if not outbox.put(message):
                    del thread.outboxes[connection_id]

        self._within_live(check_name("thread_id", thread_id), update)

    def live_threads(self) -> list[str]:
        """The ids of the live threads."""
        with self._lock:
            return list(self._threads)

    def flush(self, timeout_seconds: float = 5.0) -> bool:
        """Waits until every message is sent; False if time ran out."""
        with self._lock:
            outboxes = [outbox for _, outbox in self._outboxes.values()]
        return all(outbox.flush(timeout_seconds) for outbox in outboxes)

    # -- shared steps ------------------------------------------------------------------------------

    def _attach(
        self,
        thread: _Thread,
        connection: Connection,
        request_id: int | str,
        result: Mapping[str, Any] | None,
    ) -> RestoredUsage | None:
        """Queues what the client is told; with the thread's lock held, so that no update comes between."""
        goal = self._store.get(thread.thread_id)
        restored = thread.restored()
        if result is None:
            turns = [{"id": turn_id, "status": s.value} for turn_id, s in thread.turns.items()]
            result = {"thread": {"id": thread.thread_id, "turns": turns}}
        messages = [response(request_id, result)]
        if restored is not None:
            messages.append(restored.message())
        if goal is not None:
            messages.append(goal_updated(goal))
        outbox = self._outbox(connection)
        thread.outboxes[id(connection)] = outbox
        outbox.put(*messages)
        if restored is None:
            _logger.debug("no usage of thread %s is known: none was replayed", thread.thread_id)
        else:
            _logger.debug("replayed the usage of thread %s to one client", thread.thread_id)
        return restored

    # Locks are held by `with` in the frame that works under them: an interrupt in a context manager of our
    # own would come between taking the lock and the block that gives it back.

    def _within(
        self,
        thread_id: str,
        work: Callable[[_Thread], Result],
        rollout: str | os.PathLike[str] | None = None,
        turns: dict[str, TurnStatus] | None = None,
        *,
        must_exist: bool = True,
    ) -> Result:
        """Works on a thread with its lock held, made live first if it is not; one that nobody needs
        afterwards is forgotten.
        """
        while True:
            new = _Thread(thread_id)
            with new.lock:  # before anybody can find it; given back restored or forgotten
                is_restored = False
                try:
                    with self._lock:
                        thread = self._threads.setdefault(thread_id, new)
                    if thread is new:
                        self._restore(new, rollout, turns, must_exist)
                        is_restored = True
                        return work(new)
                finally:
                    if is_restored:
                        self._forget_if_idle(new)
                    else:
                        self._forget(new)
            with thread.lock:
                with self._lock:
                    is_live = self._threads.get(thread_id) is thread
                if is_live:  # else it was forgotten meanwhile
                    try:
                        return work(thread)
                    finally:
                        self._forget_if_idle(thread)

    def _restore(
        self,
        thread: _Thread,
        rollout: str | os.PathLike[str] | None,
        turns: dict[str, TurnStatus] | None,
        must_exist: bool,
    ) -> None:
        """What is known of a thread that is not live: its rollout's tail, and the store's baseline."""
        thread_id, home = thread.thread_id, self._home
        path = rollout
        if path is None and home is not None:
            path = find_rollout(home, thread_id)
        tail = RolloutTail()
        if path is not None:
            tail = RolloutReader(path).restored(
                None if home is None else lambda parent_id: find_rollout(home, parent_id),
                list_turns=turns is None,
            )
        recorded = RestoredUsage.from_tail(thread_id, tail)
        if recorded is not None:
            self._store.reconcile(thread_id, recorded.usage)
        usage = self._store.usage(thread_id)
        if must_exist and path is None and usage is None and self._store.get(thread_id) is None:
            raise ThreadNotFoundError(
                f"thread {thread_id!r} is not live, and there is no rollout and no record of it"
            )
        if turns is None:
            turns = {turn.turn_id: _when_over(turn.status) for turn in tail.turns}
        stored = RestoredUsage.from_stored(thread_id, usage)
        restored = recorded
        if recorded is None or (
            stored is not None and recorded.usage.total.is_below(stored.usage.total)
        ):
            restored = stored
        thread.turns = turns
        if restored is None:
            return
        turn_id = restored.turn_id or tail.last_turn_id or ""
        thread.usage = restored.usage.of_turn(turn_id or None)
        if turn_id and turn_id not in turns:
            if recorded is not None and restored is stored:
                # The rollout breaks off before this turn: nobody has seen it end.
                turns[turn_id] = TurnStatus.INTERRUPTED
            else:
                thread.unlisted_turn_id = turn_id

    def _within_live(self, thread_id: str, work: Callable[[_Thread], Result]) -> Result:
        """Works on a thread that is live, with its lock held."""
        while True:
            with self._lock:
                thread = self._threads.get(thread_id)
            if thread is None:
                raise ThreadNotFoundError(
                    f"thread {thread_id!r} is not live; start or resume it first"
                )
            with thread.lock:
                with self._lock:
                    is_live = self._threads.get(thread_id) is thread
                if is_live:  # else it was forgotten meanwhile, and perhaps is live anew
                    return work(thread)

    def _add(self, thread: _Thread) -> None:
        with self._lock:
            if thread.thread_id in self._threads:
                raise GoalExistsError(f"thread {thread.thread_id!r} is live; resume it instead")
            self._threads[thread.thread_id] = thread

    def _forget(self, thread: _Thread) -> None:
        with self._lock:
            if self._threads.get(thread.thread_id) is thread:
                del self._threads[thread.thread_id]

    def _forget_if_idle(self, thread: _Thread) -> None:
        has_clients = any(not outbox.is_dropped for outbox in thread.outboxes.values())
        if not has_clients and not thread.is_running:
            self._forget(thread)

    def _outbox(self, connection: Connection) -> Outbox:
        with self._lock:
            _, outbox = self._outboxes.get(id(connection), (None, None))
            if outbox is None or outbox.is_dropped:
                outbox = Outbox(connection)
                # The connection is kept with its outbox, so that no other can have its id meanwhile.
                self._outboxes[id(connection)] = (connection, outbox)
            return outbox


def _check_result(value: object) -> None:
    if not (value is None or isinstance(value, Mapping)):
        raise InvalidValueError("result", f"must be a mapping, not {type(value).__name__}")


def _when_over(status: TurnStatus) -> TurnStatus:
    """The status of a turn that can no longer be in progress."""
    return TurnStatus.INTERRUPTED if status is TurnStatus.IN_PROGRESS else status


def _checked_turns(turns: Iterable[Turn] | None) -> dict[str, TurnStatus] | None:
    if turns is None:
        return None
    return {check_name("turn_id", turn.turn_id): _check_turn_status(turn.status) for turn in turns}


def _check_turn_status(value: object) -> TurnStatus:
    try:
        return TurnStatus(value)
    except ValueError:
        raise InvalidValueError("status", f"must be one of {', '.join(TurnStatus)}") from None
