"""The figures that go by class: confusion matrices and what every client holds.

As in ``plots``: one function a figure, ``None`` where there is no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from .averages import method_label
from .records import NO_TARGET, RunRecord
from .svg import (
    WIDTH,
    Chart,
    Key,
    clean,
    colour,
    label_axes,
    new_axes,
    text_inches,
    to_svg,
)

MAX_COUNTED = 20  # classes; beyond, a confusion matrix without numbers
MAX_CELLS = 30  # classes; beyond, the matrix is one image
MAX_STACKED = 10  # classes; beyond, a heat map
MAX_CLIENTS = 20  # beyond, a histogram of client sizes
_TICKS = 32  # class names along an axis

# The page's blue, from clear to full: it reads on a light and on a dark ground alike.
_CLEAR_TO_BLUE = LinearSegmentedColormap.from_list(
    "clear_to_blue", [(0.11, 0.47, 0.77, 0.0), (0.11, 0.47, 0.77, 1.0)]
)


def confusion_of(run: RunRecord, which: str) -> np.ndarray | None:
    """Counts of ``zero_shot`` or of the run's ``result``.  (C, C) int64, rows true."""
    found = run.evaluation.get("confusion") or {}
    name = which if which == "zero_shot" else run.summary["algorithm"]
    matrix = np.array(found.get(name) or [], dtype=np.int64)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    return matrix if square and matrix.size else None


def zero_shot_confusion(run: RunRecord, key: str) -> Chart | None:
    """Confusion matrix before training."""
    return _confusion(run, key, "zero_shot", "zero-shot")


def method_confusion(run: RunRecord, key: str) -> Chart | None:
    """Confusion matrix of the best round."""
    return _confusion(run, key, "result", method_label(run.summary))


def most_confused(run: RunRecord, limit: int = 8) -> list[tuple[str, str, int, int]]:
    """``(true, predicted, method's count, zero-shot's count)``, most frequent first."""
    result, base = confusion_of(run, "result"), confusion_of(run, "zero_shot")
    if result is None:
        return []
    base = result if base is None or base.shape != result.shape else base
    classes = _class_names(run, len(result))
    wrong = result * (1 - np.eye(len(result), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(i), len(result)) for i in order]
    return [
        (classes[t], classes[p], int(wrong[t, p]), int(base[t, p]))
        for t, p in pairs
        if wrong[t, p]
    ]


def _class_names(run: RunRecord, count: int) -> list[str]:
    names = [str(name) for name in run.evaluation.get("classes") or []]
    return (names + [str(i) for i in range(len(names), count)])[:count]


def _confusion(run: RunRecord, key: str, which: str, method: str) -> Chart | None:
    matrix = confusion_of(run, which)
    if matrix is None:
        return None
    count = len(matrix)
    names = [clean(name, 14) for name in _class_names(run, count)]
    size = 6.0 if count > 10 else 7.0
    margin = 0.3 + text_inches(names, size)
    side = WIDTH - margin - 0.1
    upright = margin if max(map(len, names)) > 2 else 0.42
    figure, axes = new_axes(
        side + upright + 0.1, left=margin, right=0.1, bottom=upright, top=0.1, grid=""
    )
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if count > MAX_CELLS:
        axes.imshow(share, cmap=_CLEAR_TO_BLUE, vmin=0, vmax=1, interpolation="none")
    else:
        _cells(axes, matrix, share)
    _frame(axes, names, size)
    right = int(np.trace(matrix))
    label = f"{method}: {right} of {int(matrix.sum())} images on the diagonal"
    where = "client test sets" if run.target == NO_TARGET else run.target
    title = f"Confusion on {where}, {method}"
    return Chart(title, to_svg(figure, key=key, label=label), note=label)


def _cells(axes: Axes, matrix: np.ndarray, share: np.ndarray) -> None:
    """A square a non-zero cell, as opaque as its share of the row; the count inside."""
    size = 8.0 if len(matrix) <= 10 else 5.0
    for row, column in np.argwhere(matrix):
        part = float(share[row, column])
        corner = (column - 0.47, row - 0.47)
        alpha = 0.06 + 0.94 * part
        axes.add_patch(
            Rectangle(corner, 0.94, 0.94, fc=colour("method"), alpha=alpha, lw=0)
        )
        if len(matrix) <= MAX_COUNTED:
            axes.text(
                *(column, row, str(matrix[row, column])),
                ha="center",
                va="center_baseline",
                fontsize=size,
                color=colour("on-method" if alpha > 0.55 else "ink"),
            )


def _frame(axes: Axes, names: Sequence[str], size: float) -> None:
    count = len(names)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_aspect("equal")
    shown = range(0, count, -(-count // _TICKS))
    chosen = [names[i] for i in shown]
    turn = 90 if max(map(len, names)) > 2 else 0
    axes.set_xticks(list(shown), chosen, rotation=turn, fontsize=size)
    axes.set_yticks(list(shown), chosen, fontsize=size)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(colour("grid"))
    axes.set_xlabel("predicted", color=colour("muted"), labelpad=2)
    axes.set_ylabel("true", color=colour("muted"), labelpad=2)


# -- what the clients hold ------------------------------------------------------------


def client_sizes(run: RunRecord, key: str) -> Chart | None:
    """Training images of every client by class."""
    clients = run.evaluation.get("clients") or {}
    rows = [(str(n), list(c.get("train_per_class") or ())) for n, c in clients.items()]
    counts = [row for _, row in rows]
    if not counts or not counts[0] or len({len(row) for row in counts}) > 1:
        return None
    if len(rows) > MAX_CLIENTS:
        return _size_histogram([sum(row) for row in counts], key)
    names = [clean(name) for name, _ in rows]
    classes = _class_names(run, len(counts[0]))
    table = np.array(counts, dtype=np.int64)
    draw = _stacked if len(classes) <= MAX_STACKED else _heat_map
    return draw(names, classes, table, key)


def _left(names: Sequence[str]) -> float:
    return 0.15 + text_inches(list(names))


def _named_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", colors=colour("ink"))
    axes.set_ylim(len(names) - 0.5, -0.5)


def _stacked(
    names: Sequence[str], classes: Sequence[str], table: np.ndarray, key: str
) -> Chart:
    height = 0.36 * len(names) + 0.5
    figure, axes = new_axes(height, left=_left(names), bottom=0.36, grid="x")
    start = np.zeros(len(names), dtype=np.int64)
    for k in range(len(classes)):
        edge: dict[str, Any] = {"edgecolor": colour("surface"), "linewidth": 0.6}
        axes.barh(
            range(len(names)),
            table[:, k],
            left=start,
            height=0.62,
            color=colour(f"k{k}"),
            **edge,
        )
        start = start + table[:, k]
    for i, total in enumerate(start):
        place = (total + 0.01 * max(start), i)
        axes.text(*place, f"{total:,}", va="center", color=colour("ink"))
    axes.set_xlim(0, 1.14 * max(int(start.max()), 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _named_rows(axes, names)
    label_axes(axes, "training images")
    legend = tuple(Key(f"k{k}", name) for k, name in enumerate(classes))
    return Chart(_SIZES, to_svg(figure, key=key, label=_told(names, table)), legend)


_SIZES = "Training images per client and class"


def _told(names: Sequence[str], table: np.ndarray) -> str:
    totals = zip(names, table.sum(axis=1))
    return "Training images: " + ", ".join(f"{name} {n}" for name, n in totals)


def _heat_map(
    names: Sequence[str], classes: Sequence[str], table: np.ndarray, key: str
) -> Chart:
    height = 0.26 * len(names) + 0.5
    left = _left(names)
    figure, axes = new_axes(height, left=left, bottom=0.36, top=0.1, grid="")
    style: dict[str, Any] = {"cmap": _CLEAR_TO_BLUE, "interpolation": "none"}
    axes.imshow(table, aspect="auto", vmin=0, vmax=max(int(table.max()), 1), **style)
    _named_rows(axes, names)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    label_axes(
        axes, f"class, 0 = {clean(classes[0], 14)} (darkest: {table.max():,} images)"
    )
    return Chart(_SIZES, to_svg(figure, key=key, label=_told(names, table)))


def _size_histogram(totals: Sequence[int], key: str) -> Chart:
    figure, axes = new_axes(2.4, top=0.26)
    axes.hist(list(totals), bins=20, color=colour("clients"))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    label_axes(axes, "training images of a client", "clients")
    title = f"Training images of the {len(totals)} clients"
    label = f"{title}: {min(totals)} to {max(totals)}"
    return Chart(title, to_svg(figure, key=key, label=label), note=label)
