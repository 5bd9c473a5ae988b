"""From a RunConfig to a finished output directory: features, runs, files.

One target and one seed leave their files in the directory itself; several leave
``<target>/seed-<n>/`` each and a summary above them (docs/report.md).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import report
from .algorithms import Samples
from .cache import EncodeStats, EncodingJob, Progress, encode_once, silent
from .progress import Checkpoint
from .config import RunConfig, to_toml
from .data import load_dataset
from .encoder import EncoderSpec, FrozenClip, fingerprint
from .errors import RunError
from .evaluation import (
    accuracy,
    confusion,
    predict_labels,
    score_clients,
    score_zero_shot,
    summary_scores,
    zero_shot_labels,
)
from .features import FeatureSet, load_features
from .federation import (
    Federation,
    Standing,
    as_dict,
    build_federation,
    federate,
    identity,
)
from .partition import resolve_targets
from .storage import write_bytes, write_json, write_tensors
from .weights import cache_dir

OnRound = Callable[["Leaf", Standing], None]


@dataclass(frozen=True)
class Leaf:
    """One target and one seed, and the directory of its files."""

    directory: Path
    target: str | None
    seed: int
    rounds: int

    @property
    def label(self) -> str:
        """Short name for progress lines."""
        held_out = f"{self.target} held out" if self.target else "no held-out domain"
        return f"{held_out}, seed {self.seed}"


# -------------------------------------------------------------------------- features


def obtain_features(
    config: RunConfig, progress: Progress = silent
) -> tuple[FeatureSet, EncodeStats]:
    """The features of a run: from ``data.features``, else encoded once and cached."""
    if config.data.features is not None:
        start = time.perf_counter()
        features = load_features(config.data.features)
        count = sum(len(v) for v in features.label.values())
        return features, EncodeStats(count, 0, time.perf_counter() - start)
    spec = EncoderSpec.from_config(config)
    dataset = load_dataset(config.data.dataset, config.data.root)
    device = "cuda" if FrozenClip.resolve_device(spec.device).type == "cuda" else "cpu"
    key = f"{fingerprint(spec)}|{spec.precision}|{device}"
    job = EncodingJob(
        dataset=dataset,
        model=config.model_name,
        pretrained=Path(config.pretrained).name,
        prompts=config.data.prompts,
        encoder_key=hashlib.sha256(key.encode()).hexdigest(),
        load_encoder=lambda: FrozenClip.load(spec),
        on_bad_image=config.data.on_bad_image,
    )
    return encode_once(job, cache_dir(), progress)


# ----------------------------------------------------------------------- directories


def prepare_out(out: Path | None, name: str, resume: bool) -> Path:
    """The output directory, made and proved writable.

    Without ``out``: ``runs/<name>``, numbered so that no earlier run is touched; with
    ``resume`` the newest of them.  An explicit ``out`` that holds a run is moved aside
    to ``<out>.previous-<n>``: nothing is lost.  Raises RunError for a directory that
    holds something else, or where nothing can be written.
    """
    if out is None:
        out = _default_out(Path("runs") / name, resume)
    elif not resume:
        _move_aside(out)
    if resume and not (out / "config.toml").is_file():
        raise RunError(f"--resume: {out} holds no run; start one without --resume")
    probe = out / ".writable"
    write_bytes(probe, b"", durable=False)
    probe.unlink()
    return out


def _default_out(base: Path, resume: bool) -> Path:
    taken = [p for p in (base, *sorted(base.parent.glob(f"{base.name}-*"))) if p.exists()]
    if resume:
        runs = [p for p in taken if (p / "config.toml").is_file()]
        return max(runs, key=lambda p: (p / "config.toml").stat().st_mtime, default=base)
    number = 2
    path = base
    while path.exists():
        path = base.with_name(f"{base.name}-{number}")
        number += 1
    return path


def _move_aside(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise RunError(f"--out {out} is a file; choose a directory")
    if not any(out.iterdir()):
        return
    if not (out / "config.toml").is_file():
        raise RunError(
            f"--out {out} holds files that are no fedclip run; choose another directory"
        )
    number = 1
    while (aside := out.with_name(f"{out.name}.previous-{number}")).exists():
        number += 1
    out.rename(aside)


def plan(config: RunConfig, features: FeatureSet, out: Path) -> list[Leaf]:
    """The runs of a config: every target with every seed."""
    targets = resolve_targets(features.domains, config.data.targets)
    pairs = [(t, s) for t in targets for s in config.seeds]
    rounds = config.train.rounds
    if len(pairs) == 1:
        return [Leaf(out, *pairs[0], rounds)]
    return [Leaf(out / (t or "none") / f"seed-{s}", t, s, rounds) for t, s in pairs]


# ------------------------------------------------------------------------------ runs


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
    write_bytes(out / "config.toml", to_toml(config).encode())
    summaries = []
    seconds = stats.seconds
    for leaf in leaves:
        summary = _finished(leaf) if resume else None
        if summary is None:
            summary = run_leaf(config, features, leaf, seconds, resume, on_round)
        seconds = 0.0  # the features were paid for once
        summaries.append(summary)
    if len(leaves) == 1:
        return summaries[0]
    total = report.aggregate(summaries)
    write_json(out / "summary.json", total)
    report.write_html(out)
    return total


def _finished(leaf: Leaf) -> dict[str, Any] | None:
    try:
        summary: dict[str, Any] = json.loads((leaf.directory / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return summary if summary.get("rounds") == leaf.rounds else None


def run_leaf(
    config: RunConfig,
    features: FeatureSet,
    leaf: Leaf,
    feature_seconds: float,
    resume: bool,
    on_round: OnRound | None = None,
) -> dict[str, Any]:
    """One target and one seed, from its checkpoint if ``resume``; writes all files."""
    data = replace(config.data, targets=(leaf.target or "none",))
    config = replace(config, data=data, seeds=(leaf.seed,))
    fed = build_federation(features, config, leaf.target, leaf.seed)
    checkpoint = Checkpoint(leaf.directory, identity(features, config, leaf.target))
    if not resume:
        checkpoint.path.unlink(missing_ok=True)
    write_bytes(leaf.directory / "config.toml", to_toml(config).encode())
    with MetricsFile(leaf.directory / "metrics.jsonl") as metrics:
        for standing in federate(fed, checkpoint):
            if standing.result is None:
                metrics.cut(standing.progress.round)
            else:
                metrics.add(as_dict(standing.result))
            if on_round is not None:
                on_round(leaf, standing)
    _write_adapter(leaf, features, standing)
    write_json(leaf.directory / "evaluation.json", _evaluation(fed, features, standing))
    summary = _summary(config, features, fed, leaf, standing, feature_seconds)
    write_json(leaf.directory / "summary.json", summary)
    report.write_html(leaf.directory)
    return summary


class MetricsFile:
    """``metrics.jsonl``: a line a round, appended; cut back to a checkpoint's round."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> MetricsFile:
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def cut(self, rounds: int) -> None:
        """Keep the lines of rounds 1 to ``rounds``."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        self._file.close()
        write_bytes(self.path, "".join(lines[:rounds]).encode(), durable=False)
        self._file = self.path.open("a", encoding="utf-8")

    def add(self, line: Mapping[str, object]) -> None:
        """Append one round; in the file before its checkpoint is written."""
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()


# ----------------------------------------------------------------------------- files


def _write_adapter(leaf: Leaf, features: FeatureSet, standing: Standing) -> None:
    prompt = features.prompt
    metadata = {
        "format": "fedclip-adapter 1",
        "model": features.model,
        "pretrained": features.pretrained,
        "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt),
        "classes": json.dumps(features.classes),
        "logit_scale": repr(features.logit_scale),
        "features": features.key,
        "target": leaf.target or "",
        "seed": str(leaf.seed),
        "round": str(standing.progress.best_round),
    }
    write_tensors(leaf.directory / "adapter.safetensors", standing.best, metadata)


def _evaluation(
    fed: Federation, features: FeatureSet, standing: Standing
) -> dict[str, Any]:
    scored = fed.target or Samples(
        torch.cat([c.test.x for c in fed.clients]),
        torch.cat([c.test.y for c in fed.clients]),
    )
    count = len(features.classes)
    ours = predict_labels(fed.algorithm, standing.best, scored, fed.task)
    zero_shot = zero_shot_labels(scored, fed.task)
    return {
        "classes": list(features.classes),
        "confusion": {
            fed.algorithm.name: confusion(ours, scored.y, count),
            "zero_shot": confusion(zero_shot, scored.y, count),
        },
        "clients": {
            c.name: {
                "train": len(c.train),
                "val": len(c.val),
                "test": len(c.test),
                "train_per_class": torch.bincount(c.train.y, minlength=count).tolist(),
            }
            for c in fed.clients
        },
    }


def _summary(
    config: RunConfig,
    features: FeatureSet,
    fed: Federation,
    leaf: Leaf,
    standing: Standing,
    feature_seconds: float,
) -> dict[str, Any]:
    progress = standing.progress
    scores = score_clients(fed.algorithm, standing.best, fed.clients, fed.task)
    target = None
    if fed.target is not None:
        ours = predict_labels(fed.algorithm, standing.best, fed.target, fed.task)
        target = accuracy(ours, fed.target.y)
    return {
        "algorithm": fed.algorithm.name,
        "dataset": config.data.dataset,
        "model": features.model,
        "pretrained": features.pretrained,
        "seed": leaf.seed,
        "target": leaf.target,
        "rounds": progress.round,
        "best_round": progress.best_round,
        "zero_shot": score_zero_shot(fed.clients, fed.target, fed.task),
        "result": summary_scores(target, {n: s["test"] for n, s in scores.items()}),
        "communication": {
            "bytes_up": progress.bytes_up,
            "bytes_down": progress.bytes_down,
            "params": sum(v.numel() for v in standing.best.values()),
        },
        "seconds": {
            "features": feature_seconds,
            "train": progress.train_seconds,
            "evaluate": progress.evaluate_seconds,
        },
        "quarantined": progress.quarantined,
        "skipped_images": list(features.skipped),
    }
