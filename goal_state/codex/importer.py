"""Imports what a Codex data directory holds: its goals, and what its threads have used.

Nothing in the directory is changed, not even by SQLite: the goals are read from a copy.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from goal_state.codex.database_copy import copy_database
from goal_state.codex.rollout import (
    RolloutPath,
    RolloutReader,
    find_rollouts,
)
from goal_state.domain.goals import Goal, GoalStatus, check_goal, check_status, status_by_budget
from goal_state.domain.usage import ThreadUsage
from goal_state.domain.values import check_amount, check_budget, check_milliseconds
from goal_state.errors import (
    CodexSchemaError,
    DatabaseError,
    DatabaseLocationError,
    GoalExistsError,
    InvalidValueError,
    RolloutError,
)
from goal_state.storage.repository import GoalRepository
from goal_state.storage.sqlite.executor import translated, translating
from goal_state.store import GoalStore

__all__ = ["CodexHome", "ImportReport", "Skipped", "import_codex"]

_logger = logging.getLogger(__name__)

_GOALS_FILE: Final = "goals_1.sqlite"
_TABLE: Final = "thread_goals"
_COLUMNS: Final = (
    "thread_id",
    "goal_id",
    "objective",
    "status",
    "token_budget",
    "tokens_used",
    "time_used_seconds",
    "created_at_ms",
    "updated_at_ms",
)

_MAX_GOALS: Final = 100_000
_MAX_BYTES: Final = 64 * 2**20
"""All goals are in memory at once; each takes some hundred bytes beside its texts."""

_MAX_VALUE_BYTES: Final = 2**20
"""The longest value or row that is read: an objective has a sixtieth of that at most."""

_MAX_SQL_BYTES: Final = 16 * 2**10
"""The longest statement of the schema that is read: SQLite parses it into a multiple of that."""

_MAX_SCHEMA_STEPS: Final = 20_000
"""SQLite takes some eight steps for each table and index of a schema, which is kept in memory as a whole."""

_MAX_STEPS: Final = 20_000_000
"""How many steps SQLite may take: some twenty for each goal, a second for all."""

_STEPS_BETWEEN_LOOKS: Final = 1000

Progress = Callable[[int, int], object]
"""Told after each goal and each rollout how many are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that was not taken over.

    Attributes:
        kind: what it is.
        name: the thread of a goal; the path of a rollout.
        reason: why.
    """

    kind: Literal["goal", "rollout"]
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did, or would do.

    Attributes:
        goals: how many goals were taken over.
        baselines: of how many threads it was stated what they have used so far.
        budget_limited: the threads whose goal was active with its budget spent and is budget limited now.
        skipped: what was left out and why, in the order of the source.
    """

    goals: int
    baselines: int
    budget_limited: tuple[str, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class CodexHome:
    """What a data directory holds, as it was when it was read.

    Attributes:
        goals: the rows of its table of goals, as they are.
        rollouts: its rollouts, newest first.
    """

    goals: tuple[tuple[Any, ...], ...]
    rollouts: tuple[RolloutPath, ...]

    @classmethod
    def read(cls, home: str | os.PathLike[str]) -> CodexHome:
        """Reads a data directory: `goals_1.sqlite`, `sessions/`, or both. No rollout is opened yet.

        Raises:
            DatabaseLocationError: it is no such directory.
            NotADatabaseError: `goals_1.sqlite` is no SQLite database.
            CodexSchemaError: its table of goals is missing, no table or has other columns, or the file is
                larger, or takes longer to read, than one that its program made.
            DatabaseCorruptError: it is damaged.
            DatabaseBusyError: it is being written to all the time.
            OSError: a directory cannot be listed, or the database cannot be read.
        """
        home = Path(home)
        database = home / _GOALS_FILE
        if not database.exists() and not (home / "sessions").is_dir():
            raise DatabaseLocationError(
                f"{str(home)!r} is no data directory: it has neither {_GOALS_FILE!r} nor 'sessions'"
            )
        rows = _rows(database) if database.exists() else []
        return cls(tuple(rows), tuple(find_rollouts(home)))


def import_codex(
    home: CodexHome,
    store: GoalStore,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Takes over the goals of a data directory, with their ids, usage and times, and the usage of its
    rollouts as baselines, charging nothing. What the store has already stays as it is, so that a second
    import changes nothing.

    A thread's baseline comes from its newest rollout and only where the store has none: one that is there
    belongs to the charges made so far, and what a rollout knows beyond it is charged when the thread is
    resumed.

    Each goal and each baseline is a transaction of its own; after a failure it can be run again.

    Args:
        home: the data directory.
        store: where to.
        dry_run: find out only; nothing is written.
        progress: see `Progress`.

    Raises:
        DatabaseError: the store could not be read or written.
    """
    run = _Import(store, home.rollouts, dry_run=dry_run)
    total = len(home.goals) + len(home.rollouts)

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, total)

    for done, row in enumerate(home.goals, start=1):
        run.take_goal(row)
        tell(done)
    for done, rollout in enumerate(home.rollouts, start=len(home.goals) + 1):
        run.take_rollout(rollout)
        tell(done)
    report = run.report()
    _logger.info(
        "%s %d goals and %d baselines from a data directory, %d skipped",
        "would import" if dry_run else "imported",
        report.goals,
        report.baselines,
        len(report.skipped),
    )
    return report


class _Import:
    """One import under way."""

    def __init__(
        self, store: GoalStore, rollouts: tuple[RolloutPath, ...], *, dry_run: bool
    ) -> None:
        self._store = store
        self._dry_run = dry_run
        # The newest comes first, and of a thread the newest is the one that counts.
        self._newest = {rollout.thread_id: rollout.path for rollout in reversed(rollouts)}
        self._goal_ids: set[str] = set()
        self._baselines = 0
        self._budget_limited: list[str] = []
        self._skipped: list[Skipped] = []

    def report(self) -> ImportReport:
        return ImportReport(
            len(self._goal_ids),
            self._baselines,
            tuple(self._budget_limited),
            tuple(self._skipped),
        )

    def take_goal(self, row: tuple[Any, ...]) -> None:
        try:
            found = _goal(row)
            status = found.status
            if status is GoalStatus.ACTIVE:
                status = status_by_budget(found)
            goal = check_goal(replace(found, status=status))
            self._check_new(goal)
            if not self._dry_run:
                self._store.transact(lambda repository: repository.import_goal(goal))
        except (InvalidValueError, GoalExistsError) as error:
            self._skipped.append(Skipped("goal", str(row[0]), str(error)))
            return
        self._goal_ids.add(goal.goal_id)
        if goal.status is not found.status:
            self._budget_limited.append(goal.thread_id)

    def _check_new(self, goal: Goal) -> None:
        old = self._store.get(goal.thread_id)
        if old is not None:
            same = old.goal_id == goal.goal_id
            raise GoalExistsError(
                "was imported already" if same else "the thread has a goal of its own in the store"
            )
        first = next(self._store.events(goal_id=goal.goal_id, limit=1), None)
        if goal.goal_id in self._goal_ids or (first and first.thread_id != goal.thread_id):
            raise GoalExistsError("another thread has, or had, a goal of the same id")
        if first is not None:
            raise GoalExistsError("was imported already, and cleared or replaced since")

    def take_rollout(self, rollout: RolloutPath) -> None:
        reason = self._take_baseline(rollout)
        if reason is not None:
            self._skipped.append(Skipped("rollout", str(rollout.path), reason))

    def _take_baseline(self, rollout: RolloutPath) -> str | None:
        """Imports what a thread has used. Returns why not where it does not, else None."""
        thread_id = rollout.thread_id
        if rollout.path != self._newest[thread_id]:
            return "the thread has a newer rollout"
        try:
            tail = RolloutReader(rollout.path).restored(self._newest.get)
        except (RolloutError, OSError) as error:
            return f"cannot be read: {error}"
        usage = tail.usage
        if usage is None:
            return "states no usage"
        try:
            known = self._store.usage(thread_id)
            if known is None and not self._dry_run:
                known = self._store.transact(lambda found: _state(found, thread_id, usage))
        except InvalidValueError as error:
            return str(error)
        if known is not None:
            return _why_kept(known, usage)
        self._baselines += 1
        return None


def _state(repository: GoalRepository, thread_id: str, usage: ThreadUsage) -> ThreadUsage | None:
    """States what a thread has used; returns what another process has stated meanwhile, if one has."""
    known = repository.usage(thread_id)
    if known is None:
        repository.set_baseline(thread_id, usage)
    return known


def _why_kept(known: ThreadUsage, usage: ThreadUsage) -> str:
    if known.total == usage.total:
        return "its usage was imported already"
    if known.total.is_below(usage.total):
        return "the store knows less of the thread: resume it there, and the difference is charged"
    return "the store knows more of the thread"


# -- reading the goals -------------------------------------------------------------------------------


def _goal(row: tuple[Any, ...]) -> Goal:
    thread_id, goal_id, objective, status, budget, tokens, seconds, created_ms, updated_ms = row
    return Goal(
        thread_id,
        goal_id,
        objective,
        check_status(status),
        check_budget("token_budget", budget),
        check_amount("tokens_used", tokens),
        check_milliseconds("time_used_seconds", seconds),
        created_ms,
        updated_ms,
    )


def _rows(database: Path) -> list[tuple[Any, ...]]:
    with tempfile.TemporaryDirectory(prefix="goal-state-") as folder, translating():
        copied = copy_database(database.resolve(), Path(folder))
        with closing(sqlite3.connect(copied)) as connection:
            reading = _BoundedReading(connection)
            try:
                return reading.rows()
            except CodexSchemaError as error:
                raise CodexSchemaError(f"{str(database)!r}: {error}") from None
            except sqlite3.DatabaseError as error:
                if isinstance(translated(error), DatabaseError):
                    raise
                # Whatever SQLite refused about the file, the caller did nothing wrong but name it.
                why = reading.exceeded or f"cannot be read: {error}"
                raise CodexSchemaError(f"{str(database)!r}: {why}") from error


class _BoundedReading:
    """Reads the goals of a database that a stranger may have made: no view, no trigger and no generated
    column runs, and rows, bytes and steps have an end.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.exceeded: str | None = None
        """Which bound ended the reading; None where none did."""
        self._steps_left = _MAX_SCHEMA_STEPS
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _MAX_SQL_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.text_factory = _text
        connection.set_progress_handler(self._progress, _STEPS_BETWEEN_LOOKS)
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "query_only = ON"):
            connection.execute(f"PRAGMA {pragma}")

    def rows(self) -> list[tuple[Any, ...]]:
        self._check_table()
        self._steps_left = _MAX_STEPS
        found: list[tuple[Any, ...]] = []
        size = 0
        # Not ordered by SQLite, which would have to take in everything before it hands out the first row.
        query = f"SELECT {', '.join(_COLUMNS)} FROM {_TABLE} NOT INDEXED"  # noqa: S608
        for row in self._connection.execute(query):
            size += sum(len(value) for value in row if isinstance(value, str | bytes))
            if len(found) == _MAX_GOALS or size > _MAX_BYTES:
                raise CodexSchemaError(
                    f"has more than {_MAX_GOALS} goals, or {_MAX_BYTES} bytes of them"
                )
            found.append(row)
        return sorted(found, key=_in_sql_order)

    def _check_table(self) -> None:
        execute = self._connection.execute
        kinds = execute(
            f"SELECT type FROM pragma_table_list('{_TABLE}') WHERE schema = 'main'"  # noqa: S608
        ).fetchall()
        if not kinds:
            raise CodexSchemaError(f"has no table {_TABLE!r}")
        if kinds != [("table",)]:
            raise CodexSchemaError(f"has a {kinds[0][0]} {_TABLE!r}, not a table")
        columns = dict(execute(f"SELECT name, hidden FROM pragma_table_xinfo('{_TABLE}')"))  # noqa: S608
        for column in _COLUMNS:
            if column not in columns:
                raise CodexSchemaError(f"the table {_TABLE!r} has no column {column!r}")
            if columns[column] != 0:
                raise CodexSchemaError(f"the column {column!r} of {_TABLE!r} is a generated one")

    def _progress(self) -> bool:
        self._steps_left -= _STEPS_BETWEEN_LOOKS
        if self._steps_left < 0:
            self.exceeded = "takes too many steps to read; it was not made by the program it is of"
        return self._steps_left < 0


def _in_sql_order(row: tuple[Any, ...]) -> tuple[tuple[int, Any], tuple[int, Any]]:
    """As `ORDER BY created_at_ms, thread_id`: nothing, numbers, texts, bytes."""
    created_at_ms, thread_id = row[_COLUMNS.index("created_at_ms")], row[0]
    return _by_kind(created_at_ms), _by_kind(thread_id)


def _by_kind(value: object) -> tuple[int, Any]:
    match value:
        case None:
            return 0, 0
        case int() | float():
            return 1, value
        case str():
            return 2, value.encode(errors="surrogateescape")
        case _:
            return 3, value


def _text(value: bytes) -> str:
    """Text that is not UTF-8 becomes what the checks refuse, instead of the end of the whole import."""
    return value.decode(errors="surrogateescape")
