"""A goal store for AI agents: what a thread is trying to do, its budgets, what it has used so far, and
everything that happened to it, in one SQLite file.

    with GoalStore.open("goals.db") as store:
        store.create("thread-1", "Ship the parser", token_budget=200_000)
        store.charge("thread-1", response.usage, response_id=response.id)      # what one response used
        store.charge("thread-1", tokens=1_250, seconds=3.2, turn_id="turn-1")  # or figures of your own
        with store.reserve("thread-1", tokens=12_000) as hold:                 # before a call: its
            hold.settle(ask(max_tokens=hold.tokens).usage)                     # budget is kept
"""

from importlib import import_module
from typing import TYPE_CHECKING

from goal_state.delivery.listeners import Subscription
from goal_state.domain.breakdown import Breakdown, Part
from goal_state.domain.budgets import BudgetKind
from goal_state.domain.counting import CountedTokens
from goal_state.domain.events import EventKind, GoalEvent
from goal_state.domain.goals import KEEP, Accounting, AccountingMode, Goal, GoalStatus, Keep
from goal_state.domain.holds import Headroom, HoldRecord, Limit
from goal_state.domain.prices import Prices
from goal_state.domain.requests import Charge
from goal_state.domain.usage import ThreadUsage, TokenUsage, UsageBaseline
from goal_state.errors import (
    BudgetExceededError,
    BudgetExhaustedError,
    ClaimHeldError,
    ClaimOvertakenError,
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
    HoldEndedError,
    HoldNotFoundError,
    IdempotencyConflictError,
    InvalidValueError,
    MissingGenaiPricesError,
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
    TreeError,
    TurnError,
    UnknownPriceError,
    UnsupportedDatabaseError,
    UsageOverflowError,
)
from goal_state.operations import Hold
from goal_state.operations.async_hold import AsyncHold
from goal_state.storage.repository import GoalRepository
from goal_state.store import GoalStore

if TYPE_CHECKING:
    from goal_state.aio import AsyncConsumer, AsyncGoalMeter, AsyncGoalStore
    from goal_state.delivery.consumers import Consumer
    from goal_state.meter import ExhaustedBudget, GoalMeter, Reading
    from goal_state.storage.verification import Difference

__all__ = [
    "KEEP",
    "Accounting",
    "AccountingMode",
    "AsyncConsumer",
    "AsyncGoalMeter",
    "AsyncGoalStore",
    "AsyncHold",
    "Breakdown",
    "BudgetExceededError",
    "BudgetExhaustedError",
    "BudgetKind",
    "Charge",
    "ClaimHeldError",
    "ClaimOvertakenError",
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
    "ExhaustedBudget",
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
    "Headroom",
    "Hold",
    "HoldEndedError",
    "HoldNotFoundError",
    "HoldRecord",
    "IdempotencyConflictError",
    "InvalidValueError",
    "Keep",
    "Limit",
    "MissingGenaiPricesError",
    "MissingZstandardError",
    "NestedCallError",
    "NotADatabaseError",
    "NotARolloutError",
    "NotAnExportError",
    "Part",
    "Prices",
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
    "TransactionError",
    "TreeError",
    "TurnError",
    "UnknownPriceError",
    "UnsupportedDatabaseError",
    "UsageBaseline",
    "UsageOverflowError",
]

__version__: str

_LATER = {
    "AsyncConsumer": "goal_state.aio",
    "AsyncGoalMeter": "goal_state.aio",
    "AsyncGoalStore": "goal_state.aio",
    "Consumer": "goal_state.delivery.consumers",
    "Difference": "goal_state.storage.verification",
    "GoalMeter": "goal_state.meter",
    "ExhaustedBudget": "goal_state.meter",
    "Reading": "goal_state.meter",
}


def __getattr__(name: str) -> object:
    """Imports what opening a store does not need when it is first asked for."""
    if name == "__version__":
        return import_module("importlib.metadata").version("goal-state")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
