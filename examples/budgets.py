"""Budgets that hold before the money is gone: 20 agents at once on one budget, sub-agents, and a cost cap.

    python examples/budgets.py

A fake provider answers, and keeps its own account of what it bills. The example ends with an error if a
promise is broken. Everything happens in a temporary folder; nothing is fetched.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from threading import Barrier, Condition, Lock

from goal_state import BudgetExceededError, GoalStore, TokenUsage, UnknownPriceError

AGENTS = 20
BUDGET = 1_000
MOST_TOKENS = 420
"""What one call can use at most, its answer cut there."""
FEWEST_TOKENS = 100
"""With fewer a call is not worth sending."""


class Provider:
    """Answers each agent at its own length, and bills what it has sent."""

    def __init__(self, at_once: int = 1) -> None:
        self.billed: dict[int, int] = {}
        self._all_are_in_flight = Barrier(at_once)
        self._lock = Lock()

    @property
    def total(self) -> int:
        return sum(self.billed.values())

    def respond(self, agent: int, most_tokens: int) -> TokenUsage:
        self._all_are_in_flight.wait()
        time.sleep(0.002)
        usage = TokenUsage(0, 0, 0, min(220 + 10 * agent, most_tokens))
        with self._lock:
            self.billed[agent] = usage.output_tokens
        return usage


class Settlements:
    """Lets those who were refused wait until a call under way is settled."""

    def __init__(self) -> None:
        self._changed = Condition()
        self.number = 0

    def add(self) -> None:
        with self._changed:
            self.number += 1
            self._changed.notify_all()

    def wait_for_more_than(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.number > number)


# -- 20 agents on one budget -------------------------------------------------------------------------


def without_holds(store: GoalStore) -> None:
    store.create("unheld", "Look, call, charge", token_budget=BUDGET)
    provider = Provider(at_once=AGENTS)  # a call takes longer than to look whether there is budget

    def agent(number: int) -> None:
        goal = store.get("unheld")
        if goal is not None and goal.remaining_tokens:
            store.charge("unheld", provider.respond(number, MOST_TOKENS))

    in_parallel(agent)
    goal = store.get("unheld")
    assert goal is not None
    over = goal.tokens_used - BUDGET
    row("without holds", f"{len(provider.billed)} calls", goal.tokens_used, f"{over:,} over")
    promise(goal.tokens_used == provider.total == 6_300, "what was billed is in the log")


def with_holds(store: GoalStore) -> None:
    store.create("held", "Reserve, call, settle", token_budget=BUDGET)
    provider, settlements = Provider(), Settlements()
    refused: dict[int, str] = {}
    peaks: list[int] = []

    def agent(number: int) -> None:
        while True:
            seen = settlements.number
            try:
                hold = store.reserve("held", tokens=MOST_TOKENS, at_least=FEWEST_TOKENS)
            except BudgetExceededError as error:
                if not error.waiting_helps:
                    refused[number] = str(error)
                    return
                settlements.wait_for_more_than(seen)
                continue
            with hold:
                goal = store.get("held")
                assert goal is not None
                peaks.append(goal.tokens_used + goal.held_tokens)
                hold.settle(provider.respond(number, hold.tokens))
            settlements.add()
            return

    in_parallel(agent)
    goal = store.get("held")
    assert goal is not None
    row("with holds", f"{len(provider.billed)} calls", goal.tokens_used, f"{len(refused)} refused")
    promise(max(peaks) <= BUDGET, "what is used and held stays within the budget")
    promise(goal.tokens_used == provider.total <= BUDGET, "what is used stays within the budget")
    promise(BUDGET - goal.tokens_used < FEWEST_TOKENS, "what was left was not enough for a call")
    promise(len(provider.billed) + len(refused) == AGENTS, "each agent was answered or refused")
    promise(goal.live_holds == 0, "no hold is left")
    print(f"\n  Used and held together never came to more than {max(peaks):,} of {BUDGET:,}.")
    print(f"  Each token is accounted for: the provider billed {provider.total:,}.")
    print(f"  Refused before anything was sent: agents {', '.join(map(str, sorted(refused)))}.")
    print(f"  They were told: {next(iter(refused.values()))}.")


# -- sub-agents --------------------------------------------------------------------------------------


def under_a_parent(store: GoalStore) -> None:
    store.create("lead", "Write the report", token_budget=BUDGET)
    agents = ("researcher", "writer", "critic")
    for name in agents:
        store.create(name, f"Be the {name}", token_budget=400, parent="lead")
    limited_by: dict[str, str] = {}
    while len(limited_by) < len(agents):
        for name, tokens in zip(agents, (150, 80, 60), strict=True):
            if name not in limited_by:
                try:
                    with store.reserve(name, tokens=tokens) as hold:
                        hold.settle(tokens=tokens)
                except BudgetExceededError as error:
                    limited_by[name] = error.thread_id
    goals = {name: store.get(name) for name in ("lead", *agents)}
    for name, goal in goals.items():
        assert goal is not None
        whose = limited_by.get(name)
        budget = "its own budget" if whose == name else f"the {whose}'s budget"
        ended = "pays for all three" if whose is None else f"stopped by {budget}"
        row(name, f"may use {goal.token_budget:,}", goal.tokens_used, ended)
    used = [goal.tokens_used for goal in goals.values() if goal is not None]
    promise(used[0] == sum(used[1:]) <= BUDGET, "a parent pays for those under it, and bounds them")
    promise(limited_by["critic"] == "lead", "the error says whose budget it is")


# -- money -------------------------------------------------------------------------------------------

_RATES = {"big": (Decimal("0.000003"), Decimal("0.000015"))}


def prices(usage: TokenUsage, model: str | None) -> Decimal | None:
    """What a response costs, None where nobody knows."""
    if model not in _RATES:
        return None
    of_input, of_output = _RATES[model]
    return usage.input_tokens * of_input + usage.output_tokens * of_output


def capped_cost(store: GoalStore) -> None:
    store.create("spender", "Stay below 25 cents", cost_budget="0.25")
    calls, billed = 0, Decimal(0)
    most, actual = TokenUsage(2_000, 0, 0, 1_000), TokenUsage(2_000, 0, 0, 700)
    try:
        while True:
            with store.reserve("spender", usage=most, model="big") as hold:
                hold.settle(actual, model="big")
            calls += 1
            billed += prices(actual, "big") or 0
    except BudgetExceededError:
        pass
    goal = store.get("spender")
    assert goal is not None
    assert goal.cost_budget is not None
    left = goal.cost_budget - goal.cost_used
    row("0.25 at the most", f"{calls} calls", goal.cost_used, f"{left} left, a call may take 0.021")
    promise(
        goal.cost_used == billed <= goal.cost_budget, "the cost is exact, and within its budget"
    )
    promise(left < Decimal("0.021"), "what was left was not enough for a call")
    try:
        store.reserve("spender", tokens=10, model="new")
    except UnknownPriceError:
        row("a model without a price", "0 calls", 0, "refused, for nobody knows its cost")
    else:
        promise(False, "an unknown price is never taken for 0")


# -- the frame ---------------------------------------------------------------------------------------


def in_parallel(agent: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(AGENTS) as threads:
        for done in [threads.submit(agent, number) for number in range(AGENTS)]:
            done.result()


def heading(sentence: str, unit: str = "tokens") -> None:
    print(f"\n# {sentence}\n\n  {'':<25}{'':>14}{unit:>9}")


def row(name: str, calls: str, used: int | Decimal, said: str) -> None:
    print(f"  {name:<25}{calls:>14}{used:>9,}  {said}")


def promise(is_kept: bool, what: str) -> None:
    if not is_kept:
        sys.exit(f"A promise was broken: {what}.")


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="goal-state-budgets-") as folder,
        GoalStore.open(Path(folder) / "goals.db", prices=prices) as store,
    ):
        heading(f"{AGENTS} agents at once on one budget of {BUDGET:,} tokens.")
        without_holds(store)
        with_holds(store)
        heading(f"Three sub-agents, 400 tokens each, under a lead with {BUDGET:,}.")
        under_a_parent(store)
        heading("A cost budget, kept by the prices of the models.", unit="cost")
        capped_cost(store)
        promise(not store.verify(), "every goal is what its log adds up to")
    print("\nEvery goal is what its log adds up to.")


if __name__ == "__main__":
    main()
