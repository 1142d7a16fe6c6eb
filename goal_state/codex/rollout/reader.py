"""Reads one rollout: its session, its turns, its usages, and what its end tells."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from goal_state.codex.rollout.lines import SkipLedger, SkippedLines, open_rollout, rollout_place
from goal_state.codex.rollout.records import SessionMeta, UsageStated
from goal_state.codex.rollout.scan import all_records, session_of
from goal_state.codex.rollout.tail import RolloutTail, TailBuilder, read_tail
from goal_state.codex.rollout.turns import Turn, Turns
from goal_state.codex.rollout.usages import UsageContext
from goal_state.domain.usage import ThreadUsage
from goal_state.errors import RolloutError

__all__ = ["RolloutReader"]

_MAX_TURNS: Final = 100_000
"""How many turns `turns` keeps, the latest: a name takes a hundred bytes, and no thread lives that long."""

_MAX_ANCESTORS: Final = 100
"""How many forks upwards a usage is looked for; each may cost the reading of a file."""

FindParent = Callable[[str], "str | os.PathLike[str] | None"]


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
                self._meta = session_of(rollout)
        return self._meta

    def turns(self) -> list[Turn]:
        """Every turn that this file names, in the order in which they began. Reads the whole file.

        A turn that began and neither completed, failed nor was interrupted is in progress, also when its
        program is long gone. A fork's file begins where its parent's was left: earlier turns are there.
        Of more than 100,000 turns the latest are kept.
        """
        self._ledger = SkipLedger()
        turns = Turns()
        with open_rollout(self.path) as rollout:
            for offset, record in all_records(rollout, self._ledger):
                turns.take(record)
                if len(turns.status_of) > _MAX_TURNS:
                    turns.forget_first()
                    self._ledger.add(self.path, offset, f"more than {_MAX_TURNS} turns")
        return turns.listed()

    def usages(self) -> Iterator[ThreadUsage]:
        """Every usage that is stated, in the order of the file, with the turn that it belongs to (None if no
        line before it names one). Reads on as it is asked for more.

        A `token_usage_record` and the `token_count` that repeats it give one usage.
        """
        self._ledger = ledger = SkipLedger()
        context = UsageContext()
        pending: ThreadUsage | None = None  # a record, until it is known whether a count repeats it
        with open_rollout(self.path) as rollout:
            for _, record in all_records(rollout, ledger):
                context.take(record)
                if not isinstance(record, UsageStated):
                    continue
                usage = context.usage(record)
                if pending is not None and (record.is_usage_record or pending.total != usage.total):
                    yield pending
                pending = usage if record.is_usage_record else None
                if not record.is_usage_record:
                    yield usage
        if pending is not None:
            yield pending

    def restored(
        self, find_parent: FindParent | None = None, *, list_turns: bool = False
    ) -> RolloutTail:
        """The newest usage and the turns to go with it.

        Reads backwards from the end and stops as soon as both are known: a gigabyte of history costs what
        its tail costs. Once the usage is known, turns are looked for in the 64 MiB before it, parents'
        files included; a compressed file is read from its beginning, and the latest 4096 of its lines
        about turns count. What is read has bounds (`MAX_SEARCHED_BYTES`, `MAX_READ_BYTES`, `MAX_LINES`, a
        hundred forks); where one ends the search for the usage, `skipped` says so.

        Args:
            find_parent: gives the rollout of a thread by its id, or None; `find_rollout` of the data
                directory will do. With it, a fork that has no usage (or turn) of its own has its
                parent's up to where it was forked, and so on upwards, each thread once. A parent that
                is missing or unreadable has none; the latter is noted in `skipped`.
            list_turns: list every turn that the 16 MiB before the usage name, the parents' included; they
                are read in a tenth of a second. A thread of more history has its latest turns
                listed, up to 100,000 lines about turns.
        """
        self._ledger = SkipLedger()
        tail = TailBuilder(lists_turns=list_turns)
        with open_rollout(self.path) as rollout:
            read_tail(rollout, None, tail, self._ledger)
            if find_parent is None or tail.is_done:
                return tail.result()
            meta = session_of(rollout)
        self._read_ancestors(meta, find_parent, tail)
        return tail.result()

    def _read_ancestors(
        self, meta: SessionMeta | None, find_parent: FindParent, tail: TailBuilder
    ) -> None:
        seen: set[str] = set()
        while meta is not None and meta.history_base is not None and not tail.is_done:
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
                    meta = session_of(rollout)
                    if meta is None or meta.thread_id != base.thread_id:
                        self._ledger.add(
                            Path(path), 0, "not the rollout of the thread it was forked from"
                        )
                        return
                    read_tail(rollout, base, tail, self._ledger)
            except (RolloutError, OSError) as error:
                self._ledger.add(Path(path), 0, f"cannot be read: {type(error).__name__}")
                return
