"""What a run leaves for people to read: tables, the one-file page, TensorBoard.

The public face of the report; ``docs/report.md`` tells what it shows.  The stages lie
beside it: ``records`` reads run directories, ``averages`` means and intervals,
``tables`` the console, ``plots`` the figures, ``html`` the page.
"""

from __future__ import annotations

from pathlib import Path

from .records import load_runs


def write_html(
    directory: str | Path, *more: str | Path, to: Path | None = None
) -> Path:
    """Write the page of a leaf run, of a tree of runs, or of several; returns its path.

    One file that opens without a network: ``report.html`` in ``directory``, or ``to``.
    Raises RunError when there is no finished run, or where nothing can be written.
    """
    # matplotlib and torch take seconds to import, which the tables do without
    from ..storage.files import write_bytes
    from .page.page import render_page

    folders = [Path(directory), *map(Path, more)]
    title = ", ".join(folder.resolve().name for folder in folders)
    path = to or folders[0] / "report.html"
    write_bytes(path, render_page(load_runs(*folders), title).encode(), durable=False)
    return path
