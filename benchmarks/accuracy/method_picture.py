"""Accuracy on unseen domains against all bytes of a run, a point a method, as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from fedclip_plugin.report.figures.svg import figure_style
from fedclip_plugin.report.wording import human_bytes

NOTHING = 1e4  # where what sends no byte stands on the axis of bytes
SHARED = re.compile(r" --augment-(per-class|scale) \S+")  # too long for a label
OWN, OTHER, LOOKING = "#1f6f8b", "#8a8f98", "#b5543b"


def picture_of(methods: Mapping[str, Mapping[str, Any]], data: str) -> str:
    """``methods`` are rows of a table: bytes of all clients, both ways, a whole run."""
    with figure_style():
        figure = Figure(figsize=(9, 7), layout="constrained")
        axes = figure.add_subplot()
        axes.set_ymargin(0.12)
        taken: list[tuple[float, float]] = []
        for label, row in sorted(methods.items(), key=lambda item: _top(item[1])):
            x, y = max(row["bytes_a_run"], NOTHING), _top(row)
            half = 100 * (row["ci95"]["target"] or 0.0)
            colour = OWN if label.startswith("fedclip") else OTHER
            colour = LOOKING if row["transductive"] else colour
            axes.errorbar(x, y, half, fmt="o", color=colour, capsize=3)
            height = y
            while any(abs(height - b) < 0.8 and 0.02 < x / a < 50 for a, b in taken):
                height += 0.2
            taken.append((x, height))
            axes.annotate(
                SHARED.sub("", label) + (" †" if row["transductive"] else ""),
                (x, y),
                xytext=(x * 1.2, height),
                va="center",
                fontsize=8,
            )
        axes.set_xscale("log")
        axes.set_xlim(NOTHING / 2, 1e11)
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


def _top(row: Mapping[str, Any]) -> float:
    return 100 * float(row["mean"]["result"]["target"] or 0.0)
