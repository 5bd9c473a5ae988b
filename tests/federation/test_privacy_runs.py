"""Privacy in whole runs: budget, resume, settings, the command line and hosts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedclip_plugin.algorithms import FedClip, with_values
from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.checkpoint import Checkpoint
from fedclip_plugin.federation.downlink import Broadcast
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.federation.rounds import Screened, next_state
from fedclip_plugin.runs.host_run import HostRun, Setup, open_setup
from fedclip_plugin.server import privacy
from fedclip_plugin.wire.update import ClientUpdate, State
from tests.federation.private import PRIVATE, flat, privacy_of
from tests.federation.toy import checkpointed, toy_features, write_toy

# -- in a federation ------------------------------------------------------------------


def config_of(**train: object) -> RunConfig:
    data = DataConfig(dataset="toy", partition="iid", clients=8)
    values = {"rounds": 4, "lr": 1e-3, "participation": 0.5, **PRIVATE, **train}
    return with_values(RunConfig(data=data), values)


def make(**train: object) -> Federation:
    return build_federation(toy_features(), config_of(**train), "photo", seed=0)


def same(a: State, b: State) -> bool:
    return all(torch.equal(a[key], value) for key, value in b.items())


def test_a_run_accounts_every_round_and_keeps_the_last():
    standings = list(federate(make()))[1:]
    spent = [s.result.epsilon for s in standings]
    config = make().task.privacy
    assert spent == [privacy.epsilon(config, ((8, 4, n),)) for n in range(1, 5)]
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
    for standing in checkpointed(make(), Checkpoint(tmp_path, "id")):
        if standing.progress.round == 3:
            break
    *_, resumed = checkpointed(make(), Checkpoint(tmp_path, "id"))
    assert same(whole.state, resumed.state)
    assert resumed.progress.releases == whole.progress.releases == ((8, 4, 4),)
    assert resumed.progress.epsilon == whole.progress.epsilon


def test_the_budget_ends_the_run_with_the_last_round_within_it():
    config = make().task.privacy
    budget = 1.0001 * privacy.epsilon(config, ((8, 4, 2),))
    *_, last = federate(make(dp_epsilon_budget=budget))
    assert (last.progress.round, last.last) == (2, True)
    assert last.progress.epsilon <= budget
    assert last.result.target is not None
    with pytest.raises(ConfigError, match="one round costs"):
        list(federate(make(dp_epsilon_budget=0.01)))


def test_a_delta_above_one_in_the_clients_is_warned_of(caplog):
    next(federate(make(dp_delta=0.2)))
    assert "more than 1 / 8 clients" in caplog.text


def screened(updates: list[ClientUpdate], state: State, asked: int = 4) -> Screened:
    names = [f"c{i}" for i in range(asked)]
    return Screened(names, updates, [], 0, 0, Broadcast(state, state, state))


def test_who_is_left_out_counts_as_not_moved_and_silence_is_noisy_too():
    fed = make(dp_noise_multiplier=1e-9, dp_clip=10.0)
    state = fed.algorithm.init(fed.task)
    updates = fed.algorithm.local_round(state, fed.clients[:4], fed.task, 1)
    found = next_state(fed, screened(updates[:3], state), state, 1)[0]
    moves = [flat(u.state) - flat(state) for u in updates[:3]]
    np.testing.assert_allclose(flat(found), flat(state) + sum(moves) / 4, atol=1e-6)
    fed = make()
    assert not same(next_state(fed, screened([], state), state, 1)[0], state)


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
        with_values(RunConfig(), {**PRIVATE, **train})


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
    budget = 1.001 * privacy.epsilon(privacy_of(1.0), ((8, 4, 2),))
    words = words_of(tmp_path, dp_epsilon_budget=budget)
    assert main([*words, "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    cost = privacy.epsilon(privacy_of(1.0), ((8, 4, 3),))
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
        opened = run.open_round()
        updates = fed.algorithm.local_round(run.state, fed.clients, fed.task, number)
        run.aggregate(opened, updates, [c.name for c in fed.clients])
        run.close_round(opened)
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
    assert setup.config.privacy.dp_seed == "secret"
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
    opened = run.open_round()
    run.aggregate(opened, updates, [c.name for c in some])
    result = run.close_round(opened)
    assert result.epsilon == privacy.epsilon(fed.task.privacy, ((clients, 4, 1),))


def test_a_host_that_would_overspend_is_told_how_many_rounds_are_left(tmp_path):
    def cost(rounds: int) -> float:
        return privacy.epsilon(privacy_of(1.0), ((8, 8, rounds),))

    setup = host_setup(tmp_path, dp_epsilon_budget=1.001 * cost(3))
    with pytest.raises(ConfigError, match="set its rounds to 3"):
        HostRun(setup)
    enough = host_setup(tmp_path, dp_epsilon_budget=1.001 * cost(4))
    assert run_as_a_host(HostRun(enough))["rounds"] == 4
