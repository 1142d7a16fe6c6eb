"""A hub over a store and an empty data directory, a client, and rollouts made of lines."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from goal_state import GoalStore
from goal_state.codex import ThreadHub
from tests.codex.clients import Client
from tests.codex.rollout_lines import Write, write_rollout


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


@pytest.fixture
def rollout(tmp_path: Path) -> Write:
    """Writes a rollout of such lines, and opens it."""
    return partial(write_rollout, tmp_path)
