"""Faults that the library had, or could have, each put back by replacing a function in a worker's process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["FAULTS", "Fault"]


class Fault(NamedTuple):
    """How a fault is put back, and which steps are likely to show it."""

    put_back: Callable[[], object]
    within_steps: int


FAULTS: Final[dict[str, Fault]] = {}
