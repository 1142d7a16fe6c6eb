"""Moving everything that a store holds: as a copy of the file, or as JSON lines.

JSON lines begin with a header `{"format": 1, "revision": …, "last_position": …}`; then follows one
`{"table": …, "row": {…}}` for each row, as of one snapshot. Leases do not travel: whoever held a consumer's
name holds it in the old store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

from sqlalchemy import Table, bindparam, insert, select, text

from goal_state.database import change_identity
from goal_state.errors import DatabaseLocationError, InvalidValueError, RequestError
from goal_state.executor import Statement
from goal_state.repository import GoalRepository
from goal_state.tables import (
    HEAD_REVISION,
    event_cursors,
    goal_balances,
    goal_events,
    goals,
    thread_usage,
)

__all__ = ["NotAnExportError", "StoreNotEmptyError", "back_up", "export_lines", "import_lines"]

_FORMAT: Final = 1
_BATCH: Final = 1000

_TABLES: Final = {
    table.name: table for table in (goals, goal_events, goal_balances, thread_usage, event_cursors)
}
_NOT_MOVED: Final = {"event_cursors": {"holder", "lease_expires_at_ms"}}

_LAST_EVER = Statement(lambda: text("SELECT seq FROM sqlite_sequence WHERE name = 'goal_events'"))
_FORGET_LAST_EVER = Statement(
    lambda: text("DELETE FROM sqlite_sequence WHERE name = 'goal_events'")
)
_SET_LAST_EVER = Statement(
    lambda: text("INSERT INTO sqlite_sequence (name, seq) VALUES ('goal_events', :position)"),
    "position",
)


def _all_rows(table: Table) -> Statement:
    return Statement(lambda: select(table).order_by(*table.primary_key.columns))


def _new_row(table: Table) -> Statement:
    names = [column.name for column in table.columns]
    return Statement(
        lambda: insert(table).values({name: bindparam(name) for name in names}), " ".join(names)
    )


_ALL_ROWS: Final = {name: _all_rows(table) for name, table in _TABLES.items()}
_NEW_ROW: Final = {name: _new_row(table) for name, table in _TABLES.items()}


class StoreNotEmptyError(RequestError):
    """The store to import into holds something already."""


class NotAnExportError(InvalidValueError):
    """A line is not what `export_lines` writes."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}", problem)


def back_up(
    repository: GoalRepository, path: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Copies the database of a reader to a new file while others go on writing; see `GoalStore.backup`."""
    if path.exists():
        raise DatabaseLocationError(f"{str(path)!r} exists; name a new file")
    if not path.parent.is_dir():
        raise DatabaseLocationError(
            f"the folder {str(path.parent)!r} does not exist; make it first"
        )
    partial = path.with_name(f"{path.name}.partial")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise DatabaseLocationError(
            f"{str(partial)!r} exists: another backup runs, or one broke off; delete it"
        ) from None
    try:
        repository.executor.copy_to(partial, progress)
        change_identity(partial)
        os.link(partial, path)  # refuses where a rename would replace a file made meanwhile
    except FileExistsError:
        raise DatabaseLocationError(f"{str(path)!r} exists; name a new file") from None
    finally:
        partial.unlink(missing_ok=True)


def export_lines(repository: GoalRepository) -> Iterator[str]:
    """Everything as lines of JSON (without line ends), as of one snapshot, in bounded memory."""
    executor = repository.executor
    with executor.snapshot():
        row = executor.run(_LAST_EVER).fetchone()
        last = 0 if row is None else row[0]
        yield json.dumps({"format": _FORMAT, "revision": HEAD_REVISION, "last_position": last})
        for name, table in _TABLES.items():
            columns = [column.name for column in table.columns]
            left_out = _NOT_MOVED.get(name, set())
            for values in executor.stream(_ALL_ROWS[name]):
                fields = zip(columns, values, strict=True)
                moved = {key: None if key in left_out else value for key, value in fields}
                yield json.dumps({"table": name, "row": moved})


def import_lines(repository: GoalRepository, lines: Iterable[str]) -> int:
    """Puts exported lines into an empty database, inside a transaction; returns how many rows.

    Raises:
        StoreNotEmptyError: the database holds something.
        NotAnExportError: a line is not one of ours, with its number.
    """
    executor = repository.executor
    for name, statement in _ALL_ROWS.items():
        if next(executor.stream(statement), None) is not None:
            raise StoreNotEmptyError(f"the store has {name} already; import into a new one")
    numbered = enumerate(lines, 1)
    header = _header(next(numbered, (1, ""))[1])
    count = 0
    batch: list[tuple[Any, ...]] = []
    batch_of = ""
    for number, line in numbered:
        name, values = _row(number, line)
        if name != batch_of or len(batch) == _BATCH:
            if batch:
                executor.run_many(_NEW_ROW[batch_of], batch)
            batch_of, batch = name, []
        batch.append(values)
        count += 1
    if batch:
        executor.run_many(_NEW_ROW[batch_of], batch)
    # Positions of pruned events are not given out again.
    executor.run(_FORGET_LAST_EVER)
    executor.run(_SET_LAST_EVER, (header["last_position"],))
    return count


def _parsed(number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (TypeError, ValueError, RecursionError):
        raise NotAnExportError(number, "is not JSON") from None
    if not isinstance(value, dict):
        raise NotAnExportError(number, "is no JSON object")
    return cast("dict[str, Any]", value)


def _header(line: str) -> dict[str, Any]:
    header = _parsed(1, line)
    if header.get("format") != _FORMAT or not isinstance(header.get("last_position"), int):
        raise NotAnExportError(1, "is no header of an export of goal-state")
    if header.get("revision") != HEAD_REVISION:
        raise NotAnExportError(
            1,
            f"is of revision {header.get('revision')!r}, this version reads {HEAD_REVISION};"
            " export with the version that made the store, upgraded",
        )
    return header


def _row(number: int, line: str) -> tuple[str, tuple[Any, ...]]:
    record = _parsed(number, line)
    name, row = record.get("table"), record.get("row")
    table = _TABLES.get(name) if isinstance(name, str) else None
    if table is None or not isinstance(row, dict):
        raise NotAnExportError(number, "is no row of one of our tables")
    fields = cast("dict[str, Any]", row)
    columns = [column.name for column in table.columns]
    if fields.keys() != set(columns):
        raise NotAnExportError(number, f"has not the columns of {table.name}")
    values = tuple(fields[column] for column in columns)
    if any(isinstance(value, bool) or not isinstance(value, str | int | None) for value in values):
        raise NotAnExportError(number, "has a value that is neither text nor an integer")
    return table.name, values
