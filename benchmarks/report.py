"""The report: a table to read, a JSON file to compare with, and plots."""

from __future__ import annotations

import json
import os
import platform
import re
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import Figure

__all__ = ["line", "write"]

_HEAD = (
    "| figure | against | mean | median | quartiles | target | | behind it |",
    "|---|---|---|---|---|---|---|---|",
)
_INTRODUCTION = (
    "Ratios measured side by side in one run, rounds interleaved; the mean of the rounds is held"
    " against the target. They depend on the machine less than the times behind them do."
)
_BOUND = {"at most": "≤", "at least": "≥"}


def line(figure: Figure) -> str:
    """The figure in one line of text."""
    if not figure.values:
        return f"{figure.group}: {figure.name}: {figure.note}"
    spread = figure.spread
    met = {True: "met", False: "MISSED", None: ""}[figure.is_met]
    bound = "" if figure.target is None else f" ({_BOUND[figure.sense]} {figure.target:g}: {met})"
    against = f" against {figure.reference}" if figure.reference else ""
    return (
        f"{figure.group}: {figure.name}: {spread.mean:.3g} {figure.unit}{bound}{against};"
        f" median {spread.median:.3g} [{spread.low:.3g} to {spread.high:.3g}]; {figure.behind}"
    )


def write(
    folder: Path, figures: Sequence[Figure], failures: Mapping[str, str], scale: str
) -> list[Path]:
    """Writes table.md, figures.json and, where matplotlib is installed, the plots; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "scale": scale,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sqlalchemy": version("sqlalchemy"),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }
    table, data = folder / "table.md", folder / "figures.json"
    table.write_text(_table(figures, failures, machine), encoding="utf-8")
    data.write_text(
        json.dumps(
            {
                "machine": machine,
                "figures": [
                    {"group": f.group, "name": f.name, "missing": f.note}
                    if not f.values
                    else f.to_mapping()
                    for f in figures
                ],
                "failures": dict(failures),
            },
            indent=1,
            ensure_ascii=False,
        ),
        encoding="utf-8",
    )
    return [table, data, *_plots(folder, figures)]


def _table(
    figures: Sequence[Figure], failures: Mapping[str, str], machine: Mapping[str, object]
) -> str:
    parts = [
        "# Benchmarks",
        "",
        _INTRODUCTION,
        "",
        ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in machine.items()),
    ]
    for group in dict.fromkeys(figure.group for figure in figures):
        parts += ["", f"## {group}", "", *_HEAD]
        parts += [_row(figure) for figure in figures if figure.group == group]
        notes = {f.name: f.note for f in figures if f.group == group and f.values and f.note}
        if notes:
            parts += ["", *(f"- {name}: {note}." for name, note in notes.items())]
    missed = [figure for figure in figures if figure.values and figure.is_met is False]
    parts += ["", "## Missed", ""]
    if not missed and not failures:
        parts.append("Nothing.")
    for name, error in failures.items():
        parts.append(f"- `{name}` could not be measured: {error}")
    for figure in missed:
        parts.append(f"- {line(figure)}")
        if figure.profile:
            parts += ["", "  ```", *(f"  {row}" for row in figure.profile), "  ```", ""]
    return "\n".join(parts) + "\n"


def _row(figure: Figure) -> str:
    if not figure.values:
        return f"| {figure.name} | {figure.reference} | {figure.note} | | | | | |"
    spread = figure.spread
    target = "" if figure.target is None else f"{_BOUND[figure.sense]} {figure.target:g}"
    met = {True: "met", False: "**missed**", None: ""}[figure.is_met]
    cells = (
        figure.name,
        figure.reference,
        f"{spread.mean:.3g} {figure.unit}",
        f"{spread.median:.3g}",
        f"{spread.low:.3g}–{spread.high:.3g}",
        target,
        met,
        figure.behind,
    )
    return f"| {' | '.join(cells)} |"


# -- plots -------------------------------------------------------------------------------------------


def _plots(folder: Path, figures: Sequence[Figure]) -> list[Path]:
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("Agg")
    drawn = [
        _plot(
            folder / "growth.png",
            "Growth, against sqlite3 by hand at the same size",
            "goals (ten events each)",
            "times as long as by hand",
            _curves(figures, "size", r"(?P<curve>.+), (?P<place>[\d,]+) goals and"),
        ),
        _plot(
            folder / "threads.png",
            "Threads on one store, FULL, against a lock and one commit per charge",
            "threads",
            "times the reference",
            _curves(figures, "threads", r"(?P<curve>.+), (?P<place>\d+) threads, FULL"),
        ),
    ]
    return [path for path in drawn if path is not None]


Curves = dict[str, list[tuple[float, Figure]]]


def _curves(figures: Sequence[Figure], group: str, pattern: str) -> Curves:
    curves: Curves = {}
    for figure in figures:
        found = re.match(pattern, figure.name) if figure.group == group else None
        if found is not None:
            place = float(found["place"].replace(",", ""))
            curves.setdefault(found["curve"], []).append((place, figure))
    return curves


def _plot(path: Path, title: str, across: str, up: str, curves: Curves) -> Path | None:
    from matplotlib.figure import Figure as Canvas

    if not curves:
        return None
    canvas = Canvas(figsize=(8, 5), dpi=120, layout="constrained")
    axes = canvas.subplots()
    for name, points in curves.items():
        points.sort(key=lambda point: point[0])
        places = [place for place, _ in points]
        spreads = [figure.spread for _, figure in points]
        axes.plot(places, [spread.median for spread in spreads], marker="o", label=name)
        axes.fill_between(
            places,
            [spread.low for spread in spreads],
            [spread.high for spread in spreads],
            alpha=0.15,
        )
    axes.axhline(1.0, color="gray", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    ticks = sorted({place for points in curves.values() for place, _ in points})
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel(f"{up} (median, quartiles)")
    axes.legend()
    canvas.savefig(path)
    return path
