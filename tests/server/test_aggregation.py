"""Robust rules against literal ones, and up to and beyond their breakdown points."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import optimize

from fedclip_plugin.config.schema import AGGREGATIONS, ServerConfig
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.server import aggregation as robust
from fedclip_plugin.server.aggregation import RULES, aggregate, combine
from fedclip_plugin.wire.update import ClientUpdate, State

SENT = {"w": torch.ones(3, 4), "b": torch.zeros(7)}


def honest(count: int, seed: int = 0) -> list[State]:
    """Updates around 0.3, each with noise of its own."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return 0.3 + 0.05 * torch.randn(like.shape, generator=generator)

    return [{k: v + noise(v) for k, v in SENT.items()} for _ in range(count)]


def attack(kind: str, states: list[State], count: int) -> list[State]:
    """The last ``count`` clients lie."""
    generator = torch.Generator().manual_seed(1)
    bad = []
    for state in states[len(states) - count :]:
        if kind == "sign-flip":
            lie = {k: SENT[k] - 3 * (v - SENT[k]) for k, v in state.items()}
        elif kind == "scaling":
            lie = {k: SENT[k] + 50 * (v - SENT[k]) for k, v in state.items()}
        else:
            lie = {
                k: v + 20 * torch.randn(v.shape, generator=generator)
                for k, v in state.items()
            }
        bad.append(lie)
    return states[: len(states) - count] + bad


def rows(states: list[State]) -> torch.Tensor:
    return torch.stack([torch.cat([v.flatten() for v in s.values()]) for s in states])


def flat(state: State) -> torch.Tensor:
    return rows([state])[0]


def run(rule: str, states: list[State], byzantine: float = 0.3) -> torch.Tensor:
    return flat(combine(rule, states, torch.ones(len(states)), SENT, byzantine))


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_rules_per_coordinate_are_numpys(count):
    states = honest(count)
    x = rows(states).double().numpy()
    np.testing.assert_allclose(run("median", states), np.median(x, axis=0), rtol=1e-6)
    cut = min(int(0.3 * count + 0.5), (count - 1) // 2)
    want = np.sort(x, axis=0)[cut : count - cut].mean(axis=0)
    np.testing.assert_allclose(run("trimmed-mean", states), want, rtol=1e-6)


def test_chunks_change_nothing(monkeypatch):
    states = honest(6)
    before = {rule: run(rule, states) for rule in RULES}
    monkeypatch.setattr(robust, "COLUMNS", 3)
    for rule, want in before.items():
        torch.testing.assert_close(run(rule, states), want)


def test_krum_is_the_literal_one():
    states = attack("gaussian", honest(9), 2)
    x = rows(states).double()
    f, n = 3, 9
    scores = []
    for i in range(n):
        squares = sorted(
            float((x[i] - x[j]).square().sum()) for j in range(n) if j != i
        )
        scores.append(sum(squares[: n - f - 2]))
    order = sorted(range(n), key=lambda i: scores[i])
    assert torch.equal(run("krum", states), rows(states)[order[0]])
    want = x[sorted(order[: n - f])].mean(dim=0)
    torch.testing.assert_close(
        run("multi-krum", states).double(), want, rtol=1e-6, atol=0
    )


def test_the_geometric_median_minimises_the_distances():
    states = attack("scaling", honest(7), 2)
    x = rows(states).double().numpy()

    def total(y: np.ndarray) -> float:
        return float(np.linalg.norm(x - y, axis=1).sum())

    best = optimize.minimize(total, np.median(x, axis=0), method="BFGS")
    assert total(run("geometric-median", states).double().numpy()) <= best.fun + 1e-4


def test_the_geometric_median_at_a_client():
    """More than half of the clients agree: theirs is the median, at distance zero."""
    states = [honest(1)[0]] * 4 + attack("scaling", honest(3), 3)
    found = run("geometric-median", states)
    torch.testing.assert_close(found, flat(states[0]), rtol=0, atol=1e-3)


def test_a_clipped_mean_cuts_to_the_median_length():
    states = attack("scaling", honest(5), 1)
    start = flat(SENT).double()
    steps = rows(states).double() - start
    lengths = steps.norm(dim=1)
    limit = lengths.sort().values[2]
    want = start + (steps * (limit / lengths).clamp(max=1)[:, None]).mean(dim=0)
    torch.testing.assert_close(
        run("clipped-mean", states).double(), want, rtol=1e-5, atol=1e-6
    )


ROBUST = [r for r in RULES if r != "clipped-mean"]


@pytest.mark.parametrize(
    ("rule", "kind"),
    list(itertools.product(ROBUST, ["sign-flip", "scaling", "gaussian"])),
)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
def test_below_the_breakdown_point_the_result_stays_among_the_honest(rule, kind, share):
    count = 20
    states = attack(kind, honest(count), int(share * count))
    byzantine = min(share, 0.44)  # krum needs n > 2 f + 2
    found = run(rule, states, byzantine)
    good = rows(honest(count))
    off = float((found - good.mean(dim=0)).norm())
    spread = float((good - good.mean(dim=0)).norm(dim=1).max())
    assert off <= 2 * spread, f"{off} from the honest mean, they spread {spread}"
    plain = float((run("mean", states) - good.mean(dim=0)).norm())
    assert plain > off


@pytest.mark.parametrize("rule", ROBUST)
def test_above_it_the_attackers_win(rule):
    """No rule can stand a majority that agrees: the test of the tests above."""
    states = honest(9)
    lie = attack("scaling", honest(1), 1)[0]
    states = states[:3] + [lie] * 6
    off = run(rule, states, 0.3) - rows(honest(9)).mean(dim=0)
    assert float(off.norm()) > 20


def test_weights_count_where_the_rule_knows_them():
    states = honest(4)
    heavy = torch.tensor([1.0, 1.0, 1.0, 100.0])
    for rule in ("mean", "geometric-median", "clipped-mean"):
        even = run(rule, states)
        skewed = flat(combine(rule, states, heavy, SENT, 0.3))
        target = flat(states[3])
        assert float((skewed - target).norm()) < float((even - target).norm()), rule


@pytest.mark.parametrize("rule", AGGREGATIONS)
def test_any_order_of_arrival_gives_the_same_bits(rule):
    updates = [ClientUpdate(f"c{i}", s, i + 1) for i, s in enumerate(honest(5))]
    train = ServerConfig(aggregation=rule)
    first = aggregate(updates, SENT, train)
    for order in itertools.islice(itertools.permutations(updates), 0, 120, 17):
        again = aggregate(order, SENT, train)
        assert all(torch.equal(first[k], again[k]) for k in SENT)


@pytest.mark.parametrize("rule", AGGREGATIONS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_clients(rule, count):
    states = honest(count)
    found = run(rule, states)
    assert bool(torch.isfinite(found).all())
    low, high = rows(states).min(dim=0).values, rows(states).max(dim=0).values
    if rule != "clipped-mean":
        assert bool(((found >= low - 1e-6) & (found <= high + 1e-6)).all())


def test_identical_updates_stay_as_they_are():
    states = [honest(1)[0]] * 4
    for rule in AGGREGATIONS:
        torch.testing.assert_close(run(rule, states), flat(states[0]))


def test_settings_out_of_range_are_named():
    with pytest.raises(ConfigError, match=r"aggregation"):
        ServerConfig(aggregation="vote")
    with pytest.raises(ConfigError, match=r"byzantine"):
        ServerConfig(byzantine=0.5)
    with pytest.raises(ConfigError, match=r"max_norm_ratio"):
        ServerConfig(max_norm_ratio=-1.0)
    assert set(AGGREGATIONS) == {"mean", *RULES}
