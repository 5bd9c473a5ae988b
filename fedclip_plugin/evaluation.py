"""Accuracy per client and target, zero-shot, and the choice of the best round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .algorithms.base import Algorithm, Client, Samples, Task
from .means import mean
from .update import State


def predict_labels(
    algorithm: Algorithm, state: State, samples: Samples, task: Task
) -> Tensor:
    """Predicted class (N,) int64; ties go to the first class."""
    step = algorithm.rows_at_once
    parts = [samples[i : i + step] for i in range(0, len(samples), step)]
    found = [
        algorithm.predict(state, algorithm.inputs(part, task), task).argmax(dim=1)
        for part in parts
    ]
    return torch.cat(found) if found else samples.y


def zero_shot_labels(samples: Samples, task: Task) -> Tensor:
    """What the frozen CLIP says alone: argmax_c normalize(x) . text_c, (N,) int64."""
    return (F.normalize(samples.x, dim=1) @ task.text.t()).argmax(dim=1)


def accuracy(predicted: Tensor, truth: Tensor) -> float | None:
    """Share of correct predictions; None for no rows."""
    if not len(truth):
        return None
    return float((predicted == truth).double().mean())


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> list[list[int]]:
    """Counts, rows = true class, columns = predicted class."""
    flat = torch.bincount(truth * classes + predicted, minlength=classes * classes)
    rows: list[list[int]] = flat.reshape(classes, classes).tolist()
    return rows


def score_clients(
    algorithm: Algorithm, state: State, clients: Sequence[Client], task: Task
) -> dict[str, dict[str, float | None]]:
    """Validation and test accuracy of every client: ``{name: {"val", "test"}}``."""
    scores: dict[str, dict[str, float | None]] = {}
    for c in clients:
        own = algorithm.client_state(state, c.name)
        scores[c.name] = {
            split: accuracy(predict_labels(algorithm, own, part, task), part.y)
            for split, part in (("val", c.val), ("test", c.test))
        }
    return scores


def score_target(
    algorithm: Algorithm, state: State, target: Samples | None, task: Task
) -> float | None:
    """Accuracy on the held-out domain; None where there is none."""
    if target is None:
        return None
    return mean(
        accuracy(predict_labels(algorithm, each, target, task), target.y)
        for each in algorithm.target_states(state)
    )


def score_zero_shot(
    clients: Sequence[Client], target: Samples | None, task: Task
) -> dict[str, object]:
    """Zero-shot accuracy: ``{"target", "clients": {name: acc}, "mean"}``."""
    own = {c.name: accuracy(zero_shot_labels(c.test, task), c.test.y) for c in clients}
    held_out = (
        accuracy(zero_shot_labels(target, task), target.y)
        if target is not None
        else None
    )
    return summary_scores(held_out, own)


def summary_scores(
    target: float | None, clients: Mapping[str, float | None]
) -> dict[str, object]:
    """Target, each client and the mean over all of them, kept apart."""
    return {
        "target": target,
        "clients": dict(clients),
        "mean": mean([target, *clients.values()]),
    }


def selection_score(scores: Mapping[str, Mapping[str, float | None]]) -> float:
    """Mean validation accuracy of the clients: the best round has the highest.

    Clients without validation rows do not count (authors' rule otherwise: strictly
    higher wins, so of equal rounds the first).
    """
    return mean([s["val"] for s in scores.values()]) or 0.0
