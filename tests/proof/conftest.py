"""The simulated disk, and the table of figures at the end of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.proof import disk
from tests.proof.effort import IS_LONG

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is proof."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.proof)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated disk, compiled."""
    built = disk.build(tmp_path_factory.mktemp("shim"))
    if isinstance(built, str):
        pytest.skip(built)
    return built


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Adds a number to the table at the end."""
    return lambda name, number: record_property(f"figure: {name}", number)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    totals: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            if "tests/proof/" not in report.nodeid or report.when != "call":
                continue
            seconds[report.nodeid.split("::")[0]] += report.duration
            for name, value in report.user_properties:
                if name.startswith("figure: ") and isinstance(value, int | float):
                    totals[name.removeprefix("figure: ")] += value
    if not totals:
        return
    terminalreporter.section(f"proof, {'long' if IS_LONG else 'short'} form")
    for name, value in sorted(totals.items()):
        terminalreporter.write_line(f"{value:>10,} {name}")
    for name, value in sorted(seconds.items()):
        terminalreporter.write_line(f"{value:>10,.1f} seconds in {name}")
