"""Several runs merged to one table as text: Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from .averages import (
    aggregate,
    groups,
    lift,
    method_label,
    percent,
    points,
    with_half,
)
from .errors import RunError
from .records import NO_TARGET, RunRecord, Summary, target_name


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
        lines = [_markdown_row(_HEAD), _markdown_row(["---"] * 5 + ["---:"] * 6)]
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
)


def _rows(summaries: Sequence[Summary]) -> list[list[str]]:
    """A row a method and held-out domain, with the columns of ``_HEAD``."""
    found = []
    for group in groups(summaries):
        total = aggregate(group)
        rows = {
            name: (row, len(row["seeds"])) for name, row in total["by_target"].items()
        }
        if len(rows) > 1:
            rows["mean"] = ({**total["mean"], "ci95": total["ci95"]}, len(group))
        first = group[0]
        about = (method_label(first), first["dataset"], first["model"])
        for name, (row, runs) in rows.items():
            found.append([*about, name, str(runs), *_numbers(row)])
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
            r"\begin{tabular}{lllllrrrrrr}",
            r"  \toprule",
            line(_HEAD),
            r"  \midrule",
            *map(line, rows),
            r"  \bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _numbers(row: Mapping[str, Any]) -> list[str]:
    base, got, half = row["zero_shot"], row["result"], row["ci95"]
    return [
        percent(base["target"]),
        with_half(got["target"], half["target"], " ± "),
        points(lift(got["target"], base["target"])),
        percent(base["clients"]),
        with_half(got["clients"], half["clients"], " ± "),
        with_half(got["mean"], half["mean"], " ± "),
    ]


def _markdown_row(cells: Sequence[str]) -> str:
    clean = (" ".join(cell.replace("|", r"\|").split()) for cell in cells)
    return "| " + " | ".join(clean) + " |"


def _csv(records: Sequence[RunRecord]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    shared = ("algorithm", "dataset", "model", "pretrained", "seed")
    writer.writerow(
        ["run", *shared, "held_out", "role", "domain", "zero_shot", "result"]
    )
    for record in records:
        s = record.summary
        about = [str(record.path), *(s.get(key) for key in shared), record.target]
        for role, domain, base, got in _csv_rows(s):
            writer.writerow([*about, role, domain, base, got])
    return out.getvalue()


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
