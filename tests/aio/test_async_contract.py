"""The contract of the store, through the async one: all that a call means is the same where it is awaited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from goal_state.aio import AsyncGoalStore
from goal_state.testing.contract import StoreContract, Subject
from tests.aio.driven import DrivenSubject


@pytest.mark.slow
class TestAsyncStore(StoreContract):
    @pytest.fixture
    def make_subject(self, database: Path) -> Callable[..., Subject]:
        return lambda **options: DrivenSubject(
            lambda: AsyncGoalStore.open(database, durability="normal", **options)
        )
