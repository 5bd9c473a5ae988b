"""--augment ggeur: the spread of classes, what is drawn, and what travels when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedclip_plugin.algorithms import Samples, make_algorithm, with_values
from fedclip_plugin.algorithms.augment import (
    CUT,
    FACTORS,
    MEANS,
    OURS,
    READY,
    SPREAD,
    Augmented,
    augmented,
    pooled,
)
from fedclip_plugin.algorithms.fedclip import FedClip
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import Run, federate, run_round
from fedclip_plugin.federation.personalization import personalize
from fedclip_plugin.federation.rounds import train_clients
from fedclip_plugin.wire.message import state_bytes
from tests.federation.toy import resumed, toy_features

METHODS = ("fedclip", "linear")


def make(name: str = "linear", **options: object) -> Federation:
    values = {
        "rounds": 3, "batch_size": 16, "lr": 1e-2, "augment": "ggeur",
        "augment_per_class": 30, **options,
    }  # fmt: skip
    config = with_values(RunConfig(name, data=DataConfig(dataset="toy")), values)
    return build_federation(toy_features(), config, "photo", seed=0)


def after_first_round(fed: Federation) -> Run:
    run = Run(fed)
    run_round(run)
    return run


@pytest.mark.parametrize("scale", ["eigenvalue", "deviation"])
def test_the_spread_is_that_of_all_rows_together(scale):
    fed = make(augment_scale=scale)
    state = after_first_round(fed).state
    x = torch.cat([c.train.x for c in fed.clients]).double().numpy()
    y = torch.cat([c.train.y for c in fed.clients]).numpy()
    for c in range(4):
        rows = x[y == c]
        mean = sum(rows) / len(rows)
        covariance = sum(np.outer(r - mean, r - mean) for r in rows) / len(rows)
        assert np.abs(state[MEANS][c].numpy() - mean).max() < 1e-6
        factors = state[FACTORS][c].double().numpy()  # (R, D), R = D here
        product = factors.T @ factors
        wanted = covariance @ covariance if scale == "eigenvalue" else covariance
        assert np.abs(product - wanted).max() < 1e-5
        assert float(state[SPREAD][c]) == pytest.approx(np.trace(covariance), rel=1e-5)


def test_parts_make_the_whole():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double()
    parts = x.split([1, 4, 45])
    covariances = [torch.cov(p.t(), correction=0).reshape(6, 6) for p in parts]
    mean, covariance = pooled(
        [float(len(p)) for p in parts], [p.mean(dim=0) for p in parts], covariances
    )
    torch.testing.assert_close(mean, x.mean(dim=0))
    torch.testing.assert_close(covariance, torch.cov(x.t(), correction=0))


def test_rows_are_drawn_as_the_formula_says():
    fed = make(augment_per_class=4000, augment_prototypes=3000)
    state = dict(fed.first)
    state[FACTORS] = torch.zeros(4, 16, 16)
    state[FACTORS][0, 0, 0], state[FACTORS][0, 1, 1] = 2.0, 0.5
    state[FACTORS][2, 0, 3] = 1.0
    state[MEANS] = torch.full((4, 16), 7.0)
    own = Samples(torch.arange(48.0).reshape(3, 16), torch.tensor([0, 0, 1]))
    found = augmented(own, 5, state, fed.task)
    assert torch.equal(found.x[:3], own.x)
    around = found.x[3 : 3 + 3998]
    assert bool((found.y[3 : 3 + 3998] == 0).all())
    noise = around - own.x[torch.arange(3998) % 2]
    assert float(noise[:, 0].std()) == pytest.approx(2.0, abs=0.1)
    assert float(noise[:, 1].std()) == pytest.approx(0.5, abs=0.03)
    assert not noise[:, 2:].any()
    assert torch.bincount(found.y).tolist() == [4000 + 3000, 1, 3000]  # 1 has no spread
    prototypes = found.x[found.y == 2]
    assert float(prototypes[:, 3].mean()) == pytest.approx(7.0, abs=0.1)
    again = augmented(own, 5, state, fed.task)
    assert torch.equal(again.x, found.x)
    other = augmented(own, 6, state, fed.task)
    assert (other.x - found.x).abs().max() > 0.1


@pytest.mark.parametrize("name", METHODS)
def test_what_travels_in_which_round(name):
    fed = make(name)
    inner = make_algorithm(with_values(RunConfig(name), {"augment": "none"}))
    plain = inner.init(fed.task)
    run = Run(fed)
    opened = run.open_round()
    assert opened.sent.payload.keys() == {*plain, READY}
    assert sum(v.numel() for v in opened.sent.answer.values()) == 4 * (1 + 16 + 136)
    run_round(run)
    for number in (2, 3):
        opened = run.open_round()
        assert opened.sent.payload.keys() == {*plain, READY, FACTORS, MEANS}
        assert opened.sent.answer.keys() == plain.keys()
        result = run_round(run)
        assert result.round == number
        assert result.bytes_down == 2 * state_bytes(opened.sent.payload)
        assert result.bytes_up < 2 * (state_bytes(plain) + 1000)
    assert run.now.best.keys() == plain.keys()


@pytest.mark.parametrize("name", METHODS)
def test_training_is_the_methods_own_on_more_rows(name):
    fed = make(name)
    run = after_first_round(fed)
    assert isinstance(fed.algorithm, Augmented)
    inner = fed.algorithm.inner
    sent = {k: v for k, v in run.state.items() if not k.startswith(OURS)}
    updates = []
    for client in fed.clients:
        rows = augmented(client.train, client.index, run.state, fed.task)
        assert torch.bincount(rows.y).tolist() == [30, 30, 30, 30]
        more = replace(client, train=rows)
        updates += inner.local_round(sent, [more], fed.task, 2)
    wanted = inner.aggregate(updates, sent, fed.task)
    run_round(run)
    assert all(torch.equal(run.state[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("options", [{}, {"compress": "int8"}, {"participation": 0.5},
                                     {"server_optimizer": "adam", "server_ema": 0.5},
                                     {"compress_down": "int8"}])  # fmt: skip
@pytest.mark.parametrize("name", METHODS)
def test_it_resumes_to_the_same_bits(name, options, tmp_path):
    fed = make(name, rounds=4, **options)
    *_, whole = federate(fed)
    after = resumed(lambda: fed, tmp_path)
    for a, b in ((after.state, whole.state), (after.best, whole.best)):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(bool(v.isfinite().all()) for v in whole.state.values())


def test_who_comes_late_is_served():
    fed = make()
    early = replace(fed, clients=fed.clients[:1])
    run = after_first_round(early)
    opened = run.open_round()
    (update,) = train_clients(fed, opened.sent.seen, fed.clients[1:], 2)
    assert update.num_examples >= 30 * len(fed.clients[1].train.y.unique()) > 30


def test_a_spoilt_first_answer_is_left_out():
    fed = make()
    run = Run(fed)
    opened = run.open_round()
    updates = train_clients(fed, opened.sent.seen, fed.clients, 1)
    updates[0].state[MEANS][0] = float("nan")
    run.aggregate(opened, updates, [c.name for c in fed.clients])
    assert run.close_round(opened).quarantined == 1
    assert bool(run.state[READY])
    assert all(bool(v.isfinite().all()) for v in run.state.values())


def test_a_first_round_without_answers_is_made_up_for():
    fed = make()
    run = Run(fed)
    opened = run.open_round()
    run.aggregate(opened, [], [c.name for c in fed.clients])
    run.close_round(opened)
    assert not bool(run.state[READY])
    run_round(run)
    assert bool(run.state[READY])


def test_what_is_cut_is_said():
    fed = make(augment_rank=3)
    run = after_first_round(fed)
    assert run.state[FACTORS].shape == (4, 3, 16)
    total, cut = float(run.state[SPREAD].sum()), float(run.state[CUT].sum())
    (remark,) = fed.algorithm.remarks(run.state, fed.clients, fed.task)
    assert f"3 directions a class hold {1 - cut / total:.1%}" in remark
    whole = after_first_round(make())
    assert not whole.fed.algorithm.remarks(whole.state, fed.clients, fed.task)


def test_personalization_trains_on_the_clients_own_rows():
    fed = make("fedclip")
    *_, last = federate(fed)
    kept = {}
    personalize(fed, last.best, "finetune", kept.__setitem__)
    assert all(
        state.keys() == FedClip().init(fed.task).keys() for state in kept.values()
    )


@pytest.mark.parametrize(("name", "why"), [
    ("gda", "trains nothing on the clients"),
    ("fedpft", "trains nothing on the clients"),
    ("local", "sends nothing"),
    ("zeroshot", "sends nothing"),
    ("fedavg-lora", "trains on images"),
])  # fmt: skip
def test_what_cannot_be_augmented_is_refused(name, why):
    with pytest.raises(ConfigError, match=f"--augment ggeur: --alg {name} {why}"):
        make(name)


def test_one_round_and_privacy_are_refused():
    with pytest.raises(ConfigError, match="--rounds 2 at least"):
        _ = make(rounds=1).first
    config = with_values(RunConfig("linear", data=DataConfig(dataset="toy")),
                         {"augment": "ggeur"})  # fmt: skip
    privacy = replace(config.privacy, dp_noise_multiplier=1.0, dp_clip=1.0)
    with pytest.raises(ConfigError, match="--augment ggeur: the server reads every"):
        build_federation(toy_features(), replace(config, privacy=privacy), "photo", 0)
