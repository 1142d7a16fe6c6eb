"""The expected content of the database, derived from what was acknowledged and when, without the library."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.proof.chaos.charges import BUDGETS, charge_of, number_of

__all__ = ["Found", "Kept", "Model", "read"]

_EVENTS: Final = (
    "SELECT position, event_id, kind, thread_id, goal_id, turn_id, tokens_delta, time_delta_ms,"
    " idempotency_key, occurred_at_ms FROM goal_state_events ORDER BY position"
)


class Found(Exception):  # noqa: N818
    """The machine has found a fault.

    Attributes:
        steps: after so many of them.
    """

    steps = 0


@dataclass(slots=True)
class Kept:
    """What a database file holds."""

    events: dict[int, tuple[Any, ...]]
    goals: dict[str, tuple[str, int, int]]
    """By thread: the goal's id, its tokens and milliseconds."""
    cursors: dict[str, int]
    host_rows: dict[int, int]
    charges: dict[int, tuple[Any, ...]] = field(default_factory=dict[int, tuple[Any, ...]])
    """The events of the machine's charges, by the number of the charge."""


def read(path: Path) -> Kept:
    """Reads a file, after SQLite has looked through it."""
    try:
        with closing(sqlite3.connect(path, timeout=20)) as raw:
            raw.execute("BEGIN")
            if (said := raw.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                raise Found(f"{path.name} is damaged: {said[:3]}")
            kept = Kept(
                {row[0]: row for row in raw.execute(_EVENTS)},
                {
                    row[0]: row[1:]
                    for row in raw.execute(
                        "SELECT thread_id, goal_id, tokens_used, time_used_ms FROM goal_state_goals"
                    )
                },
                dict(raw.execute("SELECT name, position FROM goal_state_cursors")),
                dict(raw.execute("SELECT number, is_autocommit FROM host_rows")),
            )
    except sqlite3.Error as error:
        raise Found(f"{path.name} cannot be read: {error!r}") from error
    for event in kept.events.values():
        number = number_of(event[5])
        if number is not None and event[2] == "usage_accounted":
            if number in kept.charges:
                raise Found(f"charge {number} is there twice: {kept.charges[number]}, {event}")
            kept.charges[number] = event
    return kept


Span = tuple[float, float]
"""When a call began and ended, on the clock that all processes share."""


class _Window(NamedTuple):
    """A restore: when it began and ended, and what it put in place."""

    began: float
    ended: float
    kept: Kept


class Model:
    """Charges move from sent to made, unknown or refused, and from there to kept or gone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sent: dict[int, int] = {}  # number -> worker
        self._made: dict[int, Span] = {}  # acknowledged, not yet seen in the database
        self._unknown: dict[int, Span] = {}
        self._absent: set[int] = set()  # must not be there
        self._kept: set[int] = set()  # seen in the database
        self._pruned: set[int] = set()
        self._hosts: dict[int, str] = {}
        self._seen: dict[int, tuple[Any, ...]] = {}
        self._restored: _Window | None = None
        self._floors: dict[str, tuple[float, int]] = {}
        self._pruned_before_ms = 0
        self._taken: dict[str, set[str]] = {}
        self._backups: dict[str, tuple[Kept, set[int]]] = {}
        self.made = 0

    # -- what happens ------------------------------------------------------------------------------

    def sent(self, numbers: Iterable[int], worker: int) -> None:
        """Charges were asked for."""
        self._sent |= dict.fromkeys(numbers, worker)

    def under_way(self, numbers: Iterable[int] = ()) -> list[int]:
        """The charges (among these) that were asked for and of which nothing is known yet."""
        return [number for number in numbers or self._sent if number in self._sent]

    def outcome(
        self, number: int, became: str, span: Span, tokens: int | None, host: str | None
    ) -> bool:
        """A worker has said what became of a charge. Whether it is there for certain."""
        if number not in self._sent:
            raise Found(f"charge {number} was made although nobody asked for it")
        del self._sent[number]
        if host is not None:
            self._hosts[number] = host
        if became == "refused":
            self._absent.add(number)
            return False
        self.made += became == "made"
        restored = self._restored
        if restored is not None and span[0] < restored.ended:
            if span[1] < restored.began:
                if number in restored.kept.charges:
                    self._kept.add(number)
                else:
                    self._absent.add(number)
            else:
                self._unknown[number] = span
            return False
        if became == "unknown":
            self._unknown[number] = span
            return False
        self._made[number] = span
        if tokens is not None:
            thread = charge_of(self._seed, number).thread_id
            if tokens > self._floors.get(thread, (0.0, 0))[1]:
                self._floors[thread] = (span[1], tokens)
        return True

    def died(self, worker: int) -> None:
        """A worker is gone: what it had not acknowledged is unknown."""
        for number in [number for number, by in self._sent.items() if by == worker]:
            del self._sent[number]
            self._unknown[number] = (0.0, 0.0)

    def looked(self, at: float, tokens: dict[str, int]) -> None:
        """A store reads at least what had been acknowledged before."""
        if self._restored is not None and at < self._restored.ended:
            return
        for thread, (ended, floor) in self._floors.items():
            if ended < at and tokens.get(thread, -1) < floor:
                raise Found(f"{thread} reads {tokens.get(thread)} tokens after {floor} were read")

    def took(self, name: str, events: Iterable[tuple[int, str]]) -> None:
        """A sink was handed events."""
        last = 0
        taken = self._taken.setdefault(name, set())
        for position, event_id in events:
            if position <= last:
                raise Found(f"the sink of {name} was handed {position} after {last}")
            last = position
            taken.add(event_id)

    def pruned(self, before_ms: int) -> None:
        """What had happened by then may be gone from the log."""
        self._pruned_before_ms = max(self._pruned_before_ms, before_ms)

    def backed_up(self, path: Path, began: float) -> None:
        """A backup holds what had been acknowledged before it was begun."""
        kept = read(path)
        made = {number for number, span in self._made.items() if span[1] < began}
        if missing := made - kept.charges.keys():
            raise Found(f"charges {sorted(missing)[:10]} are not in a backup made after them")
        gone = self._kept - kept.charges.keys()
        for event in self._seen.values():
            number = number_of(event[5])
            if number in gone and event[9] >= self._pruned_before_ms:
                raise Found(f"charge {number} is not in a backup made after it")
        self._check_known(kept)
        self._backups[str(path)] = kept, gone

    def restored(self, path: Path, span: Span) -> None:
        """The database is as the backup was; what was made meanwhile is unknown."""
        kept, pruned = self._backups[str(path)]
        self._restored = _Window(*span, kept)
        before = self._made | self._unknown
        gone = self._kept | {n for n, (_, ended) in before.items() if ended < span[0]}
        self._made = {n: times for n, times in self._made.items() if times[0] > span[1]}
        self._unknown = {n: s for n, s in before.items() if n not in self._made and n not in gone}
        self._kept = set(kept.charges) | pruned
        self._absent = (self._absent | gone) - self._kept
        self._pruned = set(pruned)
        self._hosts = {n: how for n, how in self._hosts.items() if n in kept.host_rows}
        self._seen = dict(kept.events)
        self._floors = {thread: (span[1], kept.goals[thread][1]) for thread in BUDGETS}

    def kept(self, numbers: Iterable[int], *, not_at: Iterable[int]) -> set[int]:
        """Which of these charges were in the database when it was checked last.

        Args:
            numbers: the charges.
            not_at: but none whose event has one of these positions.
        """
        not_these = {number_of(self._seen[one][5]) for one in not_at if one in self._seen}
        return {number for number in numbers if number in self._kept} - not_these

    # -- what must be ------------------------------------------------------------------------------

    def check(self, path: Path, *, is_quiet: bool) -> None:
        """Compares the database with what is due.

        Args:
            is_quiet: nobody charges now: what is not there by now will never be.
        """
        kept = read(path)
        self._check_known(kept)
        if missing := self._made.keys() - kept.charges.keys():
            raise Found(
                f"{len(missing)} of {len(self._made)} acknowledged charges are gone:"
                f" {sorted(missing)[:10]}"
            )
        for position, event in self._seen.items():
            now = kept.events.get(position)
            if now is None and event[9] >= self._pruned_before_ms:
                raise Found(f"event {position} is gone: {event}")
            if now is not None and now != event:
                raise Found(f"event {position} has changed: {event} became {now}")
            if now is None and (number := number_of(event[5])) is not None:
                self._pruned.add(number)
        self._kept |= self._made.keys() | (kept.charges.keys() & self._unknown.keys())
        self._made.clear()
        self._unknown = {n: span for n, span in self._unknown.items() if n not in self._kept}
        self._seen = kept.events
        if is_quiet:
            self._absent |= self._unknown.keys()
            self._unknown.clear()
            self._check_sums(kept)
            self._check_hosts(kept)

    def _check_known(self, kept: Kept) -> None:
        for number, event in kept.charges.items():
            if number in self._absent:
                raise Found(f"charge {number} is there although it was refused, undone or late")
            charge = charge_of(self._seed, number)
            is_due = (charge.thread_id, charge.tokens, charge.milliseconds, charge.key)
            if (event[3], event[6], event[7], event[8]) != is_due:
                raise Found(f"charge {number} is {event}, due is {charge}")

    def _check_sums(self, kept: Kept) -> None:
        due = {thread: [0, 0] for thread in kept.goals if thread.startswith("thread-")}
        for number in self._kept:
            charge = charge_of(self._seed, number)
            due[charge.thread_id][0] += charge.tokens
            due[charge.thread_id][1] += charge.milliseconds
        for thread, sums in due.items():
            if list(kept.goals[thread][1:]) != sums:
                raise Found(f"{thread} has used {kept.goals[thread][1:]}, due is {sums}")

    def _check_hosts(self, kept: Kept) -> None:
        for number, how in self._hosts.items():
            is_there = number in kept.host_rows
            if is_there != (how not in ("rollback", "kept")):
                raise Found(f"a host's row {number} ({how}) is {'' if is_there else 'not '}there")

    def check_taken(self, name: str, position: int, path: Path) -> None:
        """Everything up to a position was handed to the sink of that name."""
        events = read(path).events.values()
        missing = [
            event[0]
            for event in events
            if event[0] <= position and event[1] not in self._taken.get(name, set())
        ]
        if missing:
            raise Found(f"the sink of {name} never got {missing[:10]} although it is at {position}")
