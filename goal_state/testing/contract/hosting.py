"""A `GoalRepository` in transactions of a host's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine

from goal_state import (
    Goal,
    GoalEvent,
    GoalExistsError,
    GoalRepository,
    GoalStore,
    InvalidValueError,
    RequestError,
)
from goal_state.testing.contract.subjects import (
    ACCOUNTED,
    ACTIVE,
    BLOCKED,
    BUDGET_LIMITED,
    COMPLETE,
    CREATED,
    NO_GOAL,
    STATUS_CHANGED,
    USAGE_LIMITED,
    kinds,
)

__all__ = ["Hosting"]


def _goals(engine: Engine) -> list[Goal]:
    with engine.connect() as connection:
        return GoalRepository(connection).goals_page()


TAKEN_OVER = Goal("t", NO_GOAL, "Ship", ACTIVE, 100, 60, 1_500, 1_000, 2_000)
BEGUN = (CREATED, None, ACTIVE, 0, 0, None, 1_000)


def _take_over(engine: Engine, goal: Goal) -> Goal:
    with engine.begin() as connection:
        return GoalRepository(connection).import_goal(goal)


class Hosting:
    """A `GoalRepository` in transactions of a host's."""

    def test_the_repository_begins_a_transaction_that_the_host_ends(self, engine: Engine) -> None:
        with engine.connect() as connection:
            GoalRepository(connection).create("t", "Ship")
            assert connection.in_transaction()
            assert _goals(engine) == []
            connection.rollback()
            assert _goals(engine) == []
            GoalRepository(connection).create("t", "Ship")
            connection.commit()
        assert [goal.thread_id for goal in _goals(engine)] == ["t"]

    def test_what_the_host_leaves_open_is_rolled_back(self, engine: Engine) -> None:
        with engine.connect() as connection:
            GoalRepository(connection).create("t", "Ship")
        assert _goals(engine) == []

    def test_several_operations_stand_or_fall_together(self, engine: Engine) -> None:
        class ChangedItsMindError(Exception):
            pass

        def work(*, then_fail: bool) -> None:
            with engine.begin() as connection:
                repository = GoalRepository(connection)
                repository.create("a", "Ship", token_budget=10)
                repository.charge("a", tokens=10)
                repository.create("b", "Ship")
                repository.clear("b")
                if then_fail:
                    raise ChangedItsMindError

        with pytest.raises(ChangedItsMindError):
            work(then_fail=True)
        assert _goals(engine) == []
        work(then_fail=False)
        assert [(g.thread_id, g.status) for g in _goals(engine)] == [("a", BUDGET_LIMITED)]

    def test_a_refused_call_leaves_what_the_host_did_before_it(self, engine: Engine) -> None:
        with engine.begin() as connection:
            repository = GoalRepository(connection)
            repository.create("a", "Ship")
            for refused in (
                lambda: repository.create("a", "Another"),
                lambda: repository.set("b", status="paused"),
                lambda: repository.charge("a", tokens=-1),
            ):
                with pytest.raises(RequestError):
                    refused()
            repository.create("c", "Ship")
        assert [goal.thread_id for goal in _goals(engine)] == ["a", "c"]

    def test_a_savepoint_of_the_host_undoes_what_it_holds(self, engine: Engine) -> None:
        with engine.begin() as connection:
            repository = GoalRepository(connection)
            repository.create("kept", "Ship")
            with connection.begin_nested() as savepoint:
                repository.create("dropped", "Ship")
                repository.charge("kept", tokens=5)
                savepoint.rollback()
        assert [(g.thread_id, g.tokens_used) for g in _goals(engine)] == [("kept", 0)]

    def test_a_page_of_goals_begins_behind_the_one_before(self, engine: Engine) -> None:
        with engine.begin() as connection:
            repository = GoalRepository(connection)
            made = [repository.create(f"t{number}", "Ship") for number in range(501)]
            assert repository.goals_page() == made[:500]
            assert repository.goals_page(after=made[499].goal_id) == made[500:]
            assert repository.goals_page(status=ACTIVE, after=made[0].goal_id, limit=2) == made[1:3]
            assert repository.goals_page(limit=0) == []
            refused: dict[str, Any] = {"after": "x" * 257, "limit": -1, "status": "open"}
            for field, value in refused.items():
                with pytest.raises(InvalidValueError, match=f"^{field}: must"):
                    repository.goals_page(**{field: value})

    def test_what_is_no_request_is_refused(self, engine: Engine) -> None:
        with engine.begin() as connection:
            refused: Any = "create"
            with pytest.raises(InvalidValueError, match=r"^request: must be a request, not str$"):
                GoalRepository(connection).apply(refused)

    def test_the_repository_tells_of_each_event_as_it_is_written(self, engine: Engine) -> None:
        told: list[GoalEvent] = []
        with engine.begin() as connection:
            repository = GoalRepository(connection, on_event=told.append)
            repository.create("t", "Ship", token_budget=5)
            repository.charge("t", tokens=5, turn_id="turn-1")
            assert kinds(told) == [CREATED, ACCOUNTED, STATUS_CHANGED]
        with engine.connect() as connection:
            assert GoalRepository(connection).log.page(0, 100) == told

    @pytest.mark.parametrize(
        ("changes", "ledger"),
        [
            ({}, [(ACCOUNTED, ACTIVE, ACTIVE, 60, 1_500, 60, 2_000)]),
            ({"tokens_used": 0}, [(ACCOUNTED, ACTIVE, ACTIVE, 0, 1_500, 0, 2_000)]),
            ({"time_used_ms": 0}, [(ACCOUNTED, ACTIVE, ACTIVE, 60, 0, 60, 2_000)]),
            ({"tokens_used": 0, "time_used_ms": 0, "token_budget": None}, []),
            (
                {
                    "tokens_used": 0,
                    "time_used_ms": 0,
                    "status": USAGE_LIMITED,
                    "resume_at_ms": 9_000,
                },
                [(STATUS_CHANGED, ACTIVE, USAGE_LIMITED, 0, 0, None, 2_000)],
            ),
            (
                {"status": BLOCKED, "blocked_reason": "An answer"},
                [
                    (ACCOUNTED, ACTIVE, ACTIVE, 60, 1_500, 60, 2_000),
                    (STATUS_CHANGED, ACTIVE, BLOCKED, 0, 0, None, 2_000),
                ],
            ),
            (
                {"tokens_used": 100, "status": BUDGET_LIMITED},
                [
                    (ACCOUNTED, ACTIVE, BUDGET_LIMITED, 100, 1_500, 100, 2_000),
                    (STATUS_CHANGED, ACTIVE, BUDGET_LIMITED, 0, 0, None, 2_000),
                ],
            ),
            (
                {"tokens_used": 150, "status": COMPLETE},
                [
                    (ACCOUNTED, ACTIVE, BUDGET_LIMITED, 150, 1_500, 150, 2_000),
                    (STATUS_CHANGED, ACTIVE, BUDGET_LIMITED, 0, 0, None, 2_000),
                    (STATUS_CHANGED, BUDGET_LIMITED, COMPLETE, 0, 0, None, 2_000),
                ],
            ),
        ],
    )
    def test_a_goal_is_taken_over_with_the_shortest_ledger_that_leads_there(
        self, engine: Engine, changes: dict[str, Any], ledger: list[Any]
    ) -> None:
        goal = replace(TAKEN_OVER, **changes)
        assert _take_over(engine, replace(goal, objective=" Ship ")) == goal
        assert _goals(engine) == [goal]
        with GoalStore.open(engine) as store:
            events = list(store.events())
            assert store.verify() == []
        assert [
            (
                event.kind,
                event.previous_status,
                event.goal_status,
                event.tokens_delta,
                event.time_delta_ms,
                event.cumulative_tokens,
                event.occurred_at_ms,
            )
            for event in events
        ] == [BEGUN, *ledger]
        assert {(e.turn_id, e.idempotency_key, e.token_budget) for e in events} == {
            (None, None, goal.token_budget)
        }

    def test_a_goal_is_not_taken_over_where_there_is_one_nor_twice(self, engine: Engine) -> None:
        _take_over(engine, replace(TAKEN_OVER, tokens_used=0, time_used_ms=0))
        with GoalStore.open(engine) as store:
            before = list(store.events())
            with pytest.raises(GoalExistsError, match=f"^thread 't' has goal {NO_GOAL} already"):
                _take_over(engine, replace(TAKEN_OVER, goal_id=NO_GOAL[:-1] + "1"))
            assert list(store.events()) == before
            store.replace(
                "t", "Another"
            )  # what is left of the first is one event, the first there is
            after = list(store.events())
            with pytest.raises(GoalExistsError, match=f"^there was a goal {NO_GOAL} before"):
                _take_over(engine, replace(TAKEN_OVER, thread_id="u"))
            assert list(store.events()) == after

    def test_what_cannot_be_a_goal_is_not_taken_over(self, engine: Engine) -> None:
        with pytest.raises(InvalidValueError, match="tokens_used: must be 0 or more"):
            _take_over(engine, replace(TAKEN_OVER, tokens_used=-1))
        assert _goals(engine) == []
