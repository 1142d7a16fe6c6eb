"""The contract, for every way of running on SQLite: a store on a file or in memory, and a `GoalRepository`
in a transaction of its host's, which commits it or first rolls it back."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import Engine, text

from goal_state import GoalRepository, GoalStore
from goal_state.operations.goal_operations import GoalOperations
from goal_state.storage.sqlite.connections import create_engine
from goal_state.testing.contract import (
    CommittingHost,
    HesitantHost,
    RepositoryContract,
    StoreContract,
    Subject,
)
from goal_state.testing.contract.changing import Changing
from goal_state.testing.contract.charging import Charging
from goal_state.testing.contract.claims import Claims
from goal_state.testing.contract.clearing import Clearing
from goal_state.testing.contract.creating import Creating
from goal_state.testing.contract.hold_ends import HoldEnds
from goal_state.testing.contract.hold_expiry import HoldExpiry
from goal_state.testing.contract.pricing import Pricing
from goal_state.testing.contract.totals import Totals
from tests.in_memory import open_in_memory


def _our_engine(path: Path) -> Engine:
    return create_engine(path, durability="normal")


def _plain_engine(path: Path) -> Engine:
    """As any host makes one: the driver begins transactions by itself, and late."""
    return sqlalchemy.create_engine(f"sqlite:///{path}")


SUBJECTS: dict[str, Callable[..., Subject]] = {
    "file": lambda path, **options: Subject(GoalStore.open(path, durability="normal", **options)),
    "memory": lambda _, **options: Subject(open_in_memory(**options)),
    "host-with-plain-engine-rolls-back": lambda path, **options: HesitantHost(
        _plain_engine(path), **options
    ),
    "host-rolls-back": lambda path, **options: HesitantHost(_our_engine(path), **options),
    "host": lambda path, **options: CommittingHost(_our_engine(path), **options),
    "host-with-plain-engine": lambda path, **options: CommittingHost(
        _plain_engine(path), **options
    ),
}

# Three of them run all of the contract. What else a host can do otherwise lies in its engine, which begins a
# transaction in its own way, and in whether a call was made and rolled back before: a kind of call meets
# both, whatever its figures are. So our own engine runs the groups in which every kind of call is made, and
# not those that make the same calls with many figures more. And hosts that only commit do what the others do
# after they have rolled back; they show that what counts and prices does not live on that first attempt.
GROUPS_OF_EVERY_CALL = (
    *(Creating, Changing, Charging, Totals, Clearing, Pricing),
    *(HoldEnds, HoldExpiry, Claims),
)
GROUPS_OF_FIRST_ATTEMPTS = (Charging, Pricing)

# A request checks its values when it is made, so that these come to no database: one subject shows it.
REFUSED_BEFORE = (
    "test_a_malformed_value_is_refused_by_name_and_changes_nothing",
    "test_reserve_of_a_malformed_value_is_refused_by_name",
)


def _subjects(test: str) -> list[str]:
    """Those of which one can do otherwise than another in a test of the contract."""
    if test in REFUSED_BEFORE:
        return ["file"]
    chosen = ["file", "memory", "host-with-plain-engine-rolls-back"]
    if any(hasattr(group, test) for group in GROUPS_OF_EVERY_CALL):
        chosen.append("host-rolls-back")
    if any(hasattr(group, test) for group in GROUPS_OF_FIRST_ATTEMPTS):
        chosen += ["host", "host-with-plain-engine"]
    return chosen


class TestStore(StoreContract):
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "make_subject" in metafunc.fixturenames:
            metafunc.parametrize(
                "make_subject",
                [
                    name if name == "file" else pytest.param(name, marks=pytest.mark.slow)
                    for name in _subjects(metafunc.function.__name__)
                ],
                indirect=True,
            )

    @pytest.fixture
    def make_subject(
        self, request: pytest.FixtureRequest, database: Path
    ) -> Callable[..., Subject]:
        return lambda **options: SUBJECTS[request.param](database, **options)


def test_groups_of_every_call_leave_no_kind_of_call_out() -> None:
    text = "".join(inspect.getsource(group) for group in GROUPS_OF_EVERY_CALL)
    calls = {name for name in dir(GoalOperations) if name[0] != "_"} - {"apply"}
    assert {name for name in calls if not re.search(rf"subject\.{name}\(", text)} == set()


class TestRepository(RepositoryContract):
    @pytest.fixture(params=["ours", pytest.param("plain", marks=pytest.mark.slow)])
    def engine(self, request: pytest.FixtureRequest, database: Path) -> Iterator[Engine]:
        engine = _our_engine(database) if request.param == "ours" else _plain_engine(database)
        yield engine
        engine.dispose()


def test_a_plain_engine_in_memory_stays_its_hosts() -> None:
    """The one connection there is has the host's transactions on it, before and after."""
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE host_notes (id INTEGER PRIMARY KEY)"))
    with GoalStore.open(engine) as store:
        store.create("t", "Ship")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO host_notes DEFAULT VALUES"))
        GoalRepository(connection).charge("t", tokens=5)
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO host_notes DEFAULT VALUES"))
        connection.rollback()
        assert connection.execute(text("SELECT count(*) FROM host_notes")).scalar_one() == 1
        GoalRepository(connection).charge("t", tokens=5)
        connection.rollback()
        assert [goal.tokens_used for goal in GoalRepository(connection).goals_page()] == [5]
    engine.dispose()
