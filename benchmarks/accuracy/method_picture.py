"""Accuracy on unseen domains against all bytes of a run, a point a method, as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.isotonic import isotonic_regression

from fedclip_plugin.report.figures.svg import figure_style
from fedclip_plugin.report.wording import human_bytes

LINE = 0.03  # of the height of the axes, for a label
NOTHING = 1e4  # where what sends no byte stands on the axis of bytes
SHARED = re.compile(r" --augment-(per-class|scale) \S+")  # too long for a label
OWN, OTHER, LOOKING = "#1f6f8b", "#8a8f98", "#b5543b"


def picture_of(methods: Mapping[str, Mapping[str, Any]], data: str) -> str:
    """``methods`` are rows of a table: bytes of all clients, both ways, a whole run."""
    with figure_style():
        height = max(7.0, 0.26 * len(methods))  # inches; room for a label each
        figure = Figure(figsize=(10, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_ymargin(0.05)
        for label, row in methods.items():
            half = 100 * (row["ci95"]["target"] or 0.0)
            colour = OWN if label.startswith("fedclip") else OTHER
            colour = LOOKING if row["transductive"] else colour
            axes.errorbar(*_point(row), half, fmt="o", color=colour, capsize=3)
        _label(axes, methods)
        axes.set_xscale("log")
        axes.set_xlim(NOTHING / 2)
        ticks = [NOTHING, *(1024.0**n for n in (2, 3)), 10 * 1024.0**2, 100 * 1024.0**2]
        shown = ["nothing", *(human_bytes(int(tick)) for tick in ticks[1:])]
        axes.set_xticks(ticks, shown)
        axes.minorticks_off()
        axes.set_xlabel("sent in a run, all clients, up and down")
        axes.set_ylabel("accuracy on the held-out domain, %")
        axes.set_title(data)
        axes.grid(True, color="#dddddd", linewidth=0.7)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _label(axes: Axes, methods: Mapping[str, Mapping[str, Any]]) -> None:
    """Names in a column at the right, each with a line to its point.

    They stand as near to the heights of their points as their own height allows.
    """
    ranked = sorted(methods.items(), key=lambda item: _point(item[1])[1])
    low, high = axes.get_ylim()
    heights = [(_point(row)[1] - low) / (high - low) for _, row in ranked]
    for (label, row), height in zip(ranked, apart(heights)):
        axes.annotate(
            SHARED.sub("", label) + (" †" if row["transductive"] else ""),
            _point(row),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={
                "arrowstyle": "-",
                "color": "#c4c8cf",
                "linewidth": 0.6,
                "relpos": (0.0, 0.5),
                "zorder": 1,
            },
        )


def apart(heights: Sequence[float]) -> list[float]:
    """The nearest heights to ascending ones that lie apart by what a label needs.

    Both are shares of the axes; isotonic regression of what is left of ``heights``
    without the gaps, within the axes.
    """
    gap = min(LINE, 1 / max(1, len(heights) - 1))
    below = np.arange(len(heights)) * gap
    top = 1 - below[-1] if len(heights) else 1.0
    rest = isotonic_regression(np.asarray(heights) - below, y_min=0.0, y_max=top)
    return [float(height) for height in rest + below]


def _point(row: Mapping[str, Any]) -> tuple[float, float]:
    sent = max(float(row["bytes_a_run"]), NOTHING)
    return sent, 100 * float(row["mean"]["result"]["target"] or 0.0)
