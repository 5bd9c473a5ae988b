"""Clip, noise and epsilon: against literal ones, closed forms and an attacker."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from scipy import optimize, stats

from fedclip_plugin.cli import main
from fedclip_plugin.config.schema import PrivacyConfig
from fedclip_plugin.server import privacy
from fedclip_plugin.wire.update import ClientUpdate
from tests.federation.private import flat, privacy_of

SENT = {"w": torch.linspace(-1, 1, 12).reshape(3, 4), "b": torch.ones(5)}


def update(name: str, length: float, count: int = 3, seed: int = 0) -> ClientUpdate:
    """An update ``length`` away from what was sent."""
    generator = torch.Generator().manual_seed(seed)
    step = {k: torch.randn(v.shape, generator=generator) for k, v in SENT.items()}
    scale = length / math.sqrt(sum(float(v.square().sum()) for v in step.values()))
    moved = {key: SENT[key] + scale * value for key, value in step.items()}
    return ClientUpdate(name, moved, count)


def mean_of(updates: list[ClientUpdate], asked: int, clip: float) -> np.ndarray:
    """The private mean, with noise too small to see."""
    train = PrivacyConfig(dp_noise_multiplier=1e-12, dp_clip=clip)
    return flat(privacy.private_mean(updates, SENT, train, asked, (0, 1)))


def test_long_updates_are_cut_short_ones_kept_and_silent_clients_count():
    updates = [update("a", 0.5, seed=1), update("b", 4.0, seed=2), update("c", 0.0)]
    idle = update("d", 9.0, count=0)
    origin = flat(SENT)
    moves = [flat(u.state) - origin for u in updates]
    want = origin + (moves[0] + moves[1] / 4.0) / 5
    np.testing.assert_allclose(mean_of([*updates, idle], 5, 1.0), want, atol=1e-6)
    np.testing.assert_allclose(
        mean_of([idle, *updates[::-1]], 5, 1.0), mean_of([*updates, idle], 5, 1.0)
    )


@pytest.mark.parametrize("length", [0.0, 1e-3, 1.0, 1e12])
def test_no_client_moves_the_mean_by_more_than_twice_the_clip(length):
    others = [update(f"o{i}", 0.7, seed=i) for i in range(4)]
    near, far = (mean_of([*others, update("x", s * length)], 6, 0.3) for s in (1, -1))
    assert np.linalg.norm(near - far) <= 2 * 0.3 / 6 * (1 + 1e-5)
    twice = mean_of([*others, update("x", length), update("x", length)], 6, 0.3)
    np.testing.assert_allclose(twice, near)  # one vote each, however often it answers


def draw(asked: int, entropy: tuple[int, int] | None, count: int = 200_000):
    train = PrivacyConfig(dp_noise_multiplier=1.5, dp_clip=0.2)
    sent = {"w": torch.zeros(count // 2, 2)}
    noise = privacy.private_mean([], sent, train, asked, entropy)["w"]
    return noise.double().numpy().reshape(-1) * asked / (2 * 1.5 * 0.2)


@pytest.mark.parametrize("entropy", [(3, 7), None])
@pytest.mark.parametrize("asked", [1, 40])
def test_the_noise_is_gaussian_and_as_strong_as_told(entropy, asked):
    found = draw(asked, entropy)
    assert found.std() == pytest.approx(1.0, abs=0.015)  # 9 standard errors
    assert stats.kstest(found, "norm").pvalue > 1e-7
    halves = found.reshape(2, -1)
    assert abs(np.corrcoef(halves)[0, 1]) < 0.02


def test_the_seed_and_the_round_decide_the_noise_and_secrets_do_not_repeat():
    first = draw(2, (0, 1), 64)
    assert np.array_equal(first, draw(2, (0, 1), 64))
    for other in ((0, 2), (1, 1), None):
        assert not np.array_equal(first, draw(2, other, 64))
    assert not np.array_equal(draw(2, None, 64), draw(2, None, 64))


# -- accounting -----------------------------------------------------------------------


@pytest.mark.parametrize(("multiplier", "rounds"), [(1.0, 1), (4.0, 50), (20.0, 200)])
def test_with_all_clients_epsilon_is_the_closed_form(multiplier, rounds):
    mu = math.sqrt(rounds) / multiplier

    def delta(eps: float) -> float:  # Balle and Wang 2018, theorem 8
        above = stats.norm.cdf(mu / 2 - eps / mu)
        return above - math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu)

    want = optimize.brentq(lambda eps: delta(eps) - 1e-5, 1e-9, 60)
    found = privacy.epsilon(privacy_of(multiplier), ((8, 8, rounds),))
    assert found == pytest.approx(want, rel=1e-6)
    rho = mu * mu / 2
    assert found <= rho + 2 * math.sqrt(rho * math.log(1e5))


def sampled(multiplier: float, share: mpmath.mpf, rounds: int, delta: float) -> float:
    """Wang et al. 2019, of theorems 9 and 27 what is less, and the conversion."""

    def rdp(order: int) -> mpmath.mpf:
        return order / (2 * mpmath.mpf(multiplier) ** 2)

    def difference(order: int) -> mpmath.mpf:
        terms = (
            (-1) ** i * mpmath.binomial(order, i) * mpmath.exp((i - 1) * rdp(i))
            for i in range(order + 1)
        )
        return abs(mpmath.fsum(terms))

    def bound(order: int) -> mpmath.mpf:
        two = mpmath.exp(rdp(2))
        total = 1 + share**2 * mpmath.binomial(order, 2) * min(4 * (two - 1), 2 * two)
        for j in range(3, order + 1):
            even = difference(2 * (j // 2)) * difference(2 * -(-j // 2))
            term = min(4 * mpmath.sqrt(even), 2 * mpmath.exp((j - 1) * rdp(j)))
            total += share**j * mpmath.binomial(order, j) * term
        return mpmath.log(total) / (order - 1)

    def cost(order: int) -> float:
        own = rounds * bound(order) + mpmath.log1p(-mpmath.mpf(1) / order)
        return float(own - mpmath.log(delta * order) / (order - 1))

    return min(cost(order) for order in range(2, 17))


@pytest.mark.parametrize("multiplier", [0.8, 2.0])
def test_a_sample_without_replacement_costs_what_its_theorem_says(multiplier):
    with mpmath.workdps(60):
        want = sampled(multiplier, mpmath.mpf(1) / 20, 30, 1e-5)
    found = privacy.epsilon(privacy_of(multiplier), ((200, 10, 30),))
    assert found == pytest.approx(want, rel=1e-3)
    assert found < privacy.epsilon(privacy_of(multiplier), ((10, 10, 30),))


def test_epsilon_grows_with_rounds_and_shrinks_with_noise_and_with_more_clients():
    def cost(multiplier: float, *releases: tuple[int, int, int]) -> float:
        return privacy.epsilon(privacy_of(multiplier), releases)

    assert privacy.epsilon(privacy_of(1.0), ()) == 0
    assert cost(2, (100, 10, 5)) < cost(2, (100, 10, 6)) < cost(1.5, (100, 10, 6))
    assert cost(2, (1000, 10, 5)) < cost(2, (100, 10, 5))
    both = cost(2, (100, 10, 5), (50, 10, 5))
    assert cost(2, (100, 10, 10)) < both < cost(2, (50, 10, 10))
    assert cost(2, (10, 9, 10)) <= cost(2, (10, 10, 10))


def test_rounds_are_counted_by_kind():
    releases: privacy.Releases = ()
    for clients, asked in [(10, 3), (10, 3), (9, 3), (10, 3)]:
        releases = privacy.add_round(releases, clients, asked)
    assert releases == ((9, 3, 1), (10, 3, 3))


@pytest.mark.parametrize(("clients", "asked"), [(2, 2), (8, 2)])
def test_an_attacker_who_knows_all_but_one_client_does_no_better(clients, asked):
    """The Monte-Carlo side: the best test keeps to epsilon, and comes near it."""
    train = replace(privacy_of(1.0), dp_delta=0.05)
    spent = privacy.epsilon(train, ((clients, asked, 1),))
    sent, draws = {"w": torch.zeros(1)}, 6000
    rng = np.random.default_rng(5)

    def outcomes(sign: float) -> np.ndarray:
        """Client 0 pulls to one side with all that it has, the others do nothing."""
        pull = ClientUpdate("0", {"w": torch.tensor([sign * 1e6])}, 1)
        found = []
        for i in range(draws):
            drawn = 0 in rng.choice(clients, size=asked, replace=False)
            seed = (int(sign) + 1, i)
            updates = [pull] if drawn else []
            state = privacy.private_mean(updates, sent, train, asked, seed)
            found.append(float(state["w"]))
        return np.array(found)

    up, down = outcomes(1.0), outcomes(-1.0)
    lead = max(
        np.mean(up > t) - math.exp(spent) * np.mean(down > t)
        for t in np.linspace(-1, 4, 60)
    )
    assert lead <= train.dp_delta + 0.02
    if asked == clients:  # the closed form is exact
        assert lead >= train.dp_delta - 0.02


def test_without_the_accountant_one_line_tells_what_to_install(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    words = ["--dp-noise-multiplier", "1", "--dp-clip", "1", "--out", str(tmp_path)]
    assert main(["run", *words]) == 2
    assert "pip install 'fedclip-plugin[privacy]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
