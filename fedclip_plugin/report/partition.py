"""A partition as lines of a terminal: a row a client, a column a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_CLIENTS = 20  # lines
MAX_COUNTED = 10  # classes; beyond, a mark for each instead of its number
MAX_MARKS = 60  # marks a line; beyond, one for several classes
_MARKS = " ▁▂▃▄▅▆▇█"
_WIDTH = 9  # characters of a class's name


def draw_partition(
    names: Sequence[str], classes: Sequence[str], counts: np.ndarray
) -> list[str]:
    """Training images of each client by class; ``counts`` (K, C).

    Few classes have numbers, more have marks whose height is their share of the
    highest; beyond ``MAX_CLIENTS`` the first are shown.
    """
    shown, cells = names[:MAX_CLIENTS], counts[:MAX_CLIENTS]
    wide = max(map(len, shown), default=0)
    if counts.shape[1] <= MAX_COUNTED:
        lines = _numbers(shown, classes, cells, wide)
    else:
        lines = _marks(shown, classes, cells, wide)
    if len(names) > MAX_CLIENTS:
        lines.append(f"and {len(names) - MAX_CLIENTS:,} more clients")
    return lines


def _numbers(
    names: Sequence[str], classes: Sequence[str], cells: np.ndarray, wide: int
) -> list[str]:
    head = [
        name if len(name) <= _WIDTH else f"{name[: _WIDTH - 1]}…" for name in classes
    ]
    rows = [[f"{n:,}" if n else "." for n in row] for row in cells.tolist()]
    sizes = [max(map(len, column)) for column in zip(head, *rows)]
    return [
        "  ".join([name.ljust(wide), *(c.rjust(s) for c, s in zip(row, sizes))])
        for name, row in zip(["", *names], [head, *rows])
    ]


def _marks(
    names: Sequence[str], classes: Sequence[str], cells: np.ndarray, wide: int
) -> list[str]:
    each = -(-len(classes) // MAX_MARKS)
    cells = np.add.reduceat(cells, np.arange(0, len(classes), each), axis=1)
    top = max(int(cells.max(initial=0)), 1)
    heights = -(-cells * (len(_MARKS) - 1) // top)  # one image is seen, too
    a_mark = "a class" if each == 1 else f"{each} classes"
    lines = [
        f"{name.ljust(wide)}  {''.join(_MARKS[h] for h in row)}  {total:,}"
        for name, row, total in zip(names, heights.tolist(), cells.sum(axis=1))
    ]
    about = f"{a_mark} a mark, {classes[0]} to {classes[-1]}; the highest: {top:,}"
    return [*lines, about]
