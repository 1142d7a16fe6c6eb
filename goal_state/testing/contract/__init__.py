"""The tests that every backend must pass.

A backend runs those of the store by saying how one is opened, and those of a host's transactions by making
an engine on an empty database with the library's tables:

    from goal_state.testing.contract import RepositoryContract, StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def open_store(self, tmp_path):
            return lambda **options: GoalStore.open(f"my+dialect:///{tmp_path}/goals", **options)

    class TestMyHost(RepositoryContract):
        @pytest.fixture
        def engine(self, tmp_path): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from goal_state import GoalStore
from goal_state.testing.contract.budgets import Budgets
from goal_state.testing.contract.changing import Changing
from goal_state.testing.contract.charging import Charging
from goal_state.testing.contract.claims import Claims
from goal_state.testing.contract.clearing import Clearing
from goal_state.testing.contract.creating import Creating
from goal_state.testing.contract.hold_ends import HoldEnds
from goal_state.testing.contract.hold_expiry import HoldExpiry
from goal_state.testing.contract.holds import Holds
from goal_state.testing.contract.hosting import Hosting
from goal_state.testing.contract.pricing import Pricing
from goal_state.testing.contract.reading import Reading
from goal_state.testing.contract.refusals import Refusals
from goal_state.testing.contract.subjects import CommittingHost, HesitantHost, Subject
from goal_state.testing.contract.thresholds import Thresholds
from goal_state.testing.contract.totals import Totals
from goal_state.testing.contract.trees import Trees

__all__ = ["CommittingHost", "HesitantHost", "RepositoryContract", "StoreContract", "Subject"]


class StoreContract(
    Creating,
    Changing,
    Charging,
    Totals,
    Clearing,
    Reading,
    Refusals,
    Budgets,
    Thresholds,
    Trees,
    Pricing,
    Holds,
    HoldEnds,
    HoldExpiry,
    Claims,
):
    """What every operation means, wherever it runs.

    Give it a fixture `open_store`: a function that opens a store on a database without a row in it, with
    `prices` if it is given any. Where the operations run elsewhere than in a store (`CommittingHost`,
    `HesitantHost`), give it `make_subject`.
    """

    @pytest.fixture
    def open_store(self) -> Callable[..., GoalStore]:
        """Opens a store on a database without a row in it; each backend has its own."""
        raise NotImplementedError("override the fixture open_store")

    @pytest.fixture
    def make_subject(self, open_store: Callable[..., GoalStore]) -> Callable[..., Subject]:
        """Makes what the operations run in, with `prices` if it is given any."""

        def make(**options: Any) -> Subject:
            return Subject(open_store(**options))

        return make

    @pytest.fixture
    def subject(self, make_subject: Callable[..., Subject]) -> Iterator[Subject]:
        """What the operations run in; after each test its log is checked against its goals."""
        subject = make_subject()
        yield subject
        subject.check()
        subject.close()


class RepositoryContract(Hosting):
    """What a `GoalRepository` does in transactions that its host begins and ends.

    Give it a fixture `engine`: a host's, on a database that has the library's tables and not a row in them.
    """
