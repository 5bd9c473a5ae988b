"""Runs in Weights & Biases: offline in the run's own folder, unless told otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import Summary, Tracker, results, scalars

PROJECT = "fedclip"


class WandbLog(Tracker):
    """One W&B run under ``<run>/wandb``; ``wandb sync`` uploads it later.

    WANDB_MODE, WANDB_PROJECT and the like decide otherwise.
    """

    name = "wandb"
    package = "wandb"

    def __init__(self, directory: Path, label: str, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb as library

        wandb: Any = library  # typed in one release, untyped in another
        quiet = {
            **dict.fromkeys(("silent", "disable_git", "disable_code"), True),
            **dict.fromkeys(("x_disable_stats", "x_disable_machine_info"), True),
            "console": "off",
        }
        known = {k: v for k, v in quiet.items() if hasattr(wandb.Settings(), k)}
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=str(directory),
            name=label,
            config=dict(config),
            settings=wandb.Settings(**known),
        )

    def log(self, metrics: Mapping[str, Any]) -> None:
        """The round's numbers at its step."""
        self._run.log(scalars(metrics), step=metrics["round"])

    def finish(self, summary: Summary) -> None:
        """The results, as W&B's summary of the run."""
        self._run.summary.update(results(summary))

    def close(self) -> None:
        """Write what waits."""
        self._run.finish()
