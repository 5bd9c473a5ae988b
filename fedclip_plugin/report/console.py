"""The table at the end of a run, on the console.

``rich`` sets the tables.  Away from a terminal they are plain ASCII of the same width,
so a log file or a pipe stays readable.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from .averages import aggregate, groups, notes_of, tasks
from .differences import differences
from .novel import base_to_novel
from .records import Summary
from .tables import (
    Cell,
    Table,
    client_accuracies,
    comparison,
    costs,
    facts,
    results,
)
from .wording import method_label, method_of, warning

MAX_CLIENT_COLUMNS = 7
MAX_WIDTH = 10_000  # of a table that is measured
_STYLES = {"up": "green", "down": "red", "name": "", "": ""}
# SIMPLE_HEAD without the box-drawing characters
_ASCII_HEAD = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def print_table(
    console: Console, summaries: Sequence[Summary], written: Container[str] = ()
) -> None:
    """Print accuracies, bytes and seconds of the leaf summaries of one or more runs.

    Their notes follow, without those that were ``told``.

    Runs of different algorithms, data or models get a table each; several on the same
    data and model are compared below.  Accuracies are in per cent; with several seeds
    the half-width of the 95 % interval stands beside.
    """
    methods = groups(summaries)
    for places in methods:
        group = list(places.values())
        total, method = aggregate(group), method_of(group[0])
        console.print(Text(_title(group), "bold"))
        _print(console, results(total, method, lifts=False))
        clients = client_accuracies(total, method, MAX_CLIENT_COLUMNS)
        for table in (clients, base_to_novel(group, method)):
            if table is not None:
                _print(console, table)
        for name, line in costs(group, total).items():
            console.print(Text(f"{name + ':':13} {line}"))
        if below := warning(total, method_label(group[0])):
            console.print(Text(f"warning: {below}", "yellow"))
    for several in tasks(methods):
        if len(several) > 1:
            _compare(console, [list(places.values()) for places in several])
    for note in notes_of(summaries):
        if note not in written:
            console.print(Text(f"note: {note}", "yellow"), soft_wrap=True)


def _compare(console: Console, methods: Sequence[Sequence[Summary]]) -> None:
    first = methods[0][0]
    title = f"Methods on {first['dataset']}, {first['model']}"
    console.print(Text(title, "bold"))
    for table in (comparison(methods, metrics=False), differences(methods)):
        if table is not None:
            _print(console, table)


def print_plain(console: Console, table: Table) -> None:
    """Print one table by itself."""
    _print(console, table)


def _title(group: Sequence[Summary]) -> str:
    labels = {name.lower(): value for name, value in facts(group).items()}
    seeds = "seeds" if "seeds" in labels else "seed"
    rounds = f"{labels['rounds']} round{'s' * (labels['rounds'] != '1')}"
    return (
        f"{method_label(group[0])} on {labels['data set']}, {labels['model']} "
        f"({labels['weights']}), {rounds}, {seeds} {labels[seeds]}"
    )


def _print(console: Console, table: Table) -> None:
    """Half-widths go below their values where the table is too wide otherwise."""
    wide = _rich(console, table, "")
    free = console.options.update(max_width=MAX_WIDTH)
    fits = Measurement.get(console, free, wide).maximum <= console.width
    console.print(wide if fits else _rich(console, table, "\n"))


def _rich(console: Console, table: Table, before: str) -> RichTable:
    """``before`` stands between a value and its half-width."""
    fancy = console.is_terminal and not console.options.ascii_only
    sign = "±" if fancy else "+-"

    def text(cell: Cell) -> Text:
        half = cell.sub.startswith("±")
        sub = f" {cell.sub}" * bool(cell.sub)
        if half:
            sub = before + cell.sub.replace("± ", sign)
        return Text((cell.text + sub).strip(), _STYLES[cell.tone])

    rich = RichTable(
        box=SIMPLE_HEAD if console.is_terminal else _ASCII_HEAD,
        title=Text(table.title),
        title_justify="left",
        title_style="",
        caption=Text(table.note.replace("±", sign)) if table.note else None,
        caption_justify="left",
        caption_style="",
        pad_edge=False,
    )
    first, *rest = table.head
    rich.add_column(Text(first), overflow="fold")
    for head in rest:
        rich.add_column(Text(head), justify="right", overflow="fold")
    for i, cells in enumerate(table.rows):
        last = table.total and i == len(table.rows) - 1
        if last:
            rich.add_section()
        rich.add_row(*map(text, cells), style="bold" if last else "")
    return rich
