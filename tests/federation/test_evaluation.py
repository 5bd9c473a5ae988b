from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

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
    all_scores,
    predict_labels,
    predict_scores,
    score_clients,
    score_parts,
    score_zero_shot,
    selection_score,
    summary_scores,
    zero_shot_labels,
)
from fedclip_plugin.federation.metrics import (
    accuracy,
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


def test_means_leave_out_what_is_missing():
    assert mean([None, 0.5, 1.0]) == pytest.approx(0.75)
    assert mean([None]) is None
    assert selection_score({"a": {"val": None}, "b": {"val": 0.4}}) == 0.4
    assert summary_scores(None, {"a": 0.5, "b": None}) == {
        "target": None,
        "clients": {"a": 0.5, "b": None},
        "mean": 0.5,
    }
