"""Clip, noise and epsilon: against literal ones, closed forms and an attacker."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from scipy import optimize, stats

from fedclip_plugin import privacy
from fedclip_plugin.algorithms import FedClip
from fedclip_plugin.checkpoint import Checkpoint
from fedclip_plugin.cli import main
from fedclip_plugin.config import DataConfig, RunConfig, TrainConfig
from fedclip_plugin.engine import federate
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.federation import Federation, build_federation
from fedclip_plugin.registry.core import HostRun, Setup, open_setup
from fedclip_plugin.rounds import Tally, next_state
from fedclip_plugin.update import ClientUpdate, State
from tests.toy import toy_features, write_toy

SENT = {"w": torch.linspace(-1, 1, 12).reshape(3, 4), "b": torch.ones(5)}
PRIVATE = {"dp_noise_multiplier": 1.0, "dp_clip": 0.05}


def update(name: str, length: float, count: int = 3, seed: int = 0) -> ClientUpdate:
    """An update ``length`` away from what was sent."""
    generator = torch.Generator().manual_seed(seed)
    step = {k: torch.randn(v.shape, generator=generator) for k, v in SENT.items()}
    scale = length / math.sqrt(sum(float(v.square().sum()) for v in step.values()))
    moved = {key: SENT[key] + scale * value for key, value in step.items()}
    return ClientUpdate(name, moved, count)


def flat(state: State) -> np.ndarray:
    return torch.cat([v.reshape(-1) for v in state.values()]).double().numpy()


def mean_of(updates: list[ClientUpdate], asked: int, clip: float) -> np.ndarray:
    """The private mean, with noise too small to see."""
    train = TrainConfig(dp_noise_multiplier=1e-12, dp_clip=clip)
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
    train = TrainConfig(dp_noise_multiplier=1.5, dp_clip=0.2)
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


def train_of(multiplier: float, **more: object) -> TrainConfig:
    return TrainConfig(dp_noise_multiplier=multiplier, dp_clip=1.0, **more)


@pytest.mark.parametrize(("multiplier", "rounds"), [(1.0, 1), (4.0, 50), (20.0, 200)])
def test_with_all_clients_epsilon_is_the_closed_form(multiplier, rounds):
    mu = math.sqrt(rounds) / multiplier

    def delta(eps: float) -> float:  # Balle and Wang 2018, theorem 8
        above = stats.norm.cdf(mu / 2 - eps / mu)
        return above - math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu)

    want = optimize.brentq(lambda eps: delta(eps) - 1e-5, 1e-9, 60)
    found = privacy.epsilon(train_of(multiplier), ((8, 8, rounds),))
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
    found = privacy.epsilon(train_of(multiplier), ((200, 10, 30),))
    assert found == pytest.approx(want, rel=1e-3)
    assert found < privacy.epsilon(train_of(multiplier), ((10, 10, 30),))


def test_epsilon_grows_with_rounds_and_shrinks_with_noise_and_with_more_clients():
    def cost(multiplier: float, *releases: tuple[int, int, int]) -> float:
        return privacy.epsilon(train_of(multiplier), releases)

    assert privacy.epsilon(train_of(1.0), ()) == 0
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
    train = replace(train_of(1.0), dp_delta=0.05)
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


# -- in a federation ------------------------------------------------------------------


def config_of(**train: object) -> RunConfig:
    data = DataConfig(dataset="toy", partition="iid", clients=8)
    values = {"rounds": 4, "lr": 1e-3, "participation": 0.5, **PRIVATE, **train}
    return RunConfig(data=data, train=TrainConfig(**values))


def make(**train: object) -> Federation:
    return build_federation(toy_features(), config_of(**train), "photo", seed=0)


def same(a: State, b: State) -> bool:
    return all(torch.equal(a[key], value) for key, value in b.items())


def test_a_run_accounts_every_round_and_keeps_the_last():
    standings = list(federate(make()))[1:]
    spent = [s.result.epsilon for s in standings]
    train = make().task.train
    assert spent == [privacy.epsilon(train, ((8, 4, n),)) for n in range(1, 5)]
    assert standings[-1].progress.epsilon == spent[-1]
    assert [s.progress.best_round for s in standings] == [1, 2, 3, 4]
    assert same(standings[-1].best, standings[-1].state)
    assert all(len(s.result.participants) == 4 for s in standings)


def test_the_noise_follows_the_seed_unless_it_is_secret():
    runs = [list(federate(make()))[-1].state for _ in range(2)]
    assert same(*runs)
    hidden = [list(federate(make(dp_seed="secret")))[-1].state for _ in range(2)]
    assert not same(*hidden)


def test_a_resumed_run_ends_in_the_same_bits_and_the_same_epsilon(tmp_path):
    whole = list(federate(make()))[-1]
    for standing in federate(make(), Checkpoint(tmp_path, "id")):
        if standing.progress.round == 3:
            break
    *_, resumed = federate(make(), Checkpoint(tmp_path, "id"))
    assert same(whole.state, resumed.state)
    assert resumed.progress.releases == whole.progress.releases == ((8, 4, 4),)
    assert resumed.progress.epsilon == whole.progress.epsilon


def test_the_budget_ends_the_run_with_the_last_round_within_it():
    train = make().task.train
    budget = 1.0001 * privacy.epsilon(train, ((8, 4, 2),))
    *_, last = federate(make(dp_epsilon_budget=budget))
    assert (last.progress.round, last.last) == (2, True)
    assert last.progress.epsilon <= budget
    assert last.result.target is not None
    with pytest.raises(ConfigError, match="one round costs"):
        list(federate(make(dp_epsilon_budget=0.01)))


def test_a_delta_above_one_in_the_clients_is_warned_of(caplog):
    next(federate(make(dp_delta=0.2)))
    assert "more than 1 / 8 clients" in caplog.text


def counted(updates: list[ClientUpdate], asked: int = 4) -> Tally:
    return Tally([f"c{i}" for i in range(asked)], updates, [], 0, 0)


def test_who_is_left_out_counts_as_not_moved_and_silence_is_noisy_too():
    fed = make(dp_noise_multiplier=1e-9, dp_clip=10.0)
    state = fed.algorithm.init(fed.task)
    updates = fed.algorithm.local_round(state, fed.clients[:4], fed.task, 1)
    found = next_state(fed, counted(updates[:3]), state, 1)
    moves = [flat(u.state) - flat(state) for u in updates[:3]]
    np.testing.assert_allclose(flat(found), flat(state) + sum(moves) / 4, atol=1e-6)
    fed = make()
    assert not same(next_state(fed, counted([]), state, 1), state)


def test_a_far_update_is_cut_and_not_left_out(monkeypatch):
    """Whether it counts must not depend on how far the others moved."""
    honest = FedClip.local_round

    def local_round(self, state, clients, task, round_number):
        first, *rest = honest(self, state, clients, task, round_number)
        far = {key: value + 1e6 for key, value in first.state.items()}
        return [replace(first, state=far), *rest]

    monkeypatch.setattr(FedClip, "local_round", local_round)
    fed = make(rounds=1, dp_noise_multiplier=1e-6)
    start, last = federate(fed)
    assert last.result.quarantined == 0
    assert np.linalg.norm(flat(last.state) - flat(start.state)) <= 0.05 * 1.001
    plain = {"dp_noise_multiplier": 0.0, "dp_clip": 0.0}
    *_, last = federate(make(rounds=1, **plain))
    assert last.result.quarantined == 1


def test_a_codec_is_undone_before_the_clip():
    bare = list(federate(make(dp_noise_multiplier=1e-6)))[-1].state
    fp16 = {"compress": "fp16", "error_feedback": "off"}
    short = list(federate(make(dp_noise_multiplier=1e-6, **fp16)))[-1].state
    shared = {key: short[key] for key in bare}
    np.testing.assert_allclose(flat(shared), flat(bare), atol=2e-4)


@pytest.mark.parametrize("algorithm", ["local", "zeroshot"])
def test_what_sends_nothing_is_refused(algorithm):
    with pytest.raises(ConfigError, match="sends nothing"):
        build_federation(
            toy_features(), replace(config_of(), algorithm=algorithm), None, seed=0
        )


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"dp_clip": 0.0}, "needs --dp-clip"),
        ({"dp_noise_multiplier": 0.0}, "without noise"),
        ({"dp_noise_multiplier": -1.0}, "dp_noise_multiplier"),
        ({"dp_delta": 0.0}, "dp_delta"),
        ({"dp_delta": 1.0}, "dp_delta"),
        ({"dp_seed": "0"}, "dp_seed"),
        ({"dp_epsilon_budget": 0.0}, "dp_epsilon_budget"),
        ({"aggregation": "median"}, "expected mean"),
        ({"weighting": "examples"}, "expected uniform"),
        ({"max_norm_ratio": 50.0}, "--max-norm-ratio"),
        ({"optimizer_state": "keep"}, "--optimizer-state"),
        ({"patience": 3}, "--patience"),
        ({"compress": "int8"}, "--error-feedback"),
    ],
)
def test_settings_that_do_not_go_together_are_named(train, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{**PRIVATE, **train})


# -- on the command line and in hosts -------------------------------------------------


def words_of(tmp_path: Path, **more: object) -> list[str]:
    given = {
        "features": write_toy(tmp_path / "toy"), "target": "photo", "rounds": 3,
        "partition": "iid", "clients": 8, "participation": 0.5,
        "dp_noise_multiplier": 1.0, "dp_clip": 0.05, **more,
    }  # fmt: skip
    pairs = ((f"--{k.replace('_', '-')}", str(v)) for k, v in given.items())
    return ["run", "--quiet", *(word for pair in pairs for word in pair)]


def test_the_run_tells_what_it_promises(tmp_path, capsys):
    out = tmp_path / "out"
    words = [*words_of(tmp_path), "--out", str(out)]
    assert main(words) == 0
    told = json.loads((out / "summary.json").read_text())["privacy"]
    lines = [json.loads(s) for s in (out / "metrics.jsonl").read_text().splitlines()]
    assert told["epsilon"] == lines[-1]["epsilon"] > lines[0]["epsilon"] > 0
    assert (told["delta"], told["clip"], told["noise_multiplier"]) == (1e-5, 0.05, 1.0)
    printed = " ".join(capsys.readouterr().out.split())
    assert told["promise"] in printed
    assert "not against those who know the run's seed" in told["promise"]
    assert told["promise"].partition("'")[0] in (out / "report.html").read_text()
    assert main([*words, "--rounds", "5", "--resume"]) == 0
    longer = json.loads((out / "summary.json").read_text())["privacy"]
    assert longer["epsilon"] > told["epsilon"]


def test_a_dry_run_tells_what_the_rounds_will_cost(tmp_path, capsys):
    budget = 1.001 * privacy.epsilon(train_of(1.0), ((8, 4, 2),))
    words = words_of(tmp_path, dp_epsilon_budget=budget)
    assert main([*words, "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    cost = privacy.epsilon(train_of(1.0), ((8, 4, 3),))
    assert f"epsilon {cost:.3g} at delta 1e-05 after 3 rounds of 4 out of 8" in printed
    assert f"the budget {budget:g} allows 2" in printed


def host_setup(tmp_path: Path, **train: object) -> Setup:
    config = config_of(**{"participation": 1.0, **train})
    features = write_toy(tmp_path / "toy")
    data = replace(config.data, features=str(features), targets=("photo",))
    return open_setup(replace(config, data=data))


def run_as_a_host(run: HostRun) -> dict:
    """What a host does; all clients take part."""
    fed = run.setup.fed
    for number in range(1, fed.task.train.rounds + 1):
        updates = fed.algorithm.local_round(run.state, fed.clients, fed.task, number)
        run.record(*run.aggregate(updates, [c.name for c in fed.clients]))
    return run.finish()


def test_a_host_gives_the_same_adapter_and_the_same_epsilon(tmp_path):
    setup = host_setup(tmp_path, dp_seed="run")
    run = HostRun(setup, tmp_path / "out")
    summary = run_as_a_host(run)
    *_, last = federate(setup.fed)
    assert same(run.state, last.state)
    assert summary["privacy"]["epsilon"] == last.progress.epsilon
    line = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(line)["epsilon"] == last.progress.epsilon


def test_in_a_host_the_noise_is_secret_by_default(tmp_path):
    setup = host_setup(tmp_path)
    assert setup.config.train.dp_seed == "secret"
    summary = run_as_a_host(HostRun(setup))
    assert "seed" not in summary["privacy"]["promise"]


@pytest.mark.parametrize(
    ("drawn_from", "clients"), [(None, 4), (8, 8)], ids=["known", "unseen"]
)
def test_a_sample_costs_less_only_where_it_is_unseen(tmp_path, drawn_from, clients):
    setup = host_setup(tmp_path)
    run, fed = HostRun(setup), setup.fed
    run.drawn_from = drawn_from
    some = fed.clients[:4]
    updates = fed.algorithm.local_round(run.state, some, fed.task, 1)
    result = run.record(*run.aggregate(updates, [c.name for c in some]))
    assert result.epsilon == privacy.epsilon(fed.task.train, ((clients, 4, 1),))


def test_a_host_that_would_overspend_is_told_how_many_rounds_are_left(tmp_path):
    def cost(rounds: int) -> float:
        return privacy.epsilon(train_of(1.0), ((8, 8, rounds),))

    setup = host_setup(tmp_path, dp_epsilon_budget=1.001 * cost(3))
    with pytest.raises(ConfigError, match="set its rounds to 3"):
        HostRun(setup)
    enough = host_setup(tmp_path, dp_epsilon_budget=1.001 * cost(4))
    assert run_as_a_host(HostRun(enough))["rounds"] == 4
