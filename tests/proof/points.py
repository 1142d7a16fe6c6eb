"""Named points inside the library, installed from outside, at each of which a process can be killed."""

from __future__ import annotations

import functools
import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, event

from goal_state import migrate
from goal_state.delivery import consumers, listeners
from goal_state.storage.sqlite import backend, executor, sources
from goal_state.storage.statements import Statement
from tests.statements import find_statements

__all__ = ["Points"]


class Points:
    """Counts how often this process passes each point, and kills it at the chosen one."""

    def __init__(self, chosen: str | None = None, hit: int = 1) -> None:
        """
        Args:
            chosen: the point to die at; None: nowhere.
            hit: when it is passed for this time.
        """
        self.passed: Counter[str] = Counter()
        self._chosen = chosen
        self._hit = hit
        self._lock = threading.Lock()

    def reach(self, point: str) -> None:
        """Notes that the process is at a point, which may be the last thing that it does."""
        with self._lock:
            self.passed[point] += 1
            if point == self._chosen and self.passed[point] == self._hit:
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Puts the points into the library, for the rest of this process."""
        self._around(backend, "create_file", "making the file")
        self._around(sources, "enable_wal", "turning on the log")
        self._around(migrate, "_run", "migrating")
        event.listen(Engine, "after_cursor_execute", self._after_migrating_statement)
        for end in ("begin", "commit", "rollback", "close"):
            self._around(executor.Executor, end, end.upper())
        names = {id(found): name for name, found in find_statements().items()}
        for run in ("run", "run_many"):
            self._after_statements(run, names)
        self._around(listeners.Listeners, "begin", "beginning to collect events")
        self._around(listeners.Listeners, "end", "queueing events for listeners")
        self._around(listeners.Listeners, "deliver", "the listeners")
        self._around(listeners.Subscription, "deliver", "one listener")
        self._around(consumers.Consumer, "_claim_lease", "claiming a lease")
        self._around(consumers.Consumer, "_advance_cursor", "moving the cursor")
        self._around(consumers.Consumer, "_renew_lease", "renewing leases")
        self._around(consumers.Consumer, "_release_lease", "releasing a lease")

    def _around(self, owner: Any, name: str, what: str) -> None:
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self.reach(f"before {what}")
            result = inner(*arguments, **keywords)
            self.reach(f"after {what}")
            return result

        setattr(owner, name, wrapped)

    def _after_statements(self, name: str, names: dict[int, str]) -> None:
        inner: Callable[..., Any] = getattr(executor.Executor, name)

        @functools.wraps(inner)
        def wrapped(
            self_: executor.Executor, statement: Statement, *values: Any
        ) -> sqlite3.Cursor | None:
            result = inner(self_, statement, *values)
            if self_.driver.in_transaction:
                self.reach(f"after {names.get(id(statement), 'another statement')}")
            return result

        setattr(executor.Executor, name, wrapped)

    def _after_migrating_statement(
        self, _connection: object, _cursor: object, text: str, *_: object
    ) -> None:
        self.reach(f"after migrating by {' '.join(text.split()[:3])}")
