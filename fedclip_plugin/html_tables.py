"""The tables of the report page, as HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from .averages import client_names, lift, percent, points, scores
from .records import NO_TARGET, RunRecord

MAX_COLUMNS = 12  # clients beside each other
MAX_ROWS = 100  # clients below each other
MAX_OPEN_ROWS = 22  # beyond, the table is folded


def esc(value: object) -> str:
    """Text for HTML; also within quotes."""
    return html.escape(str(value), quote=True)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = False
) -> str:
    """A table that scrolls in its own box; ``rows`` are HTML, ``head`` is plain text.

    ``total`` sets the last row apart.
    """
    top = "".join(f'<th scope="col">{esc(cell)}</th>' for cell in head)
    body = []
    for i, (name, *cells) in enumerate(rows):
        mark = ' class="total"' if total and i == len(rows) - 1 else ""
        rest = "".join(f"<td>{cell}</td>" for cell in cells)
        body.append(f'<tr{mark}><th scope="row">{name}</th>{rest}</tr>')
    return (
        '<div class="box" tabindex="0" role="region" aria-label="table"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _gain(result: float | None, base: float | None) -> str:
    gain = lift(result, base)
    if gain is None:
        return "-"
    return f'<span class="{"up" if gain >= 0 else "down"}">{points(gain)}</span>'


def _with_half(value: float | None, half: float | None) -> str:
    if half is None:
        return percent(value)
    return f'{percent(value)} <span class="sub">± {100 * half:.2f}</span>'


def results(total: Mapping[str, Any], method: str) -> str:
    """Targets down; held-out, clients and overall accuracies across."""
    names = {"target": "held-out", "clients": "clients"}
    if all(name == NO_TARGET for name in total["by_target"]):
        del names["target"]
    head = ["held out"]
    for kind in names.values():
        head += [f"{kind}: zero-shot", f"{kind}: {method}", "lift"]
    head.append(f"overall: {method}")
    body = [
        _result_row(_target_label(name), row, names)
        for name, row in total["by_target"].items()
    ]
    several = len(body) > 1
    if several:
        row = {**total["mean"], "ci95": total["ci95"]}
        body.append(_result_row("mean", row, names))
    note = ""
    if any(len(row["seeds"]) > 1 for row in total["by_target"].values()):
        text = "± is the half-width of the 95 % confidence interval over seeds."
        note = f'<p class="muted">{text}</p>'
    return table(head, body, total=several) + note


def _target_label(name: str) -> str:
    return "no domain" if name == NO_TARGET else esc(name)


def _result_row(
    label: str, row: Mapping[str, Any], kinds: Mapping[str, str]
) -> list[str]:
    base, got, half = row["zero_shot"], row["result"], row["ci95"]
    cells = [label]
    for kind in kinds:
        cells += [
            percent(base[kind]),
            _with_half(got[kind], half[kind]),
            _gain(got[kind], base[kind]),
        ]
    return [*cells, _with_half(got["mean"], half["mean"])]


def client_matrix(total: Mapping[str, Any], method: str) -> str:
    """Targets x clients; empty with more clients than fit beside each other."""
    rows, names = total["by_target"], client_names(total["by_target"])
    if not names or len(names) > MAX_COLUMNS:
        return ""
    body = [
        [_target_label(target), *(_matrix_cell(row["clients"].get(n)) for n in names)]
        for target, row in rows.items()
    ]
    head = f"<h3>Each client's test accuracy, {esc(method)} and zero-shot</h3>"
    return head + table(["held out", *names], body)


def _matrix_cell(found: Mapping[str, float | None] | None) -> str:
    if found is None:
        return '<span class="sub">held out</span>'
    base = percent(found["zero_shot"])
    return f'{percent(found["result"])}<br><span class="sub">{base}</span>'


def clients_of_run(run: RunRecord) -> str:
    """One run: held-out domain and every client, with the sizes of their splits."""
    base, got = run.summary["zero_shot"], run.summary["result"]
    sizes = run.evaluation.get("clients") or {}
    rows = []
    if run.target != NO_TARGET:
        held = f'{esc(run.target)} <span class="sub">held out</span>'
        rows.append([held, "-", "-", "all", *_scores(base.get("target"), got.get("target"))])
    for name, value in list(got["clients"].items())[:MAX_ROWS]:
        found = sizes.get(name) or {}
        counts = [_count(found.get(split)) for split in ("train", "val", "test")]
        rows.append([esc(name), *counts, *_scores(base["clients"].get(name), value)])
    zero, result = scores(run.summary, "zero_shot"), scores(run.summary, "result")
    rows.append(["mean", "", "", "", *_scores(zero["mean"], result["mean"])])
    head = ("domain", "train", "validation", "test", "zero-shot", "trained", "lift")
    more = len(got["clients"]) - MAX_ROWS
    note = f'<p class="muted">and {more} more clients</p>' if more > 0 else ""
    shown = table(head, rows, total=True) + note
    if len(rows) <= MAX_OPEN_ROWS:
        return shown
    label = f"Table of the {len(got['clients'])} clients"
    return f"<details><summary>{label}</summary>{shown}</details>"


def _scores(base: float | None, got: float | None) -> list[str]:
    return [percent(base), percent(got), _gain(got, base)]


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"
