"""The figures of the report: one function a figure, ``None`` where there is no data.

Every function takes a :class:`RunRecord` and a page-unique ``key`` and returns a
:class:`Chart`, within ``svg.figure_style``.  Accuracies are drawn in per cent.  Colours
tell the same thing all over the page: grey is zero-shot, blue the method or the
held-out domain, orange the clients (Okabe and Ito's colour-blind-safe set).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..averages import scores
from ..records import NO_TARGET, RunRecord
from ..wording import human_seconds, method_name, percent
from .svg import (
    SMALL,
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

MAX_BARS = 20  # clients; beyond, a histogram


# -- over rounds ----------------------------------------------------------------------


def column(run: RunRecord, name: str) -> np.ndarray:
    """A value of every round, NaN where null.  (R,) float64."""
    values = [entry.get(name) for entry in run.metrics]
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def _client_tests(run: RunRecord) -> np.ndarray:
    """Test accuracy of every client in every round.  (R, K) float64, NaN for null."""
    names = list(run.summary["result"]["clients"])
    rows = [
        [((e.get("clients") or {}).get(name) or {}).get("test") for name in names]
        for e in run.metrics
    ]
    values = [[np.nan if v is None else v for v in row] for row in rows]
    return np.array(values, dtype=float).reshape(len(rows), len(names))


def _round_axis(axes: Axes, rounds: np.ndarray) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if len(rounds) == 1:
        axes.set_xlim(rounds[0] - 1, rounds[0] + 1)
    else:
        axes.set_xlim(0, rounds[-1] + 0.01 * len(rounds))


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, name: str, **style: Any) -> None:
    known = np.isfinite(y)
    marker = {"marker": "o", "markersize": 3} if known.sum() <= 20 else {}
    axes.plot(x[known], y[known], color=colour(name), **{**marker, **style})


def accuracy_curve(run: RunRecord, key: str) -> Chart | None:
    """Target and mean of the clients per round, zero-shot dashed, best round marked."""
    rounds, base = column(run, "round"), scores(run.summary, "zero_shot")
    series = [
        ("method", f"held out: {run.target}", column(run, "target"), base["target"]),
        ("clients", "clients, mean", column(run, "mean_test"), base["clients"]),
    ]
    series = [s for s in series if np.isfinite(s[2]).any()]
    if not series:
        return None
    figure, axes = new_axes(2.9, top=0.3)
    legend = _client_band(run, axes, rounds)
    for name, text, values, zero in series:
        _line(axes, rounds, 100 * values, name, linewidth=1.8)
        legend.append(Key(name, text, "line"))
        if zero is not None:
            dashes: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.2}
            axes.axhline(100 * zero, color=colour(name), **dashes)
            legend.append(Key(name, f"{text.split(':')[0]}, zero-shot", "dash"))
    _round_axis(axes, rounds)
    _mark_best(run, axes)
    label_axes(axes, "round")
    label = f"Accuracy over {len(rounds)} rounds; best round {_best(run)}"
    svg = to_svg(figure, key=key, label=label)
    return Chart("Accuracy per round, %", svg, tuple(legend))


def _client_band(run: RunRecord, axes: Axes, rounds: np.ndarray) -> list[Key]:
    tests = 100 * _client_tests(run)
    known = np.isfinite(tests).any(axis=1) if tests.size else np.zeros(0, bool)
    if tests.shape[1] < 2 or known.sum() < 2:
        return []
    low, high = np.nanmin(tests[known], axis=1), np.nanmax(tests[known], axis=1)
    band: dict[str, Any] = {"color": colour("clients"), "alpha": 0.13, "linewidth": 0}
    axes.fill_between(rounds[known], low, high, **band)
    return [Key("clients", "clients, lowest to highest", "band")]


def _best(run: RunRecord) -> int | None:
    best = run.summary.get("best_round")
    return best if isinstance(best, int) else None


def _mark_best(run: RunRecord, axes: Axes) -> None:
    best = _best(run)
    if best is None:
        return
    axes.axvline(best, color=colour("ink"), linewidth=0.8, linestyle=(0, (1, 2)))
    late = best > sum(axes.get_xlim()) / 2
    axes.annotate(
        f"best round {best}",
        (best, 1.02),
        xycoords=("data", "axes fraction"),
        ha="right" if late else "left",
        color=colour("ink"),
    )


def loss_curve(run: RunRecord, key: str) -> Chart | None:
    """Training loss per round, mean over the participants."""
    rounds, loss = column(run, "round"), column(run, "loss")
    if not np.isfinite(loss).any():
        return None
    figure, axes = new_axes(2.3, top=0.26)
    _line(axes, rounds, loss, "method", linewidth=1.8)
    _round_axis(axes, rounds)
    label_axes(axes, "round", "mean loss of the participants")
    known = loss[np.isfinite(loss)]
    label = f"Loss from {known[0]:.3f} to {known[-1]:.3f}"
    return Chart("Loss per round", to_svg(figure, key=key, label=label))


# -- bars -----------------------------------------------------------------------------


def _bar_axes(names: Sequence[str], row: float) -> tuple[Any, Axes]:
    left = min(0.15 + text_inches(list(names)), 0.45 * WIDTH)
    height = row * len(names) + 0.4
    figure, axes = new_axes(height, left=left, bottom=0.34, top=0.06, grid="x")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", colors=colour("ink"))
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure, axes


def domain_bars(run: RunRecord, key: str) -> Chart | None:
    """Zero-shot beside the method for the target and every client."""
    base, got = run.summary["zero_shot"], run.summary["result"]
    method = method_name(run.summary["algorithm"])
    rows = [(n, base["clients"].get(n), v) for n, v in got["clients"].items()]
    if len(rows) > MAX_BARS:
        return _histogram(rows, method, key)
    if run.target != NO_TARGET:
        held = (
            f"{clean(run.target, 14)} (held out)",
            base.get("target"),
            got.get("target"),
        )
        rows.insert(0, held)
    return pair_bars("Zero-shot and trained, per domain", rows, method, key)


def pair_bars(
    title: str,
    rows: Sequence[tuple[str, float | None, float | None]],
    method: str,
    key: str,
    halves: Mapping[int, float] | None = None,
) -> Chart | None:
    """Two bars a row: ``(name, zero-shot, method)``; ``halves`` are error bars."""
    if not rows:
        return None
    rows = [(clean(name, 26), base, got) for name, base, got in rows]
    figure, axes = _bar_axes([name for name, _, _ in rows], 0.42)
    for i, (_, *pair) in enumerate(rows):
        for value, name, at in zip(pair, ("base", "method"), (i - 0.19, i + 0.19)):
            half = (halves or {}).get(i, 0.0) if name == "method" else 0.0
            _value_bar(axes, at, value, name, half)
    axes.set_xlim(0, 117)
    axes.set_xticks(range(0, 101, 20))
    label_axes(axes, "accuracy, %")
    told = "; ".join(f"{n}: {percent(z)} to {percent(v)}" for n, z, v in rows[:8])
    svg = to_svg(figure, key=key, label=f"Zero-shot to {clean(method)}, %: {told}")
    note = "Whiskers: 95 % confidence interval over seeds." if halves else ""
    return Chart(title, svg, (Key("base", "zero-shot"), Key("method", method)), note)


def _value_bar(
    axes: Axes, at: float, value: float | None, name: str, half: float = 0.0
) -> None:
    length = 100 * (value or 0)
    end = length + 1.2
    axes.barh(at, length, height=0.34, color=colour(name))
    if half:
        bar: dict[str, Any] = {"ecolor": colour("ink"), "elinewidth": 1, "capsize": 2}
        above = min(100 * half, 100 - length)  # an accuracy stays within 0..100
        axes.errorbar(length, at, xerr=[[min(100 * half, length)], [above]], **bar)
        end += above
    text = percent(value, "no test images")
    axes.text(end, at, text, va="center", color=colour("ink"), fontsize=SMALL)


def _histogram(
    rows: Sequence[tuple[str, float | None, float | None]], method: str, key: str
) -> Chart | None:
    """How many clients reach which accuracy; for more clients than bars can show."""
    columns = [
        [100 * base for _, base, _ in rows if base is not None],
        [100 * got for _, _, got in rows if got is not None],
    ]
    if not all(columns):
        return None
    figure, axes = new_axes(2.6, top=0.26)
    low = min(95.0, np.floor(min(map(min, columns)) / 5) * 5)
    edges = np.linspace(low, 100, int(min(20, max(2, (100 - low) / 2.5))) + 1)
    for values, name in zip(columns, ("base", "method")):
        style: dict[str, Any] = {"color": colour(name), "alpha": 0.65}
        axes.hist(values, bins=list(edges), **style)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    label_axes(axes, "test accuracy, %", "clients")
    svg = to_svg(figure, key=key, label=f"Accuracies of {len(rows)} clients")
    legend = (Key("base", "zero-shot"), Key("method", method))
    return Chart(f"Accuracies of the {len(rows)} clients", svg, legend)


def stage_bars(run: RunRecord, key: str) -> Chart | None:
    """Seconds of each stage of the run."""
    stages = {k: float(v or 0) for k, v in run.summary["seconds"].items()}
    if not stages:
        return None
    figure, axes = _bar_axes([clean(name) for name in stages], 0.4)
    longest = max(*stages.values(), 1e-9)
    for i, seconds in enumerate(stages.values()):
        axes.barh(i, seconds, height=0.5, color=colour("method"))
        text = human_seconds(seconds)
        axes.text(seconds + 0.01 * longest, i, text, va="center", color=colour("ink"))
    axes.set_xlim(0, 1.22 * longest)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    label_axes(axes, "seconds")
    told = ", ".join(f"{name} {human_seconds(s)}" for name, s in stages.items())
    return Chart("Time per stage", to_svg(figure, key=key, label=told))
