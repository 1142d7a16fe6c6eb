"""Notices hosts whose totals are no totals, so that they are told before their budgets mean nothing."""

from __future__ import annotations

import threading
from typing import Final

__all__ = ["FallingTotals"]

_MOST_THREADS: Final = 1000


class FallingTotals:
    """Finds out whose totals are no totals: they fall within turn after turn, or at the start of many.

    That is what usage looks like that is counted from zero for each response, or for each turn.
    """

    _TURNS_FALLEN_WITHIN: Final = 2
    _FALLS_OTHERWISE: Final = 3

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._within: dict[str, set[str]] = {}
        self._otherwise: dict[str, int] = {}
        self._told: dict[str, None] = {}

    def note(self, thread_id: str, turn_id: str | None, *, within_turn: bool) -> bool:
        """Takes note of a total that fell; True the one time when the host of the thread is to be told.

        Args:
            thread_id: the thread.
            turn_id: the turn in which it fell, None where the host names none.
            within_turn: whether the turn had reported a higher one before.
        """
        with self._lock:
            if thread_id in self._told:
                return False
            if within_turn and turn_id is not None:
                turns = self._within.setdefault(thread_id, set())
                turns.add(turn_id)
                tell = len(turns) >= self._TURNS_FALLEN_WITHIN
            else:
                falls = self._otherwise[thread_id] = self._otherwise.get(thread_id, 0) + 1
                tell = falls >= self._FALLS_OTHERWISE
            if tell:
                self._within.pop(thread_id, None)
                self._otherwise.pop(thread_id, None)
                self._told[thread_id] = None
            for noted in (self._within, self._otherwise, self._told):
                if len(noted) > _MOST_THREADS:
                    del noted[next(iter(noted))]
            return tell
