"""Timing side by side: every round runs all candidates in turn, so that whatever else the machine does
meets them alike; what is reported is the ratio within a round, over the rounds.
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

__all__ = [
    "FULL",
    "MEDIUM",
    "QUICK",
    "Figure",
    "Scale",
    "Spread",
    "compared",
    "dear_calls",
    "interleaved",
    "profiled",
    "ratios",
    "rotated",
    "timed",
]

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Scale:
    """How long to measure and how much data to make."""

    rounds: int
    """Ratios per figure."""
    turns: int
    """How often the candidates take turns within a round."""
    calls: int
    """Cheap calls in a row (a get, a charge that is not synced); dear ones are a quarter of it."""
    seconds: float
    """How long threads or processes run at full load, once."""
    threads: Sequence[int]
    goals: Sequence[int]
    """Sizes of the databases that growth is measured over; each has ten times as many events."""
    starts: int
    """New processes per candidate."""
    rollout_mib: int
    """Size of a long rollout."""


QUICK: Final = Scale(
    rounds=2,
    turns=1,
    calls=4,
    seconds=0.05,
    threads=(1, 8),
    goals=(50, 200),
    starts=1,
    rollout_mib=4,
)
MEDIUM: Final = Scale(
    rounds=15,
    turns=10,
    calls=60,
    seconds=0.6,
    threads=(1, 2, 4, 8, 16, 32, 64),
    goals=(1_000, 10_000, 100_000),
    starts=15,
    rollout_mib=128,
)
FULL: Final = Scale(
    rounds=30,
    turns=15,
    calls=60,
    seconds=1.5,
    threads=(1, 2, 4, 8, 16, 32, 64, 128),
    goals=(1_000, 10_000, 100_000, 1_000_000),
    starts=30,
    rollout_mib=1024,
)


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The names, beginning at another one each time."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def timed(work: Work, calls: int) -> float:
    """Seconds per call of `calls` calls in a row."""
    clock = time.perf_counter
    began = clock()
    for _ in range(calls):
        work()
    return (clock() - began) / calls


def interleaved(
    candidates: Mapping[str, Work], *, rounds: int, turns: int, calls: int
) -> dict[str, list[float]]:
    """Seconds per call of each candidate, round by round.

    Within a round the candidates take turns of `calls` calls each, in an order that rotates. A first
    round, in which caches fill and SQL is compiled, is not counted.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        spent = dict.fromkeys(candidates, 0.0)
        for turn in range(turns if number else 1):
            for name in rotated(list(candidates), number + turn):
                spent[name] += timed(candidates[name], calls)
        if number:
            for name, seconds in spent.items():
                taken[name].append(seconds / turns)
    return taken


def ratios(measured: Sequence[float], reference: Sequence[float]) -> list[float]:
    """One over the other, round by round."""
    return [value / base for value, base in zip(measured, reference, strict=True)]


@dataclass(frozen=True, slots=True)
class Spread:
    """Some numbers in short; `low` and `high` are the quartiles."""

    median: float
    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, statistics.fmean(values), low, high, len(values))


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    Attributes:
        group: the module that measured it.
        name: what was measured.
        reference: what it was measured against; empty for an absolute bound.
        values: one number per round.
        unit: of the numbers; `×` is a ratio to the reference.
        target: the bound that the mean should keep, None where there is none.
        sense: whether the target is the most or the least that it should be.
        note: what a reader has to know to read the number right.
        behind: what was measured itself, and the reference itself, as text.
        profile: where the time goes, line by line, for a figure that misses its target.
    """

    group: str
    name: str
    values: Sequence[float]
    reference: str = ""
    unit: str = "×"
    target: float | None = None
    sense: Literal["at most", "at least"] = "at most"
    note: str = ""
    behind: str = ""
    profile: Sequence[str] = field(default=())

    @property
    def spread(self) -> Spread:
        return Spread.of(self.values)

    @property
    def is_met(self) -> bool | None:
        """Whether the mean keeps the target; None without one."""
        if self.target is None:
            return None
        mean = self.spread.mean
        return mean <= self.target if self.sense == "at most" else mean >= self.target

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        spread = self.spread
        return {
            "group": self.group,
            "name": self.name,
            "reference": self.reference,
            "unit": self.unit,
            "mean": spread.mean,
            "median": spread.median,
            "quartiles": [spread.low, spread.high],
            "rounds": spread.count,
            "target": self.target,
            "sense": self.sense if self.target is not None else None,
            "met": self.is_met,
            "behind": self.behind,
            "note": self.note,
            "profile": list(self.profile),
            "values": list(self.values),
        }


def dear_calls(scale: Scale, durability: str) -> int:
    """How many charges in a row: fewer of those that wait for a sync."""
    return scale.calls if durability == "normal" else max(scale.calls // 4, 1)


def compared(
    group: str,
    name: str,
    taken: Mapping[str, Sequence[float]],
    sides: tuple[str, str],
    *,
    target: float | None = None,
    work: Work | None = None,
    per: int = 1,
    note: str = "",
) -> Figure:
    """The ratio of two sides that were measured together.

    Args:
        group: the module that measured it.
        name: what was measured.
        taken: seconds per call of each side, round by round.
        sides: whose ratio to whom.
        target: the most that it should be.
        work: what is profiled where the target is missed.
        per: how many units of work a call does; the times are shown of one.
        note: what a reader has to know to read the number right.
    """
    mine, base = sides
    values = ratios(taken[mine], taken[base])
    medians = [Spread.of(taken[side]).median / per * 1e6 for side in sides]
    figure = Figure(
        group,
        name,
        values,
        reference=base,
        target=target,
        note=note,
        behind=f"{medians[0]:.1f} / {medians[1]:.1f} µs",
    )
    if work is None or figure.is_met is not False or len(values) < 5:
        return figure
    return replace(figure, profile=profiled(work, calls=max(2000 // per, 5)))


def profiled(work: Work, calls: int = 2000, lines: int = 14) -> list[str]:
    """Where the time of a call goes: the functions with the most time of their own, in µs per call.

    The profiler itself makes Python's part look about twice as dear as it is.
    """
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(calls):
        work()
    profile.disable()
    stats: Any = pstats.Stats(profile)
    rows: list[tuple[float, float, str]] = []
    for (file, line, name), (_, count, own, _, _) in stats.stats.items():
        place = name if file == "~" else f"{Path(file).name}:{line} {name}"
        rows.append((own / calls * 1e6, count / calls, place))
    rows.sort(reverse=True)
    return [f"{own:7.2f} µs in {count:5.1f} × {place}" for own, count, place in rows[:lines]]
