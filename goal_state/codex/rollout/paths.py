"""Where rollouts lie: `<home>/sessions/YYYY/MM/DD/rollout-<timestamp>-<thread id>.jsonl`."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final

from goal_state.domain.goals import utc_from_ms
from goal_state.domain.values import check_name, check_path, check_time_ms
from goal_state.errors import InvalidValueError

__all__ = ["MAX_DIRECTORY_ENTRIES", "RolloutPath", "find_rollout", "find_rollouts", "rollout_path"]

MAX_DIRECTORY_ENTRIES: Final = 100_000
"""A directory with more entries is not listed: the rollouts of one day are sorted in memory, and a thousand
threads a day are many."""

_MAX_ENTRIES: Final = 1_000_000
"""Nor are more entries looked at in one search, over all directories."""

_ROLLOUT_NAME: Final = re.compile(
    r"rollout-(\d{4}-\d\d-\d\d)T(\d\d)-(\d\d)-(\d\d)-(.+)\.jsonl(\.gz|\.zst)?", re.ASCII
)
_FILE_THREAD_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", re.ASCII)
_DATE_LEVELS: Final = tuple(re.compile(rf"\d{{{digits}}}", re.ASCII) for digits in (4, 2, 2))


@dataclass(frozen=True, slots=True)
class RolloutPath:
    """A rollout as its name describes it.

    Attributes:
        path: the file; it may be compressed (`.gz`, `.zst`).
        thread_id: the thread.
        timestamp: when it was begun, to the second, in the time zone of its writer, which a name does
            not tell (`RolloutWriter` uses UTC).
    """

    path: Path
    thread_id: str
    timestamp: datetime


def rollout_path(home: str | os.PathLike[str], thread_id: str, started_at: datetime) -> Path:
    """Where the rollout of a new thread belongs. Nothing is created.

    Raises:
        InvalidValueError: the thread id cannot be part of a file name (letters, digits, `_`, `.`, `-`,
            not beginning with `.` or `-`, 200 at most), or the time has no time zone.
    """
    thread_id = check_name("thread_id", thread_id)
    if not _FILE_THREAD_ID.fullmatch(thread_id):
        raise InvalidValueError(
            "thread_id",
            "must be 1 to 200 letters, digits, '_', '.' or '-' and begin with none of the last two,"
            " to be part of a file name",
        )
    moment = utc_from_ms(check_time_ms("started_at", started_at))
    day = Path(f"{moment.year:04}", f"{moment.month:02}", f"{moment.day:02}")
    second = moment.replace(tzinfo=None, microsecond=0).isoformat().replace(":", "-")
    name = f"rollout-{second}-{thread_id}.jsonl"
    return check_path("home", home) / "sessions" / day / name


def find_rollouts(home: str | os.PathLike[str]) -> Iterator[RolloutPath]:
    """The rollouts of a data directory, newest first by their names; no file is opened.

    Directories are listed one day at a time, as they are asked for. Whatever has another name is left
    out, and so are symlinks that lead nowhere. The depth is fixed and each directory is listed once on each
    level, so that no symlink can make it endless.

    Raises:
        OSError: a directory cannot be listed, or holds more than `MAX_DIRECTORY_ENTRIES`. (A missing one has
            no rollouts.)
    """
    yield from _Search().within(check_path("home", home) / "sessions", _DATE_LEVELS)


def find_rollout(home: str | os.PathLike[str], thread_id: str) -> Path | None:
    """The newest rollout of a thread, or None; of equals, the one that is not compressed.

    The id is only compared with the names that there are: it never becomes part of a path.
    """
    return next((found.path for found in find_rollouts(home) if found.thread_id == thread_id), None)


class _Search:
    """One search, which knows how much it has listed and where it was."""

    def __init__(self) -> None:
        self._entries = 0
        self._listed: set[tuple[int, int, int]] = set()

    def within(self, directory: Path, levels: tuple[re.Pattern[str], ...]) -> Iterator[RolloutPath]:
        if not levels:
            yield from self._of_a_day(directory)
            return
        names = (name for name in self._names(directory, len(levels)) if levels[0].fullmatch(name))
        for name in sorted(names, reverse=True):
            yield from self.within(directory / name, levels[1:])

    def _of_a_day(self, directory: Path) -> Iterator[RolloutPath]:
        found: list[tuple[RolloutPath, bool]] = []
        for name in self._names(directory, 0):
            match = _ROLLOUT_NAME.fullmatch(name)
            if match is None:
                continue
            day, hour, minute, second, thread_id, compression = match.groups()
            try:
                timestamp = datetime.fromisoformat(f"{day}T{hour}:{minute}:{second}")
            except ValueError:  # no such day
                continue
            found.append((RolloutPath(directory / name, thread_id, timestamp), compression is None))
        found.sort(key=lambda one: (one[0].timestamp, one[0].thread_id, one[1]), reverse=True)
        for rollout, _ in found:
            if rollout.path.is_file():  # not a directory, nor a symlink to nothing
                yield rollout

    def _names(self, directory: Path, level: int) -> list[str]:
        try:
            status = directory.stat()
            place = (status.st_dev, status.st_ino, level)
            if place in self._listed:
                return []
            self._listed.add(place)
            names = _listed(directory)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError:
            if _is_symlink_to_nothing(directory):
                return []
            raise
        self._entries += len(names)
        if len(names) > MAX_DIRECTORY_ENTRIES or self._entries > _MAX_ENTRIES:
            raise OSError(errno.EFBIG, "too many entries to look for rollouts in", str(directory))
        return names


def _listed(directory: Path) -> list[str]:
    """The names in a directory, but no more of them than it takes to see that there are too many."""
    with os.scandir(directory) as entries:
        return [entry.name for entry in islice(entries, MAX_DIRECTORY_ENTRIES + 1)]


def _is_symlink_to_nothing(path: Path) -> bool:
    return path.is_symlink() and not path.exists()
