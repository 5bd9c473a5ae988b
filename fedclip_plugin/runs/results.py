"""What a finished run has to tell: its summary and its evaluation, without files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..algorithms import Samples, get_algorithm, with_values
from ..config.inputs import PARTITIONS
from ..config.schema import RunConfig
from ..data.classes import asked_halves
from ..data.dataset import canonical_name
from ..features.feature_set import FeatureSet
from ..federation.build import Federation
from ..federation.engine import RunState, final
from ..federation.evaluation import (
    all_scores,
    score_zero_shot,
    selection_notes,
    selection_score,
    summary_scores,
)
from ..federation.metrics import class_metrics, confusion
from ..federation.personalization import personalize
from ..federation.rounds import score_state
from ..federation.unseen import ROWS, base_to_novel, cannot, of_clients
from ..report.records import MAX_CLASSES
from ..server import privacy
from ..wire.update import State
from .setup import Setup


@dataclass(frozen=True)
class Results:
    """``summary.json``, and ``evaluation.json`` where there are data to test on."""

    summary: dict[str, Any]
    evaluation: dict[str, Any]


def results(
    setup: Setup,
    now: RunState,
    keep: Callable[[str, State], None],
    feature_seconds: float = 0.0,
    zero_shot: dict[str, Any] | None = None,
) -> Results:
    """What the best round gives, and what it all cost.

    Without clients' data here, ``zero_shot`` and the best round's scores are what the
    clients measured.  ``keep`` gets the adapter of each client that personalization
    gives one.
    """
    fed = setup.fed.with_kept(now.best_kept)
    if not fed.clients:
        tests = {name: score["test"] for name, score in now.best_scores.items()}
        scores = {
            "zero_shot": _beside(fed, zero_shot),
            "result": summary_scores(score_state(fed, now.best)[1], tests),
        }
        summary = summarise(setup, now, scores, feature_seconds)
        before = (zero_shot or {}).get("clients", {})
        columns = of_clients(fed, setup.features, now.best, now.best_scores, before)
        if columns:
            summary["base_to_novel"] = columns
        return Results(summary, {})
    evaluation = evaluate(fed, setup.features.classes, now.best)
    summary = summarise(setup, now, final_scores(fed, now.best), feature_seconds)
    summary["metrics"] = evaluation["metrics"]
    summary["final"] = summary["result"]
    if now.progress.best_round != now.progress.round:
        last, own = final(fed, now)
        summary["final"] = result_of(setup.fed.with_kept(own), last)
    if setup.features.unseen is not None:
        summary["base_to_novel"] = base_to_novel(
            fed, setup.features, setup.target, now.best
        )
    method = setup.config.train.personalize
    if method != "none":
        summary["personalization"] = personalize(fed, now.best, method, keep)
    return Results(summary, evaluation)


def _beside(fed: Federation, clients: dict[str, Any] | None) -> dict[str, Any] | None:
    """What clients measured of zero-shot, with the server's held-out domain."""
    if clients is None or fed.target is None:
        return clients
    target: Any = score_zero_shot((), fed.target, fed.task)["target"]
    return summary_scores(target, clients["clients"])


def evaluate(fed: Federation, classes: tuple[str, ...], state: State) -> dict[str, Any]:
    """``evaluation.json``: confusion matrices, class metrics and the clients' sizes.

    Matrices and metrics are of the target; without one, of all clients' test splits.
    Beyond ``MAX_CLASSES`` classes there are no matrices.
    """
    count, parts = len(classes), test_parts(fed, state)
    shown = count <= MAX_CLASSES
    truth = torch.cat([part.y for _, part in parts])
    trained = _training_counts(fed, count)
    matrices, metrics = {}, {}
    for name in (fed.algorithm.name, "zero_shot"):
        zero_shot = name == "zero_shot"
        algorithm = get_algorithm("zeroshot") if zero_shot else fed.algorithm
        scores = all_scores(algorithm, parts, fed.task)  # (N, C), one at a time
        metrics[name] = class_metrics(scores, truth, trained)
        if shown:
            matrices[name] = confusion(scores.argmax(dim=1), truth, count)
        del scores
    return {
        "classes": list(classes),
        "confusion": matrices,
        "metrics": metrics,
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


def _training_counts(fed: Federation, classes: int) -> torch.Tensor:
    """(C,) training images of each class, over all clients."""
    counts = [torch.bincount(c.train.y, minlength=classes) for c in fed.clients]
    return torch.stack(counts).sum(dim=0)


def test_parts(fed: Federation, state: State) -> list[tuple[State, Samples]]:
    """The rows to test on with the states that predict them: target's, or clients'."""
    if fed.target is None:
        return [(fed.algorithm.client_state(state, c), c.test) for c in fed.clients]
    states = fed.algorithm.target_states(state, fed.clients)
    return [(each, fed.target) for each in states]


def summarise(
    setup: Setup, now: RunState, scores: dict[str, Any], feature_seconds: float
) -> dict[str, Any]:
    """``summary.json``; ``scores`` holds ``zero_shot`` and ``result``."""
    config, features, progress = setup.config, setup.features, now.progress
    trained = setup.fed.algorithm.update_like(now.best)
    select_by = config.train.select_by
    spent: dict[str, Any] = {}
    if progress.epsilon is not None:
        told = privacy.summary if config.privacy.private else privacy.summary_of_rows
        spent = {"privacy": told(config.privacy, progress.epsilon)}
    return {
        "algorithm": config.algorithm,
        "variant": variant(config),
        "settings": settings(features, config),
        "sources": sources(features, config),
        "dataset": canonical_name(config.data.dataset),
        "model": features.model,
        "pretrained": features.pretrained,
        "encoder": dict(features.encoder),
        "seed": setup.seed,
        "target": setup.target,
        "transductive": setup.transductive,
        "rounds": progress.round,
        "best_round": progress.best_round,
        "validation": selection_score(now.best_scores, select_by),
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
        "notes": [*setup.notes, *_notes(setup, now)],
        **spent,
    }


_OF_SHARED = (
    "what clients keep for themselves is not known to this process: all accuracies "
    "here are of the shared state alone"
)
_OF_CLIENTS = (
    "clients measured themselves, each with what it keeps; adapter.safetensors holds "
    "the shared state alone"
)


def _notes(setup: Setup, now: RunState) -> list[str]:
    """What the run itself lacks."""
    notes = selection_notes(_measured(setup, now), setup.config.train)
    algorithm = setup.fed.algorithm
    if algorithm.personal and algorithm.communicates and not now.best_kept:
        notes.append(_OF_SHARED if setup.fed.clients else _OF_CLIENTS)
    notes += _one_round_notes(setup)
    notes += algorithm.remarks(now.state, setup.fed.clients, setup.fed.task)
    notes += _novel_notes(setup, now)
    if (count := len(setup.features.classes)) > MAX_CLASSES:
        notes.append(
            f"{count:,} classes: confusion matrices are left out beyond {MAX_CLASSES:,}"
        )
    return notes


def _one_round_notes(setup: Setup) -> list[str]:
    """Whose rows no model has that is made of one round's clients alone."""
    config, algorithm = setup.config, setup.fed.algorithm
    anew = algorithm.communicates and not algorithm.moves
    share = config.server.participation
    if not anew or share >= 1 or config.train.evaluate is not None:
        return []
    return [
        f"--participation {share:g}: --alg {algorithm.name} makes its model of the "
        "clients of one round; what the others hold is not in it"
    ]


def _novel_notes(setup: Setup, now: RunState) -> list[str]:
    """Why there is no accuracy on novel classes where they were asked for."""
    if not asked_halves(setup.config.data.classes):
        return []
    measured = any(scores.get(ROWS) for scores in now.best_scores.values())
    if not (setup.fed.clients or measured):
        return ["novel classes are not scored: no client has measured them"]
    why = cannot(setup.fed.algorithm)
    return [why] if why else []


def _measured(setup: Setup, now: RunState) -> list[bool]:
    """Which clients have validation rows, as far as that is known here."""
    if setup.config.privacy.private or not setup.fed.algorithm.update_like(now.best):
        return []  # the last round in any case; every round the same
    if setup.fed.clients:
        return [len(client.val) > 0 for client in setup.fed.clients]
    return [score["val"] is not None for score in now.best_scores.values()]


_NOT_OF_TRAINING = ("rounds", "personalize", "eval_every", "transductive")


def variant(config: RunConfig) -> str:
    """What training was changed to from the algorithm's defaults, as options; or ""."""
    options = {k: v for k, v in changed(config).items() if k not in _NOT_OF_TRAINING}
    return ", ".join(f"{k.replace('_', '-')} {v}" for k, v in options.items())


def changed(config: RunConfig) -> dict[str, Any]:
    """The fields that are not the algorithm's defaults, and how clients are made."""
    algorithm = get_algorithm(config.algorithm)
    usual = with_values(RunConfig(config.algorithm), algorithm.defaults)
    mine = with_values(config, {})
    fields = {
        key: value
        for name in ("params", "train", "server", "wire", "privacy")
        for key, value in asdict(getattr(mine, name)).items()
        if value != getattr(getattr(usual, name), key)
    }
    data = config.data
    if data.partition != "domain":
        counts = {
            "clients": data.clients,
            "clients_per_domain": data.clients_per_domain,
        }
        fields["partition"] = data.partition
        fields |= {key: count for key, count in counts.items() if count is not None}
    fields |= {key: getattr(data, key) for key in PARTITIONS[data.partition]}
    if data.shots is not None:
        fields["shots"] = data.shots
    if data.classes:
        fields["classes"] = " ".join(data.classes)
    if data.split is not None:
        fields["split"] = data.split
    if algorithm.transductive and data.transductive:
        fields["transductive"] = True
    return fields


def settings(features: FeatureSet, config: RunConfig) -> dict[str, str]:
    """All that changes a run's numbers but target and seed; equal ones are averaged.

    Where files lie and what computes is not in it.
    """
    own = {k.replace("_", "-"): str(v) for k, v in changed(config).items()}
    return {**own, "rounds": str(config.train.rounds), "features": features.key}


def sources(features: FeatureSet, config: RunConfig) -> dict[str, str]:
    """What the features are of, to tell runs apart whose features differ."""
    prompt = features.prompt
    origins = {
        "prompt": prompt if isinstance(prompt, str) else " | ".join(prompt),
        "pretrained": config.pretrained,
        "model-config": config.model.config_dir,
        "precision": config.model.precision,
        "root": config.data.root,
        "features": config.data.features,
    }
    return {name: str(value) for name, value in origins.items() if value is not None}


def final_scores(fed: Federation, state: State) -> dict[str, Any]:
    """Accuracies of zero-shot and of ``state``: target, clients and overall mean."""
    return {
        "zero_shot": score_zero_shot(fed.clients, fed.target, fed.task),
        "result": result_of(fed, state),
    }


def result_of(fed: Federation, state: State) -> dict[str, Any]:
    """Accuracies of ``state``: target, clients and overall mean."""
    clients, target = score_state(fed, state)
    tests = {name: score["test"] for name, score in clients.items()}
    return summary_scores(target, tests)
