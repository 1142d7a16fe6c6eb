"""A power cut at any moment: with durability="full" nothing acknowledged is lost; with "normal" the last
changes may be, and the database is consistent."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.proof.disk import Disk, Record
from tests.proof.effort import IS_LONG, PATIENCE_SECONDS
from tests.proof.power import Cut, Damage, record

pytestmark = [pytest.mark.timeout(PATIENCE_SECONDS), pytest.mark.once]

Figures = Callable[[str, float], None]

# The long form writes so much that SQLite takes its log over into the database while both are in use.
SEEDS, RUNS, CALLS, CUTS = (4, 3, 700, 300) if IS_LONG else (1, 2, 60, 60)


def cuts(folder: Path, shim: Path, figures: Figures, *, seed: int, durability: str) -> list[Cut]:
    recording = record(folder, shim, seed=seed, runs=RUNS, calls=CALLS, durability=durability)
    try:
        if not recording.records:
            pytest.skip("this Python's SQLite does not write through the C library's calls")
        kinds = Counter(entry.kind for entry in recording.records)
        assert kinds["W"] > 1_000
        assert kinds["S"] > 0 or durability == "off"
        if IS_LONG and durability == "full":
            assert kinds["S"] > 2 * RUNS + recording.acknowledged / 2
        return recording.cut(folder / "cuts", random.Random(seed), CUTS)
    finally:
        recording.due.close()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_that_was_acknowledged_is_missing_with_full_durability(
    tmp_path: Path, shim: Path, figures: Figures, seed: int
) -> None:
    results = cuts(tmp_path, shim, figures, seed=seed, durability="full")
    assert len(results) == CUTS
    assert set(results) == {Cut(missing_calls=0, missing_events=0)}
    figures('power cuts with durability="full": nothing missing', len(results))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_only_the_last_changes_are_missing_with_normal_durability(
    tmp_path: Path, shim: Path, figures: Figures, seed: int
) -> None:
    """That some are shows that the disk forgets: with it, nothing else than syncing keeps them."""
    results = cuts(tmp_path, shim, figures, seed=seed, durability="normal")
    assert len(results) == CUTS
    losses = sum(1 for result in results if result.missing_calls)
    assert losses > 0
    figures('power cuts with durability="normal": whole', len(results))
    figures('power cuts with durability="normal": acknowledged calls missing', losses)


def test_a_database_that_is_never_synced_does_not_survive(
    tmp_path: Path, shim: Path, figures: Figures
) -> None:
    with pytest.raises(Damage):
        cuts(tmp_path, shim, figures, seed=9, durability="off")
    figures("power cuts with syncing switched off: noticed", 1)


# -- the disk itself ---------------------------------------------------------------------------------


def after_cuts(folder: Path, *records: Record) -> set[tuple[tuple[str, bytes], ...]]:
    """Every content that a folder is found with after one of many power cuts."""
    disk = Disk()
    for entry in records:
        disk.apply(entry)
    found: set[tuple[tuple[str, bytes], ...]] = set()
    for number in range(300):
        left = folder / str(number)
        left.mkdir()
        disk.cut(left, random.Random(number))
        found.add(tuple((file.name, file.read_bytes()) for file in sorted(left.iterdir())))
    return found


def test_what_was_synced_stays(tmp_path: Path) -> None:
    made = Record("C", 1, 0, b"file"), Record("W", 1, 0, b"kept"), Record("S", 1, 0, b"")
    assert after_cuts(tmp_path, *made, Record("D", 0, 0, b"")) == {(("file", b"kept"),)}


def test_a_new_name_stays_only_when_its_folder_was_synced(tmp_path: Path) -> None:
    made = Record("C", 1, 0, b"file"), Record("W", 1, 0, b"kept"), Record("S", 1, 0, b"")
    assert after_cuts(tmp_path, *made) == {(), (("file", b"kept"),)}


def test_what_was_not_synced_is_torn_into_sectors_and_comes_in_any_order(tmp_path: Path) -> None:
    made = Record("C", 1, 0, b"file"), Record("D", 0, 0, b"")
    writes = Record("W", 1, 500, b"a" * 100), Record("W", 1, 500, b"b" * 100)
    contents = {files[0][1] for files in after_cuts(tmp_path, *made, *writes)}
    before, gap = bytes(500), bytes(12)
    # Twelve bytes lie before the edge of the sector, and the rest behind it.
    assert {
        b"",
        before + b"b" * 100,
        before + b"a" * 100,
        before + b"a" * 12,
        before + gap + b"a" * 88,
        before + b"b" * 12 + b"a" * 88,
        before + b"a" * 12 + b"b" * 88,
    } <= contents


def test_a_file_that_was_removed_may_come_back(tmp_path: Path) -> None:
    made = Record("C", 1, 0, b"file"), Record("D", 0, 0, b""), Record("U", 0, 0, b"file")
    assert after_cuts(tmp_path, *made) == {(), (("file", b""),)}
