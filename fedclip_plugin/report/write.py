"""``report.html``, written."""

from __future__ import annotations

from pathlib import Path

from ..storage.files import write_bytes
from ..storage.shapes import cleaned
from .records import load_runs


def write_html(
    directory: str | Path, *more: str | Path, to: Path | None = None
) -> Path:
    """Write the page of a leaf run, of a tree of runs, or of several; returns its path.

    One file that opens without a network: ``report.html`` in ``directory``, or ``to``.
    Raises RunError when there is no finished run, or where nothing can be written.
    """
    from .page.page import render_page  # matplotlib takes seconds to import

    folders = [Path(directory), *map(Path, more)]
    title = cleaned(", ".join(folder.resolve().name for folder in folders))
    path = to or folders[0] / "report.html"
    write_bytes(path, render_page(load_runs(*folders), title).encode(), durable=False)
    return path
