"""FedMedCLIP: masks, the loss, the private network, and who predicts with what."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.algorithms.base import sample_order
from fedclip_plugin.algorithms.fedmedclip import (
    MaskedAdapter,
    MaskedLinear,
    combined,
    divergence,
    private_network,
)
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import RunError
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import Run, federate, run_round
from fedclip_plugin.federation.evaluation import score_clients, score_target
from fedclip_plugin.wire.message import state_bytes
from fedclip_plugin.wire.update import State
from tests.federation.toy import resumed, toy_features


def make(**values: object) -> Federation:
    usual = {"rounds": 4, "batch_size": 8, "lr": 3e-3, "weight_decay": 0.0}
    config = RunConfig("fedmedclip", data=DataConfig(dataset="toy"))
    config = with_values(config, {**usual, **values})
    return build_federation(toy_features(rows=100), config, "photo", seed=0)


def masked(layer: MaskedLinear) -> MaskedLinear:
    """The layer with the threshold of its first row out of its row's reach."""
    with torch.no_grad():
        layer.threshold[0] = 10.0
    return layer


def test_a_row_below_its_threshold_counts_for_nothing():
    layer = masked(MaskedLinear(5, 4).double())
    x = torch.randn(3, 5).double()
    found = layer(x)
    for i in range(3):
        for row in range(4):
            w = layer.weight[row].tolist()
            size = sum(map(abs, w)) / 5
            want = sum(a * b for a, b in zip(w, x[i].tolist())) + layer.bias[row].item()
            want = want if size > float(layer.threshold[row]) else 0.0
            assert float(found[i, row]) == pytest.approx(want, abs=1e-12)


def test_the_mask_has_a_straight_through_gradient():
    """That of a mask that moves with the row's size and threshold, as it stands now."""
    layer = masked(MaskedLinear(5, 4).double())
    x, weigh = torch.randn(3, 5).double(), torch.randn(3, 4).double()
    (layer(x) * weigh).sum().backward()
    start = {k: v.detach().clone() for k, v in layer.named_parameters()}

    def smooth(values: State) -> float:
        size = values["weight"].abs().mean(dim=1) - values["threshold"]
        before = start["weight"].abs().mean(dim=1) - start["threshold"]
        mask = (before > 0).double() + size - before
        weight, bias = values["weight"] * mask[:, None], values["bias"] * mask
        return float((F.linear(x, weight, bias) * weigh).sum())

    for key, value in layer.named_parameters():
        flat, slope = start[key].flatten(), value.grad.flatten()
        for i in range(len(flat)):
            ends = []
            for step in (1e-6, -1e-6):
                moved = flat.clone()
                moved[i] += step
                ends.append(smooth({**start, key: moved.view_as(value)}))
            want = (ends[0] - ends[1]) / 2e-6
            assert float(slope[i]) == pytest.approx(want, rel=1e-5, abs=1e-8)


def test_the_adapter_is_the_published_layers():
    adapter = MaskedAdapter(6)
    masked(adapter.first)
    x = torch.randn(5, 6)
    hidden = nn.InstanceNorm1d(6)(adapter.first(x)[None])[0]  # every row by itself
    gate = adapter.second(nn.ReLU6()(hidden)).softmax(dim=1)
    want = gate * x / (gate * x).norm(dim=1, keepdim=True)
    torch.testing.assert_close(adapter(x), want)


def test_the_divergence_is_that_of_both_ways():
    one, other = (torch.randn(4, 3).double() for _ in range(2))
    total = 0.0
    for a, b in zip(one.tolist(), other.tolist()):
        p, q = ([math.exp(v / 2) for v in scores] for scores in (a, b))
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        total += sum(i * math.log(i / j) + j * math.log(j / i) for i, j in zip(p, q))
    assert float(divergence(one, other, 2.0)) == pytest.approx(total / 4)
    inputs = [scores.requires_grad_() for scores in (one, other)]
    assert torch.autograd.gradcheck(lambda a, b: divergence(a, b, 2.0), inputs)


def test_the_surer_one_counts_more():
    one, other = (3 * torch.randn(6, 4).double() for _ in range(2))
    found = combined(one, other)
    for i in range(6):
        parts = []
        for scores in (one[i].tolist(), other[i].tolist()):
            p = [math.exp(v) for v in scores]
            parts.append([v / sum(p) for v in p])
        unsure = [-sum(v * math.log(v) for v in p) for p in parts]
        share = unsure[1] / sum(unsure)
        want = [math.log(share * a + (1 - share) * b) for a, b in zip(*parts)]
        assert found[i].tolist() == pytest.approx(want)
    sure = torch.tensor([[1000.0, 0.0, 0.0]])
    both = combined(sure, sure.flip(1))  # neither has any doubt
    assert both.exp()[0].tolist() == pytest.approx([0.5, 0.0, 0.5], abs=1e-6)


def test_it_trains_as_written_out():
    fed = make()
    task, client = fed.task, fed.clients[0]
    update = fed.algorithm.local_train(fed.first, client, task, 1)
    adapter, network = MaskedAdapter(16), private_network(16, 4)
    adapter.load_state_dict(fed.first)
    start = fed.algorithm.local_train(fed.first, empty(client), task, 1).kept
    network.load_state_dict({k.removeprefix("private."): v for k, v in start.items()})
    t = task.train
    parameters = [*adapter.parameters(), *network.parameters()]
    adam = torch.optim.Adam(parameters, t.lr, (t.beta1, t.beta2), t.eps)
    for batch in sample_order(len(client.train), 0, 1, client.index, 0).split(8):
        x, y = client.train.x[batch], client.train.y[batch]
        z = adapter(x)
        own = network(z)
        logits = task.logit_scale * z @ task.text[y].t()
        truth = torch.arange(len(y))
        loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.t(), truth)) / 2
        loss = loss + F.cross_entropy(own, y)
        p = (task.logit_scale * z @ task.text.t() / 2).log_softmax(dim=1)
        q = (own / 2).log_softmax(dim=1)
        both = (p.exp() * (p - q)).sum(dim=1) + (q.exp() * (q - p)).sum(dim=1)
        adam.zero_grad()
        (loss + 0.04 * both.mean()).backward()
        adam.step()
    found = {**update.state, **update.kept}
    want = adapter.state_dict()
    want |= {f"private.{k}": v for k, v in network.state_dict().items()}
    assert found.keys() == want.keys()
    for key, value in want.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)


def empty(client):
    return replace(client, train=client.train[:0])


def test_only_the_adapter_travels():
    fed = make()
    run = Run(fed)
    result = run_round(run)
    assert set(run.state) == set(MaskedAdapter(16).state_dict())
    assert 0 <= result.bytes_up - 2 * state_bytes(run.state) < 1000
    assert all(key.startswith("private.") for key in run.now.kept["art"])
    one, other = (run.now.kept[name] for name in ("art", "cartoon"))
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_clients_predict_with_their_own_network_and_a_new_domain_without():
    fed = make(rounds=8)
    *_, last = federate(fed)
    algorithm, task = fed.algorithm, fed.task
    clients = fed.with_kept(last.kept).clients
    adapter = MaskedAdapter(16)
    adapter.load_state_dict(last.state)
    for client in clients:
        own = algorithm.client_state(last.state, client)
        x = client.test.x
        with torch.no_grad():
            z = adapter(x)
            shared = task.logit_scale * z @ task.text.t()
            network = private_network(16, 4)
            kept = {k.removeprefix("private."): v for k, v in client.kept.items()}
            network.load_state_dict(kept)
            want = combined(shared, network(z))
        torch.testing.assert_close(
            algorithm.predict(own, x, task), want, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            algorithm.predict(last.state, x, task), shared, rtol=1e-4, atol=1e-3
        )
    alone = accuracy_of(algorithm.predict(last.state, fed.target.x, task), fed.target.y)
    found = score_target(algorithm, last.state, fed.target, task, clients)
    assert found == pytest.approx(alone)
    scores = score_clients(algorithm, last.state, clients, task)
    for name, kinds in last.result.clients.items():
        assert scores[name] == pytest.approx(kinds)


def accuracy_of(scores: Tensor, y: Tensor) -> float:
    return float((scores.argmax(dim=1) == y).double().mean())


def test_a_client_that_has_not_trained_predicts_with_the_adapter():
    fed = make()
    client = fed.clients[0]
    state = fed.algorithm.client_state(fed.first, client)
    assert state.keys() == fed.first.keys()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"compress": "int8"},
        {"participation": 0.5},
        {"optimizer_state": "keep"},
        {"compress": "int8", "optimizer_state": "keep", "local_epochs": 2},
    ],
    ids=str,
)
def test_it_resumes_to_the_same_bits(values, tmp_path):
    *_, whole = federate(make(**values))
    after = resumed(lambda: make(**values), tmp_path)
    assert all(torch.equal(after.state[k], whole.state[k]) for k in whole.state)
    for name, kept in whole.kept.items():
        assert all(torch.equal(after.kept[name][k], kept[k]) for k in kept)


def test_a_spoilt_update_is_left_out():
    fed = make()
    run = Run(fed)
    opened = run.open_round()
    updates = fed.algorithm.local_round(fed.first, opened.cohort, fed.task, 1)
    spoilt = {k: v * math.nan for k, v in updates[0].state.items()}
    run.aggregate(opened, [replace(updates[0], state=spoilt), updates[1]], ["a", "b"])
    assert all(torch.equal(opened.state[k], v) for k, v in updates[1].state.items())


def test_a_kept_network_of_another_shape_is_named():
    fed = make()
    run = Run(fed)
    run_round(run)
    run.now.kept["art"]["private.0.weight"] = torch.zeros(3)
    with pytest.raises(RunError, match=r"art: private.0.weight, kept.*\(3,\)"):
        run_round(run)
