"""The measurements as tables: on the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from .operators import OURS, Row
from .suite import Report

SIZES = {"dim": "D", "batch": "rows", "clients": "clients", "threads": "threads"}
PERCENTS = {"peak_percent": "% of FMA peak", "read_percent": "% of read bandwidth"}
HOW = (
    "Each cell is {} of interleaved runs. Another candidate's cell is its time over "
    "ours: above 1 it is slower."
)


class Section(NamedTuple):
    """The rows of one operator."""

    title: str
    head: list[str]
    cells: list[list[str]]
    note: str


def sections(rows: Sequence[Row], medians: bool) -> list[Section]:
    """A section for each operator, a line for each size; minima, or medians as well."""
    names = dict.fromkeys(row["what"] for row in rows)
    return [
        _section(name, [r for r in rows if r["what"] == name], 2 if medians else 1)
        for name in names
    ]


def _section(title: str, rows: Sequence[Row], values: int) -> Section:
    sizes = [s for s in SIZES if any(s in r for r in rows)]
    others = list(dict.fromkeys(name for r in rows for name in r["ratio"]))
    percents = [p for p in PERCENTS if any(p in r for r in rows)]
    head = [SIZES[s] for s in sizes] + ["ours, us", *others]
    head += [PERCENTS[p] for p in percents]
    cells = []
    for row in rows:
        ratios = [row["ratio"].get(name, ()) for name in others]
        cells.append(
            [str(row.get(s, "")) for s in sizes]
            + [" / ".join(f"{v:.0f}" for v in row["us"][OURS][:values])]
            + [" / ".join(f"{v:.2f}x" for v in pair[:values]) for pair in ratios]
            + [f"{row[p]} %" if p in row else "" for p in percents]
        )
    errors = [f"{r['clients']}: {r['error']:.1e}" for r in rows if "error" in r]
    note = ", ".join(dict.fromkeys(errors))
    if note:
        note = f"Largest error over rms, against float64, by clients: {note}."
    return Section(title.capitalize(), head, cells, note)


def machine_line(machine: dict[str, Any]) -> str:
    """What was measured on, in one line."""
    m = machine
    return (
        f"{m['date']}; {m['cpu']}, {m['cores']} cores (load {m['load']}); torch "
        f"{m['torch']}, Python {m['python']}; FMA peak of one core "
        f"{m['fma_peak_gflops']} GFLOP/s."
    )


def markdown(report: Report) -> str:
    """The report as a page."""
    machine = report["machine"]
    lines = [f"# Operators on the CPU, {machine['isa']}", "", machine_line(machine)]
    lines += ["", HOW.format("minimum / median")]
    for section in sections(report["rows"], medians=True):
        lines += ["", f"## {section.title}", ""]
        table = [section.head, ["---"] * len(section.head), *section.cells]
        lines += ["| " + " | ".join(line) + " |" for line in table]
        lines += ["", section.note] if section.note else []
    return "\n".join(lines) + "\n"


def print_report(console: Console, report: Report) -> None:
    """The report on the terminal."""
    machine = report["machine"]
    console.print(f"{machine['isa']}; {machine_line(machine)}", highlight=False)
    console.print(HOW.format("the minimum"), highlight=False)
    for section in sections(report["rows"], medians=False):
        table = Table(
            title=section.title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, 1, 0, 0),
        )
        for name, *cells in zip(section.head, *section.cells):
            width = max(map(len, cells))  # on a narrow terminal only heads are folded
            table.add_column(name, justify="right", overflow="fold", min_width=width)
        for cells in section.cells:
            table.add_row(*cells)
        console.print()
        console.print(table)
        if section.note:
            console.print(section.note, highlight=False)
