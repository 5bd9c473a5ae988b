"""The other columns of the table: zero-shot, local adapters, a linear head."""

from __future__ import annotations

import argparse

import pytest
import torch
import torch.nn.functional as F

from fedclip_plugin.algorithms import ALGORITHMS, get_algorithm, with_values
from fedclip_plugin.algorithms.base import sample_order
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.checkpoint import Checkpoint
from fedclip_plugin.federation.engine import Run, federate, run_round
from fedclip_plugin.federation.evaluation import (
    score_target,
    score_zero_shot,
    zero_shot_scores,
)
from fedclip_plugin.settings.options import add_run_options
from fedclip_plugin.settings.sources import read_config
from tests.federation.toy import checkpointed, toy_features

ON_FEATURES = [n for n in ALGORITHMS.names() if not get_algorithm(n).needs_clip]


def make(name: str, **train: object) -> Federation:
    settings = {"rounds": 4, "batch_size": 8, "lr": 1e-2, **train}
    data = DataConfig(dataset="toy", transductive=True)
    config = with_values(RunConfig(name, data=data), settings)
    return build_federation(toy_features(), config, "photo", seed=0)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_every_algorithm_resumes_to_the_same_bits(name, tmp_path):
    *_, whole = federate(make(name))
    for standing in checkpointed(make(name), Checkpoint(tmp_path, "id")):
        if standing.progress.round == 3:
            break
    *_, resumed = checkpointed(make(name), Checkpoint(tmp_path, "id"))
    assert resumed.progress.best_round == whole.progress.best_round
    for a, b in ((resumed.state, whole.state), (resumed.best, whole.best)):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_every_algorithm_survives_an_empty_client(name):
    fed = make(name)
    empty = fed.clients[0].train.x[:0], fed.clients[0].train.y[:0]
    nothing = type(fed.clients[0].train)(*empty)
    client = type(fed.clients[0])("nobody", 9, nothing, nothing, nothing)
    fed = Federation(fed.algorithm, fed.task, (*fed.clients, client), fed.target)
    run = Run(fed)
    result, state = run_round(run), run.state
    assert result.clients["nobody"] == {"val": None, "test": None}
    assert all(bool(torch.isfinite(v).all()) for v in state.values())


def test_zero_shot_scores_as_the_report_does_and_sends_nothing():
    fed = make("zeroshot")
    run = Run(fed)
    result, state = run_round(run), run.state
    expected = score_zero_shot(fed.clients, fed.target, fed.task)
    assert result.target == expected["target"]
    tests = {name: s["test"] for name, s in result.clients.items()}
    assert tests == expected["clients"]
    assert (result.bytes_up, result.bytes_down, state) == (0, 0, {})


def test_local_is_each_client_alone():
    fed = make("local")
    *_, last = federate(fed)
    for client in fed.clients:
        alone = Federation(get_algorithm("fedclip"), fed.task, (client,), None)
        *_, single = federate(alone)
        own = fed.algorithm.client_state(last.state, client.with_kept(last.kept))
        assert all(torch.equal(own[k], single.state[k]) for k in single.state)
    assert last.progress.bytes_up == last.progress.bytes_down == 0


def test_local_judges_a_new_domain_by_every_client():
    fed = make("local")
    *_, last = federate(fed)
    clients = fed.with_kept(last.kept).clients
    each = [
        score_target(get_algorithm("fedclip"), s, fed.target, fed.task)
        for s in fed.algorithm.target_states(last.state, clients)
    ]
    assert len(each) == 2
    assert each[0] != each[1]
    found = score_target(fed.algorithm, last.state, fed.target, fed.task, clients)
    assert found == pytest.approx(sum(each) / 2)


def test_linear_is_fedavg_of_logistic_regression():
    fed = make("linear", weighting="examples", local_epochs=2, weight_decay=0.0)
    run = Run(fed)
    run_round(run)
    state = run.state
    t, heads = fed.task.train, []
    for client in fed.clients:
        head = torch.nn.Linear(16, 4)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        adam = torch.optim.Adam(head.parameters(), t.lr, (t.beta1, t.beta2), t.eps)
        x = F.normalize(client.train.x, dim=1)
        for epoch in range(2):
            order = sample_order(len(x), 0, 1, client.index, epoch)
            for rows in order.split(t.batch_size):
                adam.zero_grad()
                F.cross_entropy(head(x[rows]), client.train.y[rows]).backward()
                adam.step()
        heads.append(head)
    for key in ("weight", "bias"):
        mean = sum(getattr(h, key).detach() for h in heads) / len(heads)
        torch.testing.assert_close(state[key], mean, rtol=1e-5, atol=1e-6)


def test_linear_from_text_starts_as_zero_shot():
    fed = make("linear", init="text")
    scores = fed.algorithm.predict(fed.first, fed.target.x, fed.task)
    expected = zero_shot_scores(fed.target, fed.task)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-4)
    *_, last = federate(fed)
    assert last.result.mean_test > 0.8


def test_linear_learns():
    *_, last = federate(make("linear", rounds=20, lr=0.05, weight_decay=0.0))
    assert last.result.mean_test > 0.8


@pytest.mark.parametrize(
    ("argv", "lr", "rounds"),
    [
        (["--alg", "linear"], 1e-2, 200),
        (["--alg", "linear", "--lr", "0.5"], 0.5, 200),
        (["--alg", "zeroshot"], 5e-5, 1),
        ([], 5e-5, 200),
    ],
)
def test_an_algorithm_brings_its_defaults(argv, lr, rounds):
    parser = argparse.ArgumentParser()
    add_run_options(parser)
    config = read_config(parser.parse_args(argv))
    assert (config.train.lr, config.train.rounds) == (lr, rounds)
