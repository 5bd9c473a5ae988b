"""GDA: the closed form whoever holds the rows; degenerate data; joining, leaving."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from fedclip_plugin.algorithms import Client, Samples, get_algorithm, with_values
from fedclip_plugin.algorithms.gda import (
    SHRINKAGES,
    ZERO_SHOTS,
    Gda,
    choose,
)
from fedclip_plugin.algorithms.statistics import Moments, Statistics
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.server.aggregation import aggregate
from fedclip_plugin.wire.update import ClientUpdate, State
from tests.federation.toy import toy_features

GDA = Gda()
NEAR = {"rtol": 1e-5, "atol": 1e-4}


def make(**options: object) -> Federation:
    values = {"rounds": 1, "weighting": "examples", **options}
    config = with_values(RunConfig("gda", data=DataConfig(dataset="toy")), values)
    return build_federation(toy_features(), config, "photo", seed=0)


def rows_of(fed: Federation) -> tuple[Tensor, Tensor]:
    parts = [c.train for c in fed.clients]
    return torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts])


def shared_out(x: Tensor, y: Tensor, parts: Sequence[Tensor]) -> list[Client]:
    none = Samples(x[:0], y[:0])
    held = [Samples(x[p], y[p]) for p in parts]
    return [Client(f"c{i:04d}", i, h, none, none) for i, h in enumerate(held)]


def one_round(fed: Federation, clients: Sequence[Client]) -> State:
    start = GDA.init(fed.task)
    updates = GDA.local_round(start, clients, fed.task, 1)
    return GDA.aggregate(updates, start, fed.task)


def literal(x: Tensor, y: Tensor, classes: int, shrinkage: float, at: Tensor) -> Tensor:
    """The formula of the module's docstring, row by row in float64."""
    x, at = F.normalize(x.double(), dim=1), F.normalize(at.double(), dim=1)
    dim = x.shape[1]
    mu = torch.stack([x[y == c].mean(dim=0) for c in range(classes)])
    within = torch.zeros(dim, dim, dtype=torch.float64)
    for row, label in zip(x, y):
        within += torch.outer(row - mu[label], row - mu[label]) / len(x)
    sphere = within.trace() / dim * torch.eye(dim, dtype=torch.float64)
    inverse = torch.linalg.inv((1 - shrinkage) * within + shrinkage * sphere)
    scores = [at @ inverse @ m - m @ inverse @ m / 2 for m in mu]
    return torch.stack(scores, dim=1)


def centred(scores: Tensor) -> Tensor:
    return scores.double() - scores.double().mean(dim=1, keepdim=True)


@pytest.mark.parametrize("shrinkage", [0.001, 0.1, 1.0])
def test_scores_are_those_of_the_formula(shrinkage):
    fed = make(shrinkage=shrinkage)
    x, y = rows_of(fed)
    found = GDA.predict(one_round(fed, fed.clients), fed.target.x, fed.task)
    wanted = centred(literal(x, y, 4, shrinkage, fed.target.x))
    assert (centred(found) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    text = 100 * F.normalize(fed.target.x, dim=1) @ fed.task.text.t()
    fused = make(shrinkage=shrinkage, zero_shot=0.5)
    both = GDA.predict(one_round(fused, fed.clients), fed.target.x, fused.task)
    torch.testing.assert_close(centred(both), centred(found + 0.5 * text), **NEAR)


def test_scikit_learn_agrees():
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(5).repeat_interleave(20)  # balanced: its priors weigh nothing then
    x = torch.randn(5, 12, generator=generator)[y] + torch.randn(
        100, 12, generator=generator
    )
    x = F.normalize(x.double(), dim=1)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2)
    wanted = torch.from_numpy(theirs.fit(x.numpy(), y.numpy()).predict_proba(x.numpy()))
    state = Statistics.of(x, y, 5).to_state(_empty(5, 12, torch.float64))
    weight, bias = Moments(state).classifier(0.2)
    torch.testing.assert_close((x @ weight.t() + bias).softmax(1), wanted)


def _empty(classes: int, dim: int, dtype: torch.dtype) -> State:
    fed = make()
    task = replace(fed.task, text=torch.zeros(classes, dim, dtype=dtype))
    return GDA.init(task)


PARTITIONS = {
    "one": lambda y: [torch.arange(len(y))],
    "by class": lambda y: [(y == c).nonzero()[:, 0] for c in range(4)],
    "a row each": lambda y: list(torch.arange(len(y)).split(1)),
    "halves, one tiny": lambda y: list(torch.arange(len(y)).split([3, len(y) - 3])),
    "with an empty one": lambda y: [torch.arange(len(y)), torch.arange(0)],
}


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.parametrize("shrinkage", [None, 0.01])
def test_how_rows_are_spread_does_not_matter(name, shrinkage):
    fed = make(shrinkage=shrinkage)
    x, y = rows_of(fed)
    state = one_round(fed, shared_out(x, y, PARTITIONS[name](y)))
    pooled = Statistics.of(x, y, 4).to_state(_empty(4, 16, torch.float64))
    for key in ("share", "sums", "second", "row_weight"):
        torch.testing.assert_close(
            state[key].double(), pooled[key], atol=1e-7, rtol=1e-6
        )
    chosen = choose(pooled, fed.task)
    assert state["chosen"].tolist() == pytest.approx(chosen)
    wanted = centred(literal(x, y, 4, chosen[0], fed.target.x))
    found = centred(GDA.predict(state, fed.target.x, fed.task))
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_the_order_of_clients_does_not_matter():
    fed = make()
    start = GDA.init(fed.task)
    updates = GDA.local_round(start, fed.clients, fed.task, 1)
    one, other = (GDA.aggregate(u, start, fed.task) for u in (updates, updates[::-1]))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_plain_mean_is_enough():
    """A server that is none of ours knows no number of rows: l is a middle one."""
    fed = make()
    start = GDA.init(fed.task)
    updates = GDA.local_round(start, fed.clients, fed.task, 1)
    state = aggregate(updates, start, fed.task.server)
    assert state["row_weight"] == 0
    x, y = rows_of(fed)
    wanted = literal(x, y, 4, SHRINKAGES[len(SHRINKAGES) // 2], fed.target.x)
    found = GDA.predict(state, fed.target.x, fed.task)
    torch.testing.assert_close(centred(found), centred(wanted), rtol=1e-4, atol=1e-3)


def test_sums_of_whole_numbers_are_enough():
    """As in SecAgg+: values within 8 in 2^24 steps, weighted, summed, divided."""
    fed = make(shrinkage=0.1)
    x, y = rows_of(fed)
    kept = y != 2  # a class of which rounding must not make a row
    clients = shared_out(x[kept], y[kept], [torch.arange(9), torch.arange(9, 56)])
    start, step = GDA.init(fed.task), 16 / 2**24
    updates = GDA.local_round(start, clients, fed.task, 1)
    rows, total = sum(u.num_examples for u in updates), {}
    for key in start:
        assert all(bool((u.state[key].abs() <= 8).all()) for u in updates)
        parts = [u.num_examples * (u.state[key] / step + 0.4).round() for u in updates]
        total[key] = torch.stack(parts).sum(dim=0) * step / rows
    state = GDA.aggregate([ClientUpdate("sum", total, rows)], start, fed.task)
    assert not bool(Moments(state).seen[2])
    wanted = GDA.predict(one_round(fed, clients), fed.target.x, fed.task)
    found = GDA.predict(state, fed.target.x, fed.task)
    assert (found - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_cross_validation_is_that_of_the_ridge_regression():
    fed = make()
    x, y = rows_of(fed)
    x, y = F.normalize(x.double(), dim=1), y
    moments = Moments(Statistics.of(x, y, 4).to_state(_empty(4, 16, torch.float64)))
    found = moments.cross_validation(SHRINKAGES, len(y))
    onehot = F.one_hot(y, 4).double()
    for shrinkage, value in zip(SHRINKAGES, found):
        penalty = shrinkage / (1 - shrinkage) * float(moments.within.trace()) / 16
        z = x - x.mean(dim=0)
        ridge = z.t() @ z + len(y) * penalty * torch.eye(16).double()
        hat = z @ torch.linalg.inv(ridge) @ z.t() + 1 / len(y)
        left = onehot - hat @ onehot
        wanted = left.square().sum() / len(y) / (1 - hat.trace() / len(y)) ** 2
        assert value == pytest.approx(float(wanted), rel=1e-7)


def test_a_second_round_chooses_by_the_clients_validation_rows():
    fed = make(rounds=2)
    *_, last = federate(fed)
    first = one_round(fed, fed.clients)
    hits = torch.zeros(len(SHRINKAGES), len(ZERO_SHOTS))
    for i, shrinkage in enumerate(SHRINKAGES):
        for j, zero_shot in enumerate(ZERO_SHOTS):
            rule = {**first, "chosen": torch.tensor([shrinkage, zero_shot])}
            for c in fed.clients:
                said = GDA.predict(rule, c.val.x, fed.task).argmax(dim=1)
                hits[i, j] += (said == c.val.y).sum()
    best = divmod(int(hits.argmax()), len(ZERO_SHOTS))
    wanted = SHRINKAGES[best[0]], ZERO_SHOTS[best[1]]
    assert last.state["chosen"].tolist() == pytest.approx(wanted)
    rows = 100 / float(last.state["row_weight"])
    torch.testing.assert_close(last.state["hits"] * rows, hits, rtol=1e-5, atol=1e-3)


def test_test_rows_decide_nothing():
    fed = make(rounds=2)
    blind = tuple(replace(c, test=c.test[:0]) for c in fed.clients)
    (*_, one), (*_, other) = (
        federate(f) for f in (fed, replace(fed, clients=blind, target=None))
    )
    assert all(torch.equal(one.state[k], other.state[k]) for k in one.state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_who_joins_is_added_and_who_leaves_was_never_there(dtype):
    fed = make()
    x, y = rows_of(fed)
    early, late = torch.arange(40), torch.arange(40, len(y))
    empty = _empty(4, 16, dtype)
    few = Statistics.of(x[early], y[early], 4)
    more = Statistics.of(x[late], y[late], 4)
    held = Statistics.of_state(few.to_state(empty))  # what a server has on its disk
    for found, wanted in (
        (held + more, Statistics.of(x, y, 4)),
        (Statistics.of_state((few + more).to_state(empty)) - more, few),
    ):
        assert found.rows == wanted.rows
        assert torch.equal(found.counts, wanted.counts)
        one, other = found.to_state(empty), wanted.to_state(empty)
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-6, atol=1e-6)
        a, b = (GDA.predict(s, fed.target.x, fed.task) for s in (one, other))
        assert (a.softmax(1) - b.softmax(1)).abs().max() < 1e-4
        assert torch.equal(a.argmax(1), b.argmax(1))


def test_a_class_leaves_with_its_only_client():
    fed = make()
    x, y = rows_of(fed)
    alone, rest = (Statistics.of(x[m], y[m], 4) for m in (y == 1, y != 1))
    empty = _empty(4, 16, torch.float32)
    left = Statistics.of_state((alone + rest).to_state(empty)) - alone
    state = left.to_state(empty)
    assert state["share"][1] == 0
    assert not bool((GDA.predict(state, x, fed.task).argmax(dim=1) == 1).any())


def test_more_rows_than_there_are_cannot_leave():
    few, more = (
        Statistics.of(torch.ones(n, 2), torch.zeros(n).long(), 2) for n in (1, 2)
    )
    with pytest.raises(ConfigError, match="2 rows cannot leave 1"):
        _ = few - more
    with pytest.raises(ConfigError, match="no rows"):
        Statistics.of_state(_empty(2, 2, torch.float32))


def test_without_any_row_it_is_zero_shot():
    fed = make()
    nobody = shared_out(*rows_of(fed), [torch.arange(0)])
    for state in (GDA.init(fed.task), one_round(fed, nobody)):
        found = GDA.predict(state, fed.target.x, fed.task)
        wanted = 100 * F.normalize(fed.target.x, dim=1) @ fed.task.text.t()
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_rows_than_features(count, rounds):
    fed = make(rounds=rounds)
    x, _ = rows_of(fed)
    few = [replace(c, train=c.train[:count]) for c in fed.clients[:1]]
    *_, last = federate(replace(fed, clients=tuple(few)))
    found = GDA.predict(last.state, x, fed.task)
    assert bool(found.isfinite().all())
    seen = few[0].train.y.unique()
    if rounds == 1:  # without zero-shot only what was seen can be said
        assert set(found.argmax(dim=1).tolist()) <= set(seen.tolist())
    own = GDA.predict(last.state, few[0].train.x, fed.task).argmax(dim=1)
    assert torch.equal(own, few[0].train.y)


def test_rows_that_are_all_alike():
    fed = make()
    x, y = torch.ones(6, 16), torch.tensor([0, 0, 1, 1, 3, 3])
    x[2:4, :8] = -1
    x[4:, 8:] = -1
    state = one_round(fed, shared_out(x, y, [torch.arange(6)]))
    found = GDA.predict(state, x, fed.task)
    assert bool(found.isfinite().all())
    assert torch.equal(found.argmax(dim=1), y)


def test_a_class_without_rows_wins_by_zero_shot_alone():
    fed = make(shrinkage=0.3)
    x, y = rows_of(fed)
    kept = y != 0
    clients = shared_out(x[kept], y[kept], [torch.arange(int(kept.sum()))])
    at = fed.task.text[:1]
    for zero_shot, wanted in ((0.0, False), (100.0, True)):
        task = make(shrinkage=0.3, zero_shot=zero_shot).task
        state = one_round(replace(fed, task=task), clients)
        said = GDA.predict(state, torch.cat([x, at]), task).argmax(dim=1)
        assert bool((said == 0).any()) == wanted
        assert not zero_shot or said[-1] == 0


def test_a_thousand_classes_of_a_thousand_features():
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(1000, 1024, generator=generator), dim=1)
    y = torch.randint(0, 990, (3000,), generator=generator)
    x = text[y] + 0.02 * torch.randn(3000, 1024, generator=generator)
    task = replace(make().task, text=text)
    start = GDA.init(task)
    clients = shared_out(x, y, list(torch.arange(3000).split(1000)))
    updates = GDA.local_round(start, clients, task, 1)
    state = GDA.aggregate(updates, start, task)
    assert sum(v.numel() for v in state.values()) == 1000 * 1025 + 512 * 1025 + 51
    found = GDA.predict(state, x[:500], task)
    assert (found.argmax(dim=1) == y[:500]).double().mean() > 0.99


def test_an_indefinite_covariance_is_made_definite():
    fed = make(shrinkage=0.001)
    state = one_round(fed, fed.clients)
    generator = torch.Generator().manual_seed(0)
    state["second"] += 1e-2 * torch.randn(state["second"].shape, generator=generator)
    assert bool(GDA.predict(state, fed.target.x, fed.task).isfinite().all())


@pytest.mark.parametrize("name", ["gda", "tofa"])
def test_rounding_on_the_way_does_not_decide(name):
    """Clients' rows hardly vary where a new domain's do; noise of 1e-6 hides that."""
    algorithm, dim = get_algorithm(name), 64
    config = with_values(
        RunConfig(name, data=DataConfig(dataset="toy")),
        {"rounds": 1, "shrinkage": 0.001},
    )
    fed = build_federation(toy_features(dim=dim), config, "photo", seed=0)
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1e-6] * (dim - 8) + [0.05] * 8)
    y = torch.arange(600) % len(fed.task.text)
    x = torch.randn(600, dim, generator=generator) * spread
    x[torch.arange(600), dim - 1 - y] += 0.3
    x[:, 0] += 1
    unseen = x + 0.1 * torch.randn(600, dim, generator=generator) * (spread < 0.01)
    clients = shared_out(x, y, torch.arange(600).split(200))
    start = algorithm.init(fed.task)
    state = algorithm.aggregate(
        algorithm.local_round(start, clients, fed.task, 1), start, fed.task
    )
    noise = torch.randn(state["second"].shape, generator=generator)
    rounded = {**state, "second": state["second"] + 1e-6 * noise}

    def right(of: State) -> float:
        scores = algorithm.predict(of, unseen, fed.task)
        return float((scores.argmax(dim=1) == y).double().mean())

    assert not algorithm.remarks(state, clients, fed.task)
    (line,) = algorithm.remarks(rounded, clients, fed.task)
    assert re.search(rf"[1-9]\d* of {dim} directions", line)
    assert right(state) > 0.9
    assert right(rounded) > right(state) - 0.05


def test_compression_goes_with_one_round_only():
    assert make(compress="int8").first
    with pytest.raises(ConfigError, match="--rounds 1 only"):
        _ = make(rounds=2, compress="int8").first


def test_directions_in_which_nothing_varies_are_no_remark() -> None:
    fed = make()
    x, y = rows_of(fed)
    x = torch.cat([x[:, :8], x[:, :8]], dim=1)  # half of the covariance's rank
    clients = shared_out(x, y, [torch.arange(len(y))])
    state = one_round(fed, clients)
    assert float(torch.linalg.eigvalsh(Moments(state).within)[0]) < 1e-6
    assert not GDA.remarks(state, clients, fed.task)
