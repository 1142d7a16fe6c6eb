"""Settings of hypothesis, and the fixtures that most suites share."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from goal_state import GoalStore
from tests import next_schema
from tests.leftovers import Holdings, left_behind
from tests.processes import PATIENCE_SECONDS

# An example that waits for a disk is not slow, and one that failed can be run again from what is printed.
settings.register_profile("ci", deadline=None, print_blob=True, max_examples=40)
settings.register_profile("dev", settings.get_profile("ci"), max_examples=20)
settings.register_profile("fast", settings.get_profile("ci"), max_examples=5)
settings.register_profile(
    "proof",
    settings.get_profile("ci"),
    max_examples=5_000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure() -> None:
    # A shell starts a job in the background with SIGINT ignored; so would be every program started here.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # after the folders' own, which mark their tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Among several processes the longest tests begin, so that none is left alone with one at the end.
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: [item.get_closest_marker(m) is None for m in ("proof", "slow")])


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Each process that runs tests ends with the threads, children and open files that it began with.

    It is reported as an error of the test that the process ran last.
    """
    before = Holdings.now()
    yield
    assert left_behind(before, patience_seconds=PATIENCE_SECONDS / 2) == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database may be made."""
    return tmp_path / "goals.db"


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without a row in it, not to be opened: making one takes as long as many a test."""
    path = tmp_path_factory.mktemp("made_once") / "goals.db"
    GoalStore.open(path).close()
    return path


@pytest.fixture
def database(made_once: Path, path: Path) -> Path:
    """A database of its own for each test, without a row in it."""
    shutil.copy(made_once, path)
    return path


@pytest.fixture
def next_revision(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Has the library know one more revision of the schema: what was made before it is older then.

    It is the folder of those migrations.
    """
    folder = tmp_path_factory.mktemp("next") / "migrations"
    next_schema.write(folder)
    undo = next_schema.use(folder)
    yield folder
    undo()


@pytest.fixture
def store(database: Path) -> Iterator[GoalStore]:
    """An open store on a file of its own."""
    with GoalStore.open(database, durability="normal") as store:
        yield store
