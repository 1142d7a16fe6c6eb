"""Holds with prices, in copies of a store, in what verifies and prunes it, and in what it logs."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from goal_state import GoalRepository, GoalStore, TokenUsage
from goal_state.errors import (
    BudgetExceededError,
    HoldEndedError,
    HoldNotFoundError,
    NotAnExportError,
    UnknownPriceError,
)
from goal_state.testing.contract.wall_time import Timed, WallTime
from tests.databases import execute

MICRO = Decimal("0.000001")


def prices(usage: TokenUsage, model: str | None) -> Decimal | None:
    """Input at 1 and output at 4 a million, of one model."""
    if model != "known":
        return None
    return MICRO * (usage.input_tokens + 4 * usage.output_tokens)


@pytest.fixture
def priced(database: Path) -> GoalStore:
    return GoalStore.open(database, durability="normal", prices=prices)


class TestPrices:
    def test_a_settlement_goes_by_the_model_of_its_hold(self, priced: GoalStore) -> None:
        with priced as store:
            store.create("t", "Ship", cost_budget=1)
            for settle_by_charge in (False, True):
                hold = store.reserve("t", usage=TokenUsage(100, 0, 0, 50), model="known")
                assert hold.cost == 300 * MICRO
                usage = TokenUsage(100, 0, 0, 10)
                if settle_by_charge:
                    store.charge("t", usage, settles=hold)
                else:
                    hold.settle(usage)
            goal = store.get("t")
            assert goal is not None
            assert (goal.cost_used, goal.unpriced_tokens) == (2 * 140 * MICRO, 0)

    def test_tokens_without_a_split_are_set_aside_at_the_dearest_rate(
        self, priced: GoalStore
    ) -> None:
        with priced as store:
            store.create("t", "Ship", cost_budget=1)
            assert store.reserve("t", tokens=100, model="known").cost == 400 * MICRO
            with pytest.raises(UnknownPriceError, match="'other'"):
                store.reserve("t", tokens=100, model="other")

    def test_what_was_observed_is_priced_by_the_model_of_the_hold(self, priced: GoalStore) -> None:
        with priced as store:
            store.create("t", "Ship", cost_budget=1)
            with store.reserve("t", tokens=100, model="known") as hold:
                hold.observed(TokenUsage(10, 0, 0, 5))
            goal = store.get("t")
            assert goal is not None
            assert (goal.cost_used, goal.unpriced_tokens, goal.tokens_used) == (30 * MICRO, 0, 15)


class TestCopies(Timed):
    def _filled(self, store: GoalStore) -> None:
        store.create("root", "Ship", token_budget=100)
        store.create("t", "Ship", parent="root")
        store.reserve("t", tokens=60, key="live", expires_in=10)
        store.reserve("t", tokens=5, key="ended").settle(tokens=4)

    def _check(self, store: GoalStore) -> None:
        assert store.verify() == []
        [live] = store.holds()
        assert (live.thread_id, live.tokens, live.hold_key) == ("t", 60, "live")
        with pytest.raises(BudgetExceededError):
            store.reserve("t", tokens=37)
        with pytest.raises(HoldEndedError):
            store.reserve("t", tokens=1, key="ended")
        found = store.reserve("t", tokens=60, key="live")
        assert found.was_found
        found.settle(tokens=50)
        root = store.get("root")
        assert root is not None
        assert (root.tokens_used, root.live_holds, root.held_tokens) == (54, 0, 0)
        assert store.verify() == []

    def test_live_holds_are_in_a_backup(self, store: GoalStore, tmp_path: Path) -> None:
        self._filled(store)
        store.backup(tmp_path / "backup.db")
        with GoalStore.open(tmp_path / "backup.db") as copy:
            self._check(copy)

    def test_a_restored_store_has_the_holds_of_its_backup(
        self, store: GoalStore, tmp_path: Path
    ) -> None:
        self._filled(store)
        store.backup(tmp_path / "backup.db")
        store.expire_holds()
        store.charge("t", tokens=7, settles=store.holds()[0].hold_id)
        store.restore(tmp_path / "backup.db")
        self._check(store)

    def test_live_holds_are_in_an_export(self, store: GoalStore, tmp_path: Path) -> None:
        self._filled(store)
        with GoalStore.open(tmp_path / "copy.db") as copy:
            copy.import_lines(list(store.export_lines()))
            self._check(copy)

    def test_an_export_whose_goal_holds_what_no_hold_sets_aside_is_refused(
        self, store: GoalStore, database: Path, tmp_path: Path
    ) -> None:
        self._filled(store)
        execute(database, "UPDATE goal_state_goals SET held_tokens = held_tokens + 1")
        lines = list(store.export_lines())
        with GoalStore.open(tmp_path / "copy.db") as copy:
            with pytest.raises(NotAnExportError):
                copy.import_lines(lines)
            assert copy.count() == 0

    def test_a_goal_that_is_taken_over_comes_without_its_holds(
        self, store: GoalStore, tmp_path: Path
    ) -> None:
        store.create("t", "Ship", token_budget=100)
        store.reserve("t", tokens=60)
        goal = store.get("t")
        assert goal is not None
        with GoalStore.open(tmp_path / "other.db") as other:
            other.transact(lambda repository: repository.import_goal(goal))
            assert other.verify() == []
            assert other.reserve("t", tokens=100).tokens == 100

    def test_prune_forgets_the_holds_that_had_ended(
        self, store: GoalStore, wall_time: WallTime
    ) -> None:
        store.create("t", "Ship")
        old = store.reserve("t", tokens=5, key="old")
        old.settle(tokens=5)
        live = store.reserve("t", tokens=5, key="live")
        wall_time.tick(60)
        young = store.reserve("t", tokens=5, key="young")
        young.settle(tokens=5)
        store.prune_events(before=datetime.fromtimestamp(wall_time.now_ms / 1000, UTC))
        with pytest.raises(HoldNotFoundError, match="pruned"):
            old.settle(tokens=5)
        assert young.settle(tokens=5).duplicate
        assert store.holds() == [live.record]
        assert not store.reserve("t", tokens=5, key="old").was_found
        assert store.verify() == []


class TestVerification:
    @pytest.mark.parametrize(
        "column", ["live_holds", "held_tokens", "held_cost_nanos", "held_calls"]
    )
    def test_a_held_figure_that_is_wrong_is_named(
        self, store: GoalStore, database: Path, column: str
    ) -> None:
        store.create("root", "Ship")
        store.create("t", "Ship", parent="root")
        store.reserve("t", tokens=60, cost=1)
        assert store.verify() == []
        execute(
            database,
            f"UPDATE goal_state_goals SET {column} = {column} + 7 WHERE thread_id = 'root'",
        )
        [difference] = store.verify()
        assert (difference.thread_id, difference.column) == ("root", column)
        assert difference.stored == difference.recomputed + 7  # type: ignore[operator]


class TestTime(Timed):
    @pytest.fixture
    def engine(self, database: Path) -> Engine:
        return create_engine(f"sqlite:///{database}")

    def test_an_expiry_is_logged_without_the_objective(
        self, store: GoalStore, wall_time: WallTime, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.create("t", "A secret objective")
        hold = store.reserve("t", tokens=60, expires_in=10)
        wall_time.tick(10)
        with caplog.at_level(logging.WARNING, logger="goal_state"):
            store.charge("t", seconds=1)
        [record] = [record for record in caplog.records if hold.hold_id in record.getMessage()]
        assert "60 tokens were charged, all it held, as an estimate" in record.getMessage()
        assert "secret" not in caplog.text

    @pytest.mark.parametrize("late", ["extend", "reserve"])
    def test_a_refused_call_commits_the_expiry_of_a_hold_whose_goal_is_gone(
        self, store: GoalStore, wall_time: WallTime, late: str
    ) -> None:
        store.create("root", "Ship")
        store.create("t", "Ship", parent="root")
        hold = store.reserve("t", tokens=60, key="k", expires_in=10)
        store.clear("t")
        wall_time.tick(10)
        calls = {
            "extend": lambda: hold.extend(5),
            "reserve": lambda: store.reserve("t", tokens=60, key="k"),
        }
        with pytest.raises(HoldEndedError):
            calls[late]()
        root = store.get("root")
        assert root is not None
        assert (root.tokens_used, root.live_holds) == (60, 0)

    def test_a_refused_call_leaves_its_host_what_time_had_made_true(
        self, engine: Engine, store: GoalStore, wall_time: WallTime
    ) -> None:
        store.create("t", "Ship", token_budget=100)
        store.reserve("t", tokens=60, expires_in=10)
        wall_time.tick(10)
        with engine.begin() as connection, pytest.raises(BudgetExceededError):
            GoalRepository(connection).reserve("t", tokens=60)
        goal = store.get("t")
        assert goal is not None
        assert (goal.tokens_used, goal.estimated_tokens, goal.live_holds) == (60, 60, 0)
        engine.dispose()

    def test_a_conflict_leaves_its_host_the_hold_that_it_named(
        self, engine: Engine, store: GoalStore
    ) -> None:
        store.create("t", "Ship", token_budget=100)
        store.charge("t", TokenUsage(5), response_id="r1")
        hold = store.reserve("t", tokens=60)
        with engine.begin() as connection, pytest.raises(Exception, match="has charged 5 tokens"):
            GoalRepository(connection).charge(
                "t", TokenUsage(6), response_id="r1", settles=hold.hold_id
            )
        assert store.holds() == [hold.record]
        engine.dispose()
