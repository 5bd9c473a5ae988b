from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from fedclip_plugin.federation.metrics import (
    accuracy,
    calibration_error,
    class_metrics,
    confusion,
)


def test_accuracy_of_nothing_is_none():
    empty = torch.empty(0, dtype=torch.int64)
    assert accuracy(empty, empty) is None
    assert accuracy(torch.tensor([1, 2]), torch.tensor([1, 1])) == 0.5


def test_confusion_rows_are_the_truth():
    truth, predicted = torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2])
    assert confusion(predicted, truth, 3) == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


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


def test_groups_by_training_images_and_rankings():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(300, 4, generator=generator)
    truth = torch.randint(0, 4, (300,), generator=generator)
    trained = torch.tensor([500, 101, 100, 19])
    found = class_metrics(scores, truth, trained)
    y, p = truth.numpy(), scores.argmax(dim=1).numpy()
    recall = [(p[y == c] == c).mean() for c in range(4)]
    assert found["many"] == pytest.approx((recall[0] + recall[1]) / 2)
    assert found["medium"] == pytest.approx(recall[2])
    assert found["few"] == pytest.approx(recall[3])
    assert found["sensitivity"] == pytest.approx(found["balanced_accuracy"])
    specificity = [(p[y != c] != c).mean() for c in range(4)]
    assert found["specificity"] == pytest.approx(sum(specificity) / 4)
    chance = scores.double().softmax(dim=1).numpy()
    areas = [
        # the share of pairs in the right order (Mann and Whitney)
        (chance[y == c, c][:, None] > chance[y != c, c]).mean()
        for c in range(4)
    ]
    assert found["auc"] == pytest.approx(sum(areas) / 4)
    assert "many" not in class_metrics(scores, truth, torch.full((4,), 500))


def test_equal_chances_count_half():
    truth = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    scores = torch.zeros(7, 2)
    scores[:, 1] = torch.tensor([0.0, 1, 2, 1, 1, 2, 3])
    wanted = roc_auc_score(truth.numpy(), scores[:, 1].numpy())
    assert class_metrics(scores, truth)["auc"] == pytest.approx(wanted)


def test_of_two_classes_the_second_is_the_positive_one():
    truth = torch.tensor([0, 0, 0, 1, 1])
    scores = torch.tensor([[2.0, 0], [2, 0], [0, 2], [0, 3], [3, 0]])
    found = class_metrics(scores, truth)
    assert found["sensitivity"] == 0.5
    assert found["specificity"] == pytest.approx(2 / 3)
    alone = class_metrics(scores[:3], truth[:3])
    assert "auc" not in alone
    assert "sensitivity" not in alone


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
