"""Accuracy against what it cost: bytes on the wire, seconds of training.

As in ``plots``: one function a figure, ``None`` where there is no data.  A curve shows,
at every cost, the accuracy of the round that the clients' validation rows would have
chosen so far; it ends at the figure of the tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..averages import scores
from ..records import NO_TARGET, RunRecord
from ..wording import human_bytes, human_seconds, percent
from .rounds import column
from .svg import Chart, Key, clean, colour, label_axes, new_axes, to_svg

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
    costs = [_spent(run, cost)[:rounds] for run in runs]
    found = [column(run, name)[_chosen(run)][:rounds] for run in runs]
    if not rounds:
        return CostCurve(label, np.zeros(0), np.zeros(0))
    return CostCurve(label, np.mean(costs, axis=0), np.mean(found, axis=0))


def _spent(run: RunRecord, cost: str) -> np.ndarray:
    if cost == "bytes":
        each = column(run, "bytes_up") + column(run, "bytes_down")
    else:
        found = [(entry.get("seconds") or {}).get("train") for entry in run.metrics]
        each = np.array([np.nan if v is None else v for v in found], dtype=float)
    return np.cumsum(np.nan_to_num(each))


def _chosen(run: RunRecord) -> np.ndarray:
    """Index of the best round so far by validation, of equal ones the first.  (R,)"""
    validation = np.nan_to_num(column(run, "mean_val"), nan=-1.0)
    best, found = 0, []
    for i, value in enumerate(validation):
        best = i if value > validation[best] else best
        found.append(best)
    return np.array(found, dtype=int)


# -- one run --------------------------------------------------------------------------


def accuracy_by_bytes(run: RunRecord, key: str) -> Chart | None:
    """Accuracy against bytes; none where nothing was sent."""
    return _of_run(run, "bytes", "Accuracy against bytes sent, %", key)


def accuracy_by_seconds(run: RunRecord, key: str) -> Chart | None:
    """Accuracy against seconds of training."""
    return _of_run(run, "seconds", "Accuracy against training time, %", key)


def _of_run(run: RunRecord, cost: str, title: str, key: str) -> Chart | None:
    base = scores(run.summary, "zero_shot")
    lines = {"target": ("method", f"held out: {clean(run.target)}")}
    lines["clients"] = ("clients", "clients, mean")
    if run.target == NO_TARGET:
        del lines["target"]
    figure, axes = new_axes(2.6, top=0.14)
    legend: list[Key] = []
    spent = 0.0
    for kind, (name, text) in lines.items():
        curve = cost_curve(text, [run], cost, kind)
        if not np.isfinite(curve.accuracy).any() or not curve.cost[-1]:
            continue
        spent = float(curve.cost[-1])
        _steps(axes, curve, name)
        legend += [Key(name, text, "line"), *_guard(axes, base[kind], name, text)]
    if not legend:
        return None
    axes.set_xlim(0, 1.02 * spent)
    if cost == "bytes":
        axes.xaxis.set_major_formatter(lambda v, _: _short_bytes(v))
        axes.xaxis.set_major_locator(_ByteLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    label_axes(axes, COSTS[cost])
    note = _totals(run) if cost == "bytes" else human_seconds(spent) + " in all"
    svg = to_svg(figure, key=key, label=f"{title}: {note}")
    return Chart(title, svg, tuple(legend), note)


def _totals(run: RunRecord) -> str:
    up, down = (float(np.nansum(column(run, f"bytes_{w}"))) for w in ("up", "down"))
    return f"All clients and rounds: {human_bytes(up)} up, {human_bytes(down)} down"


def _short_bytes(count: float) -> str:
    return human_bytes(count).replace(".0 ", " ")


def _steps(axes: Axes, curve: CostCurve, name: str, **style: Any) -> None:
    style = {"linewidth": 1.8, "drawstyle": "steps-post", **style}
    axes.plot(curve.cost, 100 * curve.accuracy, color=colour(name), **style)


def _guard(axes: Axes, zero: float | None, name: str, text: str = "") -> list[Key]:
    """The line that a method must stay above."""
    if zero is None:
        return []
    style: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.2}
    axes.axhline(100 * zero, color=colour(name), **style)
    prefix = f"{text.split(':')[0]}, " if text else ""
    return [Key(name, f"{prefix}zero-shot", "dash")]


class _ByteLocator(MaxNLocator):
    """Ticks at round numbers of KiB, MiB or GiB."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        unit = 1024.0 ** max(0, int(np.log2(max(vmax, 1)) // 10))
        self.set_params(nbins=5)
        return np.asarray(super().tick_values(vmin / unit, vmax / unit)) * unit


# -- several methods ------------------------------------------------------------------


def compare_costs(
    curves: Sequence[CostCurve],
    cost: str,
    title: str,
    key: str,
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
    figure, axes = new_axes(3.1, top=0.14, right=0.24)
    legend = []
    for number, (curve, name) in enumerate(zip(curves, LINES), 1):
        end = 100 * float(curve.accuracy[-1])
        free = not curve.cost[-1]
        if free:
            axes.axhline(end, color=colour(name), linewidth=1.4, linestyle=(0, (1, 2)))
        else:
            _steps(axes, curve, name)
        _number(axes, number, None if free else float(curve.cost[-1]), end, name)
        text = f"{number} {curve.label}" + (" (free)" if free else "")
        legend.append(Key(name, text, "line"))
    legend += _guard(axes, zero_shot, "base")
    _log_axis(axes, cost, paid)
    label_axes(axes, COSTS[cost])
    told = ", ".join(f"{c.label} {percent(float(c.accuracy[-1]))}" for c in curves)
    return Chart(title, to_svg(figure, key=key, label=told), tuple(legend))


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
    """Some five ticks at powers of two (bytes) or of ten (seconds)."""
    positive = np.concatenate([c.cost[c.cost > 0] for c in curves])
    base = 2.0 if cost == "bytes" else 10.0
    low = math.floor(math.log(positive.min(), base))
    high = math.ceil(math.log(positive.max(), base))
    step = max(1, math.ceil((high - low) / 5))
    ticks = [base**e for e in range(low, high + 1, step)]
    axes.set_xscale("log", base=base)
    axes.set_xlim(positive.min() / 1.1, positive.max() * 1.25)
    axes.minorticks_off()
    names = [_short_bytes(t) if cost == "bytes" else f"{t:g}" for t in ticks]
    inside = [(t, n) for t, n in zip(ticks, names) if t <= positive.max() * 1.25]
    axes.set_xticks([t for t, _ in inside], [n for _, n in inside])
    axes.set_xlim(positive.min() / 1.1, positive.max() * 1.25)
