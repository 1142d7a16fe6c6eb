"""Eight processes reserve, settle, release, cut and expire over trees, and are killed meanwhile.

    python -m tests.proof.hold_storm FOLDER SEED CALLS

Each change of a goal is seen by a trigger of the database itself, so that no moment is missed at which more
than a budget is used and held. Prints its figures as one JSON object; fails with a traceback at the first
violated check.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import sqlite3
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from goal_state import EventKind, GoalRepository, GoalStore, TokenUsage
from goal_state.domain.events import Estimate
from goal_state.errors import BudgetExceededError, HoldEndedError
from goal_state.operations.hold import Hold
from goal_state.storage import wall_clock

__all__ = ["storm"]

WORKERS: Final = 8
TREES: Final = 4
LOOSE: Final = {"1", "3"}
"""The trees in which some settle above their holds."""
TOKEN_BUDGET, CALL_BUDGET, COST_BUDGET = 300, 30, 3
EXPIRES_IN_SECONDS: Final = 0.05
HOUR_MS: Final = 3_600_000

_WATCH = """
CREATE TABLE host_over (goal_id TEXT, tokens INTEGER, calls INTEGER, cost_nanos INTEGER);
CREATE TRIGGER host_watch AFTER UPDATE ON goal_state_goals WHEN
    NEW.tokens_used + NEW.held_tokens > NEW.token_budget
    OR NEW.calls_used + NEW.held_calls > NEW.call_budget
    OR NEW.cost_used_nanos + NEW.held_cost_nanos > NEW.cost_budget_nanos
BEGIN
    INSERT INTO host_over VALUES (
        NEW.goal_id,
        NEW.tokens_used + NEW.held_tokens - NEW.token_budget,
        NEW.calls_used + NEW.held_calls - NEW.call_budget,
        NEW.cost_used_nanos + NEW.held_cost_nanos - NEW.cost_budget_nanos
    );
END;
CREATE TRIGGER host_negative AFTER UPDATE ON goal_state_goals WHEN
    MIN(NEW.live_holds, NEW.held_tokens, NEW.held_calls, NEW.held_cost_nanos) < 0
BEGIN
    SELECT RAISE(ABORT, 'more was given back than was held');
END;
"""


def _threads() -> Iterator[tuple[str, str | None]]:
    """Each thread and its parent: trees of three levels."""
    for tree in map(str, range(TREES)):
        yield f"{tree}", None
        for middle in ("a", "b"):
            yield f"{tree}{middle}", tree
            for leaf in ("x", "y"):
                yield f"{tree}{middle}{leaf}", f"{tree}{middle}"


class Worker:
    """One process that calls until it has made its calls, or is killed."""

    def __init__(self, store: GoalStore, name: str, seed: int, said: int) -> None:
        self._store = store
        self._name = name
        self._draw = random.Random(f"{seed} {name}")
        self._said = said
        self._threads = [thread_id for thread_id, _ in _threads()]
        self._left: list[Hold] = []

    def work(self, calls: int) -> None:
        for number in range(calls):
            what, more = self._call(f"{self._name}.{number}")
            os.write(self._said, f"{json.dumps([what, *more])}\n".encode())

    def _call(self, key: str) -> tuple[str, list[Any]]:
        draw = self._draw
        if draw.random() < 0.05:
            return "expire", [self._store.expire_holds()]
        if self._left and draw.random() < 0.3:
            return "late", self._settle(self._left.pop(), key)
        tokens, is_dispatched = draw.randint(1, 40), draw.random() < 0.8
        try:
            hold = self._store.reserve(
                draw.choice(self._threads),
                tokens=tokens,
                cost=f"0.{tokens:03}",
                at_least=draw.choice([None, 1, tokens]),
                key=key,
                expires_in=EXPIRES_IN_SECONDS,
                dispatched=is_dispatched,
            )
        except BudgetExceededError as error:
            if error.kind is None and draw.random() < 0.5:
                self._raise(error.thread_id)
                return "raised", []
            return "refused", []
        end = draw.choice(["settle", "settle", "settle", "release", "cut", "observe", "leave"])
        with contextlib.suppress(HoldEndedError):  # it was slow, and its hold has expired
            if not is_dispatched and draw.random() < 0.8:
                hold.dispatched()
                is_dispatched = True
            match end:
                case _ if not is_dispatched:
                    return (
                        "unsent",
                        [],
                    )  # so that it must not be settled: it is free once it expires
                case "settle":
                    return "settled", self._settle(hold, key)
                case "release":
                    hold.release()
                case "observe":
                    hold.observed(tokens=hold.tokens // 2, cost=hold.cost / 2)
                    hold.cut()
                case "cut":
                    hold.cut()
                case _:
                    self._left.append(hold)
        return end, []

    def _settle(self, hold: Hold, key: str) -> list[Any]:
        tokens = self._draw.randint(1, hold.tokens)
        if hold.thread_id[0] in LOOSE and self._draw.random() < 0.3:
            tokens = hold.tokens + self._draw.randint(1, 10)
        cost = hold.cost * min(tokens, hold.tokens) / hold.tokens
        cost = cost.quantize(hold.cost.__class__("1e-9"), rounding="ROUND_DOWN")
        for repeat in (False, True):
            result = hold.settle(TokenUsage(tokens), cost=cost, response_id=key)
            assert result.applied
            assert result.duplicate or not repeat
        return [hold.thread_id, key, tokens]

    def _raise(self, thread_id: str) -> None:
        """Gives a goal whose budget is used up more of each, never less."""

        def more(repository: GoalRepository) -> None:
            goal = repository.get(thread_id)
            assert goal is not None
            repository.resume(
                thread_id,
                token_budget=goal.tokens_used + goal.held_tokens + TOKEN_BUDGET,
                call_budget=goal.calls_used + goal.held_calls + CALL_BUDGET,
                cost_budget=goal.cost_used + COST_BUDGET + TOKEN_BUDGET,
            )

        self._store.transact(more)


class Storm:
    """The database, and what its workers have said of what they did."""

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir()
        self.path = folder / "goals.db"
        self.seed = seed
        self.said = folder / "said"
        self.said.touch()
        self.figures: Counter[str] = Counter()
        with GoalStore.open(self.path, durability="normal") as store:
            for thread_id, parent in _threads():
                store.create(
                    thread_id,
                    "Ship",
                    parent=parent,
                    token_budget=TOKEN_BUDGET,
                    call_budget=CALL_BUDGET,
                    cost_budget=COST_BUDGET,
                )
        with closing(sqlite3.connect(self.path)) as raw:
            raw.executescript(_WATCH)

    def run(self, calls: int) -> None:
        """Has workers call so often in all, killing one of them now and then."""
        draw = random.Random(self.seed)
        workers: dict[int, None] = {}
        begun, deadline = 0, time.monotonic() + 600
        next_kill = time.monotonic() + 0.5
        while (done := self.said.read_bytes().count(b"\n")) < calls or workers:
            assert time.monotonic() < deadline, f"{done} of {calls} calls were made"
            for worker in list(workers):
                ended, status = os.waitpid(worker, os.WNOHANG)
                if ended:
                    del workers[worker]
                    assert status in (0, signal.SIGKILL), status
            if done < calls and len(workers) < WORKERS:
                workers[self._start(begun, calls // WORKERS)] = None
                begun += 1
            if done >= calls:
                for worker in workers:
                    os.kill(worker, signal.SIGKILL)
            elif time.monotonic() > next_kill and workers:
                next_kill = time.monotonic() + draw.uniform(0.05, 0.5)
                os.kill(draw.choice(list(workers)), signal.SIGKILL)
                self.figures["kills"] += 1
            time.sleep(0.01)
        self.figures["workers"] = begun

    def _start(self, number: int, calls: int) -> int:
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            said = os.open(self.said, os.O_WRONLY | os.O_APPEND)
            with GoalStore.open(self.path, durability="normal") as store:
                Worker(store, f"worker {number}", self.seed, said).work(calls)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def check(self) -> None:
        """Nothing was ever above a budget but for settlements above their holds; all sums are exact."""
        now_ms = wall_clock.now_ms
        with GoalStore.open(self.path, durability="normal") as store:
            assert store.verify() == []
            wall_clock.now_ms = lambda: now_ms() + HOUR_MS
            self.figures["expired at the end"] = store.expire_holds()
            wall_clock.now_ms = now_ms
            assert store.holds() == []
            assert store.verify() == []
            self._check_sums(store)
        with closing(sqlite3.connect(self.path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            self._check_overs(raw)
            self._check_ends(raw)

    def _check_sums(self, store: GoalStore) -> None:
        paid: Counter[tuple[str, str]] = Counter()
        keys: dict[str, tuple[str, Estimate | None, int]] = {}
        for event in store.events():
            if event.kind is not EventKind.USAGE_ACCOUNTED:
                continue
            for name, delta in (
                ("tokens", event.tokens_delta),
                ("cost", event.cost_delta_nanos),
                ("calls", event.calls_delta),
            ):
                paid[event.origin_goal_id or event.goal_id, name] += (
                    0 if event.origin_goal_id else delta
                )
            if event.idempotency_key is not None:
                assert event.idempotency_key not in keys
                keys[event.idempotency_key] = (event.thread_id, event.estimate, event.tokens_delta)
        goals = list(store.goals())
        for goal in goals:
            below = [g for g in goals if goal.goal_id in (g.ancestor_goal_ids or "").split()]
            for name, amount in (
                ("tokens", goal.tokens_used),
                ("cost", goal.cost_used_nanos),
                ("calls", goal.calls_used),
            ):
                assert amount == sum(paid[g.goal_id, name] for g in [goal, *below]), (goal, name)
            assert (goal.live_holds, goal.held_tokens, goal.held_calls, goal.held_cost_nanos) == (
                0,
                0,
                0,
                0,
            )
        for line in self.said.read_text().splitlines():
            what, *more = json.loads(line)
            self.figures[what] += 1
            if what in ("settled", "late"):
                thread_id, key, tokens = more
                of_thread, estimate, delta = keys[key]
                assert of_thread == thread_id, key
                assert delta == tokens or estimate is Estimate.RESOLVED or what == "late", key

    def _check_overs(self, raw: sqlite3.Connection) -> None:
        excess: Counter[str] = Counter()
        for goal_id, above, tokens in raw.execute(
            "SELECT goal_id, ancestor_goal_ids, charged_tokens - tokens FROM goal_state_holds"
            " WHERE charged_tokens > tokens"
        ).fetchall():
            for each in [goal_id, *(above or "").split()]:
                excess[each] += tokens
        overs = raw.execute(
            "SELECT goal_id, max(tokens), max(calls), max(cost_nanos) FROM host_over GROUP BY 1"
        ).fetchall()
        for goal_id, tokens, calls, cost_nanos in overs:
            assert tokens <= excess[goal_id], f"{goal_id} was above its budget by {tokens} tokens"
            assert calls <= 0, f"{goal_id} was above its budget by {calls} calls"
            assert cost_nanos <= 0, f"{goal_id} was above its budget by {cost_nanos} in cost"
        self.figures["goals above a budget by settlements above their holds"] = len(overs)
        self.figures["tokens of settlements above their holds"] = sum(excess.values())

    def _check_ends(self, raw: sqlite3.Connection) -> None:
        holds = raw.execute(
            "SELECT h.hold_id, h.outcome, count(e.position), coalesce(sum(e.calls_delta), 0),"
            " coalesce(sum(e.tokens_delta), 0), h.tokens, h.charged_tokens"
            " FROM goal_state_holds h LEFT JOIN goal_state_events e"
            " ON e.hold_id = h.hold_id AND e.goal_id = h.goal_id AND e.kind = 'usage_accounted'"
            " GROUP BY 1"
        ).fetchall()
        for hold_id, outcome, events, calls, paid, tokens, charged in holds:
            assert outcome is not None, hold_id
            assert calls == (1 if events else 0), f"hold {hold_id} has charged {calls} calls"
            assert events <= 2, f"hold {hold_id} has ended {events} times"
            assert paid in {charged, max(tokens, charged)}, f"hold {hold_id} has paid {paid} tokens"
        self.figures["holds"] = len(holds)


def storm(folder: Path, seed: int, calls: int) -> Counter[str]:
    """Runs one, and returns its figures."""
    one = Storm(folder, seed)
    one.run(calls)
    one.check()
    return one.figures


if __name__ == "__main__":
    warnings.simplefilter("error")
    logging.getLogger("goal_state").setLevel(logging.ERROR)  # holds expire here on purpose
    place, *numbers = sys.argv[1:]
    print(json.dumps(storm(Path(place), *map(int, numbers))))
