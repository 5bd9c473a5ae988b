"""Accuracy per client and target, zero-shot, and the choice of the best round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algorithms.base import Algorithm, Client, Samples, Task
from ..algorithms.zeroshot import ZeroShot
from ..config.schema import TrainConfig
from ..stats import mean
from ..wire.update import State
from .build import Federation
from .metrics import accuracy, over_classes

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
