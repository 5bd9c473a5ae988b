"""What do FedCLIP's hyper-parameters cost on a domain that no client has?

    python benchmarks/ablation.py --features DIR

Settings are chosen for each target by its source clients' validation rows alone, as
in DomainBed (Gulrajani and Lopez-Paz 2021, arXiv 2007.01434, "leave one domain out"):
train on all sources but one, score the validation rows of that one, average over the
choice of it.  The target's images take no part.  Every setting is also run on the
target itself, with several seeds.  Settings without a fused kernel train by autograd,
some five times slower: they run for --eager-rounds, beside `paper` and `best` for as
many.  What the result file holds is not run again, unless it was run for other rounds
or seeds.  Results go to results/ablation.json and .md.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.study import markdown_table
from benchmarks.timing import machine, out_file
from fedclip_plugin.config.schema import PRESETS, DataConfig, RunConfig, TrainConfig
from fedclip_plugin.data.partition import paper_split
from fedclip_plugin.features.feature_set import FeatureSet, load_features
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import RunState, federate
from fedclip_plugin.federation.evaluation import score_target, score_zero_shot
from fedclip_plugin.report.wording import percent, with_half
from fedclip_plugin.stats import ci95, mean

RESULTS = Path(__file__).parents[1] / "results" / "ablation"
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"weight_decay": 0.0},
    {"weight_decay": 0.0, "lr": 2e-4},
    {"weight_decay": 0.0, "lr": 5e-4},
    {"weight_decay": 0.0, "lr": 2e-4, "logit_scale": 10.0},
    {"weight_decay": 0.0, "lr": 2e-4, "logit_scale": 5.0},
    {"weight_decay": 0.0, "lr": 2e-4, "logit_scale": 2.5},
)
EAGER: tuple[dict[str, Any], ...] = (
    {},
    PRESETS["best"],
    {"weight_decay": 0.0, "lr": 2e-4, "loss": "class"},
    {"weight_decay": 0.0, "lr": 2e-4, "adapter": "residual"},
    {"weight_decay": 0.0, "lr": 2e-4, "adapter": "bottleneck"},
    {"weight_decay": 0.0, "lr": 2e-4, "side": "text"},
    {"weight_decay": 0.0, "lr": 2e-4, "side": "both"},
    {"weight_decay": 0.2, "lr": 2e-4, "optimizer": "adamw"},
    {"weight_decay": 0.0, "lr": 0.1, "optimizer": "sgd"},
    {"weight_decay": 0.0, "lr": 2e-4, "optimizer_state": "keep"},
)


def main(argv: Sequence[str] | None = None) -> None:
    """Choose, run and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--eager-rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=out_file, default=RESULTS, help="without ending")
    args = parser.parse_args(argv)
    features = load_features(args.features)
    file = args.out.with_suffix(".json")
    found = json.loads(file.read_text()) if file.is_file() else {"settings": []}
    found |= {"features": args.features.name, "seeds": args.seeds}
    found |= {"machine": machine(), "zero_shot": _zero_shot(features)}
    jobs = [(change, args.eager_rounds) for change in EAGER]
    jobs += [(change, args.rounds) for change in SETTINGS]
    rows = {_key(row): row for row in found["settings"]}
    for change, rounds in jobs:
        key = _key({"change": change, "rounds": rounds, "seeds": args.seeds})
        if key not in rows:
            rows[key] = _setting(features, change, rounds, args.seeds)
        found["settings"] = list(rows.values())
        file.write_text(json.dumps(found, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(_markdown(found))


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row["change"], row["rounds"], row["seeds"]], sort_keys=True)


def _setting(
    features: FeatureSet, change: dict[str, Any], rounds: int, seeds: Sequence[int]
) -> dict[str, Any]:
    chosen_by = _source_validation(features, change, rounds)
    targets: dict[str, list[float | None]] = {}
    clients, bytes_up = [], 0
    for target, seed in itertools.product(features.domains, seeds):
        fed = _federation(features, change, rounds, target, seed)
        best, result = _best(fed)
        targets.setdefault(target, []).append(result.target)
        clients.append(result.mean_test)
        bytes_up = best.progress.bytes_up // best.progress.round
    row = {
        "change": change,
        "rounds": rounds,
        "seeds": seeds,
        "source_validation": chosen_by,
        "targets": targets,
        "clients": mean(clients),
        "bytes_up_a_round": bytes_up,
    }
    scores = percent(mean(chosen_by.values())), percent(_overall(row))
    print(_label(change), *scores, flush=True)
    return row


def _federation(
    features: FeatureSet, change: dict[str, Any], rounds: int, target: str, seed: int
) -> Federation:
    train = TrainConfig(rounds=rounds, **change)
    config = RunConfig(data=DataConfig(dataset="features"), train=train)
    return build_federation(features, config, target, seed)


def _best(fed: Federation) -> tuple[RunState, Any]:
    """The last standing, and the result of the best round."""
    best = None
    for standing in federate(fed):
        if standing.result and standing.progress.best_round == standing.progress.round:
            best = standing.result
    assert best is not None
    return standing, best


def _source_validation(
    features: FeatureSet, change: dict[str, Any], rounds: int
) -> dict[str, float]:
    """Target -> mean accuracy on its sources, each held out while the others train."""
    found: dict[str, list[float]] = {target: [] for target in features.domains}
    for pair in itertools.combinations(features.domains, 2):
        kept = tuple(d for d in features.domains if d not in pair)
        for target, held in (pair, pair[::-1]):
            some = replace(features, domains=(*kept, held))
            fed = _federation(some, change, rounds, held, seed=0)
            standing, _ = _best(fed)
            assert fed.target is not None
            rows = torch.from_numpy(paper_split(len(fed.target), 0).val)
            score = score_target(
                fed.algorithm, standing.best, fed.target[rows], fed.task
            )
            found[target].append(score or 0.0)
    return {target: sum(v) / len(v) for target, v in found.items()}


def _zero_shot(features: FeatureSet) -> dict[str, Any]:
    return {
        target: score_zero_shot(fed.clients, fed.target, fed.task)["target"]
        for target in features.domains
        for fed in [_federation(features, {}, 1, target, 0)]
    }


# ------------------------------------------------------------------------------ report


def _label(change: dict[str, Any]) -> str:
    return ", ".join(f"{k.replace('_', '-')} {v}" for k, v in change.items()) or "paper"


def _overall(row: dict[str, Any]) -> float | None:
    return mean(mean(values) for values in row["targets"].values())


def _half(row: dict[str, Any]) -> float | None:
    """95 % interval over seeds, each averaged over its targets."""
    return ci95(mean(seed) for seed in zip(*row["targets"].values()))


def _markdown(found: dict[str, Any]) -> str:
    on = found["machine"]
    lines = [
        "# Ablation",
        "",
        f"`python -m benchmarks ablation --features DIR` on {found['features']}: seeds "
        f"{found['seeds']}; {on['cpu']}, torch {on['torch']}, {on['date']}.  Accuracy "
        "in per cent of the best round.  *Source validation* decides: the mean over "
        "targets of what their source clients alone say (leave one source out, seed "
        "0); the target's images take no part.  ± is the 95 % interval over seeds.",
    ]
    for rounds in sorted({row["rounds"] for row in found["settings"]}, reverse=True):
        rows = [row for row in found["settings"] if row["rounds"] == rounds]
        lines += ["", f"## {rounds} rounds", "", *_table(rows, found["zero_shot"])]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]], zero_shot: dict[str, float]) -> list[str]:
    domains = list(zero_shot)
    head = ["setting", "source validation", *domains, "mean", "clients"]
    head.append("below zero-shot")
    base = [percent(zero_shot[domain]) for domain in domains]
    body = [["zero-shot", "", *base, percent(mean(zero_shot.values())), "", ""]]
    for row in rows:
        half = _half(row)
        name = _label(row["change"])
        name += " (`--preset best`)" if row["change"] == PRESETS["best"] else ""
        found = {domain: mean(row["targets"][domain]) for domain in domains}
        below = [d for d in domains if (found[d] or 0.0) < zero_shot[d]]
        body.append(
            [
                *(name, percent(mean(row["source_validation"].values()))),
                *(percent(found[domain]) for domain in domains),
                with_half(_overall(row), half, " ± "),
                *(percent(row["clients"]), ", ".join(below) or "-"),
            ]
        )
    lines = [*markdown_table(head, body), "", "Chosen for each target:", ""]
    for domain in domains:
        best = max(rows, key=lambda r: r["source_validation"][domain])
        score = percent(mean(best["targets"][domain]))
        lines.append(f"- {domain}: {_label(best['change'])} -> {score}")
    return lines


if __name__ == "__main__":
    main()
