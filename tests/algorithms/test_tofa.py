"""TOFA: posteriors against the formula, and the fusion of both kinds of scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.algorithms.gda import Gda, GdaParams
from fedclip_plugin.algorithms.tofa import OWN, Tofa, fused, posterior_of
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.checkpoint import Checkpoint
from fedclip_plugin.federation.engine import Run, federate
from fedclip_plugin.federation.rounds import train_clients
from tests.federation.toy import checkpointed, toy_features

TOFA = Tofa()


def make(**options: object) -> Federation:
    values = {**TOFA.defaults, **options}
    config = with_values(RunConfig("tofa", data=DataConfig(dataset="toy")), values)
    return build_federation(toy_features(), config, "photo", seed=0)


def unit(x: torch.Tensor) -> np.ndarray:
    rows: np.ndarray = F.normalize(x.double(), dim=1).numpy()
    return rows


def moments(
    x: np.ndarray, y: np.ndarray
) -> tuple[list[int], list[np.ndarray], np.ndarray]:
    """Counts, means and the scatter within classes, row by row."""
    counts, means = [], []
    within = np.zeros((x.shape[1], x.shape[1]))
    for c in range(4):
        rows = x[y == c]
        counts.append(len(rows))
        means.append(sum(rows) / max(1, len(rows)))
        for row in rows:
            within += np.outer(row - means[-1], row - means[-1])
    return counts, means, within


def literal(
    fed: Federation, own: int | None, alpha: float, k: float, shrinkage: float
) -> tuple[np.ndarray, np.ndarray]:
    """Class means and covariance at the mode, as in the module's docstring."""
    x = np.concatenate([unit(c.train.x) for c in fed.clients])
    y = np.concatenate([c.train.y.numpy() for c in fed.clients])
    rows, dim = x.shape
    counts, means, within = moments(x, y)
    m = sum(x) / rows
    v_0 = rows * shrinkage / (1 - shrinkage)
    scatter = v_0 * np.trace(within) / (rows * dim) * np.eye(dim) + within
    strength, centre = [], []
    for n, mean in zip(counts, means):
        strength.append(k + n)
        centre.append((k * m + n * mean) / (k + n))
        scatter += k * n / (k + n) * np.outer(mean - m, mean - m)
    freedom = v_0 + rows
    if own is None:
        return np.stack(centre), scatter / freedom
    x, y = unit(fed.clients[own].train.x), fed.clients[own].train.y.numpy()
    counts, means, within = moments(x, y)
    scatter = alpha * scatter + within
    for c, (n, mean) in enumerate(zip(counts, means)):
        k_c, m_c = alpha * strength[c], centre[c]
        scatter += k_c * n / (k_c + n) * np.outer(mean - m_c, mean - m_c)
        centre[c] = (k_c * m_c + n * mean) / (k_c + n)
    return np.stack(centre), scatter / (alpha * freedom + len(x))


@pytest.mark.parametrize("own", [None, 0, 1])
@pytest.mark.parametrize(
    ("alpha", "prior", "shrinkage"), [(0.5, 1.0, 0.1), (0.1, 3.0, 0.5)]
)
def test_posteriors_and_scores_are_those_of_the_formula(own, alpha, prior, shrinkage):
    fed = make(alpha=alpha, prior=prior, shrinkage=shrinkage)
    *_, last = federate(fed)
    state = last.state
    if own is not None:
        client = fed.clients[own].with_kept(last.kept)
        state = TOFA.client_state(state, client)
    means, covariance = literal(fed, own, alpha, prior, shrinkage)
    posterior = posterior_of(state, fed.task)
    assert posterior is not None
    assert np.abs(posterior.means.numpy() - means).max() < 1e-6
    found = (posterior.scatter / posterior.freedom).numpy()
    assert np.abs(found - covariance).max() < 1e-6
    z, inverse = unit(fed.target.x), np.linalg.inv(covariance)
    text = 100 * z @ fed.task.text.double().numpy().T
    for row, words, score in zip(z, text, TOFA.predict(state, fed.target.x, fed.task)):
        visual = np.array([row @ inverse @ m - m @ inverse @ m / 2 for m in means])
        p, q = (
            np.exp(s - s.max()) / np.exp(s - s.max()).sum() for s in (visual, words)
        )
        eta = 1 / (1 + np.exp(-np.log(p.max() / q.max())))
        wanted = eta * np.log(p) + (1 - eta) * np.log(q)
        assert np.abs(score.numpy() - wanted).max() < 1e-3 * max(
            1, np.abs(wanted).max()
        )


def test_the_global_covariance_is_that_of_gda():
    fed = make(prior=1e-9, shrinkage=0.1)
    *_, last = federate(fed)
    posterior = posterior_of(last.state, fed.task)
    assert posterior is not None
    task = replace(fed.task, params=GdaParams(shrinkage=0.1))
    wanted = Gda().predict(last.state, fed.target.x, task)
    z = F.normalize(fed.target.x.double(), dim=1)
    found, wanted = (
        s - s.mean(dim=1, keepdim=True) for s in (posterior.scores(z), wanted)
    )
    torch.testing.assert_close(found.float(), wanted.float(), rtol=1e-3, atol=1e-3)


def test_the_surer_kind_of_scores_counts_more():
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.2, 0.1]])
    assert int(fused(sure.double(), unsure.double()).argmax()) == 0
    assert int(fused(unsure.double(), sure.double()).argmax()) == 0
    both = fused(unsure.double(), unsure.double())
    torch.testing.assert_close(both, unsure.double().log_softmax(1))


def test_clients_are_judged_by_their_own_posterior_and_the_target_by_the_global():
    fed = make(alpha=0.05)
    *_, last = federate(fed)
    assert set(last.kept) == {c.name for c in fed.clients}
    own = TOFA.client_state(last.state, fed.clients[0].with_kept(last.kept))
    x = fed.clients[0].test.x
    gap = TOFA.predict(own, x, fed.task) - TOFA.predict(last.state, x, fed.task)
    assert gap.abs().max() > 1e-2
    assert TOFA.target_states(last.state, fed.clients) == [last.state]
    assert not any(key.startswith(OWN) for key in last.state)


def test_without_any_row_it_is_zero_shot():
    fed = make()
    found = TOFA.predict(fed.first, fed.target.x, fed.task)
    wanted = 100 * F.normalize(fed.target.x, dim=1) @ fed.task.text.t()
    torch.testing.assert_close(found, wanted)


def test_a_class_without_rows_and_a_client_of_one_class():
    fed = make()
    few = [replace(c, train=c.train[c.train.y == i]) for i, c in enumerate(fed.clients)]
    fed = replace(fed, clients=tuple(few))
    *_, last = federate(fed)
    for client in fed.clients:
        state = TOFA.client_state(last.state, client.with_kept(last.kept))
        assert bool(TOFA.predict(state, fed.target.x, fed.task).isfinite().all())


@pytest.mark.parametrize("compress", ["none", "int8"])
def test_it_resumes_to_the_same_bits(compress, tmp_path):
    fed = make(compress=compress)
    *_, whole = federate(fed)
    *_, first = checkpointed(fed, Checkpoint(tmp_path, "id"))
    resumed = Checkpoint(tmp_path, "id").load(fed)
    assert resumed is not None
    for one in (first, resumed):
        assert all(torch.equal(one.state[k], v) for k, v in whole.state.items())
        for name, kept in whole.best_kept.items():
            assert all(torch.equal(one.best_kept[name][k], v) for k, v in kept.items())


def test_a_nan_update_is_left_out_and_half_of_the_clients_are_enough():
    fed = make()
    run = Run(fed)
    opened = run.open_round()
    updates = train_clients(fed, opened.sent.seen, fed.clients, 1)
    updates[0].state["sums"][0] = float("nan")
    run.aggregate(opened, updates, [c.name for c in fed.clients])
    assert run.close_round(opened).quarantined == 1
    assert all(bool(v.isfinite().all()) for v in run.state.values())
    *_, last = federate(make(participation=0.5))
    assert len(last.kept) == 1
