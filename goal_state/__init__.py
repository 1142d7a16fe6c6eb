"""A goal store for AI agents: what a thread is trying to do, its token budget, what it has used so far,
and everything that happened to it, in one SQLite file.

    with GoalStore.open("goals.db") as store:
        goal = store.create("thread-1", "Ship the parser", token_budget=200_000)
        store.charge("thread-1", tokens=1_250, seconds=3.2, turn_id="turn-1")
"""

from importlib import import_module
from typing import TYPE_CHECKING

from goal_state.delivery.listeners import Subscription
from goal_state.domain.counting import CountedTokens
from goal_state.domain.events import EventKind, GoalEvent
from goal_state.domain.goals import KEEP, Accounting, AccountingMode, Goal, GoalStatus, Keep
from goal_state.domain.requests import Charge
from goal_state.domain.usage import ThreadUsage, TokenUsage, TokenUsageInfo, UsageBaseline
from goal_state.errors import (
    BudgetExhaustedError,
    CodexSchemaError,
    DatabaseBusyError,
    DatabaseCorruptError,
    DatabaseError,
    DatabaseFullError,
    DatabaseIOError,
    DatabaseLocationError,
    DatabaseReadOnlyError,
    DatabaseReplacedError,
    DeliveryError,
    ForeignDatabaseError,
    ForkedStoreError,
    GoalExistsError,
    GoalNotFoundError,
    GoalStateError,
    IdempotencyConflictError,
    InvalidValueError,
    MissingZstandardError,
    NestedCallError,
    NotADatabaseError,
    NotAnExportError,
    NotARolloutError,
    RequestError,
    RolloutClosedError,
    RolloutError,
    SchemaError,
    SchemaIncompleteError,
    SchemaOutOfDateError,
    SchemaTooNewError,
    SettingsConflictError,
    StaleGoalError,
    StoreClosedError,
    StoreNotEmptyError,
    ThreadNotFoundError,
    TransactionError,
    TurnError,
    UnsupportedDatabaseError,
    UsageOverflowError,
)
from goal_state.storage.repository import GoalRepository
from goal_state.store import GoalStore

if TYPE_CHECKING:
    from goal_state.delivery.consumers import Consumer
    from goal_state.meter import GoalMeter, Reading
    from goal_state.storage.verification import Difference

__all__ = [
    "KEEP",
    "Accounting",
    "AccountingMode",
    "BudgetExhaustedError",
    "Charge",
    "CodexSchemaError",
    "Consumer",
    "CountedTokens",
    "DatabaseBusyError",
    "DatabaseCorruptError",
    "DatabaseError",
    "DatabaseFullError",
    "DatabaseIOError",
    "DatabaseLocationError",
    "DatabaseReadOnlyError",
    "DatabaseReplacedError",
    "DeliveryError",
    "Difference",
    "EventKind",
    "ForeignDatabaseError",
    "ForkedStoreError",
    "Goal",
    "GoalEvent",
    "GoalExistsError",
    "GoalMeter",
    "GoalNotFoundError",
    "GoalRepository",
    "GoalStateError",
    "GoalStatus",
    "GoalStore",
    "IdempotencyConflictError",
    "InvalidValueError",
    "Keep",
    "MissingZstandardError",
    "NestedCallError",
    "NotADatabaseError",
    "NotARolloutError",
    "NotAnExportError",
    "Reading",
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
    "Subscription",
    "ThreadNotFoundError",
    "ThreadUsage",
    "TokenUsage",
    "TokenUsageInfo",
    "TransactionError",
    "TurnError",
    "UnsupportedDatabaseError",
    "UsageBaseline",
    "UsageOverflowError",
]

_LATER = {
    "Consumer": "goal_state.delivery.consumers",
    "Difference": "goal_state.storage.verification",
    "GoalMeter": "goal_state.meter",
    "Reading": "goal_state.meter",
}


def __getattr__(name: str) -> object:
    """Imports what opening a store does not need when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
