"""What the tables show of a method, from the summaries of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedclip_plugin.report.averages import METRICS, aggregate, cost_of, metrics_of
from fedclip_plugin.report.wording import below_zero_shot
from fedclip_plugin.stats import ci95, mean


def figures(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds, then targets; accuracies are fractions."""
    total = aggregate(summaries)
    sent, spent = cost_of(summaries)
    seeds: dict[Any, list[dict[str, float | None]]] = {}
    for summary in summaries:
        metrics = metrics_of(summary, "result")
        seeds.setdefault(summary["seed"], []).append(metrics)
    return {
        **{key: total[key] for key in ("mean", "ci95", "metrics")},
        "metrics_ci95": {
            key: ci95(mean(m[key] for m in found) for found in seeds.values())
            for key in METRICS
        },
        "by_target": {
            target: {key: row[key] for key in ("zero_shot", "result", "ci95")}
            for target, row in total["by_target"].items()
        },
        "bytes_a_run": sent,
        "train_seconds_a_run": spent,
        "params": summaries[0]["communication"]["params"],
        "seeds": len(seeds),
        "transductive": any(s.get("transductive") for s in summaries),
        "rounds": max(s["rounds"] for s in summaries),
        "best_rounds": [s["best_round"] for s in summaries],
        "below_zero_shot": below_zero_shot(total["by_target"]),
    }
