"""Metered turns, with interruptions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from goal_state import GoalMeter, TokenUsage
from tests.proof.chaos import strikes
from tests.proof.chaos.acts.base import Acts, goal_of
from tests.proof.chaos.channel import Message
from tests.proof.chaos.strikes import Strike

__all__ = ["Metering"]


class Metering(Acts):
    """Acts of a meter."""

    def do_meter(
        self, store: int, thread_id: str, how: str, when: list[float], kinds: list[str]
    ) -> Message:
        """A turn that is metered and struck; what was struck is reported again, as hosts do.

        The clock is the test's own, in whole seconds, so that what is due is known. Once its budget is full,
        the goal is resumed with a higher one.
        """
        held = self.held[store]
        began = time.monotonic()
        now_ns = 0
        held.store.create(thread_id, "Ship", token_budget=200)
        meter = GoalMeter(held.store, thread_id, clock_ns=lambda: now_ns)
        notices = 0

        def report(index: int, work: Callable[[], Any], is_done: Callable[[], bool]) -> None:
            nonlocal notices

            def act() -> None:
                raise strikes.of_kind(kinds[index])

            try:
                reading = strikes.at(how, when[index], act, work)
            except Strike:
                if is_done():
                    return
                reading = work()
            notices += reading.budget_exhausted

        total = 0
        zero = TokenUsage()
        report(0, lambda: meter.start_turn("turn-1", total=zero), lambda: meter.turn_id is not None)
        for index in range(1, len(when) - 1):
            now_ns += 2_000_000_000
            total += 100
            usage = TokenUsage(input_tokens=total)
            report(index, lambda usage=usage: meter.record_total(usage), lambda: False)
            if total == 200:
                held.store.resume(thread_id, token_budget=400)
        now_ns += 2_000_000_000
        report(len(when) - 1, meter.finish_turn, lambda: meter.turn_id is None)
        goal = goal_of(held.store, thread_id)
        found = [goal.tokens_used, round(goal.time_used_seconds), notices]
        due = [total, now_ns // 1_000_000_000, (total >= 200) + (total >= 400)]
        return {"at": [began, time.monotonic()], "found": found, "due": due}
