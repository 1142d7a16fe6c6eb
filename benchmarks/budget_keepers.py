"""Ours and other libraries that keep a budget of money, each used for a call as its documentation says."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from goal_state import BudgetExceededError, GoalExistsError, GoalRepository, GoalStore

__all__ = ["KEEPERS", "OURS", "Budget", "Keeper"]

TOKENS: Final = 100
QUARTER: Final = TOKENS // 4
TOKEN_COST: Final = Decimal("0.0001")
COST: Final = TOKENS * TOKEN_COST
"""What a call costs."""

Send = Callable[[], object]


def cost(tokens: int) -> Decimal:
    """What so many tokens cost."""
    return tokens * TOKEN_COST


class Budget(ABC):
    """A budget of a number of calls at `COST`, opened by one process; any of its threads may use it."""

    @abstractmethod
    def call(self, send: Send) -> bool:
        """Makes a call of `TOKENS`, if the budget has room for it; whether it was sent."""

    @abstractmethod
    def repeat(self) -> None:
        """Makes a call, and has a step that was tried again record its response once more."""

    @abstractmethod
    def cut(self) -> None:
        """Makes a call whose stream is cut after a quarter."""

    def fill(self, calls: int) -> None:
        """Makes many calls, as fast as it can."""
        for _ in range(calls):
            self.call(lambda: None)

    def close(self) -> None:  # noqa: B027
        """Lets go of what is open, where something is."""


class Reserving(Budget):
    """One that is asked before a call, and told its usage after it."""

    @abstractmethod
    def begin(self) -> Any:
        """What stands for a call that may be sent; None where it may not."""

    @abstractmethod
    def settle(self, hold: Any, tokens: int, response_id: str) -> None:
        """Records what a call has used."""

    def call(self, send: Send) -> bool:
        hold = self.begin()
        if hold is None:
            return False
        send()
        self.settle(hold, TOKENS, uuid.uuid4().hex)
        return True

    def repeat(self) -> None:
        for _ in range(2):
            self.settle(self.begin(), TOKENS, "response-1")

    def cut(self) -> None:
        self.settle(self.begin(), QUARTER, uuid.uuid4().hex)


class Ours(Reserving):
    def __init__(self, place: Path, calls: int) -> None:
        self.store = GoalStore.open(place / "goals.db")
        with suppress(GoalExistsError):
            self.store.create("thread-1", "Ship the parser", cost_budget=calls * COST)

    def begin(self) -> Any:
        try:
            return self.store.reserve("thread-1", cost=COST, tokens=TOKENS)
        except BudgetExceededError:
            return None

    def settle(self, hold: Any, tokens: int, response_id: str) -> None:
        hold.settle(tokens=tokens, cost=cost(tokens), response_id=response_id)

    def cut(self) -> None:
        with self.begin() as hold:
            hold.observed(tokens=QUARTER, cost=cost(QUARTER))

    def fill(self, calls: int) -> None:
        def work(repository: GoalRepository) -> None:
            for _ in range(calls):
                hold = repository.reserve("thread-1", cost=COST, tokens=TOKENS)
                hold.settle(tokens=TOKENS, cost=COST, response_id=uuid.uuid4().hex)

        self.store.transact(work)

    def close(self) -> None:
        self.store.close()


class Floe(Reserving):
    def __init__(self, place: Path, calls: int) -> None:
        from floe_guard import BudgetExceeded, BudgetGuard, ManualPrice, SqliteStore

        self._refused = BudgetExceeded
        price = ManualPrice(float(TOKEN_COST), float(TOKEN_COST))
        self._guard = BudgetGuard(
            float(calls * COST),
            price_overrides={"fake": price},
            on_block=lambda _spent, _limit: None,
            window="utc-day",
            store=SqliteStore(place / "floe.db"),
            max_log_events=100,
        )

    def begin(self) -> Any:
        try:
            return self._guard.reserve(float(COST))
        except self._refused:
            return None

    def settle(self, hold: Any, tokens: int, _response_id: str) -> None:
        self._guard.settle("fake", 0, tokens, reserved=hold)


class Cayu(Reserving):
    def __init__(self, place: Path, calls: int) -> None:
        from cayu.budgets import BudgetLimit, BudgetReservation

        self._path = place / "cayu.db"
        self._limit = BudgetLimit.usd(
            calls * COST,
            scope="app",
            reservation=BudgetReservation(max_input_tokens=0, max_output_tokens=TOKENS),
        )
        self._mine = threading.local()
        self._opened: list[tuple[Any, Any]] = []
        self._ledger()  # makes the schema, before there are threads

    def _ledger(self) -> tuple[Any, Any]:
        """A ledger and an event loop of the thread's own: its lock belongs to a loop."""
        from cayu.storage.budget_ledger import SQLiteBudgetLedger

        if not hasattr(self._mine, "pair"):
            self._mine.pair = asyncio.new_event_loop(), SQLiteBudgetLedger(self._path)
            self._opened.append(self._mine.pair)
        return self._mine.pair

    def begin(self) -> Any:
        from cayu.execution_units import new_model_step_identity

        loop, ledger = self._ledger()
        result = loop.run_until_complete(
            ledger.reserve(
                limit=self._limit,
                session_id="session-1",
                agent_name="agent",
                provider_name="openai",
                model="fake",
                model_attempt_identity=new_model_step_identity().new_attempt(),
                requested_amount=COST,
            )
        )
        return result.record.reservation_id if result.accepted else None

    def settle(self, hold: Any, tokens: int, _response_id: str) -> None:
        loop, ledger = self._ledger()
        loop.run_until_complete(ledger.reconcile(reservation_id=hold, actual_amount=cost(tokens)))

    def close(self) -> None:
        for loop, ledger in self._opened:
            ledger._connection.close()  # its own `close` belongs to the thread that opened it
            loop.close()


class AgentGuard(Reserving):
    def __init__(self, place: Path, calls: int) -> None:
        from agentguard import BudgetGuard, JsonFileStateStore
        from agentguard.guards import BudgetExceeded

        self._refused = BudgetExceeded
        self._guard: Any = BudgetGuard(
            max_cost_usd=float(calls * COST),
            store=JsonFileStateStore(place / "agentguard.json", lock_timeout=60),
            key="benchmark",
        )

    def begin(self) -> Any:
        hold = uuid.uuid4().hex
        try:
            self._guard.reserve_for_dispatch(hold, cost_bound=float(COST))
        except self._refused:
            return None
        return hold

    def settle(self, hold: Any, tokens: int, _response_id: str) -> None:
        with suppress(self._refused):  # it has recorded the usage, and says that the budget is over
            self._guard.commit_reservation(hold, tokens=tokens, cost_usd=float(cost(tokens)))


class GiuggiaiMeter(Reserving):
    def __init__(self, place: Path, calls: int) -> None:
        import giuggiai_meter

        self._meter = giuggiai_meter
        self._path = str(place / "usage.db")
        os.environ["GIUGGIAI_METER_DB"] = self._path
        match = {"project": "benchmark"}
        limit = float(calls * COST)
        self._config = {"budgets": [{"id": "b", "match": match, "limit": limit, "period": "total"}]}
        per_million = float(TOKEN_COST * 1_000_000)
        entry = {"model": "fake", "output": per_million, "effective_from": "2020-01-01"}
        self._prices = {"fake": [entry]}

    def begin(self) -> Any:
        decision = self._meter.check(
            "benchmark",
            model="fake",
            estimate_usd=float(COST),
            db=self._path,
            config=self._config,
            prices=self._prices,
        )
        return True if decision.allow else None

    def settle(self, _hold: Any, tokens: int, response_id: str) -> None:
        self._meter.log_usage(
            "benchmark", model="fake", output_tokens=tokens, request_id=response_id
        )


class AgentBudget(Reserving):
    def __init__(self, _place: Path, calls: int) -> None:
        from agentbudget import AgentBudget as Kept
        from agentbudget import BudgetExhausted

        self._refused = BudgetExhausted
        kept = Kept(max_spend=float(calls * COST), max_repeated_calls=10**9)
        self._session = kept.session().__enter__()

    def begin(self) -> Any:
        return None if self._session.would_exceed(float(COST)) else True

    def settle(self, _hold: Any, tokens: int, _response_id: str) -> None:
        with suppress(self._refused):  # the call was made, and is not recorded
            self._session.track(None, cost=float(cost(tokens)))


class HarnessSpend(Budget):
    """It wraps an agent's requests, so the model is one that answers by itself."""

    def __init__(self, _place: Path, calls: int) -> None:
        from pydantic_ai import Agent
        from pydantic_ai.messages import ModelResponse, TextPart
        from pydantic_ai.models.function import FunctionModel
        from pydantic_ai.usage import RequestUsage
        from pydantic_ai_harness.spend import Budget as SpendBudget
        from pydantic_ai_harness.spend import SpendLimitExceeded, SpendLimits

        self._refused = SpendLimitExceeded
        self._send: ContextVar[Send] = ContextVar("send")
        self._mine = threading.local()

        async def answer(_messages: Any, _info: Any) -> ModelResponse:
            self._send.get()()
            return ModelResponse(parts=[TextPart("done")], usage=RequestUsage(output_tokens=TOKENS))

        async def stream(_messages: Any, _info: Any) -> AsyncIterator[str]:
            for _ in itertools.repeat(None, TOKENS):
                yield "word "

        limits: Any = SpendLimits(
            budgets=[SpendBudget(usd=calls * COST, window="total")],
            price=lambda response: cost(response.usage.output_tokens),
        )
        self._agent: Any = Agent(
            FunctionModel(answer, stream_function=stream), capabilities=[limits]
        )

    def _run(self, work: Any) -> Any:
        if not hasattr(self._mine, "loop"):
            self._mine.loop = asyncio.new_event_loop()
        return self._mine.loop.run_until_complete(work)

    def call(self, send: Send) -> bool:
        self._send.set(send)
        try:
            self._run(self._agent.run("go"))
        except self._refused:
            return False
        return True

    def repeat(self) -> None:
        for _ in range(2):
            self.call(lambda: None)

    def cut(self) -> None:
        async def some() -> None:
            async with self._agent.run_stream("go") as reply:
                words = 0
                async for _ in reply.stream_text(delta=True, debounce_by=None):
                    words += 1
                    if words == QUARTER:
                        break

        self._run(some())


@dataclass(frozen=True, slots=True)
class Keeper:
    """A library that keeps budgets."""

    name: str
    package: str
    open: Callable[[Path, int], Budget]
    """Opens the budget of a folder, so many calls wide, whether it is there or not."""
    note: str
    is_in_memory: bool = False


OURS: Final = Keeper(
    "goal_state",
    "goal-state",
    Ours,
    "SQLite, synchronous=FULL",
)
KEEPERS: Final = (
    OURS,
    Keeper(
        "floe-guard SqliteStore",
        "floe-guard",
        Floe,
        "SQLite, synchronous=FULL, a connection for each step; two sums in floats, no ledger;"
        " a hold of a process that died is held for good",
    ),
    Keeper("cayu ledger", "cayu", Cayu, "SQLite, synchronous=FULL; a row for each reservation"),
    Keeper(
        "agentguard47 holds",
        "agentguard47",
        AgentGuard,
        "a JSON file, written whole and synced for each step; floats",
    ),
    Keeper(
        "giuggiai-meter",
        "giuggiai-meter",
        GiuggiaiMeter,
        "SQLite, synchronous=FULL; asks, then logs: nothing is set aside for a call in flight",
    ),
    Keeper(
        "pydantic-ai-harness spend",
        "pydantic-ai-harness",
        HarnessSpend,
        "in memory; asks, then adds: nothing is set aside for a call in flight; a call is a whole run of"
        " an agent",
        is_in_memory=True,
    ),
    Keeper(
        "agentbudget",
        "agentbudget",
        AgentBudget,
        "in memory; asks, then adds: nothing is set aside for a call in flight, and what would exceed"
        " the budget is not recorded",
        is_in_memory=True,
    ),
)
