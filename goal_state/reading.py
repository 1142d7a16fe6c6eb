"""What a store reads: goals, usage, and the log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from goal_state.domain.breakdown import Breakdown
from goal_state.domain.events import GoalEvent
from goal_state.domain.goals import Goal, GoalStatus, check_status, utc_from_ms
from goal_state.domain.holds import Headroom, HoldRecord
from goal_state.domain.usage import ThreadUsage, UsageBaseline
from goal_state.domain.values import check_amount, check_name, check_optional_name
from goal_state.operations.calls import call, iteration
from goal_state.storage.cursors import ConsumerCursor, ConsumerCursors
from goal_state.storage.repository import GoalRepository

if TYPE_CHECKING:
    from goal_state.storage.verification import Difference

__all__ = ["GoalReads", "Pages"]

Result = TypeVar("Result")

_PAGE: Final = 500


class Pages(Generic[Result]):
    """Reads a long result page by page, each behind the key of the last row before it."""

    def __init__(
        self,
        page: Callable[[GoalRepository, Any], list[Result]],
        behind: Any,
        key: Callable[[Result], Any],
        *,
        matches: Callable[[Result], bool] | None = None,
        left: int | None = None,
    ) -> None:
        """
        Args:
            page: up to `_PAGE` rows behind a key.
            behind: the key to begin behind.
            key: that of a row.
            matches: which rows are wanted; by default all.
            left: how many of them at the most.
        """
        self._page = page
        self._behind = behind
        self._key = key
        self._matches = matches
        self._left = left
        self.is_over: bool = left == 0
        """Whether there is no further page."""

    def next(self, reader: GoalRepository) -> list[Result]:
        """What is wanted of the next page."""
        rows = self._page(reader, self._behind)
        self.is_over = len(rows) < _PAGE
        if rows:
            self._behind = self._key(rows[-1])
        if self._matches is not None:
            rows = [row for row in rows if self._matches(row)]
        if self._left is not None:
            del rows[self._left :]
            self._left -= len(rows)
            self.is_over |= self._left == 0
        return rows


class GoalReads(ABC):
    """The calls of a store that change nothing. They take no write lock, and wait for nobody."""

    @call
    def get(self, thread_id: str) -> Goal | None:
        """The thread's goal, or None.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        return self.read(lambda reader: reader.get(thread_id))

    @iteration
    def goals(self, status: GoalStatus | str | None = None) -> Iterator[Goal]:
        """All goals (of a status), in the order in which they were made, in bounded memory.

        They are read a page at a time; each page is one snapshot.

        Raises:
            InvalidValueError: there is no such status.
        """
        wanted = None if status is None else check_status(status)
        return self._paged(
            Pages(
                lambda reader, after: reader.goals_page(after=after, status=wanted, limit=_PAGE),
                "",
                lambda goal: goal.goal_id,
            )
        )

    @call
    def count(self, status: GoalStatus | str | None = None) -> int:
        """How many goals there are (of a status).

        Raises:
            InvalidValueError: there is no such status.
        """
        return self.read(lambda reader: reader.count(status))

    @call
    def usage(self, thread_id: str) -> ThreadUsage | None:
        """What the thread has used, all its counts together, and the turn that reported last; None
        if none was recorded.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        return self.read(lambda reader: reader.usage(thread_id))

    @call
    def baseline(self, thread_id: str, *, count_id: str | None = None) -> UsageBaseline | None:
        """From where the thread's next total is charged, whose that is, and how often its count has begun
        anew; None if no total of that count was recorded.

        Args:
            thread_id: the conversation.
            count_id: which of its counts; by default the one without a name.

        Raises:
            InvalidValueError: the thread id or the count id is out of its bounds.
        """
        return self.read(lambda reader: reader.baseline(thread_id, count_id))

    @call
    def children(self, thread_id: str) -> list[Goal]:
        """The goals that were made under the thread's goal of now, in the order in which they were made.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        return self.read(lambda reader: reader.children(thread_id))

    @call
    def headroom(self, thread_id: str) -> Headroom | None:
        """What the thread's goal may still use: of each kind of budget the tightest, its own or one above it,
        with holds taken off; None where the thread has no goal.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        return self.read(lambda reader: reader.headroom(thread_id))

    @call
    def holds(self, thread_id: str | None = None) -> list[HoldRecord]:
        """The holds (of a thread) that have not ended, in the order in which they were made.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        if thread_id is None:
            return self.read(lambda reader: list(reader.all_holds()))
        return self.read(lambda reader: reader.holds(thread_id))

    @call
    def breakdown(self, thread_id: str, by: str = "child") -> Breakdown | None:
        """What the usage of the thread's goal is made up of; None where the thread has no goal.

        Args:
            thread_id: the conversation.
            by: `"child"` (the goal's own part, and that of each goal under it with all below), `"model"`,
                `"turn"`, or the name of a tag. Charges that name none are a part without a name.

        Raises:
            InvalidValueError: an argument is out of its bounds.
        """
        return self.read(lambda reader: reader.breakdown(thread_id, by))

    @call
    def next_resume_at(self) -> datetime | None:
        """When the next provider's limit ends, in UTC, so that `resume_due` is worth a call; None where no
        goal waits for one.
        """

        def read(reader: GoalRepository) -> datetime | None:
            at_ms = reader.next_resume_at_ms()
            return None if at_ms is None else utc_from_ms(at_ms)

        return self.read(read)

    @iteration
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

        def matches(event: GoalEvent) -> bool:
            return goal_id is None or thread_id in (None, event.thread_id)

        return self._paged(
            Pages(page, after, lambda event: event.position, matches=matches, left=left)
        )

    @call
    def verify(self, thread_id: str | None = None) -> list[Difference]:
        """Recomputes every goal (or one thread's) from the log; an empty list means that all agree.

        Raises:
            InvalidValueError: the thread id is out of its bounds.
        """
        from goal_state.storage.verification import verify

        thread_id = check_optional_name("thread_id", thread_id)
        return self._read_at_length(lambda reader: list(verify(reader, thread_id)))

    @call
    def read_events(self, after: int, limit: int) -> list[GoalEvent]:
        """One page of the log: up to `limit` events behind a position.

        Raises:
            InvalidValueError: an argument is out of its bounds.
        """
        after, limit = check_amount("after", after), check_amount("limit", limit)
        return self.read(lambda reader: reader.log.settled_page(after, limit))

    @call
    def read_cursor(self, name: str) -> ConsumerCursor | None:
        """How far the durable consumers of a name have got and who holds it; None if there was none ever.

        Raises:
            InvalidValueError: the name is out of its bounds.
        """
        name = check_name("name", name)
        return self.read(lambda reader: ConsumerCursors(reader.executor).get(name))

    @call
    def last_position(self) -> int:
        """The position of the newest event, 0 in an empty log."""
        return self.read(lambda reader: reader.log.last_position())

    @abstractmethod
    def read(self, work: Callable[[GoalRepository], Result]) -> Result:
        """Runs work with a repository that no other thread uses meanwhile."""

    def _read_at_length(self, work: Callable[[GoalRepository], Result]) -> Result:
        """As `read`, for work that may take seconds."""
        return self.read(work)

    @abstractmethod
    def _paged(self, pages: Pages[Result]) -> Iterator[Result]:
        """The rows of page after page."""
