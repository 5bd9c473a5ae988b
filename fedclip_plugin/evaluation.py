"""Accuracy per client and target, zero-shot, and the choice of the best round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .algorithms.base import Algorithm, Client, Samples, Task
from .means import mean
from .update import State


def predict_scores(
    algorithm: Algorithm, state: State, samples: Samples, task: Task
) -> Tensor:
    """Class scores (N, C) float32, before the softmax."""
    step = algorithm.rows_at_once
    parts = [samples[i : i + step] for i in range(0, len(samples), step)]
    found = [
        algorithm.predict(state, algorithm.inputs(part, task), task) for part in parts
    ]
    return torch.cat(found) if found else task.text.new_zeros(0, task.text.shape[0])


def predict_labels(
    algorithm: Algorithm, state: State, samples: Samples, task: Task
) -> Tensor:
    """Predicted class (N,) int64; ties go to the first class."""
    return predict_scores(algorithm, state, samples, task).argmax(dim=1)


def zero_shot_scores(samples: Samples, task: Task) -> Tensor:
    """What the frozen CLIP says alone: s normalize(x) . text_c, (N, C)."""
    return task.logit_scale * F.normalize(samples.x, dim=1) @ task.text.t()


def zero_shot_labels(samples: Samples, task: Task) -> Tensor:
    """The class that the frozen CLIP says, (N,) int64."""
    return zero_shot_scores(samples, task).argmax(dim=1)


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


def class_metrics(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """What accuracy hides: ``scores`` (N, C) and ``truth`` (N,), none for no rows.

    Balanced accuracy (mean recall of the classes that occur), macro F1 (over the
    classes that occur or are predicted) and the expected calibration error in 15 bins
    (Guo et al. 2017, arXiv 1706.04599); fractions.
    """
    if not len(truth):
        return {}
    from sklearn.metrics import f1_score, recall_score

    y, predicted = truth.cpu().numpy(), scores.argmax(dim=1).cpu().numpy()
    recall = recall_score(y, predicted, average=None, labels=sorted(set(y.tolist())))
    return {
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": float(f1_score(y, predicted, average="macro")),
        "calibration_error": calibration_error(scores, truth),
    }


def calibration_error(scores: Tensor, truth: Tensor, bins: int = 15) -> float:
    """Mean |accuracy - confidence| over bins of equal width, weighed by their rows."""
    confidence, predicted = scores.double().softmax(dim=1).max(dim=1)
    correct = (predicted == truth).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (lo, hi] each
    gap = torch.zeros(bins, dtype=torch.float64, device=scores.device)
    gap.index_add_(0, place, correct - confidence)
    return float(gap.abs().sum() / len(truth))


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
