"""Finding rollouts without opening them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from goal_state.codex.rollout import (
    find_rollout,
    find_rollouts,
    paths,
    rollout_path,
)
from goal_state.errors import InvalidValueError
from tests.codex.rollout_lines import (
    DAY,
    HOME,
)
from tests.processes import python


def test_recorded_rollouts_are_found_newest_first() -> None:
    found = list(find_rollouts(HOME))
    assert [one.path for one in found] == sorted(DAY.iterdir(), reverse=True)
    assert found[0].thread_id == "01a1fa7e-9483-7cd0-8643-98d7aa83851e"
    assert found[0].timestamp == datetime.fromisoformat("2026-11-20T19:46:02")
    assert find_rollout(HOME, found[3].thread_id) == found[3].path
    assert find_rollout(HOME, "../" + found[3].thread_id) is None


@pytest.fixture
def home(tmp_path: Path) -> Path:
    names = [
        "2025/12/31/rollout-2025-12-31T23-59-59-old.jsonl",
        "2026/01/02/rollout-2026-01-02T00-00-00-b.jsonl.zst",
        "2026/01/02/rollout-2026-01-02T00-00-00-a.jsonl.gz",
        "2026/01/02/rollout-2026-01-02T00-00-00-a.jsonl",
        "2026/01/02/rollout-2026-01-02T10-00-00-2026-01-01.jsonl",
    ]
    others = [
        "2026/01/02/rollout-2026-01-02T00-00-00-.jsonl",
        "2026/01/02/rollout-2026-01-32T00-00-00-x.jsonl",
        "2026/01/02/rollout-2026-01-02T00-00-00-x.jsonl.bak",
        "2026/01/02/rollout-2026-01-02T00-00-00-x.json",
        "2026/01/02/notes.jsonl",
        "2026/01/rollout-2026-01-02T00-00-00-x.jsonl",
        "2026/1/02/rollout-2026-01-02T00-00-00-x.jsonl",
        "archive/01/02/rollout-2026-01-02T00-00-00-x.jsonl",
        "2024",
    ]
    for name in names + others:
        path = tmp_path / "sessions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize("backwards", [False, True])
def test_what_is_found_and_in_which_order(
    home: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    real = paths._listed  # in whatever order
    monkeypatch.setattr(paths, "_listed", lambda place: sorted(real(place), reverse=backwards))
    assert [(one.thread_id, one.path.suffix) for one in find_rollouts(home)] == [
        ("2026-01-01", ".jsonl"),
        ("b", ".zst"),
        ("a", ".jsonl"),
        ("a", ".gz"),
        ("old", ".jsonl"),
    ]
    plain = find_rollout(home, "a")
    assert plain is not None
    assert plain.suffix == ".jsonl"


_WATCHED = """
import sys
from pathlib import Path
from goal_state.codex.rollout import find_rollouts

home = sys.argv[1]

def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(home):
        print("opened" if event == "open" else "listed", Path(arguments[0]).name)

sys.addaudithook(watch)
next(find_rollouts(home))
"""


@pytest.mark.slow
def test_finding_neither_opens_a_file_nor_lists_a_day_before_it_is_asked_for(home: Path) -> None:
    assert python(_WATCHED, home).splitlines() == [
        "listed sessions",
        "listed 2026",
        "listed 01",
        "listed 02",
    ]


def test_finding_survives_symlinks(home: Path) -> None:
    expected = len(list(find_rollouts(home)))
    sessions = home / "sessions"
    (sessions / "2027").symlink_to(sessions / "2027")
    (sessions / "2028").symlink_to("nowhere")
    (sessions / "2026" / "11").symlink_to(sessions)
    loop = sessions / "2026" / "01" / "02" / "rollout-2026-01-02T00-00-00-loop.jsonl"
    loop.symlink_to(loop)
    (loop.parent / "rollout-2026-01-02T00-00-00-directory.jsonl").mkdir()
    assert len(list(find_rollouts(home))) == expected
    (sessions / "2025").rename(home / "elsewhere")
    (sessions / "2025").symlink_to(home / "elsewhere")  # moved elsewhere: still a year
    assert len(list(find_rollouts(home))) == expected
    (sessions / "2029").symlink_to(sessions / "2026" / "01")  # a month in place of a year
    assert len(list(find_rollouts(home))) == expected


@pytest.mark.parametrize("linked", [False, True])
def test_a_directory_that_cannot_be_listed_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    year = home / "sessions" / "2025"
    if linked:
        year = year.rename(home / "elsewhere")
        (home / "sessions" / "2025").symlink_to(year)
    real = paths._listed

    def listed(place: Path) -> list[str]:
        if place.resolve() == year:
            raise PermissionError
        return real(place)

    monkeypatch.setattr(paths, "_listed", listed)
    with pytest.raises(PermissionError):
        list(find_rollouts(home))


def test_what_no_rollout_can_be_named_by_is_refused(tmp_path: Path) -> None:
    wrong: Any = 5
    with pytest.raises(InvalidValueError, match=r"^home: must be a path, not int$"):
        list(find_rollouts(wrong))
    with pytest.raises(InvalidValueError, match=r"^home: must be a path, not int$"):
        rollout_path(wrong, "thread", datetime.now(UTC))
    with pytest.raises(InvalidValueError, match=r"^thread_id: must be .*, not int$"):
        rollout_path(tmp_path, wrong, datetime.now(UTC))
    with pytest.raises(InvalidValueError, match=r"^started_at: must be aware"):
        rollout_path(tmp_path, "thread", datetime.now())  # noqa: DTZ005
    with pytest.raises(InvalidValueError) as caught:
        rollout_path(tmp_path, "-x", datetime.now(UTC))
    assert str(caught.value) == (
        "thread_id: must be 1 to 200 letters, digits, '_', '.' or '-' and begin with none of the last"
        " two, to be part of a file name"
    )


def test_a_home_without_sessions_has_none(tmp_path: Path) -> None:
    assert list(find_rollouts(tmp_path / "missing")) == []
