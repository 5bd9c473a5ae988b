"""Rounds as TensorBoard events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RunError
from .records import MAX_CLIENTS


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
    means = ("target", "mean_val", "mean_test")
    totals = ("bytes/up", "bytes/down", "quarantined")
    return [
        ("loss", metrics.get("loss")),
        *((f"accuracy/{k}", metrics.get(k)) for k in means),
        *((f"{k}/{n}", c.get(k)) for k in ("test", "val") for n, c in clients.items()),
        *((name, metrics.get(name.replace("/", "_"))) for name in totals),
    ]
