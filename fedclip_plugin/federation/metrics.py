"""Accuracy, confusion and what accuracy hides, of class scores and the true classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MANY, FEW = 100, 20  # training images of a class, over all clients
RANKED = 50_000_000  # scores N C beyond which no AUC is counted: it sorts them all
AT_ONCE = 1 << 22  # scores that are in float64 at the same time


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


def class_metrics(
    scores: Tensor, truth: Tensor, trained: Tensor | None = None
) -> dict[str, float]:
    """What accuracy hides: ``scores`` (N, C) and ``truth`` (N,), none for no rows.

    Balanced accuracy (mean recall of the classes that occur), macro F1 (over the
    classes that occur or are predicted) and the expected calibration error in 15 bins
    (Guo et al. 2017, arXiv 1706.04599); fractions.  Those of :func:`ranking`; and with
    ``trained`` (C,), the training images of each class, the mean recall of the classes
    with more than 100 (``many``), of those with fewer than 20 (``few``) and of those
    between (``medium``; Liu et al. 2019, arXiv 1904.05160), unless all are of one kind.
    """
    if not len(truth):
        return {}
    rows, said, right = _counts(scores, truth)
    present = rows > 0
    recall = right[present] / rows[present]
    groups: dict[str, list[float]] = {}
    if trained is not None:
        for count, share in zip(trained.cpu()[present].tolist(), recall.tolist()):
            name = "many" if count > MANY else "few" if count < FEW else "medium"
            groups.setdefault(name, []).append(share)
    return {
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": macro_f1(rows, said, right),
        "calibration_error": calibration_error(scores, truth),
        **ranking(scores, truth),
        **{n: sum(own) / len(own) for n, own in groups.items() if len(groups) > 1},
    }


def ranking(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """AUC, sensitivity and specificity, as fractions; ``scores`` (N, C).

    Of two classes, the second is the positive one; of more, each against the rest, the
    mean over the classes that occur.  No ``auc`` where there is but one class.
    """
    count = scores.shape[1]
    rows, said, right = _counts(scores, truth)
    others = len(truth) - rows  # (C,), and those that are not said to be of the class
    rejected = others - (said - right)
    ranked = torch.zeros(count, dtype=torch.bool)
    ranked[1 if count == 2 else rows > 0] = True
    positive, both = ranked & (rows > 0), ranked & (others > 0)
    metrics = {
        "sensitivity": right[positive] / rows[positive],
        "specificity": rejected[both] / others[both],
    }
    if scores.numel() <= RANKED:
        total = _by_rows(scores, lambda part: part.logsumexp(dim=1))  # (N,)
        labels = (positive & both).nonzero()[:, 0].tolist()
        areas = [
            _auc((scores[:, label].double() - total).exp(), truth == label)
            for label in labels
        ]
        metrics["auc"] = torch.tensor(areas, dtype=torch.float64)
    return {name: float(own.mean()) for name, own in metrics.items() if len(own)}


def _by_rows(scores: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``of`` makes of rows (n, C) float64, (N,) in all; some rows at a time."""
    if not len(scores):
        return scores.new_zeros(0, dtype=torch.float64)
    parts = scores.split(max(1, AT_ONCE // scores.shape[1]))
    return torch.cat([of(part.double()) for part in parts])


def _counts(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of each class, those said to be of it, and those rightly; (C,) float64."""
    count, predicted = scores.shape[1], scores.argmax(dim=1)
    of = (truth, predicted, truth[predicted == truth])
    rows, said, right = (torch.bincount(y.cpu(), minlength=count).double() for y in of)
    return rows, said, right


def _auc(chance: Tensor, positive: Tensor) -> float:
    """Share of the pairs of a ``positive`` row and another in which its ``chance`` (N,)
    is the greater, of equals half: Mann and Whitney's U by ranks."""
    _, place, ties = chance.unique(return_inverse=True, return_counts=True)
    ranks = ties.cumsum(0) - (ties - 1) / 2  # of equals the mean, from 1
    count = int(positive.sum())
    above = float(ranks[place][positive].sum()) - count * (count + 1) / 2
    return above / (count * (len(chance) - count))


def calibration_error(scores: Tensor, truth: Tensor, bins: int = 15) -> float:
    """Mean |accuracy - confidence| over bins of equal width, weighed by their rows."""
    confidence = _by_rows(scores, lambda part: part.softmax(dim=1).amax(dim=1))
    predicted = scores.argmax(dim=1)
    correct = (predicted == truth).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (lo, hi] each
    gap = torch.zeros(bins, dtype=torch.float64, device=scores.device)
    gap.index_add_(0, place, correct - confidence)
    return float(gap.abs().sum() / len(truth))


def over_classes(name: str, scores: Tensor, truth: Tensor) -> float | None:
    """``balanced-accuracy`` or ``macro-f1`` of scores (N, C), as :func:`class_metrics`.

    None for no rows.
    """
    if not len(truth):
        return None
    rows, said, right = _counts(scores, truth)
    if name == "macro-f1":
        return macro_f1(rows, said, right)
    present = rows > 0
    return float((right[present] / rows[present]).mean())


def macro_f1(rows: Tensor, said: Tensor, right: Tensor) -> float:
    """Over the classes that occur or are predicted; counts (C,) of each class."""
    named = rows + said > 0
    return float((2 * right[named] / (rows + said)[named]).mean())
