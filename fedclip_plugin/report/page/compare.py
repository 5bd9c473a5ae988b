"""Several methods on the same data and model beside each other, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...stats import mean
from ..averages import METRICS, aggregate, cost_of, groups
from ..figures.costs import compare_costs, cost_curve
from ..figures.svg import Chart
from ..records import RunRecord
from ..wording import human_bytes, human_seconds, method_label, percent, points
from .tables import MAX_ROWS, esc, fold, gain, table, warning, with_half


def same_task(runs: Sequence[RunRecord]) -> list[list[list[RunRecord]]]:
    """Runs by data and model, within them by method; only tasks of several methods."""
    by_task: dict[tuple[Any, ...], list[list[RunRecord]]] = {}
    of = {id(run.summary): run for run in runs}
    for group in groups([run.summary for run in runs]):
        first = group[0]
        task = tuple(first.get(k) for k in ("dataset", "model", "pretrained"))
        by_task.setdefault(task, []).append([of[id(summary)] for summary in group])
    return [methods for methods in by_task.values() if len(methods) > 1]


def comparison(methods: Sequence[Sequence[RunRecord]]) -> str:
    """A row a method: accuracies, class metrics, bytes, seconds; what fell short."""
    totals = [aggregate([run.summary for run in runs]) for runs in methods]
    kind = _kind(totals)
    where = "held out" if kind == "target" else "clients"
    head = ["method", where, "lift", *_OTHERS[kind].values()]
    head += [*METRICS.values(), "sent a run", "training a run"]
    body = [_row(runs, total, kind) for runs, total in zip(methods, totals)]
    if all(runs[0].summary["algorithm"] != "zeroshot" for runs in methods):
        body.insert(0, _zero_shot_row(totals[0], kind))
    first = methods[0][0].summary
    title = f"<h2>Methods on {esc(first['dataset'])}, {esc(first['model'])}</h2>"
    guards = [
        warning(total, method_label(runs[0].summary))
        for runs, total in zip(methods, totals)
    ]
    return "\n".join([title, table(head, body), _NOTE, *filter(None, guards)])


_NOTE = (
    '<p class="muted">± is the half-width of the 95 % interval over seeds. Class '
    "metrics are those of the held-out domain, of all clients where there is none. "
    "For the calibration error, lower is better.</p>"
)


def _kind(totals: Sequence[Mapping[str, Any]]) -> str:
    known = all(total["mean"]["result"]["target"] is not None for total in totals)
    return "target" if known else "clients"


_OTHERS = {
    "target": {"clients": "clients", "mean": "overall"},
    "clients": {"mean": "overall"},
}


def _row(runs: Sequence[RunRecord], total: Mapping[str, Any], kind: str) -> list[str]:
    base, got, half = total["mean"]["zero_shot"], total["mean"]["result"], total["ci95"]
    metrics = total["metrics"]["result"]
    sent, spent = cost_of([run.summary for run in runs])
    return [
        esc(method_label(runs[0].summary)),
        with_half(got[kind], half[kind]),
        gain(got[kind], base[kind]),
        *(with_half(got[other], half[other]) for other in _OTHERS[kind]),
        *(percent(metrics[key]) for key in METRICS),
        human_bytes(sent),
        human_seconds(spent),
    ]


def _zero_shot_row(total: Mapping[str, Any], kind: str) -> list[str]:
    """The guard line; all methods are judged on the same images."""
    base, metrics = total["mean"]["zero_shot"], total["metrics"]["zero_shot"]
    shown = [percent(base[other]) for other in _OTHERS[kind]]
    values = [percent(metrics[key]) for key in METRICS]
    return ["zero-shot", percent(base[kind]), "", *shown, *values, "", ""]


def comparison_charts(
    methods: Sequence[Sequence[RunRecord]], key: str
) -> list[Chart | None]:
    """Accuracy against bytes, and against seconds: a line a method."""
    totals = [aggregate([run.summary for run in runs]) for runs in methods]
    kind = _kind(totals)
    zero = mean(total["mean"]["zero_shot"][kind] for total in totals)
    where = "Held-out accuracy" if kind == "target" else "Clients' accuracy"
    shown = [runs for runs in methods if runs[0].summary["algorithm"] != "zeroshot"]
    titles = {
        "bytes": f"{where} against bytes, mean over runs, %",
        "seconds": f"{where} against training time, mean over runs, %",
    }
    return [
        compare_costs(
            [cost_curve(method_label(r[0].summary), r, cost, kind) for r in shown],
            cost,
            title,
            f"{key}{cost}",
            zero,
        )
        for cost, title in titles.items()
    ]


def personal_of_run(run: RunRecord) -> str:
    """Personalization: each client before and after; empty where there was none."""
    found = run.summary.get("personalization")
    if not found:
        return ""
    rows = [
        _personal_row(run.target if new else name, row, new)
        for key, new in (("new_clients", True), ("clients", False))
        for name, row in found[key].items()
    ]
    head = ["client", "zero-shot", "shared", "personal"]
    head += ["over shared", "over zero-shot"]
    shown = table(head, rows[:MAX_ROWS])
    more = len(rows) - MAX_ROWS
    if more > 0:
        shown += f'<p class="muted">and {more:,} more in summary.json</p>'
    title = f"<h3>Personalized by {esc(found['method'])}</h3>"
    return title + _gains(found) + fold(shown, len(rows), "Each client")


def _personal_row(name: str, row: Mapping[str, Any], new: bool) -> list[str]:
    mark = ' <span class="sub">new client</span>' if new else ""
    values = [percent(row[key]) for key in ("zero_shot", "shared", "personal")]
    gains = [gain(row["personal"], row[base]) for base in ("shared", "zero_shot")]
    return [esc(name) + mark, *values, *gains]


def _gains(found: Mapping[str, Any]) -> str:
    """The clients' mean gains in a sentence."""
    told = []
    for base, name in (("shared", "the shared adapter"), ("zero_shot", "zero-shot")):
        each = found[f"gain_over_{base}"]
        if each["mean"] is not None:
            half = f" ± {100 * each['ci95']:.2f}" if each["ci95"] is not None else ""
            told.append(f"{points(each['mean'])}{half} points over {name}")
    if not told:
        return ""
    return f"<p>The clients' mean: {' and '.join(told)} (± 95 % over clients).</p>"
