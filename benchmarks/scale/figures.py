"""The curves of both benchmarks of scale as SVG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from fedclip_plugin.bench.figure import COLOURS
from fedclip_plugin.report.figures.svg import figure_style

Points = Sequence[tuple[float, float]]


def embedded_svg(found: Mapping[str, Any]) -> str:
    """Seconds of a round by stage, cost of a client-round, and memory."""
    cells = found["cells"]
    most = max(c["participants"] for c in cells)
    large = [c for c in cells if c["participants"] == min(most, c["clients"])]
    sizes = sorted({c["clients"] for c in cells})
    with figure_style():
        figure = Figure(figsize=(12, 3.8), layout="constrained")
        stages, cost, peak = figure.subplots(1, 3)
        curves: dict[str, Points] = {
            text: [(c["clients"], c[name]) for c in large]
            for name, text in (
                ("train", "training"),
                ("aggregate", "screening and mean"),
                ("evaluate", "scoring all clients"),
            )
        }
        title = f"Seconds of a round ({most:,} train, or all)"
        _draw(stages, title, "clients", curves)
        curves = {f"{n:,} clients": _costs(cells, n) for n in sizes}
        _draw(cost, "Processor ms a client-round", "in a round", curves, log=False)
        curves = {f"{n:,} clients": _peaks(cells, n) for n in sizes}
        _draw(peak, "Peak memory, MiB", "in a round", curves, log=False)
        return _text(figure)


def _costs(cells: Sequence[Mapping[str, Any]], clients: int) -> Points:
    return [
        (c["participants"], 1e3 * c["cpu"] / c["participants"])
        for c in cells
        if c["clients"] == clients
    ]


def _peaks(cells: Sequence[Mapping[str, Any]], clients: int) -> Points:
    return [
        (c["participants"], c["peak_mib"]) for c in cells if c["clients"] == clients
    ]


def hosts_svg(runs: Sequence[Mapping[str, Any]]) -> str:
    """Cost of a client-round and memory of every engine, as clients grow."""
    measured = [run for run in runs if run["round_s"] is not None]
    names = list(dict.fromkeys(run["engine"] for run in measured))
    with figure_style():
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        cost, peak = figure.subplots(1, 2)
        for axes, key, title in (
            (cost, "client_round_ms", "Cost of a client-round, ms"),
            (peak, "peak_mib", "Memory of all processes, MiB"),
        ):
            curves: dict[str, Points] = {
                name: [(r["clients"], r[key]) for r in measured if r["engine"] == name]
                for name in names
            }
            _draw(axes, title, "clients, all in every round", curves)
        return _text(figure)


def _draw(
    axes: Axes, title: str, x: str, curves: Mapping[str, Points], log: bool = True
) -> None:
    ticks = sorted({int(at) for points in curves.values() for at, _ in points})
    for (name, points), colour in zip(curves.items(), COLOURS):
        axes.plot(*zip(*points), marker="o", markersize=3, color=colour, label=name)
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.minorticks_off()
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.legend(frameon=False)


def _text(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
