from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, roc_auc_score

from fedclip_plugin.algorithms import (
    Client,
    FedClip,
    Samples,
    Task,
    get_algorithm,
    with_values,
)
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.federation.evaluation import (
    accuracy,
    all_scores,
    calibration_error,
    class_metrics,
    confusion,
    predict_labels,
    predict_scores,
    score_clients,
    score_parts,
    score_zero_shot,
    selection_score,
    summary_scores,
    zero_shot_labels,
)
from fedclip_plugin.stats import mean
from fedclip_plugin.wire.update import State
from tests.federation.toy import toy_features


def make_task(classes: int = 3, dim: int = 8) -> Task:
    torch.manual_seed(0)
    text = F.normalize(torch.randn(classes, dim), dim=1)
    return Task(text, 100.0, params=FedClip.Params())


def test_zero_shot_is_cosine_and_ignores_length():
    task = make_task()
    x = task.text * torch.tensor([[0.01], [5.0], [300.0]])
    assert zero_shot_labels(Samples(x, torch.arange(3)), task).tolist() == [0, 1, 2]


def test_predictions_do_not_depend_on_the_chunk(monkeypatch):
    task, algorithm = make_task(), FedClip()
    samples = Samples(torch.randn(50, 8), torch.zeros(50, dtype=torch.int64))
    state = algorithm.init(task)
    whole = predict_scores(algorithm, state, samples, task)
    monkeypatch.setattr(FedClip, "rows_at_once", 7)
    some = predict_scores(algorithm, state, samples, task)
    torch.testing.assert_close(some, whole, rtol=1e-5, atol=1e-3)


def many_clients(name: str, **train: object) -> tuple[Federation, State]:
    """Clients of 4 or 5 rows, some parts empty, after two rounds."""
    algorithm = get_algorithm(name)
    settings = {"lr": 1e-2, **algorithm.defaults, "rounds": 2, "participation": 0.5}
    data = DataConfig(partition="dirichlet", clients=26)
    config = with_values(RunConfig(name, data=data), settings | train)
    fed = build_federation(toy_features(), config, "photo", seed=0)
    *_, last = federate(fed)
    return fed.with_kept(last.kept), last.state


def one_by_one(fed: Federation, state: State) -> dict[str, dict[str, float | None]]:
    def score(client: Client, part: Samples) -> float | None:
        own = fed.algorithm.client_state(state, client)
        return accuracy(predict_labels(fed.algorithm, own, part, fed.task), part.y)

    return {
        c.name: {"val": score(c, c.val), "test": score(c, c.test)} for c in fed.clients
    }


@pytest.mark.parametrize("rows_at_once", [1, 7, 4096])
@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("fedclip", {}),
        ("fedclip", {"optimizer_state": "keep"}),
        ("linear", {}),
        ("local", {}),
        ("zeroshot", {}),
    ],
)
def test_many_clients_at_once_score_as_one_by_one(
    name, train, rows_at_once, monkeypatch
):
    fed, state = many_clients(name, **train)
    expected = one_by_one(fed, state)
    monkeypatch.setattr(type(fed.algorithm), "rows_at_once", rows_at_once)
    found = score_clients(fed.algorithm, state, fed.clients, fed.task)
    assert found == expected
    values = [v for score in found.values() for v in score.values()]
    assert None in values  # parts without a row
    assert len({v for v in values if v is not None}) > 1


def test_scores_of_a_tie_are_those_of_the_first_class():
    fed, state = many_clients("fedclip")
    text = torch.eye(fed.task.text.shape[1])[: len(fed.task.text)]
    text[2] = text[1]  # two classes whose scores are one coordinate, whatever the sum
    fed = replace(fed, task=replace(fed.task, text=text))
    found = score_clients(fed.algorithm, state, fed.clients, fed.task)
    assert found == one_by_one(fed, state)
    judged = [(state, c.test) for c in fed.clients]
    scores = all_scores(fed.algorithm, judged, fed.task)
    assert torch.equal(scores[:, 1], scores[:, 2])
    assert 2 not in scores.argmax(dim=1)


def test_zero_shot_of_many_clients_is_that_of_one_by_one():
    fed, _ = many_clients("zeroshot")
    found = score_zero_shot(fed.clients, fed.target, fed.task)
    assert found["clients"] == {
        c.name: accuracy(zero_shot_labels(c.test, fed.task), c.test.y)
        for c in fed.clients
    }
    truth = fed.target.y
    assert found["target"] == accuracy(zero_shot_labels(fed.target, fed.task), truth)


def test_neighbours_with_one_state_share_a_batch(monkeypatch):
    fed, state = many_clients("fedclip")
    seen = []
    predict = FedClip.predict

    def counted(self, state, x, task):
        seen.append(len(x))
        return predict(self, state, x, task)

    monkeypatch.setattr(FedClip, "predict", counted)
    score_clients(fed.algorithm, state, fed.clients, fed.task)
    assert len(seen) == 1
    other = dict(state)
    part = fed.clients[0].train
    score_parts(fed.algorithm, [(state, part), (other, part)], fed.task)
    assert seen[1:] == [len(part)] * 2


def test_nobody_to_score():
    fed, state = many_clients("fedclip")
    assert score_clients(fed.algorithm, state, [], fed.task) == {}
    empty = fed.clients[0].train[:0]
    assert score_parts(fed.algorithm, [(state, empty)], fed.task) == [None]


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
