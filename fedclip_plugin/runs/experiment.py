"""From a RunConfig to a finished output directory: features, runs, files.

One target and one seed leave their files in the directory itself; several leave
``<target>/seed-<n>/`` each and a summary above them (docs/report.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..algorithms import get_algorithm
from ..clip.whole import WholeClip, open_whole_clip
from ..config.schema import RunConfig, TrainConfig
from ..config.toml import to_toml
from ..data.classes import of_classes
from ..data.dataset import ImageDataset
from ..data.partition import NO_TARGET, resolve_targets
from ..data.progress import Progress as OnImages
from ..data.progress import silent
from ..errors import ConfigError
from ..features.encode import EncodeStats
from ..features.feature_set import FeatureSet
from ..features.obtain import obtain_features, open_data
from ..federation.alignment import check_alignment
from ..federation.build import build_federation, identity
from ..federation.checkpoint import Checkpoint
from ..federation.doubts import check_training
from ..federation.engine import Progress, RunState, federate, finished
from ..report.averages import aggregate
from ..report.records import SUMMARY
from ..report.write import write_html
from ..storage.files import file_names, write_bytes, write_json
from .directory import check_layout, drop_if_empty, hold
from .files import RunFiles, RunPlan
from .pictures import pictures
from .results import results
from .setup import Setup

_OURS = (NO_TARGET, "config.toml", "summary.json", "report.html")  # beside targets
OnRound = Callable[[RunPlan, RunState], None]
OnFeatures = Callable[[FeatureSet, EncodeStats], None]


def plan(config: RunConfig, features: FeatureSet, out: Path) -> list[RunPlan]:
    """The runs of a config: every target with every seed."""
    targets = resolve_targets(features.domains, config.data.targets)
    pairs = [(t, s) for t in targets for s in config.seeds]
    n = config.train.rounds
    if len(pairs) == 1:
        return [RunPlan(out, *pairs[0], n)]
    folders: dict[str | None, str] = {None: NO_TARGET}
    folders.update(file_names(features.domains, _OURS))
    return [RunPlan(out / folders[t] / f"seed-{s}", t, s, n) for t, s in pairs]


def run_in(
    out: Path,
    config: RunConfig,
    resume: bool = False,
    *,
    on_features: OnFeatures | None = None,
    on_round: OnRound | None = None,
    progress: OnImages = silent,
    data: ImageDataset | FeatureSet | None = None,
    log: Sequence[str] = (),
) -> dict[str, Any]:
    """Encode what is not encoded yet, then :func:`run_experiment`, in ``out`` alone.

    ``out`` is one that ``prepare_out`` has made; it is removed if nothing comes of it.
    ``data`` is what ``open_data`` gave, if it was called; ``log`` names trackers.
    """
    with hold(out):
        try:
            for target in config.data.targets or ("each in turn",):
                held = None if target.strip().lower() == NO_TARGET else target
                check_alignment(config, get_algorithm(config.algorithm), held)
            features, stats = obtain_features(config, progress, data)
            if on_features is not None:
                on_features(features, stats)
            return run_experiment(config, features, stats, out, resume, on_round, log)
        finally:
            drop_if_empty(out)


def run_experiment(
    config: RunConfig,
    features: FeatureSet,
    stats: EncodeStats,
    out: Path,
    resume: bool = False,
    on_round: OnRound | None = None,
    log: Sequence[str] = (),
) -> dict[str, Any]:
    """Run every target and seed and write ``out``; returns the (top) summary.

    With ``resume`` finished runs are kept and a broken one goes on where it stopped.
    """
    plans = plan(config, features, out)
    clip = whole_clip(config, features)
    if resume:
        check_layout(out, len(plans) > 1)
        for one in plans:  # before anything is written
            same = identity(features, config_of(one, config), one.target)
            Checkpoint(one.directory, same).accept()
    if len(plans) > 1:
        write_bytes(out / "config.toml", to_toml(config).encode())
    summaries = []
    seconds = stats.seconds
    for one in plans:
        summary = former_summary(one, config.train) if resume else None
        if summary is None:
            summary = run_one(
                config, features, one, seconds, resume, on_round, clip, log=log
            )
        seconds = 0.0  # the features were paid for once
        summaries.append(summary)
    if len(plans) == 1:
        return summaries[0]
    total = aggregate(summaries)
    write_json(out / "summary.json", total)
    write_html(out)
    return total


def whole_clip(config: RunConfig, features: FeatureSet) -> WholeClip | None:
    """The CLIP itself where the algorithm needs it, else nothing."""
    algorithm = get_algorithm(config.algorithm)
    if not algorithm.needs_clip:
        return None
    if config.data.features is not None:
        raise ConfigError(
            f"--alg {algorithm.name} {algorithm.why_clip}: it needs the images "
            "(--dataset, --root), not --features"
        )
    dataset = open_data(config)
    assert isinstance(dataset, ImageDataset)  # for there is no --features
    dataset = of_classes(dataset, features.classes)
    return open_whole_clip(config, dataset, features.classes, features.skipped)


def config_of(plan: RunPlan, config: RunConfig) -> RunConfig:
    """``config`` of one target and one seed."""
    data = replace(config.data, targets=(plan.target or NO_TARGET,))
    return replace(config, data=data, seeds=(plan.seed,))


def former_summary(plan: RunPlan, train: TrainConfig) -> dict[str, Any] | None:
    """The summary of a run that is over already."""
    try:
        summary: dict[str, Any] = json.loads(
            (plan.directory / "summary.json").read_text()
        )
        if SUMMARY(summary):  # of another hand: it is run again
            return None
        reached = Progress(summary["rounds"], summary["best_round"])
    except (OSError, ValueError, KeyError, RecursionError):
        return None
    over = reached.round <= train.rounds and finished(reached, train)
    return summary if over else None


def run_one(
    config: RunConfig,
    features: FeatureSet,
    plan: RunPlan,
    feature_seconds: float,
    resume: bool,
    on_round: OnRound | None = None,
    clip: WholeClip | None = None,
    *,
    log: Sequence[str] = (),
    page: bool = True,
) -> dict[str, Any]:
    """One target and one seed, from its checkpoint if ``resume``; writes all files."""
    config = config_of(plan, config)
    fed = build_federation(features, config, plan.target, plan.seed, clip)
    check_training(fed)
    setup = Setup(config, features, fed, plan.target)
    with RunFiles(plan.directory, setup, log=log, page=page) as files:
        for now in federate(fed, files.start(resume)):
            files.add(now)
            if on_round is not None:
                on_round(plan, now)
        end = results(setup, now, files.keep_personal, feature_seconds)
        return files.finish(now, end, pictures(setup, now.best))
