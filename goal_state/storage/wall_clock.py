"""The wall clock: one place that says what time it is."""

from __future__ import annotations

import time

__all__ = ["now_ms"]


def now_ms() -> int:
    """Now, as a Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
