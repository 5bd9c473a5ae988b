"""Several runs merged to one table as text: Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from ..data.partition import NO_TARGET
from ..errors import RunError
from .averages import METRICS, aggregate, groups, metrics_of, notes_of
from .records import RunRecord, Summary, target_name
from .tables import Cell, measures, overall
from .wording import lift, method_label

_ABOUT = ("method", "data", "model", "held out", "runs")
_MEASURES = {
    "target zero-shot": "held-out zero-shot",
    "target": "held-out",
    "target lift": "lift",
    "clients zero-shot": "clients zero-shot",
    "clients": "clients",
    "mean": "overall",
    **METRICS,
    "sent": "sent a run",
    "spent": "training a run",
    "below": "below zero-shot",
}
_HEAD = (*_ABOUT, *_MEASURES.values())


def merge(records: Sequence[RunRecord], style: str = "markdown") -> str:
    """Runs beside each other as text: ``markdown``, ``latex`` or ``csv``.

    Markdown and LaTeX: per cent, averaged over seeds, a row an algorithm and held-out
    domain; the runs' notes below.  CSV: fractions in full precision, a row a run and
    domain (target or client).  Raises RunError on another style.
    """
    if style == "csv":
        return _csv(records)
    summaries = [record.summary for record in records]
    rows, notes = _rows(summaries), notes_of(summaries)
    if style == "markdown":
        rule = ["---"] * 5 + ["---:"] * (len(_HEAD) - 6) + ["---"]
        lines = "".join(f"- {note}\n" for note in notes)
        table = "".join(map(markdown_row, [_HEAD, rule, *rows]))
        return f"{table}\n{lines}" if lines else table
    if style == "latex":
        return _latex(rows) + "".join(f"% note: {note}\n" for note in notes)
    raise RunError(f"unknown report style {style!r}: expected markdown, latex or csv")


def _rows(summaries: Sequence[Summary]) -> list[list[str | Cell]]:
    """A row a method and held-out domain, with the columns of ``_HEAD``."""
    table: list[list[str | Cell]] = []
    for places in groups(summaries):
        group = list(places.values())
        total = aggregate(group)
        about = (method_label(group[0]), group[0]["dataset"], group[0]["model"])
        rows = [
            (name, row, [s for s in group if target_name(s) == name])
            for name, row in total["by_target"].items()
        ]
        rows += [("mean", overall(total), list(group))] if len(rows) > 1 else []
        for name, row, runs in rows:
            cells = measures(row, runs)
            numbers = (cells[key] for key in _MEASURES)
            table.append([*about, name, str(len(runs)), *numbers])
    return table


def markdown_row(cells: Iterable[object]) -> str:
    """A line of a Markdown table."""
    clean = (" ".join(str(cell).replace("|", r"\|").split()) for cell in cells)
    return f"| {' | '.join(clean)} |\n"


_LATEX = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "±": r"$\pm$"}
    | {"^": r"\textasciicircum{}"}
)
_BOOKTABS = r"""% needs \usepackage{{booktabs}}
\begin{{tabular}}{{lllll{numbers}l}}
  \toprule
{head}
  \midrule
{body}
  \bottomrule
\end{{tabular}}
"""


def _latex(rows: Iterable[Iterable[object]]) -> str:
    def line(cells: Iterable[object]) -> str:
        return f"  {' & '.join(str(c).translate(_LATEX) for c in cells)} \\\\"

    body = "\n".join(map(line, rows))
    numbers = "r" * (len(_HEAD) - 6)
    return _BOOKTABS.format(numbers=numbers, head=line(_HEAD), body=body)


_RUN = ("algorithm", "dataset", "model", "pretrained", "seed")
_DOMAIN = ("held_out", "role", "domain", "zero_shot", "result", "below_zero_shot")
_COSTS = (
    *("rounds", "best_round", "bytes_up", "bytes_down", "train_seconds"),
    "transductive",
)


def _csv(records: Sequence[RunRecord]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", *_RUN, *_DOMAIN, *METRICS, *_COSTS])
    for record in records:
        s = record.summary
        about = [str(record.path), *(s.get(key) for key in _RUN), record.target]
        sent = (s["communication"].get(f"bytes_{way}") for way in ("up", "down"))
        costs = [s["rounds"], s.get("best_round"), *sent, s["seconds"].get("train")]
        costs.append(int(bool(s.get("transductive"))))
        for role, domain, base, got in _domains(s):
            more = lift(got, base)
            below = None if more is None else int(more < 0)
            metrics = metrics_of(s, "result") if role == "target" else {}
            values = [metrics.get(key) for key in METRICS]
            writer.writerow([*about, role, domain, base, got, below, *values, *costs])
    return out.getvalue()


def _domains(s: Summary) -> list[tuple[Any, ...]]:
    """``(role, domain, zero-shot, result)``, the held-out domain first."""
    base, got = s["zero_shot"], s["result"]
    held = ("target", target_name(s), base.get("target"), got.get("target"))
    return [*([held] if held[1] != NO_TARGET else [])] + [
        ("client", name, base["clients"].get(name), value)
        for name, value in got["clients"].items()
    ]
