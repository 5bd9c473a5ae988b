"""What each searched option of a sweep did: its trials over its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ...stats import mean
from ..tables import Cell, Table
from ..wording import percent
from .svg import SMALL, Chart, Key, clean, colour, new_axes, to_svg

MAX_OPTIONS = 8  # charts
MAX_VALUES = 12  # named along an axis
_LETTERS = 48  # along an axis
_WIDE = 20.0  # the highest by the lowest value, from which an axis is logarithmic

Point = tuple[Any, float, float | None]
"""A trial: its value of an option, validation and accuracy, means over its runs."""


def option_charts(result: Mapping[str, Any]) -> list[Chart]:
    """A chart for each option that has several values; ``result`` is sweep.json's."""
    names = dict.fromkeys(name for t in result["trials"] for name in t["options"])
    drawn = (_chart(name, list(_points(result, name)), result) for name in names)
    return [chart for chart in drawn if chart is not None][:MAX_OPTIONS]


def _points(result: Mapping[str, Any], name: str) -> Iterator[Point]:
    """Trials that have all of their runs: others would be means over other domains."""
    whole = max((len(trial["runs"]) for trial in result["trials"]), default=0)
    for trial in result["trials"]:
        validation = mean(run["validation"] for run in trial["runs"])
        if name not in trial["options"] or len(trial["runs"]) < whole:
            continue
        if validation is not None:
            got = mean(run["result"] for run in trial["runs"])
            yield trial["options"][name], validation, got


def _chart(
    name: str, points: Sequence[Point], result: Mapping[str, Any]
) -> Chart | None:
    values = _ordered(value for value, *_ in points)
    if len(values) < 2:
        return None
    figure, axes = new_axes(2.6, clean(name, 40))
    places = _axis(axes, values)
    held = any(target != "none" for target in result["selected"])
    series = (
        ("clients", "validation of the source clients", 1),
        ("method", "held-out accuracy" if held else "clients' test accuracy", 2),
    )
    legend = []
    for shade, text, which in series:
        scores = [(places[_key(point[0])], point[which]) for point in points]
        dots = [(place, 100 * score) for place, score in scores if score is not None]
        if dots:
            _draw(axes, dots, shade)
            legend.append(Key(shade, text, "line"))
    table = _table(name, values, points)
    best = max(points, key=lambda point: point[1])
    label = f"{name}: {len(points)} trials, validation is highest at {_text(best[0])}"
    svg = to_svg(figure, label)
    title = f"{clean(name, 40)}, accuracy in %"
    note = "A dot is a trial, mean over its runs; lines join the means of each value."
    return Chart(title, svg, tuple(legend), note, table)


def _draw(axes: Axes, dots: Sequence[tuple[float, float]], shade: str) -> None:
    """The trials, and a line through the mean at each value."""
    x, y = np.array(dots).T
    steps = np.unique(x)
    means = [y[x == step].mean() for step in steps]
    own = colour(shade)
    axes.plot(steps, means, color=own, linewidth=1.6)
    axes.scatter(x, y, s=14, color=own, alpha=0.6, linewidths=0)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _key(value: Any) -> Any:
    return value if _number(value) else _text(value)


def _ordered(values: Iterator[Any]) -> list[Any]:
    """Each once: numbers by size, others as the file has them."""
    found = list(dict.fromkeys(map(_key, values)))
    return sorted(found) if all(map(_number, found)) else found


def _axis(axes: Axes, values: Sequence[Any]) -> dict[Any, float]:
    """Where each value lies: numbers in their own scale, others side by side."""
    if all(map(_number, values)):
        places = np.array(values, dtype=float)
        if places[0] > 0 and places[-1] / places[0] >= _WIDE:
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            places = np.log(places)
        names = [_text(v) for v in values]
        apart = np.diff(places).min() / (places[-1] - places[0])
        if apart * _LETTERS >= max(map(len, names)):  # else ticks as they come
            axes.set_xticks([float(v) for v in values], names)
        return {v: float(v) for v in values}
    shown = values[:MAX_VALUES]
    limit = max(5, _LETTERS // len(shown))
    names = [clean(_text(v), limit) for v in shown]
    axes.set_xticks(range(len(shown)), names, fontsize=SMALL)
    axes.set_xlim(-0.5, len(values) - 0.5)
    return {v: float(i) for i, v in enumerate(values)}


def _table(name: str, values: Sequence[Any], points: Sequence[Point]) -> Table:
    """The means of every value, and the best validation among its trials."""
    rows = []
    for value in values:
        own = [point for point in points if _key(point[0]) == value]
        scores = [validation for _, validation, _ in own]
        rows.append(
            [
                *(Cell(_text(value)), Cell(str(len(own)))),
                *(Cell(percent(mean(scores))), Cell(percent(max(scores)))),
                Cell(percent(mean(got for *_, got in own))),
            ]
        )
    head = [name, "trials", "validation,\nmean", "validation,\nbest", "result,\nmean"]
    return Table(head, rows, "", fold=f"All {len(rows)} values")
