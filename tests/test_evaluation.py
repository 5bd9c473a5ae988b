from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from fedclip_plugin.algorithms import FedClip, Samples, Task
from fedclip_plugin.config import TrainConfig
from fedclip_plugin.evaluation import (
    accuracy,
    calibration_error,
    class_metrics,
    confusion,
    predict_labels,
    selection_score,
    summary_scores,
    zero_shot_labels,
)
from fedclip_plugin.means import mean


def make_task(classes: int = 3, dim: int = 8) -> Task:
    torch.manual_seed(0)
    text = F.normalize(torch.randn(classes, dim), dim=1)
    return Task(text, 100.0, TrainConfig(), seed=0)


def test_zero_shot_is_cosine_and_ignores_length():
    task = make_task()
    x = task.text * torch.tensor([[0.01], [5.0], [300.0]])
    assert zero_shot_labels(Samples(x, torch.arange(3)), task).tolist() == [0, 1, 2]


def test_predictions_do_not_depend_on_the_chunk(monkeypatch):
    task, algorithm = make_task(), FedClip()
    samples = Samples(torch.randn(50, 8), torch.zeros(50, dtype=torch.int64))
    state = algorithm.init(task)
    whole = predict_labels(algorithm, state, samples, task)
    monkeypatch.setattr(FedClip, "rows_at_once", 7)
    assert torch.equal(whole, predict_labels(algorithm, state, samples, task))


def test_accuracy_of_nothing_is_none():
    empty = torch.empty(0, dtype=torch.int64)
    assert accuracy(empty, empty) is None
    assert accuracy(torch.tensor([1, 2]), torch.tensor([1, 1])) == 0.5


def test_confusion_rows_are_the_truth():
    truth, predicted = torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2])
    assert confusion(predicted, truth, 3) == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_means_leave_out_what_is_missing():
    assert mean([None, 0.5, 1.0]) == pytest.approx(0.75)
    assert mean([None]) is None
    assert selection_score({"a": {"val": None}, "b": {"val": 0.4}}) == 0.4
    assert summary_scores(None, {"a": 0.5, "b": None}) == {
        "target": None,
        "clients": {"a": 0.5, "b": None},
        "mean": 0.5,
    }


def test_class_metrics_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 5, generator=generator)
    truth = torch.randint(0, 4, (200,), generator=generator)  # class 4 never occurs
    found = class_metrics(scores, truth)
    y, p = truth.numpy(), scores.argmax(dim=1).numpy()
    recall = [(p[y == c] == c).mean() for c in range(4)]
    assert found["balanced_accuracy"] == pytest.approx(sum(recall) / 4)
    assert found["macro_f1"] == pytest.approx(f1_score(y, p, average="macro"))
    assert class_metrics(scores[:0], truth[:0]) == {}


def test_calibration_error_of_known_confidences():
    # logits log(p / (1 - p)) against 0 give confidence p
    sure = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    scores = torch.stack([(sure / (1 - sure)).log(), torch.zeros(6)], dim=1)
    truth = torch.tensor([0, 0, 0, 1, 0, 1])
    want = (4 * abs(0.75 - 0.9) + 2 * abs(0.5 - 0.6)) / 6
    assert calibration_error(scores, truth) == pytest.approx(want, abs=1e-6)


def test_a_perfect_and_certain_classifier_is_calibrated():
    scores = 1000.0 * torch.eye(3)
    assert calibration_error(scores, torch.arange(3)) == 0.0
