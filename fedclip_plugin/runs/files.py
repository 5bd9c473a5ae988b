"""What a finished leaf leaves on disk; the layout is told in docs/report.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from ..algorithms import Samples, get_algorithm
from ..config.schema import RunConfig, TrainConfig
from ..features.feature_set import FeatureSet
from ..federation.build import Federation
from ..federation.engine import Standing
from ..federation.evaluation import (
    all_scores,
    class_metrics,
    confusion,
    score_zero_shot,
    summary_scores,
)
from ..federation.rounds import score_state
from ..report.records import ROUND
from ..server import privacy
from ..storage.files import cannot_write, write_parts
from ..storage.tensors import write_tensors
from ..wire.update import State


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


class MetricsFile:
    """``metrics.jsonl``: a line a round, appended; cut back to a checkpoint's round.

    What was left out of a round also goes to ``quarantined.jsonl`` beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.quarantined = path.with_name("quarantined.jsonl")

    def __enter__(self) -> MetricsFile:
        self._file = _append_to(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._file.close()
        except OSError as error:  # the line that did not fit is tried once more
            if kind is None:
                raise cannot_write(self.path, error) from error

    def cut(self, rounds: int, wanted: int = 0) -> dict[str, Any] | None:
        """Keep the lines of rounds 1 to ``rounds``; returns that of round ``wanted``.

        A line holds every client's accuracies: one at a time is in memory.
        """
        self._file.close()
        found = _cut(self.path, rounds, wanted)
        self._file = _append_to(self.path)
        if self.quarantined.is_file():
            _cut(self.quarantined, rounds)
        return found

    def add(self, line: Mapping[str, Any]) -> None:
        """Append one round; in the file before its checkpoint is written."""
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            if line.get("left_out"):
                with self.quarantined.open("a", encoding="utf-8") as file:
                    for found in line["left_out"]:
                        file.write(json.dumps({"round": line["round"], **found}) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _append_to(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error


def _cut(path: Path, rounds: int, wanted: int = 0) -> dict[str, Any] | None:
    found: list[dict[str, Any]] = []

    def kept(lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue  # torn by a kill or a full disk: its round is run again
            if ROUND(entry) is None and entry["round"] <= rounds:
                found[:] = [entry] if entry["round"] == wanted else found
                yield line

    with path.open("rb") as lines:
        write_parts(path, kept(lines), durable=False)
    return found[0] if found else None


def write_adapter(leaf: Leaf, features: FeatureSet, standing: Standing) -> None:
    """``adapter.safetensors``: the best round's state, with what it belongs to."""
    metadata = {
        **adapter_metadata(leaf, features),
        "round": str(standing.progress.best_round),
    }
    write_tensors(leaf.directory / "adapter.safetensors", standing.best, metadata)


def adapter_metadata(leaf: Leaf, features: FeatureSet) -> dict[str, str]:
    """What an adapter file says of the CLIP, the classes and the run it belongs to."""
    prompt = features.prompt
    return {
        "format": "fedclip-adapter 1",
        "model": features.model,
        "pretrained": features.pretrained,
        "prompts": json.dumps([prompt] if isinstance(prompt, str) else prompt),
        "classes": json.dumps(features.classes),
        "logit_scale": repr(features.logit_scale),
        "features": features.key,
        "target": leaf.target or "",
        "seed": str(leaf.seed),
    }


def evaluation(
    fed: Federation, features: FeatureSet, standing: Standing
) -> dict[str, Any]:
    """``evaluation.json``: confusion matrices, class metrics and the clients' sizes.

    Matrices and metrics are of the target; without one, of all clients' test splits.
    """
    count = len(features.classes)
    judged = _judged(fed, standing.best)
    truth = torch.cat([part.y for _, part in judged])
    scores = {
        fed.algorithm.name: all_scores(fed.algorithm, judged, fed.task),
        "zero_shot": all_scores(get_algorithm("zeroshot"), judged, fed.task),
    }
    return {
        "classes": list(features.classes),
        "confusion": {
            name: confusion(found.argmax(dim=1), truth, count)
            for name, found in scores.items()
        },
        "metrics": {n: class_metrics(found, truth) for n, found in scores.items()},
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


def _judged(fed: Federation, state: State) -> list[tuple[State, Samples]]:
    """Which state judges which rows: the target's, or every client's test split."""
    if fed.target is not None:
        return [(each, fed.target) for each in fed.algorithm.target_states(state)]
    return [(fed.algorithm.client_state(state, c.name), c.test) for c in fed.clients]


def summary(
    config: RunConfig,
    features: FeatureSet,
    leaf: Leaf,
    standing: Standing,
    scores: Mapping[str, Any],
    feature_seconds: float,
) -> dict[str, Any]:
    """``summary.json`` of a leaf: the best round's accuracies and what it all cost.

    ``scores`` holds ``zero_shot`` and ``result``, see :func:`final_scores`.
    """
    progress = standing.progress
    trained = get_algorithm(config.algorithm).update_like(standing.best)
    spent = {}
    if progress.epsilon is not None:
        spent = {"privacy": privacy.summary(config.train, progress.epsilon)}
    return {
        "algorithm": config.algorithm,
        "variant": variant(config),
        "dataset": config.data.dataset,
        "model": features.model,
        "pretrained": features.pretrained,
        "seed": leaf.seed,
        "target": leaf.target,
        "rounds": progress.round,
        "best_round": progress.best_round,
        "zero_shot": scores["zero_shot"],
        "result": scores["result"],
        "communication": {
            "bytes_up": progress.bytes_up,
            "bytes_down": progress.bytes_down,
            "params": sum(v.numel() for v in trained.values()),
        },
        "seconds": {
            "features": feature_seconds,
            "train": progress.train_seconds,
            "evaluate": progress.evaluate_seconds,
        },
        "quarantined": progress.quarantined,
        "skipped_images": list(features.skipped),
        **spent,
    }


def variant(config: RunConfig) -> str:
    """What training was changed to from the algorithm's defaults, as options; or ""."""
    algorithm = get_algorithm(config.algorithm)
    usual = asdict(replace(TrainConfig(), **algorithm.defaults))
    found = {
        key: value
        for key, value in asdict(config.train).items()
        if key not in ("rounds", "personalize", "eval_every") and value != usual[key]
    }
    if config.data.partition != "domain":
        found |= {k: getattr(config.data, k) for k in ("partition", "clients")}
    if config.data.partition == "dirichlet":
        found["alpha"] = config.data.alpha
    if config.data.shots is not None:
        found["shots"] = config.data.shots
    return ", ".join(f"{k.replace('_', '-')} {v}" for k, v in found.items())


def final_scores(fed: Federation, state: State) -> dict[str, Any]:
    """Accuracies of zero-shot and of ``state``: target, clients and overall mean."""
    clients, target = score_state(fed, state)
    tests = {name: score["test"] for name, score in clients.items()}
    return {
        "zero_shot": score_zero_shot(fed.clients, fed.target, fed.task),
        "result": summary_scores(target, tests),
    }
