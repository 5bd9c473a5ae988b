"""What rounds brought: accuracy and loss.

In all of ``figures``: a function a figure, which takes a :class:`RunRecord` and returns
a :class:`Chart`, or None where there is no data; all within ``svg.figure_style``.
Accuracies are drawn in per cent.  Colours tell the same thing all over the page: grey
is zero-shot, blue the method or the held-out domain, orange the clients (Okabe and
Ito's colour-blind-safe set).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..averages import scores
from ..records import RunRecord
from ..tables import Cell, Table
from .svg import Chart, Key, colour, dashed, new_axes, to_svg

TOLD = 12  # rounds in the table behind a curve


def column(run: RunRecord, name: str) -> np.ndarray:
    """A value of every round, NaN where null.  (R,) float64."""
    return np.array([entry.get(name) for entry in run.metrics], dtype=float)


def accuracy_curve(run: RunRecord) -> Chart | None:
    """Target and mean of the clients per round, zero-shot dashed, best round marked."""
    rounds, base = column(run, "round"), scores(run.summary, "zero_shot")
    series = [
        ("method", f"held out: {run.target}", column(run, "target"), base["target"]),
        ("clients", "clients, mean", column(run, "mean_test"), base["clients"]),
    ]
    series = [s for s in series if np.isfinite(s[2]).any()]
    if not series:
        return None
    figure, axes = new_axes(2.9, "round")
    legend = _client_band(run, axes, rounds)
    for name, text, values, zero in series:
        _line(axes, rounds, 100 * values, name)
        legend.append(Key(name, text, "line"))
        legend += dashed(axes, zero, name, f"{text.split(':')[0]}, zero-shot")
    _round_axis(axes, rounds)
    best = run.summary.get("best_round")
    if best is not None:
        _mark_best(axes, best)
    svg = to_svg(figure, f"Accuracy over {len(rounds)} rounds; best round {best}")
    columns = {text: 100 * values for _, text, values, _ in series}
    table = _by_round(rounds, columns, best)
    return Chart("Accuracy per round, %", svg, tuple(legend), table=table)


def loss_curve(run: RunRecord) -> Chart | None:
    """Training loss per round, mean over the participants."""
    rounds, loss = column(run, "round"), column(run, "loss")
    finite = loss[np.isfinite(loss)]
    if not len(finite):
        return None
    figure, axes = new_axes(2.3, "round", "mean loss of the participants")
    _line(axes, rounds, loss, "method")
    _round_axis(axes, rounds)
    svg = to_svg(figure, f"Loss from {finite[0]:.3f} to {finite[-1]:.3f}")
    table = _by_round(rounds, {"mean loss": loss})
    return Chart("Loss per round", svg, table=table)


def _by_round(
    rounds: np.ndarray, columns: Mapping[str, np.ndarray], best: int | None = None
) -> Table:
    """Some rounds, the first, the best and the last among them: values (R,) a name."""
    places = {int(i) for i in np.linspace(0, len(rounds) - 1, TOLD)}
    places |= {int(i) for i in np.flatnonzero(rounds == best)}
    rows = [
        [
            Cell(f"{rounds[i]:.0f}", "best" if rounds[i] == best else ""),
            *(Cell(_number(values[i])) for values in columns.values()),
        ]
        for i in sorted(places)
    ]
    return Table(["round", *columns], rows, "")


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "-"


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, name: str) -> None:
    finite = np.isfinite(y)
    marker = "o" if finite.sum() <= 20 else ""
    style: dict[str, Any] = {"marker": marker, "markersize": 3, "linewidth": 1.8}
    axes.plot(x[finite], y[finite], color=colour(name), **style)


def _round_axis(axes: Axes, rounds: np.ndarray) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if len(rounds) == 1:
        axes.set_xlim(rounds[0] - 1, rounds[0] + 1)
    else:
        axes.set_xlim(0, rounds[-1] + 0.01 * len(rounds))


def _client_band(run: RunRecord, axes: Axes, rounds: np.ndarray) -> list[Key]:
    """From the lowest to the highest client."""
    names = list(run.summary["result"]["clients"])
    clients = [entry.get("clients") or {} for entry in run.metrics]
    rows = [[(c.get(name) or {}).get("test") for name in names] for c in clients]
    tests = 100 * np.array(rows, dtype=float).reshape(len(rows), len(names))  # (R, K)
    measured = np.isfinite(tests).any(axis=1)
    if len(names) < 2 or measured.sum() < 2:
        return []
    low, high = np.nanmin(tests[measured], axis=1), np.nanmax(tests[measured], axis=1)
    band: dict[str, Any] = {"color": colour("clients"), "alpha": 0.13, "linewidth": 0}
    axes.fill_between(rounds[measured], low, high, **band)
    return [Key("clients", "clients, lowest to highest", "band")]


def _mark_best(axes: Axes, best: int) -> None:
    axes.axvline(best, color=colour("ink"), linewidth=0.8, linestyle=(0, (1, 2)))
    late = best > sum(axes.get_xlim()) / 2
    axes.annotate(
        f"best round {best}",
        (best, 1.02),
        xycoords=("data", "axes fraction"),
        ha="right" if late else "left",
        color=colour("ink"),
    )
