"""Methods' accuracy against what it cost: bytes on the wire, seconds of training.

A curve shows, at every cost, the accuracy of the round that the clients' validation
rows would have chosen so far; it ends at the figure of the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator

from ..records import RunRecord
from ..tables import Cell, Table
from ..wording import human_bytes, human_seconds, percent
from .rounds import column
from .svg import Chart, Key, colour, dashed, new_axes, to_svg

LINES = tuple(f"k{i}" for i in (1, 0, 3, 5, 6, 8, 7, 4, 2, 9))
"""Colours of the lines of a comparison, those that read best first."""
COSTS = {"bytes": "sent so far, up and down", "seconds": "seconds of training so far"}


@dataclass(frozen=True)
class CostCurve:
    """A line: ``accuracy`` (R,), fractions, at growing ``cost`` (R,), NaN = unknown."""

    label: str
    cost: np.ndarray
    accuracy: np.ndarray


def cost_curve(
    label: str, runs: Sequence[RunRecord], cost: str, kind: str = "target"
) -> CostCurve:
    """The mean of ``runs``, round by round, as far as all of them go.

    ``cost`` is ``bytes`` or ``seconds``, a run's own; ``kind`` is ``target`` (held out)
    or ``clients`` (the mean of their test splits).
    """
    name = "target" if kind == "target" else "mean_test"
    rounds = min((len(run.metrics) for run in runs), default=0)
    if not rounds:
        return CostCurve(label, np.zeros(0), np.zeros(0))
    costs = [_spent(run, cost)[:rounds] for run in runs]
    scored = [column(run, name)[_chosen(run)][:rounds] for run in runs]
    return CostCurve(label, np.mean(costs, axis=0), np.mean(scored, axis=0))


def _spent(run: RunRecord, cost: str) -> np.ndarray:
    if cost == "bytes":
        each = column(run, "bytes_up") + column(run, "bytes_down")
    else:
        stages = [(entry.get("seconds") or {}).get("train") for entry in run.metrics]
        each = np.array(stages, dtype=float)
    return np.cumsum(np.nan_to_num(each))


def _chosen(run: RunRecord) -> np.ndarray:
    """Index of the best round so far by validation, of equal ones the first.  (R,)

    As long as no round is validated, the last one.
    """
    validation = np.nan_to_num(column(run, "mean_val"), nan=-1.0)
    before = np.concatenate([[-np.inf], np.maximum.accumulate(validation)[:-1]])
    better = np.where(
        (validation > before) | (before < 0), np.arange(len(validation)), 0
    )
    return np.maximum.accumulate(better)


def compare_costs(
    curves: Sequence[CostCurve],
    cost: str,
    title: str,
    zero_shot: float | None = None,
) -> Chart | None:
    """A numbered line a method over a logarithmic ``cost``: ``bytes`` or ``seconds``.

    ``zero_shot`` is the guard line, a fraction.  A method that costs nothing (local
    adapters send no byte) is a dotted line across.
    """
    curves = [c for c in curves if len(c.cost) and np.isfinite(c.accuracy).any()]
    curves = curves[: len(LINES)]
    paid = [c for c in curves if c.cost[-1] > 0]
    if not paid:
        return None
    figure, axes = new_axes(3.1, COSTS[cost])
    legend = []
    for number, (curve, name) in enumerate(zip(curves, LINES), 1):
        end = 100 * float(curve.accuracy[-1])
        free = not curve.cost[-1]
        if free:
            axes.axhline(end, color=colour(name), linewidth=1.4, linestyle=(0, (1, 2)))
        else:
            steps: dict[str, Any] = {"linewidth": 1.8, "drawstyle": "steps-post"}
            steps |= {"marker": "o", "markersize": 4} if len(curve.cost) == 1 else {}
            axes.plot(curve.cost, 100 * curve.accuracy, color=colour(name), **steps)
        _number(axes, number, None if free else float(curve.cost[-1]), end, name)
        text = f"{number} {curve.label}" + (" (free)" if free else "")
        legend.append(Key(name, text, "line"))
    legend += dashed(axes, zero_shot, "base", "zero-shot")
    _log_axis(axes, cost, paid)
    description = ", ".join(
        f"{c.label} {percent(float(c.accuracy[-1]))}" for c in curves
    )
    svg = to_svg(figure, description)
    return Chart(title, svg, tuple(legend), table=_ends(curves, cost, zero_shot))


def _ends(curves: Sequence[CostCurve], cost: str, zero_shot: float | None) -> Table:
    """Where every line ends, and what half of its cost had brought."""
    body = []
    for curve in curves:
        total = float(curve.cost[-1])
        place = int(np.searchsorted(curve.cost, total / 2, side="right")) - 1
        half = float(curve.accuracy[place]) if total and place >= 0 else None
        end = float(curve.accuracy[-1])
        spent = human_bytes(total) if cost == "bytes" else human_seconds(total)
        cells = spent if total else "nothing", _shown(half), _shown(end)
        body.append([Cell(curve.label), *map(Cell, cells)])
    if zero_shot is not None:
        cells = "nothing", "-", _shown(zero_shot)
        body.append([Cell("zero-shot"), *map(Cell, cells)])
    return Table(["method", COSTS[cost], "%, at half of it", "%, at the end"], body)


def _shown(accuracy: float | None) -> str:
    return "-" if accuracy is None or not np.isfinite(accuracy) else percent(accuracy)


def _number(axes: Axes, number: int, x: float | None, y: float, name: str) -> None:
    """Names a line where it ends, so that colour is not all that tells lines apart."""
    at: dict[str, Any] = {"xycoords": "data"}
    if x is None:  # a line across: at the left edge
        x, at["xycoords"] = 0.0, ("axes fraction", "data")
    at |= {"textcoords": "offset points", "xytext": (3, 1.5), "color": colour(name)}
    ground = {"facecolor": colour("surface"), "edgecolor": "none", "pad": 0.4}
    at |= {"va": "bottom", "fontweight": "bold", "bbox": ground, "zorder": 5}
    axes.annotate(str(number), (x, y), **at)


def _log_axis(axes: Axes, cost: str, curves: Sequence[CostCurve]) -> None:
    """Some five ticks at powers of two (bytes) or of ten (seconds).

    Where costs lie closer together than two of these, ticks as they come.
    """
    positive = np.concatenate([c.cost[c.cost > 0] for c in curves])
    base = 2.0 if cost == "bytes" else 10.0
    axes.set_xscale("log", base=base)
    low, high = positive.min() / 1.1, positive.max() * 1.25
    axes.set_xlim(low, high)
    axes.minorticks_off()
    first, last = np.log([low, high]) / np.log(base)
    powers = LogLocator(base, numticks=6)
    apart = np.floor(last) > np.ceil(first)
    axes.xaxis.set_major_locator(powers if apart else MaxNLocator(4))
    axes.xaxis.set_major_formatter(
        lambda v, _: human_bytes(v).replace(".0 ", " ") if base == 2 else f"{v:g}"
    )
