"""One store beside the model, on a file and in memory."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis.stateful import rule

from goal_state import GoalStore
from tests.properties import effort
from tests.properties.handles import LocalHandle
from tests.properties.machine import GoalMachine, taken

pytestmark = pytest.mark.timeout(effort.PATIENCE_SECONDS)


class FileMachine(GoalMachine):
    """A store on a file, which is closed and opened again now and then."""

    def __init__(self, folder: Path, template: Path) -> None:
        super().__init__(folder)
        self.path = self.folder / "goals.db"
        shutil.copy(template, self.path)
        self.handles = [LocalHandle(self.path)]
        self.raw = sqlite3.connect(self.path, isolation_level=None)

    @rule()
    def reopen(self) -> None:
        taken["reopened"] += 1
        self.handles[0].close()
        self.listenings.clear()
        for consuming in self.consuming.values():
            consuming.clear()
        self.handles = [LocalHandle(self.path)]
        self.unchanged = True


class MemoryMachine(GoalMachine):
    """A store in memory, whose readers share the writer's connection."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.handles = [LocalHandle(None)]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """An empty store, to be copied: making one costs more than hundreds of steps."""
    path = tmp_path / "template.db"
    GoalStore.open(path).close()
    return path


def test_a_store_in_a_file_does_as_the_model(
    tmp_path: Path, template: Path, record_property: Callable[[str, object], None]
) -> None:
    effort.run(lambda: FileMachine(tmp_path, template), record_property, percent=60)


def test_a_store_in_memory_does_as_the_model(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    effort.run(lambda: MemoryMachine(tmp_path), record_property, percent=15)
