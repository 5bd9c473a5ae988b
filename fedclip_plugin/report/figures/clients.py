"""The partition pictured: what every client holds of every class.

As in ``plots``: one function a figure, ``None`` where there is no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..records import RunRecord
from .classes import CLEAR_TO_BLUE, class_names
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

MAX_NAMED = 20  # clients; beyond, they stand side by side without names
MAX_STACKED = 10  # classes; beyond, a heat map
MAX_COLUMNS = 120  # clients in one stack beside another; beyond, a heat map
MAX_CLASS_NAMES = 30

_TITLE = "Training images per client and class"
_ORDER = "clients, by their most frequent class"


def client_sizes(run: RunRecord, key: str) -> Chart | None:
    """Training images of every client by class, with how skewed they are."""
    found = counts_of(run)
    if found is None:
        return None
    names, classes, counts = found
    few = len(classes) <= MAX_STACKED
    if len(names) <= MAX_NAMED:
        return (_named_stacks if few else _named_cells)(names, classes, counts, key)
    counts = counts[_by_class(counts)]
    stacks = few and len(names) <= MAX_COLUMNS
    return (_columns if stacks else _cells)(classes, counts, key)


def counts_of(run: RunRecord) -> tuple[list[str], list[str], np.ndarray] | None:
    """Clients, classes and training images (K, C) int64; None where not recorded."""
    clients = run.evaluation.get("clients") or {}
    rows = [list(c.get("train_per_class") or ()) for c in clients.values()]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        return None
    names = [clean(str(name)) for name in clients]
    return names, class_names(run, len(rows[0])), np.array(rows, dtype=np.int64)


def skew(counts: np.ndarray) -> str:
    """How unlike the clients are, in words; ``counts`` (K, C)."""
    totals = counts.sum(axis=1)
    held = counts[totals > 0]
    told = f"{totals.max():,} images a client"
    if totals.min() < totals.max():
        told = f"{totals.min():,} to {told}, median {np.median(totals):,.0f}"
    if not len(held):
        return told
    classes = (held > 0).sum(axis=1).mean()
    most = (held.max(axis=1) / held.sum(axis=1)).mean()
    return (
        f"{told}; on average {classes:.1f} of {counts.shape[1]} classes, "
        f"{100 * most:.0f} % of a client's images in its most frequent one"
    )


def _by_class(counts: np.ndarray) -> np.ndarray:
    """Order (K,): by most frequent class, within it by that class's share."""
    share = counts.max(axis=1) / np.maximum(counts.sum(axis=1), 1)
    return np.lexsort((-share, counts.argmax(axis=1)))


def _told(names: Sequence[str], counts: np.ndarray) -> str:
    totals = zip(names, counts.sum(axis=1))
    return "Training images: " + ", ".join(f"{name} {n}" for name, n in totals)


# -- a row a client, by name ----------------------------------------------------------


def _left(names: Sequence[str]) -> float:
    return 0.15 + text_inches(list(names))


def _named_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", colors=colour("ink"))
    axes.set_ylim(len(names) - 0.5, -0.5)


def _named_stacks(
    names: Sequence[str], classes: Sequence[str], counts: np.ndarray, key: str
) -> Chart:
    height = 0.36 * len(names) + 0.5
    figure, axes = new_axes(height, left=_left(names), bottom=0.36, grid="x")
    start = np.zeros(len(names), dtype=np.int64)
    edge: dict[str, Any] = {"edgecolor": colour("surface"), "linewidth": 0.6}
    for k in range(len(classes)):
        at: dict[str, Any] = {"left": start, "height": 0.62, "color": colour(f"k{k}")}
        axes.barh(range(len(names)), counts[:, k], **at, **edge)
        start = start + counts[:, k]
    for i, total in enumerate(start):
        place = (total + 0.01 * max(start), i)
        axes.text(*place, f"{total:,}", va="center", color=colour("ink"))
    axes.set_xlim(0, 1.14 * max(int(start.max()), 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _named_rows(axes, names)
    label_axes(axes, "training images")
    svg = to_svg(figure, key=key, label=_told(names, counts))
    return Chart(_TITLE, svg, _class_keys(classes), skew(counts))


def _class_keys(classes: Sequence[str]) -> tuple[Key, ...]:
    return tuple(Key(f"k{k}", name) for k, name in enumerate(classes))


def _named_cells(
    names: Sequence[str], classes: Sequence[str], counts: np.ndarray, key: str
) -> Chart:
    height = 0.26 * len(names) + 0.5
    left = _left(names)
    figure, axes = new_axes(height, left=left, bottom=0.36, top=0.1, grid="")
    _image(axes, counts)
    _named_rows(axes, names)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    darkest = f"darkest: {counts.max():,} images"
    label_axes(axes, f"class, 0 = {clean(classes[0], 14)} ({darkest})")
    svg = to_svg(figure, key=key, label=_told(names, counts))
    return Chart(_TITLE, svg, note=skew(counts))


def _image(axes: Axes, counts: np.ndarray) -> None:
    style: dict[str, Any] = {"cmap": CLEAR_TO_BLUE, "interpolation": "none"}
    axes.imshow(counts, aspect="auto", vmin=0, vmax=max(int(counts.max()), 1), **style)


# -- a column a client, without names --------------------------------------------------


def _columns(classes: Sequence[str], counts: np.ndarray, key: str) -> Chart:
    """A thin stack a client; one path a class keeps the page small."""
    figure, axes = new_axes(2.6, top=0.26)
    edges = np.arange(len(counts) + 1) + 0.5
    start = np.zeros(len(counts), dtype=np.int64)
    for k in range(len(classes)):
        end = start + counts[:, k]
        style: dict[str, Any] = {"fill": True, "linewidth": 0, "color": colour(f"k{k}")}
        axes.stairs(end, edges, baseline=start, **style)
        start = end
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.04 * max(int(start.max()), 1))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    label_axes(axes, f"{len(counts)} {_ORDER}", "training images")
    svg = to_svg(figure, key=key, label=skew(counts))
    return Chart(_TITLE, svg, _class_keys(classes), skew(counts))


def _cells(classes: Sequence[str], counts: np.ndarray, key: str) -> Chart:
    """Classes down, clients across, as one image."""
    named = len(classes) <= MAX_CLASS_NAMES
    names = [clean(name, 14) for name in classes] if named else []
    left = min(0.2 + text_inches(names, 7.0), 0.4 * WIDTH) if named else 0.52
    height = 0.5 + max(1.6, 0.13 * len(names))
    figure, axes = new_axes(height, left=left, top=0.1, grid="")
    _image(axes, counts.T)
    if named:
        axes.set_yticks(range(len(names)), names, fontsize=7.0)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_ylabel("class", color=colour("muted"), labelpad=2)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    label_axes(axes, f"{len(counts)} {_ORDER} (darkest: {counts.max():,} images)")
    svg = to_svg(figure, key=key, label=skew(counts))
    return Chart(_TITLE, svg, note=skew(counts))
