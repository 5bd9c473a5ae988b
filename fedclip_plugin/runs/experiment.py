"""From a RunConfig to a finished output directory: features, runs, files.

One target and one seed leave their files in the directory itself; several leave
``<target>/seed-<n>/`` each and a summary above them (docs/report.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..algorithms import get_algorithm
from ..clip.whole import WholeClip, open_whole_clip
from ..config.schema import RunConfig, TrainConfig
from ..config.toml import to_toml
from ..data.folders import load_dataset
from ..data.partition import resolve_targets
from ..errors import ConfigError
from ..features.encode import EncodeStats
from ..features.feature_set import FeatureSet
from ..federation import checkpoint as checkpoints
from ..federation.build import build_federation, identity
from ..federation.checkpoint import Checkpoint
from ..federation.engine import Standing, as_dict, federate, finished
from ..federation.personalization import personalize
from ..report.averages import aggregate
from ..report.records import SUMMARY
from ..report.write import write_html
from ..storage.files import write_bytes, write_json
from ..storage.tensors import write_tensors
from ..wire.update import State
from . import files as outputs
from .files import Leaf

OnRound = Callable[[Leaf, Standing], None]


def plan(config: RunConfig, features: FeatureSet, out: Path) -> list[Leaf]:
    """The runs of a config: every target with every seed."""
    targets = resolve_targets(features.domains, config.data.targets)
    pairs = [(t, s) for t in targets for s in config.seeds]
    rounds = config.train.rounds
    if len(pairs) == 1:
        return [Leaf(out, *pairs[0], rounds)]
    return [Leaf(out / (t or "none") / f"seed-{s}", t, s, rounds) for t, s in pairs]


def run_experiment(
    config: RunConfig,
    features: FeatureSet,
    stats: EncodeStats,
    out: Path,
    resume: bool = False,
    on_round: OnRound | None = None,
) -> dict[str, Any]:
    """Run every leaf and write ``out``; returns the (top) summary.

    With ``resume`` finished leaves are kept and a broken one goes on where it stopped.
    """
    leaves = plan(config, features, out)
    clip = _whole_clip(config, features)
    write_bytes(out / "config.toml", to_toml(config).encode())
    summaries = []
    seconds = stats.seconds
    for leaf in leaves:
        summary = _finished(leaf, config.train) if resume else None
        if summary is None:
            summary = run_leaf(config, features, leaf, seconds, resume, on_round, clip)
        seconds = 0.0  # the features were paid for once
        summaries.append(summary)
    if len(leaves) == 1:
        return summaries[0]
    total = aggregate(summaries)
    write_json(out / "summary.json", total)
    write_html(out)
    return total


def _whole_clip(config: RunConfig, features: FeatureSet) -> WholeClip | None:
    """The CLIP itself where the algorithm trains it, else nothing."""
    if not get_algorithm(config.algorithm).needs_clip:
        return None
    if config.data.features is not None:
        raise ConfigError(
            f"--alg {config.algorithm} trains CLIP itself: it needs the images "
            "(--dataset, --root), not --features"
        )
    dataset = load_dataset(config.data.dataset, config.data.root)
    return open_whole_clip(config, dataset, features.classes, features.skipped)


def _finished(leaf: Leaf, train: TrainConfig) -> dict[str, Any] | None:
    try:
        summary: dict[str, Any] = json.loads(
            (leaf.directory / "summary.json").read_text()
        )
        if SUMMARY(summary):  # of another hand: the leaf is run again
            return None
        reached = checkpoints.Progress(summary["rounds"], summary["best_round"])
    except (OSError, ValueError, KeyError, RecursionError):
        return None
    over = reached.round <= train.rounds and finished(reached, train)
    return summary if over else None


def run_leaf(
    config: RunConfig,
    features: FeatureSet,
    leaf: Leaf,
    feature_seconds: float,
    resume: bool,
    on_round: OnRound | None = None,
    clip: WholeClip | None = None,
) -> dict[str, Any]:
    """One target and one seed, from its checkpoint if ``resume``; writes all files."""
    data = replace(config.data, targets=(leaf.target or "none",))
    config = replace(config, data=data, seeds=(leaf.seed,))
    fed = build_federation(features, config, leaf.target, leaf.seed, clip)
    checkpoint = Checkpoint(leaf.directory, identity(features, config, leaf.target))
    if not resume:
        checkpoint.path.unlink(missing_ok=True)
    write_bytes(leaf.directory / "config.toml", to_toml(config).encode())
    with outputs.MetricsFile(leaf.directory / "metrics.jsonl") as metrics:
        for standing in federate(fed, checkpoint):
            if standing.result is None:
                metrics.cut(standing.progress.round)
            else:
                metrics.add(as_dict(standing.result))
            if on_round is not None:
                on_round(leaf, standing)
    evaluation = outputs.evaluation(fed, features, standing)
    write_json(leaf.directory / "evaluation.json", evaluation)
    scores = outputs.final_scores(fed, standing.best)
    summary = outputs.summary(config, features, leaf, standing, scores, feature_seconds)
    summary["metrics"] = evaluation["metrics"]
    if config.train.personalize != "none":
        metadata = outputs.adapter_metadata(leaf, features)

        def keep(name: str, state: State) -> None:
            path = leaf.directory / "personal" / f"{name}.safetensors"
            write_tensors(path, state, metadata)

        method = config.train.personalize
        summary["personalization"] = personalize(fed, standing.best, method, keep)
    write_results(leaf, features, standing, summary)
    return summary


def write_results(
    leaf: Leaf, features: FeatureSet, standing: Standing, summary: dict[str, Any]
) -> None:
    """The files of a finished leaf: adapter, summary and report."""
    outputs.write_adapter(leaf, features, standing)
    write_json(leaf.directory / "summary.json", summary)
    write_html(leaf.directory)
