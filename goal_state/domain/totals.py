"""What a cumulative total makes of its count's baseline. Pure: no I/O, no clock, no SQL.

A *count* is what a host adds up from one beginning. Totals of a count never fall, so a lower one is either
late or the first of a new count. Where the host names its counts (`count_id`) nothing is guessed: there is
a baseline for each, and what falls is late. Without a name the turn decides: one that has reported before
is of a count that is known, and a turn that has not begins a new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, cast

from goal_state.domain.counting import CountingFunction
from goal_state.domain.usage import ThreadUsage, TokenUsage, UsageBaseline

__all__ = [
    "beginning",
    "cumulative",
    "is_late",
    "names_turn",
    "next_baseline",
    "with_turn",
]

_MOST_UNPAID_TURNS: Final = 16


def cumulative(total: TokenUsage | ThreadUsage) -> TokenUsage:
    """The cumulative counts of a total, however it was given."""
    return total.total if isinstance(total, ThreadUsage) else total


def beginning() -> UsageBaseline:
    """The baseline of a further count of a thread, before its first total: it begins at zero."""
    return UsageBaseline(TokenUsage(), None, None, None, 0)


def is_late(
    before: UsageBaseline | None,
    total: TokenUsage | ThreadUsage,
    *,
    count_id: str | None,
    turn_id: str | None,
    has_reported: Callable[[str], bool],
) -> bool:
    """Whether a total was overtaken, so that it says nothing new and must change nothing.

    Args:
        before: the baseline of its count.
        total: what the host reports.
        count_id: the count's name, or None where the host gives it none.
        turn_id: the turn that it is of, or None where the host names none.
        has_reported: whether a turn has reported totals of this thread before; asked only where a total
            falls in a turn that is not the baseline's own.
    """
    if before is None or not cumulative(total).is_below(before.total):
        return False
    if count_id is not None or turn_id is None or turn_id == before.turn_id:
        return True
    return has_reported(turn_id)


def next_baseline(
    before: UsageBaseline | None,
    total: TokenUsage | ThreadUsage,
    turn_id: str | None,
    counted_tokens: CountingFunction,
) -> tuple[ThreadUsage | None, int]:
    """The baseline that a new cumulative total makes (None: the one that there is), and what a goal pays
    for the way to it: nothing for the first total of a thread, nor for one that is lower.
    """
    if before is None:
        usage = total if isinstance(total, ThreadUsage) else ThreadUsage(total)
        return usage.of_turn(turn_id), 0
    seen = cumulative(total)
    difference = seen - before.total
    tokens = 0 if seen.is_below(before.total) else counted_tokens(difference)
    owner = before.turn_id if turn_id is None else turn_id
    if isinstance(total, ThreadUsage):
        return total.of_turn(owner), tokens
    if seen == before.total:
        return None, tokens
    return ThreadUsage(seen, difference, before.model_context_window, owner), tokens


# -- turns that paid nothing -------------------------------------------------------------------------


def names_turn(unpaid_turn_ids: str | None, turn_id: str) -> bool:
    """Whether a turn is among those that are kept beside a baseline."""
    return unpaid_turn_ids is not None and turn_id in _turns(unpaid_turn_ids)


def with_turn(unpaid_turn_ids: str | None, turn_id: str) -> str:
    """Those that are kept, and this turn as the latest; of very many the earliest is forgotten."""
    turns = [] if unpaid_turn_ids is None else _turns(unpaid_turn_ids)
    if turn_id not in turns:
        turns = [*turns, turn_id][-_MOST_UNPAID_TURNS:]
    return json.dumps(turns, ensure_ascii=False)


def _turns(unpaid_turn_ids: str) -> list[str]:
    return cast("list[str]", json.loads(unpaid_turn_ids))
