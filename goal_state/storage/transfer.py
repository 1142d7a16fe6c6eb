"""Moving everything that a store holds as JSON lines.

They begin with a header `{"format": 3, "revision": …, "last_position": …, "counted_tokens": …, "currency":
…}`. Then follows one `{"table": …, "row": {…}}` for each row, table by table in the order of their keys, as
of one snapshot. The end is a trailer `{"rows": …, "sha256": …}` over all lines before it, so that an export
that was cut off or damaged on its way is known. Leases are not exported: a consumer's name is free in the new
store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NoReturn, cast

from sqlalchemy import Table, exists, func, literal_column, select

from goal_state.domain.events import FIGURES
from goal_state.domain.values import check_optional_name
from goal_state.errors import (
    InvalidValueError,
    NotAnExportError,
    SettingsConflictError,
    StoreNotEmptyError,
)
from goal_state.storage.executor import Executor
from goal_state.storage.exported_rows import MAX_COUNTER, check_row
from goal_state.storage.repository import GoalRepository
from goal_state.storage.schema import (
    HEAD_REVISION,
    balances,
    baselines,
    cursors,
    events,
    goals,
    holds,
    parts,
)
from goal_state.storage.statements import Statement, insert_into
from goal_state.storage.verification import verify

__all__ = [
    "MAX_LINE_CHARACTERS",
    "export_lines",
    "import_lines",
]

MAX_LINE_CHARACTERS: Final = 2**20
"""A longer line is refused. The longest that an export has, a goal with every text at its bound and every
character escaped, has a tenth of that."""

_FORMAT: Final = 3
_BATCH: Final = 1000

_TABLES: Final = {
    table.name: table for table in (goals, events, balances, parts, baselines, cursors, holds)
}
_NOT_MOVED: Final = {cursors.name: {"holder", "lease_expires_at_ms"}}
_COLUMNS: Final = {
    name: tuple(column.name for column in table.columns) for name, table in _TABLES.items()
}
_NAMES: Final = {name: frozenset(columns) for name, columns in _COLUMNS.items()}
_VALUES: Final[dict[str, itemgetter[str]]] = {
    name: itemgetter(*columns) for name, columns in _COLUMNS.items()
}
_KEY: Final = {
    name: [column.name for column in table.primary_key.columns] for name, table in _TABLES.items()
}


def _all_rows(table: Table) -> Statement:
    return Statement(lambda: select(table).order_by(*table.primary_key.columns))


def _how_many(table: Table) -> Statement:
    return Statement(lambda: select(func.count()).select_from(table))


def _how_many_before(table: Table) -> Statement:
    first = table.columns[_KEY[table.name][0]]
    return Statement(lambda key: select(func.count()).select_from(table).where(first < key))


_ALL_ROWS: Final = {name: _all_rows(table) for name, table in _TABLES.items()}
_NEW_ROW: Final = {name: insert_into(table, _COLUMNS[name]) for name, table in _TABLES.items()}
_HOW_MANY: Final = {name: _how_many(table) for name, table in _TABLES.items()}
_HOW_MANY_BEFORE: Final = {name: _how_many_before(table) for name, table in _TABLES.items()}

_E = events.c
_B = balances.c
_P = parts.c
_CREATED: Final = _E.kind == literal_column("'created'")
_SAME_EVENT_ID = Statement(
    lambda: (
        select(func.max(_E.position))
        .group_by(_E.event_id)
        .having(func.count() > literal_column("1"))
    )
)
_REPLACED_AND_THERE = Statement(
    lambda: select(_E.position).join(goals, goals.c.goal_id == _E.replaced_goal_id).where(_CREATED)
)
_BALANCE_OF_NO_GOAL = Statement(
    lambda: select(_B.goal_id).where(
        ~exists().where(_E.goal_id == _B.goal_id, _CREATED, _E.position < _B.through_position)
    )
)
_IN_BALANCE_ALREADY = Statement(
    lambda: (
        select(_E.position)
        .join(balances, _B.goal_id == _E.goal_id)
        .where(~_CREATED, _E.position <= _B.through_position)
    )
)
_PART_OF_NO_BALANCE = Statement(
    lambda: select(_P.goal_id).where(~exists().where(_B.goal_id == _P.goal_id))
)
_BALANCES_AND_PARTS = Statement(
    lambda: (
        select(
            _B.goal_id,
            *(_B[figure.balance] for figure in FIGURES),
            *(_P[figure.balance] for figure in FIGURES),
        )
        .select_from(balances.outerjoin(parts, _P.goal_id == _B.goal_id))
        .order_by(_B.goal_id)
    )
)
_FIRST_OF_GOAL = Statement(
    lambda goal_id: select(func.min(_E.position)).where(_E.goal_id == goal_id)
)
_CONTRADICTIONS: Final = (
    (events.name, _SAME_EVENT_ID, "event_id: must be another one than that of any other event"),
    (events.name, _REPLACED_AND_THERE, "replaced_goal_id: that goal is there"),
    (balances.name, _BALANCE_OF_NO_GOAL, "goal_id: no goal of this id was created before"),
    (events.name, _IN_BALANCE_ALREADY, "position: the balance of its goal contains it already"),
    (parts.name, _PART_OF_NO_BALANCE, "goal_id: there is no balance that it is a part of"),
)


def export_lines(repository: GoalRepository) -> Iterator[str]:
    """Everything as lines of JSON (without line ends), as of one snapshot, in bounded memory."""
    executor = repository.executor
    digest = _Digest()
    count = 0
    with executor.snapshot():
        header = {
            "format": _FORMAT,
            "revision": HEAD_REVISION,
            "last_position": executor.last_position_ever(),
            "counted_tokens": repository.tariff.counted_tokens.name,
            "currency": repository.settings.currency(),
        }
        yield digest.with_line(json.dumps(header))
        for name, columns in _COLUMNS.items():
            left_out = _NOT_MOVED.get(name, set())
            for values in executor.stream(_ALL_ROWS[name]):
                fields = zip(columns, values, strict=True)
                moved = {key: None if key in left_out else value for key, value in fields}
                yield digest.with_line(json.dumps({"table": name, "row": moved}))
                count += 1
        yield json.dumps({"rows": count, "sha256": digest.text()})


def import_lines(repository: GoalRepository, lines: Iterable[str]) -> int:
    """Puts exported lines into an empty database, inside a transaction; returns how many rows.

    Raises:
        StoreNotEmptyError: the database holds something.
        NotAnExportError: they are no whole, unchanged export; with the number of the line.
    """
    repository.settings.agree()
    executor = repository.executor
    for name, statement in _ALL_ROWS.items():
        if next(executor.stream(statement), None) is not None:
            raise StoreNotEmptyError(f"the store has rows in {name} already; import into a new one")
    run = _Import(executor, repository)
    for number, line in enumerate(lines, 1):
        run.take(number, line)
    rows = run.end()
    run.check_whole(repository)
    return rows


def counted_tokens_of(header: str) -> str:
    """The name of what an export's goals are charged with, by its first line; the default if it is none."""
    try:
        name: object = _parsed(1, header).get("counted_tokens")
    except NotAnExportError:
        name = None
    return name if isinstance(name, str) else "uncached"


class _Digest:
    """The checksum of lines, whatever ends them."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def with_line(self, line: str) -> str:
        # What is no Unicode is refused, but by the check of its value, which can say more.
        self._hash.update(line.encode(errors="surrogatepass"))
        self._hash.update(b"\n")
        return line

    def text(self) -> str:
        return self._hash.hexdigest()


class _Import:
    """An import under way: takes line after line, and knows on which line each table begins."""

    def __init__(self, executor: Executor, repository: GoalRepository) -> None:
        self._executor = executor
        self._settings = repository.settings
        self._counted_tokens = repository.tariff.counted_tokens.name
        self._digest = _Digest()
        self._line = 0
        self._last_position = 0
        self._tables = iter(_TABLES)
        self._table: str | None = None
        self._first_line: dict[str, int] = {}
        self._key: list[Any] | None = None
        self._batch: list[tuple[Any, ...]] = []
        self._rows = 0
        self._has_ended = False

    def take(self, number: int, line: object) -> None:
        self._line = number
        if self._has_ended:
            raise NotAnExportError(number, "comes after the trailer, which is the last line")
        if not isinstance(line, str):
            raise NotAnExportError(number, f"is {type(line).__name__}, not text")
        if len(line) > MAX_LINE_CHARACTERS:
            raise NotAnExportError(number, f"is longer than {MAX_LINE_CHARACTERS} characters")
        line = line.rstrip("\r\n")
        record = _parsed(number, line)
        if number == 1:
            self._take_header(record)
        elif "sha256" in record:
            self._take_trailer(record)
            return
        else:
            self._take_row(record)
        self._digest.with_line(line)

    def end(self) -> int:
        """All lines were taken; returns how many rows there were."""
        if not self._has_ended:
            raise NotAnExportError(
                max(self._line, 1),
                "is the last one and no trailer: the export was cut off; export again",
            )
        # Positions of pruned events are not given out again.
        self._executor.set_last_position_ever(self._last_position)
        return self._rows

    def check_whole(self, repository: GoalRepository) -> None:
        """Makes sure that the rows do not contradict one another, and that the log leads to the goals."""
        for table, statement, problem in _CONTRADICTIONS:
            found = next(self._executor.stream(statement), None)
            if found is not None:
                self._refuse(table, found[0], problem)
        self._check_parts()
        for difference in verify(repository, None):
            goal = repository.get(difference.thread_id)
            if goal is not None and goal.goal_id == difference.goal_id:
                self._refuse(goals.name, goal.goal_id, str(difference))
            position = self._executor.run(_FIRST_OF_GOAL, (difference.goal_id,)).fetchone()[0]
            self._refuse(events.name, position, str(difference))

    def _check_parts(self) -> None:
        """Makes sure that the parts of each balance add up to it. Not by SQL, whose sums have a bound."""
        width = len(FIGURES)
        rows = self._executor.stream(_BALANCES_AND_PARTS)
        for goal_id, of_goal in groupby(rows, key=itemgetter(0)):
            several = [row[1:] for row in of_goal]
            sums = tuple(sum(row[at] or 0 for row in several) for at in range(width, 2 * width))
            if sums != tuple(several[0][:width]):
                self._refuse(balances.name, goal_id, "its parts do not add up to it")

    def _take_header(self, header: dict[str, Any]) -> None:
        last = header.get("last_position")
        counted_tokens, currency = header.get("counted_tokens"), header.get("currency")
        if (
            header.keys() != {"format", "revision", "last_position", "counted_tokens", "currency"}
            or type(last) is not int
            or not isinstance(counted_tokens, str)
            or not isinstance(currency, str | None)
        ):
            raise NotAnExportError(1, "is no header of an export of goal-state")
        if type(header["format"]) is not int or header["format"] != _FORMAT:
            raise NotAnExportError(
                1,
                f"is of format {header['format']!r:.80}, this version reads {_FORMAT};"
                " export with this version",
            )
        if header["revision"] != HEAD_REVISION:
            raise NotAnExportError(
                1,
                f"is of revision {header['revision']!r:.80}, this version reads {HEAD_REVISION};"
                " export with the version that made the store, upgraded",
            )
        if not 0 <= last <= MAX_COUNTER:
            raise NotAnExportError(1, "last_position: must be from 0 to 2^62")
        if counted_tokens != self._counted_tokens:
            raise NotAnExportError(
                1,
                f"counted_tokens: its goals are charged with {counted_tokens!r:.80} and this store's with"
                f" {self._counted_tokens!r}; import it into a store that counts alike",
            )
        try:
            self._settings.agree_on_currency(check_optional_name("currency", currency))
        except InvalidValueError as error:
            raise NotAnExportError(1, str(error)) from None
        except SettingsConflictError as error:
            raise NotAnExportError(1, f"currency: {error}") from None
        self._last_position = last

    def _take_trailer(self, trailer: dict[str, Any]) -> None:
        self._flush()
        rows = trailer.get("rows")
        if trailer.keys() != {"rows", "sha256"} or type(rows) is not int:
            raise NotAnExportError(self._line, "is no trailer of an export of goal-state")
        if rows != self._rows:
            raise NotAnExportError(
                self._line,
                f"speaks of {rows!r:.80} rows, there are {self._rows}: some were lost or added;"
                " export again",
            )
        if trailer["sha256"] != self._digest.text():
            raise NotAnExportError(
                self._line,
                "has not the checksum of the lines before it: they were changed or damaged;"
                " export again",
            )
        self._has_ended = True

    def _take_row(self, record: dict[str, Any]) -> None:
        name, row = record.get("table"), record.get("row")
        if (
            record.keys() != {"table", "row"}
            or not isinstance(name, str)
            or name not in _TABLES
            or not isinstance(row, dict)
        ):
            raise NotAnExportError(self._line, "is no row of one of our tables")
        fields = cast("dict[str, Any]", row)
        if fields.keys() != _NAMES[name]:
            raise NotAnExportError(self._line, f"has not the columns of {name}")
        try:
            check_row(name, fields)
        except InvalidValueError as error:
            raise NotAnExportError(self._line, f"{name}.{error}") from error
        if name != self._table:
            self._begin_table(name)
        self._check_order([fields[column] for column in _KEY[name]])
        self._check_position(fields)
        self._batch.append(_VALUES[name](fields))
        self._rows += 1
        if len(self._batch) == _BATCH:
            self._flush()

    def _begin_table(self, name: str) -> None:
        self._flush()
        if name not in self._tables:  # which leaves those that come after it
            raise NotAnExportError(self._line, f"is out of order: {name} come before")
        self._table, self._key = name, None
        self._first_line[name] = self._line

    def _check_order(self, key: list[Any]) -> None:
        if self._key is not None and key <= self._key:
            raise NotAnExportError(self._line, "is out of order, or there twice")
        self._key = key

    def _check_position(self, row: dict[str, Any]) -> None:
        for column in ("position", "through_position"):
            if row.get(column, 0) > self._last_position:
                raise NotAnExportError(
                    self._line,
                    f"{column}: must be {self._last_position} at most, the header's last_position",
                )

    def _flush(self) -> None:
        if self._table is None or not self._batch:
            return
        try:
            self._executor.run_many(_NEW_ROW[self._table], self._batch)
        except self._executor.violation:
            # Those before it are there, and the keys are in order: this one repeats something else.
            line = self._first_line[self._table] + self._count(_HOW_MANY[self._table])
            raise NotAnExportError(
                line, f"repeats what only one of the {self._table} has"
            ) from None
        self._batch = []

    def _refuse(self, table: str, key: object, problem: str) -> NoReturn:
        line = self._first_line[table] + self._count(_HOW_MANY_BEFORE[table], key)
        raise NotAnExportError(line, problem)

    def _count(self, statement: Statement, *values: object) -> int:
        return self._executor.run(statement, values).fetchone()[0]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key is there twice")
    return fields


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _parsed(number: int, line: str) -> dict[str, Any]:
    try:
        value: object = _DECODER.decode(line)
    except (ValueError, RecursionError):
        raise NotAnExportError(number, "is not JSON, or has a key twice") from None
    if not isinstance(value, dict):
        raise NotAnExportError(number, "is no JSON object")
    return cast("dict[str, Any]", value)
