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
from .records import RunRecord, load_run, load_runs
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


def write_html(directory: str | Path) -> Path:
    """Write ``report.html`` for a leaf run or a tree of runs; returns its path.

    One file that opens without a network.  Raises RunError when there is no finished
    run, or when the directory cannot be written.
    """
    # matplotlib and torch take seconds to import, which the tables do without
    from .html import render_page
    from .storage import write_bytes

    path = Path(directory)
    page = render_page(load_runs(path), title=path.resolve().name)
    write_bytes(path / "report.html", page.encode(), durable=False)
    return path / "report.html"


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
