"""A sink that appends events to a file of JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from goal_state.analytics.line_file import MAX_FILE_BYTES, LineFile
from goal_state.analytics.payload import AnalyticsEvent

__all__ = ["JsonLinesSink"]


class JsonLinesSink:
    """Writes one line per event, the payload as JSON, and has it on the disk before the next batch.

    The file is readable by its owner alone. When a batch would carry it past `max_file_bytes`, it is first
    renamed to its name and the next number: `goal-events.jsonl.1`, then `.2` …; those are whole, and yours
    to ship and delete. Any number of processes may write to one path.

    After a crash, the batch that was being written may be in the file twice; the `event_id` of a `goal_event`
    tells a repeat.

    Args:
        path: the file; made if it does not exist. Its folder must.
        max_file_bytes: how long the file may grow, from 1. One batch is never split.

    Raises:
        InvalidValueError: the path is no regular file's, or `max_file_bytes` is below 1.
        OSError: the file cannot be opened for writing.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, max_file_bytes: int = MAX_FILE_BYTES
    ) -> None:
        self._file = LineFile(path, max_file_bytes=max_file_bytes)

    def __call__(self, events: Sequence[AnalyticsEvent]) -> None:
        """Appends a batch: all of it or nothing.

        Raises:
            OSError: the file cannot be written.
        """
        self._file.append(json.dumps(event.payload) for event in events)
