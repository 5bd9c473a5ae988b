"""What a run leaves for people to read: tables, the one-file page, TensorBoard.

The public face of the report; ``docs/report.md`` tells what it shows.  The stages lie
beside it: ``records`` reads run directories, ``averages`` means and intervals,
``tables`` the console, ``plots`` the figures, ``html`` the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .averages import aggregate
from .errors import RunError
from .merged import merge
from .records import MAX_CLIENTS, RunRecord, load_run, load_runs
from .tables import print_table

__all__ = [
    "RunRecord",
    "TensorBoardLog",
    "aggregate",
    "load_run",
    "load_runs",
    "merge",
    "print_table",
    "write_html",
]


def write_html(
    directory: str | Path, *more: str | Path, to: Path | None = None
) -> Path:
    """Write the page of a leaf run, of a tree of runs, or of several; returns its path.

    One file that opens without a network: ``report.html`` in ``directory``, or ``to``.
    Raises RunError when there is no finished run, or where nothing can be written.
    """
    # matplotlib and torch take seconds to import, which the tables do without
    from .html import render_page
    from .storage import write_bytes

    folders = [Path(directory), *map(Path, more)]
    title = ", ".join(folder.resolve().name for folder in folders)
    path = to or folders[0] / "report.html"
    write_bytes(path, render_page(load_runs(*folders), title).encode(), durable=False)
    return path


class TensorBoardLog:
    """Rounds as TensorBoard scalars under ``directory``.

    Raises RunError when TensorBoard is not installed.  Usable as a context manager.
    """

    def __init__(self, directory: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RunError(
                "TensorBoard is not installed: "
                "run `pip install fedclip-plugin[tensorboard]`"
            ) from error
        self._writer: Any = SummaryWriter(str(directory))

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Write one ``metrics.jsonl`` entry at the step of its round."""
        for tag, value in _scalars(metrics):
            if value is not None:
                self._writer.add_scalar(tag, value, metrics["round"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        self._writer.close()


def _scalars(metrics: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    clients = metrics.get("clients") or {}
    if len(clients) > MAX_CLIENTS:  # nobody could pick one out of so many curves
        clients = {}
    return [
        ("loss", metrics.get("loss")),
        ("accuracy/target", metrics.get("target")),
        ("accuracy/mean_val", metrics.get("mean_val")),
        ("accuracy/mean_test", metrics.get("mean_test")),
        *((f"test/{name}", found.get("test")) for name, found in clients.items()),
        *((f"val/{name}", found.get("val")) for name, found in clients.items()),
        ("bytes/up", metrics.get("bytes_up")),
        ("bytes/down", metrics.get("bytes_down")),
        ("quarantined", metrics.get("quarantined")),
    ]
