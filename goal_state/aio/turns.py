"""Turns: one at a time, on whatever event loop or thread; first come, first served."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

__all__ = ["Turns"]


class Turns:
    """A lock for coroutines of several loops in several threads. A block of `async with` is a turn."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked child: those who have a turn, or wait for one, stay with the parent."""
        self._lock = threading.Lock()
        self._is_taken = False
        self._waiting: deque[Callable[[], bool]] = deque()

    def ask(self, begin: Callable[[], bool]) -> None:
        """Asks for a turn.

        Args:
            begin: called when it has come, on any thread; False where nobody is there any more to have it.
        """
        with self._lock:
            self._waiting.append(begin)
            if self._is_taken:
                return
            self._is_taken = True
        self.give_up()

    def give_up(self) -> None:
        """Ends a turn, on any thread: the next in the queue has it."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_taken = False
                    return
                begin = self._waiting.popleft()
            if begin():
                return

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        # Whoever takes it out decides: the turn was begun, or it is not wanted any more.
        open_questions = [turn]

        def grant() -> None:
            if not turn.done():
                turn.set_result(None)

        def begin() -> bool:
            try:
                open_questions.pop()
                loop.call_soon_threadsafe(grant)
            except (IndexError, RuntimeError):  # the task was cancelled, or its loop is closed
                return False
            return True

        self.ask(begin)
        try:
            await turn
        except BaseException:
            try:
                open_questions.pop()
            except IndexError:
                self.give_up()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.give_up()
