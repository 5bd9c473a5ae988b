"""What follows a run from round to round outside of its directory."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ...errors import RunError
from ..records import MAX_CLIENTS

Summary = Mapping[str, Any]


class Tracker:
    """One run in one tracker; ``name`` is what ``--log`` takes.

    A tracker may raise whatever it likes after :meth:`check`: it is left out then, and
    the run goes on.  It is made when the run begins or goes on; :meth:`log` gets every
    round, :meth:`finish` the summary, and :meth:`close` comes last in any case.
    """

    name: ClassVar[str] = ""
    package: ClassVar[str] = ""
    """The module that has to be installed, by ``pip install fedclip-plugin[name]``."""

    def __init__(self, directory: Path, label: str, config: Mapping[str, Any]) -> None:
        """Begin; ``directory`` is the run's, ``config`` its options by dotted name."""

    @classmethod
    def check(cls) -> None:
        """Raise RunError where the run could not be tracked at all."""
        try:
            there = not cls.package or importlib.util.find_spec(cls.package) is not None
        except (ImportError, ValueError):
            there = False
        if not there:
            raise RunError(
                f"--log {cls.name}: {cls.package} is not installed: "
                f"run `pip install fedclip-plugin[{cls.name}]`"
            )

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Take a line of ``metrics.jsonl``; ``metrics["round"]`` is its step."""

    def finish(self, summary: Summary) -> None:
        """Take ``summary.json``: the run is over."""

    def close(self) -> None:
        """Let go of files and connections; the run may be unfinished."""


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a round by tag: loss, accuracies, bytes, and each client's."""
    clients = metrics.get("clients") or {}
    if len(clients) > MAX_CLIENTS:  # nobody could pick one out of so many curves
        clients = {}
    means = ("target", "mean_val", "mean_test")
    totals = ("bytes/up", "bytes/down", "quarantined")
    pairs = [
        ("loss", metrics.get("loss")),
        *((f"accuracy/{k}", metrics.get(k)) for k in means),
        *((f"selection/{k}", v) for k, v in (metrics.get("selection") or {}).items()),
        *((f"{k}/{n}", c.get(k)) for k in ("test", "val") for n, c in clients.items()),
        *((name, metrics.get(name.replace("/", "_"))) for name in totals),
    ]
    return {tag: value for tag, value in pairs if value is not None}


def results(summary: Summary) -> dict[str, float]:
    """The numbers of a finished run by tag."""
    found = {"best_round": summary.get("best_round")}
    for which in ("zero_shot", "result", "final"):
        scores = summary.get(which) or {}
        found |= {f"{which}/{k}": scores.get(k) for k in ("target", "mean")}
    return {tag: value for tag, value in found.items() if value is not None}


def plain_tag(tag: str) -> str:
    """``tag`` in the letters that MLflow takes; clients may be called anything."""
    return re.sub(r"[^\w\-. /]", "_", tag, flags=re.ASCII)
