"""A hub over a store and an empty data directory, and a client."""

from __future__ import annotations

from pathlib import Path

import pytest

from goal_state import GoalStore
from goal_state.codex import ThreadHub
from tests.codex.clients import Client


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def hub(store: GoalStore, home: Path) -> ThreadHub:
    return ThreadHub(store, home=home)


@pytest.fixture
def client() -> Client:
    return Client()
