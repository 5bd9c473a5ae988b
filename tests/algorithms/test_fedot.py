"""FedOT against its formula, number by number, and what it promises."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedclip_plugin.algorithms import Client, Samples, Task, with_values
from fedclip_plugin.algorithms.base import sample_order
from fedclip_plugin.algorithms.fedot import SKEW, FedOt, first_skew, rotated
from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig, TrainConfig
from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import Run, RunState, federate
from fedclip_plugin.federation.evaluation import predict_labels, zero_shot_scores
from fedclip_plugin.federation.metrics import accuracy
from fedclip_plugin.federation.rounds import train_clients
from fedclip_plugin.storage.tensors import read_tensors
from fedclip_plugin.wire.update import State, flatten
from tests.federation.toy import resumed, toy_features, write_toy


def make(**chosen: Any) -> Federation:
    settings = {"rounds": 4, "batch_size": 8, "lr": 3e-3, **chosen}
    config = with_values(RunConfig("fedot", data=DataConfig("toy")), settings)
    return build_federation(toy_features(), config, "photo", seed=0)


def last_of(**chosen: Any) -> RunState:
    *_, last = federate(make(**chosen))
    return last


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ----------------------------------------------------------------- the literal formula


def literal_rotation(skew: Tensor, size: int) -> Tensor:
    """Q (D, D) float64, ``(I + R) (I - R)^-1`` block by block, R entry by entry."""
    blocks = []
    for triangle in skew.double():
        r, place = torch.zeros(size, size, dtype=torch.float64), 0
        for i in range(size):
            for j in range(i + 1, size):
                r[i, j], r[j, i] = triangle[place], -triangle[place]
                place += 1
        eye = torch.eye(size, dtype=torch.float64)
        blocks.append((eye + r) @ torch.linalg.inv(eye - r))
    return torch.block_diag(*blocks)


def literal_loss(w: Tensor, q: Tensor, x: Tensor, y: Tensor, tau: float) -> float:
    """Mean over rows of ``-log softmax(tau W Q h)_y``, class by class."""
    total = 0.0
    for row, label in zip(x.double(), y.tolist()):
        turned = q @ (row / row.norm())
        scores = [tau * float(w_c @ turned) for w_c in w.double()]
        top = max(scores)
        total -= scores[label] - top
        total += math.log(sum(math.exp(s - top) for s in scores))
    return total / len(y)


def problem(size: int | None, dim: int = 8, classes: int = 3) -> tuple[Client, Task]:
    generator = torch.Generator().manual_seed(1)
    text = F.normalize(torch.randn(classes, dim, generator=generator), dim=1)
    x = text[torch.arange(20) % classes] + 0.4 * torch.randn(
        20, dim, generator=generator
    )
    part = Samples(x, torch.arange(20) % classes)
    train = TrainConfig(batch_size=7, local_epochs=2, lr=5e-3, weight_decay=0.0)
    params = FedOt.Params(block_size=size)
    return Client("a", 0, part, part, part), Task(text, 20.0, train, 3, params=params)


def literal_training(client: Client, task: Task, size: int) -> tuple[Tensor, Tensor]:
    """W and R after local training; gradients by differences, Adam by hand."""
    t = task.train
    sizes = [task.text.numel(), first_skew(task)[SKEW].numel()]
    theta = torch.zeros(sum(sizes), dtype=torch.float64)
    theta[: sizes[0]] = task.text.double().reshape(-1)
    m, v, step = torch.zeros_like(theta), torch.zeros_like(theta), 0

    def parts(point: Tensor) -> tuple[Tensor, Tensor]:
        w, skew = point.split(sizes)
        return w.reshape(task.text.shape), skew.reshape(first_skew(task)[SKEW].shape)

    for epoch in range(t.local_epochs):
        order = sample_order(len(client.train), task.seed, 1, client.index, epoch)
        for rows in order.split(t.batch_size):
            x, y = client.train.x[rows], client.train.y[rows]
            gradient = torch.zeros_like(theta)
            for i in range(len(theta)):
                sides = []
                for sign in (1, -1):
                    point = theta.clone()
                    point[i] += sign * 1e-5
                    w, skew = parts(point)
                    q = literal_rotation(skew, size)
                    sides.append(literal_loss(w, q, x, y, task.logit_scale))
                gradient[i] = (sides[0] - sides[1]) / 2e-5
            step += 1
            m = t.beta1 * m + (1 - t.beta1) * gradient
            v = t.beta2 * v + (1 - t.beta2) * gradient.square()
            m_hat, v_hat = m / (1 - t.beta1**step), v / (1 - t.beta2**step)
            theta = theta - t.lr * m_hat / (v_hat.sqrt() + t.eps)
    return parts(theta)


@pytest.mark.parametrize("size", [None, 4])
def test_local_training_is_the_formula(size: int | None):
    client, task = problem(size)
    fedot = FedOt()
    update = fedot.local_train(fedot.init(task), client, task, 1)
    w, skew = literal_training(client, task, size or task.dim)
    moved = (w - task.text).norm()
    assert float((update.state["weight"].double() - w).norm() / moved) < 1e-3
    assert float((update.kept[SKEW].double() - skew).norm() / skew.norm()) < 1e-3
    assert update.state.keys() == {"weight"}, "the rotation must not travel"


@pytest.mark.parametrize("size", [None, 4, 2])
def test_scores_are_the_formula(size: int | None):
    client, task = problem(size)
    generator = torch.Generator().manual_seed(2)
    skew = torch.randn(first_skew(task)[SKEW].shape, generator=generator)
    q = literal_rotation(skew, size or task.dim)
    z = F.normalize(client.test.x.double(), dim=1)
    want = task.logit_scale * z @ q.t() @ task.text.double().t()
    found = FedOt().predict({"weight": task.text, SKEW: skew}, client.test.x, task)
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [6, 3, 2])
def test_gradients(size: int):
    z = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    skew = torch.randn(6 // size, size * (size - 1) // 2, dtype=torch.float64)
    skew.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: rotated(a, b, size), (z, skew))


# ------------------------------------------------------------------- what is promised


@pytest.mark.parametrize("size", [None, 8])
def test_rotations_stay_orthogonal_and_turn(size: int | None):
    fed, last = make(block_size=size), last_of(block_size=size)
    for kept in last.kept.values():
        eye = torch.eye(16)
        q = rotated(eye, kept[SKEW], size or 16).t()
        assert float((q.t() @ q - eye).abs().max()) < 1e-5
        assert float((q - eye).abs().max()) > 1e-3
    assert fed.first.keys() == last.state.keys() == {"weight"}


def test_a_rotation_of_any_size_is_orthogonal():
    skew = 30 * torch.randn(1, 16 * 15 // 2)
    q = rotated(torch.eye(16).double(), skew.double(), 16).t()
    assert float((q.t() @ q - torch.eye(16)).abs().max()) < 1e-5


def test_it_starts_as_zero_shot():
    fed = make()
    found = fed.algorithm.predict(fed.first, fed.target.x, fed.task)
    torch.testing.assert_close(found, zero_shot_scores(fed.target, fed.task))


def test_clients_predict_by_their_rotations_and_the_target_without():
    fed, last = make(), last_of()
    assert last.result is not None
    own = 0
    for client in fed.clients:
        state = {**last.state, SKEW: last.kept[client.name][SKEW]}
        labels = predict_labels(fed.algorithm, state, client.test, fed.task)
        scores = last.result.clients[client.name]
        assert scores["test"] == accuracy(labels, client.test.y)
        plain = fed.algorithm.predict(last.state, client.test.x, fed.task)
        own += not torch.equal(
            fed.algorithm.predict(state, client.test.x, fed.task), plain
        )
    assert own == len(fed.clients)
    labels = predict_labels(fed.algorithm, last.state, fed.target, fed.task)
    assert last.result.target == accuracy(labels, fed.target.y)


def test_bytes_are_those_of_the_head():
    last = last_of(rounds=1)
    assert last.result is not None
    head, rotation = 4 * 16 * 4, 4 * 16 * 15 // 2
    assert 2 * head < last.result.bytes_up < 2 * (head + rotation)


MORE: list[dict[str, Any]] = [
    {},
    {"participation": 0.5, "block_size": 4},
    {"compress": "int8", "compress_down": "fp16"},
    {"server_optimizer": "momentum", "server_ema": 0.5},
    {"aggregation": "median"},
]


@pytest.mark.parametrize("more", MORE, ids=str)
def test_resumed_runs_end_in_the_same_bits(more: dict[str, Any], tmp_path: Path):
    whole, again = last_of(**more), last_of(**more)
    after = resumed(lambda: make(**more), tmp_path)
    for one in (again, after):
        assert same(one.state, whole.state)
        assert same(flatten(one.kept), flatten(whole.kept))
        assert same(flatten(one.best_kept), flatten(whole.best_kept))


def test_a_client_that_was_away_keeps_its_rotation():
    run = Run(make(participation=0.5))
    before: State = {}
    for _ in range(4):
        opened = run.open_round()
        updates = train_clients(run.fed, opened.sent.seen, opened.cohort, opened.number)
        run.aggregate(opened, updates, [c.name for c in opened.cohort])
        run.close_round(opened)
        away = before.keys() - {c.name for c in opened.cohort}
        assert all(torch.equal(run.now.kept[n][SKEW], before[n]) for n in away)
        before = {name: kept[SKEW] for name, kept in run.now.kept.items()}


def test_a_nan_update_is_left_out_and_its_rotation_too():
    run = Run(make(rounds=1))
    opened = run.open_round()
    art = opened.cohort[0]
    spoilt = replace(art.train, x=art.train.x * torch.nan)
    cohort = [replace(art, train=spoilt), *opened.cohort[1:]]
    updates = train_clients(run.fed, opened.sent.seen, cohort, 1)
    run.aggregate(opened, updates, [c.name for c in cohort])
    run.close_round(opened)
    assert [q.client for q in opened.screened.quarantined] == [art.name]
    assert art.name not in run.now.kept
    alone = Run(make(rounds=1))
    opened = alone.open_round()
    alone.aggregate(opened, updates[1:], [c.name for c in cohort])
    assert same(alone.fed.first | opened.state, run.state)


def test_a_client_without_rows_keeps_no_turn():
    fed = make()
    none = Samples(fed.target.x[:0], fed.target.y[:0])
    client = Client("nobody", 9, none, none, none)
    update = fed.algorithm.local_train(fed.first, client, fed.task, 1)
    assert same(update.state, fed.first)
    assert not bool(update.kept[SKEW].any())


def test_what_does_not_fit_is_one_line():
    with pytest.raises(ConfigError, match=r"block-size 5 does not divide .* 16: .* 4"):
        make(block_size=5).first  # noqa: B018
    client = replace(make().clients[0], kept={SKEW: torch.zeros(1, 3)})
    fed = make()
    with pytest.raises(RunError, match="skew, kept from the round before"):
        fed.algorithm.local_train(fed.first, client, fed.task, 2)
    with pytest.raises(ConfigError, match="fedot: what its clients keep"):
        make(dp_noise_multiplier=1.0, dp_clip=1.0, weighting="uniform")


def test_the_command(tmp_path: Path):
    argv = ["run", "--features", write_toy(tmp_path / "f"), "--target", "photo"]
    argv += ["--alg", "fedot", "--rounds", 2, "--personalize", "finetune"]
    argv += ["--fedot-block-size", 8, "--out", tmp_path / "out"]
    assert main([str(a) for a in argv]) == 0
    state, _ = read_tensors(tmp_path / "out" / "adapter.safetensors")
    assert {"weight", "art/skew", "cartoon/skew"} == state.keys()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["communication"]["params"] == 4 * 16
    assert set(summary["personalization"]["clients"]) == {"art", "cartoon"}
