"""A sweep's results as tables, text and one page; ``runs/sweep.py`` finds them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from ..data.partition import NO_TARGET
from ..stats import mean
from .figures.svg import figure_style
from .figures.sweep import option_charts
from .page.page import template
from .tables import Cell, Table, gain
from .text import markdown_row
from .wording import half_width, percent

Result = Mapping[str, Any]
RULE = (
    "Chosen for each held-out domain by the source clients' validation alone; held-out "
    "accuracies are of the chosen, and chose nothing."
)


def _label(trial: Mapping[str, Any]) -> str:
    """A trial's options, with room for a line to break between them."""
    return str(trial["trial"]).replace(",", ", ")


def selected(result: Result) -> Table:
    """What was chosen: a row a held-out domain."""
    held = [name for name in result["selected"] if name != NO_TARGET]
    rows = [
        [
            Cell("no domain" if name == NO_TARGET else name),
            Cell(_label(one), tone="name"),
            Cell(percent(one["validation"])),
            Cell(percent(one["zero_shot"])),
            Cell(percent(one["result"]), half_width(one["ci95"])),
            gain(one["result"], one["zero_shot"]),
        ]
        for name, one in result["selected"].items()
        if one is not None
    ]
    several = len(rows) > 1
    if several:
        total = result["mean"]
        rows.append(
            [
                *(Cell("mean"), Cell(""), Cell(percent(total["validation"]))),
                *(Cell(percent(total["zero_shot"])), Cell(percent(total["result"]))),
                gain(total["result"], total["zero_shot"]),
            ]
        )
    by = result["select_by"]
    score = "validation" if by == "accuracy" else f"validation\n{by}"
    accuracy = "held-out" if held else "clients'\ntest"
    return Table(
        ["held out", "chosen", score, "zero-shot", accuracy, "lift"],
        rows,
        "Chosen, accuracy in %",
        RULE,
        several,
    )


def trials(result: Result) -> Table:
    """Every trial: validation and accuracy of each held-out domain, mean over seeds."""
    targets = list(result["selected"])
    won = {t: one["trial"] for t, one in result["selected"].items() if one is not None}
    rows = []
    for trial in result["trials"]:
        cells = [Cell(_label(trial))]
        for target in targets:
            own = [run for run in trial["runs"] if run["target"] == target]
            best = won.get(target) == trial["trial"]
            validation = percent(mean(run["validation"] for run in own))
            cells.append(Cell(validation, "chosen" * best, "up" if best else ""))
            cells.append(Cell(percent(mean(run["result"] for run in own))))
        rows.append(cells)
    named = ["no domain" if target == NO_TARGET else target for target in targets]
    head = [f"{name}\n{what}" for name in named for what in ("validation", "result")]
    return Table(
        ["trial", *head], rows, "All trials, in %", fold=f"All {len(rows)} trials"
    )


def failures(result: Result) -> Table | None:
    """What failed, and why; None where nothing did."""
    if not result["failed"]:
        return None
    rows = [
        [Cell(each["trial"]), Cell(each["run"] or "all"), Cell(each["error"])]
        for each in result["failed"]
    ]
    return Table(["trial", "run", "error"], rows, "Failed")


def all_tables(result: Result) -> list[Table]:
    """Everything that there is to tell."""
    last = failures(result)
    return [selected(result), trials(result), *([last] if last else [])]


def to_markdown(result: Result) -> str:
    """The tables and notes as Markdown."""
    parts = []
    for table in all_tables(result):
        head = [" ".join(name.split()) for name in table.head]
        lines = map(markdown_row, [head, ["---"] * len(head), *table.rows])
        parts.append(f"### {table.title}\n\n{''.join(lines)}")
        parts += [f"{table.note}\n"] if table.note else []
    notes = "".join(f"- {note}\n" for note in result["notes"])
    parts += [notes] if notes else []
    return "\n".join(parts)


def to_csv(result: Result) -> str:
    """A row a run, in full precision; the searched options have columns."""
    names = list(dict.fromkeys(n for t in result["trials"] for n in t["options"]))
    columns = ("target", "seed", "validation", "zero_shot", "result", "best_round",
               "rounds", "directory")  # fmt: skip
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", *names, *columns, "chosen"])
    for trial in result["trials"]:
        values = [_plain(trial["options"].get(name)) for name in names]
        for run in trial["runs"]:
            one = result["selected"].get(run["target"])
            chosen = int(one is not None and one["trial"] == trial["trial"])
            cells = [run[name] for name in columns]
            writer.writerow([trial["trial"], *values, *cells, chosen])
    return out.getvalue()


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def page(result: Result, title: str) -> str:
    """One file with the same tables and a chart an option; it needs no network."""
    count = sum(len(trial["runs"]) for trial in result["trials"])
    chosen, *others = all_tables(result)
    with figure_style(title):
        charts = option_charts(result)
    return template("sweep.html.jinja").render(
        title=title,
        headline=f"{len(result['trials'])} trials, {count} runs, {result['search']}",
        chosen=chosen,
        charts=charts,
        tables=others,
        notes=result["notes"],
    )
