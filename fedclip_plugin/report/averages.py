"""Averages of finished runs over seeds and targets, and how numbers are written.

Accuracies are fractions in 0..1, or ``None`` where nothing could be measured; ``None``
takes no part in a mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import RunError
from ..stats import ci95, mean
from .records import Summary, target_name

KINDS = ("target", "clients", "mean")
_MODELS = ("zero_shot", "result")
METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "calibration_error": "calibration error",
}
"""Class metrics of ``evaluation.json`` and what they are called."""


def scores(summary: Summary, which: str) -> dict[str, float | None]:
    """``{"target", "clients", "mean"}`` of ``zero_shot`` or ``result`` of a leaf.

    ``clients`` is the mean over clients; ``mean`` is over target and clients.
    """
    found = summary[which]
    target, clients = found.get("target"), found["clients"]
    overall = found.get("mean")
    if overall is None:
        overall = mean([target, *clients.values()])
    return {"target": target, "clients": mean(clients.values()), "mean": overall}


def metrics_of(summary: Summary, which: str) -> dict[str, float | None]:
    """The ``METRICS`` of ``zero_shot`` or ``result`` of a leaf; None for older runs."""
    name = which if which == "zero_shot" else summary["algorithm"]
    found = (summary.get("metrics") or {}).get(name) or {}
    return {key: found.get(key) for key in METRICS}


def aggregate(summaries: Sequence[Summary]) -> dict[str, Any]:
    """The ``summary.json`` above several leaves; see ``docs/report.md``.

    Means are per target over seeds, then over targets.  ``ci95`` is the half-width of
    the Student-t interval over seeds (each seed first averaged over its targets), null
    with fewer than two seeds that cover every target.
    """
    if not summaries:
        raise RunError("no finished run to average: start one with `fedclip run`")
    by_target: dict[str, list[Summary]] = {}
    for summary in summaries:
        by_target.setdefault(target_name(summary), []).append(summary)
    rows = {name: _target_row(group) for name, group in by_target.items()}
    return {
        "runs": [dict(summary) for summary in summaries],
        "mean": {
            which: _over([row[which] for row in rows.values()]) for which in _MODELS
        },
        "ci95": _ci_over_seeds(by_target),
        "metrics": {
            which: _over([row["metrics"][which] for row in rows.values()])
            for which in _MODELS
        },
        "by_target": rows,
        "notes": notes_of(summaries),
        "seconds": {
            stage: sum(s["seconds"].get(stage) or 0.0 for s in summaries)
            for stage in ("features", "train", "evaluate")
        },
    }


def notes_of(summaries: Iterable[Summary]) -> list[str]:
    """What the runs note about their data, model and options, each once."""
    return list(dict.fromkeys(n for s in summaries for n in s.get("notes") or ()))


def cost_of(group: Sequence[Summary]) -> tuple[float, float]:
    """Bytes sent up and down, and seconds of training, of a run on average."""
    sent = [
        sum(s["communication"].get(f"bytes_{way}") or 0 for way in ("up", "down"))
        for s in group
    ]
    spent = [s["seconds"].get("train") or 0.0 for s in group]
    return mean(sent) or 0.0, mean(spent) or 0.0


def _over(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    return {key: mean(row[key] for row in rows) for key in rows[0]}


def _target_row(group: Sequence[Summary]) -> dict[str, Any]:
    results = [scores(s, "result") for s in group]
    names = dict.fromkeys(name for s in group for name in s["result"]["clients"])
    return {
        "seeds": [s.get("seed") for s in group],
        "zero_shot": _over([scores(s, "zero_shot") for s in group]),
        "result": _over(results),
        "ci95": {kind: ci95(row[kind] for row in results) for kind in KINDS},
        "metrics": {w: _over([metrics_of(s, w) for s in group]) for w in _MODELS},
        "clients": {
            name: {w: mean(s[w]["clients"].get(name) for s in group) for w in _MODELS}
            for name in names
        },
    }


def _ci_over_seeds(by_target: Mapping[str, Sequence[Summary]]) -> dict[str, Any]:
    per_seed: dict[Any, dict[str, list[dict[str, float | None]]]] = {}
    for name, group in by_target.items():
        for s in group:
            seed = per_seed.setdefault(s.get("seed"), {})
            seed.setdefault(name, []).append(scores(s, "result"))
    whole = [
        _over([_over(runs) for runs in targets.values()])
        for targets in per_seed.values()
        if len(targets) == len(by_target)
    ]
    return {key: ci95(row[key] for row in whole) for key in KINDS}


def groups(summaries: Sequence[Summary]) -> list[list[Summary]]:
    """Runs that may be averaged: the same algorithm and settings, data and model."""
    keys = ("algorithm", "variant", "dataset", "model", "pretrained")
    found: dict[tuple[Any, ...], list[Summary]] = {}
    for summary in summaries:
        found.setdefault(tuple(summary.get(k) for k in keys), []).append(summary)
    return list(found.values())


def client_names(by_target: Mapping[str, Any]) -> list[str]:
    """Every client of any row; domains that are targets too come first, in order."""
    found = dict.fromkeys(name for row in by_target.values() for name in row["clients"])
    return [n for n in by_target if n in found] + [
        n for n in found if n not in by_target
    ]
