"""FedPFT: the clients' Gaussians, the features drawn of them, and the server's head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedclip_plugin.algorithms import Samples, with_values
from fedclip_plugin.algorithms.fedpft import FedPft, draw, fit
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.checkpoint import Checkpoint
from fedclip_plugin.federation.engine import Run, federate, run_round
from fedclip_plugin.federation.rounds import train_clients
from fedclip_plugin.wire.update import ClientUpdate
from tests.federation.toy import checkpointed, toy_features

PFT = FedPft()


def make(**options: object) -> Federation:
    values = {**PFT.defaults, "local_epochs": 5, **options}
    config = with_values(RunConfig("fedpft", data=DataConfig(dataset="toy")), values)
    return build_federation(toy_features(), config, "photo", seed=0)


def updates_of(fed: Federation) -> list[ClientUpdate]:
    return PFT.local_round(fed.first, fed.clients, fed.task, 1)


@pytest.mark.parametrize("covariance", ["spherical", "diagonal"])
def test_a_gaussian_is_that_of_the_formula(covariance):
    fed = make(covariance=covariance)
    for client, update in zip(fed.clients, updates_of(fed)):
        x, y = client.train.x.double().numpy(), client.train.y.numpy()
        for c in range(4):
            rows = [row / np.sqrt((row**2).sum()) for row in x[y == c]]
            mean = sum(rows) / len(rows)
            variance = sum((row - mean) ** 2 for row in rows) / len(rows)
            if covariance == "spherical":
                variance = variance.sum() / len(variance)
            told = {
                key: value[c, 0].double().numpy() for key, value in update.state.items()
            }
            assert np.abs(told["means"] - mean).max() < 1e-6
            assert np.abs(told["variances"] - variance).max() < 1e-6
            assert told["share"] * update.num_examples == pytest.approx(len(rows))


def test_scikit_learn_agrees_on_mixtures():
    from sklearn.mixture import GaussianMixture

    task = make(mixtures=3).task
    x = torch.randn(90, 8, generator=torch.Generator().manual_seed(0)).double()
    x[:30] += 4
    x[30:60] -= 4
    share, means, variances = fit(x, task)
    theirs = GaussianMixture(3, covariance_type="spherical", random_state=0).fit(
        x.numpy()
    )
    order = np.argsort(theirs.means_[:, 0])
    mine = means[:, 0].argsort()
    assert np.allclose(share[mine], theirs.weights_[order])
    assert np.allclose(means[mine], theirs.means_[order])
    assert np.allclose(variances[mine], theirs.covariances_[order])
    one = fit(x[:1], task)  # fewer rows than components
    assert len(one[0]) == 1
    assert torch.equal(one[1], x[:1])


def test_features_are_drawn_as_the_gaussians_say():
    fed = make()
    counts = torch.tensor([[4000.0], [0.0], [1000.0], [0.0]])
    means = torch.randn(4, 1, 16, generator=torch.Generator().manual_seed(1))
    state = {
        "share": counts / counts.sum(),
        "means": means,
        "variances": torch.full((4, 1), 0.25),
    }
    drawn = {
        int(y[0]): (x, y) for x, y in draw([ClientUpdate("a", state, 5000)], fed.task)
    }
    assert {c: len(x) for c, (x, _) in drawn.items()} == {0: 4000, 2: 1000}
    x, y = drawn[0]
    assert bool((y == 0).all())
    assert (x.mean(dim=0) - means[0, 0]).abs().max() < 0.05
    assert float(x.var(dim=0).mean()) == pytest.approx(0.25, abs=0.01)


def test_a_run_sends_gaussians_up_and_ends_in_a_head():
    fed = make()
    *_, last = federate(fed)
    assert last.state.keys() == last.best.keys() == {"weight", "bias"}
    numbers = 2 * 4 * (16 + 2)  # fp16, two clients
    assert numbers * 2 < last.progress.bytes_up < numbers * 2 + 2 * 1000
    assert last.result is not None
    assert last.result.target is not None
    x, y = (torch.cat([getattr(c.train, k) for c in fed.clients]) for k in ("x", "y"))
    right = PFT.predict(last.state, x, fed.task).argmax(dim=1) == y
    assert float(right.double().mean()) > 0.6  # of 0.25 by chance


def test_the_same_seed_gives_the_same_bits_in_any_order():
    fed = make()
    updates = updates_of(fed)
    one, other = (
        PFT.aggregate(u, fed.first, fed.task) for u in (updates, updates[::-1])
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    third = PFT.aggregate(updates, fed.first, replace(fed.task, seed=1))
    assert (third["weight"] - one["weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("compress", ["none", "fp16", "int8"])
@pytest.mark.parametrize("compress_down", ["none", "int8"])
def test_it_goes_through_every_codec(compress, compress_down):
    *_, last = federate(make(compress=compress, compress_down=compress_down))
    assert all(bool(value.isfinite().all()) for value in last.state.values())


def test_a_nan_update_is_left_out():
    fed = make()
    run = Run(fed)
    opened = run.open_round()
    updates = train_clients(fed, opened.sent.seen, fed.clients, 1)
    updates[0].state["means"][0] = float("nan")
    run.aggregate(opened, updates, [c.name for c in fed.clients])
    result = run.close_round(opened)
    assert result.quarantined == 1
    alone = PFT.aggregate(
        updates_of(replace(fed, clients=fed.clients[1:])), fed.first, fed.task
    )
    assert run.state["weight"].shape == alone["weight"].shape
    assert bool(run.state["weight"].isfinite().all())


def test_a_part_of_the_clients_is_enough():
    result = run_round(Run(make(participation=0.5)))
    assert len(result.participants) == 1


def test_small_classes_are_left_out_and_said():
    fed = make(min_count=12)
    counts = [torch.bincount(c.train.y, minlength=4) for c in fed.clients]
    few = sum(int(n) for count in counts for n in count if n < 12)
    assert few  # else the data show nothing
    (remark,) = PFT.remarks(fed.first, fed.clients, fed.task)
    assert remark.startswith(f"fedpft: {few} training rows are left out")
    for count, update in zip(counts, updates_of(fed)):
        assert torch.equal(update.state["share"][:, 0] > 0, count >= 12)
    assert not PFT.remarks(fed.first, fed.clients, make(min_count=1).task)


def test_without_any_gaussian_it_stays_zero_shot():
    fed = make(min_count=1000)
    *_, last = federate(fed)
    found = PFT.predict(last.state, fed.target.x, fed.task)
    wanted = 100 * F.normalize(fed.target.x, dim=1) @ fed.task.text.t()
    torch.testing.assert_close(found, wanted)
    nothing = Samples(fed.target.x[:0], fed.target.y[:0])
    empty = replace(fed.clients[0], train=nothing)
    assert not PFT.local_train(fed.first, empty, fed.task, 1).state["share"].any()


def test_it_resumes_to_the_same_bits(tmp_path):
    fed = make(rounds=2)
    *_, whole = federate(fed)
    for standing in checkpointed(fed, Checkpoint(tmp_path, "id")):
        if standing.progress.round == 1:
            break
    *_, resumed = checkpointed(fed, Checkpoint(tmp_path, "id"))
    assert all(torch.equal(resumed.state[k], v) for k, v in whole.state.items())


def test_privacy_of_a_mean_is_refused():
    config = with_values(
        RunConfig("fedpft", data=DataConfig(dataset="toy")), PFT.defaults
    )
    privacy = replace(config.privacy, dp_noise_multiplier=1.0, dp_clip=1.0)
    with pytest.raises(
        ConfigError, match="--alg fedpft: the server reads every update"
    ):
        build_federation(toy_features(), replace(config, privacy=privacy), "photo", 0)
