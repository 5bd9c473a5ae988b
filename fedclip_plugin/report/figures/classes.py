"""The confusion matrices of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from ...data.partition import NO_TARGET
from ..classes import class_names, confusion_of
from ..records import RunRecord
from ..tables import Cell, Table
from ..wording import method_of
from .svg import WIDTH, Chart, clean, colour, new_axes, to_svg

MAX_COUNTED = 20  # classes; beyond, a confusion matrix without numbers
_TICKS = 32  # class names along an axis

# The page's blue, from clear to full: it reads on a light and on a dark ground alike.
CLEAR_TO_BLUE = LinearSegmentedColormap.from_list(
    "clear_to_blue", [(0.11, 0.47, 0.77, 0.0), (0.11, 0.47, 0.77, 1.0)]
)


def zero_shot_confusion(run: RunRecord) -> Chart | None:
    """Confusion matrix before training."""
    return _confusion(run, "zero_shot", "zero-shot")


def method_confusion(run: RunRecord) -> Chart | None:
    """Confusion matrix of the best round."""
    return _confusion(run, "result", method_of(run.summary))


def _confusion(run: RunRecord, which: str, method: str) -> Chart | None:
    """One image, as opaque as a cell's share of its row; the counts inside if few."""
    matrix = confusion_of(run, which)
    if matrix is None:
        return None
    count = len(matrix)
    names = [clean(name, 14) for name in class_names(run, count)]
    figure, axes = new_axes(0.95 * WIDTH, "predicted", grid="")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap=CLEAR_TO_BLUE, vmin=0, vmax=1, interpolation="none")
    if count <= MAX_COUNTED:
        for row, column in np.argwhere(matrix):
            ink = "white" if share[row, column] > 0.8 else colour("ink")
            style: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
            style["fontsize"] = 8.0 if count <= 10 else 5.0
            axes.text(column, row, str(matrix[row, column]), color=ink, **style)
    size = 6.0 if count > 10 else 7.0
    places = range(0, count, -(-count // _TICKS))
    shown = [names[i] for i in places]
    turn = 90 if max(map(len, names)) > 2 else 0
    axes.set_xticks(places, shown, rotation=turn, fontsize=size)
    axes.set_yticks(places, shown, fontsize=size)
    axes.set_ylabel("true", color=colour("muted"), labelpad=2)
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour("grid"))
    right = int(np.trace(matrix))
    label = f"{method}: {right} of {int(matrix.sum())} images on the diagonal"
    where = "client test sets" if run.target == NO_TARGET else run.target
    counted = None
    if count <= MAX_COUNTED:
        body = [
            [Cell(name), *(Cell(str(images)) for images in row)]
            for name, row in zip(names, matrix.tolist())
        ]
        counted = Table(["true, then predicted", *names], body)
    title, svg = f"Confusion on {where}, {method}", to_svg(figure, label)
    return Chart(title, svg, note=label, table=counted)
