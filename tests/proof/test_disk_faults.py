"""On a full or failing disk each failed call raises its documented error and changes nothing, and the store
works again once the disk does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.proof.disk import Faults, preloaded
from tests.proof.effort import IS_LONG, PATIENCE_SECONDS
from tests.proof.programs import program

pytestmark = [pytest.mark.timeout(PATIENCE_SECONDS), pytest.mark.once]

CALLS = 60 if IS_LONG else 3


def test_every_call_to_the_disk_may_fail(
    tmp_path: Path, shim: Path, figures: Callable[[str, float], None]
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    faults = Faults.create(tmp_path / "faults")
    environment = preloaded(shim, folder, faults=faults)
    said = program("faulty", folder.resolve(), faults, CALLS, environment=environment)
    counts: dict[str, int] = json.loads(said)
    if not counts:
        pytest.skip("this Python's SQLite does not write through the C library's calls")
    for name in (
        "an I/O error at the n-th read",
        "an I/O error at the n-th write",
        "a full disk at the n-th write",
        "an I/O error at the n-th sync",
        "a file system that turns read-only at the n-th change",
    ):
        assert counts[f"{name}: once"] >= CALLS // 2  # some calls are refused
        assert counts[f"{name}: lasting"] >= CALLS // 2
    for error in ("DatabaseFullError", "DatabaseIOError", "DatabaseReadOnlyError"):
        assert counts[f"told: {error}"] > 0
    for name, count in counts.items():
        figures(f"disk faults, {name}", count)
