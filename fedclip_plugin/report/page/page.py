"""The one-file report page: HTML with inline style and SVG, no script, no request.

Every text that comes from a run goes through :func:`esc`.  A content security policy
in the page forbids the browser to load anything.
"""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..averages import aggregate, groups, metrics_of, scores
from ..figures.classes import method_confusion, most_confused, zero_shot_confusion
from ..figures.clients import client_sizes
from ..figures.costs import accuracy_by_bytes, accuracy_by_seconds
from ..figures.rounds import (
    MAX_BARS,
    accuracy_curve,
    domain_bars,
    loss_curve,
    pair_bars,
    stage_bars,
)
from ..figures.svg import Chart, figure_style
from ..records import NO_TARGET, RunRecord, Summary
from ..wording import method_label, method_name, percent
from .compare import comparison, comparison_charts, personal_of_run, same_task
from .style import STYLE
from .tables import (
    cards,
    class_metrics,
    client_matrix,
    clients_of_run,
    esc,
    facts,
    lead,
    privacy_note,
    results,
    table,
    warning,
)

MAX_DETAILED = 8  # runs drawn in full on the page of a tree
MAX_CHARS = 4_000_000  # of charts; keeps the page below 5 MB
MAX_NAMES = 200  # skipped images listed

_CHARTS = (
    accuracy_curve,
    domain_bars,
    zero_shot_confusion,
    method_confusion,
    accuracy_by_bytes,
    accuracy_by_seconds,
    client_sizes,
    loss_curve,
    stage_bars,
)


def render_page(runs: Sequence[RunRecord], title: str) -> str:
    """The whole page for the runs; ``title`` names the directory they come from."""
    found = groups([run.summary for run in runs])
    names = dict.fromkeys(method_label(group[0]) for group in found)
    data = dict.fromkeys(str(group[0]["dataset"]) for group in found)
    headline = f"{', '.join(names)} on {', '.join(data)}"
    with figure_style():
        body = [_compared(task, f"c{i}") for i, task in enumerate(same_task(runs))]
        for i, group in enumerate(found):
            head = f"<h2>{esc(method_label(group[0]))}</h2>" if len(found) > 1 else ""
            body.append(head + _group(group, f"g{i}"))
        body.append(_sections(runs))
    body += [_left_out(runs), _reproduce(runs)]
    return _PAGE.format(
        title=esc(f"{headline} ({title})"),
        style=STYLE,
        headline=esc(headline),
        place=esc(title),
        body="\n".join(body),
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
<header><p class="muted">fedclip report: {place}</p>
<h1>{headline}</h1></header>
{body}
<footer>Accuracies are in per cent, of the round with the best mean validation accuracy.
Zero-shot is the same frozen CLIP without training. Held out: the domain that no client
trained on, scored whole; clients: the test split of each.</footer>
</main>
</body>
</html>
"""


# -- what was run, and how it went ----------------------------------------------------


def _compared(methods: Sequence[Sequence[RunRecord]], key: str) -> str:
    return comparison(methods) + _grid(comparison_charts(methods, key))


def _group(group: Sequence[Summary], key: str) -> str:
    """Facts, headline figures and the tables of runs that may be averaged."""
    total = aggregate(group)
    label, method = method_label(group[0]), method_name(group[0]["algorithm"])
    parts = [lead(total, label), warning(total, label), facts(group)]
    parts.append(privacy_note(group))
    parts += [cards(group, total, method), "<h2>Results</h2>"]
    parts.append(results(total, method))
    if len(group) > 1:
        parts.append(class_metrics(total["metrics"], "mean over the held-out domains"))
        parts.append(_grid(_overview(total, method, key)))
        parts.append(client_matrix(total, method))
    return "\n".join(part for part in parts if part)


def _overview(total: Mapping[str, Any], method: str, key: str) -> list[Chart | None]:
    """Bars per target: the held-out domain, and the clients' mean."""
    charts = []
    titles = {"target": "Held-out domain, per target", "clients": "Clients, per target"}
    for kind, title in titles.items():
        found = [
            ((name, row["zero_shot"][kind], row["result"][kind]), row["ci95"][kind])
            for name, row in total["by_target"].items()
            if row["result"][kind] is not None
        ][:MAX_BARS]
        halves = {i: half for i, (_, half) in enumerate(found) if half is not None}
        rows = [row for row, _ in found]
        charts.append(pair_bars(title, rows, method, f"{key}{kind}", halves))
    return charts


# -- each run -------------------------------------------------------------------------


def _sections(runs: Sequence[RunRecord]) -> str:
    """The charts of every run, as far as the page's size allows."""
    if len(runs) == 1:
        return f"<h2>The run</h2>{_run(runs[0], 'r0')}"
    shown = _spread_over_targets(runs)
    parts, chars = ["<h2>The runs</h2>"], 0
    drawn = 0
    for i in shown:
        if chars > MAX_CHARS:
            break
        opened = "" if drawn else " open"
        head = f"<summary>{_run_title(runs[i])}</summary>"
        parts.append(f"<details{opened}>{head}{_run(runs[i], f'r{i}')}</details>")
        chars += len(parts[-1])
        drawn += 1
    if drawn < len(runs):
        left = f"{len(runs) - drawn} of the {len(runs)} runs are not drawn here"
        command = "<code>fedclip report DIR</code> draws any one of them"
        parts.append(f'<p class="muted">{left}; {command}.</p>')
    return "\n".join(parts)


def _spread_over_targets(runs: Sequence[RunRecord]) -> list[int]:
    """Indices of the runs to draw: the first seed of every target comes first."""
    seen: dict[tuple[str, str], int] = {}
    ranks = []
    for i, run in enumerate(runs):
        key = (run.summary["algorithm"], run.target)
        seen[key] = seen.get(key, 0) + 1
        ranks.append((seen[key], i))
    return sorted(i for _, i in sorted(ranks)[:MAX_DETAILED])


def _run_title(run: RunRecord) -> str:
    s = run.summary
    got, base = scores(s, "result"), scores(s, "zero_shot")
    kind = "clients" if run.target == NO_TARGET else "target"
    name = "no held-out domain" if run.target == NO_TARGET else f"{run.target} held out"
    told = f"{method_label(s)}, {name}, seed {s.get('seed', '?')}: "
    zero = f'<span class="muted">zero-shot {percent(base[kind])} %</span>'
    return f"{esc(told)}{percent(got[kind])} % {zero}"


def _run(run: RunRecord, key: str) -> str:
    charts = [make(run, f"{key}{i}") for i, make in enumerate(_CHARTS)]
    where = "all clients" if run.target == NO_TARGET else run.target
    metrics = {w: metrics_of(run.summary, w) for w in ("zero_shot", "result")}
    parts = [clients_of_run(run), personal_of_run(run), class_metrics(metrics, where)]
    parts += [_grid(charts), _confused(run)]
    return "\n".join(part for part in parts if part)


def _confused(run: RunRecord) -> str:
    rows = most_confused(run)
    if not rows:
        return ""
    method = method_name(run.summary["algorithm"])
    head = ("true class", "taken for", f"{method}, images", "zero-shot, images")
    body = [(esc(t), esc(p), str(n), str(z)) for t, p, n, z in rows]
    listed = table(head, body)
    return f'<h3>Most frequent mistakes</h3><div class="narrow">{listed}</div>'


def _grid(charts: Iterable[Chart | None]) -> str:
    figures = [_figure(chart) for chart in charts if chart is not None]
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def _figure(chart: Chart) -> str:
    entries = (
        f'<li><i class="{k.mark}" style="--c:var(--{k.colour})"></i>{esc(k.text)}</li>'
        for k in chart.legend
    )
    legend = f'<ul class="legend">{"".join(entries)}</ul>' if chart.legend else ""
    note = f'<p class="sub">{esc(chart.note)}</p>' if chart.note else ""
    head = f"<figcaption>{esc(chart.title)}</figcaption>"
    return f"<figure>{head}{chart.svg}{legend}{note}</figure>"


# -- what was left out, and how to run it again ---------------------------------------


def _left_out(runs: Sequence[RunRecord]) -> str:
    quarantined = sum(run.summary.get("quarantined") or 0 for run in runs)
    names = dict.fromkeys(
        str(n) for run in runs for n in run.summary.get("skipped_images") or ()
    )
    told = f"{quarantined:,} client updates were quarantined."
    parts = ["<h2>Left out</h2>", f"<p>{told} {len(names):,} images were skipped.</p>"]
    if names:
        items = "".join(f"<li>{esc(name)}</li>" for name in list(names)[:MAX_NAMES])
        more = len(names) - MAX_NAMES
        rest = f"<p>and {more:,} more</p>" if more > 0 else ""
        summary = "<summary>Skipped images</summary>"
        listed = f'<ul class="names">{items}</ul>{rest}'
        parts.append(f"<details>{summary}{listed}</details>")
    return "\n".join(parts)


def _reproduce(runs: Sequence[RunRecord]) -> str:
    targets = dict.fromkeys(run.target for run in runs)
    seeds = dict.fromkeys(str(run.summary.get("seed", 0)) for run in runs)
    words = ["fedclip", "run", "--config", "config.toml"]
    words += [w for target in targets for w in ("--target", target)]
    words += [w for seed in seeds for w in ("--seed", seed)] + ["--out", "again"]
    command = html.escape(shlex.join(words))
    config = runs[0].config or "# this run left no config.toml"
    return (
        "<h2>How to run it again</h2>"
        "<p>Save the configuration below as <code>config.toml</code>, then:</p>"
        f"<pre>{command}</pre>"
        f"<details><summary>Configuration</summary><pre>{esc(config)}</pre></details>"
    )
