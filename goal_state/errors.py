"""Every error that the library raises, in one tree.

`GoalStateError` is the root. Below it, `RequestError` is what the caller did wrong (mend the call and
try again), `DatabaseError` is what the database did (the call was fine) and `DeliveryError` is what a
receiver of events did. Which database error it is
was decided by SQLite's result code, never by the text of a message.
"""

from __future__ import annotations

from copy import copy as copy_of
from typing import TypeVar

__all__ = [
    "BudgetExceededError",
    "BudgetExhaustedError",
    "ClaimHeldError",
    "ClaimOvertakenError",
    "CodexSchemaError",
    "DatabaseBusyError",
    "DatabaseCorruptError",
    "DatabaseError",
    "DatabaseFullError",
    "DatabaseIOError",
    "DatabaseLocationError",
    "DatabaseReadOnlyError",
    "DatabaseReplacedError",
    "DeliveryError",
    "ForeignDatabaseError",
    "ForkedStoreError",
    "GoalExistsError",
    "GoalNotFoundError",
    "GoalStateError",
    "HoldEndedError",
    "HoldNotFoundError",
    "IdempotencyConflictError",
    "InvalidValueError",
    "MissingGenaiPricesError",
    "MissingZstandardError",
    "NestedCallError",
    "NotADatabaseError",
    "NotARolloutError",
    "NotAnExportError",
    "RequestError",
    "RolloutClosedError",
    "RolloutError",
    "SchemaError",
    "SchemaIncompleteError",
    "SchemaOutOfDateError",
    "SchemaTooNewError",
    "SettingsConflictError",
    "StaleGoalError",
    "StoreClosedError",
    "StoreNotEmptyError",
    "ThreadNotFoundError",
    "TransactionError",
    "TreeError",
    "TurnError",
    "UnknownPriceError",
    "UnsupportedDatabaseError",
    "UsageOverflowError",
]

Error = TypeVar("Error", bound=BaseException)


def fresh(error: Error) -> Error:
    """A copy of an error that is raised to several callers: each gets one of its own, so that no traceback
    grows with theirs.
    """
    copy: Error = copy_of(error)
    copy.__cause__ = error.__cause__
    copy.__context__ = None
    return copy.with_traceback(None)


class GoalStateError(Exception):
    """Root of every error that `goal_state` raises on purpose."""


class RequestError(GoalStateError):
    """The call cannot be carried out as it was made. Nothing that it asked for was written."""

    overdue_thread_id: str | None = None
    """The thread whose goal was past its deadline, if it was: that is written all the same."""


class InvalidValueError(RequestError, ValueError):
    """An argument is outside its bounds.

    Attributes:
        field: the argument's name.
        problem: what is wrong with it, with the bound that it breaks.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class UsageOverflowError(InvalidValueError):
    """A charge would carry a counter past 2^63-1, the largest integer that the database holds."""


class NotAnExportError(InvalidValueError):
    """What was to be imported is not what an export wrote: it was cut off, damaged or changed.

    Attributes:
        line: the number of the line at which that shows, from 1.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}", problem)
        self.line = line


class GoalExistsError(RequestError):
    """The thread already has a goal that is not complete."""


class GoalNotFoundError(RequestError):
    """The thread has no goal."""


class StaleGoalError(RequestError):
    """The thread's goal is no longer the one named by `expected_goal_id`."""


class BudgetExhaustedError(RequestError):
    """A budget of the goal would still be reached, so it cannot become active."""


class BudgetExceededError(RequestError):
    """What was to be set aside is not left of a budget, of the goal's own or of one above it, or one of these
    goals is not active. Nothing was reserved, and nothing needs to be sent.

    Attributes:
        thread_id, goal_id: whose budget it is.
        kind: `"tokens"`, `"cost"` or `"calls"`; None where the goal is not active.
        budget, used, held, asked: the figures, as they are stored: costs in 10^-9 of the currency.
        waiting_helps: whether holds of others are all that is in the way.
    """

    def __init__(
        self,
        message: str,
        *,
        thread_id: str = "",
        goal_id: str = "",
        kind: str | None = None,
        budget: int | None = None,
        used: int | None = None,
        held: int | None = None,
        asked: int | None = None,
        waiting_helps: bool = False,
    ) -> None:
        super().__init__(message)
        self.thread_id = thread_id
        self.goal_id = goal_id
        self.kind = kind
        self.budget = budget
        self.used = used
        self.held = held
        self.asked = asked
        self.waiting_helps = waiting_helps


class UnknownPriceError(RequestError):
    """Nobody can tell what the call will cost at most, and a cost budget bounds it. Nothing was reserved."""


class HoldNotFoundError(RequestError):
    """There is no such hold, or it ended so long ago that it was pruned."""


class HoldEndedError(RequestError):
    """The hold has ended, and in another way than was asked for now. What it charged stands, and nothing was
    added to it.
    """


class ClaimHeldError(RequestError):
    """Another owner runs the goal, and its claim has not expired."""


class ClaimOvertakenError(RequestError):
    """The claim that was named is no longer the goal's: another owner has taken it over. Nothing was changed;
    stop working on the goal.
    """


class TreeError(RequestError):
    """The goal cannot have that parent: it would work for itself, or the tree would be too deep."""


class IdempotencyConflictError(RequestError):
    """A key (an `idempotency_key` or a `response_id`) was used before in this thread, with other tokens. That
    charge stands; the one that was refused added nothing to it.
    """


class NestedCallError(RequestError):
    """A store was called by a thread that is in the midst of a transaction of the same store: from inside
    `transact(work)` or a `with store.transaction()` block, or from a signal handler. Inside, call the
    repository that was handed over.
    """


class StoreClosedError(RequestError):
    """The store has been closed."""


class StoreNotEmptyError(RequestError):
    """The store to import into holds something already."""


class ForkedStoreError(RequestError):
    """The process was forked while its parent could not let go of the database: it was in memory, or a
    transaction, an export or a backup was open. The child cannot use the file; one that is started anew
    (spawned, or another program) can.
    """


class TransactionError(RequestError):
    """What was asked for needs a transaction that its owner ends, and there is none: a connection in
    autocommit mode, a closed one, a transaction that was undone, or another's is open on the connection.
    """


class TurnError(RequestError):
    """A turn was reported that is unknown, runs already or does not run. Nothing was charged."""


class ThreadNotFoundError(RequestError):
    """No such thread is live, and there is neither a rollout nor a record of it."""


class MissingGenaiPricesError(RequestError):
    """Prices of models were asked for, and the package `genai-prices` is not installed."""


class RolloutError(RequestError):
    """The rollout cannot be read or written as was asked."""


class NotARolloutError(RolloutError):
    """The path leads to something else than a rollout: other contents, a directory, a symlink loop."""


class MissingZstandardError(RolloutError):
    """The rollout is compressed with Zstandard, and the package `zstandard` is not installed."""


class RolloutClosedError(RolloutError):
    """The writer of the rollout has been closed."""


class CodexSchemaError(RequestError):
    """The data directory keeps its goals in a way that is not known here."""


class DatabaseLocationError(RequestError):
    """The path or URL does not lead to a file that can hold a database (no such folder, a directory …)."""


class NotADatabaseError(DatabaseLocationError):
    """The file is not a SQLite database."""


class ForeignDatabaseError(DatabaseLocationError):
    """The file is a SQLite database of another application."""


class UnsupportedDatabaseError(RequestError):
    """This kind or version of database cannot keep goals (SQLite older than 3.37, another dialect)."""


class SchemaError(RequestError):
    """The schema of the database and that of the library do not fit."""


class SchemaIncompleteError(SchemaError):
    """Some of our tables are there and others are not: something else dropped them, or a table of the
    application's own has the name of one of ours. The database was left untouched.
    """


class SchemaOutOfDateError(SchemaError):
    """The schema is older than the library and migrating was not asked for."""


class SchemaTooNewError(SchemaError):
    """The schema was made by a newer version of the library. The database was left untouched."""


class SettingsConflictError(RequestError):
    """The database keeps a setting that all who charge there share, and another one was asked for. Nothing
    was charged.

    Attributes:
        setting: the argument's name.
        stored: what the database keeps.
        asked: what was asked for.
    """

    def __init__(self, setting: str, stored: str, asked: str) -> None:
        super().__init__(setting, stored, asked)
        self.setting = setting
        self.stored = stored
        self.asked = asked

    def __str__(self) -> str:
        return (
            f"the goals of this database are charged with {self.setting} {self.stored!r}, not {self.asked!r},"
            f" and one goal cannot add up both: open it with {self.setting} {self.stored!r}, or keep goals"
            f" with {self.asked!r} in a database of their own"
        )


class DatabaseError(GoalStateError):
    """The database could not do what it was asked. The transaction was rolled back.

    Attributes:
        code: the database's own: SQLite's extended result code, or None where there is none.
    """

    def __init__(self, message: str, *, code: int | str | None = None) -> None:
        super().__init__(message)
        self.code = code


class DatabaseBusyError(DatabaseError):
    """Another process held the write lock for longer than the busy timeout."""


class DatabaseCorruptError(DatabaseError):
    """The database file is damaged, or the disk: SQLite takes what it cannot read for damaged."""


class DatabaseFullError(DatabaseError):
    """The disk, or the quota for the database, is full."""


class DatabaseReadOnlyError(DatabaseError):
    """The database, or the folder it lies in, cannot be written to."""


class DatabaseIOError(DatabaseError):
    """The operating system could not read, write or sync the file.

    If it was a commit that failed, and the process or the machine stops before it writes again, the change
    may be there all the same when the file is opened next; an idempotency key makes repeating it safe.
    """


class DatabaseReplacedError(DatabaseError):
    """The file was moved, deleted or replaced by another one while the store had it open. Nothing is written
    to it any more. Once it is back in its place the store goes on; for another file open a new store.
    """


class DeliveryError(GoalStateError):
    """A sink could not hand over a batch of events. Its consumer hands it the same ones again.

    Attributes:
        retry_after_seconds: the receiver asked not to be tried again before so many seconds have passed;
            0 if it did not ask.
    """

    def __init__(self, message: str, *, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
