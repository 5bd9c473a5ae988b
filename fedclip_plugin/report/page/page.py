"""What the one-file report page shows, as data for its templates.

HTML with inline style and SVG, no script, no request: a content security policy in the
page forbids the browser to load anything.  Jinja2 escapes every text of a run; only
the SVG of :func:`..figures.svg.to_svg` is markup already.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ...data.partition import NO_TARGET
from ...stats import mean
from .. import tables
from ..averages import (
    aggregate,
    groups,
    metrics_of,
    notes_of,
    same_features,
    scores,
    tasks,
)
from ..classes import each_class, frequent_mistakes, worsened_classes
from ..differences import differences
from ..figures.classes import method_confusion, zero_shot_confusion
from ..figures.clients import MAX_NAMED, client_sizes, domain_bars, pair_bars
from ..figures.costs import compare_costs, cost_curve
from ..figures.rounds import accuracy_curve, loss_curve
from ..figures.svg import Chart, figure_style
from ..novel import base_to_novel
from ..records import RunRecord
from ..wording import method_label, method_of, percent, warning

MAX_DETAILED = 8  # runs drawn in full on the page of a tree
MAX_PICTURES = 1_900_000  # characters of the images' thumbnails on a page
MAX_CHARS = 4_000_000  # of charts; keeps the page below 5 MB
MAX_NAMES = 200  # skipped images listed
MAX_COLUMNS = 12  # clients beside each other
MAX_KEPT = 32  # runs whose charts are kept for the next page

_CHARTS = (
    *(accuracy_curve, domain_bars, zero_shot_confusion, method_confusion),
    *(client_sizes, loss_curve),
)

_CHARTS_OF: dict[tuple[Path, str], list[Chart]] = {}


def render_page(runs: Sequence[RunRecord], title: str) -> str:
    """The whole page for the runs; ``title`` names the directory they come from."""
    on = _tasks(runs)
    groups = [group for methods in on for group in methods]
    runs = [run for group in groups for run in group]
    labels = dict.fromkeys(method_label(group[0].summary) for group in groups)
    data = dict.fromkeys(str(group[0].summary["dataset"]) for group in groups)
    skipped = (n for run in runs for n in run.summary.get("skipped_images") or ())
    with figure_style():
        return template("report.html.jinja").render(
            title=title,
            headline=f"{', '.join(labels)} on {', '.join(data)}",
            compared=[_compared(methods) for methods in on if len(methods) > 1],
            groups=[_group(group) for group in groups],
            runs=_detailed(runs),
            count=len(runs),
            quarantined=sum(run.summary.get("quarantined") or 0 for run in runs),
            notes=notes_of(run.summary for run in runs),
            skipped=list(dict.fromkeys(skipped)),
            most_names=MAX_NAMES,
            command=_command(runs),
            config=runs[0].config or "# this run left no config.toml",
        )


@functools.cache
def template(name: str) -> Template:
    """A template of this folder; what it is given is escaped."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).get_template(name)


def _drawn(charts: Iterable[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _tasks(runs: Sequence[RunRecord]) -> list[list[list[RunRecord]]]:
    """Runs by data and model, within them by method and settings."""
    return [
        [
            [replace(runs[i], summary=dict(s)) for i, s in group.items()]
            for group in methods
        ]
        for methods in tasks(groups([run.summary for run in runs]))
    ]


def _compared(methods: Sequence[Sequence[RunRecord]]) -> dict[str, Any]:
    """Methods on the same data and model: a table, what fell short, and the costs."""
    names = [method_label(runs[0].summary) for runs in methods]
    summaries = [[run.summary for run in runs] for runs in methods]
    totals = [aggregate(group) for group in summaries]
    kind = tables.kind_of([total["mean"] for total in totals])
    zero = None
    if same_features(runs[0].summary for runs in methods):
        zero = mean(total["mean"]["zero_shot"][kind] for total in totals)
    where = "Held-out accuracy" if kind == "target" else "Clients' accuracy"
    trained = [
        (name, runs)
        for name, runs in zip(names, methods)
        if runs[0].summary["algorithm"] != "zeroshot"
    ]
    charts = []
    for cost, against in (("bytes", "bytes"), ("seconds", "training time")):
        curves = [cost_curve(name, runs, cost, kind) for name, runs in trained]
        title = f"{where} against {against}, mean over runs, %"
        charts.append(compare_costs(curves, cost, title, zero))
    first = methods[0][0].summary
    return {
        "title": f"Methods on {first['dataset']}, {first['model']}",
        "tables": filter(None, (tables.comparison(summaries), differences(summaries))),
        "warnings": filter(None, map(warning, totals, names)),
        "charts": _drawn(charts),
    }


def _group(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Runs that may be averaged."""
    group = [run.summary for run in runs]
    total, label = aggregate(group), method_label(group[0])
    method = method_of(group[0])
    means, charts = [tables.results(total, method, lifts=True)], []
    if len(group) > 1:
        means += filter(None, [tables.client_accuracies(total, method, MAX_COLUMNS)])
    means += filter(None, [base_to_novel(group, method)])
    if len(total["by_target"]) > 1:
        charts = [_per_target(total, kind, method) for kind in ("target", "clients")]
    return {
        "label": label,
        "method": method,
        "several": len(total["by_target"]) > 1,
        "warning": warning(total, label),
        "facts": tables.facts(group),
        "overall": tables.accuracies(tables.overall(total)),
        "costs": tables.costs(group, total),
        "tables": means,
        "charts": _drawn(charts),
    }


def _per_target(total: dict[str, Any], kind: str, method: str) -> Chart | None:
    rows = [
        (name, (row["zero_shot"][kind], row["result"][kind]), row["ci95"][kind])
        for name, row in total["by_target"].items()
        if row["result"][kind] is not None
    ]
    title = "Held-out domain" if kind == "target" else "Clients"
    return pair_bars(f"{title}, per target", rows[:MAX_NAMED], method)


def _detailed(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Runs as far as the page's size allows: the first seed of every target first."""
    seeds = Counter[tuple[str, str]]()
    ranks = []
    for i, run in enumerate(runs):
        key = (run.summary["algorithm"], run.target)
        ranks.append((seeds[key], i))
        seeds[key] += 1
    shown: list[dict[str, Any]] = []
    chars = pixels = 0
    for i in sorted(i for _, i in sorted(ranks)[:MAX_DETAILED]):
        if chars <= MAX_CHARS:
            shown.append(_run(runs[i]))
            pixels += sum(len(p["thumbnail"]) for p in _thumbnails(runs[i]))
            shown[-1]["pictures"] = runs[i].pictures if pixels < MAX_PICTURES else {}
            chars += sum(len(chart.svg) for chart in shown[-1]["charts"])
    return shown


def _run(run: RunRecord) -> dict[str, Any]:
    models = ("zero_shot", "result")
    kind = "clients" if run.target == NO_TARGET else "target"
    base, got = (percent(scores(run.summary, which)[kind]) for which in models)
    where = f"{run.target} held out" if kind == "target" else "no held-out domain"
    tests = (tables.clients_of_run(run), tables.personal_of_run(run))
    metrics = {which: metrics_of(run.summary, which) for which in models}
    return {
        "title": f"{method_label(run.summary)}, {where}, "
        f"seed {run.summary.get('seed', '?')}: {got} %",
        "method": method_of(run.summary),
        "zero_shot": base,
        "tables": filter(None, tests),
        "metrics": tables.class_metrics(metrics),
        "charts": _charts(run),
        "classes": filter(
            None, (worsened_classes(run), frequent_mistakes(run), each_class(run))
        ),
    }


def _thumbnails(run: RunRecord) -> list[dict[str, Any]]:
    kinds = (run.pictures.get(kind, {}) for kind in ("corrected", "broken"))
    return [picture for kind in kinds for picture in kind.get("shown", ())]


def _charts(run: RunRecord) -> list[Chart]:
    """What is drawn of a run: once for its own page and for those of several runs."""
    content = json.dumps([run.summary, run.metrics], sort_keys=True)
    name = hashlib.sha256(content.encode()).hexdigest()
    key = (run.path.resolve(), name)
    if key not in _CHARTS_OF:
        if len(_CHARTS_OF) >= MAX_KEPT:
            _CHARTS_OF.clear()
        with figure_style(name):
            _CHARTS_OF[key] = _drawn(make(run) for make in _CHARTS)
    return _CHARTS_OF[key]


def _command(runs: Sequence[RunRecord]) -> str:
    targets = dict.fromkeys(run.target for run in runs)
    seeds = dict.fromkeys(str(run.summary.get("seed", 0)) for run in runs)
    words = ["fedclip", "run", "--config", "config.toml"]
    words += [w for target in targets for w in ("--target", target)]
    words += [w for seed in seeds for w in ("--seed", seed)]
    return shlex.join([*words, "--out", "again"])
