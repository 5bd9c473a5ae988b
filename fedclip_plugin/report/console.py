"""The table at the end of a run, on the console.

``rich`` sets the tables.  Away from a terminal they are plain ASCII of the same width,
so a log file or a pipe stays readable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..stats import mean
from .averages import KINDS, METRICS, aggregate, client_names, groups
from .records import Summary
from .wording import (
    below_zero_shot,
    human_bytes,
    human_seconds,
    lift,
    method_label,
    method_name,
    percent,
    points,
    promise,
    with_half,
)

MAX_CLIENT_COLUMNS = 7
MAX_WARNINGS = 4
# SIMPLE_HEAD without the box-drawing characters
_ASCII_HEAD = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def print_table(console: Console, summaries: Sequence[Summary]) -> None:
    """Print accuracies, bytes and seconds of the leaf summaries of one or more runs.

    Runs of different algorithms, data or models get a table each.  Accuracies are in
    per cent; with several seeds the half-width of the 95 % interval stands beside.
    """
    for group in groups(summaries):
        total = aggregate(group)
        console.print(_title(group), style="bold", markup=False, highlight=False)
        console.print(_accuracy_table(console, group, total))
        clients = _client_table(console, group, total)
        if clients is not None:
            console.print(clients)
        for line in _cost_lines(group, total):
            console.print(line, markup=False, highlight=False)
        _print_warning(console, group, total)


def _title(group: Sequence[Summary]) -> str:
    first = group[0]
    seeds = list(dict.fromkeys(str(s.get("seed", 0)) for s in group))
    rounds = [str(n) for n in sorted({s["rounds"] for s in group})]
    parts = [
        f"{method_label(first)} on {first['dataset']}",
        f"{first['model']} ({first.get('pretrained', '?')})",
        f"{' to '.join(dict.fromkeys([rounds[0], rounds[-1]]))} rounds",
        f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}",
    ]
    return ", ".join(parts)


def _table(console: Console, *, title: str) -> Table:
    return Table(
        box=SIMPLE_HEAD if console.is_terminal else _ASCII_HEAD,
        title=title,
        title_justify="left",
        title_style="",
        pad_edge=False,
        safe_box=True,
    )


def _plus_minus(console: Console) -> str:
    fancy = console.is_terminal and not console.options.ascii_only
    return "±" if fancy else "+-"


def _styled(result: float | None, base: float | None, text: str) -> str:
    """Colour the method's cell: green at or above zero-shot, red below."""
    gain = lift(result, base)
    if gain is None:
        return text
    return f"[{'red' if gain < 0 else 'green'}]{text}[/]"


def _accuracy_table(
    console: Console, group: Sequence[Summary], total: Mapping[str, Any]
) -> Table:
    method, sign = method_name(group[0]["algorithm"]), _plus_minus(console)
    repeated = any(half is not None for half in total["ci95"].values())
    note = f" ({sign}: 95 % interval over seeds)" if repeated else ""
    table = _table(console, title=f"Accuracy in %, best round{note}")
    table.add_column("held out", overflow="fold")
    for head in ("held-out", "clients"):
        table.add_column(f"{head}\nzero-shot", justify="right", no_wrap=True)
        table.add_column(f"{head}\n{escape(method)}", justify="right")
    table.add_column(f"overall\n{escape(method)}", justify="right")

    def add(name: str, row: Mapping[str, Any], style: str = "") -> None:
        cells = []
        for kind in KINDS:
            base, got = row["zero_shot"][kind], row["result"][kind]
            text = with_half(got, row["ci95"][kind], sign)
            cells += [] if kind == "mean" else [percent(base)]
            cells.append(_styled(got, base, text))
        table.add_row(escape(name), *cells, style=style)

    for name, row in total["by_target"].items():
        add(name, row)
    if len(total["by_target"]) > 1:
        table.add_section()
        add("mean", {**total["mean"], "ci95": total["ci95"]}, style="bold")
    return table


def _client_table(
    console: Console, group: Sequence[Summary], total: Mapping[str, Any]
) -> Table | None:
    """Targets x clients, zero-shot above the method; a spread where there are many."""
    rows = total["by_target"]
    names = client_names(rows)
    if not names:
        return None
    many = len(names) > MAX_CLIENT_COLUMNS
    name_of_all = method_name(group[0]["algorithm"])
    table = _table(console, title="Each client's test accuracy in %")
    table.add_column("held out", overflow="fold")
    table.add_column("")
    for head in ("lowest", "median", "highest") if many else names:
        table.add_column(escape(head), justify="right", overflow="fold")
    for target, row in rows.items():
        for which in ("zero_shot", "result"):
            method = method_name(which) if which == "zero_shot" else name_of_all
            found = {name: row["clients"].get(name, {}).get(which) for name in names}
            cells = _spread(found.values()) if many else map(percent, found.values())
            label = escape(target) if which == "zero_shot" else ""
            table.add_row(label, escape(method), *cells)
    return table


def _spread(values: Any) -> list[str]:
    known = sorted(v for v in values if v is not None)
    if not known:
        return ["-"] * 3
    middle = mean([known[(len(known) - 1) // 2], known[len(known) // 2]])
    return [percent(known[0]), percent(middle), percent(known[-1])]


def _cost_lines(group: Sequence[Summary], total: Mapping[str, Any]) -> list[str]:
    runs, rounds = len(group), sum(s["rounds"] for s in group)
    sums = {
        way: sum(s["communication"].get(f"bytes_{way}") or 0 for s in group)
        for way in ("up", "down")
    }
    per_run = ", ".join(f"{human_bytes(n / runs)} {way}" for way, n in sums.items())
    per_round = ", ".join(
        f"{human_bytes(n / max(rounds, 1))} {way}" for way, n in sums.items()
    )
    params = group[0]["communication"].get("params") or 0
    stages = ", ".join(
        f"{name} {human_seconds(value)}" for name, value in total["seconds"].items()
    )
    lines = [
        f"sent a run:   {per_run}",
        f"sent a round: {per_round} ({params:,} parameters a client)",
        f"time:         {stages}",
    ]
    lines += _metric_lines(total)
    lines += _personal_lines(group)
    promised = promise(group)
    lines += [f"privacy:      {promised}"] if promised else []
    quarantined = sum(s.get("quarantined") or 0 for s in group)
    if quarantined:
        lines.append(f"quarantined:  {quarantined} updates were left out")
    skipped = {name for s in group for name in s.get("skipped_images") or ()}
    if skipped:
        lines.append(f"skipped:      {len(skipped)} unreadable images")
    return lines


def _metric_lines(total: Mapping[str, Any]) -> list[str]:
    """Zero-shot and trained, mean over the held-out domains; none for older runs."""
    base, got = total["metrics"]["zero_shot"], total["metrics"]["result"]
    told = [
        f"{name} {percent(base[key])} -> {percent(got[key])}"
        for key, name in METRICS.items()
        if got[key] is not None
    ]
    return ["over classes: " + ", ".join(told)] if told else []


def _personal_lines(group: Sequence[Summary]) -> list[str]:
    """Personalization: test accuracy before and after, mean over clients and runs."""
    found = [p for s in group if (p := s.get("personalization"))]
    lines = []
    for key, who in (("clients", "clients"), ("new_clients", "new client")):
        each = [row for p in found for row in p[key].values()]
        before, after = (mean(row[k] for row in each) for k in ("shared", "personal"))
        if before is not None and after is not None:
            lines.append(
                f"personalized: {who} {percent(before)} -> {percent(after)} "
                f"({points(after - before)} points, {found[0]['method']})"
            )
    return lines


def _print_warning(
    console: Console, group: Sequence[Summary], total: Mapping[str, Any]
) -> None:
    clauses = below_zero_shot(total["by_target"])
    if clauses:
        shown = "; ".join(clauses[:MAX_WARNINGS])
        more = len(clauses) - MAX_WARNINGS
        console.print(
            f"warning: {method_label(group[0])} is below zero-shot: {shown}"
            + (f"; and {more} more" if more > 0 else ""),
            style="yellow",
            markup=False,
            highlight=False,
        )
