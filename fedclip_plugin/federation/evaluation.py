"""Accuracy per client and target, zero-shot, and the choice of the best round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algorithms.base import Algorithm, Client, Samples, Task
from ..algorithms.zeroshot import ZeroShot
from ..config.schema import TrainConfig
from ..stats import mean
from ..wire.update import State
from .build import Federation

Part = tuple[State, Samples]
"""Rows, and the state that predicts their classes."""


_ZERO_SHOT = ZeroShot()
SELECTION = "selection"  # of a client's scores


def predict_parts(
    algorithm: Algorithm, parts: Iterable[Part], task: Task
) -> Iterator[Tensor]:
    """Class scores (n, C) of the rows of many parts, in order, batch after batch.

    Neighbours with one and the same state share batches of up to ``rows_at_once``
    rows: ten thousand small clients cost what one large one does.
    """
    for state, rows in _batches(parts, algorithm.rows_at_once):
        yield algorithm.predict(state, algorithm.inputs(rows, task), task)


def _batches(parts: Iterable[Part], size: int) -> Iterator[Part]:
    held: list[Samples] = []
    count, last = 0, State()
    for state, part in parts:
        for rows in _pieces(part, size):
            if held and (state is not last or count + len(rows) > size):
                yield last, _joined(held)
                held, count = [], 0
            held.append(rows)
            count, last = count + len(rows), state
    if held:
        yield last, _joined(held)


def _pieces(part: Samples, size: int) -> list[Samples]:
    if 0 < len(part) <= size:
        return [part]
    return [part[i : i + size] for i in range(0, len(part), size)]


def _joined(parts: Sequence[Samples]) -> Samples:
    if len(parts) == 1:
        return parts[0]
    rows = [p.rows for p in parts if p.rows is not None]
    return Samples(
        torch.cat([p.x for p in parts]),
        torch.cat([p.y for p in parts]),
        torch.cat(rows) if len(rows) == len(parts) else None,
    )


def all_scores(algorithm: Algorithm, parts: Iterable[Part], task: Task) -> Tensor:
    """Class scores (N, C) float32 of the rows of many parts, before the softmax."""
    scores = list(predict_parts(algorithm, parts, task))
    return torch.cat(scores) if scores else task.text.new_zeros(0, task.text.shape[0])


def predict_scores(
    algorithm: Algorithm, state: State, samples: Samples, task: Task
) -> Tensor:
    """Class scores (N, C) float32, before the softmax."""
    return all_scores(algorithm, [(state, samples)], task)


def predict_labels(
    algorithm: Algorithm, state: State, samples: Samples, task: Task
) -> Tensor:
    """Predicted class (N,) int64; ties go to the first class."""
    return _all_labels(algorithm, [(state, samples)], task)


def _all_labels(algorithm: Algorithm, parts: Iterable[Part], task: Task) -> Tensor:
    """Predicted classes (N,) int64 of many parts; no (N, C) is ever whole."""
    labels = [s.argmax(dim=1) for s in predict_parts(algorithm, parts, task)]
    if not labels:
        return torch.empty(0, dtype=torch.int64, device=task.text.device)
    return torch.cat(labels)


def zero_shot_scores(samples: Samples, task: Task) -> Tensor:
    """What the frozen CLIP says alone: s normalize(x) . text_c, (N, C)."""
    return _ZERO_SHOT.predict({}, samples.x, task)


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


MANY, FEW = 100, 20  # training images of a class, over all clients
RANKED = 50_000_000  # scores N C beyond which no AUC is counted: it sorts them all


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


AT_ONCE = 1 << 22  # scores that are in float64 at the same time


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


def score_parts(
    algorithm: Algorithm, parts: Sequence[Part], task: Task
) -> list[float | None]:
    """Accuracy of every part, by its own state; None for a part without rows.

    The numbers are those of part after part, unless two classes tie within rounding.
    """
    if not parts:
        return []
    truth = torch.cat([part.y for _, part in parts])
    right = _all_labels(algorithm, parts, task) == truth
    sizes = torch.tensor([len(part) for _, part in parts])
    hits = F.pad(right.cumsum(dim=0), (1, 0)).cpu()  # (N + 1,)
    ends = sizes.cumsum(dim=0)
    pairs = zip((hits[ends] - hits[ends - sizes]).tolist(), sizes.tolist())
    return [hit / size if size else None for hit, size in pairs]


def score_clients(
    algorithm: Algorithm, state: State, clients: Sequence[Client], task: Task
) -> dict[str, dict[str, float | None]]:
    """Validation and test accuracy of every client: ``{name: {"val", "test"}}``.

    Where the best round is not chosen by accuracy, what it is chosen by is the client's
    ``selection``.
    """
    parts = []
    for c in clients:
        own = algorithm.client_state(state, c)
        parts += [(own, c.val), (own, c.test)]
    scores = score_parts(algorithm, parts, task)
    found: dict[str, dict[str, float | None]] = {
        c.name: {"val": val, "test": test}
        for c, val, test in zip(clients, scores[::2], scores[1::2])
    }
    if (by := task.train.select_by) != "accuracy":
        for c in clients:
            own = algorithm.client_state(state, c)
            found_scores = predict_scores(algorithm, own, c.val, task)
            found[c.name][SELECTION] = over_classes(by, found_scores, c.val.y)
    return found


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


def score_target(
    algorithm: Algorithm,
    state: State,
    target: Samples | None,
    task: Task,
    clients: Sequence[Client] = (),
) -> float | None:
    """Accuracy on the held-out domain; None where there is none."""
    if target is None:
        return None
    return mean(
        accuracy(predict_labels(algorithm, each, target, task), target.y)
        for each in algorithm.target_states(state, clients)
    )


def score_zero_shot(
    clients: Sequence[Client], target: Samples | None, task: Task
) -> dict[str, object]:
    """Zero-shot accuracy: ``{"target", "clients": {name: acc}, "mean"}``."""
    state: State = {}
    tests = score_parts(_ZERO_SHOT, [(state, c.test) for c in clients], task)
    held_out = score_target(_ZERO_SHOT, state, target, task)
    return summary_scores(held_out, {c.name: a for c, a in zip(clients, tests)})


def summary_scores(
    target: float | None, clients: Mapping[str, float | None]
) -> dict[str, object]:
    """Target, each client and the mean over all of them, kept apart."""
    return {
        "target": target,
        "clients": dict(clients),
        "mean": mean([target, *clients.values()]),
    }


def selection_score(
    scores: Mapping[str, Mapping[str, float | None]], by: str = "accuracy"
) -> float | None:
    """Mean over the clients' validation splits: the best round has the highest.

    ``by`` is ``--select-by``, of which clients measured their ``selection``.

    Clients without validation rows do not count, and None is what nobody knows
    (authors' rule otherwise: strictly higher wins, so of equal rounds the first).
    """
    key = "val" if by == "accuracy" else SELECTION
    return mean([s.get(key) for s in scores.values()])


def selection_notes(measured: Sequence[bool], train: TrainConfig) -> list[str]:
    """What a choice of the best round lacks; ``measured``: who has validation rows."""
    without = measured.count(False)
    if not without:
        return []
    asked = [f"--patience {train.patience}"] if train.patience is not None else []
    asked += [f"--personalize {train.personalize}"] * (train.personalize != "none")
    idle = f", and {' and '.join(asked)} to no effect" if asked else ""
    more = "; fewer --clients leave each of them more images"
    if without == len(measured):
        return [
            f"no client has a validation image: the last round is taken{idle}{more}"
        ]
    return [
        f"{without:,} of {len(measured):,} clients have no validation image: the best "
        f"round is chosen by the others{more}"
    ]


def score_rows(fed: Federation, state: State, rows: Samples) -> tuple[float, float]:
    """Mean cross-entropy of the class scores of ``rows``, and the accuracy.

    For hosts that print a loss of their own; NaN for no rows.
    """
    if not len(rows):
        return math.nan, math.nan
    scores = predict_scores(fed.algorithm, state, rows, fed.task)  # (N, C)
    right = float((scores.argmax(dim=1) == rows.y).double().mean())
    return float(F.cross_entropy(scores, rows.y)), right
