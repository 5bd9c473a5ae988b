"""What a run got right and wrong of each class: numbers, and the tables they make."""

from __future__ import annotations

import numpy as np

from .records import RunRecord
from .tables import Cell, Table, gain
from .wording import VISIBLE, method_of, percent

MAX_CLASS_ROWS = 8
MAX_CLASSES = 400  # in the table of all


def confusion_of(run: RunRecord, which: str) -> np.ndarray | None:
    """Counts of ``zero_shot`` or of the run's ``result``.  (C, C) int64, rows true."""
    matrices = run.evaluation.get("confusion") or {}
    name = which if which == "zero_shot" else run.summary["algorithm"]
    matrix = np.array(matrices.get(name) or [], dtype=np.int64)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    return matrix if square and matrix.size else None


def class_names(run: RunRecord, count: int) -> list[str]:
    """The first ``count`` classes of a run; numbers where it left no names."""
    names = [str(name) for name in run.evaluation.get("classes") or []]
    return (names + [str(i) for i in range(len(names), count)])[:count]


def _pair(run: RunRecord) -> tuple[np.ndarray, np.ndarray] | None:
    """Matrices of zero-shot and result; None unless both are there."""
    base, result = confusion_of(run, "zero_shot"), confusion_of(run, "result")
    if base is None or result is None or base.shape != result.shape:
        return None
    return base, result


def worsened_classes(run: RunRecord) -> Table | None:
    """Classes of which training recognizes less than zero-shot, the worst first."""
    if (pair := _pair(run)) is None:
        return None
    images = pair[0].sum(axis=1)  # (C,)
    base, got = (np.diag(matrix) / np.maximum(images, 1) for matrix in pair)
    worse = [int(i) for i in np.argsort(got - base, kind="stable")]
    worse = [i for i in worse if got[i] - base[i] < -VISIBLE]
    names = class_names(run, len(images))
    rows = [
        [
            *(Cell(names[i]), Cell(f"{images[i]:,}"), Cell(percent(base[i]))),
            *(Cell(percent(got[i])), gain(float(got[i]), float(base[i]))),
        ]
        for i in worse[:MAX_CLASS_ROWS]
    ]
    more = len(worse) - MAX_CLASS_ROWS
    head = ("class", "images", "zero-shot", "trained", "lift")
    note = f"and {more} more classes" if more > 0 else ""
    title = "Classes below zero-shot, accuracy in %"
    return Table(head, rows, title, note) if rows else None


def each_class(run: RunRecord) -> Table | None:
    """Recall of every class before and after, and the precision after.

    A class that is never predicted has no precision, one without images no recall.
    """
    pair = _pair(run)
    if pair is None or len(pair[0]) > MAX_CLASSES:
        return None
    _, result = pair
    images, taken = result.sum(axis=1), result.sum(axis=0)  # (C,)
    rows = []
    for i, name in enumerate(class_names(run, len(images))):
        before, after = (_share(m[i, i], images[i]) for m in pair)
        cells = [Cell(percent(before)), Cell(percent(after)), gain(after, before)]
        precision = Cell(percent(_share(result[i, i], taken[i])))
        rows.append([Cell(name), Cell(f"{images[i]:,}"), *cells, precision])
    return Table(
        ("class", "images", "zero-shot recall", "recall", "lift", "precision"),
        rows,
        "Each class, in %",
        fold=f"Table of the {len(rows)} classes",
    )


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def frequent_mistakes(run: RunRecord) -> Table | None:
    """The true and the predicted class of the most frequent mistakes."""
    if (pair := _pair(run)) is None:
        return None
    base, result = pair
    wrong = result * (1 - np.eye(len(result), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CLASS_ROWS]
    places = [divmod(int(i), len(result)) for i in order]
    names = class_names(run, len(result))
    rows = [
        [Cell(text) for text in (names[t], names[p], str(wrong[t, p]), str(base[t, p]))]
        for t, p in places
        if wrong[t, p]
    ]
    method = method_of(run.summary)
    head = ("true class", "taken for", f"{method}, images", "zero-shot, images")
    return Table(head, rows, "Most frequent mistakes") if rows else None


def skew(counts: np.ndarray) -> str:
    """How unlike the clients are, in words; ``counts`` (K, C)."""
    totals = counts.sum(axis=1)
    held = counts[totals > 0]
    words = f"{totals.max():,} images a client"
    if totals.min() < totals.max():
        words = f"{totals.min():,} to {words}, median {np.median(totals):,.0f}"
    if not len(held):
        return words
    classes = (held > 0).sum(axis=1).mean()
    most = (held.max(axis=1) / held.sum(axis=1)).mean()
    return (
        f"{words}; on average {classes:.1f} of {counts.shape[1]} classes, "
        f"{100 * most:.0f} % of a client's images in its most frequent one"
    )
