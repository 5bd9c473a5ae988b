"""The clients: how accurate they became, and what each holds of every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...data.partition import NO_TARGET
from ..classes import class_names, skew
from ..records import RunRecord
from ..tables import Cell, Table
from ..wording import half_width, method_of, percent
from .classes import CLEAR_TO_BLUE, MAX_COUNTED
from .svg import SMALL, Chart, Key, clean, colour, new_axes, to_svg

MAX_NAMED = 20  # clients; beyond, a histogram and a heat map
MAX_STACKED = 10  # classes; beyond, a heat map
MAX_CLASS_NAMES = 30

Row = tuple[str, tuple[float | None, float | None], float | None]
"""A name, accuracies of zero-shot and of the method, and its interval's half-width."""


def _named_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", colors=colour("ink"))
    axes.set_ylim(len(names) - 0.5, -0.5)


# -- accuracies -----------------------------------------------------------------------


def domain_bars(run: RunRecord) -> Chart | None:
    """Zero-shot beside the method for the target and every client."""
    base, got = run.summary["zero_shot"], run.summary["result"]
    method = method_of(run.summary)
    rows: list[Row] = [
        (name, (base["clients"].get(name), value), None)
        for name, value in got["clients"].items()
    ]
    if len(rows) > MAX_NAMED:
        return _histogram(rows, method)
    if run.target != NO_TARGET:
        name = f"{clean(run.target, 14)} (held out)"
        rows.insert(0, (name, (base.get("target"), got.get("target")), None))
    return pair_bars("Zero-shot and trained, per domain", rows, method)


def _keys(method: str) -> tuple[Key, ...]:
    return Key("base", "zero-shot"), Key("method", method)


def pair_bars(title: str, rows: Sequence[Row], method: str) -> Chart | None:
    """Two bars a row, the method's with a whisker where there is an interval."""
    if not rows:
        return None
    names = [clean(name, 26) for name, *_ in rows]
    halves = 100 * np.array([half or 0 for *_, half in rows])
    figure, axes = new_axes(0.42 * len(rows) + 0.4, "accuracy, %", grid="x")
    for k, name in enumerate(("base", "method")):
        values = [pair[k] for _, pair, _ in rows]
        length = 100 * np.array([value or 0 for value in values])
        style: dict[str, Any] = {"height": 0.34, "color": colour(name)}
        if k and halves.any():  # an accuracy stays within 0..100
            style["xerr"] = np.minimum([halves, halves], [length, 100 - length])
            style["error_kw"] = {"ecolor": colour("ink"), "elinewidth": 1, "capsize": 2}
        bars = axes.barh(np.arange(len(rows)) + 0.38 * k - 0.19, length, **style)
        labels = [percent(value, "no test images") for value in values]
        text: dict[str, Any] = {"color": colour("ink"), "fontsize": SMALL}
        axes.bar_label(bars, labels, padding=3, **text)
    axes.set_xlim(0, 117)
    axes.set_xticks(range(0, 101, 20))
    _named_rows(axes, names)
    shown = [
        f"{name}: {percent(base)} to {percent(got)}"
        for name, (_, (base, got), _) in list(zip(names, rows))[:8]
    ]
    label = f"Zero-shot to {clean(method)}, %: {'; '.join(shown)}"
    svg = to_svg(figure, label)
    note = "Whiskers: 95 % confidence interval over seeds." if halves.any() else ""
    return Chart(title, svg, _keys(method), note, _accuracies(names, rows, method))


def _accuracies(names: Sequence[str], rows: Sequence[Row], method: str) -> Table:
    """The numbers behind two bars a row, with the interval where there is one."""
    intervals = [half_width(half) for *_, half in rows]
    body = [
        [Cell(name), Cell(percent(base)), Cell(percent(got), interval)]
        for name, (_, (base, got), _), interval in zip(names, rows, intervals)
    ]
    return Table(["accuracy, %", "zero-shot", method], body)


def _histogram(rows: Sequence[Row], method: str) -> Chart | None:
    """How many clients reach which accuracy; for more clients than bars can show."""
    columns = [
        [100 * v for _, pair, _ in rows if (v := pair[k]) is not None] for k in (0, 1)
    ]
    if not all(columns):
        return None
    figure, axes = new_axes(2.6, "test accuracy, %", "clients")
    axes.hist(columns, bins=20, color=[colour("base"), colour("method")])
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    svg = to_svg(figure, f"Accuracies of {len(rows)} clients")
    title = f"Accuracies of the {len(rows)} clients"
    return Chart(title, svg, _keys(method), table=_spread(columns, method))


def _spread(columns: Sequence[Sequence[float]], method: str) -> Table:
    """How accuracies of many clients, in per cent, are spread."""
    words = ("lowest", "a quarter below", "half below", "three quarters below")
    body = [
        [Cell(word), *(Cell(f"{np.quantile(c, k / 4):.2f}") for c in columns)]
        for k, word in enumerate((*words, "highest"))
    ]
    return Table(["clients' accuracy, %", "zero-shot", method], body)


# -- the partition --------------------------------------------------------------------


def client_sizes(run: RunRecord) -> Chart | None:
    """Training images of every client by class, with how skewed they are."""
    clients = run.evaluation.get("clients") or {}
    rows = [list(c.get("train_per_class") or ()) for c in clients.values()]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        return None
    counts = np.array(rows, dtype=np.int64)  # (K, C)
    classes = class_names(run, len(rows[0]))
    title, note = "Training images per client and class", skew(counts)
    if len(rows) > MAX_NAMED:
        figure = _cells([], classes, counts[_by_class(counts)])
        table = _by_clients(classes, counts)
        return Chart(title, to_svg(figure, note), note=note, table=table)
    names = [clean(name) for name in clients]
    totals = zip(names, counts.sum(axis=1))
    label = "Training images: " + ", ".join(f"{name} {n}" for name, n in totals)
    counted = _counted(names, classes, counts) if len(classes) <= MAX_COUNTED else None
    if len(classes) > MAX_STACKED:
        svg = to_svg(_cells(names, classes, counts), label)
        return Chart(title, svg, note=note, table=counted)
    legend = tuple(Key(f"k{k}", name) for k, name in enumerate(classes))
    svg = to_svg(_stacks(names, counts), label)
    return Chart(title, svg, legend, note, counted)


def _counted(names: Sequence[str], classes: Sequence[str], counts: np.ndarray) -> Table:
    """The numbers behind the picture: a row a client, a column a class."""
    body = [
        [Cell(name), *(Cell(f"{images:,}") for images in row)]
        for name, row in zip(names, counts.tolist())
    ]
    return Table(["client", *(clean(name, 14) for name in classes)], body)


def _by_clients(classes: Sequence[str], counts: np.ndarray) -> Table | None:
    """Of many clients: how many hold a class, and how much of it."""
    if len(classes) > MAX_COUNTED:
        return None
    body = [
        [
            Cell(clean(name)),
            Cell(f"{column.sum():,}"),
            Cell(f"{np.count_nonzero(column):,}"),
            Cell(f"{column.max():,}"),
        ]
        for name, column in zip(classes, counts.T)
    ]
    return Table(["class", "training images", "clients with any", "most of one"], body)


def _by_class(counts: np.ndarray) -> np.ndarray:
    """Order (K,): by most frequent class, within it by that class's share."""
    share = counts.max(axis=1) / np.maximum(counts.sum(axis=1), 1)
    return np.lexsort((-share, counts.argmax(axis=1)))


def _stacks(names: Sequence[str], counts: np.ndarray) -> Figure:
    """A bar a client, cut into its classes."""
    figure, axes = new_axes(0.36 * len(names) + 0.5, "training images", grid="x")
    start = np.zeros(len(names), dtype=np.int64)
    for k, column in enumerate(counts.T):
        style: dict[str, Any] = {"color": colour(f"k{k}"), "height": 0.62}
        style |= {"edgecolor": colour("surface"), "linewidth": 0.6, "left": start}
        bars = axes.barh(range(len(names)), column, **style)
        start = start + column
    totals = [f"{total:,}" for total in start]
    axes.bar_label(bars, totals, padding=3, color=colour("ink"))
    axes.set_xlim(0, 1.14 * max(int(start.max()), 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _named_rows(axes, names)
    return figure


def _cells(names: Sequence[str], classes: Sequence[str], counts: np.ndarray) -> Figure:
    """One image: clients that have names down, else across; classes the other way."""
    rows, size, across = names, SMALL, f"class, 0 = {clean(classes[0], 14)}"
    if not names:
        rows, size = [clean(name, 14) for name in classes[: MAX_CLASS_NAMES + 1]], 7.0
        across = f"{len(counts)} clients, by their most frequent class"
    darkest = f"darkest: {counts.max():,} images"
    height = 0.5 + max(1.6, (0.26 if names else 0.13) * len(rows))
    figure, axes = new_axes(height, f"{across} ({darkest})", grid="")
    style: dict[str, Any] = {"cmap": CLEAR_TO_BLUE, "interpolation": "none"}
    style |= {"vmin": 0, "vmax": max(int(counts.max()), 1), "aspect": "auto"}
    axes.imshow(counts if names else counts.T, **style)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if len(rows) > MAX_CLASS_NAMES:
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_ylabel("class", color=colour("muted"), labelpad=2)
    else:
        _named_rows(axes, rows)
        axes.tick_params(axis="y", labelsize=size)
    return figure
