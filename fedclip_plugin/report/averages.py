"""Averages of finished runs over seeds and targets, and how numbers are written.

Accuracies are fractions in 0..1, or ``None`` where nothing could be measured; ``None``
takes no part in a mean.
"""

from __future__ import annotations

import json
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
MORE_METRICS = {
    "auc": "AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "many": "classes of many images",
    "medium": "of some",
    "few": "of few",
}
"""Further ones, which have no column in a table of methods."""


def scores(summary: Summary, which: str) -> dict[str, float | None]:
    """``{"target", "clients", "mean"}`` of ``zero_shot`` or ``result`` of a leaf.

    ``clients`` is the mean over clients; ``mean`` is over target and clients.
    """
    result = summary[which]
    target, clients = result.get("target"), result["clients"]
    overall = result.get("mean")
    if overall is None:
        overall = mean([target, *clients.values()])
    return {"target": target, "clients": mean(clients.values()), "mean": overall}


def metrics_of(summary: Summary, which: str) -> dict[str, float | None]:
    """Class metrics of ``zero_shot`` or ``result`` of a leaf; None for older runs."""
    name = which if which == "zero_shot" else summary["algorithm"]
    metrics = (summary.get("metrics") or {}).get(name) or {}
    return {key: metrics.get(key) for key in (*METRICS, *MORE_METRICS)}


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
        "transductive": any(s.get("transductive") for s in summaries),
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


_ABOUT = (*("algorithm", "variant", "transductive", "dataset", "model", "pretrained"),)


def groups(summaries: Sequence[Summary]) -> list[dict[int, Summary]]:
    """Runs that may be averaged, each by its place: the same data, model and settings.

    A repeat of a run, with its target and seed, is in none.  Where groups would go by
    the same name, the ``variant`` of their summaries is told apart.
    """
    by_settings: dict[str, dict[str, int]] = {}
    for place, s in enumerate(summaries):
        key = json.dumps([*map(s.get, (*_ABOUT, "settings"))], sort_keys=True)
        by_settings.setdefault(key, {}).setdefault(_repeated(s, place), place)
    firsts = {
        key: summaries[min(places.values())] for key, places in by_settings.items()
    }
    namesakes: dict[tuple[Any, ...], list[Summary]] = {}
    for s in firsts.values():
        namesakes.setdefault(tuple(map(s.get, _ABOUT)), []).append(s)
    result: list[dict[int, Summary]] = []
    for key, places in by_settings.items():
        others = namesakes[tuple(map(firsts[key].get, _ABOUT))]
        names = [firsts[key].get("variant"), _difference(firsts[key], others)]
        variant = ", ".join(filter(None, names))
        result.append(
            {i: {**summaries[i], "variant": variant} for i in places.values()}
        )
    return result


def tasks(groups: Iterable[dict[int, Summary]]) -> list[list[dict[int, Summary]]]:
    """``groups`` by what they were run on: the same data, model and weights."""
    found: dict[tuple[Any, ...], list[dict[int, Summary]]] = {}
    for group in groups:
        first = next(iter(group.values()))
        on = tuple(first.get(key) for key in ("dataset", "model", "pretrained"))
        found.setdefault(on, []).append(group)
    return list(found.values())


def same_features(summaries: Iterable[Summary]) -> bool:
    """Whether runs were scored on the same features: then zero-shot is the same."""
    return len({(s.get("settings") or {}).get("features") for s in summaries}) == 1


def _repeated(summary: Summary, place: int) -> str:
    """What a repeat of a run has in common with it; nothing has it where noise is new.

    Former versions did not record their settings: they must have the same result.
    """
    settings = summary.get("settings")
    if settings and settings.get("dp-seed") == "secret":
        return str(place)
    same = [target_name(summary), summary.get("seed")]
    return json.dumps(same if settings else [*same, summary["result"]])


def _difference(summary: Summary, others: Sequence[Summary]) -> str:
    """Settings in which a run differs from ``others`` that go by its name."""

    def differing(name: str) -> dict[str, str]:
        each = [s.get(name) or {} for s in others]
        keys = dict.fromkeys(key for options in each for key in options)
        own = summary.get(name) or {}
        return {
            key: own.get(key, "default")
            for key in keys
            if len({options.get(key) for options in each}) > 1
        }

    if len(others) > 1 and not summary.get("settings"):
        return "settings not recorded"
    options = differing("settings")
    if key := options.pop("features", ""):
        of = differing("sources")
        places = ("root", "features")
        where: dict[str, str] = {name: of.pop(name) for name in places if name in of}
        options.update(of or where or {"features": key[:8]})
    return ", ".join(f"{name} {value}" for name, value in options.items())


def client_names(by_target: Mapping[str, Any]) -> list[str]:
    """Every client of any row; domains that are targets too come first, in order."""
    names = dict.fromkeys(name for row in by_target.values() for name in row["clients"])
    return [n for n in by_target if n in names] + [
        n for n in names if n not in by_target
    ]
