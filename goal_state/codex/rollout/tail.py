"""What the end of a rollout tells: its newest usage and the turns around it, read backwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from goal_state.codex.rollout.lines import OpenRollout, RawLine, SkipLedger, parse_object
from goal_state.codex.rollout.records import (
    ErrorRaised,
    HistoryBase,
    Record,
    TurnBegan,
    TurnEnded,
    TurnNamed,
    TurnsDropped,
    UsageStated,
    ordinal_of,
)
from goal_state.codex.rollout.scan import LocatedRecord, records_in
from goal_state.codex.rollout.turns import Turn, Turns
from goal_state.codex.rollout.usages import UsageContext
from goal_state.domain.usage import ThreadUsage

__all__ = ["RolloutTail", "TailBuilder", "read_tail"]

_TURN_SEARCH_BYTES: Final = 64 * 2**20
"""How far before the usage its turns are looked for, parents' files included: more than a turn has, read in
some tenths of a second."""

_TURN_LIST_BYTES: Final = 16 * 2**20
"""How far of that every turn is listed: more than most threads have, read in a tenth of a second."""

_MAX_TURN_LINES: Final = 4096
"""How many lines about turns are kept while a compressed file, which can only be read forwards, is read."""

_MAX_TURN_RECORDS: Final = 100_000
"""How many records about turns are kept to list the turns; a turn has three or four."""

_MAX_DROPPED_TURNS: Final = 4096
"""How many turns that were rolled back are remembered by name; the lines of one lie close together."""


@dataclass(frozen=True, slots=True)
class RolloutTail:
    """What the end of a rollout tells about the usage to be restored.

    Attributes:
        usage: the newest usage, with the turn that it belongs to if a line before it names one; None if
            there is none (then no notification is due).
        last_turn_id: the turn that the last line about turns is about, ended or not; None if none is.
        ended_turn_id: the turn that ended last (completed, interrupted or failed), or None.
        turns: the thread's turns in the order in which they began, where they were asked for.
    """

    usage: ThreadUsage | None = None
    last_turn_id: str | None = None
    ended_turn_id: str | None = None
    turns: tuple[Turn, ...] = ()

    @property
    def turn_id(self) -> str:
        """The turn to name when the usage is restored: the latest one not in progress, else the last,
        else `""`. It is for a thread that may be running; where it is known that none of its turns can
        be under way any more, the latest one not in progress is `last_turn_id`.
        """
        return self.ended_turn_id or self.last_turn_id or ""


@dataclass(slots=True)
class TailBuilder:
    """Makes a `RolloutTail` of records that are read backwards: of two that disagree the first is right.

    Attributes:
        lists_turns: whether every turn is wanted, not only those that go with the usage.
    """

    lists_turns: bool = False
    usage: ThreadUsage | None = None
    last_turn_id: str | None = None
    ended_turn_id: str | None = None
    needs_usage_turn: bool = True
    needs_window: bool = False
    ends_a_turn: bool = False  # a line that ended the turn under way without naming it
    dropping: int = 0  # how many turns before here were rolled back
    dropped: dict[str, None] = field(default_factory=dict[str, None])
    turn_records: list[Record] = field(default_factory=list[Record])  # the last one first
    searched_to: int = 0  # in the file that is being read
    search_bytes_left: int = field(default_factory=lambda: _TURN_SEARCH_BYTES)

    @property
    def is_done(self) -> bool:
        """Nothing further back is wanted."""
        lists_more = (
            self.lists_turns
            and len(self.turn_records) < _MAX_TURN_RECORDS
            and self.search_bytes_left >= self._bytes_not_for_listing
        )
        return self.search_bytes_left < 0 or (self._is_known and not lists_more)

    @property
    def _is_known(self) -> bool:
        """The usage is known, and the turns that go with it."""
        return (
            self.usage is not None
            and self.ended_turn_id is not None
            and not self.needs_usage_turn
            and not self.needs_window
        )

    @property
    def _bytes_not_for_listing(self) -> int:
        """How many bytes of the search are left alone where all but the list of turns is known."""
        return max(0, _TURN_SEARCH_BYTES - _TURN_LIST_BYTES) if self._is_known else 0

    def may_search(self, position: int) -> bool:
        """Whether the search goes back to there in the file: as far as it takes until the usage is known,
        from there on as far as turns are looked for. Where it does not, it is over.
        """
        bytes_left = self.search_bytes_left - self._bytes_not_for_listing
        if self.usage is not None and self.searched_to - position > bytes_left:
            self.search_bytes_left = -1
        return self.search_bytes_left >= 0

    def search_to(self, position: int) -> None:
        """The file has been searched back to there."""
        if self.usage is not None:
            self.search_bytes_left -= self.searched_to - position
        self.searched_to = position

    def result(self) -> RolloutTail:
        """What the records have told so far."""
        turns = Turns()
        for record in reversed(self.turn_records):
            turns.take(record)
        return RolloutTail(
            self.usage,
            self.last_turn_id,
            self.ended_turn_id,
            tuple(turns.listed()),
        )

    def take(self, record: Record) -> None:
        """The next record, further back than all before."""
        if self.lists_turns:
            self._list(record)
        match record:
            case UsageStated():
                self._take_usage(record)
            case TurnBegan(turn_id, window):
                if self.needs_window:
                    self._take_window(window)
                self._belongs_to(turn_id, certain=True)
                self._take_opening(turn_id)
            case TurnNamed(turn_id):
                self._belongs_to(turn_id)
                self._take_opening(turn_id)
            case TurnEnded(turn_id):
                self._belongs_to(turn_id)
                self._take_end(turn_id)
            case ErrorRaised(turn_id):
                self._take_end(turn_id)
            case TurnsDropped(count):
                self.dropping += count
                self.ends_a_turn = False

    def _list(self, record: Record) -> None:
        # A long turn is named again before each response: once is enough.
        is_repeated = isinstance(record, TurnNamed) and self.turn_records[-1:] == [record]
        is_about_turns = not isinstance(record, UsageStated)
        if is_about_turns and not is_repeated and len(self.turn_records) < _MAX_TURN_RECORDS:
            self.turn_records.append(record)

    def _take_usage(self, stated: UsageStated) -> None:
        if self.usage is None:
            self.usage = stated.usage
            self.needs_window = stated.is_usage_record
        elif self.needs_window and not stated.is_usage_record:
            self._take_window(stated.usage.model_context_window)
        self._belongs_to(stated.usage.turn_id)

    def _take_window(self, window: int | None) -> None:
        self.needs_window = False
        if self.usage is not None:
            self.usage = replace(self.usage, model_context_window=window)

    def _belongs_to(self, turn_id: str | None, *, certain: bool = False) -> None:
        """The nearest turn named before the usage owns it; a turn without an id leaves it without one."""
        if self.usage is not None and self.needs_usage_turn and (turn_id is not None or certain):
            self.usage = self.usage.of_turn(turn_id)
            self.needs_usage_turn = False

    def _take_opening(self, turn_id: str | None) -> None:
        ended, self.ends_a_turn = self.ends_a_turn, False
        if turn_id is None or self._is_dropped(turn_id):
            return
        self.last_turn_id = self.last_turn_id or turn_id
        if ended:
            self.ended_turn_id = self.ended_turn_id or turn_id

    def _take_end(self, turn_id: str | None) -> None:
        self.ends_a_turn = turn_id is None
        if turn_id is None or self._is_dropped(turn_id):
            return
        self.last_turn_id = self.last_turn_id or turn_id
        self.ended_turn_id = self.ended_turn_id or turn_id

    def _is_dropped(self, turn_id: str) -> bool:
        if turn_id in self.dropped:
            return True
        if self.dropping == 0:
            return False
        self.dropping -= 1
        self.dropped[turn_id] = None
        if len(self.dropped) > _MAX_DROPPED_TURNS:
            del self.dropped[next(iter(self.dropped))]
        return True


def read_tail(
    rollout: OpenRollout, base: HistoryBase | None, tail: TailBuilder, ledger: SkipLedger
) -> None:
    """Let the tail take the records of a file (of its part that `base` delimits), the last one first."""
    if rollout.compressed:
        records: Iterable[LocatedRecord] = reversed(_kept_records(rollout, base, ledger))
    else:
        end = _end_of(rollout, base)
        lines = _searched_lines(rollout, end, tail, ledger)
        records = records_in(lines, rollout.path, base, ledger)
    for _, record in records:
        tail.take(record)
        if tail.is_done:
            return


def _searched_lines(
    rollout: OpenRollout, end: int, tail: TailBuilder, ledger: SkipLedger
) -> Iterator[RawLine]:
    """The lines, backwards from `end`, as far as the search goes. Lines without a record count as well."""
    tail.searched_to = end
    for line in rollout.backwards(ledger, end, tail.may_search):
        if not tail.may_search(line.offset):
            return
        tail.search_to(line.offset)
        yield line


def _kept_records(
    rollout: OpenRollout, base: HistoryBase | None, ledger: SkipLedger
) -> list[LocatedRecord]:
    """Of all lines the newest usage, completed from its context, and the latest ones about turns."""
    context = UsageContext()
    turn_lines: deque[LocatedRecord] = deque(maxlen=_MAX_TURN_LINES)
    newest: LocatedRecord | None = None
    for located in records_in(rollout.forwards(ledger), rollout.path, base, ledger):
        context.take(located.record)
        if isinstance(located.record, UsageStated):
            usage = context.usage(located.record)
            newest = LocatedRecord(located.offset, UsageStated(usage, is_usage_record=False))
        else:
            turn_lines.append(located)
    kept = [*turn_lines] if newest is None else [*turn_lines, newest]
    return sorted(kept, key=lambda one: one.offset)


def _end_of(rollout: OpenRollout, base: HistoryBase | None) -> int:
    """Where the part that `base` delimits ends, in bytes, if its byte offset holds good; else the file's end.

    It does not where texts were taken out of the file since; the ordinals then decide alone.
    """
    offset = None if base is None else base.end_byte_offset
    if base is not None and offset is not None and 0 < offset <= rollout.size:
        line = next(rollout.backwards(SkipLedger(), offset), None)
        if line is not None and line.ended and line.content is not None:
            try:
                last = ordinal_of(parse_object(line.content))
            except ValueError:
                last = None
            if last == base.end_ordinal_exclusive - 1:
                return offset
    return rollout.size
