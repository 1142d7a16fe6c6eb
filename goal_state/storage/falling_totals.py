"""Detects hosts that report usage per response or per turn as totals, so that they can be warned."""

from __future__ import annotations

import threading
from typing import Final

__all__ = ["FallingTotals"]

_MAX_THREADS: Final = 1000


class FallingTotals:
    """Detects totals that are none: they fall within turn after turn, or at the start of many turns.

    Usage that is counted from zero for each response, or for each turn, looks like that.
    """

    _TURNS_UNTIL_WARNING: Final = 2
    _FALLS_UNTIL_WARNING: Final = 3

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._turns_fallen_within: dict[str, set[str]] = {}
        self._other_falls: dict[str, int] = {}
        self._warned: dict[str, None] = {}

    def note(self, thread_id: str, turn_id: str | None, *, within_turn: bool) -> bool:
        """Records a total that fell; True once per thread: when its host is to be warned.

        Args:
            thread_id: the thread.
            turn_id: the turn in which it fell, None where the host names none.
            within_turn: whether the turn had reported a higher one before.
        """
        with self._lock:
            if thread_id in self._warned:
                return False
            if within_turn and turn_id is not None:
                turns = self._turns_fallen_within.setdefault(thread_id, set())
                turns.add(turn_id)
                warn = len(turns) >= self._TURNS_UNTIL_WARNING
            else:
                falls = self._other_falls[thread_id] = self._other_falls.get(thread_id, 0) + 1
                warn = falls >= self._FALLS_UNTIL_WARNING
            if warn:
                self._turns_fallen_within.pop(thread_id, None)
                self._other_falls.pop(thread_id, None)
                self._warned[thread_id] = None
            for recorded in (self._turns_fallen_within, self._other_falls, self._warned):
                if len(recorded) > _MAX_THREADS:
                    del recorded[next(iter(recorded))]
            return warn
