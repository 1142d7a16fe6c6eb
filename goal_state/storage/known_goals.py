"""Goals as a connection has read or written them, so that who changes one again need not read it.

They are of the one transaction that is open, and stay for the next if nobody else has changed the database
meanwhile. They are taken from where they are kept when a transaction begins, and put back once it is
committed: whatever comes in between, an exception at any instruction, what was rolled back is never kept.
"""

from __future__ import annotations

from typing import Final

from goal_state.domain.goals import Goal

__all__ = ["KnownGoals"]

_MOST: Final = 1_000
"""How many goals are kept at the most: some megabytes, if their objectives are as long as can be."""


class KnownGoals:
    """The goals that a transaction knows, if it keeps any; else it knows none."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Knows nothing, until the next transaction that keeps what it knows."""
        self._by_id: dict[str, Goal] = {}
        self._by_thread: dict[str, Goal] = {}
        self._version: object = None  # None where nothing is to be kept
        self._kept: tuple[object, dict[str, Goal], dict[str, Goal]] | None = None

    def begin(self, version: object) -> None:
        """A transaction has begun.

        Args:
            version: equal as long as nobody but this connection has changed the database.
        """
        kept, self._kept = self._kept, None
        if kept is not None and kept[0] == version:
            self._version, self._by_id, self._by_thread = kept
        else:
            self._version, self._by_id, self._by_thread = version, {}, {}

    def keep(self) -> None:
        """The transaction is committed."""
        if self._version is not None:
            self._kept = self._version, self._by_id, self._by_thread

    def of_thread(self, thread_id: str) -> Goal | None:
        """The thread's goal, if it is known."""
        return self._by_thread.get(thread_id)

    def of_id(self, goal_id: str) -> Goal | None:
        """The goal of an id, if it is known."""
        return self._by_id.get(goal_id)

    def put(self, goal: Goal) -> None:
        """A goal was read, or written, like this."""
        if self._version is None:
            return
        if len(self._by_id) >= _MOST:
            self._by_id.clear()
            self._by_thread.clear()
        self._by_id[goal.goal_id] = self._by_thread[goal.thread_id] = goal

    def drop(self, goal_id: str) -> None:
        """A goal is to be changed, or removed."""
        goal = self._by_id.pop(goal_id, None)
        if goal is not None:
            self._by_thread.pop(goal.thread_id, None)
