"""A wall clock that a test moves, for what ends by itself."""

from __future__ import annotations

import pytest

__all__ = ["Timed", "WallTime"]


class WallTime:
    """Called like `wall_clock.now_ms`."""

    def __init__(self) -> None:
        self.now_ms: int = 1_900_000_000_000

    def __call__(self) -> int:
        """The time, as a Unix time in milliseconds."""
        return self.now_ms

    def tick(self, seconds: float) -> None:
        """Moves on."""
        self.now_ms += round(seconds * 1000)


class Timed:
    """Tests in which time passes when they say so."""

    @pytest.fixture
    def wall_time(self, monkeypatch: pytest.MonkeyPatch) -> WallTime:
        """The time at which every call takes place."""
        wall_time = WallTime()
        monkeypatch.setattr("goal_state.storage.wall_clock.now_ms", wall_time)
        return wall_time
