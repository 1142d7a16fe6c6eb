"""What a rollout tells: its session, its turns, and its usage, from the end backwards where that suffices."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Final, NamedTuple

from goal_state.codex.rollout.lines import (
    MAX_HELD_BYTES,
    MissingZstandardError,
    NotARolloutError,
    OpenRollout,
    RawLine,
    SkipLedger,
    SkippedLines,
    open_rollout,
    parse_object,
    rollout_place,
    why_broken,
)
from goal_state.codex.rollout.sayings import (
    ErrorRaised,
    HistoryBase,
    Saying,
    SessionMeta,
    TurnBegan,
    TurnEnded,
    TurnNamed,
    TurnsDropped,
    TurnStatus,
    UsageStated,
    may_say_something,
    ordinal_of,
    said,
    session_meta,
)
from goal_state.domain.usage import TokenUsageInfo
from goal_state.errors import InvalidValueError

__all__ = ["RolloutReader", "RolloutTail", "RolloutUsage", "Turn"]

_TURN_SEARCH_BYTES: Final = 64 * 2**20
"""How far before the usage its turns are looked for: more than a turn has, read in a tenth of a second."""

_MAX_TURN_LINES: Final = 4096
"""How many lines about turns are kept while a compressed file, which has no end to begin at, goes by."""

_MAX_TURNS: Final = 100_000
"""How many turns `turns` keeps, the latest: a name takes a hundred bytes, and no thread lives that long."""

_MAX_DROPPED_TURNS: Final = 4096
"""How many turns that were rolled back are remembered by name; the lines of one lie close together."""

_MAX_ANCESTORS: Final = 100
"""How many forks upwards a usage is looked for; each may cost the reading of a file."""

FindParent = Callable[[str], "str | os.PathLike[str] | None"]


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn and how far it had got by the end of the file."""

    turn_id: str
    status: TurnStatus


@dataclass(frozen=True, slots=True)
class RolloutUsage:
    """The usage after one model response.

    Attributes:
        info: the thread's usage so far, cumulative, and that of the response.
        turn_id: the turn that it belongs to, or None if no line before it names one.
    """

    info: TokenUsageInfo
    turn_id: str | None


@dataclass(frozen=True, slots=True)
class RolloutTail:
    """What the end of a rollout tells about the usage to be restored.

    Attributes:
        info: the newest usage, or None if there is none (then no notification is due).
        usage_turn_id: the turn that this usage belongs to, or None if no line before it names one.
        last_turn_id: the turn that the last line about turns is about, ended or not; None if none is.
        ended_turn_id: the turn that ended last (completed, interrupted or failed), or None.
    """

    info: TokenUsageInfo | None = None
    usage_turn_id: str | None = None
    last_turn_id: str | None = None
    ended_turn_id: str | None = None

    @property
    def turn_id(self) -> str:
        """The turn to name when the usage is restored: the latest one not in progress, else the last,
        else `""`. It is for a thread that may be running; where it is known that none of its turns can
        be under way any more, the latest one not in progress is `last_turn_id`.
        """
        return self.ended_turn_id or self.last_turn_id or ""


class RolloutReader:
    """Reads one rollout, plain or compressed (gzip; Zstandard where the package `zstandard` is there).

    Nothing is kept open between calls, and each call reads the file as it is then. Lines that cannot be
    used are skipped and counted in `skipped`: not JSON, not UTF-8, torn, too long, a usage that cannot be
    one. Types and fields that are not known are no fault and are not counted.

    Every method that reads raises:
        NotARolloutError: the path leads to something else (other contents, a directory, a symlink loop).
        MissingZstandardError: the file needs the package `zstandard`.
        OSError: the file is missing or cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = rollout_place(path)
        self._meta: SessionMeta | None = None
        self._ledger = SkipLedger()

    @property
    def skipped(self) -> SkippedLines:
        """What the latest call of `turns`, `usages` or `restored` has skipped so far.

        `restored` sees no more than it reads: the tail, where a line that is about neither turns nor usage
        is not parsed, so that only its ends and its encoding can give it away.
        """
        return self._ledger.snapshot()

    @property
    def meta(self) -> SessionMeta | None:
        """The session that the first lines describe; None if they do not (yet). Read once."""
        if self._meta is None:
            with open_rollout(self.path) as rollout:
                self._meta = _meta_of(rollout)
        return self._meta

    def turns(self) -> list[Turn]:
        """Every turn that this file names, in the order in which they began. Reads the whole file.

        A turn that began and neither completed, failed nor was interrupted is in progress, also when its
        program is long gone. A fork's file begins where its parent's was left: earlier turns are there.
        Of more than 100,000 turns the latest are kept.
        """
        self._ledger = SkipLedger()
        turns = _Turns()
        with open_rollout(self.path) as rollout:
            for offset, saying in _all_sayings(rollout, self._ledger):
                turns.take(saying)
                if len(turns.status_of) > _MAX_TURNS:
                    turns.forget_first()
                    self._ledger.add(self.path, offset, f"more than {_MAX_TURNS} turns")
        return [Turn(turn_id, status) for turn_id, status in turns.status_of.items()]

    def usages(self) -> Iterator[RolloutUsage]:
        """Every usage that is stated, in the order of the file. Reads on as it is asked for more.

        A `token_usage_record` and the `token_count` that repeats it give one usage.
        """
        self._ledger = ledger = SkipLedger()
        context = _UsageContext()
        pending: RolloutUsage | None = (
            None  # a record, until it is known whether a count repeats it
        )
        with open_rollout(self.path) as rollout:
            for _, saying in _all_sayings(rollout, ledger):
                context.take(saying)
                if not isinstance(saying, UsageStated):
                    continue
                usage = context.usage(saying)
                if pending is not None and (
                    saying.is_record or pending.info.total != usage.info.total
                ):
                    yield pending
                pending = usage if saying.is_record else None
                if not saying.is_record:
                    yield usage
        if pending is not None:
            yield pending

    def restored(self, find_parent: FindParent | None = None) -> RolloutTail:
        """The newest usage and the turns to go with it.

        Reads backwards from the end and stops as soon as both are known: a gigabyte of history costs what
        its tail costs. Once the usage is known, its turns are looked for in the 64 MiB before it; a
        compressed file is read from its beginning, of its turns the latest 4096 lines are regarded. What
        is read has bounds (`MAX_SEARCHED_BYTES`, `MAX_READ_BYTES`, `MAX_LINES`, a hundred forks); where one
        ends the search, `skipped` says so.

        Args:
            find_parent: gives the rollout of a thread by its id, or None; `find_rollout` of the data
                directory will do. With it, a fork that has no usage (or turn) of its own has its
                parent's up to where it was forked, and so on upwards, each thread once. A parent that
                is missing or unreadable has none; the latter is noted in `skipped`.
        """
        self._ledger = SkipLedger()
        tail = _TailInTheMaking()
        with open_rollout(self.path) as rollout:
            _read_tail(rollout, None, tail, self._ledger)
            if find_parent is None or tail.is_known:
                return tail.result()
            meta = _meta_of(rollout)
        self._read_ancestors(meta, find_parent, tail)
        return tail.result()

    def _read_ancestors(
        self, meta: SessionMeta | None, find_parent: FindParent, tail: _TailInTheMaking
    ) -> None:
        seen: set[str] = set()
        while meta is not None and meta.history_base is not None and not tail.is_known:
            seen.add(meta.thread_id)
            base = meta.history_base
            path = None if base.thread_id in seen else find_parent(base.thread_id)
            if path is None:
                return
            if len(seen) > _MAX_ANCESTORS:
                self._ledger.add(Path(path), 0, f"more than {_MAX_ANCESTORS} forks away")
                return
            try:
                with open_rollout(path) as rollout:
                    meta = _meta_of(rollout)
                    if meta is None or meta.thread_id != base.thread_id:
                        self._ledger.add(
                            Path(path), 0, "not the rollout of the thread it was forked from"
                        )
                        return
                    _read_tail(rollout, base, tail, self._ledger)
            except (NotARolloutError, MissingZstandardError, OSError) as error:
                self._ledger.add(Path(path), 0, f"cannot be read: {type(error).__name__}")
                return


class _Located(NamedTuple):
    offset: int
    saying: Saying


class _Turns:
    """The turns as the lines, read forwards, tell them."""

    def __init__(self) -> None:
        self.status_of: dict[str, TurnStatus] = {}
        self._current: str | None = None

    def take(self, saying: Saying) -> None:
        match saying:
            case TurnBegan(turn_id) | TurnNamed(turn_id):
                self._current = turn_id
                if turn_id is not None:
                    self.status_of.setdefault(turn_id, TurnStatus.IN_PROGRESS)
            case TurnEnded(turn_id, status):
                self._end(turn_id or self._current, status)
            case ErrorRaised(turn_id):
                # The turn stays current: its task_complete, which changes nothing, is still to come.
                self._set(turn_id or self._current, TurnStatus.FAILED)
            case TurnsDropped(count):
                for _ in range(min(count, len(self.status_of))):
                    self.status_of.popitem()
                self._current = None
            case UsageStated():
                pass

    def forget_first(self) -> None:
        """Leaves out the turn that began first."""
        del self.status_of[next(iter(self.status_of))]

    def _end(self, turn_id: str | None, status: TurnStatus) -> None:
        self._set(turn_id, status)
        if turn_id == self._current:
            self._current = None

    def _set(self, turn_id: str | None, status: TurnStatus) -> None:
        if turn_id is None:
            return
        before = self.status_of.setdefault(turn_id, TurnStatus.IN_PROGRESS)
        if before is TurnStatus.IN_PROGRESS or status is TurnStatus.INTERRUPTED:
            self.status_of[turn_id] = status


class _UsageContext:
    """What a usage line leaves unsaid, from the lines before it: its turn, the size of the context."""

    def __init__(self) -> None:
        self._turn_id: str | None = None
        self._window: int | None = None

    def take(self, saying: Saying) -> None:
        match saying:
            case TurnBegan(turn_id, window):
                self._turn_id = turn_id
                self._window = window
            case TurnNamed(turn_id):
                self._turn_id = turn_id
            case UsageStated(info, turn_id, is_record):
                self._turn_id = turn_id or self._turn_id
                if not is_record:
                    self._window = info.model_context_window
            case TurnEnded(turn_id):
                self._turn_id = turn_id or self._turn_id
            case ErrorRaised() | TurnsDropped():
                pass

    def usage(self, stated: UsageStated) -> RolloutUsage:
        """The usage, after `take` of the same line."""
        window = self._window if stated.is_record else stated.info.model_context_window
        return RolloutUsage(replace(stated.info, model_context_window=window), self._turn_id)


@dataclass(slots=True)
class _TailInTheMaking:
    """A `RolloutTail` as the lines, read backwards, tell it: the first to speak of a thing is right."""

    info: TokenUsageInfo | None = None
    usage_turn_id: str | None = None
    last_turn_id: str | None = None
    ended_turn_id: str | None = None
    needs_usage_turn: bool = True
    needs_window: bool = False
    ends_a_turn: bool = False  # a line that ended the turn under way without naming it
    dropping: int = 0  # how many turns before here were rolled back
    dropped: dict[str, None] = field(default_factory=dict[str, None])

    @property
    def is_known(self) -> bool:
        return (
            self.info is not None
            and self.ended_turn_id is not None
            and not self.needs_usage_turn
            and not self.needs_window
        )

    def result(self) -> RolloutTail:
        return RolloutTail(self.info, self.usage_turn_id, self.last_turn_id, self.ended_turn_id)

    def take(self, saying: Saying) -> None:
        match saying:
            case UsageStated():
                self._take_usage(saying)
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

    def _take_usage(self, stated: UsageStated) -> None:
        if self.info is None:
            self.info = stated.info
            self.needs_window = stated.is_record
        elif self.needs_window and not stated.is_record:
            self._take_window(stated.info.model_context_window)
        self._belongs_to(stated.turn_id)

    def _take_window(self, window: int | None) -> None:
        self.needs_window = False
        if self.info is not None:
            self.info = replace(self.info, model_context_window=window)

    def _belongs_to(self, turn_id: str | None, *, certain: bool = False) -> None:
        """The nearest turn named before the usage owns it; a turn without an id leaves it without one."""
        if self.info is not None and self.needs_usage_turn and (turn_id is not None or certain):
            self.usage_turn_id = turn_id
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


def _read_tail(
    rollout: OpenRollout, base: HistoryBase | None, tail: _TailInTheMaking, ledger: SkipLedger
) -> None:
    """Let the tail take the lines of a file (of its part that `base` delimits), the last one first."""
    floor = 0
    if rollout.compressed:
        sayings: Iterable[_Located] = reversed(_kept_sayings(rollout, base, ledger))
    else:
        # Lines that say nothing count as well: the floor is for the lines, not for what they say.
        lines = takewhile(lambda line: line.offset >= floor, _lines_before(rollout, base, ledger))
        sayings = _sayings(lines, rollout.path, base, ledger)
    for offset, saying in sayings:
        was_unknown = tail.info is None
        tail.take(saying)
        if tail.is_known:
            return
        if was_unknown and tail.info is not None:
            floor = offset - _TURN_SEARCH_BYTES


def _kept_sayings(
    rollout: OpenRollout, base: HistoryBase | None, ledger: SkipLedger
) -> list[_Located]:
    """Of all lines the newest usage, completed from its context, and the latest ones about turns."""
    context = _UsageContext()
    turn_lines: deque[_Located] = deque(maxlen=_MAX_TURN_LINES)
    newest: _Located | None = None
    for located in _sayings(rollout.forwards(ledger), rollout.path, base, ledger):
        context.take(located.saying)
        if isinstance(located.saying, UsageStated):
            usage = context.usage(located.saying)
            newest = _Located(
                located.offset, UsageStated(usage.info, usage.turn_id, is_record=False)
            )
        else:
            turn_lines.append(located)
    kept = [*turn_lines] if newest is None else [*turn_lines, newest]
    return sorted(kept, key=lambda one: one.offset)


def _lines_before(
    rollout: OpenRollout, base: HistoryBase | None, ledger: SkipLedger
) -> Iterator[RawLine]:
    """The lines, backwards, from where `base` ends if its byte offset holds good, else from the end.

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
                return rollout.backwards(ledger, offset)
    return rollout.backwards(ledger)


def _all_sayings(rollout: OpenRollout, ledger: SkipLedger) -> Iterator[_Located]:
    return _sayings(rollout.forwards(ledger), rollout.path, None, ledger, thorough=True)


def _sayings(
    lines: Iterator[RawLine],
    path: Path,
    base: HistoryBase | None,
    ledger: SkipLedger,
    *,
    thorough: bool = False,
) -> Iterator[_Located]:
    """What the lines say, in their order; within what `base` delimits. Thorough: every line is parsed."""
    for offset, content, ended in lines:
        if content is None:
            ledger.add(path, offset, f"longer than {MAX_HELD_BYTES} bytes")
            continue
        matters = may_say_something(content)
        try:
            if not matters and not thorough:
                reason = why_broken(content)
                if reason is not None:
                    ledger.add(path, offset, reason if ended else f"torn: {reason}")
                continue
            line = parse_object(content)
            saying = said(line)
        except InvalidValueError as error:
            ledger.add(path, offset, f"not a usable value: {error.field}")
            continue
        except ValueError as error:
            ledger.add(path, offset, str(error) if ended else f"torn: {error}")
            continue
        if saying is not None and (base is None or _is_within(base, ordinal_of(line), offset)):
            yield _Located(offset, saying)


def _is_within(base: HistoryBase, ordinal: int | None, offset: int) -> bool:
    if ordinal is not None:
        return ordinal < base.end_ordinal_exclusive
    return base.end_byte_offset is not None and offset < base.end_byte_offset


def _meta_of(rollout: OpenRollout) -> SessionMeta | None:
    """From the first lines alone. The first session is the file's own: older forks copied their parent's."""
    for _, content, _ in rollout.head():
        if content is None or b'"session_meta"' not in content:
            continue
        try:
            meta = session_meta(parse_object(content))
        except ValueError:
            continue
        if meta is not None:
            return meta
    return None
