"""FACMIC and FAA-CLIP: a step of each written out, what travels, resuming."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.algorithms.adapter import contrastive_loss
from fedclip_plugin.algorithms.aligned import BatchNormAdapter, unlabelled_batches
from fedclip_plugin.algorithms.base import sample_order
from fedclip_plugin.algorithms.faa_clip import adversarial_loss, domain_classifier
from fedclip_plugin.algorithms.facmic import local_mmd
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import Run, federate, run_round
from fedclip_plugin.federation.personalization import personalize
from fedclip_plugin.wire.update import State
from tests.federation.toy import resumed, toy_features

NAMES = ("facmic", "faa-clip")


def make(
    name: str, target: str | None = "photo", allow: bool = True, **values: object
) -> Federation:
    usual = {"rounds": 3, "batch_size": 8, "lr": 3e-3, "weight_decay": 0.0}
    config = RunConfig(name, data=DataConfig(dataset="toy", transductive=allow))
    config = with_values(config, {**usual, **values})
    return build_federation(toy_features(rows=50), config, target, seed=0)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[k], other[k]) for k in one
    )


# -- one step of each, written out -----------------------------------------------------


def plain_adapter(state: State, dim: int) -> nn.Sequential:
    """The published layers of PyTorch's own."""
    adapter = nn.Sequential(
        nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.LeakyReLU(),
        nn.Linear(dim, dim), nn.Softmax(dim=1),
    )  # fmt: skip
    adapter.load_state_dict(state, strict=False)
    return adapter


def gated(adapter: nn.Module, x: Tensor) -> Tensor:
    z = adapter(x) * x
    return z / z.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(
    "values",
    [{}, {"ramp": 0, "unlabelled": "plain"}, {"ramp": 3, "gamma": 4.0, "weight": 2.0}],
    ids=str,
)
def test_facmic_trains_as_written_out(values):
    fed = make("facmic", **values)
    task, client, p = fed.task, fed.clients[0], fed.task.params
    update = fed.algorithm.local_train(fed.first, client, task, 2)
    adapter = plain_adapter(fed.first, task.dim)
    t = task.train
    adam = torch.optim.Adam(adapter.parameters(), t.lr, (t.beta1, t.beta2), t.eps)
    others = unlabelled_batches(client, task, 2)
    rows = sample_order(len(client.train), 0, 2, client.index, 0)
    assert len(rows) == 30
    for i, batch in enumerate(rows.split(8)):
        x, y, other = client.train.x[batch], client.train.y[batch], next(others)
        z, zt = gated(adapter, x), gated(adapter, other)
        chance = (task.logit_scale * zt @ task.text.t()).softmax(dim=1).detach()
        if p.unlabelled == "plain":
            zt = other / other.norm(dim=1, keepdim=True)
        logits = task.logit_scale * z @ task.text[y].t()
        truth = torch.arange(len(y))
        loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.t(), truth)) / 2
        step = 4 + i  # four steps in the round before
        strength = 1.0
        if p.ramp:
            strength = 2 / (1 + math.exp(-p.gamma * min(step / p.ramp, 1))) - 1
        loss = loss + p.weight * strength * local_mmd(z, zt, y, chance)
        adam.zero_grad()
        loss.backward()
        adam.step()
    want = adapter.state_dict()
    assert update.state.keys() == want.keys() - {"1.num_batches_tracked"}
    for key, value in update.state.items():
        torch.testing.assert_close(value, want[key], rtol=1e-4, atol=1e-5)


def test_the_gradient_is_reversed_for_the_features_alone():
    torch.manual_seed(0)
    classifier = domain_classifier(6).double()
    own, other = (torch.randn(n, 6).double().requires_grad_() for n in (4, 3))
    loss = adversarial_loss(classifier, own, other)
    loss.backward()
    reversed_, learned = (
        (own.grad, other.grad),
        [p.grad for p in classifier.parameters()],
    )
    total = torch.zeros(()).double()
    for row, truth in [*((r, 0.0) for r in own), *((r, 1.0) for r in other)]:
        chance = torch.sigmoid(classifier(row)).squeeze()
        total = total - (chance if truth else 1 - chance).log()
    total = total / 7
    assert float(loss) == pytest.approx(total.item())
    plain = torch.autograd.grad(total, [own, other, *classifier.parameters()])
    for got, want in zip(reversed_, plain[:2]):
        torch.testing.assert_close(got, -want)
    for got, want in zip(learned, plain[2:]):
        torch.testing.assert_close(got, want)


def test_faa_clip_keeps_its_classifier_to_itself():
    fed = make("faa-clip")
    run = Run(fed)
    run_round(run)
    assert set(run.state) == set(BatchNormAdapter(16).state_dict())
    kept = run.now.kept["art"]
    assert set(kept) == {f"private.{k}" for k in domain_classifier(16).state_dict()}
    before = {key: value.clone() for key, value in kept.items()}
    run_round(run)
    assert all(not torch.equal(run.now.kept["art"][k], before[k]) for k in before)


@pytest.mark.parametrize("name", NAMES)
def test_without_weight_both_are_fedclips_loss_on_the_adapter(name):
    fed = make(name, weight=0.0)
    client, task = fed.clients[0], fed.task
    update = fed.algorithm.local_train(fed.first, client, task, 1)
    adapter = plain_adapter(fed.first, task.dim)
    t = task.train
    adam = torch.optim.Adam(adapter.parameters(), t.lr, (t.beta1, t.beta2), t.eps)
    others = unlabelled_batches(client, task, 1)
    for batch in sample_order(len(client.train), 0, 1, client.index, 0).split(8):
        z = gated(adapter, client.train.x[batch])
        loss = contrastive_loss(z, client.train.y[batch], task.text)
        gated(adapter, next(others))  # moves the running statistics
        adam.zero_grad()
        loss.backward()
        adam.step()
    want = adapter.state_dict()
    for key, value in update.state.items():
        torch.testing.assert_close(value, want[key], rtol=1e-4, atol=1e-5)


# -- batch normalisation ---------------------------------------------------------------


def test_prediction_is_by_running_statistics_that_are_averaged():
    fed = make("facmic")
    run = Run(fed)
    updates = fed.algorithm.local_round(fed.first, fed.clients, fed.task, 1)
    run_round(run)
    for key in ("1.running_mean", "1.running_var"):
        mean = sum(u.state[key] for u in updates) / len(updates)
        torch.testing.assert_close(run.state[key], mean)
    x = fed.target.x
    whole = fed.algorithm.predict(run.state, x, fed.task)
    alone = torch.cat([fed.algorithm.predict(run.state, r[None], fed.task) for r in x])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-3)
    adapter = plain_adapter(run.state, 16).eval()
    scores = fed.task.logit_scale * gated(adapter, x) @ fed.task.text.t()
    torch.testing.assert_close(whole, scores.detach(), rtol=1e-4, atol=1e-3)


def test_a_variance_that_the_wire_made_negative_does_no_harm():
    fed = make("facmic")
    state = {**fed.first, "1.running_var": torch.full((16,), -1e-3)}
    scores = fed.algorithm.predict(state, fed.target.x, fed.task)
    assert bool(scores.isfinite().all())


# -- as every method -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"compress": "int8"},
        {"participation": 0.5},
        {"optimizer_state": "keep"},
        {"compress": "int8", "compress_down": "int8", "local_epochs": 2},
    ],
    ids=str,
)
def test_it_resumes_to_the_same_bits(name, values, tmp_path):
    *_, whole = federate(make(name, **values))
    after = resumed(lambda: make(name, **values), tmp_path)
    assert same(after.state, whole.state)
    assert all(bool(v.isfinite().all()) for v in whole.state.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_spoilt_update_is_left_out(name):
    fed = make(name)
    run = Run(fed)
    opened = run.open_round()
    updates = fed.algorithm.local_round(
        opened.sent.seen, opened.cohort, fed.task, opened.number
    )
    spoilt = {**updates[0].state, "1.bias": torch.full((16,), math.nan)}
    run.aggregate(opened, [replace(updates[0], state=spoilt), updates[1]], ["a", "b"])
    assert same(opened.state, updates[1].state)


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_personalized(name):
    fed = make(name)
    kept: dict[str, State] = {}
    found = personalize(fed, fed.first, "finetune", kept.__setitem__)
    assert found["new_clients"].keys() == {"target"}
    assert kept.keys() == {"art", "cartoon", "target"}
