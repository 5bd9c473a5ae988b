"""Finished run directories of made-up numbers, for the tests of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.config.toml import to_toml

DOMAINS = ("scan", "negative", "photo", "sketch")
ADAPTER_BYTES = 525_312 * 4


def zero_shot_of(name: str) -> float:
    """A fixed accuracy for a name, spread over 0.5..0.9."""
    return 0.5 + (sum(map(ord, name)) * 37 % 400) / 1000


def metrics_at(level: float) -> dict[str, float]:
    """Class metrics of a model that is right in about ``level`` of all cases."""
    return {
        "balanced_accuracy": level + 0.011,
        "macro_f1": level - 0.012,
        "calibration_error": 1 - level - 0.003,
    }


def leaf_summary(
    target: str | None = "sketch",
    seed: int = 0,
    *,
    clients: Sequence[str] | None = None,
    rounds: int = 12,
    gain: float = 0.1,
    algorithm: str = "fedclip",
    **extra: Any,
) -> dict[str, Any]:
    """A leaf's summary.json; ``gain`` is how far the method is above zero-shot."""
    names = clients if clients is not None else [d for d in DOMAINS if d != target]

    def scores(more: float) -> dict[str, Any]:
        found = {n: min(1.0, zero_shot_of(n) + more) for n in names}
        held = None if target is None else min(1.0, zero_shot_of(target) + more)
        every = [v for v in (held, *found.values()) if v is not None]
        return {
            "target": held,
            "clients": found,
            "mean": fmean(every) if every else None,
        }

    return {
        "algorithm": algorithm,
        "dataset": "digits",
        "model": "fedclip-tiny",
        "pretrained": "fedclip-tiny",
        "seed": seed,
        "target": target,
        "rounds": rounds,
        "best_round": max(1, rounds - 2),
        "zero_shot": scores(0.0),
        "result": scores(gain + 0.01 * seed),
        "communication": {
            "bytes_up": rounds * len(names) * ADAPTER_BYTES,
            "bytes_down": rounds * len(names) * ADAPTER_BYTES,
            "params": 525_312,
        },
        "seconds": {"features": 4.25, "train": 1.5, "evaluate": 0.5},
        "quarantined": 0,
        "skipped_images": [],
        "metrics": {"zero_shot": metrics_at(0.6), algorithm: metrics_at(0.6 + gain)},
        **extra,
    }


def round_metrics(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A metrics.jsonl entry for every round, rising towards the summary's result."""
    base, got = summary["zero_shot"], summary["result"]
    names = list(got["clients"])
    entries = []
    for number in range(1, summary["rounds"] + 1):
        share = 1 - math.exp(-4 * number / summary["rounds"])

        def at(low: float | None, high: float | None, share: float = share) -> Any:
            known = low is not None and high is not None
            return low + share * (high - low) if known else None

        tests = {n: at(base["clients"][n], got["clients"][n]) for n in names}
        known = [v for v in tests.values() if v is not None]
        average = sum(known) / len(known) if known else None
        entries.append(
            {
                "round": number,
                "loss": 3.2 * math.exp(-3 * number / summary["rounds"]) + 1.1,
                "target": at(base["target"], got["target"]),
                "clients": {n: {"val": t, "test": t} for n, t in tests.items()},
                "mean_val": None if average is None else average * 0.98,
                "mean_test": average,
                "participants": names,
                "bytes_up": len(names) * ADAPTER_BYTES,
                "bytes_down": len(names) * ADAPTER_BYTES,
                "quarantined": 0,
                "seconds": {"train": 0.1, "evaluate": 0.05},
            }
        )
    return entries


def confusion(classes: int, right: float, per_class: int = 45) -> list[list[int]]:
    """Rows = true class; the mistakes lie on the next few classes."""
    rows = []
    for true in range(classes):
        row = [0] * classes
        for i in range(per_class):
            miss = i >= right * per_class
            row[(true + 1 + i * i % 5) % classes if miss else true] += 1
        rows.append(row)
    return rows


def evaluation_of(summary: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """An evaluation.json to a summary."""
    sizes = {
        name: [20 + (3 * i + 7 * c) % 11 for c in range(len(classes))]
        for i, name in enumerate(summary["result"]["clients"])
    }
    return {
        "classes": list(classes),
        "confusion": {
            "zero_shot": confusion(len(classes), 0.6),
            summary["algorithm"]: confusion(len(classes), 0.85),
        },
        "metrics": summary["metrics"],
        "clients": {
            name: {
                "train": sum(counts),
                "val": sum(counts) // 3,
                "test": sum(counts) // 3,
                "train_per_class": counts,
            }
            for name, counts in sizes.items()
        },
    }


def write_leaf(
    path: Path,
    summary: dict[str, Any] | None = None,
    *,
    classes: Sequence[str] = tuple("0123456789"),
) -> dict[str, Any]:
    """Write a whole finished leaf run; returns its summary."""
    summary = leaf_summary() if summary is None else summary
    path.mkdir(parents=True, exist_ok=True)
    targets = (summary["target"] or "none",)
    config = RunConfig(seeds=(summary["seed"],), data=DataConfig(targets=targets))
    (path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    dump(path / "summary.json", summary)
    lines = [json.dumps(entry, allow_nan=False) for entry in round_metrics(summary)]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    dump(path / "evaluation.json", evaluation_of(summary, classes))
    return summary


def write_tree(
    path: Path, seeds: Sequence[int] = (0, 1), domains: Sequence[str] = DOMAINS
) -> list[dict[str, Any]]:
    """Write ``<target>/seed-<n>`` leaves and the summary above; returns the leaves'."""
    from fedclip_plugin.report.averages import aggregate

    summaries = []
    for target in domains:
        for seed in seeds:
            summary = leaf_summary(target, seed)
            summaries.append(write_leaf(path / target / f"seed-{seed}", summary))
    dump(path / "summary.json", aggregate(summaries))
    return summaries


def dump(path: Path, value: Any) -> None:
    """Write strict JSON: a NaN is an error."""
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
