"""A clock that stands still until it is told to move."""

from __future__ import annotations

__all__ = ["NS_PER_MS", "NS_PER_S", "Clock"]

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


class Clock:
    """Called like `time.monotonic_ns`: `GoalMeter(store, "thread-1", clock_ns=clock)`."""

    def __init__(self) -> None:
        self.now_ns: int = NS_PER_S

    def __call__(self) -> int:
        """The time, in nanoseconds."""
        return self.now_ns

    def tick(self, *, seconds: float = 0, ns: int = 0) -> None:
        """Moves on, or back."""
        self.now_ns += round(seconds * NS_PER_S) + ns
