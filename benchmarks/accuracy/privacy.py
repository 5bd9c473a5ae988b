"""What does client-level privacy cost in accuracy?

    python -m benchmarks privacy --features DIR

A thousand iid clients of all domains but one, a tenth of them in each round, with more
and more noise; accuracy of the held-out domain and of the clients after the last round
against epsilon.  Results go to results/privacy.json and .md; what is in the json file
already is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import machine, out_file
from fedclip_plugin.config.schema import PRESETS, DataConfig, RunConfig, TrainConfig
from fedclip_plugin.features.feature_set import FeatureSet, load_features
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.federation.evaluation import score_zero_shot
from fedclip_plugin.report.wording import percent
from fedclip_plugin.stats import ci95, mean

RESULTS = Path(__file__).parents[1] / "results" / "privacy"
CLIENTS, SHARE, CLIP = 1000, 0.1, 0.15
NOISE = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # 0: no clip, no noise


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--target", default="sketch", help="held-out domain")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=out_file, default=RESULTS, help="without ending")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    features = load_features(args.features)
    settings = {k: getattr(args, k) for k in ("target", "rounds", "seeds")}
    settings |= {"features": args.features.name, "train": PRESETS["best"]}
    settings |= {"clients": CLIENTS, "share": SHARE, "clip": CLIP}
    path = args.out.with_suffix(".json")
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("settings") != settings:
        found = {"settings": settings, "machine": machine(), "runs": {}}
    for seed, noise in itertools.product(args.seeds, NOISE):
        key = f"{noise:g} {seed}"
        if key not in found["runs"]:
            fed = _federation(features, args, noise, seed)
            found["runs"][key] = _run(fed)
            print(key, found["runs"][key], flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(found))


def _federation(
    features: FeatureSet, args: argparse.Namespace, noise: float, seed: int
) -> Federation:
    train = TrainConfig(
        rounds=args.rounds,
        eval_every=args.rounds,
        participation=SHARE,
        dp_noise_multiplier=noise,
        dp_clip=CLIP if noise else 0.0,
        **PRESETS["best"],
    )
    data = DataConfig(dataset="features", partition="iid", clients=CLIENTS)
    config = RunConfig(data=data, train=train)
    return build_federation(features, config, args.target, seed)


def _run(fed: Federation) -> dict[str, float | None]:
    base = score_zero_shot(fed.clients, fed.target, fed.task)
    *_, last = federate(fed)
    assert last.result is not None
    return {
        "target": last.result.target,
        "clients": last.result.mean_test,
        "epsilon": last.result.epsilon,
        "zero_shot_target": base["target"],
        "zero_shot_clients": mean(base["clients"].values()),
    }


def markdown(found: dict[str, Any]) -> str:
    """The table: noise down, epsilon and accuracies across."""
    s, on = found["settings"], found["machine"]

    def values(noise: float, name: str) -> list[float]:
        return [found["runs"][f"{noise:g} {seed}"][name] for seed in s["seeds"]]

    def cell(noise: float, name: str) -> str:
        got = values(noise, name)
        half = ci95(got)
        return percent(mean(got)) + (f" ± {100 * half:.2f}" if half else "")

    lines = [
        "# Privacy of clients",
        "",
        f"`python -m benchmarks privacy` on {s['features']}, {s['target']} held out: "
        f"{s['clients']} iid clients of the other domains, {s['share']:.0%} of them a "
        f"round, {s['rounds']} rounds, preset best, `--dp-clip {s['clip']}`, "
        f"seeds {s['seeds']}; {on['cpu']}, torch {on['torch']}, {on['date']}.  "
        "Accuracy in per cent after the last round, ± the 95 % interval over seeds; "
        "epsilon at delta 1e-5, of all rounds together.  A client has one test image, "
        "so that column hangs on the seed's split.",
        "",
        "| noise multiplier | epsilon | held out | clients |",
        "|---:|---:|---:|---:|",
        f"| zero-shot | 0 | {percent(mean(values(0.0, 'zero_shot_target')))} "
        f"| {percent(mean(values(0.0, 'zero_shot_clients')))} |",
    ]
    for noise in sorted(NOISE, reverse=True):
        epsilon = f"{values(noise, 'epsilon')[0]:.2f}" if noise else "no privacy"
        cells = f"{cell(noise, 'target')} | {cell(noise, 'clients')}"
        lines.append(f"| {noise:g} | {epsilon} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
