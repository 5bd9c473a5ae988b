"""Variants of FedCLIP by configuration: adapter, side, loss and optimizer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.algorithms.adapter import (
    ADAPTERS,
    TwoSides,
    contrastive_loss,
    full_keys,
    initial_state,
    plain_keys,
)
from fedclip_plugin.algorithms.base import sample_order
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import Run, federate, run_round
from fedclip_plugin.federation.evaluation import predict_scores, zero_shot_scores
from fedclip_plugin.wire.message import state_bytes
from fedclip_plugin.wire.update import State
from tests.federation.toy import resumed, toy_features

VARIANTS = [
    {"adapter": "bottleneck"},
    {"adapter": "residual"},
    {"side": "text"},
    {"side": "both"},
    {"loss": "class"},
    {"optimizer": "adamw", "weight_decay": 0.2},  # without decay it is Adam
    {"optimizer": "sgd", "lr": 0.5},
    {"optimizer_state": "keep"},
    {"logit_scale": 10.0},
]


def make(algorithm: str = "fedclip", **train: object) -> Federation:
    usual = {"rounds": 4, "batch_size": 8, "lr": 3e-3, "weight_decay": 0.0}
    config = RunConfig(algorithm, data=DataConfig(dataset="toy"))
    config = with_values(config, {**usual, **train})
    return build_federation(toy_features(rows=100), config, "photo", seed=0)


def differs(one: State, other: State, start: State) -> bool:
    """Whether two runs from one start ended apart by more than rounding explains."""
    if any(key not in other or other[key].shape != start[key].shape for key in start):
        return True
    apart = max(float((one[key] - other[key]).norm()) for key in start)
    way = max(float((one[key] - start[key]).norm()) for key in start)
    return apart > 1e-3 * way


@pytest.mark.parametrize("train", VARIANTS, ids=str)
def test_a_variant_trains_resumes_and_sends_its_adapter_alone(train, tmp_path):
    *_, whole = federate(make(**train))
    *_, paper = federate(make())
    start = next(federate(make(**train))).state
    assert differs(whole.state, paper.state, start)
    assert all(not torch.equal(whole.state[k], start[k]) for k in start if "bias" in k)
    after = resumed(lambda: make(**train), tmp_path)
    assert all(torch.equal(after.state[k], whole.state[k]) for k in whole.state)
    assert whole.result.bytes_down == 2 * state_bytes(start)


def test_kept_moments_of_another_shape_are_named():
    fed = make(optimizer_state="keep", optimizer="adamw")
    run = Run(fed)
    run_round(run)
    kept = run.now.kept["art"]
    key = next(key for key in kept if key.endswith("0.weight:exp_avg"))
    kept[key] = torch.zeros(3)
    with pytest.raises(RunError, match=f"art: {key}.*shape \\(3,\\), expected"):
        run_round(run)


@pytest.mark.parametrize("name", ["residual"])
def test_an_untrained_residual_adapter_is_zero_shot(name):
    fed = make(adapter=name)
    state = fed.algorithm.init(fed.task)
    scores = predict_scores(fed.algorithm, state, fed.target, fed.task)
    zero_shot = zero_shot_scores(fed.target, fed.task)
    torch.testing.assert_close(scores, zero_shot, rtol=1e-5, atol=1e-3)


def test_a_bottleneck_has_fewer_parameters():
    def count(adapter: str) -> int:
        return sum(v.numel() for v in initial_state(64, 0, adapter).values())

    assert count("bottleneck") == 64 * 8 + 8 + 8 * 64 + 64
    assert count("bottleneck") < count("attention") / 7


@pytest.mark.parametrize("side", ["image", "text", "both"])
def test_keys_that_travel(side):
    state = initial_state(8, 0, side=side)
    names = {"0.weight", "0.bias", "2.weight", "2.bias"}
    sides = ["image", "text"] if side == "both" else [side]
    want = names if side == "image" else {f"{s}.{n}" for s in sides for n in names}
    assert set(state) == want
    module = TwoSides(8, "attention", side)
    module.load_state_dict(full_keys(state, side))
    again = plain_keys(module.state_dict(), side)
    assert all(torch.equal(again[k], state[k]) for k in state)


def literal(fed: Federation, rounds: int, keep: bool) -> dict[str, Tensor]:
    """The round loop written out, with torch.optim and autograd."""
    t, p, task = fed.task.train, fed.task.params, fed.task
    state = full_keys(fed.algorithm.init(task), p.side)
    optimizers: dict[str, dict] = {}
    for number in range(1, rounds + 1):
        ends = []
        for client in fed.clients:
            module = TwoSides(task.dim, p.adapter, p.side)
            module.load_state_dict(state)
            adam = torch.optim.Adam(
                module.parameters(), t.lr, (t.beta1, t.beta2), t.eps, t.weight_decay
            )
            if keep and client.name in optimizers:
                adam.load_state_dict(optimizers[client.name])
            rows = sample_order(len(client.train), 0, number, client.index, 0)
            for batch in rows.split(t.batch_size):
                if len(batch) < 2:
                    continue
                z, text = module(client.train.x[batch], task.text)
                y = client.train.y[batch]
                if p.loss == "class":
                    loss = F.cross_entropy(task.logit_scale * z @ text.t(), y)
                else:
                    loss = contrastive_loss(z, y, text, task.logit_scale)
                adam.zero_grad()
                loss.backward()
                adam.step()
            optimizers[client.name] = adam.state_dict()
            ends.append(module.state_dict())
        state = {k: (ends[0][k] + ends[1][k]) / 2 for k in state}
    return plain_keys(state, p.side)


@pytest.mark.parametrize(
    "train",
    [
        {"optimizer_state": "keep"},
        {"loss": "class"},
        {"side": "both"},
        {"side": "both", "loss": "class", "optimizer_state": "keep"},
    ],
    ids=str,
)
def test_a_variant_is_the_literal_loop(train):
    fed = make(**train)
    *_, last = federate(replace(fed, task=fed.task))
    want = literal(fed, 4, keep="optimizer_state" in train)
    for key, value in want.items():
        torch.testing.assert_close(last.state[key], value, rtol=1e-4, atol=1e-5)


def test_kept_moments_stay_with_their_client():
    fed = make(optimizer_state="keep")
    run = Run(fed)
    run_round(run)
    state = run.state
    assert run.now.kept.keys() == {"art", "cartoon"}
    assert set(state) == set(initial_state(16, 0))


def test_local_adapters_keep_no_optimizer():
    fed = make("local", optimizer_state="keep")
    with pytest.raises(ConfigError, match="optimizer-state"):
        fed.algorithm.init(fed.task)


def test_the_in_batch_loss_is_the_multi_positive_one():
    """With one text per class they are the same function: docs/method.md."""
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(12, 6, generator=generator), dim=1)
    text = F.normalize(torch.randn(3, 6, generator=generator), dim=1)
    y = torch.randint(0, 3, (12,), generator=generator)
    logits = 100.0 * z @ text[y].t()
    same = (y[:, None] == y).float()
    share = same / same.sum(dim=1, keepdim=True)
    rows = -(share * logits.log_softmax(dim=1)).sum(dim=1).mean()
    columns = -(share.t() * logits.log_softmax(dim=0)).sum(dim=0).mean()
    torch.testing.assert_close((rows + columns) / 2, contrastive_loss(z, y, text))


@pytest.mark.parametrize(
    ("field", "value"),
    [("side", "left"), ("loss", "l2"), ("optimizer", "lion"), ("logit_scale", 0.0)],
)
def test_unknown_variants_are_named(field, value):
    with pytest.raises(ConfigError, match=f"{field}="):
        with_values(RunConfig(), {field: value})


def test_every_adapter_gives_normalised_features():
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    for name in ("attention", "bottleneck", "residual"):
        z = ADAPTERS.get(name)(16)(x)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
