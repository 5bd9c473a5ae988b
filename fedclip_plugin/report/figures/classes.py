"""The confusion matrices of the report.

As in ``plots``: one function a figure, ``None`` where there is no data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from ..records import NO_TARGET, RunRecord
from ..wording import method_name
from .svg import WIDTH, Chart, clean, colour, new_axes, text_inches, to_svg

MAX_COUNTED = 20  # classes; beyond, a confusion matrix without numbers
MAX_CELLS = 30  # classes; beyond, the matrix is one image
_TICKS = 32  # class names along an axis

# The page's blue, from clear to full: it reads on a light and on a dark ground alike.
CLEAR_TO_BLUE = LinearSegmentedColormap.from_list(
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
    return _confusion(run, key, "result", method_name(run.summary["algorithm"]))


def most_confused(run: RunRecord, limit: int = 8) -> list[tuple[str, str, int, int]]:
    """``(true, predicted, method's count, zero-shot's count)``, most frequent first."""
    result, base = confusion_of(run, "result"), confusion_of(run, "zero_shot")
    if result is None:
        return []
    base = result if base is None or base.shape != result.shape else base
    classes = class_names(run, len(result))
    wrong = result * (1 - np.eye(len(result), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(i), len(result)) for i in order]
    return [
        (classes[t], classes[p], int(wrong[t, p]), int(base[t, p]))
        for t, p in pairs
        if wrong[t, p]
    ]


def class_names(run: RunRecord, count: int) -> list[str]:
    """The first ``count`` classes of a run; numbers where it left no names."""
    names = [str(name) for name in run.evaluation.get("classes") or []]
    return (names + [str(i) for i in range(len(names), count)])[:count]


def _confusion(run: RunRecord, key: str, which: str, method: str) -> Chart | None:
    matrix = confusion_of(run, which)
    if matrix is None:
        return None
    count = len(matrix)
    names = [clean(name, 14) for name in class_names(run, count)]
    size = 6.0 if count > 10 else 7.0
    margin = 0.3 + text_inches(names, size)
    side = WIDTH - margin - 0.1
    upright = margin if max(map(len, names)) > 2 else 0.42
    figure, axes = new_axes(
        side + upright + 0.1, left=margin, right=0.1, bottom=upright, top=0.1, grid=""
    )
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if count > MAX_CELLS:
        axes.imshow(share, cmap=CLEAR_TO_BLUE, vmin=0, vmax=1, interpolation="none")
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
