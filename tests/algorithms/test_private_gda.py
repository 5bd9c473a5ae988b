"""``gda`` in one private release: sensitivity, noise, calibration, what comes out."""

from __future__ import annotations

import math
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedclip_plugin.algorithms import private_gda as private
from fedclip_plugin.algorithms import with_values
from fedclip_plugin.algorithms.gda import Gda
from fedclip_plugin.algorithms.statistics import Statistics
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.server import privacy
from fedclip_plugin.wire.update import ClientUpdate, State
from tests.federation.toy import toy_features

GDA = Gda()


def make(**options: object) -> Federation:
    config = with_values(
        RunConfig("gda", data=DataConfig(dataset="toy")),
        {"rounds": 1, "weighting": "examples", **options},
    )
    return build_federation(toy_features(), config, "photo", seed=0)


def rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator).double()


@pytest.mark.parametrize(("classes", "dim"), [(2, 3), (7, 16), (40, 8)])
def test_one_row_moves_the_scaled_sums_by_one(classes, dim):
    a, b, c = private.split(classes, dim)
    assert a * a + b * b + c * c == pytest.approx(1)
    x, y = rows(50, dim), torch.arange(50) % classes
    x[0] = F.one_hot(torch.tensor(1), dim)  # the worst for a plain triangle
    for i in range(50):
        kept = torch.arange(50) != i
        few = Statistics.of(x[kept], y[kept], classes)
        moved = Statistics.of(x, y, classes) - few
        row, column = torch.triu_indices(dim, dim)
        weight = torch.where(row == column, 1.0, math.sqrt(2)).double()
        packed = weight * moved.second[row, column]
        parts = (a * moved.counts, b * moved.sums, c * packed)
        length = torch.cat([part.reshape(-1) for part in parts]).norm()
        assert float(length) == pytest.approx(1, abs=1e-7)
        assert float(moved.second[row, column].norm()) <= 1 + 1e-9


def test_noise_has_the_deviations_that_sensitivity_asks_for():
    classes, dim, multiplier = 5, 60, 3.0
    zero = Statistics(
        0.0,
        torch.zeros(classes).double(),
        torch.zeros(classes, dim).double(),
        torch.zeros(dim, dim).double(),
    )
    noise = private.noise_of(classes, dim, multiplier)
    drawn = [private.release(zero, noise, (seed, 1)) for seed in range(40)]
    a, b, c = private.split(classes, dim)
    row, column = torch.triu_indices(dim, dim, 1)
    for found, wanted in (
        ([d.counts for d in drawn], multiplier / a),
        ([d.sums for d in drawn], multiplier / b),
        ([d.second.diagonal() for d in drawn], multiplier / c),
        ([d.second[row, column] for d in drawn], multiplier / c / math.sqrt(2)),
    ):
        values = torch.cat([f.reshape(-1) for f in found])
        limit = 5 * wanted / math.sqrt(2 * len(values))
        assert abs(float(values.std()) - wanted) < limit
    assert all(torch.equal(d.second, d.second.t()) for d in drawn)
    again = private.release(zero, noise, (0, 1))
    assert torch.equal(again.second, drawn[0].second)
    secret = [private.release(zero, noise, None) for _ in range(2)]
    assert not torch.equal(secret[0].sums, secret[1].sums)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 8.0])
def test_calibration_is_that_of_the_accountants(epsilon):
    multiplier = privacy.multiplier_for(epsilon, 1e-5)
    event = dp_accounting.GaussianDpEvent(multiplier)
    exact = dp_accounting.pld.PLDAccountant()
    exact.compose(event)
    assert float(exact.get_epsilon(1e-5)) == pytest.approx(epsilon, rel=5e-3)
    renyi = dp_accounting.rdp.RdpAccountant()
    renyi.compose(event)
    assert float(renyi.get_epsilon(1e-5)) >= epsilon * 0.999
    fed = make(epsilon=epsilon)
    assert GDA.epsilon(fed.task) == pytest.approx(epsilon, rel=1e-4)


def test_isotonic_is_the_literal_formula():
    values = rows(1, 12)[0]
    found = private.isotonic(values)
    for k in range(12):
        wanted = max(
            min(float(values[i : j + 1].mean()) for j in range(k, 12))
            for i in range(k + 1)
        )
        assert float(found[k]) == pytest.approx(wanted, abs=1e-12)


def test_a_covariance_comes_nearer_and_is_definite():
    dim, noise = 120, 0.05
    values = torch.cat([torch.tensor([6.0, 3.0]), torch.full((dim - 2,), 0.2)])
    basis = torch.linalg.qr(rows(dim, dim))[0]
    true = (basis * values.double()) @ basis.t()
    draw = rows(dim, dim, 1)
    noisy = true + noise * (draw + draw.t()) / math.sqrt(2)
    found = private.shrunk_covariance(noisy, noise)
    assert float((found - true).norm()) < 0.6 * float((noisy - true).norm())
    assert float(torch.linalg.eigvalsh(found)[0]) > 0


def test_directions_that_noise_has_mixed_are_not_trusted():
    dim, noise = 40, 0.01  # most spread lies in few directions
    true = torch.diag(torch.logspace(1, -6, dim, dtype=torch.float64))
    draw = rows(dim, dim, 1)
    noisy = true + noise * (draw + draw.t()) / math.sqrt(2)
    values = torch.linalg.eigvalsh(private.shrunk_covariance(noisy, noise))
    assert float(values[0]) == pytest.approx(noise * math.sqrt(dim))
    assert float(values[-1]) == pytest.approx(10, rel=0.05)
    mild = private.shrunk_covariance(1e-4 * noisy, noise)  # all of it is within noise
    assert float(torch.linalg.eigvalsh(mild)[0]) <= float(mild.trace()) / dim + 1e-12


def test_without_noise_nothing_changes():
    x, y = rows(90, 8), torch.arange(90) % 3
    exact = Statistics.of(x, y, 3)
    found = private.denoised(exact, private.Noise(0, 0, 0), F.normalize(rows(3, 8)))
    for name in ("counts", "sums", "second"):
        torch.testing.assert_close(getattr(found, name), getattr(exact, name))


def test_a_lot_of_epsilon_is_plain_gda():
    plain, fed = make(shrinkage=0.1), make(shrinkage=0.1, epsilon=1e6)
    (*_, one), (*_, other) = federate(plain), federate(fed)
    x = fed.target.x
    a, b = GDA.predict(one.state, x, plain.task), GDA.predict(other.state, x, fed.task)
    assert (a.argmax(1) == b.argmax(1)).double().mean() > 0.98
    for key in ("share", "sums", "second"):
        assert float((one.state[key] - other.state[key]).abs().max()) < 5e-3


def test_with_hardly_any_epsilon_it_asks_the_text():
    fed = make(epsilon=0.001)
    *_, last = federate(fed)
    assert bool(GDA.predict(last.state, fed.target.x, fed.task).isfinite().all())


def test_the_seed_decides_unless_it_is_secret():
    def run(**more: object) -> State:
        *_, last = federate(make(epsilon=3.0, **more))
        assert last.progress.epsilon == pytest.approx(3, rel=1e-4)
        return last.state

    one, other = run(), run()
    assert all(torch.equal(one[key], other[key]) for key in one)
    secret = run(dp_seed="secret"), run(dp_seed="secret")
    assert not torch.equal(secret[0]["sums"], secret[1]["sums"])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_rows_or_none_are_hidden_too(count):
    fed = make(epsilon=8.0)
    one = replace(fed.clients[0], train=fed.clients[0].train[:count])
    start = GDA.init(fed.task)
    updates = GDA.local_round(start, [one], fed.task, 1)
    state = GDA.aggregate(updates, start, fed.task)
    assert bool(state["sums"].abs().sum() > 0)
    assert bool(GDA.predict(state, fed.target.x, fed.task).isfinite().all())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rounds": 2}, "--rounds 2"),
        ({"weighting": "uniform"}, "--weighting uniform"),
        ({"aggregation": "median"}, "--aggregation median"),
        ({"compress": "int8"}, "--compress int8"),
        (
            {"weighting": "uniform", "dp_noise_multiplier": 1.0, "dp_clip": 1.0},
            "choose one",
        ),
    ],
)
def test_what_voids_the_promise_is_refused(options, why):
    with pytest.raises(ConfigError, match=why):
        GDA.init(make(epsilon=3.0, **options).task)


def test_how_far_an_update_lies_does_not_decide():
    assert make(epsilon=3.0).task.distance_limit == 0


@pytest.mark.parametrize("multiplier", [1e-6, 0.5])
def test_clients_are_private_by_the_shared_options(multiplier):
    more = {"dp_noise_multiplier": multiplier, "dp_clip": 100.0}
    fed = make(weighting="uniform", **more)
    *_, last = federate(fed)
    assert last.result.epsilon == privacy.epsilon(fed.task.privacy, ((3, 3, 1),))
    assert float(last.state["row_weight"]) == 0
    said = GDA.predict(last.state, fed.target.x, fed.task)
    assert bool(said.isfinite().all())
    if multiplier < 0.1:
        plain = make()
        *_, bare = federate(plain)
        wanted = GDA.predict(bare.state, fed.target.x, plain.task).argmax(1)
        assert float((said.argmax(1) == wanted).double().mean()) > 0.8


def test_the_noise_of_private_clients_is_taken_into_account():
    cohort, more = 300, {"dp_noise_multiplier": 2.0, "dp_clip": 1.0}
    task = make(weighting="uniform", **more).task
    start = GDA.init(task)
    x, y = rows(400, task.dim), torch.arange(400) % len(task.text)
    true = Statistics.of(x + 3 * task.text.double()[y], y, len(task.text))
    state = true.to_state(start)
    noisy = privacy.private_mean([], state, task.privacy, cohort, (0, 1))
    update = ClientUpdate("", noisy, cohort)
    found = GDA.aggregate([update], start, task)
    for key, most in {"second": 0.6, "sums": 0.9}.items():
        after, before = (each[key] - state[key] for each in (found, noisy))
        assert float(after.norm()) < most * float(before.norm())
    assert float(found["row_weight"]) == 0


def test_the_update_of_private_clients_tells_the_cohort():
    config = make(weighting="uniform", dp_noise_multiplier=1.0, dp_clip=0.5).task
    sent = {"w": torch.zeros(20000)}
    update = privacy.private_update([], sent, config.privacy, 8, (0, 1))
    scale = privacy.noise_scale(config.privacy, update.num_examples)
    assert update.num_examples == 8
    assert float(update.state["w"].std()) == pytest.approx(scale, rel=0.05)


def test_the_same_sums_however_rows_are_spread():
    fed = make(epsilon=8.0)
    start = GDA.init(fed.task)
    updates = GDA.local_round(start, fed.clients, fed.task, 1)
    count = sum(u.num_examples for u in updates)
    whole = {
        key: sum(u.num_examples * u.state[key] for u in updates) / count
        for key in start
    }
    one = GDA.aggregate(updates, start, fed.task)
    other = GDA.aggregate([ClientUpdate("all", whole, count)], start, fed.task)
    for key in ("share", "sums", "second"):
        np.testing.assert_allclose(one[key], other[key], rtol=1e-3, atol=1e-4)
