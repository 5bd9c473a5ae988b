"""Trackers by name, ``--log tensorboard,mlflow,wandb``; others add theirs.

An entry point of the group ``fedclip_plugin.trackers`` names a subclass of
:class:`Tracker`, and an installed package is known by that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...algorithms.plugins import Registry
from ...errors import ConfigError, one_line
from .base import Summary, Tracker
from .mlflow import MlflowLog
from .tensorboard import TensorBoardLog
from .wandb import WandbLog

__all__ = ["TRACKERS", "Tracker", "Trackers", "find_trackers"]

TRACKERS: Registry[type[Tracker]] = Registry("log", "fedclip_plugin.trackers")
for _cls in (MlflowLog, TensorBoardLog, WandbLog):
    TRACKERS.register(_cls.name, _cls)

_log = logging.getLogger("fedclip")


def find_trackers(words: Iterable[str]) -> list[type[Tracker]]:
    """The trackers of ``--log``, whose words may hold several with commas between.

    Raises ConfigError for an unknown one, RunError for one that is not installed.
    """
    names = [name.strip() for word in words for name in word.split(",")]
    found = [TRACKERS.get(name) for name in dict.fromkeys(filter(None, names))]
    for cls in found:
        if not (isinstance(cls, type) and issubclass(cls, Tracker)):
            raise ConfigError(
                f"--log: {cls!r} is not a subclass of "
                "fedclip_plugin.report.trackers.Tracker"
            )
        cls.check()
    return found


class Trackers:
    """The trackers of one run; one that fails is named once and left out.

    A run must not end because a disk is full or a server does not answer.
    """

    def __init__(self, kinds: Sequence[type[Tracker]]) -> None:
        self._kinds = kinds
        self._open: list[Tracker] = []

    def start(self, directory: Path, label: str, config: Mapping[str, Any]) -> None:
        """Begin in each of them, or go on."""
        for cls in self._kinds:
            try:
                self._open.append(cls(directory, label, config))
            except Exception as error:  # code of others: anything may come
                _left_out(cls, error)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """A line of ``metrics.jsonl``."""
        self._each("log", metrics)

    def finish(self, summary: Summary) -> None:
        """``summary.json``."""
        self._each("finish", summary)

    def close(self) -> None:
        """Whether the run is over or not."""
        self._each("close")
        self._open = []

    def _each(self, method: str, *arguments: Any) -> None:
        for tracker in list(self._open):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:
                _left_out(type(tracker), error)
                self._open.remove(tracker)
                if method != "close":
                    with suppress(Exception):  # it has failed already
                        tracker.close()


def _left_out(cls: type[Tracker], error: Exception) -> None:
    name = cls.name or cls.__name__
    _log.warning(
        "--log %s has failed and gets no more of this run (%s: %s); "
        "metrics.jsonl has it all",
        *(name, type(error).__name__, one_line(error)),
    )
