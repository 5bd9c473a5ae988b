"""Several runs merged to one table as text: Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RunError
from .averages import METRICS, aggregate, cost_of, groups, metrics_of
from .records import NO_TARGET, RunRecord, Summary, target_name
from .wording import (
    fell_short,
    human_bytes,
    human_seconds,
    lift,
    method_label,
    percent,
    points,
    with_half,
)


def merge(records: Sequence[RunRecord], style: str = "markdown") -> str:
    """Runs beside each other as text: ``markdown``, ``latex`` or ``csv``.

    Markdown and LaTeX: per cent, averaged over seeds, a row an algorithm and held-out
    domain.  CSV: fractions in full precision, a row a run and domain (target or
    client).  Raises RunError on another style.
    """
    if style == "csv":
        return _csv(records)
    summaries = [record.summary for record in records]
    if style == "markdown":
        rule = ["---"] * 5 + ["---:"] * (len(_HEAD) - 6) + ["---"]
        lines = [_markdown_row(_HEAD), _markdown_row(rule)]
        return "\n".join([*lines, *map(_markdown_row, _rows(summaries))]) + "\n"
    if style == "latex":
        return _latex(_rows(summaries))
    raise RunError(f"unknown report style {style!r}: expected markdown, latex or csv")


_HEAD = (
    "method",
    "data",
    "model",
    "held out",
    "runs",
    "held-out zero-shot",
    "held-out",
    "lift",
    "clients zero-shot",
    "clients",
    "overall",
    *METRICS.values(),
    "sent a run",
    "training a run",
    "below zero-shot",
)


def _rows(summaries: Sequence[Summary]) -> list[list[str]]:
    """A row a method and held-out domain, with the columns of ``_HEAD``."""
    found = []
    for group in groups(summaries):
        total = aggregate(group)
        first = group[0]
        about = (method_label(first), first["dataset"], first["model"])
        for name, row in total["by_target"].items():
            runs = [s for s in group if target_name(s) == name]
            found.append([*about, name, str(len(runs)), *_numbers(row, runs)])
        if len(total["by_target"]) > 1:
            row = {**total, **total["mean"]}
            found.append([*about, "mean", str(len(group)), *_numbers(row, group)])
    return found


_LATEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def _latex(rows: Sequence[Sequence[str]]) -> str:
    """A ``booktabs`` table."""

    def line(cells: Sequence[str]) -> str:
        clean = ("".join(_LATEX.get(c, c) for c in cell) for cell in cells)
        return "  " + " & ".join(clean) + r" \\"

    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            rf"\begin{{tabular}}{{lllll{'r' * (len(_HEAD) - 6)}l}}",
            r"  \toprule",
            line(_HEAD),
            r"  \midrule",
            *map(line, rows),
            r"  \bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _numbers(row: Mapping[str, Any], runs: Sequence[Summary]) -> list[str]:
    base, got, half = row["zero_shot"], row["result"], row["ci95"]
    metrics = row["metrics"]["result"]
    sent, spent = cost_of(runs)
    short = {"target": "held-out", "clients": "clients"}
    return [
        percent(base["target"]),
        with_half(got["target"], half["target"], " ± "),
        points(lift(got["target"], base["target"])),
        percent(base["clients"]),
        with_half(got["clients"], half["clients"], " ± "),
        with_half(got["mean"], half["mean"], " ± "),
        *(percent(metrics[key]) for key in METRICS),
        human_bytes(sent),
        human_seconds(spent),
        " and ".join(short[kind] for kind in fell_short(row)) or "-",
    ]


def _markdown_row(cells: Sequence[str]) -> str:
    clean = (" ".join(cell.replace("|", r"\|").split()) for cell in cells)
    return "| " + " | ".join(clean) + " |"


def _csv(records: Sequence[RunRecord]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    shared = ("algorithm", "dataset", "model", "pretrained", "seed")
    found = ["held_out", "role", "domain", "zero_shot", "result", "below_zero_shot"]
    writer.writerow(["run", *shared, *found, *METRICS, *_COSTS])
    for record in records:
        s = record.summary
        about = [str(record.path), *(s.get(key) for key in shared), record.target]
        for role, domain, base, got in _csv_rows(s):
            more = lift(got, base)
            short = None if more is None else int(more < 0)
            metrics = metrics_of(s, "result") if role == "target" else {}
            values = [metrics.get(key) for key in METRICS]
            row = [role, domain, base, got, short, *values, *_costs(s)]
            writer.writerow([*about, *row])
    return out.getvalue()


_COSTS = ("rounds", "best_round", "bytes_up", "bytes_down", "train_seconds")


def _costs(s: Summary) -> list[Any]:
    """What the whole run cost, with the names of ``_COSTS``."""
    sent = (s["communication"].get(f"bytes_{way}") for way in ("up", "down"))
    return [s["rounds"], s.get("best_round"), *sent, s["seconds"].get("train")]


def _csv_rows(s: Summary) -> list[tuple[str, str, float | None, float | None]]:
    base, got = s["zero_shot"], s["result"]
    rows = [
        ("client", name, base["clients"].get(name), value)
        for name, value in got["clients"].items()
    ]
    if target_name(s) != NO_TARGET:
        target = ("target", target_name(s), base.get("target"), got.get("target"))
        rows.insert(0, target)
    return rows
