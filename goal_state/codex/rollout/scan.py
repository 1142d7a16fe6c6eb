"""From a rollout's lines to its records: which lines hold one, and which are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from goal_state.codex.rollout.lines import (
    MAX_HELD_BYTES,
    OpenRollout,
    RawLine,
    SkipLedger,
    parse_object,
    why_broken,
)
from goal_state.codex.rollout.records import (
    HistoryBase,
    Record,
    SessionMeta,
    may_hold_record,
    ordinal_of,
    record_of,
    session_meta,
)
from goal_state.errors import InvalidValueError

__all__ = ["LocatedRecord", "all_records", "records_in", "session_of"]


class LocatedRecord(NamedTuple):
    """A record and where its line begins, in bytes."""

    offset: int
    record: Record


def all_records(rollout: OpenRollout, ledger: SkipLedger) -> Iterator[LocatedRecord]:
    """Every record of a file, from its beginning. Every line is parsed."""
    return records_in(rollout.forwards(ledger), rollout.path, None, ledger, thorough=True)


def records_in(
    lines: Iterator[RawLine],
    path: Path,
    base: HistoryBase | None,
    ledger: SkipLedger,
    *,
    thorough: bool = False,
) -> Iterator[LocatedRecord]:
    """The records that lines hold, in their order, as far as they belong to what `base` delimits.

    A line that cannot be used is noted in the ledger. Where the reading is not thorough, a line that is
    about neither turns nor usage is not parsed.
    """
    for offset, content, ended in lines:
        if content is None:
            ledger.add(path, offset, f"longer than {MAX_HELD_BYTES} bytes")
            continue
        may_matter = may_hold_record(content)
        try:
            if not may_matter and not thorough:
                reason = why_broken(content)
                if reason is not None:
                    ledger.add(path, offset, reason if ended else f"torn: {reason}")
                continue
            line = parse_object(content)
            record = record_of(line)
        except InvalidValueError as error:
            ledger.add(path, offset, f"not a usable value: {error.field}")
            continue
        except ValueError as error:
            ledger.add(path, offset, str(error) if ended else f"torn: {error}")
            continue
        if record is not None and (base is None or _is_within(base, ordinal_of(line), offset)):
            yield LocatedRecord(offset, record)


def _is_within(base: HistoryBase, ordinal: int | None, offset: int) -> bool:
    if ordinal is not None:
        return ordinal < base.end_ordinal_exclusive
    return base.end_byte_offset is not None and offset < base.end_byte_offset


def session_of(rollout: OpenRollout) -> SessionMeta | None:
    """The session that the first lines describe, or None if none of them does.

    The first one is the file's own: older forks copied their parent's behind it.
    """
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
