"""What FedML users read: a line a round and a table at the end, in FedML's log.

FedML replaces ``logging.root`` when it starts, so that only the functions of the module
``logging`` reach its log; other loggers still end in the root of before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ...federation.rounds import RoundResult
from ...report.wording import percent


class _Forward(logging.Handler):
    """Hands the records of our logger to FedML's."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.root is not logging.Logger.root:
            logging.root.handle(record)


def forward() -> None:
    """Show our warnings in FedML's log; safe to call twice."""
    ours = logging.getLogger("fedclip")
    if not any(isinstance(h, _Forward) for h in ours.handlers):
        ours.addHandler(_Forward())


def round_line(result: RoundResult, rounds: int) -> str:
    """One round: test accuracy of every client in per cent, and its bytes."""
    parts = [f"FedCLIP round {result.round}/{rounds}"]
    if result.clients:
        scores = [f"{n} {percent(s['test'])}" for n, s in result.clients.items()]
        parts.append(f"test accuracy in %: {', '.join(scores)}")
        parts.append(f"mean {percent(result.mean_test)}")
    if result.target is not None:
        parts.append(f"held out {percent(result.target)}")
    parts.append(f"bytes up {result.bytes_up}, down {result.bytes_down}")
    if result.quarantined:
        parts.append(f"{result.quarantined} left out")
    return "; ".join(parts)


def final_lines(summary: Mapping[str, Any]) -> list[str]:
    """The table at the end: zero-shot and FedCLIP, in per cent, best round."""
    before, after = summary["zero_shot"], summary["result"]
    rows = [(n, before["clients"][n], got) for n, got in after["clients"].items()]
    if summary["target"] is not None:
        name = f"{summary['target']} (held out)"
        rows.append((name, before["target"], after["target"]))
    rows.append(("mean", before["mean"], after["mean"]))
    width = max(len(name) for name, *_ in rows)
    head = f"FedCLIP, best round {summary['best_round']} of {summary['rounds']}"
    lines = [f"{head}: accuracy in %", f"{'':{width}}  zero-shot  FedCLIP"]
    for name, base, got in rows:
        lines.append(f"{name:{width}}  {percent(base):>9}  {percent(got):>7}")
    traffic = summary["communication"]
    lines.append(f"bytes up {traffic['bytes_up']}, down {traffic['bytes_down']}")
    return lines
