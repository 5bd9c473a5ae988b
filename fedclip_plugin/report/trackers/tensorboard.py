"""Rounds as TensorBoard events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import Tracker, scalars


class TensorBoardLog(Tracker):
    """Rounds as TensorBoard scalars under ``directory``.

    Raises RunError when TensorBoard is not installed.  Usable as a context manager.
    """

    name = "tensorboard"
    package = "tensorboard"

    def __init__(
        self,
        directory: str | Path,
        label: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.check()
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory))

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Write one ``metrics.jsonl`` entry at the step of its round."""
        for tag, value in scalars(metrics).items():
            self._writer.add_scalar(tag, value, metrics["round"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        self._writer.close()
