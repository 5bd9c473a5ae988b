"""The scaling of the operators as one SVG file: over rows, width and clients."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..report.figures.svg import figure_style
from .operators import OURS, Row

# Okabe and Ito's set, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def svg(rows: Sequence[Row]) -> str:
    """Four panels on one thread; those without a measurement stay empty."""
    with figure_style():
        figure = Figure(figsize=(9, 7.4), layout="constrained")
        step, width, mean, round_ = figure.subplots(2, 2).flat
        steps = _rows(rows, "training step")
        by_batch = [r for r in steps if r["dim"] == 512]
        by_width = [r for r in steps if r["batch"] == 32]
        means = _rows(rows, "weighted mean")
        _ratios(step, "Training step, D = 512", "rows a batch", by_batch, "batch")
        _ratios(width, "Training step, 32 rows", "D", by_width, "dim")
        _ratios(mean, "Weighted mean of adapters", "clients", means, "clients")
        _rounds(round_, [r for r in rows if r["what"] == "round over clients"])
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _rows(rows: Sequence[Row], what: str) -> list[Row]:
    return [r for r in rows if r["what"] == what and r["threads"] == 1]


def _axes(axes: Axes, title: str, size: str, value: str, sizes: Sequence[int]) -> None:
    axes.set_title(title)
    axes.set_xlabel(size)
    axes.set_ylabel(value)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(s) for s in sizes])
    axes.minorticks_off()
    axes.grid(True, color="#dddddd", linewidth=0.7)
    if axes.get_legend_handles_labels()[0]:
        below = (0.5, -0.2)  # of the axis' label: lines may be anywhere in the plot
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=below, ncols=3)


def _lines(
    axes: Axes,
    rows: Sequence[Row],
    size: str,
    names: Sequence[str],
    value: Callable[[Row, str], float],
) -> list[int]:
    rows = sorted(rows, key=lambda r: int(r[size]))
    for name, colour in zip(names, COLOURS * 2):
        points = [(r[size], value(r, name)) for r in rows if name in r["us"]]
        axes.plot(*zip(*points), marker="o", markersize=3, color=colour, label=name)
    return [int(r[size]) for r in rows]


def _ratios(axes: Axes, title: str, label: str, rows: Sequence[Row], size: str) -> None:
    names = list(dict.fromkeys(name for r in rows for name in r["ratio"]))
    sizes = _lines(axes, rows, size, names, lambda r, name: float(r["ratio"][name][0]))
    axes.axhline(1, color="#888888", linewidth=0.8)
    axes.set_ylim(bottom=0)
    _axes(axes, title, label, "time over ours", sizes)


def _rounds(axes: Axes, rows: Sequence[Row]) -> None:
    names = [n for n in (OURS, "one thread") if any(n in r["us"] for r in rows)]
    sizes = _lines(
        axes, rows, "clients", names, lambda r, name: float(r["us"][name][0])
    )
    axes.set_ylim(bottom=0)
    title = "Round over clients, 32 rows, D = 512"
    _axes(axes, title, "clients", "us a client's step", sizes)
