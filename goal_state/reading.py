"""What a store reads: goals, usage, and the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from goal_state.domain.breakdown import Breakdown
from goal_state.domain.events import GoalEvent
from goal_state.domain.goals import Goal, GoalStatus, check_status, utc_from_ms
from goal_state.domain.holds import Headroom, HoldRecord
from goal_state.domain.usage import ThreadUsage, UsageBaseline
from goal_state.domain.values import check_amount, check_name, check_optional_name
from goal_state.storage.backend import Backend
from goal_state.storage.cursors import ConsumerCursor, ConsumerCursors
from goal_state.storage.repository import GoalRepository

if TYPE_CHECKING:
    from goal_state.storage.verification import Difference

__all__ = ["GoalReads"]

Result = TypeVar("Result")

_PAGE: Final = 500


class GoalReads:
    """The calls of a store that change nothing. They take no write lock, and wait for nobody."""

    _backend: Backend

    def get(self, thread_id: str) -> Goal | None:
        """The thread's goal, or None.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        return self._backend.read(lambda reader: reader.get(thread_id))

    def goals(self, status: GoalStatus | str | None = None) -> Iterator[Goal]:
        """All goals (of a status), in the order in which they were made, in bounded memory.

        They are read a page at a time; each page is one snapshot.

        Raises:
            InvalidValueError: there is no such status.
        """
        wanted = None if status is None else check_status(status)
        return self._paged(
            lambda reader, after: reader.goals_page(after=after, status=wanted, limit=_PAGE),
            "",
            lambda goal: goal.goal_id,
        )

    def count(self, status: GoalStatus | str | None = None) -> int:
        """How many goals there are (of a status).

        Raises:
            InvalidValueError: there is no such status.
        """
        return self._backend.read(lambda reader: reader.count(status))

    def usage(self, thread_id: str) -> ThreadUsage | None:
        """What the thread has used, all its counts together, and the turn that reported last; None
        if none was recorded.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        return self._backend.read(lambda reader: reader.usage(thread_id))

    def baseline(self, thread_id: str, *, count_id: str | None = None) -> UsageBaseline | None:
        """From where the thread's next total is charged, whose that is, and how often its count has begun
        anew; None if no total of that count was recorded.

        Args:
            thread_id: the conversation.
            count_id: which of its counts; by default the one without a name.

        Raises:
            InvalidValueError: the thread id or the count id is out of its bounds.
        """
        return self._backend.read(lambda reader: reader.baseline(thread_id, count_id))

    def children(self, thread_id: str) -> list[Goal]:
        """The goals that were made under the thread's goal of now, in the order in which they were made.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        return self._backend.read(lambda reader: reader.children(thread_id))

    def headroom(self, thread_id: str) -> Headroom | None:
        """What the thread's goal may still use: of each kind of budget the tightest, its own or one above it,
        with holds taken off; None where the thread has no goal.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        return self._backend.read(lambda reader: reader.headroom(thread_id))

    def holds(self, thread_id: str | None = None) -> list[HoldRecord]:
        """The holds (of a thread) that have not ended, in the order in which they were made.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        if thread_id is None:
            return self._backend.read(lambda reader: list(reader.all_holds()))
        return self._backend.read(lambda reader: reader.holds(thread_id))

    def breakdown(self, thread_id: str, by: str = "child") -> Breakdown | None:
        """What the usage of the thread's goal is made up of; None where the thread has no goal.

        Args:
            thread_id: the conversation.
            by: `"child"` (the goal's own part, and that of each goal under it with all below), `"model"`,
                `"turn"`, or the name of a tag. Charges that name none are a part without a name.

        Raises:
            InvalidValueError: an argument is out of its bounds.
        """
        return self._backend.read(lambda reader: reader.breakdown(thread_id, by))

    def next_resume_at(self) -> datetime | None:
        """When the next provider's limit ends, in UTC, so that `resume_due` is worth a call; None where no
        goal waits for one.
        """
        at_ms = self._backend.read(lambda reader: reader.next_resume_at_ms())
        return None if at_ms is None else utc_from_ms(at_ms)

    def events(
        self,
        *,
        after: int = 0,
        thread_id: str | None = None,
        goal_id: str | None = None,
        limit: int | None = None,
    ) -> Iterator[GoalEvent]:
        """The log in order, in bounded memory.

        Args:
            after: begin behind this position.
            thread_id: only events of this thread.
            goal_id: only events of this goal.
            limit: so many at the most.

        Raises:
            InvalidValueError: an argument is out of its bounds.
        """
        after = check_amount("after", after)
        thread_id = check_optional_name("thread_id", thread_id)
        goal_id = check_optional_name("goal_id", goal_id)
        left = None if limit is None else check_amount("limit", limit)

        def page(reader: GoalRepository, behind: int) -> list[GoalEvent]:
            if goal_id is not None:
                return reader.log.page_of_goal(goal_id, behind, _PAGE)
            if thread_id is not None:
                return reader.log.page_of_thread(thread_id, behind, _PAGE)
            return reader.log.page(behind, _PAGE)

        events = self._paged(page, after, lambda event: event.position)
        if goal_id is not None and thread_id is not None:
            events = (event for event in events if event.thread_id == thread_id)
        return (
            events
            if left is None
            else (event for event, _ in zip(events, range(left), strict=False))
        )

    def verify(self, thread_id: str | None = None) -> list[Difference]:
        """Recomputes every goal (or one thread's) from the log; an empty list means that all agree.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        from goal_state.storage.verification import verify

        thread_id = check_optional_name("thread_id", thread_id)
        return self._backend.read(lambda reader: list(verify(reader, thread_id)))

    def read_events(self, after: int, limit: int) -> list[GoalEvent]:
        """One page of the log: up to `limit` events behind a position.

        Raises:
            InvalidValueError: an argument is out of its bounds.
        """
        after, limit = check_amount("after", after), check_amount("limit", limit)
        return self._backend.read(lambda reader: reader.log.settled_page(after, limit))

    def read_cursor(self, name: str) -> ConsumerCursor | None:
        """How far the durable consumers of a name have got and who holds it; None if there was none ever.

        Raises:
            InvalidValueError: the name is out of its bounds.
        """
        name = check_name("name", name)
        return self._backend.read(lambda reader: ConsumerCursors(reader.executor).get(name))

    def last_position(self) -> int:
        """The position of the newest event, 0 in an empty log."""
        return self._backend.read(lambda reader: reader.log.last_position())

    def _paged(
        self,
        page: Callable[[GoalRepository, Any], list[Result]],
        behind: Any,
        key: Callable[[Result], Any],
    ) -> Iterator[Result]:
        """The rows of page after page, each read behind the key of the last row before it."""
        self._backend.check_open()

        def rows(behind: Any) -> Iterator[Result]:
            while True:
                batch = self._backend.read(lambda reader, behind=behind: page(reader, behind))
                yield from batch
                if len(batch) < _PAGE:
                    return
                behind = key(batch[-1])

        return rows(behind)
