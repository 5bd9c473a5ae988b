"""Base to novel as a table: local, base, novel and their harmonic mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.partition import NO_TARGET
from ..stats import mean
from .records import Summary, target_name
from .tables import Cell, Table, gain
from .wording import percent

COLUMNS = {
    "local": "local",
    "base": "base",
    "novel": "novel",
    "harmonic": "harmonic\nmean",
    "target_base": "held-out\nbase",
    "target_novel": "held-out\nnovel",
    "target_harmonic": "held-out\nharmonic",
}


def base_to_novel(group: Sequence[Summary], method: str) -> Table | None:
    """Two rows a held-out domain, mean over seeds; None where all classes were seen."""
    by_target: dict[str, list[Mapping[str, Any]]] = {}
    for summary in group:
        if found := summary.get("base_to_novel"):
            by_target.setdefault(target_name(summary), []).append(found)
    if not by_target:
        return None
    if len(by_target) > 1:
        by_target["mean"] = [run for runs in by_target.values() for run in runs]
    columns = [
        key
        for key in COLUMNS
        if any(key in run["result"] for runs in by_target.values() for run in runs)
    ]
    body = []
    for target, runs in by_target.items():
        base, got = (
            {key: mean(run[which].get(key) for run in runs) for key in columns}
            for which in ("zero_shot", "result")
        )
        name = "no domain" if target == NO_TARGET else target
        body.append(
            [Cell(name, "zero-shot"), *(Cell(percent(base[k])) for k in columns)]
        )
        tones = {k: gain(got[k], base[k]).tone for k in columns}
        cells = [Cell(percent(got[k]), tone=tones[k]) for k in columns]
        body.append([Cell(name, method), *cells])
    return Table(
        ["held out", *(COLUMNS[key] for key in columns)],
        body,
        "Base to novel, accuracy in %",
        "novel: classes that no client trained on; local: among a client's own classes",
    )
